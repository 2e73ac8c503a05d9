//! All histograms so far as one HdrHistogram interval log: what `--stats-socket` says, and what its readers make of it.
//!
//! ```text
//!   #[Export disk: "disk"]                       a line for each export: its label, and its name in quotes
//!   Tag=disk.read.service,0.000,12.345,...       a line for each export, command and time, from the server's start
//!   Tag=disk.read.backend,0.000,12.345,...
//!   Tag=disk.read.queued,0.000,12.345,...
//! ```
//!
//! Two such logs of one server, subtracted, are what happened in between.

use std::io::{self, Write};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use super::{CommandKind, HistogramLog, Snapshot, histogram, labels};

/// The three durations of one command's requests, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Times {
    /// Parsed to reply handed to the socket.
    pub service: Histogram<u64>,
    /// In the backend.
    pub backend: Histogram<u64>,
    /// Waiting for a place in the window.
    pub queued: Histogram<u64>,
}

/// The commands of one export, as far as they were used.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    commands: Vec<(CommandKind, Times)>,
}

/// Writes all of a snapshot that `length` is the time of.
pub fn write_totals(
    mut out: impl Write,
    snapshot: &Snapshot,
    export_names: &[String],
    length: Duration,
) -> io::Result<()> {
    let labels = labels(export_names);
    let mut log = HistogramLog::begin(&mut out, "times in nanoseconds by export, command and time")?;
    for (label, name) in labels.iter().zip(export_names) {
        log.comment(&export_line(label, name))?;
    }
    for (export, kind, command) in snapshot.used().filter(|(.., command)| command.requests > 0) {
        let label = labels.get(export).map_or("?", String::as_str);
        for (time, histogram) in
            [("service", &command.service), ("backend", &command.backend), ("queued", &command.queued)]
        {
            let tag = format!("{label}.{}.{time}", kind.name());
            log.line(&tag, Duration::ZERO, length, histogram)?;
        }
    }
    log.flush()
}

/// What tells an export's label; `{:?}` keeps a name on one line, whatever is in it.
fn export_line(label: &str, name: &str) -> String {
    format!("[Export {label}: {name:?}]")
}

impl Totals {
    /// Reads what [`write_totals`] wrote of one export; `None` if it has no such export.
    ///
    /// # Errors
    /// `InvalidData` when this is no such log.
    pub fn read(text: &str, export: &str) -> io::Result<Option<Self>> {
        let label_of = |line: &str| {
            let label = line.strip_prefix("#[Export ")?.split(": ").next()?;
            (line.strip_prefix('#') == Some(&export_line(label, export))).then(|| label.to_owned())
        };
        let Some(label) = text.lines().find_map(label_of) else {
            return Ok(None);
        };
        let mut totals = Self::default();
        // The legend is not in the crate's grammar.
        let lines: String = text.split_inclusive('\n').filter(|line| !line.starts_with(['"', '#'])).collect();
        for entry in IntervalLogIterator::new(lines.as_bytes()) {
            let Ok(LogEntry::Interval(interval)) = entry else {
                return Err(invalid("is not a log of histograms"));
            };
            let tag = interval.tag();
            let mut parts = tag.as_ref().map_or("", |tag| tag.as_str()).rsplitn(3, '.');
            let (time, command, of) = (parts.next(), parts.next(), parts.next());
            if of != Some(&label) {
                continue;
            }
            let Some(kind) = CommandKind::ALL.iter().find(|kind| Some(kind.name()) == command) else {
                return Err(invalid(
                    "has a command that is not known here: use the same version on both sides",
                ));
            };
            *totals.entry(*kind).named(time.unwrap_or_default())? = decode(interval.encoded_histogram())?;
        }
        Ok(Some(totals))
    }

    /// What happened after `earlier`.
    ///
    /// # Errors
    /// `InvalidData` when `earlier` is not of the same server: it has seen what this has not.
    pub fn since(mut self, earlier: &Self) -> io::Result<Self> {
        for (kind, before) in &earlier.commands {
            let now = self.entry(*kind);
            for (now, before) in [
                (&mut now.service, &before.service),
                (&mut now.backend, &before.backend),
                (&mut now.queued, &before.queued),
            ] {
                now.subtract(before)
                    .map_err(|_| invalid("counts less than before: another server answered"))?;
            }
        }
        Ok(self)
    }

    /// The times of one command; `None` if it was never used.
    pub fn command(&self, kind: CommandKind) -> Option<&Times> {
        self.commands.iter().find(|(known, _)| *known == kind).map(|(_, times)| times)
    }

    fn entry(&mut self, kind: CommandKind) -> &mut Times {
        let index = self.commands.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
            let empty = Times { service: histogram(), backend: histogram(), queued: histogram() };
            self.commands.push((kind, empty));
            self.commands.len() - 1
        });
        &mut self.commands[index].1
    }
}

impl Times {
    fn named(&mut self, time: &str) -> io::Result<&mut Histogram<u64>> {
        match time {
            "service" => Ok(&mut self.service),
            "backend" => Ok(&mut self.backend),
            "queued" => Ok(&mut self.queued),
            _ => Err(invalid(
                "has a time of a kind that is not known here: use the same version on both sides",
            )),
        }
    }
}

fn decode(text: &str) -> io::Result<Histogram<u64>> {
    let bytes = STANDARD.decode(text).map_err(|_| invalid("has a histogram that is not base64"))?;
    let read = Deserializer::new().deserialize::<u64, _>(&mut bytes.as_slice());
    let read = read.map_err(|_| invalid("has a histogram that cannot be read"))?;
    // Into the one shape that all of ours have, so that they can be added and subtracted.
    let mut ours = histogram();
    ours.add(&read).map_err(|_| invalid("has a histogram of another range"))?;
    Ok(ours)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::super::{Sample, ShardMetrics};
    use super::*;

    fn record(shard: &mut ShardMetrics, export: usize, kind: CommandKind, service_ns: u64) {
        shard.begin(export, kind);
        let sample = Sample { service_ns, backend_ns: service_ns / 2, queued_ns: 3, bytes: 1, errno: 0 };
        shard.end(export, kind, &sample);
    }

    fn written(shard: &ShardMetrics, names: &[String]) -> String {
        let mut text = Vec::new();
        write_totals(&mut text, &shard.snapshot(), names, Duration::from_secs(1)).expect("a Vec takes all");
        String::from_utf8(text).expect("ASCII")
    }

    #[test]
    fn what_is_written_reads_back_export_by_export() {
        // Labels that collide, contain each other, or hold what the format uses.
        let names = ["", "default", "a", "a.read", "two\nlines: \"x\"]"].map(str::to_owned);
        let mut shard = ShardMetrics::new(names.len());
        for (export, _) in names.iter().enumerate() {
            for _ in 0..=export {
                record(&mut shard, export, CommandKind::Read, 1_000 << export);
            }
        }
        let text = written(&shard, &names);
        for (export, name) in names.iter().enumerate() {
            let totals = Totals::read(&text, name).expect("its own format").expect("it is there");
            let read = totals.command(CommandKind::Read).expect("was used");
            let counts = [&read.service, &read.backend, &read.queued].map(Histogram::len);
            assert_eq!(counts, [export as u64 + 1; 3], "{name:?}: {text}");
            assert!(read.service.equivalent(read.service.max(), 1_000 << export), "{name:?}: {text}");
            assert!(totals.command(CommandKind::Write).is_none());
        }
        assert!(Totals::read(&text, "b").expect("its own format").is_none());
    }

    #[test]
    fn the_difference_holds_what_came_between() {
        let names = [String::new()];
        let mut shard = ShardMetrics::new(1);
        record(&mut shard, 0, CommandKind::Read, 5_000);
        let read =
            |shard: &ShardMetrics| Totals::read(&written(shard, &names), "").expect("ours").expect("there");
        let earlier = read(&shard);
        record(&mut shard, 0, CommandKind::Read, 90_000);
        record(&mut shard, 0, CommandKind::Flush, 7_000);
        let between = read(&shard).since(&earlier).expect("the same server");
        let reads = between.command(CommandKind::Read).expect("was used");
        assert_eq!((reads.service.len(), reads.queued.len()), (1, 1));
        assert!(reads.service.equivalent(reads.service.min(), 90_000));
        assert_eq!(between.command(CommandKind::Flush).map(|flush| flush.backend.len()), Some(1));
        let later = read(&shard);
        earlier.since(&later).expect_err("time does not run backwards");
    }

    #[test]
    fn what_is_no_log_is_refused() {
        assert!(Totals::read("", "").expect("nothing is wrong").is_none());
        for line in [
            "nonsense",
            "Tag=default.read.service,0.000,1.000,1.000,%%%",
            "Tag=default.read.service,0.000,1.000,1.000,HIST",
        ] {
            Totals::read(&format!("#[Export default: \"\"]\n{line}\n"), "").expect_err(line);
        }
    }
}
