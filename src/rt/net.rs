//! Sockets on the ring: accept, receive, send; one function per opcode.
//!
//! * Accepting and receiving are multishot: one SQE, a completion per connection or per arrival, into provided buffers.
//! * A large payload is received by single receives straight into the buffer that will be written.
//! * Sending is one gathered message at a time; short sends resume where they stopped.
//!
//! Every operation keeps its socket open until its last completion, so that a descriptor number can not come to mean
//! another connection while an SQE with it waits to be submitted.

use std::cell::Cell;
use std::future;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use super::Shard;
use super::buffer::Buffer;
use super::buffer_ring::{GROUP, Received};
use super::fault::Kind;
use super::file::{checked, faults_planned, judge};
use super::gather::Gather;
use super::op::{Completion, Op, Stream};
use super::sync::Event;

/// A connected socket.
pub struct Socket {
    fd: OwnedFd,
    /// When bytes last moved, on the shard's clock.
    moved_ns: Cell<u64>,
}

impl Socket {
    /// Takes over a connected stream socket.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, moved_ns: Cell::new(0) }
    }

    /// The descriptor, for socket options and names.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// When a send or an in-place receive last made progress, in nanoseconds on the shard's clock; 0 for never.
    pub fn moved_ns(&self) -> u64 {
        self.moved_ns.get()
    }

    /// Notes that bytes moved now.
    pub(super) fn moved(&self) {
        self.moved_ns.set(super::now_ns());
    }

    /// Ends both directions at once (`shutdown(2)`): operations in flight complete, the peer sees the end.
    pub fn shutdown(&self) {
        // ENOTCONN when the peer was faster; the outcome is the same.
        let _ = socket2::SockRef::from(&self.fd).shutdown(Shutdown::Both);
    }

    /// Receives into `buffer[range]` until it is full or the stream ends; answers the count.
    ///
    /// # Errors
    /// The errno of `recv(2)`.
    pub async fn receive_into(
        self: &Rc<Self>,
        mut buffer: Buffer,
        range: Range<usize>,
    ) -> (io::Result<usize>, Buffer) {
        let mut done = 0;
        while done < range.len() {
            let part = range.start + done..range.end;
            let mut length = part.len();
            if faults_planned() {
                match Box::pin(judge(Kind::Receive, length)).await {
                    Ok(shorter) => length = shorter,
                    Err(_) => continue, // EINTR, EAGAIN: again
                }
            }
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            let start = buffer[part].as_mut_ptr();
            let sqe = opcode::Recv::new(types::Fd(self.fd.as_raw_fd()), start, length)
                .flags(libc::MSG_WAITALL)
                .build();
            let kept = (buffer, Rc::clone(self));
            let (completion, kept) = super::with(|shard| Op::submit(shard, sqe, kept)).await;
            buffer = kept.0;
            match checked(completion.result) {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    self.moved();
                }
                Err(error) if is_retried(&error) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(done), buffer)
    }

    /// Sends everything gathered; the gather comes back to be cleared and used again.
    ///
    /// # Errors
    /// The errno of `sendmsg(2)`; a prefix may have been sent.
    pub async fn send(self: &Rc<Self>, mut gather: Box<Gather>) -> (io::Result<()>, Box<Gather>) {
        gather.lay_out();
        // What a short send leaves of much is a part of it.
        let length = gather.len();
        while gather.remains() {
            if faults_planned() && Box::pin(judge(Kind::Send, 1)).await.is_err() {
                continue; // EINTR, EAGAIN: again
            }
            let message = gather.message(super::with(|shard| shard.heavy.piece()));
            let flags = (libc::MSG_NOSIGNAL | gather.flags()).unsigned_abs();
            let sqe = opcode::SendMsg::new(types::Fd(self.fd.as_raw_fd()), message).flags(flags).build();
            let kept = (gather, Rc::clone(self));
            let op = super::with(|shard| Op::submit_weighed(shard, sqe, kept, length));
            let (completion, kept) = op.await;
            gather = kept.0;
            match checked(completion.result) {
                Ok(count) => {
                    gather.advance(count);
                    self.moved();
                }
                Err(error) if is_retried(&error) => {}
                Err(error) => return (Err(error), gather),
            }
        }
        (Ok(()), gather)
    }
}

pub(super) fn is_retried(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// The receiving half of a socket: a multishot receive into provided buffers, armed while it is wanted.
pub struct Receiver {
    socket: Rc<Socket>,
    stream: Option<Stream>,
}

impl Receiver {
    /// Receives from `socket`; nothing is armed yet.
    pub fn new(socket: Rc<Socket>) -> Self {
        Self { socket, stream: None }
    }

    /// The socket received from.
    pub fn socket(&self) -> &Rc<Socket> {
        &self.socket
    }

    /// The next bytes, `None` at the end of the stream. Dropping the future loses nothing.
    ///
    /// With a `limit`, a receive that is not armed yet is a single one of at most so many bytes: what follows a header
    /// then stays in the socket and can be received where it belongs.
    ///
    /// # Errors
    /// The errno of `recv(2)`.
    pub async fn next(&mut self, limit: Option<u32>) -> io::Result<Option<Received>> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => self.stream.insert(arm(&self.socket, limit)),
            };
            let Some(completion) = future::poll_fn(|context| stream.poll_next(context)).await else {
                self.stream = None;
                continue;
            };
            match received(completion) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    // All buffers of the shard were out. Those that are held come back as soon as their bytes are parsed;
                    // with none held they came back before this was looked at, and nothing would wake us.
                    let shard = super::current();
                    if shard.receive_buffers.is_held() {
                        wait_for_buffer(&shard.receive_buffers.returned).await;
                    }
                }
                Err(error) if is_retried(&error) || error.raw_os_error() == Some(libc::ECANCELED) => {}
                other => return other,
            }
        }
    }

    /// Disarms the multishot receive, so that single receives may follow. What arrived meanwhile is appended to
    /// `arrived` in order.
    ///
    /// # Errors
    /// The errno of `recv(2)`.
    pub async fn disarm(&mut self, arrived: &mut Vec<Received>) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        stream.cancel();
        while let Some(completion) = future::poll_fn(|context| stream.poll_next(context)).await {
            match received(completion) {
                Ok(Some(bytes)) => arrived.push(bytes),
                Ok(None) => {} // the end of the stream: the next receive says so again
                Err(error) => match error.raw_os_error() {
                    Some(libc::ECANCELED | libc::ENOBUFS | libc::EINTR | libc::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
        }
        self.stream = None;
        Ok(())
    }
}

async fn wait_for_buffer(returned: &Event) {
    returned.wait().await;
}

fn arm(socket: &Rc<Socket>, limit: Option<u32>) -> Stream {
    let fd = types::Fd(socket.fd.as_raw_fd());
    let sqe = match limit {
        None => opcode::RecvMulti::new(fd, GROUP).build(),
        Some(limit) => opcode::Recv::new(fd, ptr::null_mut(), limit)
            .buf_group(GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT),
    };
    super::with(|shard| {
        Stream::submit(shard, sqe, Rc::<Socket>::clone(socket), |shard, completion| {
            drop(Received::from_completion(shard, completion));
        })
    })
}

fn received(completion: Completion) -> io::Result<Option<Received>> {
    let bytes = super::with(|shard| Received::from_completion(shard, completion));
    match checked(completion.result)? {
        0 => Ok(None),
        _ => Ok(bytes),
    }
}

/// A listening socket's multishot accept.
pub struct Acceptor {
    listener: Rc<OwnedFd>,
    stream: Option<Stream>,
}

impl Acceptor {
    /// Accepts from a listening socket; nothing is armed yet.
    pub fn new(listener: OwnedFd) -> Self {
        Self { listener: Rc::new(listener), stream: None }
    }

    /// The next connection. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The errno of `accept4(2)`; `EMFILE` and the like pass, so wait a moment and go on.
    pub async fn next(&mut self) -> io::Result<OwnedFd> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => self.stream.insert(listen(&self.listener)),
            };
            let Some(completion) = future::poll_fn(|context| stream.poll_next(context)).await else {
                self.stream = None;
                continue;
            };
            match checked(completion.result) {
                Ok(_) => return Ok(accepted(completion.result)),
                Err(error) if is_retried(&error) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ECANCELED | libc::ECONNABORTED) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

fn listen(listener: &Rc<OwnedFd>) -> Stream {
    let sqe = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
    super::with(|shard| {
        Stream::submit(shard, sqe, Rc::<OwnedFd>::clone(listener), |_: &Shard, completion| {
            if completion.result >= 0 {
                drop(accepted(completion.result));
            }
        })
    })
}

fn accepted(fd: i32) -> OwnedFd {
    // SAFETY: a successful accept hands over a descriptor that nobody else owns; each completion is consumed once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
