//! The interval log as the ecosystem's tools see it: read by PyPI's `hdrhistogram`, not by the crate that wrote it.
//!
//! `tests/run` installs that reader; without it this test fails.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use ringnbd::metrics::{CommandKind, IntervalLog, Sample, ShardMetrics, Snapshot};

const READER: &str = "
import sys
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
log = HistogramLogReader(sys.argv[1], HdrHistogram(1, 3600000000000, 2))
while histogram := log.get_next_interval_histogram():
    figures = [histogram.get_value_at_percentile(p) for p in (50, 99, 100)]
    print(histogram.get_tag(), histogram.get_total_count(), *figures)
";

#[test]
fn another_reader_finds_the_same_tags_counts_and_percentiles() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("node.hlog");
    let names = [String::new(), "disk".to_owned()];
    let mut log = IntervalLog::begin(File::create(&path).expect("writable"), &names).expect("writable");
    let mut shards = [ShardMetrics::new(2), ShardMetrics::new(2)];
    let mut expected = String::new();
    let mut before = Snapshot::new(2);
    for interval in 1..=3_u64 {
        for (number, shard) in shards.iter_mut().enumerate() {
            for request in 1..=1000 {
                let kind = if number == 0 { CommandKind::Read } else { CommandKind::WriteZeroes };
                shard.begin(number, kind);
                let sample = Sample { service_ns: request * request * interval, ..Sample::default() };
                shard.end(number, kind, &sample);
            }
        }
        let mut now = shards[0].snapshot();
        now.merge(&shards[1].snapshot());
        for (export, kind, command) in now.since(&before).used() {
            let label = ["default", "disk"][export];
            let [p50, p99, p100] =
                [0.5, 0.99, 1.0].map(|quantile| command.service.value_at_quantile(quantile));
            writeln!(expected, "{label}.{} {} {p50} {p99} {p100}", kind.name(), command.requests)
                .expect("a String takes all");
        }
        log.interval(now.clone()).expect("writable");
        before = now;
    }

    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin/python");
    let output = Command::new(&python).arg("-c").arg(READER).arg(&path).output();
    let output =
        output.unwrap_or_else(|error| panic!("{}: {error}; tests/run installs it", python.display()));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the reader failed:\n{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}
