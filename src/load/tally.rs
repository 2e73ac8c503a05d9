//! What all connections of a run add up to: latencies by command.

use std::cell::{Cell, RefCell};
use std::sync::mpsc::Sender;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::metrics::CommandKind;
use crate::proto::Command;

/// The latencies of one command within one interval of a run.
#[derive(Debug)]
pub struct Interval {
    /// Which command.
    pub command: CommandKind,
    /// When it began, from the start of what is counted.
    pub start: Duration,
    /// How long it was.
    pub length: Duration,
    /// Nanoseconds.
    pub latency: Histogram<u64>,
}

/// The latencies of one command.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) command: CommandKind,
    /// Nanoseconds from the start, intended or real, to the reply.
    pub(super) latency: Histogram<u64>,
    pub(super) bytes: u64,
}

/// Counts requests by when they were sent, so that one that is slow is counted however late its reply comes.
pub(super) struct Tally {
    rows: RefCell<Vec<Row>>,
    /// What is sent from here
    from_ns: Cell<u64>,
    /// to here counts.
    until_ns: Cell<u64>,
    /// What was handed over as intervals.
    told: RefCell<Vec<(CommandKind, Histogram<u64>)>>,
    told_until: Cell<Duration>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            rows: RefCell::new(Vec::new()),
            from_ns: Cell::new(u64::MAX),
            until_ns: Cell::new(u64::MAX),
            told: RefCell::new(Vec::new()),
            told_until: Cell::new(Duration::ZERO),
        }
    }

    /// Requests that are sent from now on count.
    pub(super) fn begin(&self, now_ns: u64) {
        self.from_ns.set(now_ns);
    }

    /// Requests that are sent from now on do not count.
    pub(super) fn end(&self, now_ns: u64) {
        self.until_ns.set(now_ns);
    }

    /// Whether a request that was sent then counts.
    #[inline]
    pub(super) fn counts(&self, sent_ns: u64) -> bool {
        (self.from_ns.get()..self.until_ns.get()).contains(&sent_ns)
    }

    /// A request was answered.
    #[inline]
    pub(super) fn record(&self, command: Command, latency_ns: u64, bytes: u32) {
        let kind = kind_of(command);
        let mut rows = self.rows.borrow_mut();
        let row = match rows.iter_mut().position(|row| row.command == kind) {
            Some(index) => &mut rows[index],
            None => {
                rows.push(Row { command: kind, latency: crate::metrics::histogram(), bytes: 0 });
                rows.last_mut().expect("just pushed")
            }
        };
        row.latency.saturating_record(latency_ns);
        row.bytes += u64::from(bytes);
    }

    /// A copy of the rows, in the order of [`CommandKind`].
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = self.rows.borrow().clone();
        rows.sort_by_key(|row| row.command as usize);
        rows
    }

    /// Hands over what was recorded since the last call. Nobody listening is no error: then there is no log.
    pub(super) fn tell(&self, at: Duration, listener: &Sender<Interval>) {
        let start = self.told_until.replace(at);
        let length = at.saturating_sub(start);
        let mut told = self.told.borrow_mut();
        for row in self.rows() {
            let mut latency = row.latency.clone();
            match told.iter_mut().find(|(command, _)| *command == row.command) {
                Some((_, before)) => {
                    latency.subtract(&*before).expect("one shape for all, and it only grows");
                    *before = row.latency;
                }
                None => told.push((row.command, row.latency)),
            }
            if !latency.is_empty() {
                let _ = listener.send(Interval { command: row.command, start, length, latency });
            }
        }
    }
}

fn kind_of(command: Command) -> CommandKind {
    match command {
        Command::WRITE => CommandKind::Write,
        Command::FLUSH => CommandKind::Flush,
        Command::TRIM => CommandKind::Trim,
        _ => CommandKind::Read,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_request_counts_by_when_it_was_sent() {
        let tally = Tally::new();
        assert!(!tally.counts(5), "before the ramp is over");
        tally.begin(10);
        assert!(!tally.counts(9) && tally.counts(10));
        tally.end(100);
        assert!(tally.counts(99) && !tally.counts(100));
    }

    #[test]
    fn each_interval_holds_only_its_own_requests() {
        let (sender, receiver) = channel();
        let tally = Tally::new();
        tally.begin(0);
        for (second, command) in (1..).zip([Command::READ, Command::WRITE, Command::READ]) {
            tally.record(command, second * 1000, 4096);
            tally.tell(Duration::from_secs(second), &sender);
        }
        drop(sender);
        let told: Vec<_> =
            receiver.iter().map(|i| (i.command.name(), i.start.as_secs(), i.latency.len())).collect();
        assert_eq!(told, [("read", 0, 1), ("write", 1, 1), ("read", 2, 1)]);
    }
}
