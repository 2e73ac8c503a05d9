//! What a server leaves behind of its measurements: the interval log, the table, the percentile files.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::serve::Serve;
use crate::metrics::{IntervalLog, Snapshot, labels, table, write_hgrm};

/// Where measurements go. Files and directories are made at start, where the operator sees an error.
pub(super) struct Report {
    table_at_exit: bool,
    hgrm: Option<PathBuf>,
    log_file: Option<(PathBuf, File)>,
    log: Option<IntervalLog<BufWriter<File>>>,
    interval: Duration,
    due: Option<Instant>,
    export_names: Vec<String>,
    started: Instant,
}

impl Report {
    pub(super) fn open(serve: &Serve) -> anyhow::Result<Self> {
        if let Some(dir) = &serve.hgrm {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot make {} for --hgrm", dir.display()))?;
        }
        let log_file = serve.hdr_log.as_ref().map(|path| {
            let file = File::create(path);
            file.with_context(|| format!("cannot write {} for --hdr-log", path.display()))
                .map(|file| (path.clone(), file))
        });
        Ok(Self {
            table_at_exit: serve.wants_table(),
            hgrm: serve.hgrm.clone(),
            log_file: log_file.transpose()?,
            log: None,
            interval: serve.hdr_interval,
            due: None,
            export_names: Vec::new(),
            started: Instant::now(),
        })
    }

    /// The server runs from now on: time counts from here.
    pub(super) fn begin(&mut self, export_names: Vec<String>) -> anyhow::Result<()> {
        self.started = Instant::now();
        if let Some((path, file)) = self.log_file.take() {
            let log = IntervalLog::begin(BufWriter::new(file), &export_names);
            self.log = Some(log.with_context(|| format!("cannot write {}", path.display()))?);
            self.due = Some(self.started + self.interval);
        }
        self.export_names = export_names;
        Ok(())
    }

    /// When the next interval of the log ends.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Ends an interval of the log. A log that cannot be written is given up, once and with a word:
    /// serving goes on.
    pub(super) fn interval(&mut self, snapshot: Snapshot) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = log.interval(snapshot) {
            tracing::error!("the interval log is given up: {error}");
            self.log = None;
            self.due = None;
            return;
        }
        // Intervals keep their rhythm; those that a stopped process slept through are one long interval.
        let now = Instant::now();
        let next = self.due.map_or(now, |due| due + self.interval);
        self.due = Some(if next > now { next } else { now + self.interval });
    }

    /// Prints the latency table since the start on standard error.
    pub(super) fn print_table(&self, snapshot: &Snapshot) {
        let table = table(snapshot, &self.export_names, self.started.elapsed());
        let _ = io::stderr().write_all(table.as_bytes());
    }

    /// The server has ended: writes what was asked for.
    pub(super) fn end(mut self, last: Snapshot) -> anyhow::Result<()> {
        if self.table_at_exit {
            self.print_table(&last);
        }
        if let Some(dir) = &self.hgrm {
            write_percentiles(dir, &last, &self.export_names)
                .with_context(|| format!("cannot write percentiles into {}", dir.display()))?;
        }
        self.interval(last);
        Ok(())
    }
}

fn write_percentiles(dir: &Path, snapshot: &Snapshot, export_names: &[String]) -> io::Result<()> {
    let labels = labels(export_names);
    for (export, kind, command) in snapshot.used().filter(|(.., command)| command.requests > 0) {
        let label = labels.get(export).map_or("?", String::as_str);
        let file = File::create(dir.join(format!("{label}.{}.hgrm", kind.name())))?;
        let mut out = BufWriter::new(file);
        write_hgrm(&command.service, &mut out)?;
        out.flush()?;
    }
    Ok(())
}
