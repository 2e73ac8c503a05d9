//! What this project has set out to reach, cell by cell, and whether it did.
//!
//! Ratios to the best peer of the same round, as everywhere; one shard, every feature on. To change a target, change its row.

use std::fmt::Write;

use crate::address::Transport::{self, Tcp, Unix};
use crate::generator::Generator;
use crate::samples::{Cell, Results};
use crate::servers::{Kind, Server};
use crate::statistics::{Measure, Ratio, Spread, ratios_of};

/// A row of the table: what one of our servers shall reach in one cell. 0 where nothing is asked.
#[derive(Debug)]
struct Target {
    workload: &'static str,
    transports: &'static [Transport],
    server: &'static str,
    iops_least: f64,
    cpu_most: f64,
    p99_most: f64,
    /// The peer that p99 is held against, where it is not the best.
    p99_of: Option<&'static str>,
}

const fn target(
    workload: &'static str,
    transports: &'static [Transport],
    server: &'static str,
    [iops_least, cpu_most, p99_most]: [f64; 3],
) -> Target {
    Target { workload, transports, server, iops_least, cpu_most, p99_most, p99_of: None }
}

const TARGETS: &[Target] = &[
    Target {
        p99_of: Some("qemu-storage-daemon"),
        ..target("randread-4k-16x4", &[Unix], "ringnbd", [2.6, 0.36, 0.3])
    },
    target("randread-4k-32", &[Unix], "ringnbd", [1.7, 0.45, 0.5]),
    target("randwrite-4k-32", &[Unix], "ringnbd", [1.5, 0.65, 0.5]),
    target("randread-4k-32", &[Tcp], "ringnbd", [2.5, 0.36, 0.3]),
    target("randread-4k-16x4", &[Tcp], "ringnbd", [5.0, 0.20, 0.25]),
    target("read-256k-16", &[Unix], "ringnbd", [1.2, 0.80, 1.0]),
    target("read-256k-16", &[Tcp], "ringnbd", [1.2, 0.70, 1.0]),
    target("randread-4k-1", &[Unix, Tcp], "ringnbd", [1.4, 1.05, 0.75]),
    target("randread-4k-1", &[Unix, Tcp], "ringnbd-poll", [1.5, 0.0, 0.7]),
    target("randread-4k-1", &[Unix], "ringnbd-sleep", [0.9, 1.0, 1.1]),
    target("randread-4k-direct-32", &[Unix, Tcp], "ringnbd", [1.6, 0.25, 0.7]),
];

impl Target {
    fn goals(&self) -> impl Iterator<Item = (Measure, f64)> {
        let goals = [
            (Measure::Iops, self.iops_least),
            (Measure::ServerCpu, self.cpu_most),
            (Measure::P99, self.p99_most),
        ];
        goals.into_iter().filter(|(_, goal)| *goal > 0.0)
    }

    fn ratios(&self, results: &Results, cell: &Cell, measure: Measure) -> Vec<Ratio> {
        let peer = if measure == Measure::P99 { self.p99_of } else { None };
        ratios_of(self.server, results, cell, measure, |server: &Server| match peer {
            Some(peer) => server.name == peer,
            None => server.kind == Kind::Peer,
        })
    }
}

/// The table of targets with what was reached; empty where no cell of it was measured.
pub(crate) fn table(results: &Results) -> String {
    let mut rows = String::new();
    let (mut met, mut asked) = (0, 0);
    for target in TARGETS {
        let here = |cell: &&Cell| {
            cell.workload.name == target.workload
                && target.transports.contains(&cell.transport)
                && cell.generator == Generator::Bench
        };
        for cell in results.cells.iter().filter(here) {
            let mut columns = String::new();
            for (measure, goal) in target.goals() {
                let ratios = target.ratios(results, cell, measure);
                let Some(spread) = Spread::of(ratios.iter().map(|ratio| ratio.ratio)) else { continue };
                let more = measure.more_is_better();
                let reached = if more { spread.median >= goal } else { spread.median <= goal };
                asked += 1;
                met += u32::from(reached);
                let (sign, verdict) =
                    (if more { '\u{2265}' } else { '\u{2264}' }, if reached { "" } else { " **lost**" });
                let Spread { median, min, max } = spread;
                let _ = write!(
                    columns,
                    "{} {sign} {goal:.2}: {median:.2} ({min:.2}\u{2013}{max:.2}){verdict} | ",
                    measure.name()
                );
            }
            if !columns.is_empty() {
                let _ = writeln!(rows, "| {} | {} | {}", cell.title(), target.server, columns.trim_end());
            }
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "{met} of {asked} met.\n\n| workload | server | IOPS | CPU/request | p99 |\n|---|---|---|---|---|\n{rows}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::SERVERS;
    use crate::workloads::WORKLOADS;

    #[test]
    fn every_target_names_rows_that_are_there() {
        for target in TARGETS {
            assert!(WORKLOADS.iter().any(|row| row.name == target.workload), "{}", target.workload);
            for name in [Some(target.server), target.p99_of].into_iter().flatten() {
                assert!(SERVERS.iter().any(|row| row.name == name), "{name}");
            }
        }
    }

    #[test]
    fn what_is_reached_and_what_is_not_is_told_apart() {
        let table = table(&crate::report::tests::results());
        assert!(table.starts_with("2 of 3 met."), "{table}");
        assert!(table.contains("IOPS \u{2265} 1.70: 1.75 (1.50\u{2013}2.00) |"), "{table}");
        assert!(table.contains("p99 \u{2264} 0.50: 0.58 (0.50\u{2013}0.67) **lost** |"), "{table}");
    }
}
