//! Anonymous memory that stays, and files mapped for the kernel to read.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::OFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Maps `length` zeroed bytes, page-aligned, for the rest of the process's life (`mmap(2)`).
///
/// What the kernel may write to behind our back (registered buffers, rings of provided buffers) is never unmapped, so
/// that nothing can dangle; it is a fixed amount per shard.
///
/// # Errors
/// `ENOMEM`.
pub fn map_forever(length: usize) -> io::Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh anonymous mapping aliases nothing.
    let base = unsafe {
        rustix::mm::mmap_anonymous(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags)
    }?;
    NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

/// A file mapped for the kernel to read from: its bytes are never touched from here, so what happens to the file can
/// raise no SIGBUS.
#[derive(Debug)]
pub struct View {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: an address and a length; the mapping belongs to the process and its bytes are not accessed.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Maps the first `length` bytes of `file` (`mmap(2)`, shared, read only), from its first byte on.
    ///
    /// # Errors
    /// `EINVAL` for no bytes, `EPERM` where `mincore(2)` would call every page resident because this process neither owns
    /// the file nor may write to it (5.2); else the errno of `mmap(2)`.
    pub fn new(file: &OwnedFd, length: u64) -> io::Result<Self> {
        if !residency_is_told(file)? {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let length = usize::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a fresh mapping aliases nothing, and nothing in this process reads or writes it.
        let base =
            unsafe { rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { base, length })
    }

    /// Whether every page of the range is in the page cache (`mincore(2)`; some 10 ns a page).
    pub fn is_resident(&self, position: u64, length: usize) -> bool {
        const PAGE: usize = 4096; // on machines with larger pages the answer has fewer bytes
        const STEP: usize = 512;
        let Some(end) = usize::try_from(position).ok().and_then(|start| start.checked_add(length)) else {
            return false;
        };
        if end > self.length || length == 0 {
            return false;
        }
        let mut at = (end - length) / page_size() * page_size();
        let mut pages = [0_u8; STEP];
        while at < end {
            let step = (end - at).min(STEP * PAGE);
            let start = self.base.as_ptr().wrapping_add(at).cast();
            // SAFETY: `start` is a page's start within the mapping, and `pages` has a byte for each page of the step.
            let told = unsafe { libc::mincore(start, step, pages.as_mut_ptr()) };
            if told != 0 || pages[..step.div_ceil(page_size())].iter().any(|page| page & 1 == 0) {
                return false;
            }
            at += step;
        }
        true
    }

    /// Where a byte of the file is mapped; for the kernel only.
    ///
    /// # Panics
    /// When it lies outside of the mapping.
    pub fn address(&self, position: u64) -> *const u8 {
        let position = usize::try_from(position).ok().filter(|&position| position < self.length);
        self.base.as_ptr().wrapping_add(position.expect("within the mapping"))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length; those that send from it hold the view.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The kernel's rule for who is told which pages of a file are resident.
fn residency_is_told(file: &OwnedFd) -> io::Result<bool> {
    let owner = rustix::fs::fstat(file)?.st_uid;
    let user = rustix::process::geteuid();
    let writable = rustix::fs::fcntl_getfl(file)?.intersects(OFlags::RDWR | OFlags::WRONLY);
    Ok(user.is_root() || user.as_raw() == owner || writable)
}

fn page_size() -> usize {
    rustix::param::page_size()
}
