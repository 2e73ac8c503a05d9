//! The forms of values that options take.

use std::time::Duration;

use crate::server::{self, Poll};

/// `auto`, or how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AutoOr(pub(super) Option<usize>);

/// `auto` or a number from 1.
pub(super) fn auto_or_count(text: &str) -> Result<AutoOr, String> {
    if text == "auto" {
        return Ok(AutoOr(None));
    }
    match text.parse() {
        Ok(0) | Err(_) => Err("must be auto or a number from 1".to_owned()),
        Ok(count) => Ok(AutoOr(Some(count))),
    }
}

/// A thing done where it pays, always or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum When {
    Auto,
    Always,
    Never,
}

impl From<When> for Poll {
    fn from(when: When) -> Self {
        match when {
            When::Auto => Self::Auto,
            When::Always => Self::Always,
            When::Never => Self::Never,
        }
    }
}

/// A thing tried where it may pay, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum AutoOff {
    Auto,
    Off,
}

/// How large cached reads are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ZeroCopy {
    Auto,
    Off,
    Map,
    #[value(name = "sendfile")]
    SendFile,
}

impl From<ZeroCopy> for server::ZeroCopy {
    fn from(way: ZeroCopy) -> Self {
        match way {
            ZeroCopy::Auto => Self::Auto,
            ZeroCopy::Off => Self::Off,
            ZeroCopy::Map => Self::Map,
            ZeroCopy::SendFile => Self::SendFile,
        }
    }
}

/// `10`, `10s`, `500ms`, `50us`, `2m`, `1h`; a bare number is seconds, fractions are allowed.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("'{unit}' is not a unit of time: use us, ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| "must be a time such as 10s, 500ms or 2m".to_owned())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if duration <= Duration::from_secs(366 * 24 * 3600) => Ok(duration),
        _ => Err("is longer than a year".to_owned()),
    }
}

/// As [`duration`], but not zero.
pub(super) fn duration_above_zero(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "s", "1d", "1e9", "-1", "1.2.3", "99999999h"] {
            duration(text).expect_err(text);
        }
        duration_above_zero("0").expect_err("zero");
    }

    #[test]
    fn counts_start_at_one() {
        assert_eq!(auto_or_count("auto"), Ok(AutoOr(None)));
        assert_eq!(auto_or_count("3"), Ok(AutoOr(Some(3))));
        auto_or_count("0").expect_err("zero");
    }
}
