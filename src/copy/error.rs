//! Why there is no copy: what, where, and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::client::{self, ConnectError};
use crate::rt::caps::Unsupported;
use crate::sys::lock::Holder;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// No ring.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A file cannot be opened or prepared.
    #[error("cannot {action} {path}: {error}")]
    Open {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// Neither file nor device nor pipe.
    #[error("{} is {found}: name a file, a block device, - or an NBD URI", .path.display())]
    Type {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A destination that somebody else writes to.
    #[error("{path} is in use by {}: stop that first; nothing was written", who(.holder.as_ref()))]
    Locked {
        /// Where.
        path: String,
        /// Who, if that can be found out.
        holder: Option<Holder>,
    },
    /// A destination that takes no writes.
    #[error("{0} is read-only: nothing was written")]
    ReadOnly(String),
    /// Not enough room.
    #[error(
        "{destination} has {room} bytes, {} fewer than the {size} of {source_name}: nothing was written; enlarge it first",
        .size - .room
    )]
    Small {
        /// Where from.
        source_name: String,
        /// Bytes of the source.
        size: u64,
        /// Where to.
        destination: String,
        /// Bytes of the destination.
        room: u64,
    },
    /// Source and destination are one.
    #[error("source and destination are the same, {0}: nothing was written")]
    Same(String),
    /// A source that is none.
    #[error("null: is a destination only")]
    NullSource,
    /// What cannot be read a second time.
    #[error("--verify reads both sides again, which {0} does not allow: nothing was written")]
    Once(String),
    /// A server refused a request, or is lost.
    #[error("{label}: {error}")]
    Request {
        /// Where.
        label: String,
        /// Why.
        error: client::Error,
    },
    /// A file failed.
    #[error("cannot {action} {label} at {offset}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        label: String,
        /// Byte from which on it failed.
        offset: u64,
        /// Why.
        error: io::Error,
    },
    /// The source got shorter.
    #[error(
        "{label} ended before its {size} bytes: it was cut short while it was read; copy it again when it is at rest"
    )]
    Short {
        /// Where.
        label: String,
        /// Its size at first.
        size: u64,
    },
    /// A pipe had more than there is room for.
    #[error(
        "{source_name} goes on after the {room} bytes that {destination} has: those are written, the rest is not"
    )]
    Overflow {
        /// Where from.
        source_name: String,
        /// Where to.
        destination: String,
        /// Bytes of the destination.
        room: u64,
    },
    /// A server lost what it had answered, and there is no way to write it again.
    #[error(
        "{destination} went away and came back without the {length} bytes at {offset} that it had answered, and \
         {source_name} cannot be read again: begin again"
    )]
    Forgotten {
        /// Where to.
        destination: String,
        /// Where from.
        source_name: String,
        /// The first byte in question.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// A server went away each time.
    #[error(
        "{label} went away and came back {times} times before what it had lost was written again: it may lack data"
    )]
    Unsteady {
        /// Where.
        label: String,
        /// How often.
        times: usize,
    },
    /// What was written does not read back.
    #[error("{0}")]
    Differs(Mismatch),
}

fn who(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another program".to_owned(), Holder::to_string)
}

/// The first difference that verifying found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where from.
    pub source: String,
    /// Where to.
    pub destination: String,
    /// The first byte that differs.
    pub offset: u64,
    /// That byte in the source.
    pub wanted: u8,
    /// That byte in the destination.
    pub found: u8,
    /// Bytes that differ in the request that found it.
    pub differing: u64,
    /// Bytes of that request.
    pub length: u64,
    /// All that was read of the destination there is zero.
    pub all_zero: bool,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, offset, wanted, found, differing, length, .. } = self;
        write!(
            f,
            "{destination} differs from {source} at byte {offset}: {found:#04x} where {wanted:#04x} was written; \
             {differing} of the {length} bytes read there differ"
        )?;
        if self.all_zero {
            f.write_str(", and all of them read as zeroes: writes were lost, or the destination keeps none")?;
        }
        f.write_str(". Either side may also have been written to by somebody else since")
    }
}
