//! A file, block device or memory that all shards share: how it was opened, and what went wrong with it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use rustix::fs::SeekFrom;
use tracing::{error, warn};

use super::Failure;
use super::known::KnownData;
use super::ranges::Ranges;
use crate::{rt, sys};

const TOO_SHORT: &str = "the storage behind this export has become shorter than the export";

/// What answers `fallocate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Block {
        /// The device zeroes ranges without being sent the zeroes.
        zeroes: bool,
    },
    Memory,
}

/// The part for `direct=on`.
#[derive(Debug)]
pub(super) struct DirectAccess {
    /// The same file, opened with O_DIRECT.
    pub(super) fd: Arc<OwnedFd>,
    /// Completions are looked for, `iopoll=on`.
    pub(super) polled: bool,
    /// What offsets and lengths must be multiples of; a power of two.
    pub(super) align: u64,
    /// Where the part begins that only the page cache reaches, because the file ends inside a block; its end otherwise.
    pub(super) tail: u64,
    /// Keeps read-modify-write cycles apart from other writes, on all shards.
    pub(super) ranges: Arc<Ranges>,
}

/// An open file, device or memory, and the window of it that is served.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) fd: Arc<OwnedFd>,
    /// A second open of the same file, to be asked about writeback errors that `fd` has told already.
    pub(super) witness: Option<OwnedFd>,
    pub(super) direct: Option<DirectAccess>,
    pub(super) kind: Kind,
    /// First byte of the window.
    pub(super) base: u64,
    /// Bytes in the window.
    pub(super) size: u64,
    /// Size of all of it when it was opened.
    pub(super) whole: u64,
    /// Logical block of a device, 1 otherwise: what `fallocate` wants offsets to be multiples of.
    pub(super) block: u64,
    pub(super) readonly: bool,
    pub(super) writethrough: bool,
    /// Who carries out buffered writes.
    pub(super) writes: rt::Writes,
    /// The path, for the log.
    pub(super) label: String,
    pub(super) known: KnownData,
    /// For replies sent from the page cache; `None` where there is none or we are not told what it holds.
    pub(super) cached: Option<Arc<rt::CachedFile>>,
    pub(super) lacks_punch: AtomicBool,
    pub(super) lacks_zero_range: AtomicBool,
    /// The errno of the first sync that failed, 0 if none did.
    pub(super) sync_errno: AtomicI32,
    /// The size last logged.
    pub(super) size_logged: AtomicU64,
}

impl Disk {
    pub(super) fn direct(&self) -> Option<&DirectAccess> {
        self.direct.as_ref()
    }

    /// Where a byte of the export is in the file.
    pub(super) fn position(&self, offset: u64) -> u64 {
        self.base + offset
    }

    /// Fails once a sync has failed. The kernel reports what it could not write back once and drops it, so a later sync
    /// that succeeds would say nothing about it (fsync(2), "EIO").
    pub(super) fn check_sync(&self) -> Result<(), Failure> {
        match self.sync_errno.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(Failure::new(
                errno,
                "an earlier flush of this export failed, so earlier writes may be lost; it stays failed until the \
                 export is opened again",
            )),
        }
    }

    /// Remembers that a sync failed.
    pub(super) fn fail_sync(&self, cause: &io::Error) -> Failure {
        let errno = cause.raw_os_error().filter(|&errno| errno != 0).unwrap_or(libc::EIO);
        if errno == libc::ECANCELED {
            return Failure::of("flush", cause); // it never reached the file
        }
        if self.sync_errno.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            error!(
                "{}: sync failed: {cause}; writes may be lost, and every flush fails until the export is reopened",
                self.label
            );
        }
        Failure::of("make the data durable", cause)
    }

    /// Explains a failed read of `[offset, offset + length)`.
    pub(super) async fn read_failed(self: &Arc<Self>, cause: io::Error, offset: u64, length: u64) -> Failure {
        let size = self.note_size().await;
        // Direct I/O says EINVAL instead of end of file once a file ends inside a block.
        match size {
            Some(size) if size < self.position(offset) + length => self.too_short(size, offset),
            _ if cause.kind() == io::ErrorKind::UnexpectedEof => Failure::new(libc::EIO, TOO_SHORT),
            _ => Failure::of("read", &cause),
        }
    }

    /// Less is there than the export says. Nothing may be made up for it.
    pub(super) fn too_short(&self, size: u64, offset: u64) -> Failure {
        Failure::new(libc::EIO, TOO_SHORT).at(size.saturating_sub(self.base).max(offset))
    }

    /// Explains a failed write. `durable`: it was also to be synced, and what failed may have been that half.
    pub(super) async fn write_failed(self: &Arc<Self>, cause: io::Error, durable: bool) -> Failure {
        self.note_size().await;
        if durable {
            // The write's own sync has used up the error on `fd`; the witness still has it to tell.
            let disk = Arc::clone(self);
            let verdict = rt::blocking(move || match &disk.witness {
                Some(witness) => rustix::fs::fdatasync(witness).map_err(io::Error::from),
                None => Err(io::Error::from_raw_os_error(libc::EIO)),
            })
            .await;
            if let Err(verdict) = verdict {
                self.fail_sync(&verdict);
            }
        }
        Failure::of("write", &cause)
    }

    /// Looks at the size after an error, and logs it when it has changed. `None` if it cannot be told.
    async fn note_size(self: &Arc<Self>) -> Option<u64> {
        let disk = Arc::clone(self);
        let size = rt::blocking(move || disk.current_size()).await.ok()?;
        if self.size_logged.swap(size, Ordering::Relaxed) != size {
            warn!("{}: its size was {} bytes when it was opened and is {size} now", self.label, self.whole);
        }
        Some(size)
    }

    /// The size of all of it now. Asks the kernel.
    pub(super) fn current_size(&self) -> io::Result<u64> {
        match self.kind {
            Kind::Block { .. } => sys::ioctl::block_size_bytes(&self.fd),
            Kind::Regular | Kind::Memory => Ok(rustix::fs::seek(&self.fd, SeekFrom::End(0))?),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A ring that is being torn down keeps the file open for a while, and its locks with it.
        let _ = sys::lock::unlock(&self.fd);
    }
}
