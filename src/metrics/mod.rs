//! What the node knows about itself: latency histograms and counters, per shard, export and command.
//!
//! ```text
//!   shard 0: ShardMetrics --snapshot()--.
//!   shard 1: ShardMetrics --snapshot()--+-- Snapshot::merge --> table     (people, at exit and on SIGUSR1)
//!   shard N: ShardMetrics --snapshot()--'        |              hgrm      (percentile files, `--hgrm`)
//!                                                |-- since() -> hlog      (interval log V2, `--hdr-log`)
//!                                                '-- totals               (all so far, `--stats-socket`)
//! ```
//!
//! A shard records into memory that only it touches: no atomics, no locks, and no allocation once a
//! command has been seen on an export. Reading never stops a shard: it answers with a copy.
//! A leaf: knows neither NBD's wire nor shards' rings; anyone may import it.
//!
//! Three durations per request, all in nanoseconds:
//!
//! ```text
//!   received   parsed           backend asked   backend answered    reply handed to the socket
//!      |--queued--|------------------|------ backend ------|------------------|
//!                 '---------------------- service ----------------------------'
//! ```

mod hgrm;
mod histogram;
mod hlog;
mod shard;
mod snapshot;
mod table;
mod totals;

pub use hgrm::{Curve, read_hgrm, write_hgrm};
pub use histogram::new as histogram;
pub use hlog::{HistogramLog, IntervalLog};
pub use shard::ShardMetrics;
pub use snapshot::{CommandMetrics, Snapshot, labels};
pub use table::table;
pub use totals::{Times, Totals, write_totals};

/// Declares an enum whose variants are indices into an array, each with its printed name.
macro_rules! indexed {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every variant, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name that tables, file names and tags print.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

indexed! {
    /// The commands that are timed, named as fio and the histogram files name them.
    CommandKind {
        /// READ.
        Read = "read",
        /// WRITE.
        Write = "write",
        /// FLUSH.
        Flush = "flush",
        /// TRIM.
        Trim = "trim",
        /// WRITE_ZEROES.
        WriteZeroes = "write_zeroes",
        /// CACHE.
        Cache = "cache",
        /// BLOCK_STATUS.
        BlockStatus = "block_status",
    }
}

indexed! {
    /// The table of metrics: what is counted besides requests. A new counter is a line here.
    Counter {
        /// Connections accepted by a shard.
        ConnectionsOpened = "connections_opened",
        /// Connections that are over, for whatever reason.
        ConnectionsClosed = "connections_closed",
        /// Connections turned away because the limit on connections was reached.
        ConnectionsRefused = "connections_refused",
        /// Handshakes that ended without transmission and without ABORT.
        HandshakesFailed = "handshakes_failed",
        /// Handshakes that ran out of time (also counted as failed).
        HandshakesTimedOut = "handshakes_timed_out",
        /// Connections closed because the peer broke the protocol.
        ProtocolViolations = "protocol_violations",
        /// Decisions, one for each export that a connection asked about, that left it nothing. Without rules none is made.
        AccessDenied = "access_denied",
        /// TLS sessions that began.
        TlsBegun = "tls_begun",
        /// TLS handshakes that failed.
        TlsFailed = "tls_failed",
        /// TLS streams that ended without close_notify.
        TlsCutOff = "tls_cut_off",
        /// Decisions that let the peer know of an export.
        AccessToList = "access_to_list",
        /// Decisions that let the peer read an export.
        AccessToRead = "access_to_read",
        /// Decisions that let the peer change an export.
        AccessToWrite = "access_to_write",
        /// Requests refused before they reached storage (their error is counted with the command too).
        RequestsRefused = "requests_refused",
        /// Peers that went away without DISC; fio does so every time.
        DisconnectsWithoutDisc = "disconnects_without_disc",
        /// Connections that we closed: stalled too long, or not done when the drain ended.
        Evicted = "evicted",
        /// Times a connection's window was full, so that its socket was not read for a while.
        WindowWaits = "window_waits",
        /// Times a request waited for payload memory.
        PayloadWaits = "payload_waits",
    }
}

/// What one finished request took and moved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Nanoseconds from parsed to reply handed to the socket.
    pub service_ns: u64,
    /// Nanoseconds spent in the backend.
    pub backend_ns: u64,
    /// Nanoseconds between arrival and a place in the connection's window.
    pub queued_ns: u64,
    /// Bytes that the request covered: payload for READ and WRITE, effect length otherwise.
    pub bytes: u64,
    /// Wire errno; 0 is success.
    pub errno: u32,
}
