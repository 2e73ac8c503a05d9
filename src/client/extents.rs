//! What a server says of a range's blocks, repaired where servers of old get it wrong. No I/O.
//!
//! * More extents than fit, or a last one too long: cut at the end of the range.
//! * An extent that ends between blocks (but not at the end of the export): cut at the block before, and the answer ends
//!   there. If nothing is left, the block counts as the worst that was said of it: data for `base:allocation`, every bit
//!   that any of its parts has for others.

use super::bounds::Bounds;

/// The context whose bits say less the more they are set.
pub(super) const ALLOCATION: &str = "base:allocation";

/// A stretch of blocks with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes; never 0.
    pub length: u64,
    /// Status, as the context defines it; for `base:allocation` see [`AllocationFlags`](crate::proto::AllocationFlags).
    pub status: u64,
}

/// What one meta context says of a range, from its first byte on; it may end before the range does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The context's full name.
    pub context: String,
    /// In order, one beginning where the one before ends; never none.
    pub extents: Vec<Extent>,
}

/// Extents as they were told, from `offset` on, cut and repaired to end at or before `end`.
pub(super) fn repaired(
    bounds: &Bounds,
    context: &str,
    offset: u64,
    end: u64,
    one: bool,
    told: &[(u64, u64)],
) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = offset;
    for (index, &(length, status)) in told.iter().enumerate() {
        if at >= end || (one && !extents.is_empty()) {
            break;
        }
        let until = at.saturating_add(length).min(end);
        let is_odd = !bounds.is_aligned(0, until);
        let whole = if is_odd { until & !(bounds.minimum - 1) } else { until };
        if whole > at {
            extents.push(Extent { offset: at, length: whole - at, status });
        } else if extents.is_empty() {
            let block_end = bounds.outward(at..at + 1).end.min(end);
            let status = worst(context, at, block_end, &told[index..]);
            extents.push(Extent { offset: at, length: block_end - at, status });
        }
        if is_odd {
            break;
        }
        at = whole;
    }
    extents
}

fn worst(context: &str, mut at: u64, block_end: u64, told: &[(u64, u64)]) -> u64 {
    if context == ALLOCATION {
        return 0;
    }
    let mut bits = 0;
    for &(length, status) in told {
        if at >= block_end {
            break;
        }
        bits |= status;
        at = at.saturating_add(length);
    }
    bits
}

/// Appends, joining neighbours of one status.
pub(super) fn append(extents: &mut Vec<Extent>, more: impl IntoIterator<Item = Extent>) {
    for extent in more {
        match extents.last_mut() {
            Some(last) if last.status == extent.status && last.offset + last.length == extent.offset => {
                last.length += extent.length;
            }
            _ => extents.push(extent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { size: 10_000, minimum: 512, payload_max: 1 << 20, effect_max: 1 << 20, zeroes_max: 1 << 20 };

    fn told(one: bool, context: &str, extents: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
        repaired(&BOUNDS, context, 1024, 8192, one, extents)
            .into_iter()
            .map(|extent| (extent.offset, extent.length, extent.status))
            .collect()
    }

    #[test]
    fn too_much_is_cut_at_the_end_of_the_range() {
        assert_eq!(
            told(false, ALLOCATION, &[(512, 1), (1 << 40, 2), (5, 3)]),
            [(1024, 512, 1), (1536, 6656, 2)]
        );
        assert_eq!(told(false, ALLOCATION, &[(u64::MAX, 3)]), [(1024, 7168, 3)]);
        assert_eq!(told(true, ALLOCATION, &[(512, 1), (512, 0)]), [(1024, 512, 1)]);
    }

    #[test]
    fn an_end_between_blocks_ends_the_answer_at_the_block_before() {
        assert_eq!(told(false, ALLOCATION, &[(1000, 3), (24, 0)]), [(1024, 512, 3)]);
        assert_eq!(told(false, ALLOCATION, &[(512, 3), (100, 3), (412, 0)]), [(1024, 512, 3)]);
    }

    #[test]
    fn a_block_told_in_parts_counts_as_the_worst_of_them() {
        assert_eq!(told(false, ALLOCATION, &[(100, 3), (412, 3)]), [(1024, 512, 0)]);
        assert_eq!(told(false, "qemu:dirty-bitmap:b", &[(100, 0), (412, 1), (512, 4)]), [(1024, 512, 1)]);
    }

    #[test]
    fn the_odd_end_of_the_export_is_no_fault() {
        let extents = repaired(&BOUNDS, ALLOCATION, 9728, 10_000, false, &[(272, 3)]);
        assert_eq!(extents, [Extent { offset: 9728, length: 272, status: 3 }]);
    }

    #[test]
    fn neighbours_of_one_status_are_joined() {
        let extent = |offset, length, status| Extent { offset, length, status };
        let mut extents = Vec::new();
        append(&mut extents, [extent(0, 5, 1), extent(5, 5, 1), extent(10, 1, 0), extent(12, 1, 0)]);
        assert_eq!(extents, [extent(0, 10, 1), extent(10, 1, 0), extent(12, 1, 0)]);
    }
}
