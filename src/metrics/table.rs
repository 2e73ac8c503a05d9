//! The latency table that people read: at exit, and on SIGUSR1.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::{Counter, Snapshot, labels};

const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// Three lines for each command in use on each export (service, backend and queued time in
/// microseconds), then requests in flight, errors by errno and the counters that are not zero.
///
/// `elapsed` is the time that `snapshot` covers; rates are averages over it.
pub fn table(snapshot: &Snapshot, export_names: &[String], elapsed: Duration) -> String {
    let mut text = String::new();
    // A String takes whatever is written to it.
    let _ = render(&mut text, snapshot, export_names, elapsed);
    text
}

fn render(
    text: &mut String,
    snapshot: &Snapshot,
    export_names: &[String],
    elapsed: Duration,
) -> std::fmt::Result {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let labels = labels(export_names);
    let label = |export: usize| labels.get(export).map_or("?", String::as_str);
    let width =
        snapshot.used().map(|(export, ..)| label(export).len()).max().unwrap_or(0).max("export".len());

    if snapshot.used().next().is_none() {
        writeln!(text, "no requests in {seconds:.1} s")?;
    } else {
        writeln!(text, "latency in microseconds, over {seconds:.1} s")?;
        write!(text, "{:width$} {:12} {:8}", "export", "command", "time")?;
        write!(text, " {:>10} {:>9} {:>8} {:>6}", "requests", "IOPS", "MiB/s", "errors")?;
        for (name, _) in QUANTILES {
            write!(text, " {name:>9}")?;
        }
        writeln!(text, " {:>9}", "max")?;
    }
    for (export, kind, command) in snapshot.used() {
        let times =
            [("service", &command.service), ("backend", &command.backend), ("queued", &command.queued)];
        for (time, histogram) in times {
            write!(text, "{:width$} {:12} {time:8}", label(export), kind.name())?;
            if time == "service" {
                let iops = command.requests as f64 / seconds;
                let rate = command.bytes as f64 / seconds / f64::from(1 << 20);
                let errors = command.errors_total();
                write!(text, " {:>10} {iops:>9.0} {rate:>8.1} {errors:>6}", command.requests)?;
            } else {
                write!(text, " {:>10} {:>9} {:>8} {:>6}", "", "", "", "")?;
            }
            percentiles(text, histogram)?;
        }
    }
    for (export, kind, command) in snapshot.used() {
        if command.in_flight > 0 {
            writeln!(text, "{} {}: {} in flight", label(export), kind.name(), command.in_flight)?;
        }
        for (errno, count) in command.errors() {
            writeln!(text, "{} {}: errno {errno} answered {count} times", label(export), kind.name())?;
        }
    }
    for counter in Counter::ALL.iter().filter(|counter| snapshot.counter(**counter) > 0) {
        writeln!(text, "{} {}", counter.name(), snapshot.counter(*counter))?;
    }
    Ok(())
}

fn percentiles(text: &mut String, histogram: &Histogram<u64>) -> std::fmt::Result {
    for (_, quantile) in QUANTILES {
        write!(text, " {:>9.1}", histogram.value_at_quantile(quantile) as f64 / 1e3)?;
    }
    writeln!(text, " {:>9.1}", histogram.max() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::{CommandKind, Sample, ShardMetrics};
    use super::*;

    #[test]
    fn table_names_the_export_the_command_and_the_errno() {
        let mut shard = ShardMetrics::new(2);
        for errno in [0, 28] {
            shard.begin(1, CommandKind::Write);
            let sample =
                Sample { service_ns: 50_000, backend_ns: 40_000, queued_ns: 1_000, bytes: 4096, errno };
            shard.end(1, CommandKind::Write, &sample);
        }
        shard.begin(1, CommandKind::Write);
        shard.count(Counter::Evicted);
        let names = [String::new(), "disk".to_owned()];
        let text = table(&shard.snapshot(), &names, Duration::from_secs(2));
        let service: Vec<_> = text.lines().nth(2).unwrap_or_default().split_whitespace().collect();
        assert_eq!(&service[..7], ["disk", "write", "service", "2", "1", "0.0", "1"]);
        assert!(text.contains("disk write: errno 28 answered 1 times"), "{text}");
        assert!(text.contains("disk write: 1 in flight"), "{text}");
        assert!(text.contains("evicted 1"), "{text}");
        assert!(!text.contains("default"), "an unused export has no line: {text}");
    }

    #[test]
    fn a_node_without_requests_says_so() {
        assert_eq!(table(&Snapshot::new(1), &[], Duration::from_secs(1)), "no requests in 1.0 s\n");
    }
}
