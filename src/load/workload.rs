//! Which request comes next, in fio's words.

use crate::proto::Command;

/// fio's `rw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Random, mixed by `rwmixread`.
    RandRw,
}

impl Pattern {
    /// Whether it writes at all.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite | Self::RandRw)
    }

    const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Order and direction.
    pub pattern: Pattern,
    /// Bytes of each request.
    pub bs: u32,
    /// Percentage of reads for [`Pattern::RandRw`].
    pub rwmixread: u32,
    /// Seed; each connection draws its own sequence from it.
    pub seed: u64,
}

/// The requests of one connection.
pub(super) struct Sequence {
    workload: Workload,
    blocks: u64,
    next: u64,
    state: u64,
}

impl Sequence {
    /// Over an export of `size` bytes, at least one request's. Sequential connections start spread over it.
    pub(super) fn new(workload: Workload, size: u64, connection: u32, connections: u32) -> Self {
        let blocks = size / u64::from(workload.bs);
        let next = blocks / u64::from(connections.max(1)) * u64::from(connection);
        let state = workload.seed ^ (u64::from(connection) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { workload, blocks, next, state }
    }

    /// Command and offset.
    pub(super) fn draw(&mut self) -> (Command, u64) {
        let block = if self.workload.pattern.is_random() {
            let draw = self.random();
            u64::try_from((u128::from(draw) * u128::from(self.blocks)) >> 64).unwrap_or(0)
        } else {
            let block = self.next;
            self.next = (self.next + 1) % self.blocks;
            block
        };
        let reads = match self.workload.pattern {
            Pattern::Read | Pattern::RandRead => true,
            Pattern::Write | Pattern::RandWrite => false,
            Pattern::RandRw => self.random() % 100 < u64::from(self.workload.rwmixread),
        };
        (if reads { Command::READ } else { Command::WRITE }, block * u64::from(self.workload.bs))
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(pattern: Pattern) -> Workload {
        Workload { pattern, bs: 4096, rwmixread: 70, seed: 1 }
    }

    #[test]
    fn random_offsets_are_aligned_inside_and_cover_the_export() {
        let size = 100 * 4096 + 17;
        let mut sequence = Sequence::new(workload(Pattern::RandRw), size, 0, 1);
        let drawn: Vec<_> = (0..10_000).map(|_| sequence.draw()).collect();
        assert!(drawn.iter().all(|(_, offset)| offset % 4096 == 0 && offset + 4096 <= size));
        let blocks: std::collections::HashSet<_> = drawn.iter().map(|(_, offset)| offset).collect();
        assert_eq!(blocks.len(), 100);
        let reads = drawn.iter().filter(|(command, _)| *command == Command::READ).count();
        assert!((6500..7500).contains(&reads), "{reads}");
    }

    #[test]
    fn sequential_connections_start_apart_and_wrap() {
        let mut second = Sequence::new(workload(Pattern::Read), 4 * 4096, 1, 2);
        let offsets: Vec<_> = (0..3).map(|_| second.draw().1 / 4096).collect();
        assert_eq!(offsets, [2, 3, 0]);
    }
}
