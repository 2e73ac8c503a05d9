//! What each block must hold, and which blocks are in use.

use std::ops::Range;

use super::explain::explain;
use super::stamp::{Author, HEAD, Stamp};

/// A block that is being written.
const WRITING: u8 = u8::MAX;
/// Reads of one block that may be in flight at once.
const READERS_MAX: u8 = WRITING - 1;
/// Shortest block: the stamp and some content to be checked.
pub(in crate::load) const BLOCK_MIN: u32 = 64;
const _: () = assert!(BLOCK_MIN as usize >= HEAD + 16);

/// The blocks of a run's window.
pub(in crate::load) struct Ledger {
    author: Author,
    start: u64,
    block: u32,
    /// How often each block was written in this run. Zeroed memory that nobody touched costs nothing.
    generations: Vec<u32>,
    in_use: Vec<u8>,
    /// Nothing is written: an earlier run wrote all blocks, any number of times.
    inherits: bool,
    checked: u64,
    /// Next block to be read back.
    cursor: usize,
}

impl Ledger {
    /// Of `window` in blocks of `block` bytes. With `inherits` every block is expected to bear the seed.
    pub(in crate::load) fn new(author: Author, window: Range<u64>, block: u32, inherits: bool) -> Self {
        let count = usize::try_from((window.end - window.start) / u64::from(block)).unwrap_or(0);
        Self {
            author,
            start: window.start,
            block,
            generations: vec![0; if inherits { 0 } else { count }],
            in_use: vec![0; if inherits { 0 } else { count }],
            inherits,
            checked: 0,
            cursor: 0,
        }
    }

    /// Blocks that were read and found right.
    pub(in crate::load) fn checked(&self) -> u64 {
        self.checked
    }

    fn blocks(&self, offset: u64, length: u32) -> Range<usize> {
        let first = usize::try_from((offset - self.start) / u64::from(self.block)).unwrap_or(usize::MAX);
        first..first + (length / self.block) as usize
    }

    /// Takes blocks to read them, unless one is being written.
    pub(in crate::load) fn begin_read(&mut self, offset: u64, length: u32) -> bool {
        if self.inherits {
            return true;
        }
        let blocks = self.blocks(offset, length);
        let users = &mut self.in_use[blocks];
        if users.iter().any(|users| *users >= READERS_MAX) {
            return false;
        }
        users.iter_mut().for_each(|users| *users += 1);
        true
    }

    /// Takes blocks to write them, unless one is in use.
    pub(in crate::load) fn begin_write(&mut self, offset: u64, length: u32) -> bool {
        let blocks = self.blocks(offset, length);
        if self.in_use[blocks.clone()].iter().any(|users| *users > 0) {
            return false;
        }
        self.in_use[blocks.clone()].fill(WRITING);
        self.generations[blocks].iter_mut().for_each(|generation| *generation += 1);
        true
    }

    /// A write was answered.
    pub(in crate::load) fn end_write(&mut self, offset: u64, length: u32) {
        let blocks = self.blocks(offset, length);
        self.in_use[blocks].fill(0);
    }

    /// Writes the content of blocks that [`Ledger::begin_write`] took.
    pub(in crate::load) fn fill(&self, offset: u64, payload: &mut [u8]) {
        let generations = self.blocks(offset, u32::try_from(payload.len()).unwrap_or(u32::MAX));
        let offsets = (offset..).step_by(self.block as usize);
        let blocks = payload.chunks_exact_mut(self.block as usize);
        for ((block, generation), offset) in blocks.zip(&self.generations[generations]).zip(offsets) {
            self.stamp(offset, *generation).write(block);
        }
    }

    /// A read was answered with `payload`.
    ///
    /// # Errors
    /// The first block that is not what it must be, explained.
    pub(in crate::load) fn end_read(&mut self, offset: u64, payload: &[u8]) -> Result<(), String> {
        let blocks = self.blocks(offset, u32::try_from(payload.len()).unwrap_or(u32::MAX));
        if !self.inherits {
            self.in_use[blocks.clone()].iter_mut().for_each(|users| *users -= 1);
        }
        let offsets = (offset..).step_by(self.block as usize);
        for ((content, index), offset) in payload.chunks_exact(self.block as usize).zip(blocks).zip(offsets) {
            let generation = self.generations.get(index).copied();
            if generation == Some(0) {
                continue;
            }
            let expected = self.stamp(offset, generation.unwrap_or(0));
            let found = Stamp::read(content);
            let right = match generation {
                Some(_) => found == Some(expected),
                None => found.is_some_and(|found| {
                    let same = Stamp { generation: found.generation, ..expected };
                    found.author.seed == self.author.seed && Stamp { author: self.author, ..found } == same
                }),
            };
            if !right {
                return Err(explain(content, &expected, self.inherits));
            }
            self.checked += 1;
        }
        Ok(())
    }

    /// The next blocks that this run wrote, at most `length_max` bytes of them in one piece, taken for reading. All writes
    /// must have been answered.
    pub(in crate::load) fn next_read_back(&mut self, length_max: u32) -> Option<(u64, u32)> {
        if self.is_read_back() {
            return None;
        }
        let first = self.cursor;
        let most = (length_max / self.block).max(1) as usize;
        let written = self.generations[first..].iter().take(most).take_while(|generation| **generation > 0);
        let count = written.count();
        self.cursor = first + count;
        let offset = self.start + first as u64 * u64::from(self.block);
        let length = self.block * u32::try_from(count).unwrap_or(1);
        let taken = self.begin_read(offset, length);
        debug_assert!(taken, "blocks are read back when no write is in flight");
        Some((offset, length))
    }

    /// Whether [`Ledger::next_read_back`] has been through all blocks.
    pub(in crate::load) fn is_read_back(&mut self) -> bool {
        let rest = &self.generations[self.cursor..];
        let unwritten = rest.iter().position(|generation| *generation > 0);
        self.cursor += unwritten.unwrap_or(rest.len());
        self.cursor == self.generations.len()
    }

    fn stamp(&self, offset: u64, generation: u32) -> Stamp {
        Stamp { author: self.author, offset, generation, length: self.block }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // small numbers
mod tests {
    use super::*;

    const AUTHOR: Author = Author { seed: 1, run: 1000 };
    const BLOCK: u32 = 512;

    /// A ledger with the storage that it knows about.
    struct Disk {
        ledger: Ledger,
        bytes: Vec<u8>,
    }

    impl Disk {
        fn new() -> Self {
            Self {
                ledger: Ledger::new(AUTHOR, 4096..4096 + 16 * 512, BLOCK, false),
                bytes: vec![0; 16 * 512],
            }
        }

        fn write(&mut self, offset: u64, length: u32) {
            assert!(self.ledger.begin_write(offset, length));
            let at = offset as usize - 4096;
            self.ledger.fill(offset, &mut self.bytes[at..at + length as usize]);
            self.ledger.end_write(offset, length);
        }

        fn read(&mut self, offset: u64, length: u32) -> Result<(), String> {
            assert!(self.ledger.begin_read(offset, length));
            let at = offset as usize - 4096;
            self.ledger.end_read(offset, &self.bytes[at..at + length as usize])
        }
    }

    #[test]
    fn what_was_written_reads_back_and_the_rest_is_not_looked_at() {
        let mut disk = Disk::new();
        disk.bytes.fill(0xaa);
        disk.write(4096 + 512, 1024);
        disk.write(4096 + 512, 512);
        disk.read(4096, 16 * 512).unwrap();
        assert_eq!(disk.ledger.checked(), 2);
    }

    #[test]
    fn read_back_visits_each_written_block_once() {
        let mut disk = Disk::new();
        for (block, count) in [(1, 3), (2, 1), (7, 1), (15, 1)] {
            disk.write(4096 + block * 512, count * 512);
        }
        let mut visits = Vec::new();
        while let Some((offset, length)) = disk.ledger.next_read_back(1024) {
            visits.push(((offset - 4096) / 512, length / 512));
        }
        assert_eq!(visits, [(1, 2), (3, 1), (7, 1), (15, 1)]);
        assert_eq!(disk.ledger.next_read_back(1024), None);
    }

    #[test]
    fn blocks_in_use_are_left_alone() {
        let mut ledger = Disk::new().ledger;
        assert!(ledger.begin_write(4096, 1024));
        assert!(!ledger.begin_read(4096 + 512, 512) && !ledger.begin_write(4096 + 512, 512));
        assert!(ledger.begin_read(4096 + 1024, 512) && ledger.begin_read(4096 + 1024, 512));
        assert!(!ledger.begin_write(4096 + 1024, 512));
        ledger.end_write(4096, 1024);
        assert!(ledger.begin_read(4096 + 512, 512));
    }

    #[test]
    fn a_lost_write_is_told_from_a_torn_one_and_from_zeroes() {
        let mut disk = Disk::new();
        disk.write(4096, 512);
        let old = disk.bytes[..512].to_vec();
        disk.write(4096, 512);
        let new = disk.bytes[..512].to_vec();
        disk.read(4096, 512).unwrap();
        disk.bytes[..512].copy_from_slice(&old);
        let lost = disk.read(4096, 512).unwrap_err();
        assert!(lost.contains("offset 4096") && lost.contains("older"), "{lost}");
        disk.bytes[..256].copy_from_slice(&new[..256]);
        let torn = disk.read(4096, 512).unwrap_err();
        assert!(torn.contains("torn"), "{torn}");
        disk.bytes[..512].fill(0);
        let zeroes = disk.read(4096, 512).unwrap_err();
        assert!(zeroes.contains("zeroes"), "{zeroes}");
    }

    #[test]
    fn a_run_that_only_reads_expects_its_seed_everywhere() {
        let mut disk = Disk::new();
        disk.write(4096, 1024);
        disk.write(4096, 512);
        let reader = |seed| Ledger::new(Author { seed, run: 2000 }, 4096..4096 + 16 * 512, BLOCK, true);
        reader(1).end_read(4096, &disk.bytes[..1024]).unwrap();
        let other = reader(2).end_read(4096, &disk.bytes[..1024]).unwrap_err();
        assert!(other.contains("--seed 1"), "{other}");
        let never = reader(1).end_read(4096, &disk.bytes).unwrap_err();
        assert!(never.contains("offset 5120") && never.contains("zeroes"), "{never}");
        let misplaced = reader(1).end_read(8192, &disk.bytes[..512]).unwrap_err();
        assert!(misplaced.contains("block of offset 4096"), "{misplaced}");
    }
}
