//! Where an export's bytes are.
//!
//! ```text
//!   words --spec--> ExportSpec --Media::open--> Arc<Media> --attach, on each shard--> Backend
//!                                               one per export: size, traits,         one per shard: its handles
//!                                               locks, sticky fsync error, what
//!                                               is known to be data
//!
//!   spec (words)  open, claim, device (what is there)     media, disk, known (what shards share)
//!
//!   Backend --+-- Null                                                          null
//!             +-- File     regular files, block devices, memory (a memfd)       file  discard  extents
//!             +-- Direct   the same past the page cache: edges, order, tail     align  ranges
//!             +-- Nbd      another server's export                           nbd  upstream
//!             '-- Faulty   any of these, failing now and then for tests         faulty
//! ```
//!
//! Offsets count from the start of the export and `offset + length` never passes [`Media::size`]: the caller has checked
//! what a client asked. Nothing here knows the protocol. Futures run on the shard that attached; what the kernel can only
//! do by blocking goes to the helper pool. A [`Failure`] ends one request and nothing else.
//!
//! May be imported by `server` and `cli`; imports `client`, `rt`, `sys`.

mod align;
mod claim;
mod device;
mod discard;
mod disk;
mod extents;
mod faulty;
mod file;
mod known;
mod media;
mod nbd;
mod null;
mod open;
mod ranges;
mod spec;
mod upstream;

/// What `benches/extents.rs` measures; not for others.
#[doc(hidden)]
pub mod bench {
    pub use super::known::KnownData;
    pub use super::ranges::{Held, Hold, Ranges};
}

use std::borrow::Cow;
use std::io;

use smallvec::SmallVec;

pub use self::align::Direct;
pub use self::faulty::Faulty;
pub use self::file::File;
pub use self::media::{Can, Media, Traits};
pub use self::nbd::{Nbd, Runs};
pub use self::null::Null;
pub use self::open::OpenError;
pub(crate) use self::spec::split_commas;
pub use self::spec::{
    ExportOptions, ExportSpec, SIZE_MAX, STRING_LENGTH_MAX, Source, SpecError, check_names, parse_size,
};
pub use self::upstream::UpstreamOptions;
use crate::rt::{Buffer, Cached};

/// One export on one shard.
pub enum Backend {
    /// Reads zeroes, forgets writes.
    Null(Null),
    /// A file, block device or memory through the page cache.
    File(File),
    /// A file or block device past the page cache.
    Direct(Box<Direct>),
    /// Another server's export.
    Nbd(Box<Nbd>),
    /// Another backend, with faults from a seed.
    Faulty(Box<Faulty>),
}

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; never 0.
    pub length: u64,
    /// No space is allocated for it.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// Runs in order and without gaps, neighbours differ in kind.
pub type Extents = SmallVec<[Extent; 8]>;

/// How a range is to be zeroed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zero {
    /// The range need not stay allocated.
    pub may_punch: bool,
    /// Fail with ENOTSUP, changing nothing, if that is not faster than writing zeroes.
    pub fast_only: bool,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// The operating system's error number.
    pub errno: i32,
    /// A sentence for the client; it names nothing of the server's, such as paths.
    pub text: Cow<'static, str>,
    /// The first byte that failed, from the start of the export, if known.
    pub at: Option<u64>,
}

impl Failure {
    fn new(errno: i32, text: impl Into<Cow<'static, str>>) -> Self {
        Self { errno, text: text.into(), at: None }
    }

    /// `action` completes "could not ...".
    fn of(action: &str, error: &io::Error) -> Self {
        Self::new(error.raw_os_error().unwrap_or(libc::EIO), format!("could not {action}: {error}"))
    }

    fn at(self, offset: u64) -> Self {
        Self { at: Some(offset), ..self }
    }
}

/// What a read or write gives: its outcome, and the buffer back.
pub type Done = (Result<(), Failure>, Buffer);

impl Backend {
    /// Fills the whole buffer. After an error its content is unspecified.
    pub async fn read(&self, buffer: Buffer, offset: u64) -> Done {
        match self {
            Self::Null(null) => (Ok(()), null.read(buffer)),
            Self::File(file) => file.read(buffer, offset).await,
            Self::Direct(direct) => direct.read(buffer, offset).await,
            Self::Nbd(nbd) => Box::pin(nbd.read(buffer, offset)).await,
            Self::Faulty(faulty) => faulty.read(buffer, offset).await,
        }
    }

    /// Writes the whole buffer; with `fua` the bytes are durable when this returns.
    /// After an error the range holds old and new bytes in any mixture.
    pub async fn write(&self, buffer: Buffer, offset: u64, fua: bool) -> Done {
        match self {
            Self::Null(_) => (Ok(()), buffer),
            Self::File(file) => file.write(buffer, offset, fua).await,
            Self::Direct(direct) => direct.write(buffer, offset, fua).await,
            Self::Nbd(nbd) => Box::pin(nbd.write(buffer, offset, fua)).await,
            Self::Faulty(faulty) => faulty.write(buffer, offset, fua).await,
        }
    }

    /// Makes durable every write of the export that has returned, on whichever shard or connection.
    /// Once this has failed it fails until the export is opened anew: the kernel forgets what it could not write.
    pub async fn flush(&self) -> Result<(), Failure> {
        match self {
            Self::Null(_) => Ok(()),
            Self::File(file) => file.flush().await,
            Self::Direct(direct) => direct.flush().await,
            Self::Nbd(nbd) => Box::pin(nbd.flush()).await,
            Self::Faulty(faulty) => faulty.flush().await,
        }
    }

    /// Gives the range back to the storage as far as that is possible; what it reads as afterwards is unspecified.
    pub async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), Failure> {
        match self {
            Self::Null(_) => Ok(()),
            Self::File(file) => file.trim(offset, length, fua).await,
            Self::Direct(direct) => direct.trim(offset, length, fua).await,
            Self::Nbd(nbd) => Box::pin(nbd.trim(offset, length, fua)).await,
            Self::Faulty(faulty) => faulty.trim(offset, length, fua).await,
        }
    }

    /// Makes the range read as zeroes.
    pub async fn zero(&self, offset: u64, length: u64, how: Zero, fua: bool) -> Result<(), Failure> {
        match self {
            Self::Null(_) => Ok(()),
            Self::File(file) => file.zero(offset, length, how, fua).await,
            Self::Direct(direct) => direct.zero(offset, length, how, fua).await,
            Self::Nbd(nbd) => Box::pin(nbd.zero(offset, length, how, fua)).await,
            Self::Faulty(faulty) => faulty.zero(offset, length, how, fua).await,
        }
    }

    /// Asks that the range be in memory soon; a hint.
    pub async fn cache(&self, offset: u64, length: u64) -> Result<(), Failure> {
        match self {
            Self::Null(_) | Self::Direct(_) => Ok(()),
            Self::File(file) => file.cache(offset, length).await,
            Self::Nbd(nbd) => Box::pin(nbd.cache(offset, length)).await,
            Self::Faulty(faulty) => faulty.cache(offset, length).await,
        }
    }

    /// What the range consists of, from its first byte on: all of it, or the first `extents_max` (at least one) runs.
    /// Costs one trip to the helper pool, however many runs there are.
    pub async fn extents(&self, offset: u64, length: u64, extents_max: usize) -> Result<Extents, Failure> {
        match self {
            Self::Null(null) => Ok(null.extents(length)),
            Self::File(file) => file.extents(offset, length, extents_max).await,
            Self::Direct(direct) => direct.extents(offset, length, extents_max).await,
            Self::Nbd(nbd) => Box::pin(nbd.extents(offset, length, extents_max)).await,
            Self::Faulty(faulty) => faulty.extents(offset, length, extents_max).await,
        }
    }

    /// The range as it lies in the page cache, if all of it does. Must not be asked about what may be a hole worth telling.
    pub fn cached(&self, offset: u64, length: usize) -> Option<Cached> {
        match self {
            Self::File(file) => file.cached(offset, length),
            Self::Null(_) | Self::Direct(_) | Self::Nbd(_) | Self::Faulty(_) => None,
        }
    }

    /// Whether the range is surely without a hole worth asking [`extents`](Self::extents) about. A few loads, no call.
    #[inline]
    pub fn known_data(&self, offset: u64, length: u64) -> bool {
        match self {
            Self::Null(_) => true, // it is there to measure reads that carry data
            Self::Nbd(_) => true,  // the other server tells of holes when it is read
            Self::File(file) => file.known_data(offset, length),
            Self::Direct(direct) => direct.known_data(offset, length),
            Self::Faulty(faulty) => faulty.known_data(offset, length),
        }
    }

    /// Gives up what it has open elsewhere; later requests may fail.
    pub async fn close(&self) {
        match self {
            Self::Nbd(nbd) => nbd.close().await,
            Self::Faulty(faulty) => Box::pin(faulty.close()).await,
            Self::Null(_) | Self::File(_) | Self::Direct(_) => {}
        }
    }
}
