//! Which request comes next on a connection. No clock, no socket: the same seed draws the same requests.

use std::ops::Range;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::distribution::{Places, scale};
use super::workload::{Pattern, Workload};
use crate::proto::Command;

/// A request to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Draw {
    /// READ, WRITE, TRIM or FLUSH.
    pub(super) command: Command,
    /// First byte; 0 for FLUSH.
    pub(super) offset: u64,
    /// Bytes; 0 for FLUSH.
    pub(super) length: u32,
}

/// The requests of one connection.
pub(super) struct Sequence {
    workload: Workload,
    window: Range<u64>,
    align: u64,
    places: Places,
    /// Where the next sequential read and the next sequential request of another kind start, from the window's start.
    positions: [u64; 2],
    /// Writes since the last flush.
    unflushed: u32,
    random: SplitMix64,
}

impl Sequence {
    /// Over `window`, which holds the largest request. Sequential connections start spread over it.
    pub(super) fn new(workload: Workload, window: Range<u64>, connection: u32, connections: u32) -> Self {
        let align = u64::from(workload.sizes.smallest());
        let blocks = (window.end - window.start) / align;
        let start = blocks / u64::from(connections.max(1)) * u64::from(connection) * align;
        let salt = (u64::from(connection) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            places: Places::new(workload.distribution, blocks, workload.seed),
            random: SplitMix64::seed_from_u64(workload.seed ^ salt),
            positions: [start; 2],
            unflushed: 0,
            workload,
            window,
            align,
        }
    }

    /// The next request.
    pub(super) fn draw(&mut self) -> Draw {
        if self.workload.fsync > 0 && self.unflushed >= self.workload.fsync {
            self.unflushed = 0;
            return Draw { command: Command::FLUSH, offset: 0, length: 0 };
        }
        let command = self.command();
        if command == Command::WRITE {
            self.unflushed += 1;
        }
        let percentile = if self.workload.sizes.is_one() { 0 } else { self.percentile() };
        let length = self.workload.sizes.pick(percentile);
        let offset = self.window.start + self.place(command, length.into());
        Draw { command, offset, length }
    }

    fn command(&mut self) -> Command {
        match self.workload.pattern {
            Pattern::Read | Pattern::RandRead => Command::READ,
            Pattern::Write | Pattern::RandWrite => Command::WRITE,
            Pattern::Trim | Pattern::RandTrim => Command::TRIM,
            Pattern::Rw | Pattern::RandRw => {
                if self.percentile() < self.workload.rwmixread {
                    Command::READ
                } else {
                    Command::WRITE
                }
            }
        }
    }

    /// Bytes from the window's start.
    fn place(&mut self, command: Command, length: u64) -> u64 {
        let span = self.window.end - self.window.start;
        if self.workload.pattern.is_random() {
            let places = (span - length) / self.align + 1;
            return self.places.draw(places, &mut self.random) * self.align;
        }
        let position = &mut self.positions[usize::from(command != Command::READ)];
        let start = if span - *position < length { 0 } else { *position };
        *position = start + length;
        start
    }

    fn percentile(&mut self) -> u32 {
        u32::try_from(scale(self.random.next_u64(), 100)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::sizes::Sizes;
    use super::super::workload::Distribution;
    use super::*;

    fn workload(pattern: Pattern) -> Workload {
        Workload {
            pattern,
            sizes: Sizes::one(4096),
            rwmixread: 70,
            offset: 0,
            size: None,
            distribution: Distribution::Uniform,
            fsync: 0,
            fua: false,
            verify: false,
            seed: 1,
        }
    }

    #[test]
    fn random_offsets_are_aligned_inside_and_cover_the_window() {
        let window = 512..512 + 100 * 4096 + 17;
        let mut sequence = Sequence::new(workload(Pattern::RandRw), window.clone(), 0, 1);
        let drawn: Vec<_> = (0..10_000).map(|_| sequence.draw()).collect();
        let fits = |draw: &Draw| (draw.offset - 512).is_multiple_of(4096) && draw.offset + 4096 <= window.end;
        assert!(drawn.iter().all(fits));
        assert_eq!(drawn.iter().map(|draw| draw.offset).collect::<HashSet<_>>().len(), 100);
        let reads = drawn.iter().filter(|draw| draw.command == Command::READ).count();
        assert!((6500..7500).contains(&reads), "{reads}");
    }

    #[test]
    fn sequential_connections_start_apart_and_wrap() {
        let mut second = Sequence::new(workload(Pattern::Trim), 0..4 * 4096, 1, 2);
        let drawn: Vec<_> = (0..3).map(|_| second.draw()).collect();
        assert!(drawn.iter().all(|draw| draw.command == Command::TRIM));
        assert_eq!(drawn.iter().map(|draw| draw.offset / 4096).collect::<Vec<_>>(), [2, 3, 0]);
    }

    #[test]
    fn mixed_sequential_reads_and_writes_each_go_on_where_they_were() {
        let mut sequence = Sequence::new(workload(Pattern::Rw), 0..1 << 30, 0, 1);
        let mut next = [0, 0];
        for _ in 0..1000 {
            let draw = sequence.draw();
            let next = &mut next[usize::from(draw.command == Command::WRITE)];
            assert_eq!(draw.offset, *next);
            *next += 4096;
        }
        assert!(next[0] > next[1] && next[1] > 0, "{next:?}");
    }

    #[test]
    fn split_sizes_keep_to_the_smallest_ones_grid() {
        let sizes = Sizes::split(&[(4096, Some(50)), (65536, Some(50))]).unwrap();
        for pattern in [Pattern::RandRead, Pattern::Read] {
            let workload = Workload { sizes: sizes.clone(), ..workload(pattern) };
            let window = 0..17 * 4096;
            let mut sequence = Sequence::new(workload, window.clone(), 0, 1);
            let drawn: Vec<_> = (0..1000).map(|_| sequence.draw()).collect();
            let fits = |draw: &Draw| {
                draw.offset.is_multiple_of(4096) && draw.offset + u64::from(draw.length) <= window.end
            };
            assert!(drawn.iter().all(fits), "{pattern:?}");
            let large = drawn.iter().filter(|draw| draw.length == 65536).count();
            assert!((400..600).contains(&large), "{pattern:?}: {large}");
        }
    }

    #[test]
    fn a_flush_follows_so_many_writes_and_reads_do_not_count() {
        let workload = Workload { fsync: 3, ..workload(Pattern::RandRw) };
        let mut sequence = Sequence::new(workload, 0..1 << 30, 0, 1);
        let mut writes = 0;
        for _ in 0..1000 {
            match sequence.draw().command {
                Command::WRITE => writes += 1,
                Command::FLUSH => {
                    assert_eq!(writes, 3);
                    writes = 0;
                }
                _ => {}
            }
            assert!(writes <= 3);
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_and_connections_differ() {
        let drawn = |connection| {
            let mut sequence = Sequence::new(workload(Pattern::RandRw), 0..1 << 40, connection, 2);
            (0..100).map(|_| sequence.draw()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(0), drawn(0));
        assert_ne!(drawn(0), drawn(1));
    }
}
