//! Extents in nbdinfo's layout: one a line, or how much there is of each type.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::describe::quoted;
use crate::client::Extent;

/// What a type means, for the contexts that have known meanings.
fn meaning(context: &str, status: u64) -> Option<String> {
    let words = if context == "base:allocation" {
        match status {
            0 => "data",
            1 => "hole",
            2 => "zero",
            3 => "hole,zero",
            _ => return None,
        }
    } else if context.starts_with("qemu:dirty-bitmap:") {
        match status {
            0 => "clean",
            1 => "dirty",
            _ => return None,
        }
    } else if context == "qemu:allocation-depth" {
        match status {
            0 => "unallocated",
            1 => "local",
            depth => return Some(format!("backing depth {depth}")),
        }
    } else {
        return None;
    };
    Some(words.to_owned())
}

pub(super) fn text(context: &str, extents: &[Extent]) -> String {
    let mut out = String::new();
    for Extent { offset, length, status } in extents {
        let _ = write!(out, "{offset:>10}  {length:>10}  {status:>3}");
        if let Some(words) = meaning(context, *status) {
            let _ = write!(out, "  {words}");
        }
        out.push('\n');
    }
    out
}

pub(super) fn json(context: &str, extents: &[Extent]) -> String {
    let objects: Vec<_> = extents
        .iter()
        .map(|Extent { offset, length, status }| {
            let words = meaning(context, *status);
            let words =
                words.map(|words| format!(", \"description\": {}", quoted(&words))).unwrap_or_default();
            format!("{{ \"offset\": {offset}, \"length\": {length}, \"type\": {status}{words}}}")
        })
        .collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

fn totals(extents: &[Extent]) -> BTreeMap<u64, u64> {
    let mut totals = BTreeMap::new();
    for extent in extents {
        *totals.entry(extent.status).or_insert(0) += extent.length;
    }
    totals
}

#[allow(clippy::cast_precision_loss)] // a percentage
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

pub(super) fn totals_text(context: &str, size: u64, extents: &[Extent]) -> String {
    let mut out = String::new();
    for (status, bytes) in totals(extents) {
        let _ = write!(out, "{bytes:>10} {:>5.1}% {status:>3}", percent(bytes, size));
        if let Some(words) = meaning(context, status) {
            let _ = write!(out, " {words}");
        }
        out.push('\n');
    }
    out
}

pub(super) fn totals_json(context: &str, size: u64, extents: &[Extent]) -> String {
    let objects: Vec<_> = totals(extents)
        .into_iter()
        .map(|(status, bytes)| {
            let words = meaning(context, status);
            let words =
                words.map(|words| format!(", \"description\": {}", quoted(&words))).unwrap_or_default();
            let percent = short(percent(bytes, size));
            format!("{{ \"size\": {bytes}, \"percent\": {percent}, \"type\": {status}{words} }}")
        })
        .collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

/// Six digits that count, as C's `%g` prints a number of this range.
fn short(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let before = number.abs().log10().floor();
    if before < -4.0 {
        let text = format!("{:.5e}", number);
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        return match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        };
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 3 and 9
    let decimals = (5.0 - before).max(0.0) as usize;
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_six_digits_that_count() {
        let cases = [
            (50.0, "50"),
            (0.039_062_5, "0.0390625"),
            (99.960_937_5, "99.9609"),
            (100.0, "100"),
            (0.000_012_345_678, "1.23457e-05"),
            (33.333_333_3, "33.3333"),
        ];
        for (number, words) in cases {
            assert_eq!(short(number), words);
        }
    }

    #[test]
    fn types_without_a_known_meaning_stand_alone() {
        let extent = Extent { offset: 0, length: 512, status: 9 };
        assert_eq!(text("x:y", &[extent]), "         0         512    9\n");
        assert_eq!(totals_text("x:y", 512, &[extent]), "       512 100.0%   9\n");
    }
}
