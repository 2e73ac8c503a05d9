//! What makes the load: `ringnbd bench`, or fio's nbd engine. Both get the same words.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::figures::{self, ClientFigures};
use crate::workloads::Workload;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Generator {
    Bench,
    Fio,
}

/// What `ringnbd bench` can do, by its own help.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    fsync: bool,
    hgrm: bool,
}

impl Abilities {
    pub(crate) fn ask(ringnbd: &str) -> anyhow::Result<Self> {
        let output = std::process::Command::new(ringnbd).args(["bench", "--help"]).output();
        let output = output.with_context(|| format!("cannot start {ringnbd}"))?;
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Self { fsync: help.contains("--fsync"), hgrm: help.contains("--hgrm") })
    }
}

/// What a load goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    Uri(&'a str),
    /// The file itself, around the page cache, by fio's io_uring engine.
    File(&'a str),
}

/// One run of a generator.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) generator: Generator,
    pub(crate) workload: &'a Workload,
    pub(crate) target: Target<'a>,
    pub(crate) runtime: Duration,
    /// Of the export.
    pub(crate) size: u64,
    pub(crate) seed: u32,
    /// Of a program that finds certificates there.
    pub(crate) home: Option<PathBuf>,
}

impl Load<'_> {
    /// The words of a command that leaves its results in `home`.
    pub(crate) fn words(&self, ringnbd: &str, can: Abilities, home: &Path) -> anyhow::Result<Vec<String>> {
        match (self.target, self.generator) {
            (Target::Uri(uri), Generator::Bench) => self.bench(uri, ringnbd, can, home),
            (Target::Uri(uri), Generator::Fio) => {
                Ok(self.fio(&["--ioengine=nbd".to_owned(), format!("--uri={uri}")], home))
            }
            (Target::File(file), _) => {
                let engine = ["--ioengine=io_uring", "--direct=1"].map(str::to_owned);
                // A colon ends a name in fio's list of files.
                let file = format!("--filename={}", file.replace(':', "\\:"));
                Ok(self.fio(&[engine.as_slice(), &[file]].concat(), home))
            }
        }
    }

    fn bench(&self, uri: &str, ringnbd: &str, can: Abilities, home: &Path) -> anyhow::Result<Vec<String>> {
        let workload = self.workload;
        let mut words: Vec<String> = [ringnbd, "bench", "--json", "--ramp", "0s"].map(str::to_owned).into();
        let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        option("rw", workload.rw.to_owned());
        option("bs", workload.bs.to_owned());
        option("iodepth", workload.iodepth.to_string());
        option("numjobs", workload.numjobs.to_string());
        option("runtime", format!("{}ms", self.runtime.as_millis()));
        option("seed", self.seed.to_string());
        if let Some(percent) = workload.rwmixread {
            option("rwmixread", percent.to_string());
        }
        if let Some(writes) = workload.fsync {
            anyhow::ensure!(can.fsync, "this ringnbd bench has no --fsync");
            option("fsync", writes.to_string());
        }
        if can.hgrm {
            option("hgrm", home.join("latency.hgrm").display().to_string());
        }
        words.push(uri.to_owned());
        Ok(words)
    }

    fn fio(&self, target: &[String], home: &Path) -> Vec<String> {
        let workload = self.workload;
        let mut words = match &self.home {
            Some(home) if self.workload.tls => vec!["env".to_owned(), format!("HOME={}", home.display())],
            _ => Vec::new(),
        };
        words.extend(
            [
                "fio",
                "--name=rig",
                "--thread",
                "--group_reporting",
                "--time_based",
                "--norandommap",
                "--randrepeat=0",
                "--percentile_list=50:99:99.9",
                "--output-format=json",
            ]
            .map(str::to_owned),
        );
        words.extend_from_slice(target);
        let mut option = |name: &str, value: String| words.push(format!("--{name}={value}"));
        option("output", home.join("stdout").display().to_string());
        option("rw", workload.rw.to_owned());
        option("bs", workload.bs.to_owned());
        option("iodepth", workload.iodepth.to_string());
        option("numjobs", workload.numjobs.to_string());
        option("size", self.size.to_string());
        option("runtime", format!("{}ms", self.runtime.as_millis()));
        if let Some(percent) = workload.rwmixread {
            option("rwmixread", percent.to_string());
        }
        if let Some(writes) = workload.fsync {
            option("fsync", writes.to_string());
        }
        words
    }

    /// What the run came to, from what it left in `home`.
    pub(crate) fn figures(&self, home: &Path) -> anyhow::Result<ClientFigures> {
        let json = std::fs::read_to_string(home.join("stdout")).context("the generator left no report")?;
        match (self.target, self.generator) {
            (Target::Uri(_), Generator::Bench) => figures::of_bench(&json),
            _ => figures::of_fio(&json),
        }
    }
}
