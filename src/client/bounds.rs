//! Which ranges a server takes, and what becomes of the others. No I/O.

use std::ops::Range;

use super::error::Error;
use crate::proto::{Command, Dialect, Link};
use crate::rt;

/// Longest TRIM, WRITE_ZEROES, CACHE or BLOCK_STATUS with compact headers: servers of old count in signed 32 bits.
const COMPACT_EFFECT_MAX: u64 = 1 << 30;
/// What requests are made of where a server says nothing of block sizes, for the sake of servers that never heard of them
/// ("Size constraints" asks that of a client that wants to get on with all).
pub(super) const SECTOR: u64 = 512;

/// Size and block sizes of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) size: u64,
    /// A power of two.
    pub(super) minimum: u64,
    /// Bytes of one READ or WRITE, a multiple of `minimum`.
    pub(super) payload_max: u64,
    /// Bytes of one request without a payload, a multiple of `minimum`.
    pub(super) effect_max: u64,
    /// The same for WRITE_ZEROES: with compact headers, servers of old hold it to the maximum payload.
    pub(super) zeroes_max: u64,
}

impl Bounds {
    pub(super) fn of(link: &Link) -> Self {
        let block = link.block.unwrap_or_default();
        // A size between sectors, or block status, says that the server counts in bytes.
        let counts_bytes = !link.size.is_multiple_of(SECTOR) || !link.contexts.is_empty();
        let minimum = match link.block {
            Some(block) => u64::from(block.minimum.max(1)),
            None if counts_bytes => 1,
            None => SECTOR,
        };
        let buffer_max = rt::CAPACITY_MAX as u64;
        let payload_max = (u64::from(block.maximum).min(buffer_max) / minimum).max(1) * minimum;
        let extended = link.dialect == Dialect::Extended;
        let effect_max = if extended { 1 << 62 } else { COMPACT_EFFECT_MAX };
        let zeroes_max = if extended { effect_max } else { payload_max };
        Self { size: link.size, minimum, payload_max, effect_max, zeroes_max }
    }

    /// The end of the range.
    ///
    /// # Errors
    /// [`Error::PastEnd`].
    pub(super) fn end(&self, command: Command, offset: u64, length: u64) -> Result<u64, Error> {
        let past = Error::PastEnd { command, offset, length, size: self.size };
        offset.checked_add(length).filter(|end| *end <= self.size).ok_or(past)
    }

    /// Whether both ends lie between blocks. The end of the export does, whatever its size.
    pub(super) const fn is_aligned(&self, offset: u64, end: u64) -> bool {
        offset & (self.minimum - 1) == 0 && (end & (self.minimum - 1) == 0 || end == self.size)
    }

    /// The whole blocks that hold the range.
    pub(super) fn outward(&self, range: Range<u64>) -> Range<u64> {
        let mask = self.minimum - 1;
        let end = range.end.checked_add(mask).map_or(self.size, |end| end & !mask);
        range.start & !mask..end.min(self.size)
    }

    /// The whole blocks within the range; empty, at a place within it, if there is none.
    pub(super) fn inward(&self, range: Range<u64>) -> Range<u64> {
        let mask = self.minimum - 1;
        let end = if range.end == self.size { range.end } else { range.end & !mask };
        let start = range.start.checked_add(mask).map_or(range.end, |start| start & !mask).min(range.end);
        start..end.max(start)
    }
}

/// The range in pieces of `max` bytes; the last may be shorter.
pub(super) fn pieces(range: Range<u64>, max: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let piece = at..at.saturating_add(max).min(range.end);
            at = piece.end;
            piece
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{BlockSizes, TransmissionFlags};

    fn link(size: u64, dialect: Dialect, block: Option<BlockSizes>) -> Link {
        let (flags, contexts) = (TransmissionFlags::NONE, Vec::new());
        Link { tls: false, dialect, size, flags, block, name: None, description: None, contexts }
    }

    fn bounds(size: u64, minimum: u32, maximum: u32, dialect: Dialect) -> Bounds {
        Bounds::of(&link(size, dialect, Some(BlockSizes { minimum, preferred: 4096, maximum })))
    }

    #[test]
    fn a_server_that_says_nothing_is_asked_in_sectors_unless_it_counts_in_bytes() {
        let silent = link(1 << 20, Dialect::Structured, None);
        let told = Link { contexts: vec![(0, "base:allocation".to_owned())], ..silent.clone() };
        let odd = Link { size: 1000, ..silent.clone() };
        let minimum = |link: &Link| Bounds::of(link).minimum;
        assert_eq!([minimum(&silent), minimum(&told), minimum(&odd)], [512, 1, 1]);
        assert_eq!((Bounds::of(&silent).payload_max, Bounds::of(&silent).zeroes_max), (32 << 20, 32 << 20));
    }

    #[test]
    fn odd_maxima_are_cut_to_whole_blocks_and_never_to_nothing() {
        assert_eq!(bounds(1, 512, 1000, Dialect::Simple).payload_max, 512);
        assert_eq!(bounds(1, 512, 512, Dialect::Simple).payload_max, 512);
        assert_eq!(bounds(1, 1, u32::MAX, Dialect::Simple).payload_max, 64 << 20);
        assert_eq!(bounds(1, 1, 1 << 25, Dialect::Simple).effect_max, 1 << 30);
        assert!(bounds(1, 1, 1 << 25, Dialect::Extended).effect_max > 1 << 40);
    }

    proptest! {
        #[test]
        fn widened_and_narrowed_ranges_are_whole_blocks_in_the_right_place(
            size in 1..u64::MAX, shift in 0..=16u32, from in 0..u64::MAX, length in 0..1u64 << 40,
        ) {
            let bounds = bounds(size, 1 << shift, 1 << 25, Dialect::Simple);
            let from = from % size;
            let end = from.saturating_add(length).min(size);
            let (out, inside) = (bounds.outward(from..end), bounds.inward(from..end));
            prop_assert!(bounds.is_aligned(out.start, out.end), "{out:?}");
            prop_assert!(out.start <= from && out.end >= end && out.end <= size);
            prop_assert!(inside.is_empty() || bounds.is_aligned(inside.start, inside.end), "{inside:?}");
            prop_assert!(inside.start >= from && inside.end <= end.max(inside.start));
            prop_assert!(from - out.start < bounds.minimum && out.end - end < bounds.minimum);
        }

        #[test]
        fn pieces_follow_each_other_and_end_where_the_range_ends(
            start in 0..1u64 << 40, length in 0..1u64 << 20, max in 4096..1u64 << 20,
        ) {
            let mut at = start;
            for piece in pieces(start..start + length, max) {
                prop_assert_eq!(piece.start, at);
                prop_assert!(!piece.is_empty() && piece.end - piece.start <= max);
                at = piece.end;
            }
            prop_assert_eq!(at, start + length);
        }
    }
}
