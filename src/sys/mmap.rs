//! Anonymous memory that stays.

use std::io;
use std::ptr::{self, NonNull};

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
