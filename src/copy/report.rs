//! How far a copy is, and what it came to.

use std::cell::Cell;
use std::time::Duration;

use serde_json::json;

/// How far it is. All in bytes.
#[derive(Debug, Default)]
pub struct Progress {
    pub(super) size: Cell<Option<u64>>,
    pub(super) data: Cell<u64>,
    pub(super) zeroed: Cell<u64>,
    pub(super) skipped: Cell<u64>,
    pub(super) repeated: Cell<u64>,
    pub(super) is_verifying: Cell<bool>,
    pub(super) verified: Cell<u64>,
}

impl Progress {
    /// What there is to copy; `None` while a pipe has not ended.
    pub fn size(&self) -> Option<u64> {
        self.size.get()
    }

    /// What has been copied.
    pub fn copied(&self) -> u64 {
        self.data.get() + self.zeroed.get() + self.skipped.get()
    }

    /// What has been read again and found the same, once that has begun.
    pub fn verified(&self) -> Option<u64> {
        self.is_verifying.get().then(|| self.verified.get())
    }

    /// How much of all there is to do is done, verifying included, from 0 to 1; `None` while that is not known.
    #[allow(clippy::cast_precision_loss)] // a part for people
    pub fn part(&self, verifies: bool) -> Option<f64> {
        let size = self.size.get()?;
        if size == 0 {
            return Some(1.0);
        }
        let rounds = if verifies { 2.0 } else { 1.0 };
        Some((self.copied() + self.verified.get()) as f64 / (size as f64 * rounds))
    }
}

pub(super) fn add(count: &Cell<u64>, bytes: u64) {
    count.set(count.get() + bytes);
}

/// What it came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Where from.
    pub source: String,
    /// Where to.
    pub destination: String,
    /// Bytes of the source.
    pub bytes: u64,
    /// Of them, written as data.
    pub data_bytes: u64,
    /// Of them, made zero without data.
    pub zeroed_bytes: u64,
    /// Of them, zeroes where the destination had zeroes.
    pub skipped_bytes: u64,
    /// Of them, read again and compared.
    pub verified_bytes: Option<u64>,
    /// Copied once more: a server that came back might have lost them.
    pub repeated_bytes: u64,
    /// From the first attempt to connect to the last goodbye.
    pub elapsed: Duration,
}

impl Summary {
    /// For programs: one line.
    #[allow(clippy::cast_precision_loss)]
    pub fn json(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let mut members = json!({
            "source": self.source,
            "destination": self.destination,
            "bytes": self.bytes,
            "data_bytes": self.data_bytes,
            "zeroed_bytes": self.zeroed_bytes,
            "skipped_bytes": self.skipped_bytes,
            "repeated_bytes": self.repeated_bytes,
            "seconds": (seconds * 1e6).round() / 1e6,
            "bytes_per_second": (self.bytes as f64 / seconds.max(1e-9)).round(),
        });
        if let Some(verified) = self.verified_bytes {
            members["verified_bytes"] = verified.into();
        }
        format!("{members}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_is_one() {
        let progress = Progress::default();
        assert_eq!(progress.part(false), None);
        progress.size.set(Some(0));
        assert_eq!(progress.part(true), Some(1.0));
        progress.size.set(Some(100));
        add(&progress.data, 60);
        add(&progress.skipped, 40);
        assert_eq!((progress.part(false), progress.part(true)), (Some(1.0), Some(0.5)));
        add(&progress.verified, 100);
        assert_eq!(progress.part(true), Some(1.0));
    }
}
