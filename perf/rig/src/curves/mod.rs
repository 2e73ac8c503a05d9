//! `perf/curves`: how do ringnbd's costs grow, and do connections leave each other alone?
//!
//! ```text
//!   CURVES --measure(Stage)--> Answer: rows and verdicts --> report
//!
//!   stage        servers, loads, and what they cost
//!   wire         NBD by hand: connections that only exist, and one that asks for extents
//!   growth       idle connections, connections at work, size of the export, shards
//!   neighbours   what one connection does to another: extents, large reads, writes
//!   rest         an idle server, a mixed load
//!   upstream     a node in front of another
//!   copies       a disk copied, beside nbdcopy
//! ```
//!
//! Where a figure is held against another, both were measured in the same round, one after the other.

mod answer;
mod copies;
mod growth;
mod neighbours;
mod rest;
mod stage;
mod upstream;
mod wire;

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use crate::child;
use crate::compare::chosen;
use crate::disk::Disk;
use crate::interrupt::{Interrupt, Interrupted};
use crate::machine::Machine;
use crate::session::{Subject, said};
use answer::{Answer, Report};
use stage::Stage;

pub(crate) use wire::walk;

/// A row of the table: one question.
pub(crate) struct Curve {
    name: &'static str,
    title: &'static str,
    measure: fn(&Stage<'_>, &mut Answer) -> anyhow::Result<()>,
}

const CURVES: &[Curve] = &[
    Curve { name: "idle", title: "10,000 idle connections", measure: growth::idle },
    Curve { name: "connections", title: "From 1 to 1,000 connections", measure: growth::connections },
    Curve { name: "size", title: "From 1 GiB to 1 TiB", measure: growth::size },
    Curve { name: "shards", title: "Two shards", measure: growth::shards },
    Curve { name: "extents", title: "Reads beside BLOCK_STATUS", measure: neighbours::extents },
    Curve { name: "fairness", title: "Small reads beside large ones", measure: neighbours::fairness },
    Curve { name: "writes", title: "Reads beside writes", measure: neighbours::writes },
    Curve { name: "rest", title: "A server with little to do", measure: rest::rest },
    Curve { name: "mixed", title: "A mixed load on all processors", measure: rest::mixed },
    Curve { name: "upstream", title: "A node in front of another", measure: upstream::upstream },
    Curve { name: "copy", title: "Copying a disk", measure: copies::copies },
];

/// Ask how costs grow, and whether connections leave each other alone
#[derive(Debug, Args)]
#[command(after_help = "\
Ends with 0 only when every target is met; the report says which are not. A sample that others on the machine
disturbed is marked, and counts only where no round was quiet.")]
pub(crate) struct Curves {
    /// Only these curves
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Print the names of the curves, and end
    #[arg(long)]
    list: bool,

    /// One round of short samples: shows that everything works, and no figure that counts
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,

    /// How often each sample is taken
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Length of each sample
    #[arg(long, value_name = "SECONDS", default_value_t = 0.7)]
    seconds: f64,

    #[command(flatten)]
    subject: Subject,
}

/// Size of the file that is read and written.
const FILE_MIB: u64 = 512;
/// Connections that idle, and what `--quick` makes of them.
const CROWD: (u32, u32) = (10_000, 2_000);
const QUICK_SECONDS: f64 = 0.2;

impl Curves {
    pub(crate) fn run(mut self) -> anyhow::Result<ExitCode> {
        if self.list {
            CURVES.iter().for_each(|curve| println!("{:14} {}", curve.name, curve.title));
            return Ok(ExitCode::SUCCESS);
        }
        let curves = chosen(CURVES, &self.names, |curve| curve.name)?;
        if self.quick {
            (self.rounds, self.seconds) = (1, QUICK_SECONDS);
        }
        if !(0.1..=60.0).contains(&self.seconds) {
            bail!("--seconds is from 0.1 to 60");
        }
        let interrupt = Interrupt::listen()?;
        child::reap_descendants()?;
        let disk = Disk::make(FILE_MIB, true, &interrupt)?;
        let stage = Stage {
            ringnbd: absolute(&self.subject.ringnbd)?,
            rig: absolute(&std::env::current_exe()?)?,
            machine: Machine::look(disk.path())?,
            rounds: self.rounds,
            sample: std::time::Duration::from_secs_f64(self.seconds),
            crowd: if self.quick { CROWD.1 } else { CROWD.0 },
            disk,
            interrupt: &interrupt,
        };
        let mut answers = Vec::new();
        for curve in curves {
            eprintln!("{}", curve.name);
            let mut answer = Answer::new(curve.name, curve.title);
            match (curve.measure)(&stage, &mut answer) {
                Ok(()) => {}
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => answer.failure = Some(format!("{error:#}")),
            }
            child::sweep();
            eprintln!("{}", answer.summary());
            answers.push(answer);
        }
        let report = Report {
            date: said(&["date", "--utc", "+%Y-%m-%d-%H%M%S"]).context("there is no date")?,
            commit: said(&["git", "describe", "--always", "--dirty"]).unwrap_or_else(|| "unknown".to_owned()),
            machine: stage.machine,
            rounds: self.rounds,
            seconds: self.seconds,
            answers,
        };
        let label = self.subject.label.clone().unwrap_or_else(|| report.machine.label());
        let dir = self.subject.results.join(format!("{}-{label}", report.date));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let texts = [
            ("curves.md", report.markdown()),
            ("curves.json", serde_json::to_string_pretty(&report)? + "\n"),
        ];
        println!("{}", report.summary());
        for (name, text) in texts {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("{}", path.display());
        }
        Ok(if report.met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Servers start in a directory of their own.
fn absolute(path: &std::path::Path) -> anyhow::Result<String> {
    anyhow::ensure!(path.exists(), "there is no {}: build it first", path.display());
    let path = std::path::absolute(path)?;
    path.into_os_string().into_string().ok().context("a program's path is not UTF-8")
}
