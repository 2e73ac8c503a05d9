//! ioctls of the kernel's NBD client (linux/nbd.h), for where its netlink family is not to be had.
//!
//! All of them want CAP_SYS_ADMIN, and all but [`disconnect`] and [`clear_socket`] answer EINVAL on a device that was
//! attached over netlink.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::ioctl::{IntegerSetter, NoArg, Opcode, Setter, ioctl, opcode};

const SET_SOCK: Opcode = opcode::none(0xab, 0);
const SET_BLKSIZE: Opcode = opcode::none(0xab, 1);
const DO_IT: Opcode = opcode::none(0xab, 3);
const CLEAR_SOCK: Opcode = opcode::none(0xab, 4);
const CLEAR_QUE: Opcode = opcode::none(0xab, 5);
const SET_SIZE_BLOCKS: Opcode = opcode::none(0xab, 7);
const DISCONNECT: Opcode = opcode::none(0xab, 8);
const SET_TIMEOUT: Opcode = opcode::none(0xab, 9);
const SET_FLAGS: Opcode = opcode::none(0xab, 10);
const BLKROSET: Opcode = opcode::none(0x12, 93);

/// Gives the device a connection. EBUSY: it has one.
pub fn set_socket(device: impl AsFd, socket: BorrowedFd<'_>) -> io::Result<()> {
    let number = usize::try_from(socket.as_raw_fd()).map_err(io::Error::other)?;
    set::<SET_SOCK>(device, number)
}

/// Bytes of a block: a power of two from 512 up to a page.
pub fn set_block_size(device: impl AsFd, bytes: usize) -> io::Result<()> {
    set::<SET_BLKSIZE>(device, bytes)
}

/// Size of the device, in its blocks.
pub fn set_size_blocks(device: impl AsFd, blocks: usize) -> io::Result<()> {
    set::<SET_SIZE_BLOCKS>(device, blocks)
}

/// Transmission flags of the export. ENOTTY: a kernel before 3.9.
pub fn set_flags(device: impl AsFd, flags: u16) -> io::Result<()> {
    set::<SET_FLAGS>(device, flags.into())
}

/// Seconds after which an unanswered request fails and the connection with it; 0 for never.
pub fn set_timeout(device: impl AsFd, seconds: usize) -> io::Result<()> {
    set::<SET_TIMEOUT>(device, seconds)
}

/// Write-protects the device (BLKROSET).
pub fn set_read_only(device: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKROSET reads one int.
    let flag = unsafe { Setter::<BLKROSET, i32>::new(1) };
    // SAFETY: `flag` is what this ioctl wants.
    Ok(unsafe { ioctl(device, flag) }?)
}

/// Serves the device from its connection; returns when that is over. EPIPE: the server closed it.
pub fn do_it(device: impl AsFd) -> io::Result<()> {
    call::<DO_IT>(device)
}

/// Fails the requests that wait.
pub fn clear_queue(device: impl AsFd) -> io::Result<()> {
    call::<CLEAR_QUE>(device)
}

/// Takes the connection away.
pub fn clear_socket(device: impl AsFd) -> io::Result<()> {
    call::<CLEAR_SOCK>(device)
}

/// Says goodbye to the server.
pub fn disconnect(device: impl AsFd) -> io::Result<()> {
    call::<DISCONNECT>(device)
}

fn call<const OPCODE: Opcode>(device: impl AsFd) -> io::Result<()> {
    // SAFETY: of this file's opcodes, those that come here take no argument.
    let nothing = unsafe { NoArg::<OPCODE>::new() };
    // SAFETY: `nothing` is what this ioctl wants.
    Ok(unsafe { ioctl(device, nothing) }?)
}

fn set<const OPCODE: Opcode>(device: impl AsFd, value: usize) -> io::Result<()> {
    // SAFETY: of this file's opcodes, those that come here take a number, which the kernel checks.
    let number = unsafe { IntegerSetter::<OPCODE>::new_usize(value) };
    // SAFETY: `number` is what this ioctl wants.
    Ok(unsafe { ioctl(device, number) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_file_is_no_device() {
        let file = tempfile::tempfile().unwrap();
        let errno = |result: io::Result<()>| result.unwrap_err().raw_os_error();
        assert_eq!(errno(set_socket(&file, file.as_fd())), Some(libc::ENOTTY));
        assert_eq!(errno(set_block_size(&file, 512)), Some(libc::ENOTTY));
        assert_eq!(errno(set_size_blocks(&file, 1)), Some(libc::ENOTTY));
        assert_eq!(errno(set_flags(&file, 1)), Some(libc::ENOTTY));
        assert_eq!(errno(do_it(&file)), Some(libc::ENOTTY));
        assert_eq!(errno(disconnect(&file)), Some(libc::ENOTTY));
    }
}
