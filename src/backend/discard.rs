//! Trim and zero, by `fallocate`.
//!
//! ```text
//!            regular file, memory               block device
//!   trim     PUNCH_HOLE                         PUNCH_HOLE, else BLKDISCARD
//!   zero     PUNCH_HOLE if that is allowed,     the same, whole blocks only; with
//!            else ZERO_RANGE,                   fast_only ZERO_RANGE only if the
//!            else write (fast_only: ENOTSUP)    device zeroes by itself
//! ```
//!
//! On a device (Linux 6.1 to 6.18, blkdev_fallocate) PUNCH_HOLE zeroes with unmapping and fails where that is not offloaded;
//! ZERO_RANGE zeroes without unmapping and falls back to writing. Both want whole logical blocks, EINVAL otherwise; the rest
//! of the range is written. memfd has no ZERO_RANGE.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::{SmallVec, smallvec};

use super::disk::Kind;
use super::{Done, Failure, File, Zero};
use crate::rt::{self, Buffer};
use crate::sys;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
/// One call holds the inode's lock throughout: longer ranges let others in between.
const FALLOCATE_LENGTH_MAX: u64 = 1 << 30;
/// Zeroes written at a time.
const WRITE_LENGTH_MAX: u64 = 256 * 1024;

/// Parts of a range that have still to be written.
pub(super) type Rest = SmallVec<[(u64, u64); 2]>;

impl File {
    pub(super) async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), Failure> {
        if let Some(range) = self.whole_blocks(offset, length) {
            let known = &self.disk.known;
            known.remove(offset, length);
            let trimmed = self.give_back(range).await;
            known.remove(offset, length);
            trimmed.map_err(|cause| Failure::of("trim", &cause))?;
        }
        self.sync_if(fua).await
    }

    pub(super) async fn zero(&self, offset: u64, length: u64, how: Zero, fua: bool) -> Result<(), Failure> {
        let rest = self.zero_offloaded(offset, length, how).await?;
        for (offset, length) in rest {
            write_zeroes(offset, length, async |buffer, at| self.write(buffer, at, false).await).await?;
        }
        self.sync_if(fua).await
    }

    pub(super) async fn sync_if(&self, fua: bool) -> Result<(), Failure> {
        if fua || self.disk.writethrough { self.flush().await } else { Ok(()) }
    }

    /// Zeroes what the kernel can zero, and answers with what remains to be written: the edges that are not whole blocks,
    /// or all of it. With `fast_only`, ENOTSUP comes before anything is changed.
    pub(super) async fn zero_offloaded(&self, offset: u64, length: u64, how: Zero) -> Result<Rest, Failure> {
        let all: Rest = smallvec![(offset, length)];
        let slow =
            || Failure::new(libc::EOPNOTSUPP, "zeroing this range would be no faster than writing zeroes");
        let range = self.whole_blocks(offset, length);
        if how.fast_only && range.as_ref().is_none_or(|range| range.end - range.start < length) {
            return Err(slow()); // edges inside a block would be written
        }
        let Some(range) = range else { return Ok(all) };
        let known = &self.disk.known;
        known.remove(offset, length);
        let zeroed = self.zero_range(range.clone(), how).await;
        known.remove(offset, length);
        match zeroed {
            Ok(true) => {
                let (from, to) = (range.start - self.disk.base, range.end - self.disk.base);
                let edges = [(offset, from - offset), (to, offset + length - to)];
                Ok(edges.into_iter().filter(|&(_, length)| length > 0).collect())
            }
            Ok(false) if how.fast_only => Err(slow()),
            Ok(false) => Ok(all),
            Err(cause) => Err(Failure::of("zero", &cause)),
        }
    }

    /// `Ok(false)`: none of the ways works here.
    async fn zero_range(&self, range: Range<u64>, how: Zero) -> io::Result<bool> {
        let slow = how.fast_only && matches!(self.disk.kind, Kind::Block { zeroes: false });
        if how.may_punch && self.fallocate(PUNCH, &self.disk.lacks_punch, range.clone()).await? {
            return Ok(true);
        }
        Ok(!slow && self.fallocate(ZERO_RANGE, &self.disk.lacks_zero_range, range).await?)
    }

    async fn give_back(&self, range: Range<u64>) -> io::Result<()> {
        if self.fallocate(PUNCH, &self.disk.lacks_punch, range.clone()).await? {
            return Ok(());
        }
        if !matches!(self.disk.kind, Kind::Block { .. }) {
            return Ok(()); // a hint that cannot be followed is no error
        }
        for piece in pieces(range, FALLOCATE_LENGTH_MAX) {
            let fd = Arc::clone(&self.disk.fd);
            match rt::blocking(move || sys::ioctl::discard(fd, piece.start, piece.end - piece.start)).await {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => break,
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// `Ok(false)`: the file system or device lacks this mode, which `lacks` remembers; nothing was changed.
    async fn fallocate(&self, mode: i32, lacks: &AtomicBool, range: Range<u64>) -> io::Result<bool> {
        if lacks.load(Ordering::Relaxed) {
            return Ok(false);
        }
        for piece in pieces(range, FALLOCATE_LENGTH_MAX) {
            match self.handle.fallocate(mode, piece.start, piece.end - piece.start).await {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                    lacks.store(true, Ordering::Relaxed);
                    return Ok(false);
                }
                outcome => outcome?,
            }
        }
        Ok(true)
    }

    /// The part of a range that consists of whole blocks, as positions in the file.
    fn whole_blocks(&self, offset: u64, length: u64) -> Option<Range<u64>> {
        let (start, end, block) =
            (self.disk.position(offset), self.disk.position(offset) + length, self.disk.block);
        let range = start.next_multiple_of(block)..end - end % block;
        (range.start < range.end).then_some(range)
    }
}

/// Writes zeroes in bounded pieces. The request behind it holds no buffer of its own.
pub(super) async fn write_zeroes(
    offset: u64,
    length: u64,
    write: impl AsyncFn(Buffer, u64) -> Done,
) -> Result<(), Failure> {
    let Ok(size) = usize::try_from(length.min(WRITE_LENGTH_MAX)) else { return Ok(()) };
    let mut buffer = Buffer::acquire(size).await;
    buffer.fill(0);
    for piece in pieces(offset..offset + length, WRITE_LENGTH_MAX) {
        buffer.set_len(usize::try_from(piece.end - piece.start).unwrap_or(size));
        let (result, back) = write(buffer, piece.start).await;
        buffer = back;
        result?;
    }
    Ok(())
}

fn pieces(range: Range<u64>, length_max: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let piece = at..range.end.min(at.saturating_add(length_max));
        at = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}
