//! Files and block devices, written and read anywhere.
//!
//! ```text
//!                  regular file, empty until now       block device
//!   zeroes         nothing to be done                  PUNCH_HOLE, else ZERO_RANGE, else written
//!   the same,      fallocate, else written             ZERO_RANGE, else written
//!   allocated
//! ```
//!
//! On a device (Linux 6.1 to 6.18, blkdev_fallocate) PUNCH_HOLE zeroes with unmapping and fails where that is not offloaded.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::error::CopyError;
use super::plan::Step;
use crate::rt::{self, Buffer};

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
/// What devices want the ends of a range to be multiples of, at most: their logical block is a page or less.
const DEVICE_BLOCK: u64 = 4096;
/// Zeroes written at a time.
const ZEROES_BYTES: u64 = 256 << 10;

/// A file or device of known size.
pub(super) struct LocalFile {
    pub(super) file: rt::File,
    pub(super) label: String,
    pub(super) size: u64,
    pub(super) is_device: bool,
    /// Standard input or output, where others may go on after us.
    pub(super) is_standard: bool,
    lacks_punch: Cell<bool>,
    lacks_zero_range: Cell<bool>,
    lacks_allocate: Cell<bool>,
}

impl LocalFile {
    pub(super) fn new(file: rt::File, label: String, size: u64, is_device: bool, is_standard: bool) -> Self {
        let [lacks_punch, lacks_zero_range, lacks_allocate] = [const { Cell::new(false) }; 3];
        Self { file, label, size, is_device, is_standard, lacks_punch, lacks_zero_range, lacks_allocate }
    }

    pub(super) async fn read(&self, offset: u64, buffer: Buffer) -> (Result<(), CopyError>, Buffer) {
        let length = buffer.len();
        let (result, buffer) = self.file.read_exact(buffer, 0..length, offset).await;
        let result = result.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => CopyError::Short { label: self.label.clone(), size: self.size },
            _ => self.failed("read", offset, error),
        });
        (result, buffer)
    }

    /// Writes a part of `buffer`, whose first byte belongs at `offset`.
    pub(super) async fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        part: std::ops::Range<usize>,
    ) -> (Result<(), CopyError>, Buffer) {
        let at = offset + part.start as u64;
        let (result, buffer) = self.file.write_all(buffer, part, at, false).await;
        (result.map_err(|error| self.failed("write", at, error)), buffer)
    }

    /// Makes a range zero that may not be, or allocates one that is.
    pub(super) async fn zero(&self, offset: u64, length: u64, allocated: bool) -> Result<(), CopyError> {
        if !self.is_device {
            if !allocated || self.fallocate(0, &self.lacks_allocate, offset, length).await? {
                return Ok(());
            }
            return self.write_zeroes(offset, length).await;
        }
        let end = offset + length;
        let whole = offset.next_multiple_of(DEVICE_BLOCK).min(end)..(end & !(DEVICE_BLOCK - 1)).max(offset);
        if whole.start >= whole.end {
            return self.write_zeroes(offset, length).await;
        }
        let (at, count) = (whole.start, whole.end - whole.start);
        let done = (!allocated && self.fallocate(PUNCH, &self.lacks_punch, at, count).await?)
            || self.fallocate(ZERO_RANGE, &self.lacks_zero_range, at, count).await?;
        if !done {
            return self.write_zeroes(offset, length).await;
        }
        self.write_zeroes(offset, whole.start - offset).await?;
        self.write_zeroes(whole.end, end - whole.end).await
    }

    /// `Ok(false)`: the file system or device lacks this mode; nothing was changed.
    async fn fallocate(
        &self,
        mode: i32,
        lacks: &Cell<bool>,
        offset: u64,
        length: u64,
    ) -> Result<bool, CopyError> {
        if lacks.get() {
            return Ok(false);
        }
        match self.file.fallocate(mode, offset, length).await {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                lacks.set(true);
                Ok(false)
            }
            Err(error) => Err(self.failed(if mode == 0 { "allocate" } else { "zero" }, offset, error)),
        }
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), CopyError> {
        let Ok(most) = usize::try_from(length.min(ZEROES_BYTES)) else { return Ok(()) };
        let mut buffer = Buffer::scratch(most);
        buffer.fill(0);
        let mut done = 0;
        while done < length {
            let part = 0..usize::try_from(length - done).unwrap_or(most).min(most);
            let count = part.len() as u64;
            let (result, back) = self.write(offset + done, buffer, part).await;
            buffer = back;
            result?;
            done += count;
        }
        Ok(())
    }

    /// Where data is and where holes are, from `offset` to `end` or a little less. A device cannot tell.
    pub(super) async fn map(&self, offset: u64, end: u64) -> Result<Vec<Step>, CopyError> {
        if self.is_device {
            return Ok(vec![Step::new(&(offset..end), false)]);
        }
        let fd = Arc::clone(self.file.fd());
        let found = rt::blocking(move || seek(&fd, offset, end)).await;
        found.map_err(|errno| self.failed("find holes in", offset, errno.into()))
    }

    pub(super) fn resize(&self, size: u64) -> Result<(), CopyError> {
        let resized = rustix::fs::ftruncate(self.file.fd(), size);
        resized.map_err(|errno| self.failed("resize", size, errno.into()))
    }

    pub(super) async fn flush(&self) -> Result<(), CopyError> {
        self.file.fdatasync().await.map_err(|error| self.failed("flush", 0, error))
    }

    fn failed(&self, action: &'static str, offset: u64, error: io::Error) -> CopyError {
        CopyError::Io { action, label: self.label.clone(), offset, error }
    }
}

/// Data and holes by `lseek(2)`, which has no opcode and may wait for writeback.
fn seek(fd: &OwnedFd, offset: u64, end: u64) -> Result<Vec<Step>, Errno> {
    let mut found = Vec::new();
    let mut push = |range: std::ops::Range<u64>, zero| {
        if range.start < range.end {
            found.push(Step::new(&range, zero));
        }
    };
    let mut at = offset;
    while at < end {
        let data = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, end),
            // No data up to the end of the file; what it has lost meanwhile fails when it is read.
            Err(Errno::NXIO) if rustix::fs::fstat(fd)?.st_size.unsigned_abs() >= end => end,
            // Cut short, or a file system without holes.
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => {
                push(at..end, false);
                break;
            }
            Err(errno) => return Err(errno),
        };
        push(at..data, true);
        if data == end {
            break;
        }
        at = match rustix::fs::seek(fd, SeekFrom::Hole(data)) {
            Ok(hole) => hole.clamp(data + 1, end),
            Err(Errno::NXIO) => end,
            Err(errno) => return Err(errno),
        };
        push(data..at, false);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn holes_are_found_and_a_file_that_was_cut_short_has_none_at_its_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 256 << 10).unwrap();
        let fd = OwnedFd::from(file.try_clone().unwrap());
        let found = seek(&fd, 0, 1 << 20).unwrap();
        let data: u64 = found.iter().filter(|step| !step.zero).map(|step| step.length).sum();
        assert_eq!(found.iter().map(|step| step.length).sum::<u64>(), 1 << 20);
        assert!((4096..256 << 10).contains(&data), "{found:?}");
        assert!(found.iter().any(|step| !step.zero && step.offset <= 256 << 10 && step.end() > 256 << 10));
        file.set_len(512 << 10).unwrap();
        let last = seek(&fd, 0, 1 << 20).unwrap().pop().unwrap();
        assert!(!last.zero && last.end() == 1 << 20, "reading it tells what happened: {last:?}");
    }
}
