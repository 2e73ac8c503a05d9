//! What a server has answered and may still lose: everything since its last flush. No I/O.
//!
//! Each range is kept with the number of reconnects that there had been before it was written. Where there are more of them
//! now, the server may have restarted without it: the range is in doubt.
//!
//! Steps come nearly in order and join, so there are about as many ranges as requests in flight. Those of a pipe, which
//! cannot be read again, stay apart, each with a digest to know it by.

use std::collections::BTreeMap;
use std::ops::Range;

/// A range that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) range: Range<u64>,
    /// Before it was written.
    pub(super) reconnects: u64,
    /// CRC-32 of the bytes, if there is no other way to know them.
    pub(super) digest: Option<u32>,
}

/// Ranges that were written, none overlapping another.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    by_start: BTreeMap<u64, Entry>,
}

impl Ledger {
    pub(super) fn enter(&mut self, mut entry: Entry) {
        let joins = |one: &Entry, two: &Entry| {
            one.range.end == two.range.start
                && one.reconnects == two.reconnects
                && one.digest.or(two.digest).is_none()
        };
        if let Some((_, before)) = self.by_start.range(..entry.range.start).next_back()
            && joins(before, &entry)
        {
            entry.range.start = before.range.start; // which it replaces below
        }
        if let Some(after) = self.by_start.get(&entry.range.end)
            && joins(&entry, after)
        {
            let after = after.range.clone();
            self.by_start.remove(&after.start);
            entry.range.end = after.end;
        }
        self.by_start.insert(entry.range.start, entry);
    }

    /// What may be lost after so many reconnects, in order.
    pub(super) fn take_doubtful(&mut self, reconnects: u64) -> Vec<Entry> {
        let all = std::mem::take(&mut self.by_start).into_values();
        let (doubtful, sure): (Vec<_>, Vec<_>) = all.partition(|entry| entry.reconnects < reconnects);
        sure.into_iter().for_each(|entry| self.enter(entry));
        doubtful
    }

    /// Takes over what is in another.
    pub(super) fn absorb(&mut self, other: Self) {
        other.by_start.into_values().for_each(|entry| self.enter(entry));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(range: Range<u64>, reconnects: u64, digest: Option<u32>) -> Entry {
        Entry { range, reconnects, digest }
    }

    #[test]
    fn neighbours_join_unless_they_differ_in_reconnects_or_have_a_digest() {
        let mut ledger = Ledger::default();
        for (range, reconnects, digest) in [
            (0..10, 0, None),
            (20..30, 0, None),
            (10..20, 0, None),
            (30..40, 1, None),
            (40..50, 0, Some(1)),
            (50..60, 0, Some(1)),
        ] {
            ledger.enter(entry(range, reconnects, digest));
        }
        assert_eq!(ledger.by_start.len(), 4);
        let apart = [entry(0..30, 0, None), entry(40..50, 0, Some(1)), entry(50..60, 0, Some(1))];
        assert_eq!(ledger.take_doubtful(1), apart);
        assert_eq!(ledger.take_doubtful(1), []);
        assert_eq!(ledger.take_doubtful(2), [entry(30..40, 1, None)]);
    }

    proptest! {
        #[test]
        fn every_byte_is_kept_once_with_the_reconnects_before_it(
            order in Just((0..40usize).collect::<Vec<_>>()).prop_shuffle(),
            reconnects in prop::collection::vec(0..3u64, 40),
            sealed in 0..40usize,
        ) {
            let mut ledger = Ledger::default();
            for (count, number) in order.iter().enumerate() {
                if count == sealed {
                    let before = std::mem::take(&mut ledger);
                    ledger.absorb(before);
                }
                let start = *number as u64 * 4;
                ledger.enter(entry(start..start + 4, reconnects[*number], None));
            }
            let mut found = BTreeMap::new();
            for now in 1..=3 {
                for entry in ledger.take_doubtful(now) {
                    for at in entry.range {
                        prop_assert_eq!(found.insert(at, entry.reconnects), None);
                        prop_assert_eq!(entry.reconnects, now - 1);
                    }
                }
            }
            let found: Vec<_> = found.into_values().collect();
            let wanted: Vec<_> = reconnects.iter().flat_map(|count| [*count; 4]).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
