//! The life of an operation, written once.
//!
//! ```text
//!            poll                 CQE                     poll
//!  InFlight ------> Waiting(w) ---------> Done(result) ---------> entry freed, what was kept goes back
//!     |                 |
//!     '----- drop ------'--> Orphaned(kept) --CQE--> entry freed, then what was kept is dropped
//! ```
//!
//! # Ownership
//! * `user_data` of an SQE is the key of its entry here; the entry lives until the terminal CQE, so a key is never
//!   used twice at the same time.
//! * What the kernel reads or writes (a buffer, a msghdr, a timespec) is *kept*: the future holds it, and a future
//!   dropped early hands it to the entry. It is freed after the terminal CQE and not before.
//! * What is kept lives on the heap behind a pointer that moving the keeper does not change.
//!
//! Multishot ops ([`Stream`]) collect completions in a queue instead; one that nobody consumes is stopped once
//! [`STREAM_BACKLOG_MAX`] completions wait, so that a flood ends in the kernel's socket buffer, not here.

use std::any::Any;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{cqueue, opcode, squeue};
use slab::Slab;
use smallvec::SmallVec;

use super::Shard;

/// Completions of one multishot op that may wait to be consumed before the op is cancelled.
pub(super) const STREAM_BACKLOG_MAX: usize = 4;

/// Completions with this `user_data` are dropped: cancellations and doorbells to others.
pub(super) const USER_DATA_IGNORE: u64 = u64::MAX;
/// Completions with this `user_data` mean: look into the mailbox.
pub(super) const USER_DATA_DOORBELL: u64 = u64::MAX - 1;

/// What a CQE says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) result: i32,
    pub(super) flags: u32,
}

enum State {
    InFlight,
    Waiting(Waker),
    Done(Completion),
    Orphaned(#[allow(dead_code, reason = "held for its drop")] Box<dyn Any>),
    Stream(Flow),
    /// A stream nobody listens to any more; `dispose` takes care of what late completions carry (an accepted socket,
    /// a provided buffer).
    StreamOrphaned {
        dispose: fn(&Shard, Completion),
        kept: Rc<dyn Any>,
    },
}

/// A multishot op as its entry sees it.
struct Flow {
    queue: SmallVec<[Completion; 2 * STREAM_BACKLOG_MAX]>,
    waker: Option<Waker>,
    ended: bool,
    cancelling: bool,
    kept: Rc<dyn Any>,
}

struct Entry {
    state: State,
    /// Result put in the place of the kernel's (fault injection).
    replaced: Option<i32>,
}

/// All operations in flight on one shard.
#[derive(Default)]
pub(super) struct Ops {
    entries: Slab<Entry>,
}

/// What the loop does after a completion was entered.
pub(super) enum After {
    Nothing,
    Wake(Waker),
    /// The stream has run ahead of its consumer: cancel it.
    CancelStream,
    /// An orphan's late item; what the op kept is let go of afterwards.
    Dispose(
        fn(&Shard, Completion),
        Completion,
        #[allow(dead_code, reason = "held for its drop")] Rc<dyn Any>,
    ),
    /// The last of an orphan: drop what it kept, outside of the table's borrow.
    Drop(#[allow(dead_code, reason = "held for its drop")] Box<dyn Any>),
}

impl Ops {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { entries: Slab::with_capacity(capacity) }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = u64> + '_ {
        self.entries.iter().map(|(key, _)| key as u64)
    }

    fn insert(&mut self, state: State, replaced: Option<i32>) -> usize {
        self.entries.insert(Entry { state, replaced })
    }

    /// Enters the completion of an op; `key` is the `user_data` of its CQE.
    #[allow(clippy::cast_possible_truncation)] // a key was a usize before it was a user_data
    pub(super) fn complete(&mut self, key: u64, mut completion: Completion) -> After {
        let key = key as usize;
        let entry = self.entries.get_mut(key).expect("a completion belongs to an op in flight");
        if let Some(result) = entry.replaced.take() {
            completion.result = result;
        }
        let more = cqueue::more(completion.flags);
        match &mut entry.state {
            State::Stream(flow) => {
                flow.queue.push(completion);
                flow.ended = !more;
                if let Some(waker) = flow.waker.take() {
                    return After::Wake(waker);
                }
                if more && !flow.cancelling && flow.queue.len() >= STREAM_BACKLOG_MAX {
                    flow.cancelling = true;
                    return After::CancelStream;
                }
                After::Nothing
            }
            State::StreamOrphaned { dispose, kept } => {
                let (dispose, kept) = (*dispose, Rc::clone(kept));
                if !more {
                    self.entries.remove(key);
                }
                After::Dispose(dispose, completion, kept)
            }
            State::Done(_) => unreachable!("a single-shot op completed twice"),
            State::InFlight | State::Waiting(_) | State::Orphaned(_) => {
                match mem::replace(&mut entry.state, State::Done(completion)) {
                    State::Waiting(waker) => After::Wake(waker),
                    State::Orphaned(kept) => {
                        self.entries.remove(key);
                        After::Drop(kept)
                    }
                    _ => After::Nothing,
                }
            }
        }
    }
}

/// A single-shot operation; resolves to its completion and to what it kept.
///
/// Dropping it before it resolved leaves the operation running as an orphan; [`Op::cancel_on_drop`] asks the kernel
/// to end it early as well.
pub(super) struct Op<K: 'static> {
    key: usize,
    kept: Option<K>,
    cancel: bool,
}

impl<K: 'static> Op<K> {
    /// Submits `sqe` with the next `io_uring_enter`. `kept` owns all memory that the SQE points to.
    pub(super) fn submit(shard: &Shard, sqe: squeue::Entry, kept: K) -> Self {
        let key = shard.ops.borrow_mut().insert(State::InFlight, None);
        shard.push(sqe.user_data(key as u64));
        Self { key, kept: Some(kept), cancel: false }
    }

    /// The same on the ring of files that are polled.
    pub(super) fn submit_polled(shard: &Shard, sqe: squeue::Entry, kept: K) -> Self {
        let key = shard.ops.borrow_mut().insert(State::InFlight, None);
        shard.polled.push(&sqe.user_data(key as u64));
        Self { key, kept: Some(kept), cancel: false }
    }

    /// The same for one that moves `bytes` at once: it may have to stand in line (`heavy.rs`).
    pub(super) fn submit_weighed(shard: &Shard, sqe: squeue::Entry, kept: K, bytes: usize) -> Self {
        let key = shard.ops.borrow_mut().insert(State::InFlight, None);
        shard.push_weighed(sqe.user_data(key as u64), bytes);
        Self { key, kept: Some(kept), cancel: false }
    }

    /// Submits a no-op that will answer `result`: how the fault layer fails an operation.
    pub(super) fn submit_replaced(shard: &Shard, result: i32, kept: K) -> Self {
        let key = shard.ops.borrow_mut().insert(State::InFlight, Some(result));
        shard.push(opcode::Nop::new().build().user_data(key as u64));
        Self { key, kept: Some(kept), cancel: false }
    }

    /// Registers an operation that another thread carries out; `hand_over` is given the key to answer to.
    pub(super) fn submit_elsewhere(shard: &Shard, kept: K, hand_over: impl FnOnce(u64)) -> Self {
        let key = shard.ops.borrow_mut().insert(State::InFlight, None);
        hand_over(key as u64);
        Self { key, kept: Some(kept), cancel: false }
    }

    pub(super) fn cancel_on_drop(mut self) -> Self {
        self.cancel = true;
        self
    }
}

impl<K: 'static> Future for Op<K> {
    type Output = (Completion, K);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key;
        let done = super::with(|shard| {
            let mut ops = shard.ops.borrow_mut();
            let entry = ops.entries.get_mut(key).expect("an op that has not resolved has its entry");
            if let State::Done(completion) = entry.state {
                ops.entries.remove(key);
                return Some(completion);
            }
            entry.state = State::Waiting(context.waker().clone());
            None
        });
        match done {
            Some(completion) => {
                let kept = self.kept.take().expect("an op resolves once");
                Poll::Ready((completion, kept))
            }
            None => Poll::Pending,
        }
    }
}

// The kept value is heap memory behind a pointer (Ownership, top of this file); nothing in here is pinned in place.
impl<K: 'static> Unpin for Op<K> {}

impl<K: 'static> Drop for Op<K> {
    fn drop(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        let (key, cancel) = (self.key, self.cancel);
        let kept = super::try_with(|shard| {
            let mut ops = shard.ops.borrow_mut();
            let Some(entry) = ops.entries.get_mut(key) else { return Some(kept) };
            if let State::Done(_) = entry.state {
                ops.entries.remove(key);
                return Some(kept);
            }
            entry.state = State::Orphaned(Box::new(kept));
            drop(ops);
            if cancel {
                shard.cancel(key as u64);
            }
            None
        });
        drop(kept); // outside of the table's borrow: dropping a buffer may wake a task
    }
}

/// A multishot operation: one SQE, many completions.
pub(super) struct Stream {
    key: Option<usize>,
    dispose: fn(&Shard, Completion),
}

impl Stream {
    /// Submits a multishot `sqe`. `dispose` is given completions that nobody will consume; `kept` holds the descriptor
    /// open until the op has ended.
    pub(super) fn submit(
        shard: &Shard,
        sqe: squeue::Entry,
        kept: Rc<dyn Any>,
        dispose: fn(&Shard, Completion),
    ) -> Self {
        let queue = SmallVec::new();
        let flow = Flow { queue, waker: None, ended: false, cancelling: false, kept };
        let key = shard.ops.borrow_mut().insert(State::Stream(flow), None);
        shard.push(sqe.user_data(key as u64));
        Self { key: Some(key), dispose }
    }

    /// The next completion; `None` once the kernel ended the op and all was consumed (submit a new one).
    pub(super) fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Completion>> {
        let Some(key) = self.key else { return Poll::Ready(None) };
        let polled = super::with(|shard| {
            let mut ops = shard.ops.borrow_mut();
            let entry = ops.entries.get_mut(key).expect("a stream that has not ended has its entry");
            let State::Stream(flow) = &mut entry.state else { unreachable!("a stream's entry is a stream") };
            if !flow.queue.is_empty() {
                return Poll::Ready(Some(flow.queue.remove(0)));
            }
            if flow.ended {
                ops.entries.remove(key);
                return Poll::Ready(None);
            }
            flow.waker = Some(context.waker().clone());
            Poll::Pending
        });
        if matches!(polled, Poll::Ready(None)) {
            self.key = None;
        }
        polled
    }

    /// Asks the kernel to end the op; completions until then still arrive through [`Stream::poll_next`].
    pub(super) fn cancel(&self) {
        let Some(key) = self.key else { return };
        super::with(|shard| {
            let asked = {
                let mut ops = shard.ops.borrow_mut();
                match ops.entries.get_mut(key).map(|entry| &mut entry.state) {
                    Some(State::Stream(flow)) => !flow.ended && !mem::replace(&mut flow.cancelling, true),
                    _ => false,
                }
            };
            if asked {
                shard.cancel(key as u64);
            }
        });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let (Some(key), dispose) = (self.key.take(), self.dispose) else { return };
        super::try_with(|shard| {
            let flow = {
                let mut ops = shard.ops.borrow_mut();
                let State::Stream(flow) = &mut ops.entries[key].state else {
                    unreachable!("a stream's entry is a stream")
                };
                let kept = Rc::clone(&flow.kept);
                let orphan = State::StreamOrphaned { dispose, kept };
                let State::Stream(flow) = mem::replace(&mut ops.entries[key].state, orphan) else {
                    unreachable!("it was a stream a line ago")
                };
                if flow.ended {
                    ops.entries.remove(key);
                }
                flow
            };
            for completion in flow.queue {
                dispose(shard, completion);
            }
            if !flow.ended && !flow.cancelling {
                shard.cancel(key as u64);
            }
        });
    }
}
