//! Where the time of requests went: the client's latencies beside the server's own histograms of the same requests.
//!
//! ```text
//!   client   |----------------------------- total -----------------------------|
//!   server             |--queued--|--------------- service --------------|
//!                                 |------|----- backend -----|-----------|
//!            |-network-|                                                 |-----|
//! ```
//!
//! The server is asked before the first request and after the last, on either side of all connections, so what lies in
//! between is what was asked for here, unless somebody else used the export too, which the counts tell.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;

use crate::cli::stats_socket;
use crate::load::{self, LoadError, Plan, Report};
use crate::metrics::{CommandKind, Totals};

/// What is told of each part: the mean, and percentiles, with the names that JSON gives them.
const COLUMNS: [(&str, &str, Option<f64>); 6] = [
    ("mean", "mean", None),
    ("p50", "p50", Some(50.0)),
    ("p90", "p90", Some(90.0)),
    ("p99", "p99", Some(99.0)),
    ("p99.9", "p99_9", Some(99.9)),
    ("max", "max", Some(100.0)),
];

/// Microseconds, a column each.
type Figures = [f64; COLUMNS.len()];

/// A server that was asked before the load.
pub(super) struct Split {
    path: PathBuf,
    export: String,
    before: Totals,
}

/// One command's requests.
pub(super) struct Parts {
    command: CommandKind,
    requests: u64,
    /// Requests of others that are in the server's figures.
    foreign: u64,
    total: Figures,
    queued: Figures,
    service: Figures,
    backend: Figures,
}

/// The ramp as a run of its own, with connections of its own: then none of its requests are left in what is counted.
pub(super) fn warm_up(plan: &Plan) -> Result<(), LoadError> {
    if plan.ramp.is_zero() {
        return Ok(());
    }
    let mut plan = Plan { runtime: plan.ramp, ramp: Duration::ZERO, intervals: None, ..plan.clone() };
    // Not the requests that are to be measured: they would find everything as they left it.
    plan.workload.seed = plan.workload.seed.wrapping_add(1);
    load::run(plan).map(|_| ())
}

impl Split {
    pub(super) fn begin(path: PathBuf, export: &str) -> anyhow::Result<Self> {
        let before = ask(&path, export)?;
        Ok(Self { path, export: export.to_owned(), before })
    }

    /// The load is over: a part for each command.
    pub(super) fn end(self, report: &Report) -> anyhow::Result<Vec<Parts>> {
        let Self { path, export, before } = self;
        let spent = ask(&path, &export)?.since(&before);
        let spent = spent.with_context(|| format!("what {} says", path.display()))?;
        let mut all = Vec::new();
        for (command, total) in report.histograms() {
            let times = spent.command(command);
            let answered = times.map_or(0, |times| times.service.len());
            let (Some(times), Some(foreign)) = (times, answered.checked_sub(total.len())) else {
                bail!(
                    "the server of --stats-socket {} answered {answered} of {} requests ({}): it is not the one that \
                     was loaded",
                    path.display(),
                    total.len(),
                    command.name()
                );
            };
            all.push(Parts {
                command,
                requests: total.len(),
                foreign,
                total: figures(total),
                queued: figures(&times.queued),
                service: figures(&times.service),
                backend: figures(&times.backend),
            });
        }
        Ok(all)
    }
}

fn ask(path: &Path, export: &str) -> anyhow::Result<Totals> {
    let shown = path.display();
    let text = stats_socket::read(path);
    let text = text.with_context(|| format!("cannot ask {shown}, the server's --stats-socket"))?;
    let totals = Totals::read(&text, export).with_context(|| format!("what {shown} says"))?;
    totals.with_context(|| format!("the server of --stats-socket {shown} has no export {export:?}"))
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn figures(histogram: &Histogram<u64>) -> Figures {
    COLUMNS.map(|(.., percentile)| match percentile {
        None => histogram.mean() / 1000.0,
        Some(percentile) => histogram.value_at_percentile(percentile) as f64 / 1000.0,
    })
}

fn less(from: &Figures, what: &Figures) -> Figures {
    std::array::from_fn(|column| from[column] - what[column])
}

impl Parts {
    /// What adds up to the total, with names for people and for programs; last the total.
    fn rows(&self) -> [(&'static str, &'static str, Figures); 5] {
        [
            ("network and client", "network", less(&less(&self.total, &self.queued), &self.service)),
            ("queued", "queued", self.queued),
            ("service, less backend", "service_less_backend", less(&self.service, &self.backend)),
            ("backend", "backend", self.backend),
            ("total, at the client", "total", self.total),
        ]
    }
}

/// For people. Times in microseconds.
pub(super) fn table(all: &[Parts]) -> String {
    // A String takes whatever is written to it.
    let mut text = String::new();
    for parts in all {
        let _ = write!(text, "\n{:<24}", format!("where a {}'s time went", parts.command.name()));
        for (name, ..) in COLUMNS {
            let _ = write!(text, "{name:>10}");
        }
        for (name, _, figures) in parts.rows() {
            let _ = write!(text, "\n{name:<24}");
            for figure in figures {
                // Less than nothing, rounded, is nothing.
                let _ = write!(text, "{:>10.1}", if figure.abs() < 0.05 { 0.0 } else { figure });
            }
        }
        text.push('\n');
        if parts.foreign > 0 {
            let _ = writeln!(
                text,
                "of the {} requests in the server's figures {} are not from here: others use the export",
                parts.requests + parts.foreign,
                parts.foreign
            );
        }
    }
    text.push_str(
        "\nMicroseconds. Means add up because times do. Percentiles are of each histogram by itself: network and service \
         are\ndifferences of percentiles, which need not be of the same request; below 0 they surely are not.\n",
    );
    text
}

/// For programs: a member of the report, after others. Times in microseconds.
pub(super) fn json(all: &[Parts]) -> String {
    let mut text = String::from(", \"server\": {");
    for (index, parts) in all.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(
            text,
            "{comma}\"{}\": {{\"requests\": {}, \"foreign_requests\": {}",
            parts.command.name(),
            parts.requests + parts.foreign,
            parts.foreign
        );
        for (_, key, figures) in parts.rows() {
            let _ = write!(text, ", \"{key}\": {{");
            for (column, figure) in figures.iter().enumerate() {
                let comma = if column == 0 { "" } else { ", " };
                let _ = write!(text, "{comma}\"{}_us\": {figure:.3}", COLUMNS[column].1);
            }
            text.push('}');
        }
        text.push('}');
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    fn parts(foreign: u64) -> Parts {
        let histogram = |ns: u64| {
            let mut histogram = metrics::histogram();
            histogram.record_n(ns, 99).expect("in range");
            histogram.record(10 * ns).expect("in range");
            figures(&histogram)
        };
        let [total, queued, service, backend] = [100_000, 5_000, 60_000, 20_000].map(histogram);
        Parts { command: CommandKind::Read, requests: 100, foreign, total, queued, service, backend }
    }

    #[test]
    fn the_parts_of_every_column_add_up_to_the_total() {
        let rows = parts(0).rows();
        for (column, (name, ..)) in COLUMNS.iter().enumerate() {
            let sum: f64 = rows[..4].iter().map(|(.., figures)| figures[column]).sum();
            assert!((sum - rows[4].2[column]).abs() < 1e-6, "{name}");
            assert!(rows.iter().all(|(.., figures)| figures[column] > 0.0), "{name}");
        }
    }

    #[test]
    fn requests_of_others_are_told() {
        let text = table(&[parts(0), parts(0)]);
        assert!(!text.contains("others") && text.matches("service, less backend").count() == 2, "{text}");
        let text = table(&[parts(7)]);
        assert!(text.contains("of the 107 requests in the server's figures 7 are not"), "{text}");
    }
}
