//! Counters and histograms as data: copied from shards, merged, subtracted, read.

use hdrhistogram::Histogram;
use smallvec::SmallVec;

use super::histogram::{self, Run};
use super::{CommandKind, Counter, Sample};

/// One command on one export.
#[derive(Clone, Debug)]
pub struct CommandMetrics {
    /// Parsed to reply handed to the socket, nanoseconds.
    pub service: Histogram<u64>,
    /// Time in the backend, nanoseconds.
    pub backend: Histogram<u64>,
    /// Waiting for a place in the window, nanoseconds.
    pub queued: Histogram<u64>,
    /// Requests answered, errors included.
    pub requests: u64,
    /// Bytes covered by the answered requests.
    pub bytes: u64,
    /// Requests begun and not yet answered.
    pub in_flight: u64,
    /// Wire errno and how often it was the answer. The wire knows eight, so this stays inline.
    errors: SmallVec<[(u32, u64); 8]>,
    service_run: Run,
    backend_run: Run,
    queued_run: Run,
}

impl CommandMetrics {
    pub(super) fn boxed() -> Box<Self> {
        Box::new(Self {
            service: histogram::new(),
            backend: histogram::new(),
            queued: histogram::new(),
            requests: 0,
            bytes: 0,
            in_flight: 0,
            errors: SmallVec::new(),
            service_run: Run::default(),
            backend_run: Run::default(),
            queued_run: Run::default(),
        })
    }

    #[inline]
    pub(super) fn end(&mut self, sample: &Sample) {
        debug_assert!(self.in_flight > 0, "ended a request that never began");
        self.in_flight -= 1;
        self.requests += 1;
        self.bytes = self.bytes.saturating_add(sample.bytes);
        self.service_run.record(sample.service_ns, &mut self.service);
        self.backend_run.record(sample.backend_ns, &mut self.backend);
        self.queued_run.record(sample.queued_ns, &mut self.queued);
        if sample.errno != 0 {
            self.add_errors(sample.errno, 1);
        }
    }

    /// Enters what is held back into the histograms; until then they must not be read.
    pub(super) fn settle(&mut self) {
        self.service_run.settle(&mut self.service);
        self.backend_run.settle(&mut self.backend);
        self.queued_run.settle(&mut self.queued);
    }

    /// Each wire errno that was answered, with its count.
    pub fn errors(&self) -> &[(u32, u64)] {
        &self.errors
    }

    /// Requests answered with any error.
    pub fn errors_total(&self) -> u64 {
        self.errors.iter().map(|(_, count)| count).sum()
    }

    #[cold]
    fn add_errors(&mut self, errno: u32, count: u64) {
        match self.errors.iter_mut().find(|(known, _)| *known == errno) {
            Some((_, total)) => *total += count,
            None => self.errors.push((errno, count)),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.service.add(&other.service).expect("one shape for all");
        self.backend.add(&other.backend).expect("one shape for all");
        self.queued.add(&other.queued).expect("one shape for all");
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.in_flight += other.in_flight;
        for (errno, count) in &other.errors {
            self.add_errors(*errno, *count);
        }
    }

    fn subtract(&mut self, earlier: &Self) {
        subtract(&mut self.service, &earlier.service);
        subtract(&mut self.backend, &earlier.backend);
        subtract(&mut self.queued, &earlier.queued);
        self.requests = self.requests.saturating_sub(earlier.requests);
        self.bytes = self.bytes.saturating_sub(earlier.bytes);
        for (errno, count) in &earlier.errors {
            if let Some((_, total)) = self.errors.iter_mut().find(|(known, _)| known == errno) {
                *total = total.saturating_sub(*count);
            }
        }
        self.errors.retain(|(_, count)| *count > 0);
    }
}

/// Counts only grow, unless a shard was missing from the later snapshot: then nothing is said about
/// the interval rather than something wrong.
fn subtract(later: &mut Histogram<u64>, earlier: &Histogram<u64>) {
    if later.subtract(earlier).is_err() {
        later.reset();
    }
}

/// Metrics of one shard, or of many merged, at one moment or over one interval.
///
/// Exports are numbered as the server numbers them; their names are the caller's.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(super) exports: Vec<[Option<Box<CommandMetrics>>; CommandKind::COUNT]>,
    pub(super) counters: [u64; Counter::COUNT],
}

impl Snapshot {
    /// All zero, for exports numbered `0..exports`.
    pub fn new(exports: usize) -> Self {
        Self { exports: (0..exports).map(|_| Default::default()).collect(), counters: Default::default() }
    }

    /// Adds another shard's figures. The longer list of exports wins.
    pub fn merge(&mut self, other: &Self) {
        if self.exports.len() < other.exports.len() {
            self.exports.resize_with(other.exports.len(), Default::default);
        }
        for (mine, theirs) in self.exports.iter_mut().flatten().zip(other.exports.iter().flatten()) {
            match (mine, theirs) {
                (Some(mine), Some(theirs)) => mine.merge(theirs),
                (mine, theirs) => *mine = mine.take().or_else(|| theirs.clone()),
            }
        }
        for (mine, theirs) in self.counters.iter_mut().zip(other.counters) {
            *mine += theirs;
        }
    }

    /// What happened after `earlier`, which must be an older snapshot of the same shards.
    /// Requests in flight are a level, not a sum: they stay as they are now.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut interval = self.clone();
        for (mine, theirs) in interval.exports.iter_mut().flatten().zip(earlier.exports.iter().flatten()) {
            if let (Some(mine), Some(theirs)) = (mine, theirs) {
                mine.subtract(theirs);
            }
        }
        for (mine, theirs) in interval.counters.iter_mut().zip(earlier.counters) {
            *mine = mine.saturating_sub(theirs);
        }
        interval
    }

    /// One command on one export; `None` if it was never used there.
    pub fn command(&self, export: usize, kind: CommandKind) -> Option<&CommandMetrics> {
        self.exports.get(export)?[kind as usize].as_deref()
    }

    /// The commands with requests answered or in flight: `(export, command, figures)` in order.
    pub fn used(&self) -> impl Iterator<Item = (usize, CommandKind, &CommandMetrics)> {
        self.exports.iter().enumerate().flat_map(|(export, commands)| {
            CommandKind::ALL.iter().zip(commands).filter_map(move |(kind, command)| {
                let command = command.as_deref()?;
                (command.requests + command.in_flight > 0).then_some((export, *kind, command))
            })
        })
    }

    /// How often `counter` was counted.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }
}

/// A label for each export that is safe as a file name and as a log tag, and different from all others.
///
/// The nameless export is `default`; characters outside `A-Z a-z 0-9 _ - .` become `_`.
pub fn labels(export_names: &[String]) -> Vec<String> {
    let mut labels: Vec<String> = Vec::with_capacity(export_names.len());
    for name in export_names {
        let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' };
        // A file name holds 255 bytes; leave room for the command and the number.
        let base: String = match name.as_str() {
            "" => "default".to_owned(),
            name => name.chars().map(safe).take(200).collect(),
        };
        let base = if base.starts_with('.') { format!("_{base}") } else { base };
        let mut label = base.clone();
        let mut number = 2;
        while labels.contains(&label) {
            label = format!("{base}~{number}");
            number += 1;
        }
        labels.push(label);
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::super::ShardMetrics;
    use super::*;

    fn sample(service_ns: u64, errno: u32) -> Sample {
        Sample { service_ns, backend_ns: service_ns / 2, queued_ns: 0, bytes: 4096, errno }
    }

    fn record(shard: &mut ShardMetrics, service_ns: u64, errno: u32) {
        shard.begin(0, CommandKind::Read);
        shard.end(0, CommandKind::Read, &sample(service_ns, errno));
    }

    #[test]
    fn merged_shards_hold_the_sum_and_since_holds_the_difference() {
        let (mut first, mut second) = (ShardMetrics::new(1), ShardMetrics::new(1));
        record(&mut first, 10_000, 0);
        first.count(Counter::ConnectionsOpened);
        let earlier = first.snapshot();
        record(&mut first, 1_000_000, 5);
        second.begin(0, CommandKind::Write);
        record(&mut second, 20_000, 0);

        let mut all = first.snapshot();
        all.merge(&second.snapshot());
        let read = all.command(0, CommandKind::Read).expect("was used");
        assert_eq!((read.requests, read.bytes, read.in_flight), (3, 3 * 4096, 0));
        assert_eq!(read.errors(), [(5, 1)]);
        assert_eq!(all.command(0, CommandKind::Write).map(|write| write.in_flight), Some(1));
        assert_eq!(all.counter(Counter::ConnectionsOpened), 1);

        let interval = first.snapshot().since(&earlier);
        let read = interval.command(0, CommandKind::Read).expect("was used");
        assert_eq!((read.requests, read.errors_total()), (1, 1));
        assert!((990_000..=1_010_000).contains(&read.service.min()), "{}", read.service.min());
        assert_eq!(interval.counter(Counter::ConnectionsOpened), 0);
    }

    #[test]
    fn equal_durations_in_a_row_all_count() {
        let mut shard = ShardMetrics::new(1);
        for service_ns in [10_000, 10_000, 10_000, 20_000, 10_000, 10_000] {
            record(&mut shard, service_ns, 0);
        }
        // A copy in the middle of a row neither loses nor repeats what the row holds.
        for (more, count) in [(0, 6), (1, 7)] {
            (0..more).for_each(|_| record(&mut shard, 10_000, 0));
            let copy = shard.snapshot();
            let read = copy.command(0, CommandKind::Read).expect("was used");
            assert_eq!((read.service.len(), read.backend.len(), read.queued.len()), (count, count, count));
            assert_eq!(read.service.count_at(20_000), 1);
        }
    }

    #[test]
    fn durations_beyond_the_range_are_kept_as_the_longest() {
        let mut shard = ShardMetrics::new(1);
        record(&mut shard, u64::MAX, 0);
        let read = shard.snapshot();
        let read = read.command(0, CommandKind::Read).expect("was used");
        assert!(read.service.max() >= histogram::HIGHEST_NS);
        assert_eq!(read.service.len(), 1);
    }

    #[test]
    fn abandoned_requests_leave_nothing_in_flight() {
        let mut shard = ShardMetrics::new(1);
        shard.begin(0, CommandKind::Flush);
        shard.abandon(0, CommandKind::Flush);
        assert_eq!(shard.snapshot().command(0, CommandKind::Flush).map(|flush| flush.in_flight), Some(0));
        assert_eq!(shard.snapshot().used().count(), 0);
    }

    #[test]
    fn labels_are_safe_and_never_the_same() {
        let names = ["", "default", "a b", "a/b", "..", "ü"].map(str::to_owned);
        assert_eq!(labels(&names), ["default", "default~2", "a_b", "a_b~2", "_..", "_"]);
    }
}
