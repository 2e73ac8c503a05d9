//! Block device ioctls that rustix does not wrap (linux/fs.h).

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

const BLKROGET: Opcode = opcode::none(0x12, 94);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);
const BLKDISCARD: Opcode = opcode::none(0x12, 119);

/// Size of a block device, in bytes.
pub fn block_size_bytes(device: impl AsFd) -> io::Result<u64> {
    // SAFETY: BLKGETSIZE64 stores one u64, whatever the size_t in its number says.
    let size = unsafe { Getter::<BLKGETSIZE64, u64>::new() };
    // SAFETY: `size` is what this ioctl wants.
    Ok(unsafe { ioctl(device, size) }?)
}

/// Whether a block device is write-protected. One that is can be opened for writing all the same.
pub fn is_readonly(device: impl AsFd) -> io::Result<bool> {
    // SAFETY: BLKROGET stores one int.
    let flag = unsafe { Getter::<BLKROGET, i32>::new() };
    // SAFETY: `flag` is what this ioctl wants.
    Ok(unsafe { ioctl(device, flag) }? != 0)
}

/// Tells the device that a range is no longer needed; both ends must be multiples of its logical block size.
/// What the range reads as afterwards is up to the device.
pub fn discard(device: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64: offset and length.
    let range = unsafe { Setter::<BLKDISCARD, [u64; 2]>::new([offset, length]) };
    // SAFETY: `range` is what this ioctl wants.
    Ok(unsafe { ioctl(device, range) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_file_is_no_device() {
        let file = tempfile::tempfile().unwrap();
        assert!(
            block_size_bytes(&file).is_err()
                && is_readonly(&file).is_err()
                && discard(&file, 0, 512).is_err()
        );
    }
}
