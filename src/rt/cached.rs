//! Payload that the page cache has already: sent from there, without a buffer of ours.
//!
//! ```text
//!   unix socket   Gather::cached    an iovec into a mapping of the file: one copy, page cache to socket, instead of two
//!   TCP           Socket::send_file sendfile(2): the socket refers to the cache's pages, nothing is copied
//! ```
//!
//! * Only what is resident goes this way, or the shard would wait for the disk. [`CachedFile::range`] asks `mincore(2)`; a page
//!   that is reclaimed between the question and the send is read by the shard, which is slow, rare and right.
//! * The mapping is for the kernel to read from. Nothing here touches it, so a file that is cut short makes a send fail
//!   (`EFAULT`, or the end of the file) and no SIGBUS.
//! * Pages that a TCP socket refers to go out as they are when the peer's side takes them: a write that overlaps a READ in
//!   flight may show in it, as the protocol allows. A hole punched meanwhile does not, since the pages leave the file then.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{opcode, types};
use rustix::fs::OFlags;

use super::file::checked;
use super::net::{Socket, is_retried};
use super::op::Op;
use crate::sys::mmap::View;

/// Bytes handed to a socket before others on the shard have their turn.
const TURN_MAX: usize = 256 << 10;

/// A file whose pages can be sent as they are. One for all shards.
#[derive(Debug)]
pub struct CachedFile {
    fd: Arc<OwnedFd>,
    view: View,
}

impl CachedFile {
    /// Maps the first `length` bytes of a file; nothing is read.
    ///
    /// # Errors
    /// `EPERM` where the kernel does not tell this process what is resident: it must own the file or be allowed to write
    /// to it (`mincore(2)`, 5.2). Else the errno of `mmap(2)`.
    pub fn new(fd: Arc<OwnedFd>, length: u64) -> io::Result<Self> {
        let view = View::new(&fd, length)?;
        Ok(Self { fd, view })
    }

    /// The range, if all of it is in memory now.
    pub fn range(self: &Arc<Self>, position: u64, length: usize) -> Option<Cached> {
        self.view.is_resident(position, length).then(|| Cached { file: Arc::clone(self), position, length })
    }
}

/// A range of a file that was in memory a moment ago.
#[derive(Clone, Debug)]
pub struct Cached {
    file: Arc<CachedFile>,
    position: u64,
    length: usize,
}

impl Cached {
    /// Bytes in it.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Where it is mapped.
    pub(super) fn start(&self) -> *const u8 {
        self.file.view.address(self.position)
    }
}

impl Socket {
    /// Sends a range of a file from the page cache (`sendfile(2)`; TCP only).
    ///
    /// # Errors
    /// `UnexpectedEof` where the file was cut short, else the errno of `sendfile(2)`; a prefix may have been sent.
    pub async fn send_file(self: &Rc<Self>, cached: &Cached) -> io::Result<()> {
        let (mut position, end) = (cached.position, cached.position + cached.length as u64);
        while position < end {
            let count = usize::try_from(end - position).unwrap_or(usize::MAX).min(TURN_MAX);
            match self.send_file_now(&cached.file.fd, &mut position, count) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    self.moved();
                    if position < end {
                        super::next_turn().await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) if is_retried(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the socket takes at once. `sendfile` looks at the socket's own O_NONBLOCK and at nothing else, whereas an
    /// operation of the ring that finds it fails instead of waiting: so it is set for the moment of the call, in which
    /// the kernel issues no operation of this thread's ring.
    fn send_file_now(&self, file: &OwnedFd, position: &mut u64, count: usize) -> io::Result<usize> {
        rustix::fs::fcntl_setfl(self.fd(), OFlags::RDWR | OFlags::NONBLOCK)?;
        let sent = rustix::fs::sendfile(self.fd(), file, Some(position), count);
        rustix::fs::fcntl_setfl(self.fd(), OFlags::RDWR)?;
        Ok(sent?)
    }

    async fn writable(self: &Rc<Self>) -> io::Result<()> {
        let events = u32::from(libc::POLLOUT.unsigned_abs());
        let sqe = opcode::PollAdd::new(types::Fd(self.fd().as_raw_fd()), events).build();
        let op = super::with(|shard| Op::submit(shard, sqe, Rc::clone(self)));
        checked(op.await.0.result).map(drop)
    }
}
