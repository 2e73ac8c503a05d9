//! What a run leaves: one sample for each time that a server was measured, good or bad.

use serde::Serialize;

use crate::address::Transport;
use crate::figures::Figures;
use crate::generator::Generator;
use crate::machine::Machine;
use crate::servers::{Kind, Server};
use crate::workloads::Workload;

/// What servers are compared on: a workload, over a transport, made by a generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) workload: &'static Workload,
    pub(crate) transport: Transport,
    pub(crate) generator: Generator,
}

impl Cell {
    pub(crate) fn title(&self) -> String {
        let fio = if self.generator == Generator::Fio { ", driven by fio" } else { "" };
        format!("{}, {}{fio}", self.workload.title, self.transport)
    }

    /// For names of files.
    pub(crate) fn name(&self) -> String {
        let fio = if self.generator == Generator::Fio { "-fio" } else { "" };
        format!("{}-{}{fio}", self.workload.name, self.transport)
    }
}

/// What others did to the machine meanwhile, in percent of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Noise {
    /// Busy, but neither with the server nor with the client; interrupts are in it.
    pub(crate) foreign_pct: f64,
    /// Taken by the hypervisor, of all processors.
    pub(crate) steal_pct: f64,
}

/// One run of one server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) workload: &'static str,
    pub(crate) transport: Transport,
    pub(crate) generator: Generator,
    pub(crate) server: &'static str,
    pub(crate) round: u32,
    /// From 1; more than one where the first was noisy or failed.
    pub(crate) attempt: u32,
    pub(crate) noisy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) noise: Option<Noise>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) figures: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
    #[serde(skip)]
    pub(crate) curve: Option<String>,
}

/// The words that a run was asked for with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
    pub(crate) file_mib: u64,
    pub(crate) noise_max_pct: f64,
    pub(crate) repeats: u32,
}

/// A program that took part.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) server: &'static str,
    pub(crate) version: String,
}

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// UTC.
    pub(crate) date: String,
    /// The state of the tree that was built.
    pub(crate) commit: String,
    pub(crate) machine: Machine,
    pub(crate) settings: Settings,
    pub(crate) versions: Vec<Version>,
    #[serde(skip)] // a line each, see json
    pub(crate) samples: Vec<Sample>,
    #[serde(skip)]
    pub(crate) servers: Vec<&'static Server>,
    #[serde(skip)]
    pub(crate) cells: Vec<Cell>,
}

impl Results {
    /// All of it, with a line for each sample: there are a thousand of them.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.truncate(text.trim_end_matches(['}', '\n']).len());
        text.push_str(",\n  \"samples\": [\n");
        for (number, sample) in self.samples.iter().enumerate() {
            text.push_str(if number == 0 { "    " } else { ",\n    " });
            text.push_str(&serde_json::to_string(sample)?);
        }
        text.push_str("\n  ]\n}\n");
        Ok(text)
    }

    fn of<'a>(&'a self, cell: &Cell, server: &str) -> impl Iterator<Item = &'a Sample> {
        let (cell, server) = (*cell, server.to_owned());
        self.samples.iter().filter(move |sample| {
            sample.server == server
                && sample.workload == cell.workload.name
                && sample.transport == cell.transport
                && sample.generator == cell.generator
        })
    }

    /// The sample that counts for a round: of several attempts the one with the least foreign load.
    pub(crate) fn round(&self, cell: &Cell, server: &str, round: u32) -> Option<&Sample> {
        let of_round = self.of(cell, server).filter(|sample| sample.round == round);
        let measured = of_round.filter(|sample| sample.figures.is_some());
        let foreign = |sample: &Sample| sample.noise.map_or(f64::MAX, |noise| noise.foreign_pct);
        measured.min_by(|a, b| foreign(a).total_cmp(&foreign(b)))
    }

    /// The samples that count, by round.
    pub(crate) fn rounds(&self, cell: &Cell, server: &str) -> Vec<&Sample> {
        (1..=self.settings.rounds).filter_map(|round| self.round(cell, server, round)).collect()
    }

    /// The first reason why a server was not measured here, and how often that was so.
    pub(crate) fn failures(&self, cell: &Cell, server: &str) -> Option<(&str, usize)> {
        let mut reasons = self.of(cell, server).filter_map(|sample| sample.failure.as_deref());
        let first = reasons.next()?;
        Some((first, 1 + reasons.count()))
    }

    /// How many rounds of all servers have no figures, though they should.
    pub(crate) fn missing(&self) -> usize {
        let mut missing = 0;
        for cell in &self.cells {
            let takes_part = |server: &&&Server| (server.cannot)(cell.workload).is_none();
            for server in self.servers.iter().filter(takes_part) {
                missing += self.settings.rounds as usize - self.rounds(cell, server.name).len();
            }
        }
        missing
    }

    pub(crate) fn named(&self, kind: Kind) -> impl Iterator<Item = &'static Server> {
        self.servers.iter().copied().filter(move |server| server.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_figures_are_json_with_a_line_for_each_sample() {
        let results = crate::report::tests::results();
        let text = results.json().expect("serializable");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["samples"].as_array().map(Vec::len), Some(results.samples.len()));
        assert_eq!(value["machine"]["kernel"], "6.18");
        assert_eq!(value["samples"][0]["figures"]["read"]["p50_us"], 25.0);
        assert_eq!(text.lines().filter(|line| line.contains("\"server\":\"nbdkit\"")).count(), 3);
    }

    #[test]
    fn of_several_attempts_the_quietest_counts() {
        let results = crate::report::tests::results();
        let sample = results.round(&results.cells[0], "nbdkit", 1).expect("measured");
        assert_eq!((sample.attempt, sample.noisy), (2, false));
        assert_eq!(results.missing(), 1, "the floor failed once");
    }
}
