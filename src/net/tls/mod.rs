//! TLS 1.2 and 1.3 without sockets: bytes in, bytes out. X.509 only, since rustls has no external PSK.
//!
//! ```text
//!                 Certificates (a directory, loaded again on demand)
//!                      |
//!   ciphertext --> Handshake --finish--> Session { opener, sealer }
//!                  (rustls)                 |  ^           |
//!             whoever receives -- open -----'  '-- Outbox -'-- records into a rt::gather::Gather
//!             (net::Inbox)      in place            in place, or copied where they are small
//! ```
//!
//! rustls negotiates: versions, keys, certificates (`handshake`, the only file that knows its unbuffered API). The records
//! of a session are ours (`record`, `session`), with the keys that rustls hands over and the AEADs of aws-lc: rustls' own
//! record path takes one allocation and two copies for each record, and takes plaintext in one piece only. So a payload
//! is encrypted where it lies, in the buffer that the kernel read it into, and is never copied; and once a session has its
//! keys nothing here allocates for a request.
//!
//! May be imported by `server`, `client`, `cli`; imports `rt`.
//!
//! Invariants: a nonce is used once (the sequence number is part of the key and only grows); nothing grows beyond
//! `record::RECORD_MAX` or `handshake::HANDSHAKE_MAX` on a peer's word; what failed to open is never looked at; after
//! a fault a session opens and seals nothing more.

mod certificates;
mod fault;
mod handshake;
mod outbox;
mod record;
mod session;
#[cfg(test)]
mod tests;
mod unverified;

pub use certificates::{CertificateError, Certificates, ClientCertificates, Expiry};
pub use fault::Fault;
pub use handshake::{Finished, Handshake};
pub use outbox::Outbox;
pub use session::{Opened, Session};

pub use rustls::pki_types::{CertificateDer, ServerName};

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The peer is a client.
    Server,
    /// The peer is a server.
    Client,
}
