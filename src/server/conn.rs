//! One connection in transmission, and the obligation that each of its requests is.
//!
//! ```text
//!   receive --slot of the window--> Pending --answer--> reply queue --> send --> slot returned
//!                                      '--dropped (shard ends)--> abandoned, slot returned
//! ```
//!
//! A slot is held from before a request is parsed until its reply was handed to the socket; so the window bounds
//! requests, replies and the payload memory they hold.

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use smallvec::SmallVec;

use super::export::Export;
use super::peer::Address;
use super::shard::ShardState;
use super::transport::Way;
use crate::metrics::{CommandKind, Counter, Sample};
use crate::net::tls;
use crate::proto::{self, Command, Errno, Head, Request, Session};
use crate::rt::net::Socket;
use crate::rt::sync::{Either, Event, Queue, Semaphore, select};
use crate::rt::{self, Buffer, Cached, timer};

/// A connection after its handshake.
pub(super) struct Connection {
    pub(super) shard: Rc<ShardState>,
    pub(super) link: Rc<Link>,
    pub(super) session: Session,
    pub(super) window: Semaphore,
    pub(super) replies: Queue<Reply>,
    /// No reply follows those that are queued: the send task ends when the queue is empty.
    pub(super) closing: Cell<bool>,
    pub(super) in_flight: Cell<usize>,
    pub(super) idle: Event,
}

/// What the shard knows of a connection, handshake included: enough to end it.
pub(super) struct Link {
    pub(super) socket: Rc<Socket>,
    /// Where it comes from; so the log calls it.
    pub(super) peer: Address,
    /// How payload that the page cache holds gets into the socket.
    pub(super) way: Cell<Way>,
    /// Whether large sends are tried without a copy: until the kernel says that it made one.
    pub(super) lends: Cell<bool>,
    /// Since when the current transfer, a send or the receipt of a payload, is under way.
    pub(super) transfer_since: Cell<Option<u64>>,
    /// The server drains or stops now.
    pub(super) phase_changed: Event,
    /// What encrypts it, once TLS has begun.
    pub(super) tls: OnceCell<Secured>,
    /// It was closed by us for a reason that was logged and counted already.
    pub(super) evicted: Cell<bool>,
}

/// A TLS session, shared by who receives and who sends.
pub(super) type Secured = Rc<RefCell<tls::Session>>;

/// What goes out for one request.
pub(super) struct Reply {
    pub(super) body: Body,
    pub(super) ticket: Ticket,
}

/// The bytes of a reply.
pub(super) enum Body {
    /// Nothing but a header.
    Head(Head),
    /// A payload with its header in the buffer's headroom.
    Buffer(Buffer),
    /// Chunks: headers alone, and headers with payload.
    Pieces(Vec<Piece>),
    /// Chunks: headers, each with the part of the one payload that follows it.
    Parts(Buffer, Vec<(Head, Range<usize>)>),
    /// Bytes made for this reply (errors, block status).
    Bytes(Vec<u8>),
    /// A header, and a payload that is sent from the page cache.
    Cached(Head, Cached),
}

/// A chunk of a reply.
pub(super) enum Piece {
    Head(Head),
    Buffer(Buffer),
}

/// What is measured of a request.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub(super) kind: Option<CommandKind>,
    pub(super) parsed_ns: u64,
    pub(super) queued_ns: u64,
    pub(super) backend_ns: u64,
    pub(super) bytes: u64,
    pub(super) errno: Errno,
}

impl Connection {
    pub(super) fn new(shard: Rc<ShardState>, link: Rc<Link>, session: Session) -> Rc<Self> {
        let window = Semaphore::new(shard.limits.window as usize);
        Rc::new(Self {
            shard,
            link,
            session,
            window,
            replies: Queue::new(),
            closing: Cell::new(false),
            in_flight: Cell::new(0),
            idle: Event::new(),
        })
    }

    pub(super) fn export(&self) -> &Export {
        &self.shard.exports[self.session.export]
    }

    /// Payload memory, waiting in line for it. Who waits too long closes a stuck connection, but never its own.
    pub(super) async fn payload(&self, length: usize) -> Buffer {
        match Buffer::try_acquire(length) {
            Some(buffer) => buffer,
            None => self.insist(Buffer::acquire(length)).await,
        }
    }

    /// The same for a reply in several pieces.
    pub(super) async fn payloads(&self, lengths: &[usize]) -> Vec<Buffer> {
        self.insist(Buffer::acquire_all(lengths.iter().copied())).await
    }

    async fn insist<T>(&self, acquire: impl Future<Output = T>) -> T {
        self.shard.count(Counter::PayloadWaits);
        let mut acquire = pin!(acquire);
        let mut patience = self.shard.limits.stall_grace;
        loop {
            match select(acquire.as_mut(), timer::sleep(patience)).await {
                Either::First(got) => return got,
                Either::Second(()) => self.shard.evict_stuck(&self.link, patience),
            }
            // Those who took the freed memory may be of the same kind; the wait has been long enough.
            patience = self.shard.limits.stall_grace / 5;
        }
    }

    /// Waits until every request has been answered and its reply sent or dropped.
    pub(super) async fn drained(&self) {
        while self.in_flight.get() > 0 {
            self.idle.wait().await;
        }
    }

    /// The reply is out (or nobody is left to read it): measure, free the slot.
    pub(super) fn settle(&self, ticket: &Ticket, sent: bool) {
        if let Some(kind) = ticket.kind {
            let export = self.session.export;
            let mut metrics = self.shard.metrics.borrow_mut();
            if sent {
                let sample = Sample {
                    service_ns: rt::now_ns().saturating_sub(ticket.parsed_ns),
                    backend_ns: ticket.backend_ns,
                    queued_ns: ticket.queued_ns,
                    bytes: ticket.bytes,
                    errno: ticket.errno.0,
                };
                metrics.end(export, kind, &sample);
            } else {
                metrics.abandon(export, kind);
            }
        }
        self.window.release(1);
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.idle.notify();
        }
    }
}

/// A request that must be answered, exactly once.
pub(super) struct Pending {
    pub(super) conn: Rc<Connection>,
    pub(super) request: Request,
    /// Wire ids of the contexts that a filtered block status asks about; empty: all.
    pub(super) filter: SmallVec<[u32; 4]>,
    backend_ns: Cell<u64>,
    ticket: RefCell<Option<Ticket>>,
}

impl Pending {
    /// Takes a slot that the caller acquired from the window.
    pub(super) fn begin(conn: &Rc<Connection>, request: Request, queued_ns: u64) -> Self {
        let kind = kind_of(request.command);
        if let Some(kind) = kind {
            conn.shard.metrics.borrow_mut().begin(conn.session.export, kind);
        }
        conn.in_flight.set(conn.in_flight.get() + 1);
        let ticket = Ticket {
            kind,
            parsed_ns: rt::now_ns(),
            queued_ns,
            backend_ns: 0,
            bytes: request.length,
            errno: Errno::OK,
        };
        Self {
            conn: Rc::clone(conn),
            request,
            filter: SmallVec::new(),
            backend_ns: Cell::new(0),
            ticket: RefCell::new(Some(ticket)),
        }
    }

    /// Times a call of the backend: from now until the guard is dropped.
    pub(super) fn timing(&self) -> Timing<'_> {
        Timing { total_ns: &self.backend_ns, start_ns: rt::now_ns() }
    }

    pub(super) fn answer(self, body: Body) {
        self.reply(body, Errno::OK);
    }

    /// Answers with an error: an errno, and a sentence where the dialect has room for one.
    pub(super) fn refuse(self, errno: Errno, text: &str, at: Option<u64>) {
        let dialect = self.conn.session.dialect;
        let mut bytes = Vec::new();
        proto::reply::error(&mut bytes, dialect, &self.request, errno, text, at);
        self.reply(Body::Bytes(bytes), errno);
    }

    fn reply(self, body: Body, errno: Errno) {
        let Some(mut ticket) = self.ticket.take() else { return };
        ticket.errno = errno;
        if errno != Errno::OK {
            ticket.bytes = 0; // none of them moved, and a refused length can be anything
        }
        ticket.backend_ns = self.backend_ns.get();
        if self.conn.closing.get() {
            return self.conn.settle(&ticket, false);
        }
        self.conn.replies.push(Reply { body, ticket });
    }
}

/// A call of the backend being timed.
pub(super) struct Timing<'a> {
    total_ns: &'a Cell<u64>,
    start_ns: u64,
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        self.total_ns.set(self.total_ns.get() + rt::now_ns().saturating_sub(self.start_ns));
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            debug_assert!(
                self.conn.shard.is_ending() || std::thread::panicking(),
                "request dropped unanswered"
            );
            self.conn.settle(&ticket, false);
        }
    }
}

fn kind_of(command: Command) -> Option<CommandKind> {
    Some(match command {
        Command::READ => CommandKind::Read,
        Command::WRITE => CommandKind::Write,
        Command::FLUSH => CommandKind::Flush,
        Command::TRIM => CommandKind::Trim,
        Command::WRITE_ZEROES => CommandKind::WriteZeroes,
        Command::CACHE => CommandKind::Cache,
        Command::BLOCK_STATUS => CommandKind::BlockStatus,
        _ => return None,
    })
}
