//! Which parts of an export are surely data, so that a read there need not ask for holes.
//!
//! One bit per granule: set = wholly data when last looked at. Only data is remembered, because only that error is harmless:
//! a stale bit makes a hole go over the wire as zeroes, whereas a remembered hole that somebody filled would lose data.
//! Our own trims and zeroes clear bits before they begin and again when they are done, so that a query that ran meanwhile
//! leaves no lasting trace.

use std::sync::atomic::{AtomicU64, Ordering};

/// Memory bound of one map: 4 MiB of bits, which is one bit per 64 KiB up to 2 TiB and coarser beyond.
const BITS_MAX: u64 = 4 * 1024 * 1024 * 8;
/// Finest granule, in bytes. Smaller ones answer no more reads: only large reads ask.
const GRANULE_MIN: u64 = 64 * 1024;

/// The map; offsets are bytes from the start of the export.
#[derive(Debug)]
pub struct KnownData {
    shift: u32,
    size: u64,
    words: Box<[AtomicU64]>,
}

impl KnownData {
    /// A map that knows nothing yet.
    pub fn new(size: u64) -> Self {
        let granule = size.div_ceil(BITS_MAX).max(GRANULE_MIN).next_power_of_two();
        let shift = granule.trailing_zeros();
        let words = size.div_ceil(granule).div_ceil(64);
        let words = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { shift, size, words }
    }

    /// Bytes per bit.
    pub fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// Whether every byte of the range was data when last looked at.
    #[inline]
    pub fn covers(&self, offset: u64, length: u64) -> bool {
        let Some(last) = length.checked_sub(1).and_then(|less| offset.checked_add(less)) else {
            return false;
        };
        if last >= self.size {
            return false;
        }
        self.masks(offset >> self.shift, (last >> self.shift) + 1)
            .all(|(word, mask)| word.is_some_and(|word| word.load(Ordering::Relaxed) & mask == mask))
    }

    /// The range holds data: remembers the granules that lie wholly in it.
    pub fn insert(&self, offset: u64, length: u64) {
        let end = offset.saturating_add(length);
        let first = offset.div_ceil(self.granule());
        // The last granule may be cut short by the end of the export.
        let last = if end >= self.size { end.div_ceil(self.granule()) } else { end >> self.shift };
        for (word, mask) in self.masks(first, last) {
            // Read first: writes that say nothing new must not take the cache line from other shards.
            if let Some(word) = word.filter(|word| word.load(Ordering::Relaxed) & mask != mask) {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// The range may have become a hole: forgets every granule that it touches.
    pub fn remove(&self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).div_ceil(self.granule());
        for (word, mask) in self.masks(offset >> self.shift, end) {
            if let Some(word) = word.filter(|word| word.load(Ordering::Relaxed) & mask != 0) {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }

    /// The words that hold granules `first..end`, each with those granules' bits; `None` past the end of the map.
    fn masks(&self, first: u64, end: u64) -> impl Iterator<Item = (Option<&AtomicU64>, u64)> {
        let words = if first < end { first / 64..end.div_ceil(64) } else { 0..0 };
        let words = words.start..words.end.min(self.words.len() as u64 + 1);
        words.map(move |index| {
            let low = first.saturating_sub(index * 64).min(63);
            let high = (end - index * 64).min(64);
            let mask = (u64::MAX << low) & (u64::MAX >> (64 - high));
            (usize::try_from(index).ok().and_then(|index| self.words.get(index)), mask)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = GRANULE_MIN;

    #[test]
    fn only_whole_granules_are_remembered() {
        let known = KnownData::new(200 * G);
        known.insert(1, 3 * G - 1);
        assert!(!known.covers(0, 1));
        assert!(known.covers(G, 2 * G));
        assert!(known.covers(G + 5, 7));
        assert!(!known.covers(G, 2 * G + 1));
    }

    #[test]
    fn forgetting_touches_every_granule_of_the_range() {
        let known = KnownData::new(200 * G);
        known.insert(0, 200 * G);
        assert!(known.covers(0, 200 * G));
        known.remove(70 * G - 1, 2);
        assert!(known.covers(0, 69 * G));
        assert!(!known.covers(69 * G, 1));
        assert!(!known.covers(70 * G, 1));
        assert!(known.covers(71 * G, 129 * G));
    }

    #[test]
    fn the_short_last_granule_counts_when_the_range_reaches_the_end() {
        let known = KnownData::new(2 * G + 10);
        known.insert(2 * G, 10);
        assert!(known.covers(2 * G, 10));
        known.insert(0, 2 * G + 9);
        assert!(known.covers(0, 2 * G + 10));
    }

    #[test]
    fn nothing_outside_the_map_is_known_or_panics() {
        let known = KnownData::new(G);
        known.insert(0, u64::MAX);
        assert!(known.covers(0, G));
        assert!(!known.covers(u64::MAX, 2));
        assert!(!known.covers(64 * G, 1));
        assert!(!known.covers(0, 65 * G));
        assert!(!known.covers(0, 0));
        known.remove(u64::MAX - 1, u64::MAX);
        known.insert(u64::MAX, 1);
        assert!(known.covers(0, G));
    }

    #[test]
    fn the_largest_export_fits_the_memory_bound() {
        let known = KnownData::new(i64::MAX as u64);
        assert!(known.words.len() as u64 * 64 <= BITS_MAX);
        known.insert(0, i64::MAX as u64);
        assert!(known.covers(0, i64::MAX as u64));
    }
}
