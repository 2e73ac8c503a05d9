//! Requests in flight on one connection, by cookie: sans-io, shared by the library and by the load generator.
//!
//! ```text
//!   begin --cookie--> in flight --accept (any order, any number of chunks)--> ended --end--> free
//! ```
//!
//! A cookie is a slot's number and how often the slot was used, so an answer to a request that was answered already does
//! not pass for one to the slot's next tenant.

use crate::proto::reply_decode::{Pending, Progress};
use crate::proto::{Dialect, Reply, Request, Violation};

/// Slots of requests, each with a note of the caller's.
#[derive(Debug)]
pub struct Session<T> {
    dialect: Dialect,
    slots: Vec<Slot<T>>,
    /// Last in, first out: a shallow load touches few slots.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    uses: u32,
    tenant: Option<(Pending, T)>,
}

impl<T> Session<T> {
    /// A session for up to `depth` requests in flight.
    pub fn new(dialect: Dialect, depth: u32) -> Self {
        let slots = (0..depth).map(|_| Slot { uses: 0, tenant: None }).collect();
        Self { dialect, slots, free: (0..depth).rev().collect() }
    }

    /// Headers in use.
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Requests in flight.
    pub const fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is no slot for another.
    #[inline]
    pub const fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes a slot and gives the request its cookie; `None` when all are taken. `contexts` are the wire ids that a
    /// BLOCK_STATUS asks.
    #[inline]
    pub fn begin(&mut self, request: Request, contexts: &[u32], note: T) -> Option<Request> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[index as usize];
        slot.uses = slot.uses.wrapping_add(1);
        let request = Request { cookie: u64::from(slot.uses) << 32 | u64::from(index), ..request };
        slot.tenant = Some((Pending::new(self.dialect, request, contexts), note));
        Some(request)
    }

    /// Judges a reply.
    ///
    /// # Errors
    /// It is not of a request in flight, or not of this one.
    #[inline]
    pub fn accept(&mut self, reply: &Reply) -> Result<Progress, Violation> {
        match self.tenant(reply.cookie) {
            Some((pending, _)) => pending.accept(reply),
            None => Err(Violation::ReplyCookie(reply.cookie)),
        }
    }

    /// A request in flight.
    #[inline]
    pub fn request(&mut self, cookie: u64) -> Option<&Request> {
        self.tenant(cookie).map(|(pending, _)| pending.request())
    }

    /// A request's note.
    #[inline]
    pub fn note(&mut self, cookie: u64) -> Option<&mut T> {
        self.tenant(cookie).map(|(_, note)| note)
    }

    /// Frees a slot.
    #[inline]
    pub fn end(&mut self, cookie: u64) -> Option<(Request, T)> {
        self.tenant(cookie)?;
        let index = slot_of(cookie);
        let (pending, note) = self.slots.get_mut(index as usize)?.tenant.take()?;
        self.free.push(index);
        Some((*pending.request(), note))
    }

    /// All requests in flight.
    pub fn each(&mut self) -> impl Iterator<Item = (&Request, &mut T)> {
        self.slots
            .iter_mut()
            .filter_map(|slot| slot.tenant.as_mut())
            .map(|(pending, note)| (pending.request(), note))
    }

    #[inline]
    fn tenant(&mut self, cookie: u64) -> Option<&mut (Pending, T)> {
        let tenant = self.slots.get_mut(slot_of(cookie) as usize)?.tenant.as_mut()?;
        (tenant.0.request().cookie == cookie).then_some(tenant)
    }
}

#[allow(clippy::cast_possible_truncation)] // the low half is the slot, the high half how often it was used
const fn slot_of(cookie: u64) -> u32 {
    cookie as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Command, CommandFlags, Errno, ReplyBody};

    fn request() -> Request {
        let (command, flags) = (Command::WRITE, CommandFlags::NONE);
        Request { command, flags, cookie: 0, offset: 0, length: 512, payload: 512 }
    }

    fn ok(cookie: u64) -> Reply {
        Reply { cookie, offset: None, done: true, body: ReplyBody::Simple(Errno::OK) }
    }

    #[test]
    fn a_second_answer_is_not_taken_for_one_to_the_next_request() {
        let mut session = Session::new(Dialect::Simple, 1);
        let first = session.begin(request(), &[], "first").unwrap();
        assert!(session.is_full() && session.begin(request(), &[], "none").is_none());
        assert_eq!(session.accept(&ok(first.cookie)).unwrap().ended, Some(Ok(())));
        assert_eq!(session.end(first.cookie).unwrap().1, "first");
        let second = session.begin(request(), &[], "second").unwrap();
        assert_eq!(session.accept(&ok(first.cookie)), Err(Violation::ReplyCookie(first.cookie)));
        assert!(session.end(first.cookie).is_none() && session.note(u64::MAX).is_none());
        assert!(session.accept(&ok(second.cookie)).is_ok());
    }
}
