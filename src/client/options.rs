//! What can be set, every limit.

use std::time::Duration;

use crate::proto::DialerConfig;

/// How a client behaves. Change what you need of [`Options::default`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Connections to make if the server says that several are safe (CAN_MULTI_CONN); else one is made.
    pub connections: usize,
    /// Requests in flight on one connection; more wait in line, in order of arrival.
    pub window: usize,
    /// Try extended headers (64-bit lengths).
    pub extended: bool,
    /// Try structured replies.
    pub structured: bool,
    /// Meta contexts to agree on, by full name. What the server does not have is left out.
    pub contexts: Vec<String>,
    /// Meta contexts that the export must not have: one that has any of them is refused. So a node that stands in front of
    /// other servers notices that it stands in front of itself.
    pub unwanted_contexts: Vec<String>,
    /// How long to go on trying to open while nobody listens or the server is starting; zero is one try.
    pub open_timeout: Duration,
    /// How long requests wait for a lost connection to come back, and are repeated then; zero fails them at once. In
    /// either case the client goes on reconnecting behind the scenes.
    pub reconnect_delay: Duration,
    /// How long connecting and the handshake may take together.
    pub handshake_timeout: Duration,
    /// A server that leaves a request unanswered for so long counts as gone: its connection is dropped.
    pub request_timeout: Option<Duration>,
    /// After so much silence TCP asks whether the peer is there (`tcp(7)`, TCP_KEEPIDLE); `None` never asks.
    pub keepalive: Option<Duration>,
    /// What to do with requests below the server's smallest block.
    pub below_minimum: BelowMinimum,
}

/// What to do with requests that are not made of whole blocks of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BelowMinimum {
    /// Read whole blocks, change them, write them back. Such writes of one client never mix; those of several clients may.
    Widen,
    /// [`Error::Unaligned`](super::Error::Unaligned).
    Refuse,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 1,
            window: 64,
            extended: true,
            structured: true,
            contexts: vec!["base:allocation".to_owned()],
            unwanted_contexts: Vec::new(),
            open_timeout: Duration::ZERO,
            reconnect_delay: Duration::ZERO,
            handshake_timeout: Duration::from_secs(30),
            request_timeout: None,
            keepalive: Some(Duration::from_secs(60)),
            below_minimum: BelowMinimum::Widen,
        }
    }
}

impl Options {
    pub(super) fn dialer(&self, export: &str) -> DialerConfig {
        DialerConfig {
            export: export.to_owned(),
            extended: self.extended,
            structured: self.structured,
            contexts: self.contexts.iter().chain(&self.unwanted_contexts).cloned().collect(),
            ..DialerConfig::default()
        }
    }
}
