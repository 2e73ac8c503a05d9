//! A whole disk from one place to another: file, block device, standard input or output, NBD export.
//!
//! ```text
//!   source --map--> plan: steps of data and of zeroes --a task for each, up to the depth--.
//!     |                                                                                   v
//!     '--read--> buffer --which blocks are zeroes--> the same buffer --write, zero--> destination
//!
//!   pipes:  in order, whole buffers in at one end; each task waits for its turn at the other
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `place` | what a word of the command line names |
//! | `open` | opening a place, as source or as destination; what is refused before anything is written |
//! | `end` | what both sides can be asked for |
//! | `file`, `stream` | files and devices; what has only one direction |
//! | `plan` | extents into steps, without I/O |
//! | `zeroes` | zeroes in what was read |
//! | `engine` | the steps, many at a time |
//! | `assurance`, `ledger` | what a server that restarts may have lost |
//! | `verify` | reading both sides again |
//! | `report`, `error` | how far it is, what it came to, why it failed |
//!
//! May be imported by `cli`; imports `client`, `proto`, `rt`, `sys`.
//!
//! # Invariants
//! * Nothing is written before everything that can be known to be wrong has been looked at.
//! * A payload is not copied: the buffer that was read into is written from. The exception are parts of a buffer with zeroes
//!   in its middle that go to an NBD server, whose header needs the place before them.
//! * What a server answered and did not make durable counts as lost when it comes back, and is written again, or, where the
//!   source is a pipe, looked for.
//! * A step that fails ends the copy; what others were doing is given up, and the first failure is the one that is told.

mod assurance;
mod end;
mod engine;
mod error;
mod file;
mod ledger;
mod open;
mod place;
mod plan;
mod report;
mod stream;
mod verify;
mod zeroes;

use std::time::Duration;

pub use error::{CopyError, Mismatch};
pub use place::Place;
pub use report::{Progress, Summary};

use crate::rt;

/// Smallest request, and the smallest block that is looked at for zeroes: a page.
pub const REQUEST_MIN: u64 = 4096;
/// Largest request: the protocol's usual maximum.
pub const REQUEST_MAX: u64 = 32 << 20;
/// Bytes in flight where both sides are on this machine: more would be out of the processor's cache before it is sent or
/// written. To an export over a unix socket and from one, 2 GiB took 0.45 and 0.69 s of CPU with 16 MiB, 0.39 and 0.63 with
/// this (on a busy machine).
pub const QUEUE_NEAR: u64 = 4 << 20;
/// Bytes in flight elsewhere: 10 Gbit/s for 13 ms.
pub const QUEUE_FAR: u64 = 16 << 20;
/// Most bytes in flight.
pub const QUEUE_MAX: u64 = 1 << 30;

/// What to do.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a switch of the command
pub struct Job {
    /// Where from.
    pub source: Place,
    /// Where to.
    pub destination: Place,
    /// Connections to each server that allows several.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub requests: usize,
    /// Bytes of one request: a power of two from [`REQUEST_MIN`] to [`REQUEST_MAX`].
    pub request_bytes: u64,
    /// Bytes in flight, at most; up to [`QUEUE_MAX`]. `None` for [`QUEUE_NEAR`] or [`QUEUE_FAR`].
    pub queue_bytes: Option<u64>,
    /// Zeroes in data become zeroes without data in blocks of so many bytes; `None` for the destination's preferred block,
    /// `Some(0)` for never.
    pub sparse_bytes: Option<u64>,
    /// Leave no holes at the destination.
    pub allocated: bool,
    /// The destination reads as zeroes already.
    pub target_is_zero: bool,
    /// Ask the source where its data is.
    pub extents: bool,
    /// Make the copy durable.
    pub flush: bool,
    /// Read both sides again, and compare.
    pub verify: bool,
    /// How long requests wait for a lost connection to come back.
    pub reconnect_delay: Duration,
    /// How long to wait for a server that is starting.
    pub open_timeout: Duration,
}

/// Carries out a job on this thread. `watch` is called ten times a second, and at the end.
///
/// # Errors
/// [`CopyError`]; then the destination's content is undefined where that was not said to be untouched.
pub fn run(job: Job, watch: impl FnMut(&Progress) + 'static) -> Result<Summary, CopyError> {
    // Verifying holds two buffers for each request, and an eighth of the budget is kept for small ones.
    let queue = job.queue_bytes.unwrap_or(QUEUE_FAR);
    let in_flight = usize::try_from(queue.max(job.request_bytes)).unwrap_or(usize::MAX);
    let usual = rt::Config::default();
    let payload_memory_max = usual.payload_memory_max.max(in_flight.saturating_mul(3));
    rt::run(&rt::Config { payload_memory_max, ..usual }, move || engine::copy(job, watch))?
}
