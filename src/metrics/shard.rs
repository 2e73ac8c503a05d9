//! What a shard writes to, for each request.

use super::snapshot::{CommandMetrics, Snapshot};
use super::{CommandKind, Counter, Sample};

/// The counters and histograms of one shard. Not shared: one owner, plain memory.
///
/// Every [`begin`](Self::begin) is followed by exactly one [`end`](Self::end) or
/// [`abandon`](Self::abandon) of the same export and command.
#[derive(Debug)]
pub struct ShardMetrics {
    totals: Snapshot,
}

impl ShardMetrics {
    /// For exports numbered `0..exports`.
    pub fn new(exports: usize) -> Self {
        Self { totals: Snapshot::new(exports) }
    }

    /// A request was parsed and is in flight. Allocates at the first use of a command on an export.
    #[inline]
    pub fn begin(&mut self, export: usize, kind: CommandKind) {
        self.command(export, kind).in_flight += 1;
    }

    /// The reply of a request was handed to the socket.
    #[inline]
    pub fn end(&mut self, export: usize, kind: CommandKind, sample: &Sample) {
        self.command(export, kind).end(sample);
    }

    /// A request ended without a reply because its connection died: nothing to time.
    #[inline]
    pub fn abandon(&mut self, export: usize, kind: CommandKind) {
        let command = self.command(export, kind);
        debug_assert!(command.in_flight > 0, "abandoned a request that never began");
        command.in_flight -= 1;
    }

    /// One more of `counter`.
    #[inline]
    pub fn count(&mut self, counter: Counter) {
        self.totals.counters[counter as usize] += 1;
    }

    /// A copy of everything so far: about 100 KiB for each command in use on each export.
    pub fn snapshot(&self) -> Snapshot {
        let mut copy = self.totals.clone();
        copy.exports.iter_mut().flatten().flatten().for_each(|command| command.settle());
        copy
    }

    #[inline]
    fn command(&mut self, export: usize, kind: CommandKind) -> &mut CommandMetrics {
        self.totals.exports[export][kind as usize].get_or_insert_with(CommandMetrics::boxed)
    }
}
