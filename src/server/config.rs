//! What a server is told at start, and every limit: a name, a default, a reason.

use std::time::Duration;

use super::authorise::Rules;
use super::secure::Encryption;
use crate::backend::ExportSpec;
use crate::net::listen::Listener;
use crate::rt::Poll;

/// What to serve, where and how.
#[derive(Debug)]
pub struct Config {
    /// Exports, each with a name of its own.
    pub exports: Vec<ExportSpec>,
    /// Sockets that listen already.
    pub listeners: Vec<Listener>,
    /// Shards; `None` for one on each processor that this process may use.
    pub shards: Option<usize>,
    /// Keep each shard on its processor.
    pub pin: bool,
    /// Whether a shard looks for work before it sleeps.
    pub poll: Poll,
    /// Let a kernel thread take what shards submit; it sleeps after so long without work.
    pub sqpoll: Option<Duration>,
    /// How long the kernel looks at network cards before a shard sleeps.
    pub busy_poll: Option<Duration>,
    /// How replies get into sockets.
    pub sending: Sending,
    /// Greet in the oldstyle; needs exactly one export.
    pub oldstyle: bool,
    /// Who may see and touch what.
    pub rules: Rules,
    /// TLS, if there is any.
    pub encryption: Option<Encryption>,
    /// Limits.
    pub limits: Limits,
}

impl Config {
    /// A server of these exports on these sockets, everything else as it is by default.
    pub fn new(exports: Vec<ExportSpec>, listeners: Vec<Listener>) -> Self {
        Self {
            exports,
            listeners,
            shards: None,
            pin: true,
            poll: Poll::default(),
            sqpoll: None,
            busy_poll: None,
            sending: Sending::default(),
            oldstyle: false,
            rules: Rules::default(),
            encryption: None,
            limits: Limits::default(),
        }
    }
}

/// How replies get into sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// For large reads of what the page cache holds.
    pub zero_copy: ZeroCopy,
    /// Try sends without a copy for large replies between machines (`IORING_OP_SENDMSG_ZC`).
    pub send_zc: bool,
}

/// How a large read is answered when the page cache holds all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Sent with `sendfile` between machines, from a mapping within one.
    Auto,
    /// Read into a buffer, as everything else.
    Off,
    /// Sent from a mapping of the file.
    Map,
    /// Sent with `sendfile(2)`.
    SendFile,
}

impl Default for Sending {
    fn default() -> Self {
        Self { zero_copy: ZeroCopy::Auto, send_zc: true }
    }
}

/// Everything that could grow, and how far it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; more are closed at once. A connection at rest costs a few KiB, so this protects descriptors.
    pub connections_max: u32,
    /// Requests of one connection in flight; then its socket is not read. fio and QEMU go to 128 and 16.
    pub window: u32,
    /// Payload bytes of one request, advertised. libnbd, and so fio, sends up to 64 MiB.
    pub payload_length_max: u32,
    /// Payload bytes that one shard holds for its clients; then requests wait in line. At least four times
    /// `payload_length_max`, so that any one request fits, whatever it is rounded up to.
    pub payload_memory_max: usize,
    /// A refused payload is read and dropped up to so many times `payload_length_max`; beyond, the connection is closed.
    /// Keeps a client that only missed the maximum, without reading gigabytes for nothing.
    pub drain_payloads_max: u32,
    /// A client that has not chosen an export by then is closed.
    pub handshake_timeout: Duration,
    /// Options of one handshake. Listing 1,000 exports with details takes 2,000.
    pub options_max: u32,
    /// After a drain began, how long connections have to finish.
    pub drain_timeout: Duration,
    /// A connection with nothing in flight that stays silent for so long during a drain is closed.
    pub drain_idle: Duration,
    /// How long a request waits for payload memory before other connections whose transfer has not moved for as long
    /// are closed to make room; from then on a fifth of it is enough. Nobody is closed while memory lasts.
    pub stall_grace: Duration,
    /// Extents in one block status reply; the client asks on from the last. 8,192 are 64 KiB and some 10 ms of a helper.
    pub extents_max: usize,
    /// Reads of at least so many bytes are looked through for holes, unless the range is known to be data. Measured on a
    /// hole: at 16 KiB asking costs more than it saves (13.2 against 9.7 us of CPU at depth 16), at 32 KiB less (13.5
    /// against 18.9), at 128 KiB much less (14.5 against 64.8).
    pub sparse_read_min: u32,
    /// Reads of at least so many bytes are answered from the page cache without a copy, if all of it is there.
    pub zero_copy_min: u32,
    /// Gathered sends of at least so many bytes are tried without a copy between machines; pinning pages has its price.
    pub send_zc_min: usize,
    /// Runs of data and holes in one read; what lies beyond them is read as data.
    pub sparse_runs_max: usize,
    /// Requests of one connection that are started before those of others, and the replies, have their turn. Keeps
    /// client and server at work at the same time: with whole batches of 32 each slept while the other worked
    /// (146k IOPS; 4, 6, 8, 16: 241k, 238k, 247k, 215k, with the least server CPU per request at 8).
    pub requests_per_turn: usize,
    /// The same for writes of a connection that has the shard for itself. Each takes longer than the client needs to ask
    /// for the next, so the client sleeps until it is woken anyway, which is a quarter of the server's time after every
    /// eight and less after more (TCP, depth 32: 139k IOPS, 6.6 us of CPU; 24: 181k, 5.3). With four connections the others'
    /// requests are there meanwhile, and 24 cost a fifth of the IOPS.
    pub writes_per_turn: usize,
    /// The same in bytes asked for.
    pub bytes_per_turn: u64,
    /// Replies in one gathered send: more would put a single client in lockstep with the server.
    pub replies_per_send: usize,
    /// Bytes after which a gathered send takes no further reply.
    pub bytes_per_send: usize,
    /// Send buffer of TCP connections within one machine (`SO_SNDBUF`, of which the kernel makes twice as much). Left to
    /// itself it grows to megabytes: then a server that is slower than its client wakes it for each 64 KiB, and what is
    /// copied has left the caches. 256k reads at depth 16, CPU of each: 64, 96, 128, 176 KiB: 108, 89, 81, 136 us; left to
    /// itself 131. Connections to other machines need what the kernel finds, for the bandwidth and delay on the way.
    pub loopback_send_buffer: usize,
    /// TCP keepalive: idle time before the first probe.
    pub keepalive: Duration,
    /// TCP user timeout: unacknowledged for so long means gone (`TCP_USER_TIMEOUT`, tcp(7)).
    pub user_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            window: 128,
            payload_length_max: 64 << 20,
            payload_memory_max: 256 << 20,
            drain_payloads_max: 4,
            handshake_timeout: Duration::from_secs(10),
            options_max: 4096,
            drain_timeout: Duration::from_secs(30),
            drain_idle: Duration::from_millis(500),
            stall_grace: Duration::from_secs(5),
            extents_max: 8192,
            sparse_read_min: 32 << 10,
            zero_copy_min: 64 << 10,
            send_zc_min: 64 << 10,
            sparse_runs_max: 64,
            requests_per_turn: 8,
            writes_per_turn: 24,
            bytes_per_turn: 256 << 10,
            replies_per_send: 64,
            bytes_per_send: 1 << 20,
            loopback_send_buffer: 128 << 10,
            keepalive: Duration::from_secs(60),
            user_timeout: Duration::from_secs(60),
        }
    }
}
