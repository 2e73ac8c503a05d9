//! Room for the descriptors that `--max-connections` and the rings need: the soft limit is raised as far as that takes.
//!
//! The soft limit is 1024 almost everywhere, for the sake of programs that use `select(2)`; the hard one is far above.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::server::DESCRIPTORS_MIN;

/// Descriptors that a process needs beside its connections: rings, doorbells, listeners, logs, a margin.
const OTHERS: u64 = 256;
/// What one export may have open: the file, the same for direct I/O, and for errors of writeback.
const PER_EXPORT: u64 = 3;

/// Raises the soft limit if that is needed and allowed; says so if it is not enough. Serving fewer is no reason not to
/// start.
pub(super) fn make_room(connections_max: u32, exports: usize) {
    let needed = u64::from(connections_max) + PER_EXPORT * exports as u64 + OTHERS;
    let needed = needed.max(DESCRIPTORS_MIN.into());
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if is_enough(current) {
        return;
    }
    let raised = if is_enough(maximum) { Some(needed) } else { maximum };
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: raised, maximum }) {
        tracing::warn!("cannot raise RLIMIT_NOFILE: {error}");
    }
    if let Some(limit) = raised.filter(|limit| *limit < needed) {
        tracing::warn!(
            "RLIMIT_NOFILE allows {limit} descriptors, and {connections_max} connections need {needed}: lower \
             --max-connections, or raise it with `ulimit -Hn` or systemd's LimitNOFILE="
        );
    }
}
