//! `perf/against-nbdkit`: is ringnbd as much faster than nbdkit's file plugin as it shall be?
//!
//! The same rounds as everywhere, with two servers and one workload: 4 KiB random reads of a cached file over a unix
//! socket, 32 in flight. Only ratios within a round count.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use crate::address::Transport;
use crate::samples::Results;
use crate::servers::{Kind, SERVERS};
use crate::session::{self, Options};
use crate::statistics::{Measure, Spread, ratios};
use crate::workloads::WORKLOADS;

const SERVERS_ASKED: [&str; 2] = ["ringnbd", "nbdkit"];
const WORKLOAD: &str = "randread-4k-32";

/// What the median of the ratios must reach, ringnbd's figure to nbdkit's.
const GOALS: [(Measure, f64); 3] = [(Measure::ServerCpu, 0.6), (Measure::Iops, 1.3), (Measure::P99, 1.0)];

/// Ask the one question: 4k random reads against nbdkit's file plugin
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 0 when CPU time for each request is at most 0.6 of nbdkit's, IOPS are at least 1.3 times nbdkit's,
and p99 is not above nbdkit's; with 1 when that is not so.")]
pub(crate) struct Against {
    #[command(flatten)]
    options: Options,
}

impl Against {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let servers = SERVERS.iter().filter(|server| SERVERS_ASKED.contains(&server.name)).collect();
        let workload = WORKLOADS.iter().find(|workload| workload.name == WORKLOAD).context("no such row")?;
        let results =
            self.options.measure(servers, session::cells(&[workload], &[Transport::Unix], false))?;
        let (text, met) = answer(&results)?;
        let json = self.options.write(&results, "against-nbdkit.json", &results.json()?)?;
        let written = self.options.write(&results, "against-nbdkit.txt", &text)?;
        println!("{text}\nanswer   {}\nfigures  {}", written.display(), json.display());
        Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The answer in words and figures, and whether it is yes.
fn answer(results: &Results) -> anyhow::Result<(String, bool)> {
    let cell = results.cells.first().context("nothing was asked")?;
    if results.missing() > 0 {
        let failure = |server| Some((server, results.failures(cell, server)?.0));
        let failure = SERVERS_ASKED.into_iter().find_map(failure);
        let (server, failure) = failure.unwrap_or(("a server", "was not measured"));
        bail!("{server}: {failure}");
    }
    let columns = GOALS.map(|(measure, _)| ratios(results, cell, measure, Kind::Peer));
    let mut text = format!("{}; ringnbd to nbdkit's file plugin\n\n", cell.title());
    let _ = write!(text, "{:8}", "round");
    for (measure, _) in GOALS {
        let _ = write!(text, "{:>13}", measure.name());
    }
    text.push('\n');
    for round in 1..=results.settings.rounds {
        let mut in_round = columns.iter().map(|column| column.iter().find(|ratio| ratio.round == round));
        let noisy = SERVERS_ASKED
            .iter()
            .any(|server| results.round(cell, server, round).is_none_or(|sample| sample.noisy));
        let _ = write!(text, "{round:<8}");
        in_round.try_for_each(|ratio| write!(text, "{:13.2}", ratio?.ratio).ok());
        text.push_str(if noisy { "   noisy\n" } else { "\n" });
    }
    let mut met = true;
    let mut verdicts = String::from("\n");
    let _ = write!(text, "{:8}", "median");
    for ((measure, goal), column) in GOALS.into_iter().zip(&columns) {
        let spread = Spread::of(column.iter().map(|ratio| ratio.ratio));
        let spread = spread.with_context(|| format!("no round has both servers' {}", measure.name()))?;
        let reached = if measure.more_is_better() { spread.median >= goal } else { spread.median <= goal };
        met &= reached;
        let _ = write!(text, "{:13.2}", spread.median);
        let at = if measure.more_is_better() { "least" } else { "most" };
        let word = if reached { "met" } else { "NOT MET" };
        let _ = writeln!(
            verdicts,
            "{:12} at {at} {goal}: {word} ({:.2}, from {:.2} to {:.2})",
            measure.name(),
            spread.median,
            spread.min,
            spread.max
        );
    }
    Ok((format!("{text}\n{verdicts}"), met))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_yes_only_when_every_goal_is_met() {
        let mut results = crate::report::tests::results();
        results.servers.retain(|server| SERVERS_ASKED.contains(&server.name));
        results.samples.retain(|sample| SERVERS_ASKED.contains(&sample.server));
        let (text, met) = answer(&results).expect("all was measured");
        assert!(met, "{text}");
        assert!(text.contains("IOPS         at least 1.3: met (1.83, from 1.67 to 2.00)"), "{text}");
        for sample in &mut results.samples {
            if let (Some(figures), "ringnbd") = (&mut sample.figures, sample.server) {
                figures.server_cpu_us = 7.0;
            }
        }
        let (text, met) = answer(&results).expect("all was measured");
        assert!(!met && text.contains("CPU/request  at most 0.6: NOT MET"), "{text}");
    }
}
