//! What a curve comes to: rows of figures, targets with what was reached, and the report of all of them.

use std::fmt::Write;

use serde::Serialize;
use serde::ser::Serializer;

use crate::machine::Machine;
use crate::statistics::Spread;

/// A column: its heading, and how many decimals are worth reading.
pub(super) type Column = (&'static str, usize);

/// One sample: a figure for each column, and whether others disturbed it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Point {
    pub(super) values: Vec<f64>,
    pub(super) noisy: bool,
}

/// One row: the same sample, once in each round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) rounds: Vec<Point>,
}

impl Row {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), rounds: Vec::new() }
    }

    /// The rounds that count: the quiet ones, or all where there is none.
    fn counting(&self) -> impl Iterator<Item = &Point> {
        let any_quiet = self.rounds.iter().any(|point| !point.noisy);
        self.rounds.iter().filter(move |point| !point.noisy || !any_quiet)
    }

    fn noisy(&self) -> usize {
        self.rounds.iter().filter(|point| point.noisy).count()
    }

    /// Of one column.
    pub(super) fn spread(&self, column: usize) -> Option<Spread> {
        Spread::of(self.counting().filter_map(|point| point.values.get(column).copied()))
    }

    /// The median of one column; NaN, which meets no target, where nothing was measured.
    pub(super) fn median(&self, column: usize) -> f64 {
        self.spread(column).map_or(f64::NAN, |spread| spread.median)
    }
}

/// The median of the ratios within rounds, `row` to `base`, of rounds in which both were quiet if there are any.
pub(super) fn ratio(row: &Row, base: &Row, column: usize) -> f64 {
    let pairs = || row.rounds.iter().zip(&base.rounds);
    let quiet = pairs().any(|(a, b)| !a.noisy && !b.noisy);
    let counting = pairs().filter(|(a, b)| !quiet || (!a.noisy && !b.noisy));
    let ratios = counting.filter_map(|(a, b)| Some(a.values.get(column)? / b.values.get(column)?));
    Spread::of(ratios).map_or(f64::NAN, |spread| spread.median)
}

/// Something that shall be so.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Target {
    what: String,
    at_most: f64,
    reached: f64,
    met: bool,
}

/// The answer to one question.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    name: &'static str,
    title: &'static str,
    /// How it was asked.
    pub(super) how: &'static str,
    #[serde(serialize_with = "headings")]
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Row>,
    targets: Vec<Target>,
    pub(super) notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<String>,
}

fn headings<S: Serializer>(columns: &&[Column], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(columns.iter().map(|(heading, _)| heading))
}

impl Answer {
    pub(super) fn new(name: &'static str, title: &'static str) -> Self {
        Self {
            name,
            title,
            how: "",
            columns: &[],
            rows: Vec::new(),
            targets: Vec::new(),
            notes: Vec::new(),
            failure: None,
        }
    }

    /// Holds a figure against its target.
    pub(super) fn target(&mut self, what: impl Into<String>, reached: f64, at_most: f64) {
        self.targets.push(Target { what: what.into(), at_most, reached, met: reached <= at_most });
    }

    fn met(&self) -> bool {
        self.failure.is_none() && self.targets.iter().all(|target| target.met)
    }

    /// A line for each target.
    pub(super) fn summary(&self) -> String {
        let mut text = String::new();
        for Target { what, at_most, reached, met } in &self.targets {
            let word = if *met { "met" } else { "NOT MET" };
            let _ = writeln!(text, "  {word:8} {what}: {reached:.2}, at most {at_most}");
        }
        if let Some(failure) = &self.failure {
            let _ = writeln!(text, "  FAILED   {failure}");
        }
        text.pop();
        text
    }

    fn markdown(&self) -> String {
        let mut text = format!("\n## {}\n\n{}\n", self.title, self.how);
        if let Some(failure) = &self.failure {
            let _ = writeln!(text, "\n**Failed**: {failure}");
        }
        if !self.rows.is_empty() {
            text.push_str("\n| |");
            self.columns.iter().for_each(|(heading, _)| text.push_str(&format!(" {heading} |")));
            text.push_str(" noisy |\n|---|");
            text.push_str(&"---|".repeat(self.columns.len() + 1));
            text.push('\n');
        }
        for row in &self.rows {
            let _ = write!(text, "| {} |", row.name);
            for (column, (_, decimals)) in self.columns.iter().enumerate() {
                match row.spread(column).filter(|spread| spread.median.is_finite()) {
                    Some(Spread { median, min, max }) => {
                        let _ = write!(text, " {median:.decimals$} ({min:.decimals$} - {max:.decimals$}) |");
                    }
                    None => text.push_str(" - |"),
                }
            }
            let _ = writeln!(text, " {} of {} |", row.noisy(), row.rounds.len());
        }
        if !self.targets.is_empty() {
            text.push_str("\n| target | at most | reached | |\n|---|---|---|---|\n");
        }
        for Target { what, at_most, reached, met } in &self.targets {
            let word = if *met { "met" } else { "**not met**" };
            let _ = writeln!(text, "| {what} | {at_most} | {reached:.2} | {word} |");
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }
}

/// All answers of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// UTC.
    pub(super) date: String,
    /// The state of the tree that was built.
    pub(super) commit: String,
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    pub(super) seconds: f64,
    pub(super) answers: Vec<Answer>,
}

impl Report {
    pub(super) fn met(&self) -> bool {
        self.answers.iter().all(Answer::met)
    }

    pub(super) fn summary(&self) -> String {
        let line = |answer: &Answer| format!("{}\n{}\n", answer.title, answer.summary());
        self.answers.iter().map(line).collect()
    }

    pub(super) fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut text = String::from("# How ringnbd's costs grow\n\n");
        let _ = writeln!(
            text,
            "{} UTC, commit {}; {} x {}, Linux {}, {}; server on processor {}, client on {} where nothing else is said.\n\n\
             Median of {} rounds of {} s, in brackets the least and the most; times in microseconds; CPU is user and \
             system time of the server for each read or write, its kernel workers included. Rounds during which more \
             than {} % of a processor was stolen or went to others are noisy, and count only where none was quiet.",
            self.date,
            self.commit,
            machine.processors,
            machine.cpu,
            machine.kernel,
            machine.file_system,
            machine.server_core,
            machine.client_core,
            self.rounds,
            self.seconds,
            super::stage::NOISE_MAX_PCT,
        );
        self.answers.iter().for_each(|answer| text.push_str(&answer.markdown()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[(f64, bool)]) -> Row {
        let point = |&(value, noisy): &(f64, bool)| Point { values: vec![value], noisy };
        Row { name: "row".to_owned(), rounds: values.iter().map(point).collect() }
    }

    #[test]
    fn noisy_rounds_count_only_where_none_was_quiet() {
        assert!((row(&[(1.0, false), (9.0, true), (3.0, false)]).median(0) - 2.0).abs() < 1e-9);
        assert!((row(&[(8.0, true), (9.0, true)]).median(0) - 8.5).abs() < 1e-9);
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let (with, alone) = (row(&[(4.0, false), (10.0, false)]), row(&[(2.0, false), (5.0, false)]));
        assert!((ratio(&with, &alone, 0) - 2.0).abs() < 1e-9);
        let alone = row(&[(1.0, true), (5.0, false)]);
        assert!((ratio(&with, &alone, 0) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn what_was_not_measured_meets_no_target() {
        let mut answer = Answer::new("name", "title");
        assert!(answer.met());
        answer.target("of nothing", ratio(&row(&[]), &row(&[]), 0), 1.0);
        assert!(!answer.met());
        assert!(answer.markdown().contains("**not met**"));
    }
}
