//! Disks to be copied, and what is to be said of their copies.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::program::Scratch;

/// What a file system may need for itself.
const SLACK: u64 = 64 << 10;

/// Bytes that are not zero and nowhere the same.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8 | 1
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Data of awkward lengths at awkward places, and holes between them.
fn sparse(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (number, offset) in [0, 300_000, 1_000_001, 1_310_720, 3_000_000].into_iter().enumerate() {
        let length = [1, 70_000, 4096, 700_001, 262_144][number];
        file.write_all_at(&noise(offset, length), offset).unwrap();
    }
    file.sync_all().unwrap(); // delayed allocation counts no blocks
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Sparse,
    Random,
    /// Allocated, and zero.
    Zeroes,
    /// Data with runs of zeroes that are no holes.
    Mixed,
}

pub(super) const CONTENTS: [Content; 4] = [Content::Sparse, Content::Random, Content::Zeroes, Content::Mixed];

pub(super) fn image(scratch: &Scratch, name: &str, content: Content, size: u64) -> PathBuf {
    let path = scratch.dir.path().join(name);
    let length = usize::try_from(size).unwrap();
    match content {
        Content::Sparse => sparse(&path, size),
        Content::Random => fs::write(&path, noise(7, length)).unwrap(),
        Content::Zeroes => fs::write(&path, vec![0; length]).unwrap(),
        Content::Mixed => {
            let mut bytes = noise(9, length);
            for start in (0..length).step_by(50_000) {
                let end = (start + 20_000).min(length);
                bytes[start..end].fill(0);
            }
            fs::write(&path, bytes).unwrap();
        }
    }
    path
}

pub(super) fn allocated(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

/// Bytes in blocks of 4 KiB that are not zero.
pub(super) fn needed(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64 * 4096
}

#[track_caller]
pub(super) fn same(one: &Path, two: &Path) {
    let (one, two) = (fs::read(one).unwrap(), fs::read(two).unwrap());
    assert_eq!(one.len(), two.len());
    let first = one.iter().zip(&two).position(|(one, two)| one != two);
    assert_eq!(first, None, "they differ there");
}

#[track_caller]
pub(super) fn as_sparse_as_can_be(path: &Path) {
    let (has, needs) = (allocated(path), needed(path));
    assert!(has <= needs + SLACK, "{} has {has} bytes, and {needs} would do", path.display());
}
