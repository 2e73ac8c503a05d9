//! Percentile files (`.hgrm`), the text form of HdrHistogram, as `ringnbd bench --hgrm` writes them.

use anyhow::{Context, ensure};

use crate::samples::Curve;

/// The points of a file in microseconds.
pub(crate) fn parse(text: &str) -> anyhow::Result<Curve> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("Value"));
    let point = |line: &str| {
        let mut words = line.split_whitespace().map(str::parse::<f64>);
        let (value, quantile) = (words.next()?.ok()?, words.next()?.ok()?);
        (value.is_finite() && (0.0..=1.0).contains(&quantile)).then_some((quantile, value))
    };
    let curve: Option<Curve> = lines.map(point).collect();
    let curve = curve.context("not a percentile file")?;
    ensure!(!curve.is_empty(), "a percentile file without percentiles");
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_and_remarks_are_not() {
        let text = "       Value     Percentile TotalCount 1/(1-Percentile)\n\n\
            12.031 0.000000000000          1           1.00\n\
            57.343 0.500000000000      61234           2.00\n\
            912.383 1.000000000000     122401\n\
            #[Mean    =       61.202, StdDeviation   =       20.118]\n";
        assert_eq!(parse(text).expect("a file"), [(0.0, 12.031), (0.5, 57.343), (1.0, 912.383)]);
        assert!(parse("1.0 nonsense\n").is_err());
        assert!(parse("#[Mean]\n").is_err());
    }
}
