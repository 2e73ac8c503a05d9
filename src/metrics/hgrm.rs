//! Percentile files (`.hgrm`), the text form that HdrHistogram's plotters read, in microseconds.
//!
//! ```text
//!        Value     Percentile TotalCount 1/(1-Percentile)
//!
//!       12.031 0.000000000000          1           1.00
//!       57.343 0.500000000000      61234           2.00
//!      ...
//!      912.383 1.000000000000     122401
//! #[Mean    =       61.202, StdDeviation   =       20.118]
//! #[Max     =      912.383, Total count    =       122401]
//! #[Buckets =           36, SubBuckets     =          256]
//! ```

use std::io::{self, Write};

use hdrhistogram::Histogram;

const TICKS_PER_HALF_DISTANCE: u32 = 5;
const NS_PER_US: f64 = 1e3;

/// Writes a histogram of nanoseconds as a percentile file in microseconds.
pub fn write_hgrm(histogram: &Histogram<u64>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NS_PER_US;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value:12.3} {quantile:2.12} {total:10}")?;
        if quantile < 1.0 {
            write!(out, " {:14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    let (mean, deviation) = (histogram.mean() / NS_PER_US, histogram.stdev() / NS_PER_US);
    let max = histogram.max() as f64 / NS_PER_US;
    writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]")?;
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len())?;
    // Two digits: 256 sub-buckets, of which all buckets but the first use the upper half.
    writeln!(out, "#[Buckets = {:12}, SubBuckets     = {:12}]", histogram.buckets(), 256)
}

/// The points of a percentile file: `(percentile in 0..=1, value)`, rising, values in the file's unit.
pub type Curve = Vec<(f64, f64)>;

/// Reads the points of a percentile file, ours or another program's.
///
/// Fails with `InvalidData` when a line is not what the format allows, or when no line has a value.
pub fn read_hgrm(text: &str) -> io::Result<Curve> {
    let mut curve = Curve::new();
    for (number, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        match words.next() {
            None | Some("Value") => continue,
            Some(word) if word.starts_with('#') => continue,
            Some(word) => {
                let point =
                    word.parse::<f64>().ok().zip(words.next().and_then(|word| word.parse::<f64>().ok()));
                let point =
                    point.filter(|(value, quantile)| value.is_finite() && (0.0..=1.0).contains(quantile));
                let Some((value, quantile)) = point else {
                    let what = format!("line {} is not a line of a percentile file", number + 1);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                };
                curve.push((quantile, value));
            }
        }
    }
    if curve.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no percentiles in it"));
    }
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::super::histogram;
    use super::*;

    #[test]
    fn written_percentiles_read_back_in_microseconds() {
        let mut latencies = histogram::new();
        for ns in 1..=1000 {
            latencies.record(ns * 1000).expect("in range");
        }
        let mut out = Vec::new();
        write_hgrm(&latencies, &mut out).expect("a Vec takes all");
        let text = String::from_utf8(out).expect("ASCII");
        let curve = read_hgrm(&text).expect("own format");
        let median = curve.iter().find(|(quantile, _)| *quantile >= 0.5).expect("has a median").1;
        assert!((495.0..=505.0).contains(&median), "{text}");
        assert_eq!(curve.last().map(|point| point.0), Some(1.0));
        assert!(text.contains("Total count    =         1000"), "{text}");
    }

    #[test]
    fn a_file_of_something_else_is_refused_with_its_line() {
        let error = read_hgrm("Value Percentile\n1.0 nonsense\n").expect_err("not a percentile");
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(read_hgrm("").is_err());
    }
}
