//! The forms of values that only `bench` has, as fio writes them.

use crate::backend::parse_size;
use crate::load::{Distribution, Sizes};

/// Largest request.
const SIZE_MAX: u64 = 64 << 20;
/// Beyond it practically all requests go to one block.
const THETA_MAX: f64 = 10.0;

/// `4k`, `4k/50:256k/50`, `4k/50:1k:32k`.
pub(super) fn sizes(text: &str) -> Result<Sizes, String> {
    let parts: Result<Vec<_>, String> = text.split(':').map(part).collect();
    Sizes::split(&parts?)
}

/// One size, with its percentage if it has one.
fn part(text: &str) -> Result<(u32, Option<u32>), String> {
    let (size, percent) = text.split_once('/').unwrap_or((text, ""));
    let bytes = parse_size(size).map_err(|error| error.to_string())?;
    let bytes = u32::try_from(bytes).ok().filter(|_| (1..=SIZE_MAX).contains(&bytes));
    let bytes = bytes.ok_or_else(|| format!("'{size}' must be between 1 byte and 64M"))?;
    if percent.is_empty() {
        return Ok((bytes, None));
    }
    match percent.parse() {
        Ok(percent) if percent <= 100 => Ok((bytes, Some(percent))),
        _ => Err(format!("'{percent}' is not a percentage: write 4k/50:256k/50")),
    }
}

/// Bytes with a suffix or without.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

/// As [`bytes`], but not zero.
pub(super) fn bytes_above_zero(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("must be more than 0".to_owned()),
        bytes => Ok(bytes),
    }
}

/// `random`, `zipf:1.1`.
pub(super) fn distribution(text: &str) -> Result<Distribution, String> {
    if text == "random" {
        return Ok(Distribution::Uniform);
    }
    let Some(theta) = text.strip_prefix("zipf:") else {
        return Err("must be random or zipf:THETA, as zipf:1.1".to_owned());
    };
    match theta.parse::<f64>() {
        Ok(theta) if theta > 0.0 && theta <= THETA_MAX => Ok(Distribution::Zipf(theta)),
        _ => Err(format!("'{theta}' must be a number above 0 and at most {THETA_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_in_fio() {
        assert_eq!(sizes("4k"), Ok(Sizes::one(4096)));
        assert_eq!(sizes("4k/"), Ok(Sizes::one(4096)));
        assert_eq!(sizes("4k/50:256k/50"), Sizes::split(&[(4096, Some(50)), (262_144, Some(50))]));
        assert_eq!(sizes("4k/50:1k/:32k"), Sizes::split(&[(4096, Some(50)), (1024, None), (32768, None)]));
        for text in ["", "0", "65M", "4k/x", "4k/101", "4k/60:8k/60", "4k/10", "4k::8k", "4k/-1"] {
            sizes(text).expect_err(text);
        }
    }

    #[test]
    fn laws_have_bounds() {
        assert_eq!(distribution("random"), Ok(Distribution::Uniform));
        assert_eq!(distribution("zipf:1.1"), Ok(Distribution::Zipf(1.1)));
        for text in
            ["", "zipf", "zipf:", "zipf:0", "zipf:-1", "zipf:nan", "zipf:inf", "zipf:11", "pareto:0.9"]
        {
            distribution(text).expect_err(text);
        }
    }
}
