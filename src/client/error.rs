//! What can go wrong, by kind: no connection, no answer, an answer that says no, a request that makes no sense.

use std::io;

use super::uri::UriError;
use crate::net::tls::{CertificateError, Fault};
use crate::proto::reply_decode::ReplyError;
use crate::proto::{Command, DialError, Errno, OptionCode, OptionReply, Violation};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URI is none.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The address cannot be reached.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The handshake failed.
    #[error("{address}: {error}{}", advice(error))]
    Dial {
        /// Where.
        address: String,
        /// Why.
        error: DialError,
    },
    /// The connection broke during the handshake.
    #[error("{address}: the server ended the connection during the handshake{}", at(*.option))]
    Ended {
        /// Where.
        address: String,
        /// What was waited for.
        option: Option<OptionCode>,
    },
    /// The server took too long over connecting and the handshake.
    #[error("{address}: the server did not finish the handshake within {} s", .seconds)]
    Slow {
        /// Where.
        address: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The export has a meta context that it must not have.
    #[error("{address}: the export has the meta context {context}, which was not to be there")]
    Unwanted {
        /// Where.
        address: String,
        /// Its name.
        context: String,
    },
    /// The export is not what it was when it was opened before.
    #[error("{address}: the export came back different: {what}")]
    Changed {
        /// Where.
        address: String,
        /// In what.
        what: String,
    },
    /// TLS did not come about.
    #[error("{address}: TLS: {fault}")]
    Tls {
        /// Where.
        address: String,
        /// Why.
        fault: Fault,
    },
    /// The files that TLS needs are no use.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// No certificate can name this.
    #[error("{name:?} is not a name that a certificate can have: write tls-hostname=NAME")]
    ServerName {
        /// What the server is called.
        name: String,
    },
}

fn advice(error: &DialError) -> &'static str {
    match error {
        DialError::Refused { reply: OptionReply::ERR_TLS_REQD, .. } => "; write nbds instead of nbd",
        DialError::Refused { option: OptionCode::STARTTLS, .. } | DialError::NoTls(_) => {
            "; without TLS it can be reached by nbd instead of nbds"
        }
        _ => "",
    }
}

fn at(option: Option<OptionCode>) -> String {
    option.map(|option| format!(", at {option}")).unwrap_or_default()
}

impl ConnectError {
    /// Whether it may go better later: nobody listens yet, or the server is just starting or stopping.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Ended { .. } | Self::Slow { .. } => true,
            Self::Dial { error: DialError::Refused { reply, .. }, .. } => *reply == OptionReply::ERR_SHUTDOWN,
            _ => false,
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server says no. The connection lives on.
    #[error("{command} of {length} bytes at {offset} failed: {error}")]
    Failed {
        /// What was asked.
        command: Command,
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// How the server said so.
        error: ReplyError,
    },
    /// There is no connection, and none came back within [`reconnect_delay`](super::Options::reconnect_delay). Whether
    /// the request was carried out is not known.
    #[error("{address}: the connection is lost: {cause}")]
    Lost {
        /// The server.
        address: String,
        /// What happened to the last connection, or to the last attempt to make one.
        cause: String,
    },
    /// The server broke the protocol; this client is of no use any more.
    #[error("{address}: the server broke the protocol: {violation}")]
    Violation {
        /// The server.
        address: String,
        /// How.
        violation: Violation,
    },
    /// After a reconnect the export was not the same; this client is of no use any more.
    #[error("{address}: the export came back different: {what}")]
    Changed {
        /// The server.
        address: String,
        /// In what.
        what: String,
    },
    /// The client was told to disconnect or to abort.
    #[error("the client was closed")]
    Closed,
    /// The export is read-only.
    #[error("{0} refused: the export is read-only")]
    ReadOnly(Command),
    /// The range goes past the end of the export.
    #[error("{command} of {length} bytes at {offset} goes past the end at {size}")]
    PastEnd {
        /// What was asked.
        command: Command,
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Bytes of the export.
        size: u64,
    },
    /// The range is not made of the server's blocks, and [`Options::below_minimum`](super::Options::below_minimum) says
    /// to refuse that.
    #[error(
        "{command} of {length} bytes at {offset} is not aligned to the server's block of {minimum} bytes"
    )]
    Unaligned {
        /// What was asked.
        command: Command,
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// The server's smallest block.
        minimum: u32,
    },
    /// The server did not offer this, and nothing else would do.
    #[error("the server does not offer {0}")]
    NotOffered(&'static str),
    /// No meta context of this name was agreed on.
    #[error("no meta context {0:?} was agreed on with the server")]
    NoContext(String),
}

impl Error {
    /// The number to pass on to whoever speaks NBD to us.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Failed { error, .. } => error.errno,
            Self::Lost { .. } | Self::Violation { .. } | Self::Changed { .. } => Errno::EIO,
            Self::Closed => Errno::ESHUTDOWN,
            Self::ReadOnly(_) => Errno::EPERM,
            Self::PastEnd { command: Command::WRITE | Command::WRITE_ZEROES, .. } => Errno::ENOSPC,
            Self::PastEnd { .. } | Self::Unaligned { .. } | Self::NoContext(_) => Errno::EINVAL,
            Self::NotOffered(_) => Errno::ENOTSUP,
        }
    }
}
