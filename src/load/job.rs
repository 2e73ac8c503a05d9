//! One connection's requests: what is sent next, what a reply means. No socket and no clock of its own.
//!
//! ```text
//!   sequence --draw--> held --pace, ledger, free slot--> slot in flight --reply--> tally, ledger, free slot
//! ```
//!
//! A draw that cannot start yet is held, so that a run makes the same requests whenever they start.

#[cfg(test)]
mod tests;

use std::rc::Rc;

use super::pace::{Due, Pace};
use super::run::{Phase, Run};
use super::sequence::{Draw, Sequence};
use crate::proto::reply_decode::Pending;
use crate::proto::{Command, CommandFlags, Dialect, Reply, Request};
use crate::rt::Buffer;

/// Largest request of the pass that reads back.
const READ_BACK_MAX: u32 = 1 << 20;

/// What a connection does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Send this request, which is in flight from now on.
    Send(Request),
    /// Wait for a reply or a change.
    Wait,
    /// The same, but not beyond this time.
    WaitUntil(u64),
    /// Say goodbye.
    Leave,
}

/// A request in flight; its index is its cookie.
struct Slot {
    pending: Pending,
    /// What latency counts from.
    started_ns: u64,
    sent_ns: u64,
    /// What was read so far, where it is to be checked.
    content: Option<Buffer>,
}

/// The state of one connection.
pub(super) struct Job {
    dialect: Dialect,
    fua: bool,
    largest_read: u32,
    sequence: Sequence,
    held: Option<Draw>,
    pace: Pace,
    last_start_ns: u64,
    slots: Vec<Option<Slot>>,
    /// Last in, first out: a shallow load touches few slots.
    free: Vec<usize>,
    run: Rc<Run>,
}

/// How a connection makes its requests, besides which.
pub(super) struct Manner {
    pub(super) dialect: Dialect,
    pub(super) iodepth: u32,
    pub(super) fua: bool,
    /// Largest request that the server takes.
    pub(super) request_max: u32,
}

impl Job {
    pub(super) fn new(manner: &Manner, sequence: Sequence, pace: Pace, run: Rc<Run>) -> Self {
        let depth = manner.iodepth as usize;
        Self {
            dialect: manner.dialect,
            fua: manner.fua,
            largest_read: manner.request_max.min(READ_BACK_MAX),
            sequence,
            held: None,
            pace,
            last_start_ns: 0,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            run,
        }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Requests that were due before `end_ns` and did not start.
    pub(super) fn unsent(&self, end_ns: u64) -> u64 {
        self.pace.unsent(end_ns)
    }

    /// What to do now.
    pub(super) fn next(&mut self, now_ns: u64) -> Next {
        match self.run.phase() {
            Phase::Running => self.next_of_load(now_ns),
            Phase::Draining => Next::Wait,
            Phase::ReadingBack => self.next_read_back(now_ns),
            Phase::Leaving => Next::Leave,
        }
    }

    #[inline]
    fn next_of_load(&mut self, now_ns: u64) -> Next {
        if self.free.is_empty() {
            return Next::Wait;
        }
        let draw = *self.held.get_or_insert_with(|| self.sequence.draw());
        // A flush belongs to the write before it: the schedule does not know it.
        let scheduled = draw.command != Command::FLUSH;
        let started_ns = match self.pace.due(now_ns) {
            _ if !scheduled && matches!(self.pace, Pace::Open { .. }) => self.last_start_ns,
            Due::Since(start) => start,
            Due::At(at) => return Next::WaitUntil(at),
        };
        if let Some(ledger) = &self.run.ledger {
            let mut ledger = ledger.borrow_mut();
            let taken = match draw.command {
                Command::READ => ledger.begin_read(draw.offset, draw.length),
                Command::WRITE => ledger.begin_write(draw.offset, draw.length),
                _ => true,
            };
            if !taken {
                self.run.block();
                return Next::Wait;
            }
        }
        self.held = None;
        if scheduled {
            self.pace.begin();
            self.last_start_ns = started_ns;
        }
        self.send(draw, started_ns, now_ns)
    }

    fn next_read_back(&mut self, now_ns: u64) -> Next {
        if self.free.is_empty() {
            return Next::Wait;
        }
        let ledger = self.run.ledger.as_ref();
        let span = ledger.and_then(|ledger| ledger.borrow_mut().next_read_back(self.largest_read));
        let Some((offset, length)) = span else { return Next::Wait };
        self.send(Draw { command: Command::READ, offset, length }, now_ns, now_ns)
    }

    #[inline]
    fn send(&mut self, draw: Draw, started_ns: u64, sent_ns: u64) -> Next {
        let Some(index) = self.free.pop() else { return Next::Wait };
        let Draw { command, offset, length } = draw;
        let write = command == Command::WRITE;
        let length = u64::from(length);
        let request = Request {
            command,
            flags: if write && self.fua { CommandFlags::FUA } else { CommandFlags::NONE },
            cookie: index as u64,
            offset,
            length,
            payload: if write { length } else { 0 },
        };
        let pending = Pending::new(self.dialect, request, &[]);
        self.slots[index] = Some(Slot { pending, started_ns, sent_ns, content: None });
        self.run.begin();
        Next::Send(request)
    }

    /// Judges a reply. Answers how many bytes of data follow it and whether the request ends with them.
    ///
    /// # Errors
    /// What the server did wrong, or could not do.
    #[inline]
    pub(super) fn accept(&mut self, reply: &Reply) -> Result<(Option<(u64, u64)>, bool), String> {
        let index = usize::try_from(reply.cookie).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else {
            return Err(format!("a reply with cookie {:#x}, which is not in flight", reply.cookie));
        };
        let progress = slot.pending.accept(reply).map_err(|violation| violation.to_string())?;
        match progress.ended {
            Some(Err(error)) => {
                let request = slot.pending.request();
                Err(format!(
                    "{} of {} bytes at offset {} failed: {error}",
                    request.command, request.length, request.offset
                ))
            }
            ended => Ok((progress.data, ended.is_some())),
        }
    }

    /// Takes the buffer that collects what the request reads, if that is to be checked. It starts out as zeroes, which
    /// is what holes are.
    pub(super) fn take_content(&mut self, cookie: u64) -> Option<(Buffer, u64)> {
        self.run.ledger.as_ref()?;
        let slot = self.slots.get_mut(usize::try_from(cookie).ok()?)?.as_mut()?;
        let request = slot.pending.request();
        let (offset, length) = (request.offset, usize::try_from(request.length).ok()?);
        let content = slot.content.take().unwrap_or_else(|| zeroes(length));
        Some((content, offset))
    }

    /// Gives it back.
    pub(super) fn put_content(&mut self, cookie: u64, content: Buffer) {
        let index = usize::try_from(cookie).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) {
            slot.content = Some(content);
        }
    }

    /// A request has ended well, all its data taken.
    ///
    /// # Errors
    /// What was read is not what had to be there.
    #[inline]
    pub(super) fn end(&mut self, cookie: u64, now_ns: u64) -> Result<(), String> {
        let index = usize::try_from(cookie).unwrap_or(usize::MAX);
        let slot = self.slots.get_mut(index).and_then(Option::take);
        let Some(Slot { pending, started_ns, sent_ns, content }) = slot else { return Ok(()) };
        self.free.push(index);
        let request = pending.request();
        let length = u32::try_from(request.length).unwrap_or(u32::MAX);
        if self.run.tally.counts(sent_ns) {
            self.run.tally.record(request.command, now_ns.saturating_sub(started_ns), length);
        }
        let mut result = Ok(());
        if let Some(ledger) = &self.run.ledger {
            let mut ledger = ledger.borrow_mut();
            match request.command {
                Command::WRITE => ledger.end_write(request.offset, length),
                Command::READ => {
                    let content = content.unwrap_or_else(|| zeroes(length as usize));
                    result = ledger.end_read(request.offset, &content);
                }
                _ => {}
            }
        }
        self.run.end();
        result
    }
}

fn zeroes(length: usize) -> Buffer {
    let mut buffer = Buffer::scratch(length);
    buffer.fill(0);
    buffer
}
