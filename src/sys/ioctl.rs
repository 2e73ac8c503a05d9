//! Block device ioctls that rustix does not wrap (linux/fs.h).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

// `_IOR(0x12, 114, size_t)` and `_IO(0x12, nr)`; the same on every architecture that Linux 6.1 runs io_uring on but
// MIPS, PowerPC and SPARC, whose `_IOC` layout differs.
#[cfg(not(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc64"
)))]
mod numbers {
    pub(super) const BLKGETSIZE64: libc::Ioctl =
        (2 << 30) | ((size_of::<usize>() as libc::Ioctl) << 16) | (0x12 << 8) | 114;
    pub(super) const BLKDISCARD: libc::Ioctl = (0x12 << 8) | 119;
}
#[cfg(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc64"
))]
mod numbers {
    pub(super) const BLKGETSIZE64: libc::Ioctl =
        (2 << 29) | ((size_of::<usize>() as libc::Ioctl) << 16) | (0x12 << 8) | 114;
    pub(super) const BLKDISCARD: libc::Ioctl = (1 << 29) | (0x12 << 8) | 119;
}

/// Size of a block device, in bytes.
pub fn block_size_bytes(device: impl AsFd) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: BLKGETSIZE64 stores one u64 through the pointer, which `size` outlives.
    let code = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), numbers::BLKGETSIZE64, &raw mut size) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(size) }
}

/// Tells the device that a range is no longer needed; both ends must be multiples of its logical block size.
/// What the range reads as afterwards is up to the device.
pub fn discard(device: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: BLKDISCARD reads two u64 through the pointer, which `range` outlives.
    let code = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), numbers::BLKDISCARD, range.as_ptr()) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
