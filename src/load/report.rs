//! What a run comes to: a table like fio's, or JSON with the same figures.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::tally::Row;
use crate::metrics::CommandKind;

/// Percentiles that are printed, with the names that JSON gives them.
const PERCENTILES: [(f64, &str); 5] =
    [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99_9"), (99.99, "p99_99")];

/// The figures of one run.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    elapsed: Duration,
    cpu: Duration,
    unsent: u64,
    verified: Option<u64>,
}

impl Report {
    pub(super) fn new(
        rows: Vec<Row>,
        elapsed: Duration,
        cpu: Duration,
        unsent: u64,
        verified: Option<u64>,
    ) -> Self {
        Self { rows, elapsed, cpu, unsent, verified }
    }

    /// Latencies by command, in nanoseconds; only of commands that were used.
    pub fn histograms(&self) -> impl ExactSizeIterator<Item = (CommandKind, &Histogram<u64>)> {
        self.rows.iter().map(|row| (row.command, &row.latency))
    }

    fn requests(&self) -> u64 {
        self.rows.iter().map(|row| row.latency.len()).sum()
    }

    /// What READ and WRITE moved.
    fn bytes(&self) -> u64 {
        let moves = |row: &&Row| matches!(row.command, CommandKind::Read | CommandKind::Write);
        self.rows.iter().filter(moves).map(|row| row.bytes).sum()
    }

    #[allow(clippy::cast_precision_loss)] // figures for people
    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64()
    }

    /// Client CPU time for each request, in microseconds.
    #[allow(clippy::cast_precision_loss)]
    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests().max(1) as f64
    }

    /// For people. Times in microseconds.
    pub fn table(&self) -> String {
        let mut text = format!("{:<6}{:>11}{:>10}{:>10}", "", "requests", "IOPS", "MiB/s");
        for (percentile, _) in PERCENTILES {
            let _ = write!(text, "{:>10}", format!("p{percentile}"));
        }
        let _ = writeln!(text, "{:>10}", "max");
        for Row { command, latency, bytes } in &self.rows {
            let (name, count) = (command.name(), latency.len());
            let _ = write!(text, "{name:<6}{count:>11}{:>10.0}", self.per_second(count));
            let _ = match command {
                CommandKind::Flush => write!(text, "{:>10}", "-"),
                _ => write!(text, "{:>10.1}", self.per_second(*bytes) / f64::from(1 << 20)),
            };
            for (percentile, _) in PERCENTILES {
                let _ = write!(text, "{:>10.1}", us(latency.value_at_percentile(percentile)));
            }
            let _ = writeln!(text, "{:>10.1}", us(latency.max()));
        }
        let _ = writeln!(
            text,
            "{:.2} us of client CPU for each request, over {:.1} s; latency in microseconds",
            self.cpu_us(),
            self.elapsed.as_secs_f64()
        );
        // A few are always due within the last moments.
        if self.unsent > self.requests() / 100 {
            let _ = writeln!(
                text,
                "{} requests were due and not sent: the server cannot keep up with --rate_iops at this --iodepth",
                self.unsent
            );
        }
        if let Some(blocks) = self.verified {
            let _ = writeln!(text, "{blocks} blocks read and verified");
        }
        text
    }

    /// For programs. Times in microseconds. `more` is put after its last member: empty, or from a comma on.
    pub fn json(&self, more: &str) -> String {
        let mut text = format!(
            "{{\"seconds\": {:.3}, \"bytes\": {}, \"client_cpu_us_per_request\": {:.3}, \"unsent\": {}",
            self.elapsed.as_secs_f64(),
            self.bytes(),
            self.cpu_us(),
            self.unsent
        );
        if let Some(blocks) = self.verified {
            let _ = write!(text, ", \"verified_blocks\": {blocks}");
        }
        for Row { command, latency, bytes } in &self.rows {
            let _ = write!(
                text,
                ", \"{}\": {{\"requests\": {}, \"iops\": {:.1}, \"bytes\": {bytes}, \"bytes_per_second\": {:.0}, \
                 \"mean_us\": {:.2}",
                command.name(),
                latency.len(),
                self.per_second(latency.len()),
                self.per_second(*bytes),
                latency.mean() / 1000.0
            );
            for (percentile, key) in PERCENTILES {
                let _ = write!(text, ", \"{key}_us\": {:.2}", us(latency.value_at_percentile(percentile)));
            }
            let _ = write!(text, ", \"max_us\": {:.2}}}", us(latency.max()));
        }
        text.push_str(more);
        text.push_str("}\n");
        text
    }
}

#[allow(clippy::cast_precision_loss)]
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// User and system time of this process so far, of all its threads.
pub(super) fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or(0), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(unsent: u64, verified: Option<u64>) -> Report {
        let row = |command, ns: u64, bytes| {
            let mut latency = crate::metrics::histogram();
            latency.record_n(ns, 10).unwrap();
            Row { command, latency, bytes }
        };
        let rows = vec![
            row(CommandKind::Read, 100_000, 40960),
            row(CommandKind::Write, 200_000, 40960),
            row(CommandKind::Flush, 300_000, 0),
        ];
        Report::new(rows, Duration::from_secs(2), Duration::from_micros(60), unsent, verified)
    }

    #[test]
    fn json_has_an_object_for_each_command() {
        let json = report(0, Some(7)).json(", \"more\": 1");
        for part in [
            "\"seconds\": 2.000, \"bytes\": 81920, \"client_cpu_us_per_request\": 2.000",
            "\"verified_blocks\": 7",
            "\"read\": {\"requests\": 10, \"iops\": 5.0",
            "\"write\": {\"requests\": 10",
            "\"flush\": {\"requests\": 10",
            "\"p99_9_us\": ",
            "\"max_us\": ",
            "}, \"more\": 1}\n",
        ] {
            assert!(json.contains(part), "{part}: {json}");
        }
    }

    #[test]
    fn the_table_says_what_was_left_out_only_where_something_was() {
        let table = report(0, None).table();
        assert!(!table.contains("not sent") && !table.contains("verified"), "{table}");
        assert_eq!(table.lines().count(), 5, "{table}");
        let table = report(30, Some(5)).table();
        assert!(table.contains("30 requests were due") && table.contains("5 blocks"), "{table}");
    }
}
