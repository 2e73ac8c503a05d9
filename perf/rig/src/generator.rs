//! What makes the load: `ringnbd bench`, or fio's nbd engine. Both get the same words.

use std::path::Path;
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

/// One run of a generator.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) generator: Generator,
    pub(crate) workload: &'a Workload,
    pub(crate) uri: &'a str,
    pub(crate) runtime: Duration,
    /// Of the export.
    pub(crate) size: u64,
    pub(crate) seed: u32,
}

impl Load<'_> {
    /// The words of a command that leaves its results in `home`.
    pub(crate) fn words(&self, ringnbd: &str, can: Abilities, home: &Path) -> anyhow::Result<Vec<String>> {
        match self.generator {
            Generator::Bench => self.bench(ringnbd, can, home),
            Generator::Fio => Ok(self.fio(home)),
        }
    }

    fn bench(&self, ringnbd: &str, can: Abilities, home: &Path) -> anyhow::Result<Vec<String>> {
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
        words.push(self.uri.to_owned());
        Ok(words)
    }

    fn fio(&self, home: &Path) -> Vec<String> {
        let workload = self.workload;
        let mut words: Vec<String> = [
            "fio",
            "--name=rig",
            "--ioengine=nbd",
            "--thread",
            "--group_reporting",
            "--time_based",
            "--norandommap",
            "--randrepeat=0",
            "--percentile_list=50:99:99.9",
            "--output-format=json",
        ]
        .map(str::to_owned)
        .into();
        let mut option = |name: &str, value: String| words.push(format!("--{name}={value}"));
        option("output", home.join("stdout").display().to_string());
        option("uri", self.uri.to_owned());
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
        match self.generator {
            Generator::Bench => figures::of_bench(&json),
            Generator::Fio => figures::of_fio(&json),
        }
    }
}
