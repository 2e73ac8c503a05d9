//! HdrHistogram interval log, version 2 encoding: one line per export, command and interval.
//!
//! ```text
//!   #[StartTime: 1795261219.000 (seconds since epoch)]
//!   Tag=default.read,1.000,1.000,912383.000,HISTFAAAA...
//!       export.command  start,length,longest (ns), service times (ns), compressed
//! ```

use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError, Tag};

use super::{Snapshot, labels};

/// A log of histograms being written, a line for each tag and interval.
pub struct HistogramLog<W: Write> {
    out: W,
    serializer: V2DeflateSerializer,
}

impl<W: Write> HistogramLog<W> {
    /// Writes the head of the log, with a sentence about what is in it.
    pub fn begin(mut out: W, about: &str) -> io::Result<Self> {
        // HdrHistogram's readers look for this first line to know the syntax of the rest.
        writeln!(out, "#[Histogram log format version 1.3]")?;
        let mut serializer = V2DeflateSerializer::new();
        let now = SystemTime::now();
        IntervalLogWriterBuilder::new()
            .add_comment(&format!("[ringnbd: {about}]"))
            .with_start_time(now)
            .with_base_time(now)
            .begin_log_with(&mut out, &mut serializer)?;
        writeln!(
            out,
            "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\""
        )?;
        Ok(Self { out, serializer })
    }

    /// Writes what happened under `tag` (no comma, no space) from `start` on, for `length`.
    pub fn line(
        &mut self,
        tag: &str,
        start: Duration,
        length: Duration,
        histogram: &Histogram<u64>,
    ) -> io::Result<()> {
        let mut lines =
            IntervalLogWriterBuilder::new().begin_log_with(&mut self.out, &mut self.serializer)?;
        let tag = Tag::new(tag).ok_or(io::ErrorKind::InvalidInput)?;
        lines.write_histogram(histogram, start, length, Some(tag)).map_err(|error| match error {
            IntervalLogWriterError::IoError(error) => error,
            IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
        })
    }

    /// Writes a remark, which readers skip.
    pub fn comment(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "#{text}")
    }

    /// Hands what was written to the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The interval log of a server. Tags are `export.command`; see [`labels`] for the export's part.
pub struct IntervalLog<W: Write> {
    log: HistogramLog<W>,
    labels: Vec<String>,
    started: Instant,
    previous: Snapshot,
    previous_at: Duration,
}

impl<W: Write> IntervalLog<W> {
    /// Writes the head of the log. Intervals start now, from nothing.
    pub fn begin(out: W, export_names: &[String]) -> io::Result<Self> {
        Ok(Self {
            log: HistogramLog::begin(out, "service time in nanoseconds by export and command")?,
            labels: labels(export_names),
            started: Instant::now(),
            previous: Snapshot::default(),
            previous_at: Duration::ZERO,
        })
    }

    /// Writes what happened between the last call and `now`, and flushes it to the file.
    pub fn interval(&mut self, now: Snapshot) -> io::Result<()> {
        let at = self.started.elapsed();
        let length = at.saturating_sub(self.previous_at);
        let interval = now.since(&self.previous);
        for (export, kind, command) in interval.used().filter(|(.., command)| command.requests > 0) {
            let label = self.labels.get(export).map_or("?", String::as_str);
            let tag = format!("{label}.{}", kind.name());
            self.log.line(&tag, self.previous_at, length, &command.service)?;
        }
        self.log.flush()?;
        self.previous = now;
        self.previous_at = at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::super::{CommandKind, Sample, ShardMetrics};
    use super::*;

    #[test]
    fn each_interval_holds_only_its_own_requests() {
        let mut shard = ShardMetrics::new(1);
        let mut file = Vec::new();
        let mut log = IntervalLog::begin(&mut file, &["my disk".to_owned()]).expect("a Vec takes all");
        for requests in [3, 0, 2] {
            for _ in 0..requests {
                shard.begin(0, CommandKind::Read);
                shard.end(0, CommandKind::Read, &Sample { service_ns: 7_000, ..Sample::default() });
            }
            log.interval(shard.snapshot()).expect("a Vec takes all");
        }
        let text = String::from_utf8(file).expect("ASCII");
        let legend_free: String =
            text.lines().filter(|line| !line.starts_with('"')).map(|l| format!("{l}\n")).collect();
        let tags: Vec<_> = IntervalLogIterator::new(legend_free.as_bytes())
            .filter_map(|entry| match entry {
                Ok(LogEntry::Interval(interval)) => interval.tag().map(|tag| tag.as_str().to_owned()),
                _ => None,
            })
            .collect();
        assert_eq!(tags, ["my_disk.read", "my_disk.read"], "{text}");
    }
}
