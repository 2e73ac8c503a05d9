//! A block that is not what it must be, in words: what was expected, what was found, and what that looks like.

use std::fmt::Write;

use super::stamp::Stamp;

/// Pieces that a block is compared in: storage tears at sectors.
const SECTOR: usize = 512;
/// Older generations that a torn block is compared with, and how many bytes of them at most.
const GENERATIONS_BACK: u32 = 64;
const COMPARED_BYTES_MAX: u32 = 64 << 20;

/// Says what is wrong with `block`. With `inherits` any generation of any run was expected.
pub(super) fn explain(block: &[u8], expected: &Stamp, inherits: bool) -> String {
    let Stamp { offset, length, generation, author } = expected;
    let mut text = format!("verify: the block at offset {offset} ({length} bytes) is wrong: expected ");
    let _ = if inherits {
        write!(text, "any generation that a run with --seed {} wrote there", author.seed)
    } else {
        write!(text, "generation {generation} of this run (--seed {})", author.seed)
    };
    let found = if block.iter().all(|byte| *byte == 0) {
        "zeroes: the write was lost, or the block was trimmed, or it was never written".to_owned()
    } else if let Some(found) = Stamp::read(block) {
        whole(&found, expected, inherits)
    } else {
        pieces(block, expected, inherits)
    };
    let _ = write!(text, "; found {found}");
    text
}

/// A block that is whole, but another one.
fn whole(found: &Stamp, expected: &Stamp, inherits: bool) -> String {
    let Stamp { offset, length, generation, author } = found;
    if author.seed != expected.author.seed {
        format!("a whole block of a run with --seed {}", author.seed)
    } else if length != &expected.length {
        format!("a whole block of {length} bytes: it was written with another --bs")
    } else if *offset != expected.offset {
        format!("the block of offset {offset}, generation {generation}: a write or a read went astray")
    } else if !inherits && author.run != expected.author.run {
        format!("what an earlier run wrote here (generation {generation}): this run's write was lost")
    } else if *generation < expected.generation {
        format!("an older write of this block, generation {generation}: the last write was lost or undone")
    } else {
        format!("generation {generation}, which is newer: a write came back that was not yet sent, or twice")
    }
}

/// A block that is not whole: its sectors compared with what they could be.
fn pieces(block: &[u8], expected: &Stamp, inherits: bool) -> String {
    // Of an earlier run's block the fields alone say what it should be; without them there is nothing to compare with.
    let candidates = if inherits {
        Vec::new()
    } else {
        let back = (COMPARED_BYTES_MAX / expected.length.max(1)).clamp(1, GENERATIONS_BACK);
        let oldest = expected.generation.saturating_sub(back).max(1);
        (oldest..=expected.generation)
            .rev()
            .map(|generation| (generation, content(expected, generation)))
            .collect()
    };
    let sectors = block.chunks(sector_of(block.len()));
    let origins: Vec<_> = sectors
        .scan(0, |at, sector| Some(origin(sector, std::mem::replace(at, *at + sector.len()), &candidates)))
        .collect();
    let known = |origin: &Origin| matches!(origin, Origin::Generation(_) | Origin::Zeroes);
    if !inherits && origins.iter().all(known) {
        return format!("a torn block: {}", runs(&origins, sector_of(block.len()), block.len()));
    }
    if let Some((_, right)) = candidates.first() {
        let wrong = || block.iter().zip(right).enumerate().filter(|(_, (found, right))| found != right);
        if let (Some((first, (found, right))), Some((last, _))) = (wrong().next(), wrong().next_back()) {
            let count = wrong().count();
            return format!(
                "a damaged block: {count} of {} bytes differ, the first at byte {first} ({found:#04x}, not {right:#04x}), the last at byte {last}; {}",
                block.len(),
                runs(&origins, sector_of(block.len()), block.len()),
            );
        }
    }
    let mut start = String::new();
    for byte in &block[..block.len().min(16)] {
        let _ = write!(start, "{byte:02x}");
    }
    format!(
        "no whole block of any run (it begins with {start}): never written with --verify, torn, or damaged"
    )
}

/// What one sector is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Generation(u32),
    Zeroes,
    Unknown,
}

fn origin(sector: &[u8], at: usize, candidates: &[(u32, Vec<u8>)]) -> Origin {
    let same = candidates.iter().find(|(_, content)| content[at..at + sector.len()] == *sector);
    match same {
        Some((generation, _)) => Origin::Generation(*generation),
        None if sector.iter().all(|byte| *byte == 0) => Origin::Zeroes,
        None => Origin::Unknown,
    }
}

/// Neighbours of one origin together.
fn runs(origins: &[Origin], sector: usize, length: usize) -> String {
    let mut text = String::new();
    let mut at = 0;
    for run in origins.chunk_by(PartialEq::eq) {
        let end = (at + run.len() * sector).min(length);
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}bytes {at} to {}: ", end - 1);
        let _ = match run.first() {
            Some(Origin::Generation(generation)) => write!(text, "generation {generation}"),
            Some(Origin::Zeroes) => write!(text, "zeroes"),
            Some(Origin::Unknown) | None => write!(text, "nothing that this run wrote there"),
        };
        at = end;
    }
    text
}

fn content(expected: &Stamp, generation: u32) -> Vec<u8> {
    let mut block = vec![0; expected.length as usize];
    Stamp { generation, ..*expected }.write(&mut block);
    block
}

/// Short blocks are compared in finer pieces.
fn sector_of(length: usize) -> usize {
    if length > SECTOR { SECTOR } else { 64 }
}

#[cfg(test)]
mod tests {
    use super::super::stamp::Author;
    use super::*;

    const STAMP: Stamp =
        Stamp { author: Author { seed: 1, run: 2 }, offset: 8192, generation: 5, length: 4096 };

    fn said(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut block = content(&STAMP, 5);
        change(&mut block);
        explain(&block, &STAMP, false)
    }

    #[test]
    fn each_way_to_be_wrong_has_its_words() {
        let other = |stamp: Stamp| said(|block| stamp.write(block));
        let cases = [
            (said(|block| block.fill(0)), "found zeroes"),
            (said(|block| *block = content(&STAMP, 3)), "older write of this block, generation 3"),
            (other(Stamp { offset: 0, ..STAMP }), "the block of offset 0, generation 5"),
            (other(Stamp { author: Author { seed: 7, run: 2 }, ..STAMP }), "--seed 7"),
            (other(Stamp { author: Author { seed: 1, run: 1 }, ..STAMP }), "an earlier run"),
            (other(Stamp { generation: 6, ..STAMP }), "newer"),
            (
                said(|block| block[512..].copy_from_slice(&content(&STAMP, 4)[512..])),
                "torn block: bytes 0 to 511: generation 5, bytes 512 to 4095: generation 4",
            ),
            (said(|block| block[2048..].fill(0)), "bytes 2048 to 4095: zeroes"),
            (said(|block| block[700] ^= 0x10), "1 of 4096 bytes differ, the first at byte 700"),
            (said(|block| block.fill(0xee)), "bytes 0 to 4095: nothing that this run wrote there"),
        ];
        for (said, part) in cases {
            assert!(said.contains("offset 8192") && said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn a_damaged_block_of_an_earlier_run_is_shown_as_it_is() {
        let said = explain(&[0xab; 4096], &STAMP, true);
        assert!(said.contains("any generation") && said.contains("abababab"), "{said}");
    }
}
