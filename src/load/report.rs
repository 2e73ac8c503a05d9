//! What a run comes to: a table like fio's, or JSON with the same figures.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::worker::Tally;

/// Percentiles that are printed, with the names that JSON gives them.
const PERCENTILES: [(f64, &str); 5] =
    [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99_9"), (99.99, "p99_99")];

/// The figures of one run.
#[derive(Debug)]
pub struct Report {
    directions: Vec<(&'static str, Histogram<u64>)>,
    bytes: u64,
    elapsed: Duration,
    cpu: Duration,
}

impl Report {
    pub(super) fn new(tally: &Tally, elapsed: Duration, cpu: Duration) -> Self {
        let directions = [("read", tally.reads.borrow().clone()), ("write", tally.writes.borrow().clone())];
        let directions = directions.into_iter().filter(|(_, histogram)| !histogram.is_empty()).collect();
        Self { directions, bytes: tally.bytes.get(), elapsed, cpu }
    }

    /// Latencies by direction, in nanoseconds.
    pub fn histograms(&self) -> &[(&'static str, Histogram<u64>)] {
        &self.directions
    }

    fn requests(&self) -> u64 {
        self.directions.iter().map(|(_, histogram)| histogram.len()).sum()
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
        let mut text = format!("{:<8}{:>10}{:>10}", "", "requests", "IOPS");
        for (percentile, _) in PERCENTILES {
            let _ = write!(text, "{:>10}", format!("p{percentile}"));
        }
        let _ = writeln!(text, "{:>10}", "max");
        for (name, histogram) in &self.directions {
            let _ =
                write!(text, "{name:<8}{:>10}{:>10.0}", histogram.len(), self.per_second(histogram.len()));
            for (percentile, _) in PERCENTILES {
                let _ = write!(text, "{:>10.1}", us(histogram.value_at_percentile(percentile)));
            }
            let _ = writeln!(text, "{:>10.1}", us(histogram.max()));
        }
        let _ = writeln!(
            text,
            "{:.1} MiB/s, {:.2} us of client CPU for each request, over {:.1} s; latency in microseconds",
            self.per_second(self.bytes) / f64::from(1 << 20),
            self.cpu_us(),
            self.elapsed.as_secs_f64()
        );
        text
    }

    /// For programs. Times in microseconds.
    pub fn json(&self) -> String {
        let mut text = format!(
            "{{\"seconds\": {:.3}, \"bytes\": {}, \"client_cpu_us_per_request\": {:.3}",
            self.elapsed.as_secs_f64(),
            self.bytes,
            self.cpu_us()
        );
        for (name, histogram) in &self.directions {
            let iops = self.per_second(histogram.len());
            let _ = write!(text, ", \"{name}\": {{\"requests\": {}, \"iops\": {iops:.1}", histogram.len());
            for (percentile, key) in PERCENTILES {
                let _ = write!(text, ", \"{key}_us\": {:.2}", us(histogram.value_at_percentile(percentile)));
            }
            let _ = write!(text, ", \"max_us\": {:.2}}}", us(histogram.max()));
        }
        text.push_str("}\n");
        text
    }
}

#[allow(clippy::cast_precision_loss)]
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// User and system time of this process so far (`getrusage(2)`).
pub(super) fn cpu_time() -> Duration {
    let mut total = Duration::ZERO;
    // The times of all threads, in nanoseconds; /proc is there wherever io_uring is worth measuring.
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    total +=
        Duration::new(u64::try_from(spent.tv_sec).unwrap_or(0), u32::try_from(spent.tv_nsec).unwrap_or(0));
    total
}
