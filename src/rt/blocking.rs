//! What has no opcode (`lseek` for data and holes, ioctls): a bounded pool of helper threads.
//!
//! A closure goes in, its answer comes back as a letter to the asking shard, one wake-up per question. Questions beyond
//! [`QUESTIONS_MAX`] wait on their shard, in line, without blocking it.

use std::cell::{Cell, RefCell};
use std::future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::task::{Poll, Waker};
use std::thread;

/// Helper threads of the process. They sleep in system calls, so more than cores is right, and few, because what they
/// ask the file system for takes its locks.
pub const HELPERS: usize = 4;
/// Questions one shard may have with the helpers at a time.
pub const QUESTIONS_MAX: usize = 64;

type Question = Box<dyn FnOnce() + Send>;

/// Runs `closure` on a helper thread.
///
/// # Panics
/// When the closure panics: its answer never comes, which is our error.
pub async fn blocking<T: Send + 'static>(closure: impl FnOnce() -> T + Send + 'static) -> T {
    let shard = super::current();
    shard.questions.acquire(1).await;
    let _slot = Slot(Rc::clone(&shard));
    let answer = Arc::new(Mutex::new(None));
    let remote = shard.remote.clone();
    let ticket = WAITING.with(Waiting::enter);
    let put = Arc::clone(&answer);
    helpers().send(Box::new(move || {
        *put.lock().unwrap_or_else(PoisonError::into_inner) = Some(closure());
        remote.post(move || WAITING.with(|waiting| waiting.answered(ticket)));
    }));
    let _entry = Entry(ticket);
    future::poll_fn(|context| {
        if let Some(answer) = answer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Poll::Ready(answer);
        }
        WAITING.with(|waiting| waiting.wait(ticket, context.waker()));
        Poll::Pending
    })
    .await
}

struct Slot(Rc<super::Shard>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.questions.release(1);
    }
}

struct Entry(u64);

impl Drop for Entry {
    fn drop(&mut self) {
        WAITING.with(|waiting| waiting.leave(self.0));
    }
}

thread_local! {
    static WAITING: Waiting = const { Waiting { next: Cell::new(0), wakers: RefCell::new(Vec::new()) } };
}

/// Tasks of this thread that wait for an answer. Wakers stay on their thread; helpers send back numbers.
struct Waiting {
    next: Cell<u64>,
    wakers: RefCell<Vec<(u64, Option<Waker>)>>,
}

impl Waiting {
    fn enter(&self) -> u64 {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        self.wakers.borrow_mut().push((ticket, None));
        ticket
    }

    fn wait(&self, ticket: u64, waker: &Waker) {
        if let Some(entry) = self.wakers.borrow_mut().iter_mut().find(|entry| entry.0 == ticket) {
            entry.1 = Some(waker.clone());
        }
    }

    fn answered(&self, ticket: u64) {
        let waker = self
            .wakers
            .borrow_mut()
            .iter_mut()
            .find(|entry| entry.0 == ticket)
            .and_then(|entry| entry.1.take());
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn leave(&self, ticket: u64) {
        self.wakers.borrow_mut().retain(|entry| entry.0 != ticket);
    }
}

/// The process's helpers, started at the first question.
struct Helpers {
    questions: Mutex<mpsc::Sender<Question>>,
}

impl Helpers {
    fn send(&self, question: Question) {
        let sent = self.questions.lock().unwrap_or_else(PoisonError::into_inner).send(question);
        assert!(sent.is_ok(), "helper threads live as long as the process");
    }
}

/// Where a helper has to share a processor with a busy shard, it takes a tenth and not half of it: with half, reads beside
/// a client that asks for 100,000 extents over and over had a p99 of 4 ms (a tick), with a tenth the one they have alone.
fn give_way() {
    const NICER: i32 = 10;
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
    let _ = rustix::process::setpriority_process(None, (nice + NICER).min(19)); // of this thread alone, on Linux
}

fn helpers() -> &'static Helpers {
    static POOL: OnceLock<Helpers> = OnceLock::new();
    POOL.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Question>();
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..HELPERS {
            let receiver = Arc::clone(&receiver);
            let work = move || {
                // Started by a shard that may be pinned, for questions of all shards.
                let _ = crate::sys::affinity::unpin();
                give_way();
                loop {
                    let question = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(question) = question else { return };
                    question();
                }
            };
            thread::Builder::new()
                .name(format!("helper-{number}"))
                .spawn(work)
                .expect("the process may start its helper threads");
        }
        Helpers { questions: Mutex::new(sender) }
    })
}
