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
use crate::client::Session;
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

/// What is kept of a request in flight.
struct Note {
    /// What latency counts from.
    started_ns: u64,
    sent_ns: u64,
    /// What was read so far, where it is to be checked.
    content: Option<Buffer>,
}

/// The state of one connection.
pub(super) struct Job {
    session: Session<Note>,
    fua: bool,
    largest_read: u32,
    sequence: Sequence,
    held: Option<Draw>,
    pace: Pace,
    last_start_ns: u64,
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
        Self {
            session: Session::new(manner.dialect, manner.iodepth),
            fua: manner.fua,
            largest_read: manner.request_max.min(READ_BACK_MAX),
            sequence,
            held: None,
            pace,
            last_start_ns: 0,
            run,
        }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.session.in_flight()
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
        if self.session.is_full() {
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
        if self.session.is_full() {
            return Next::Wait;
        }
        let ledger = self.run.ledger.as_ref();
        let span = ledger.and_then(|ledger| ledger.borrow_mut().next_read_back(self.largest_read));
        let Some((offset, length)) = span else { return Next::Wait };
        self.send(Draw { command: Command::READ, offset, length }, now_ns, now_ns)
    }

    #[inline]
    fn send(&mut self, draw: Draw, started_ns: u64, sent_ns: u64) -> Next {
        let Draw { command, offset, length } = draw;
        let write = command == Command::WRITE;
        let length = u64::from(length);
        let request = Request {
            command,
            flags: if write && self.fua { CommandFlags::FUA } else { CommandFlags::NONE },
            cookie: 0,
            offset,
            length,
            payload: if write { length } else { 0 },
        };
        let note = Note { started_ns, sent_ns, content: None };
        let Some(request) = self.session.begin(request, &[], note) else { return Next::Wait };
        self.run.begin();
        Next::Send(request)
    }

    /// Judges a reply. Answers how many bytes of data follow it and whether the request ends with them.
    ///
    /// # Errors
    /// What the server did wrong, or could not do.
    #[inline]
    pub(super) fn accept(&mut self, reply: &Reply) -> Result<(Option<(u64, u64)>, bool), String> {
        let progress = self.session.accept(reply).map_err(|violation| violation.to_string())?;
        match progress.ended {
            Some(Err(error)) => {
                let what = self.session.request(reply.cookie).map(|request| {
                    format!("{} of {} bytes at offset {}", request.command, request.length, request.offset)
                });
                Err(format!("{} failed: {error}", what.unwrap_or_default()))
            }
            ended => Ok((progress.data, ended.is_some())),
        }
    }

    /// Takes the buffer that collects what the request reads, if that is to be checked. It starts out as zeroes, which
    /// is what holes are.
    pub(super) fn take_content(&mut self, cookie: u64) -> Option<(Buffer, u64)> {
        self.run.ledger.as_ref()?;
        let request = self.session.request(cookie)?;
        let (offset, length) = (request.offset, usize::try_from(request.length).ok()?);
        let content = self.session.note(cookie)?.content.take().unwrap_or_else(|| zeroes(length));
        Some((content, offset))
    }

    /// Gives it back.
    pub(super) fn put_content(&mut self, cookie: u64, content: Buffer) {
        if let Some(note) = self.session.note(cookie) {
            note.content = Some(content);
        }
    }

    /// A request has ended well, all its data taken.
    ///
    /// # Errors
    /// What was read is not what had to be there.
    #[inline]
    pub(super) fn end(&mut self, cookie: u64, now_ns: u64) -> Result<(), String> {
        let Some((request, note)) = self.session.end(cookie) else { return Ok(()) };
        let Note { started_ns, sent_ns, content } = note;
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
