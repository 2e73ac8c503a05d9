//! One connection with many requests in flight: a task that sends what is ready, a task that takes replies.
//!
//! ```text
//!   call --window--> session slot, out queue --send task: one gather of all that is ready--> socket
//!     ^                                                                                        |
//!     '--- outcome, buffer ---- slot <--- receive task: into the buffer of the slot <----------'
//! ```
//!
//! # Invariants
//! * A buffer is with its call's slot, or lent to the one task that moves its bytes; a call ends only when it has both its
//!   outcome and its buffer back. So a caller never gets a buffer that the kernel still reads or writes.
//! * A caller that stops waiting leaves its slot behind, which is freed by the reply: cookies are not used again before.
//! * When the connection breaks, every call ends: those in flight have [`Fault::Lost`] for an outcome.

mod call;

use std::cell::{Cell, RefCell};
use std::future;
use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::connection::Connection;
use super::session::Session;
use crate::net::{Inbox, Line};
use crate::proto::reply_decode::ReplyError;
use crate::proto::{Command, CommandFlags, Link, Reply, ReplyBody, Request, Violation};
use crate::rt::gather::Gather;
use crate::rt::sync::{Either, Event, Queue, Semaphore, select};
use crate::rt::{self, Buffer, timer};
use call::{Answer, Call, Loan, Permit, Queued};

/// Bytes gathered for one send, so that the first request of a large batch does not wait for the last.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Longest reply header without text: what to receive when headers are received ahead of large payloads.
const REPLY_HEAD_MAX: usize = 32;
/// More requests in flight than any server takes; each has a slot from the start.
const WINDOW_MAX: u32 = 65_536;
/// Holes of one read that are remembered apart, so that a server cannot make us hold many times what was read.
const HOLES_MAX: usize = 65_536;
/// How often a request timeout is looked at within its length.
const LOOKS: u32 = 8;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// For a BLOCK_STATUS: which contexts, by their place in the client's list; all that were agreed on answer unless
    /// `filter` says so to the server.
    pub(super) contexts: &'a [usize],
    pub(super) filter: bool,
}

/// What a reply told besides the bytes in the buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Ranges of a read that the server told to be holes, in the order told.
    pub(super) holes: Vec<(u64, u64)>,
    /// Extents, by the context's place in the client's list.
    pub(super) extents: Vec<(usize, Vec<(u64, u64)>)>,
}

/// Why a call came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server says no.
    Refused(ReplyError),
    /// The connection broke; what became of the request is not known.
    Lost,
    /// The slot's contexts are not on this connection.
    NoContext,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// We left.
    Left,
    /// It broke.
    Lost(String),
    /// The server made no sense.
    Violation(Violation),
}

/// A connection in transmission.
pub(super) struct Pipelined {
    link: Link,
    /// Wire ids of the client's contexts, in the client's order.
    ids: Vec<Option<u32>>,
    line: Line,
    session: RefCell<Session<Call>>,
    out: Queue<u64>,
    window: Semaphore,
    waiting: Cell<usize>,
    answered: Cell<bool>,
    leaving: Cell<bool>,
    end: RefCell<Option<End>>,
    /// The connection is leaving or has ended.
    turned: Event,
}

impl Pipelined {
    /// A connection before its first request, and what [`Pipelined::run`] reads from.
    pub(super) fn new(connection: Connection, contexts: &[String], window: usize) -> (Rc<Self>, Inbox) {
        let Connection { link, inbox, line } = connection;
        let id_of = |name: &String| link.contexts.iter().find(|(_, own)| own == name).map(|(id, _)| *id);
        let depth = u32::try_from(window).unwrap_or(u32::MAX).clamp(1, WINDOW_MAX);
        let pipelined = Rc::new(Self {
            ids: contexts.iter().map(id_of).collect(),
            session: RefCell::new(Session::new(link.dialect, depth)),
            link,
            line,
            out: Queue::new(),
            window: Semaphore::new(depth as usize),
            waiting: Cell::new(0),
            answered: Cell::new(false),
            leaving: Cell::new(false),
            end: RefCell::new(None),
            turned: Event::new(),
        });
        (pipelined, inbox)
    }

    /// Calls that are in flight or wait to be.
    pub(super) fn load(&self) -> usize {
        self.session.borrow().in_flight() + self.waiting.get()
    }

    /// Whether it is of use for another call.
    pub(super) fn takes_calls(&self) -> bool {
        !self.leaving.get() && self.end.borrow().is_none()
    }

    /// How it ended, once it has.
    pub(super) fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    /// Whether the server ever answered anything here.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.get()
    }

    /// Sends a request and waits for its outcome. The buffer is a WRITE's payload, or as long as a READ.
    ///
    /// Dropping the future gives up waiting, not the request.
    pub(super) async fn call(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        buffer: Option<Buffer>,
    ) -> (Result<Told, Fault>, Option<Buffer>) {
        let queued = Queued::enter(&self.waiting);
        self.window.acquire(1).await;
        drop(queued);
        let permit = Permit(Some(self.as_ref()));
        if self.end.borrow().is_some() || self.leaving.get() {
            return (Err(Fault::Lost), buffer);
        }
        let mut ids = SmallVec::<[u32; 4]>::new();
        for at in ask.contexts {
            match self.ids.get(*at) {
                Some(Some(id)) => ids.push(*id),
                _ => return (Err(Fault::NoContext), buffer),
            }
        }
        let mut filter = SmallVec::new();
        if ask.filter {
            filter.extend_from_slice(&ask.length.to_be_bytes());
            ids.iter().for_each(|id| filter.extend_from_slice(&id.to_be_bytes()));
        } else if ask.command == Command::BLOCK_STATUS {
            // Without a filter the server answers for all that were agreed on.
            ids = self.link.contexts.iter().map(|(id, _)| *id).collect();
        }
        let payload = if ask.command == Command::WRITE { ask.length } else { filter.len() as u64 };
        let Ask { command, flags, offset, length, .. } = *ask;
        let request = Request { command, flags, cookie: 0, offset, length, payload };
        let call = Call {
            buffer,
            lent: false,
            filter,
            outcome: None,
            told: Told::default(),
            waker: None,
            abandoned: false,
            started_ns: rt::now_ns(),
        };
        let begun = self.session.borrow_mut().begin(request, &ids, call);
        let request = begun.expect("the window has as many permits as the session has slots");
        permit.keep(); // until the slot is freed
        self.out.push(request.cookie);
        Answer { pipelined: self, cookie: request.cookie }.await
    }

    /// Moves bytes until the connection ends; then every call has its outcome.
    pub(super) async fn run(self: &Rc<Self>, inbox: Inbox, timeout: Option<Duration>) -> End {
        rt::spawn(send(Rc::clone(self)));
        let mut receive = std::pin::pin!(async {
            let mut inbox = inbox;
            self.receive(&mut inbox).await
        });
        let watch = async {
            match timeout {
                Some(timeout) => self.watch(timeout).await,
                None => future::pending().await,
            }
        };
        match select(receive.as_mut(), select(watch, self.ended())).await {
            Either::First(end) => self.conclude(end),
            Either::Second(Either::First(end) | Either::Second(end)) => {
                let end = self.conclude(end);
                // The socket is shut down, so this ends, and gives back the buffer that it may have.
                receive.await;
                end
            }
        }
    }

    /// Takes no more calls, lets those in flight end, and says goodbye.
    pub(super) fn leave(&self) {
        self.leaving.set(true);
        self.out.notify();
        self.turned.notify();
    }

    /// Ends the connection now.
    pub(super) fn cut(&self, end: End) {
        self.conclude(end);
    }

    async fn ended(&self) -> End {
        loop {
            let turned = self.turned.wait();
            if let Some(end) = self.end.borrow().as_ref() {
                return end.clone();
            }
            turned.await;
        }
    }

    /// The connection is over; the first reason given counts.
    fn conclude(&self, end: End) -> End {
        let end = self.end.borrow_mut().get_or_insert(end).clone();
        self.line.shutdown();
        while self.out.pop().is_some() {}
        let mut settled = SmallVec::<[u64; 16]>::new();
        for (request, call) in self.session.borrow_mut().each() {
            call.outcome.get_or_insert(Err(Fault::Lost));
            settled.push(request.cookie);
        }
        for cookie in settled {
            self.settle(cookie);
        }
        self.out.notify();
        self.turned.notify();
        end
    }

    /// Wakes whoever waits for a call that is over; frees the slot if nobody does.
    fn settle(&self, cookie: u64) {
        let mut session = self.session.borrow_mut();
        let Some(call) = session.note(cookie) else { return };
        if call.outcome.is_none() || call.lent {
            return;
        }
        if !call.abandoned {
            if let Some(waker) = call.waker.take() {
                waker.wake();
            }
            return;
        }
        let freed = session.end(cookie);
        drop(session);
        drop(freed); // a buffer that goes back may wake others
        self.free_slot();
    }

    fn free_slot(&self) {
        self.window.release(1);
        if self.leaving.get() {
            self.out.notify();
        }
    }

    /// Ends the connection when a call has waited for too long.
    async fn watch(&self, timeout: Duration) -> End {
        let limit_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        loop {
            timer::sleep((timeout / LOOKS).max(Duration::from_millis(1))).await;
            let now_ns = rt::clock_ns();
            let is_late = |call: &Call| now_ns.saturating_sub(call.started_ns) > limit_ns;
            let late =
                self.session.borrow_mut().each().any(|(_, call)| call.outcome.is_none() && is_late(call));
            if late {
                return End::Lost(format!("no answer to a request within {} ms", timeout.as_millis()));
            }
        }
    }

    async fn receive(&self, inbox: &mut Inbox) -> End {
        loop {
            match Reply::decode(self.link.dialect, inbox.bytes()) {
                Err(violation) => return End::Violation(violation),
                Ok(Some((reply, length))) => {
                    inbox.consume(length);
                    if let Err(end) = self.take(inbox, reply).await {
                        return end;
                    }
                    continue;
                }
                Ok(None) => {}
            }
            let want = inbox.bytes().len().max(REPLY_HEAD_MAX - 1) + 1;
            match inbox.fill(want).await {
                Ok(true) => {}
                Ok(false) if self.leaving.get() && self.session.borrow().in_flight() == 0 => {
                    return End::Left;
                }
                Ok(false) => return End::Lost("the server ended it".to_owned()),
                Err(error) => return End::Lost(error.to_string()),
            }
        }
    }

    async fn take(&self, inbox: &mut Inbox, reply: Reply) -> Result<(), End> {
        let progress = self.session.borrow_mut().accept(&reply).map_err(End::Violation)?;
        self.answered.set(true);
        let cookie = reply.cookie;
        match reply.body {
            ReplyBody::Hole { offset, length } => self.note_hole(cookie, offset, length),
            ReplyBody::Status { id, extents } => {
                if let (Some(at), Some(call)) =
                    (self.ids.iter().position(|own| *own == Some(id)), self.session.borrow_mut().note(cookie))
                {
                    call.told.extents.push((at, extents));
                }
            }
            _ => {}
        }
        if let Some((offset, length)) = progress.data {
            self.take_data(inbox, cookie, offset, length).await?;
        }
        if let Some(ended) = progress.ended {
            if let Some(call) = self.session.borrow_mut().note(cookie) {
                call.outcome = Some(ended.map_err(Fault::Refused));
            }
            self.settle(cookie);
        }
        Ok(())
    }

    fn note_hole(&self, cookie: u64, offset: u64, length: u64) {
        let mut session = self.session.borrow_mut();
        let start = session.request(cookie).map_or(offset, |request| request.offset);
        let Some(call) = session.note(cookie) else { return };
        let part = range(start, offset, length);
        if let Some(zeroes) = call.buffer.as_mut().and_then(|buffer| buffer.get_mut(part)) {
            zeroes.fill(0);
        }
        let holes = &mut call.told.holes;
        let is_full = holes.len() >= HOLES_MAX;
        match holes.last_mut() {
            Some((start, told)) if *start + *told == offset => *told += length,
            // Zeroes in the buffer say the same at greater length.
            _ if is_full => {}
            _ => holes.push((offset, length)),
        }
    }

    async fn take_data(&self, inbox: &mut Inbox, cookie: u64, offset: u64, length: u64) -> Result<(), End> {
        let (buffer, start) = {
            let mut session = self.session.borrow_mut();
            let start = session.request(cookie).map_or(offset, |request| request.offset);
            let buffer = session.note(cookie).and_then(|call| {
                call.lent = call.buffer.is_some();
                call.buffer.take()
            });
            (buffer, start)
        };
        let part = range(start, offset, length);
        let result = match buffer {
            Some(buffer) if part.end <= buffer.len() => {
                let loan = Loan { pipelined: self, cookie };
                let (result, buffer) = inbox.read_exact(buffer, part).await;
                loan.give_back(buffer);
                result
            }
            _ => inbox.skip(length).await,
        };
        result.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => End::Lost("the server ended it within a reply".to_owned()),
            _ => End::Lost(error.to_string()),
        })
    }
}

/// Where a part of a read lies in its buffer. The session has checked that it is within the request.
fn range(start: u64, offset: u64, length: u64) -> std::ops::Range<usize> {
    let at = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
    at..at.saturating_add(usize::try_from(length).unwrap_or(usize::MAX))
}

/// Sends until the connection has ended, or is left and nothing is in flight.
async fn send(pipelined: Rc<Pipelined>) {
    let mut gather = Box::new(Gather::new());
    let mut lent = Vec::new();
    loop {
        let is_left = || pipelined.leaving.get() && pipelined.session.borrow().in_flight() == 0;
        pipelined.out.ready(|| pipelined.end.borrow().is_some() || is_left()).await;
        if pipelined.end.borrow().is_some() {
            return;
        }
        pipelined.collect(&mut gather, &mut lent);
        let goodbye = gather.is_empty() && is_left();
        if goodbye {
            let (command, flags) = (Command::DISC, CommandFlags::NONE);
            let disconnect = Request { command, flags, cookie: 0, offset: 0, length: 0, payload: 0 };
            gather.bytes(&disconnect.encode(pipelined.link.dialect));
        }
        let (result, back) = pipelined.line.send(gather).await;
        gather = back;
        // In the order opposite to that in which they were lent.
        while let Some(cookie) = lent.pop() {
            let loan = Loan { pipelined: &pipelined, cookie };
            if let Some(buffer) = gather.reclaim() {
                loan.give_back(buffer);
            }
        }
        gather.clear();
        if let Err(error) = result {
            pipelined.conclude(End::Lost(error.to_string()));
            return;
        }
        if goodbye {
            pipelined.line.farewell().await;
            // Servers close now; one that does not is not waited for.
            pipelined.conclude(End::Left);
            return;
        }
    }
}

impl Pipelined {
    /// Gathers what is ready to be sent.
    fn collect(&self, gather: &mut Gather, lent: &mut Vec<u64>) {
        let mut session = self.session.borrow_mut();
        while gather.len() < BATCH_BYTES_MAX {
            let Some(cookie) = self.out.pop() else { return };
            let Some(request) = session.request(cookie) else { continue };
            let is_write = request.command == Command::WRITE;
            let head = request.encode(self.link.dialect);
            let Some(call) = session.note(cookie) else { continue };
            match call.buffer.take_if(|_| is_write) {
                Some(mut buffer) => {
                    buffer.set_head(&head);
                    call.lent = true;
                    lent.push(cookie);
                    gather.buffer(buffer);
                }
                None => {
                    gather.bytes(&head);
                    gather.bytes(&call.filter);
                }
            }
        }
    }
}
