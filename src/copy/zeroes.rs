//! Zeroes in what was read.

use std::ops::Range;

/// Bytes looked at before it is asked whether to go on: a cache line, which the compiler makes a few instructions of.
const LINE: usize = 64;

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<LINE>();
    let any = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte);
    lines.iter().all(|line| any(line) == 0) && any(rest) == 0
}

/// What follows each other in a buffer: runs of blocks that are zero, and of blocks that are not, never two of a kind. The
/// last block may be shorter.
pub(super) fn runs(bytes: &[u8], block: usize) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    for block in bytes.chunks(block.max(1)) {
        let (end, zero) = (at + block.len(), is_zero(block));
        match runs.last_mut() {
            Some((range, kind)) if *kind == zero => range.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_found() {
        for length in [0, 1, 63, 64, 65, 4096, 5000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes), "{length}");
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn runs_are_joined_and_the_last_block_may_be_short() {
        let bytes: Vec<u8> = [0, 0, 1, 0, 1].iter().flat_map(|byte| [*byte; 4]).chain([0, 0]).collect();
        let expected = [(0..8, true), (8..12, false), (12..16, true), (16..20, false), (20..22, true)];
        assert_eq!(runs(&bytes, 4), expected);
        assert_eq!(runs(&bytes, 8), [(0..8, true), (8..22, false)]);
        assert_eq!(runs(&bytes, 100), [(0..22, false)]);
        assert_eq!(runs(&[], 4), []);
    }
}
