//! What a block says about itself.
//!
//! ```text
//!    0  magic       "ringnbd1"
//!    8  seed        of the run's --seed
//!   16  run         when the run began, nanoseconds since 1970: an earlier run's block is not taken for ours
//!   24  offset      of the block in the export
//!   32  generation  of the block's content in this run, from 1
//!   36  length      of the block
//!   40  checksum    CRC-32 of all that is before it and after it
//!   44  zero
//!   48  numbers that follow from the fields above, to the end
//! ```
//!
//! Numbers are little-endian. As the whole block follows from its fields, any byte that differs can be pointed at.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Bytes of the fields; no block is shorter than this and a few bytes of content.
pub(super) const HEAD: usize = 48;

const MAGIC: [u8; 8] = *b"ringnbd1";
const CHECKSUM: usize = 40;

/// Who writes: the part of the stamp that is the same in all blocks of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) struct Author {
    /// The run's seed.
    pub(in crate::load) seed: u64,
    /// When it began.
    pub(in crate::load) run: u64,
}

/// The fields of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) author: Author,
    pub(super) offset: u64,
    pub(super) generation: u32,
    pub(super) length: u32,
}

impl Stamp {
    /// Fills `block`, which has `length` bytes, at least [`HEAD`].
    pub(super) fn write(&self, block: &mut [u8]) {
        let mut random = SplitMix64::seed_from_u64(self.mixed());
        random.fill_bytes(&mut block[HEAD..]);
        block[..8].copy_from_slice(&MAGIC);
        block[8..16].copy_from_slice(&self.author.seed.to_le_bytes());
        block[16..24].copy_from_slice(&self.author.run.to_le_bytes());
        block[24..32].copy_from_slice(&self.offset.to_le_bytes());
        block[32..36].copy_from_slice(&self.generation.to_le_bytes());
        block[36..40].copy_from_slice(&self.length.to_le_bytes());
        block[44..48].fill(0);
        let checksum = checksum(block);
        block[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads the fields of a block that is whole; `None` where magic or checksum say that it is none.
    pub(super) fn read(block: &[u8]) -> Option<Self> {
        if block.len() < HEAD || block[..8] != MAGIC {
            return None;
        }
        let stored = u32::from_le_bytes(field(block, CHECKSUM));
        (stored == checksum(block)).then(|| Self {
            author: Author {
                seed: u64::from_le_bytes(field(block, 8)),
                run: u64::from_le_bytes(field(block, 16)),
            },
            offset: u64::from_le_bytes(field(block, 24)),
            generation: u32::from_le_bytes(field(block, 32)),
            length: u32::from_le_bytes(field(block, 36)),
        })
    }

    /// One number of all fields, different for each.
    fn mixed(&self) -> u64 {
        let fields = [self.author.seed, self.author.run, self.offset, u64::from(self.generation)];
        fields
            .into_iter()
            .fold(u64::from(self.length), |mixed, field| SplitMix64::seed_from_u64(mixed ^ field).next_u64())
    }
}

fn field<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}

fn checksum(block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..CHECKSUM]);
    hasher.update(&block[CHECKSUM + 4..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp =
        Stamp { author: Author { seed: 1, run: 2 }, offset: 4096, generation: 3, length: 512 };

    #[test]
    fn a_block_tells_its_fields_until_any_byte_changes() {
        for length in [49, 64, 512, 4096] {
            let stamp = Stamp { length, ..STAMP };
            let mut block = vec![0xff; length as usize];
            stamp.write(&mut block);
            assert_eq!(Stamp::read(&block), Some(stamp));
            for at in 0..block.len() {
                block[at] ^= 1;
                assert_eq!(Stamp::read(&block), None, "byte {at} of {length}");
                block[at] ^= 1;
            }
        }
    }

    #[test]
    fn every_field_changes_the_content() {
        let content = |stamp: Stamp| {
            let mut block = vec![0; 512];
            stamp.write(&mut block);
            block[HEAD..].to_vec()
        };
        let others = [
            Stamp { author: Author { seed: 9, ..STAMP.author }, ..STAMP },
            Stamp { author: Author { run: 9, ..STAMP.author }, ..STAMP },
            Stamp { offset: 0, ..STAMP },
            Stamp { generation: 4, ..STAMP },
        ];
        for other in others {
            assert_ne!(content(other), content(STAMP), "{other:?}");
        }
    }

    #[test]
    fn what_is_no_block_is_none() {
        assert_eq!(Stamp::read(&[]), None);
        assert_eq!(Stamp::read(&[0; 4096]), None);
        assert_eq!(Stamp::read(&MAGIC), None);
    }
}
