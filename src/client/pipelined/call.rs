//! One call: what its slot holds, who has its buffer, and the future that waits for it.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use super::{Fault, Pipelined, Told};
use crate::rt::Buffer;

/// A call in flight.
pub(super) struct Call {
    pub(super) buffer: Option<Buffer>,
    /// The buffer is with the send or the receive task.
    pub(super) lent: bool,
    /// The payload of a filtered BLOCK_STATUS.
    pub(super) filter: SmallVec<[u8; 16]>,
    pub(super) outcome: Option<Result<(), Fault>>,
    pub(super) told: Told,
    pub(super) waker: Option<Waker>,
    pub(super) abandoned: bool,
    pub(super) started_ns: u64,
}

/// A call's buffer in the hands of a task. When the task is dropped in the middle the buffer is gone with the operation
/// that holds it, and the call ends without.
pub(super) struct Loan<'a> {
    pub(super) pipelined: &'a Pipelined,
    pub(super) cookie: u64,
}

impl Loan<'_> {
    pub(super) fn give_back(self, buffer: Buffer) {
        if let Some(call) = self.pipelined.session.borrow_mut().note(self.cookie) {
            call.buffer = Some(buffer);
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.pipelined.session.borrow_mut().note(self.cookie) {
            call.lent = false;
        }
        self.pipelined.settle(self.cookie);
    }
}

/// Counts a caller that waits for the window.
pub(super) struct Queued<'a>(&'a Cell<usize>);

impl<'a> Queued<'a> {
    pub(super) fn enter(waiting: &'a Cell<usize>) -> Self {
        waiting.set(waiting.get() + 1);
        Self(waiting)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A place in the window.
pub(super) struct Permit<'a>(pub(super) Option<&'a Pipelined>);

impl Permit<'_> {
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(pipelined) = self.0 {
            pipelined.free_slot();
        }
    }
}

/// Waits for a call's outcome.
pub(super) struct Answer<'a> {
    pub(super) pipelined: &'a Pipelined,
    pub(super) cookie: u64,
}

impl Future for Answer<'_> {
    type Output = (Result<Told, Fault>, Option<Buffer>);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut session = self.pipelined.session.borrow_mut();
        let Some(call) = session.note(self.cookie) else { return Poll::Ready((Err(Fault::Lost), None)) };
        if call.lent || call.outcome.is_none() {
            match &mut call.waker {
                Some(waker) => waker.clone_from(context.waker()),
                empty => *empty = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let ended = session.end(self.cookie);
        drop(session);
        self.pipelined.free_slot();
        Poll::Ready(match ended {
            Some((_, Call { outcome: Some(outcome), told, buffer, .. })) => (outcome.map(|()| told), buffer),
            _ => (Err(Fault::Lost), None),
        })
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.pipelined.session.borrow_mut().note(self.cookie) {
            call.abandoned = true;
        }
        self.pipelined.settle(self.cookie);
    }
}
