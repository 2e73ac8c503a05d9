//! A `main` in one line.

use std::future::Future;

use super::caps::Unsupported;
use super::{Config, run};

/// Runs `future` on a shard of its own, made as [`Config::default`] says, on this thread: for programs that need nothing
/// else of the runtime.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// As [`run`].
pub fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> Result<T, Unsupported> {
    run(&Config::default(), || future)
}
