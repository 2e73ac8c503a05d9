//! Waiting for each other on one thread: an event, a FIFO semaphore, a queue. None is `Send`; none locks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{self, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Wakes everybody who waits. Check the condition, then wait, then check again: nothing is remembered.
#[derive(Default)]
pub struct Event {
    waiters: RefCell<Vec<Waker>>,
    epoch: Cell<u64>,
}

impl Event {
    /// An event that nobody waits for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes all who wait now.
    pub fn notify(&self) {
        self.epoch.set(self.epoch.get().wrapping_add(1));
        // The wakers only mark tasks ready; nobody can register while this drains.
        for waker in self.waiters.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    /// Resolves at the first [`Event::notify`] after this call.
    pub fn wait(&self) -> impl Future<Output = ()> + '_ {
        let epoch = self.epoch.get();
        future::poll_fn(move |context| {
            if self.epoch.get() != epoch {
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|waker| waker.will_wake(context.waker())) {
                waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
    }
}

struct Waiter {
    want: usize,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A counting semaphore that serves in order of arrival: a large request at the head is not overtaken by small ones.
pub struct Semaphore {
    free: Cell<usize>,
    total: usize,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

impl Semaphore {
    /// A semaphore with `total` units, all free.
    pub fn new(total: usize) -> Self {
        Self { free: Cell::new(total), total, waiters: RefCell::new(VecDeque::new()) }
    }

    /// Units that nobody holds.
    pub fn free(&self) -> usize {
        self.free.get()
    }

    /// Whether somebody waits.
    pub fn contended(&self) -> bool {
        !self.waiters.borrow().is_empty()
    }

    /// Takes `want` units if they are free and nobody waits. `want` above the total counts as the total.
    pub fn try_acquire(&self, want: usize) -> bool {
        let want = want.min(self.total);
        let free = self.free.get();
        if free < want || self.contended() {
            return false;
        }
        self.free.set(free - want);
        true
    }

    /// Takes `want` units, waiting in line. Dropping the future leaves the line and returns what was granted.
    pub async fn acquire(&self, want: usize) {
        let want = want.min(self.total);
        if self.try_acquire(want) {
            return;
        }
        let waiter = Rc::new(Waiter { want, granted: Cell::new(false), waker: RefCell::new(None) });
        self.waiters.borrow_mut().push_back(Rc::clone(&waiter));
        Acquire { semaphore: self, waiter: Some(waiter) }.await;
    }

    /// Gives `count` units back (as many as the matching acquire took).
    pub fn release(&self, count: usize) {
        self.free.set(self.free.get() + count.min(self.total));
        self.grant();
    }

    fn grant(&self) {
        let mut waiters = self.waiters.borrow_mut();
        while let Some(head) = waiters.front() {
            if head.want > self.free.get() {
                return;
            }
            self.free.set(self.free.get() - head.want);
            head.granted.set(true);
            if let Some(waker) = head.waker.take() {
                waker.wake();
            }
            waiters.pop_front();
        }
    }
}

struct Acquire<'a> {
    semaphore: &'a Semaphore,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Acquire<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(waiter) = &self.waiter else { return Poll::Ready(()) };
        if !waiter.granted.get() {
            *waiter.waker.borrow_mut() = Some(context.waker().clone());
            return Poll::Pending;
        }
        self.waiter = None;
        Poll::Ready(())
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if waiter.granted.get() {
            self.semaphore.release(waiter.want);
        } else {
            self.semaphore.waiters.borrow_mut().retain(|other| !Rc::ptr_eq(other, &waiter));
            self.semaphore.grant(); // a smaller one may have stood behind it
        }
    }
}

/// A queue with one consumer.
pub struct Queue<T> {
    items: RefCell<VecDeque<T>>,
    consumer: RefCell<Option<Waker>>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { items: RefCell::new(VecDeque::new()), consumer: RefCell::new(None) }
    }
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends and wakes the consumer. Bounding the length is the producer's business.
    pub fn push(&self, item: T) {
        self.items.borrow_mut().push_back(item);
        self.notify();
    }

    /// Wakes the consumer without an item, so that it looks at its other conditions.
    pub fn notify(&self) {
        if let Some(waker) = self.consumer.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Takes the first item.
    pub fn pop(&self) -> Option<T> {
        self.items.borrow_mut().pop_front()
    }

    /// Gives back what only a deep burst needed, for a queue that may rest for long and be one of 10,000.
    pub fn rest(&self) {
        const KEPT: usize = 32;
        let mut items = self.items.borrow_mut();
        if items.capacity() > KEPT {
            items.shrink_to(KEPT);
        }
    }

    /// Items in the queue.
    pub fn len(&self) -> usize {
        self.items.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.borrow().is_empty()
    }

    /// Waits until the queue is not empty or `otherwise` holds (looked at after each notification).
    pub async fn ready(&self, otherwise: impl Fn() -> bool) {
        future::poll_fn(|context| {
            if !self.is_empty() || otherwise() {
                return Poll::Ready(());
            }
            *self.consumer.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// What came first.
pub enum Either<A, B> {
    /// The first future.
    First(A),
    /// The second future.
    Second(B),
}

/// Waits for whichever is ready first (the first one where both are); the other is dropped.
pub async fn select<A: Future, B: Future>(first: A, second: B) -> Either<A::Output, B::Output> {
    let mut first = std::pin::pin!(first);
    let mut second = std::pin::pin!(second);
    future::poll_fn(|context| {
        if let Poll::Ready(output) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(output));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}
