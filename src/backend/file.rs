//! Regular files, block devices and memory through the page cache.
//!
//! FUA is RWF_DSYNC, flush is fdatasync: both reach the whole file, whichever shard wrote.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::disk::{Disk, Kind};
use super::{Done, Extents, Failure, extents};
use crate::rt::{self, Buffer, Cached, CachedFile};

/// `posix_fadvise` reads ahead no more than the device's window in one call, 128 KiB unless tuned.
const CACHE_PIECE: u64 = 128 * 1024;
/// Enough for any one read; the rest of a longer hint is ignored.
const CACHE_LENGTH_MAX: u64 = 64 * 1024 * 1024;

/// A file, block device or memory on one shard.
pub struct File {
    pub(super) disk: Arc<Disk>,
    pub(super) handle: rt::File,
}

/// For sending from the page cache, if we are told what it holds.
pub(super) fn page_cache(fd: &Arc<OwnedFd>, length: u64, label: &str) -> Option<Arc<CachedFile>> {
    match CachedFile::new(Arc::clone(fd), length) {
        Ok(cached) => Some(Arc::new(cached)),
        Err(error) => {
            tracing::debug!("{label}: large reads are copied: its page cache cannot be looked at: {error}");
            None
        }
    }
}

impl File {
    pub(super) fn attach(disk: Arc<Disk>) -> io::Result<Self> {
        let handle = rt::File::register(Arc::clone(&disk.fd), disk.writes)?;
        Ok(Self { disk, handle })
    }

    pub(super) async fn read(&self, buffer: Buffer, offset: u64) -> Done {
        let length = buffer.len();
        let (result, buffer) = self.handle.read_exact(buffer, 0..length, self.disk.position(offset)).await;
        match result {
            Ok(()) => (Ok(()), buffer),
            Err(cause) => (Err(Box::pin(self.disk.read_failed(cause, offset, length as u64)).await), buffer),
        }
    }

    pub(super) async fn write(&self, buffer: Buffer, offset: u64, fua: bool) -> Done {
        let length = buffer.len();
        let durable = fua || self.disk.writethrough;
        let (result, buffer) =
            self.handle.write_all(buffer, 0..length, self.disk.position(offset), durable).await;
        if let Err(cause) = result {
            return (Err(Box::pin(self.disk.write_failed(cause, durable)).await), buffer);
        }
        self.disk.known.insert(offset, length as u64);
        let outcome = if durable { self.disk.check_sync() } else { Ok(()) };
        (outcome, buffer)
    }

    pub(super) async fn flush(&self) -> Result<(), Failure> {
        if self.disk.readonly || self.disk.kind == Kind::Memory {
            return Ok(());
        }
        self.disk.check_sync()?;
        self.handle.fdatasync().await.map_err(|cause| self.disk.fail_sync(&cause))?;
        self.disk.check_sync() // another shard's sync may have been told of our lost writes meanwhile
    }

    pub(super) async fn cache(&self, offset: u64, length: u64) -> Result<(), Failure> {
        let end = offset + length.min(CACHE_LENGTH_MAX);
        let mut at = offset;
        while at < end && self.disk.kind != Kind::Memory {
            let piece = (end - at).min(CACHE_PIECE);
            let advised = self.handle.fadvise(self.disk.position(at), piece, libc::POSIX_FADV_WILLNEED).await;
            advised.map_err(|cause| Failure::of("read ahead", &cause).at(at))?;
            at += piece;
        }
        Ok(())
    }

    pub(super) async fn extents(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Extents, Failure> {
        extents::find(&self.disk, offset, length, extents_max).await
    }

    pub(super) fn cached(&self, offset: u64, length: usize) -> Option<Cached> {
        self.disk.cached.as_ref()?.range(self.disk.position(offset), length)
    }

    #[inline]
    pub(super) fn known_data(&self, offset: u64, length: u64) -> bool {
        matches!(self.disk.kind, Kind::Block { .. }) || self.disk.known.covers(offset, length)
    }
}
