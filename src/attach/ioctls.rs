//! The way without netlink: one connection, and a thread that waits in the kernel for as long as the device lasts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::device::Device;
use super::plan::Plan;
use super::{AttachError, open_device, refused};
use crate::proto::TransmissionFlags;
use crate::sys::nbd;

/// A device with its connection, that nobody serves yet.
#[derive(Debug)]
pub struct Held {
    device: Device,
    file: File,
    bytes_lost: u64,
    /// The kernel's own reference is enough; a process that waits may as well show what it waits for.
    _sockets: Vec<OwnedFd>,
}

pub(super) fn prepare(
    device: Device,
    plan: &Plan,
    timeout_s: u32,
    sockets: Vec<OwnedFd>,
) -> Result<Held, AttachError> {
    let blocks = plan.blocks()?;
    let file = open_device(device)?;
    if device.holder().is_some() {
        return Err(AttachError::Busy(device));
    }
    for socket in &sockets {
        nbd::set_socket(&file, socket.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => AttachError::Busy(device),
            _ => refused(device.to_string(), "give it a connection", error),
        })?;
    }
    let told = describe(&file, plan, blocks, timeout_s)
        .map_err(|(what, error)| refused(device.to_string(), what, error));
    told.and_then(|()| device.limit_requests(plan)).inspect_err(|_| {
        // What failed first is what is told.
        let _ = nbd::clear_socket(&file);
    })?;
    Ok(Held { device, file, bytes_lost: plan.bytes_lost, _sockets: sockets })
}

fn describe(
    file: &File,
    plan: &Plan,
    blocks: usize,
    timeout_s: u32,
) -> Result<(), (&'static str, io::Error)> {
    let block = usize::try_from(plan.block).unwrap_or(usize::MAX);
    nbd::set_block_size(file, block).map_err(|error| ("set its block size", error))?;
    nbd::set_size_blocks(file, blocks).map_err(|error| ("set its size", error))?;
    match nbd::set_flags(file, plan.flags.0) {
        // A kernel that knows no flags can still keep others from writing.
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            if plan.flags.contains(TransmissionFlags::READ_ONLY) {
                nbd::set_read_only(file).map_err(|error| ("write-protect it", error))?;
            }
        }
        outcome => outcome.map_err(|error| ("set its flags", error))?,
    }
    if timeout_s > 0 {
        let seconds = usize::try_from(timeout_s).unwrap_or(usize::MAX);
        nbd::set_timeout(file, seconds).map_err(|error| ("set its timeout", error))?;
    }
    Ok(())
}

impl Held {
    /// Bytes at the end of the export that make no whole block, and that the device does not reach.
    pub fn bytes_lost(&self) -> u64 {
        self.bytes_lost
    }

    /// Serves the device until it is detached, the server goes, or a request is not answered in time.
    ///
    /// # Errors
    /// [`AttachError::Refused`] with what ended the connection, as far as the kernel says so: later ones (6.1 for one) do
    /// not tell a timeout from a goodbye.
    pub fn serve(self) -> Result<(), AttachError> {
        let end = nbd::do_it(&self.file);
        // The device is to be free for the next whatever these say, and why the connection ended is what is told.
        let _ = nbd::clear_queue(&self.file);
        let _ = nbd::clear_socket(&self.file);
        match end {
            // A server that closes the connection after a goodbye.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => Ok(()),
            end => end.map_err(|error| refused(self.device.to_string(), "serve it", error)),
        }
    }
}

/// Ends what another process serves.
pub(super) fn disconnect(device: Device) -> Result<(), AttachError> {
    let file = open_device(device)?;
    // The first is for old kernels, the second for a server that may be gone; the last is the one that counts.
    let _ = nbd::clear_queue(&file);
    let _ = nbd::disconnect(&file);
    nbd::clear_socket(&file).map_err(|error| refused(device.to_string(), "take its connection", error))
}
