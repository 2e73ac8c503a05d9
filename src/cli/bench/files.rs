//! What a run leaves behind besides its table: percentile files and the interval log.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, anyhow};

use crate::load::{Interval, Report};
use crate::metrics::{HistogramLog, write_hgrm};

/// Files that were asked for. They are made before the run, where the operator sees an error in time.
pub(super) struct Files {
    hgrm: Option<PathBuf>,
    log: Option<Log>,
}

/// The interval log: compressed and written on a thread of its own, so that no request waits for it.
struct Log {
    path: PathBuf,
    intervals: Option<Sender<Interval>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Files {
    pub(super) fn open(hgrm: Option<PathBuf>, hlog: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(path) = &hgrm {
            create(path, "--hgrm")?;
        }
        let log = hlog.map(|path| {
            let out = BufWriter::new(create(&path, "--hlog")?);
            let (sender, receiver) = channel();
            let thread = thread::Builder::new().name("hlog".to_owned()).spawn(|| write_log(out, receiver));
            let thread = thread.context("cannot start a thread for --hlog")?;
            anyhow::Ok(Log { path, intervals: Some(sender), thread })
        });
        Ok(Self { hgrm, log: log.transpose()? })
    }

    /// Where intervals are to be told; the log ends when the run has dropped it.
    pub(super) fn intervals(&mut self) -> Option<Sender<Interval>> {
        self.log.as_mut()?.intervals.take()
    }

    /// The run has ended.
    pub(super) fn end(self, report: &Report) -> anyhow::Result<()> {
        if let Some(log) = self.log {
            let written = log.thread.join().map_err(|_| anyhow!("the thread of --hlog panicked"))?;
            written.with_context(|| format!("cannot write {} for --hlog", log.path.display()))?;
        }
        let Some(path) = self.hgrm else { return Ok(()) };
        let several = report.histograms().len() > 1;
        if several {
            // It was only made to see whether it can be.
            std::fs::remove_file(&path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        for (command, latency) in report.histograms() {
            let path = if several { named(&path, command.name()) } else { path.clone() };
            let mut out = BufWriter::new(create(&path, "--hgrm")?);
            let written = write_hgrm(latency, &mut out).and_then(|()| out.flush());
            written.with_context(|| format!("cannot write {} for --hgrm", path.display()))?;
        }
        Ok(())
    }
}

fn create(path: &Path, option: &str) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("cannot write {} for {option}", path.display()))
}

/// `dir/run.hgrm` for reads: `dir/run.read.hgrm`.
fn named(path: &Path, command: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(".");
    name.push(command);
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn write_log(out: BufWriter<File>, intervals: Receiver<Interval>) -> io::Result<()> {
    let mut log = HistogramLog::begin(out, "latency in nanoseconds by command")?;
    for Interval { command, start, length, latency } in intervals {
        log.line(command.name(), start, length, &latency)?;
        log.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_name_stands_before_the_extension() {
        assert_eq!(named(Path::new("a.b/run.hgrm"), "read"), Path::new("a.b/run.read.hgrm"));
        assert_eq!(named(Path::new("run"), "flush"), Path::new("run.flush"));
    }
}
