//! One session of the rig, whatever the question: settings, the machine, the run, and the file that it leaves.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;

use crate::certificates::Certificates;
use crate::child;
use crate::disk::Disk;
use crate::generator::Generator;
use crate::interrupt::Interrupt;
use crate::machine::Machine;
use crate::picture;
use crate::rounds::Run;
use crate::samples::{Cell, Results, Sample, Settings, Version};
use crate::servers::{Programs, Server};

/// What is measured, and where what came of it is written.
#[derive(Debug, Args)]
pub(crate) struct Subject {
    /// Where reports go
    #[arg(long, value_name = "DIR", default_value = "perf/results")]
    pub(crate) results: PathBuf,

    /// What the machine is called in the name of the report's directory [default: its processors]
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,

    /// The ringnbd that is measured, and that makes the load
    #[arg(long, value_name = "FILE", default_value = "target/release/ringnbd")]
    pub(crate) ringnbd: PathBuf,
}

/// Options of every question.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds: each server is measured once in each
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,

    /// Length of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: u32,

    /// Size of the served file
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(16..))]
    file_mib: u64,

    /// Foreign load, in percent of a processor, above which a sample is marked noisy
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0)]
    noise_max: f64,

    /// How often a noisy sample is taken again
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeats: u32,

    #[command(flatten)]
    subject: Subject,

    /// The server on tokio-uring
    #[arg(long, value_name = "FILE", default_value = "target/perf/release/tokio-uring-baseline")]
    baseline: PathBuf,
}

impl Options {
    /// Measures `servers` in `cells`, and tells of each sample on standard error.
    pub(crate) fn measure(&self, servers: Vec<&'static Server>, cells: Vec<Cell>) -> anyhow::Result<Results> {
        let interrupt = Interrupt::listen()?;
        child::reap_descendants()?;
        let programs = self.programs()?;
        let writes = cells.iter().any(|cell| cell.workload.writes());
        eprintln!("making the file");
        let disk = Disk::make(self.file_mib, writes, &interrupt)?;
        let machine = Machine::look(disk.path())?;
        if machine.server_core == machine.client_core {
            eprintln!("there is one processor only: server and client share it, and every figure holds both");
        }
        let settings = Settings {
            rounds: self.rounds,
            seconds: self.seconds,
            file_mib: self.file_mib,
            noise_max_pct: self.noise_max,
            repeats: self.repeats,
        };
        let with_tls = cells.iter().any(|cell| cell.workload.tls);
        let certificates = if with_tls { Some(Certificates::make()?) } else { None };
        let run =
            Run { programs, machine, settings, servers, cells, disk, interrupt: &interrupt, certificates };
        let (mut done, all) = (0, run.samples_expected());
        let measured = run.measure(|cell, sample| {
            done += usize::from(sample.attempt == 1);
            eprintln!("{done:4}/{all} {:38} {}", cell.name(), line(sample));
        });
        child::sweep();
        let samples = measured?;
        Ok(Results {
            date: said(&["date", "--utc", "+%Y-%m-%d-%H%M%S"]).context("there is no date")?,
            commit: said(&["git", "describe", "--always", "--dirty"]).unwrap_or_else(|| "unknown".to_owned()),
            versions: versions(&run.servers),
            machine: run.machine,
            settings: run.settings,
            samples,
            servers: run.servers,
            cells: run.cells,
        })
    }

    fn programs(&self) -> anyhow::Result<Programs> {
        // The servers start in a directory of their own.
        let absolute = |path: &PathBuf| -> anyhow::Result<String> {
            let path = std::path::absolute(path)?;
            path.into_os_string().into_string().ok().context("a program's path is not UTF-8")
        };
        ensure!(
            self.subject.ringnbd.exists(),
            "there is no {}: build it first",
            self.subject.ringnbd.display()
        );
        Ok(Programs {
            ringnbd: absolute(&self.subject.ringnbd)?,
            baseline: absolute(&self.baseline)?,
            rig: absolute(&std::env::current_exe()?)?,
        })
    }

    /// Latency by percentile, drawn by the ringnbd that was measured.
    pub(crate) fn draw(&self, results: &Results, cell: &Cell) -> anyhow::Result<Option<String>> {
        picture::latency(results, cell, &std::path::absolute(&self.subject.ringnbd)?)
    }

    /// Writes `RESULTS/DATE-LABEL/NAME`; its path.
    pub(crate) fn write(&self, results: &Results, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let dir = self.subject.results.join(self.stem(results));
        let path = dir.join(name);
        let written = fs::create_dir_all(&dir).and_then(|()| fs::write(&path, text));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// `DATE-LABEL`.
    fn stem(&self, results: &Results) -> String {
        let label = self.subject.label.clone().unwrap_or_else(|| results.machine.label());
        format!("{}-{label}", results.date)
    }
}

impl Run<'_> {
    fn samples_expected(&self) -> usize {
        let takes_part = |cell: &Cell| {
            self.servers.iter().filter(|server| (server.cannot)(cell.workload).is_none()).count()
        };
        self.cells.iter().map(takes_part).sum::<usize>() * self.settings.rounds as usize
    }
}

/// A sample in a line, for whom it may bore.
fn line(sample: &Sample) -> String {
    let outcome = match (&sample.figures, &sample.failure) {
        (Some(figures), _) => format!(
            "{:8.0} IOPS {:7.2} us/request p50 {:7.1} p99 {:7.1}",
            figures.iops,
            figures.server_cpu_us,
            figures.slower(|latency| latency.p50_us),
            figures.slower(|latency| latency.p99_us),
        ),
        (None, Some(failure)) => format!("FAILED: {failure}"),
        (None, None) => "nothing".to_owned(),
    };
    let noise = match sample.noise {
        Some(noise) if sample.noisy => {
            format!(" noisy: {:.0} % foreign, {:.0} % stolen", noise.foreign_pct, noise.steal_pct)
        }
        _ => String::new(),
    };
    format!("round {} {:20} {outcome}{noise}", sample.round, sample.server)
}

/// What each server's own words say its version is.
fn versions(servers: &[&'static Server]) -> Vec<Version> {
    let with_words = servers.iter().filter(|server| !server.version.is_empty());
    let version = |server: &&'static Server| {
        let version = said(server.version).unwrap_or_else(|| "unknown".to_owned());
        Version { server: server.name, version }
    };
    with_words.map(version).collect()
}

/// The first line that a command prints.
pub(crate) fn said(words: &[&str]) -> Option<String> {
    let (program, arguments) = words.split_first()?;
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next()?.trim().to_owned())
}

/// One cell for each of the workloads over each transport, and one more where fio drives too.
pub(crate) fn cells(
    workloads: &[&'static crate::workloads::Workload],
    transports: &[crate::address::Transport],
    with_fio: bool,
) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &workload in workloads {
        for &transport in transports {
            let generators = [Generator::Bench, Generator::Fio];
            let taken = generators.into_iter().take(if with_fio && workload.fio { 2 } else { 1 });
            cells.extend(taken.map(|generator| Cell { workload, transport, generator }));
        }
    }
    cells
}
