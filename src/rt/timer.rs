//! Time: the shard's clock, sleeping, deadlines.
//!
//! Timers are `IORING_OP_TIMEOUT`s on the monotonic clock. They are for deadlines of connections and drains; no request
//! on the data path starts one.

use std::future::Future;
use std::time::Duration;

use io_uring::{opcode, types};

use super::op::Op;
use super::sync::{Either, select};

/// The deadline passed before the future was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// The longest sleep, some 136 years: the kernel takes seconds as a signed number, and `Duration::MAX` for "never" is not
/// to be a wrong argument that ends at once.
const SLEEP_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// Sleeps for `duration`; dropping the future removes the timer.
pub async fn sleep(duration: Duration) {
    let timespec = Box::new(types::Timespec::from(duration.min(SLEEP_MAX)));
    let sqe = opcode::Timeout::new(&raw const *timespec).build();
    let op = super::with(|shard| Op::submit(shard, sqe, timespec).cancel_on_drop());
    op.await;
}

/// Asks the kernel for nothing: what a turn of the loop costs by itself (`benches/runtime.rs`).
pub async fn nop() {
    super::with(|shard| Op::submit(shard, opcode::Nop::new().build(), ())).await;
}

/// Runs `future`, but for no longer than `duration`.
///
/// # Errors
/// [`Elapsed`]; the future has then been dropped.
pub async fn deadline<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    match select(future, sleep(duration)).await {
        Either::First(output) => Ok(output),
        Either::Second(()) => Err(Elapsed),
    }
}
