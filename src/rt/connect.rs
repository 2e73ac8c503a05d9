//! Connecting on the ring, so that a server that does not answer holds up one task and not its shard.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, types};
use socket2::SockAddr;

use super::file::checked;
use super::op::Op;

/// Connects `socket`, a stream socket of the address's family; dropping the future gives the attempt up.
///
/// # Errors
/// The errno of `connect(2)`.
pub async fn connect(socket: OwnedFd, address: SockAddr) -> io::Result<OwnedFd> {
    let address = Box::new(address);
    let fd = types::Fd(socket.as_raw_fd());
    let sqe = opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build();
    let op = super::with(|shard| Op::submit(shard, sqe, (socket, address)).cancel_on_drop());
    let (completion, (socket, _)) = op.await;
    checked(completion.result).map(|_| socket)
}
