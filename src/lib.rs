//! ringnbd: an NBD storage node whose data path is io_uring from the socket to the disk.
//!
//! One process; one thread and one ring per core, a *shard*. A shard owns the connections it accepted and everything in
//! flight on them, and shares nothing: other threads reach it by letters and a doorbell on its ring.
//!
//! ```text
//!   cli                                   parses words, starts things, prints
//!    |-- load ---> client                 makes traffic, reports it
//!    |-- copy ---> client, rt             moves a whole disk from one place to another
//!    |-- attach -> client, rt             hands connections to the kernel's NBD client
//!    |-- client -> net, proto
//!    '-- server -> net, proto, backend    the only place that knows protocol AND storage
//!                   |            | '----> client, for exports of other servers
//!                   '---> rt <---'        one ring, one executor, one shard; no NBD in it
//!
//!   proto    sans-io NBD      metrics  counters, histograms      sys  wrappers of system calls
//! ```
//!
//! An arrow may import; `tests/tidy.rs` enforces it.
//!
//! # One READ
//!
//! 1. `server/receive`: bytes arrive in a provided buffer; `proto` decodes the header;
//! 2. the request takes a slot of its connection's window (else the socket is not read);
//! 3. `proto` admits it: every check that needs no storage, once;
//! 4. a pooled task starts `server/command`, which takes a payload buffer from the shard's budget;
//! 5. `backend` turns the offset into a position in a file, `rt/file` pushes one SQE;
//! 6. after eight requests others have their turn: the loop enters the kernel once for all that was pushed and reaps
//!    what completed;
//! 7. the task resumes, writes the reply's head into the headroom before the payload,
//! 8. and appends the buffer to the connection's reply queue;
//! 9. `server/send` gathers all replies that are ready into one `sendmsg`;
//! 10. when that completes, the request is measured (`metrics`), its slot and buffer go back.
//!
//! Through TLS, records are decrypted in the provided buffer (1), and a payload is encrypted in its own (9), with the keys that
//! rustls negotiated (`net/tls`).
//!
//! A large READ of what the page cache holds needs no buffer: it is sent from there (`rt/cached`). What moves much goes one
//! operation in a turn, small ones first (`rt/heavy`), so that connections do not stop each other.
//!
//! What a client may see and touch is decided once, in the handshake (`server/gate`).
//!
//! What would make a shard wait goes elsewhere: questions without an opcode to helper threads (`rt::blocking`), buffered
//! writes that the file system holds up to writer threads (`rt/writer`); both answer through the shard's ring.

pub mod attach;
pub mod backend;
pub mod cli;
pub mod client;
pub mod copy;
pub mod load;
pub mod metrics;
pub mod net;
pub mod proto;
#[allow(unsafe_code)]
pub mod rt;
pub mod server;
#[allow(unsafe_code)]
pub mod sys;
