//! Percentile files (`.hgrm`), the text form of HdrHistogram: `ringnbd bench --hgrm` writes them, and `ringnbd plot` draws
//! them.

use std::fmt::Write;

use crate::figures::Latency;

/// A file of no more than the percentiles that every generator prints.
pub(crate) fn of_percentiles(latency: &Latency) -> String {
    let mut text = String::from("Value Percentile\n");
    let points =
        [(0.5, latency.p50_us), (0.99, latency.p99_us), (0.999, latency.p99_9_us), (1.0, latency.max_us)];
    for (quantile, us) in points {
        let _ = writeln!(text, "{us:.3} {quantile:.6}"); // a String takes whatever is written to it
    }
    text
}
