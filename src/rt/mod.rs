//! The ring runtime: one thread, one io_uring, one executor, nothing shared. No NBD in here.
//!
//! ```text
//!        .---------------------------------------------------------------.
//!        v                                                               |
//!   run ready tasks  ->  io_uring_enter: submit and wait  ->  reap completions
//!   (push SQEs, append     (one system call per turn)          (fill the op table,
//!    replies; nothing                                            mark tasks ready;
//!    blocks)                                                     nothing runs)
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`caps`] | what the kernel can do |
//! | `ring`, `polled` | the io_uring itself, and one for files that are polled |
//! | `op` | the life of an operation, its ownership rules |
//! | `task`, `waker`, `block_on` | the executor, and a `main` for it |
//! | `poll` | looking before sleeping |
//! | `heavy` | what moves much waits in line |
//! | [`mod@file`], [`net`], `lend`, [`timer`], `connect` | one function per opcode |
//! | [`gather`], `buffer`, `buffer_ring`, `cached` | memory that travels |
//! | [`sync`], `join` | waiting for each other on one thread |
//! | `remote`, `blocking`, `writer` | other threads |
//! | `mood` | whether a file system takes writes at once |
//! | [`fault`] | faults on purpose |
//!
//! May be imported by `net`, `backend`, `server`, `client`, `load`, `copy`; imports only `sys`.
//!
//! Invariants: every function here that touches the ring runs on a shard's thread (it panics elsewhere: our error);
//! phases never mix; after warm-up nothing here allocates per operation.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use io_uring::types::Napi;
use io_uring::{cqueue, opcode, squeue};

mod block_on;
mod blocking;
mod buffer;
mod buffer_ring;
mod cached;
pub mod caps;
mod connect;
pub mod fault;
pub mod file;
pub mod gather;
mod heavy;
mod join;
mod lend;
mod mood;
pub mod net;
mod op;
mod poll;
mod polled;
mod remote;
mod ring;
pub mod sync;
mod task;
#[cfg(test)]
mod tests;
pub mod timer;
mod waker;
mod writer;

pub use block_on::block_on;
pub use blocking::{HELPERS, QUESTIONS_MAX, blocking};
pub use buffer::{Buffer, CAPACITY_MAX, HEADROOM};
pub use buffer_ring::Received;
pub use cached::{Cached, CachedFile};
pub use connect::connect;
pub use file::{FILES_MAX, File, Writes};
pub use join::join_all;
pub use lend::Lent;
pub use poll::Poll;
pub use remote::{Doorbell, Remote};
pub use task::BLOCK_BYTES;
pub use writer::{WRITERS, buffered_writes_wait};

use op::{After, Completion, Ops, USER_DATA_DOORBELL, USER_DATA_IGNORE};
use ring::{Mode, Ring};

/// Rounds of tasks that wake each other before the ring gets its turn again.
const ROUNDS_MAX: usize = 16;
/// How long a shard that ends waits for operations it cancelled.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// What a shard is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Submission queue entries; the completion queue has four times as many.
    pub entries: u32,
    /// CPU to pin the thread to.
    pub cpu: Option<usize>,
    /// Payload budget in bytes.
    pub payload_memory_max: usize,
    /// Bytes of payload memory registered with the ring (for direct I/O); 0 for none.
    pub registered_memory: usize,
    /// Receive buffers, a power of two.
    pub receive_buffers: u16,
    /// Bytes of each.
    pub receive_buffer_size: usize,
    /// How other threads wake this shard.
    pub doorbell: Doorbell,
    /// Whether to look for completions before sleeping.
    pub poll: Poll,
    /// Let a kernel thread take what is submitted; it sleeps after so long without work.
    pub sqpoll: Option<Duration>,
    /// How long the kernel looks at network cards before it sleeps (`IORING_REGISTER_NAPI`, 6.9).
    pub busy_poll: Option<Duration>,
    /// Faults to inject; `None` outside of tests.
    pub faults: Option<fault::Plan>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            entries: 1024,
            cpu: None,
            payload_memory_max: 256 << 20,
            registered_memory: 0,
            receive_buffers: 64,
            receive_buffer_size: 64 << 10,
            doorbell: Doorbell::Eventfd,
            poll: Poll::Never,
            sqpoll: None,
            busy_poll: None,
            faults: None,
        }
    }
}

/// The runtime of one thread.
pub(crate) struct Shard {
    id: u16,
    ring: RefCell<Ring>,
    ops: RefCell<Ops>,
    tasks: task::Tasks,
    pool: buffer::Pool,
    receive_buffers: buffer_ring::BufferRing,
    file_slots: RefCell<Vec<u32>>,
    questions: sync::Semaphore,
    remote: Remote,
    poller: RefCell<poll::Poller>,
    /// Tasks that let others have their turn first.
    yielded: RefCell<Vec<Waker>>,
    heavy: heavy::Line,
    /// Tasks that wait for that line to be empty.
    behind_line: RefCell<Vec<Waker>>,
    writers: writer::Writers,
    polled: polled::Polled,
    faults: Option<fault::Faults>,
    started: Instant,
    now: Cell<u64>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Shard>>> = const { RefCell::new(None) };
}

fn with<T>(use_shard: impl FnOnce(&Shard) -> T) -> T {
    try_with(use_shard).expect("ring operations run on a shard's thread")
}

fn try_with<T>(use_shard: impl FnOnce(&Shard) -> T) -> Option<T> {
    // A thread that is ending has no locals any more; then there is no shard either.
    CURRENT.try_with(|current| current.borrow().as_deref().map(use_shard)).ok().flatten()
}

fn current() -> Rc<Shard> {
    CURRENT.with(|current| current.borrow().clone()).expect("ring operations run on a shard's thread")
}

/// Runs a shard on this thread until the future that `main` returns is ready. Tasks left are dropped, their operations
/// cancelled and awaited for a bounded time.
///
/// # Errors
/// [`caps::Unsupported`] when the ring cannot be set up.
///
/// # Panics
/// When this thread already runs a shard.
pub fn run<T, F>(config: &Config, main: impl FnOnce() -> F) -> Result<T, caps::Unsupported>
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let shard = Rc::new(Shard::new(config)?);
    let taken = CURRENT.with(|current| current.borrow_mut().replace(Rc::clone(&shard)));
    assert!(taken.is_none(), "one shard per thread");
    if config.doorbell != (Doorbell::Message { sync: true }) {
        spawn(shard.remote.clone().listen_eventfd());
    }
    let output = Rc::new(Cell::new(None));
    let put = Rc::clone(&output);
    let main = main();
    spawn(async move { put.set(Some(main.await)) });
    let result = shard.turn_until(|| output.take());
    shard.wind_up();
    CURRENT.with(|current| current.borrow_mut().take());
    Ok(result)
}

/// Starts a task. It is polled at once, up to its first wait, and lives on this shard until it ends.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    // By reference through the closures, each of which would copy it.
    let mut future = Some(future);
    with(|shard| shard.tasks.spawn(&mut future));
}

/// Lets the operations submitted so far run, and whatever they make ready, before the caller goes on.
pub async fn next_turn() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return std::task::Poll::Ready(());
        }
        yielded = true;
        with(|shard| shard.yielded.borrow_mut().push(context.waker().clone()));
        std::task::Poll::Pending
    })
    .await;
}

/// The same, until every operation that moves much has been submitted as well, whoever asked for it: they go one at a time,
/// and a caller who asks for many of them does not stand in line more than once.
pub async fn line_empty() {
    next_turn().await;
    std::future::poll_fn(|context| {
        with(|shard| {
            if shard.heavy.is_empty() {
                return std::task::Poll::Ready(());
            }
            shard.behind_line.borrow_mut().push(context.waker().clone());
            std::task::Poll::Pending
        })
    })
    .await;
}

/// Nanoseconds on the shard's monotonic clock when the loop last came back from the kernel: free of charge, and the time
/// at which everything now being handled had arrived.
pub fn now_ns() -> u64 {
    with(|shard| shard.now.get())
}

/// Nanoseconds on the same clock, read now (about 20 ns).
pub fn clock_ns() -> u64 {
    with(Shard::clock_ns)
}

/// This shard's address for other threads.
pub fn remote() -> Remote {
    with(|shard| shard.remote.clone())
}

/// Bytes of the payload budget that are free.
pub fn payload_memory_free() -> usize {
    with(|shard| shard.pool.budget_free())
}

impl Shard {
    fn new(config: &Config) -> Result<Self, caps::Unsupported> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let other = caps::Unsupported::Other;
        let mode = config.sqpoll.map_or(Mode::Plain, |idle| Mode::Thread { idle });
        let ring = Ring::new(config.entries, mode).map_err(|error| caps::explain(error, "a ring"))?;
        let submitter = ring.uring().submitter();
        if let Some(longest) = config.busy_poll {
            let longest_us = u32::try_from(longest.as_micros()).unwrap_or(u32::MAX);
            let mut napi = Napi::new().set_busy_poll_timeout(longest_us).set_prefer_busy_poll(true);
            submitter.register_napi(&mut napi).map_err(caps::Unsupported::BusyPoll)?;
        }
        submitter
            .register_files_sparse(FILES_MAX)
            .map_err(|error| caps::explain(error, "a ring's table of files"))?;
        let pool = buffer::Pool::new(config.payload_memory_max, config.registered_memory).map_err(other)?;
        if let Some(iovec) = pool.arena_iovec() {
            // SAFETY: the arena stays mapped for ever (buffer.rs, invariants).
            unsafe { submitter.register_buffers(&[iovec]) }.map_err(|error| {
                let mebibytes = config.registered_memory >> 20;
                caps::explain(
                    error,
                    &format!("memory registered for direct I/O ({mebibytes} MiB for each shard)"),
                )
            })?;
        }
        let receive_buffers =
            buffer_ring::BufferRing::register(&ring, config.receive_buffers, config.receive_buffer_size)?;
        let remote = Remote::new(ring.uring().as_raw_fd(), config.doorbell).map_err(other)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            id,
            ops: RefCell::new(Ops::with_capacity(config.entries as usize)),
            tasks: task::Tasks::new(id),
            ring: RefCell::new(ring),
            pool,
            receive_buffers,
            file_slots: RefCell::new((0..FILES_MAX).rev().collect()),
            questions: sync::Semaphore::new(QUESTIONS_MAX),
            remote,
            poller: RefCell::new(poll::Poller::new(config.poll)),
            yielded: RefCell::new(Vec::new()),
            heavy: heavy::Line::default(),
            behind_line: RefCell::new(Vec::new()),
            writers: writer::Writers::new(),
            polled: polled::Polled::default(),
            faults: config.faults.map(fault::Faults::new),
            started: Instant::now(),
            now: Cell::new(0),
        })
    }

    /// The loop.
    fn turn_until<T>(&self, mut finished: impl FnMut() -> Option<T>) -> T {
        let mut reaped = Vec::with_capacity(256);
        let mut patient = Vec::new();
        loop {
            std::mem::swap(&mut *self.yielded.borrow_mut(), &mut patient);
            self.run_rounds();
            if !patient.is_empty() {
                patient.drain(..).for_each(Waker::wake);
                self.run_rounds();
            }
            if self.heavy.is_empty() && !self.behind_line.borrow().is_empty() {
                self.behind_line.borrow_mut().drain(..).for_each(Waker::wake);
                self.run_rounds();
            }
            if let Some(output) = finished() {
                return output;
            }
            self.enter();
            self.reap(&mut reaped);
        }
    }

    fn run_rounds(&self) {
        let mut rounds = 0;
        while self.tasks.run_round() && rounds < ROUNDS_MAX {
            rounds += 1;
        }
    }

    /// Whether there is something to do without waiting for the kernel.
    fn has_ready(&self) -> bool {
        let waiting = !self.yielded.borrow().is_empty() || !self.behind_line.borrow().is_empty();
        self.tasks.has_ready() || waiting || self.polled.is_busy()
    }

    /// Submits, and waits if there is nothing else to do.
    fn enter(&self) {
        let mut ring = self.ring.borrow_mut();
        // Submitting comes before reaping in the kernel: what has arrived would wait for a heavy operation too.
        let light = ring.pushed() > 0 || ring.has_work();
        if let Some(sqe) = self.heavy.next(light) {
            ring.push(&sqe);
        }
        let ready = self.has_ready() || !self.heavy.is_empty();
        self.writers.end_turn(ready, &self.remote);
        let idle = !ready && ring.pushed() == 0;
        let mut poller = self.poller.borrow_mut();
        if ready {
            if ring.pushed() > 0 || ring.has_work() {
                ring.enter(0);
            }
        } else if poller.polls() && !self.writers.need_this_processor() {
            // What is submitted here often completes at once, and then there is nothing to wait for.
            if ring.pushed() > 0 {
                ring.enter(0);
            }
            if !ring.has_arrived() {
                let start = Instant::now();
                let paid = ring.look_for(poll::POLL_MAX);
                poller.polled(paid);
                if !paid {
                    ring.enter(1);
                    poller.slept(start.elapsed());
                }
            }
            if ring.has_work() {
                ring.enter(0);
            }
        } else {
            // The time that a large submission takes is no wait.
            let measured = poller.learns() && ring.pushed() <= poll::SUBMISSION_SMALL;
            let start = measured.then(Instant::now);
            ring.enter(1);
            if let Some(start) = start {
                poller.slept(start.elapsed());
            }
        }
        if idle {
            poller.waited();
        }
        self.now.set(self.clock_ns());
    }

    /// Enters all completions that are there into the op table. Wakers only mark tasks ready.
    fn reap(&self, reaped: &mut Vec<cqueue::Entry>) {
        while self.ring.borrow_mut().reap(reaped) {
            self.poller.borrow_mut().reaped(reaped.len());
            for cqe in reaped.drain(..) {
                self.complete(&cqe);
            }
        }
        self.polled.look(reaped);
        for cqe in reaped.drain(..) {
            self.complete(&cqe);
        }
    }

    fn complete(&self, cqe: &cqueue::Entry) {
        match cqe.user_data() {
            USER_DATA_IGNORE => {}
            USER_DATA_DOORBELL => self.look_outside(),
            key => self.complete_op(key, Completion { result: cqe.result(), flags: cqe.flags() }),
        }
    }

    fn complete_op(&self, key: u64, completion: Completion) {
        let after = self.ops.borrow_mut().complete(key, completion);
        match after {
            After::Nothing | After::Drop(_) => {}
            After::Wake(waker) => waker.wake(),
            After::CancelStream => self.cancel(key),
            After::Dispose(dispose, completion, _kept) => dispose(self, completion),
        }
    }

    /// Takes what other threads have for this shard: the doorbell rang.
    fn look_outside(&self) {
        self.remote.open_mailbox();
        self.writers.collect(|key, completion| self.complete_op(key, completion));
    }

    fn push(&self, sqe: squeue::Entry) {
        self.ring.borrow_mut().push(&sqe);
    }

    /// The same, for a part of a transfer of so many bytes.
    fn push_weighed(&self, sqe: squeue::Entry, bytes: usize) {
        if bytes < heavy::HEAVY_MIN {
            self.heavy.met_small();
            self.push(sqe);
        } else {
            self.heavy.push(sqe);
        }
    }

    fn cancel(&self, key: u64) {
        self.push(opcode::AsyncCancel::new(key).build().user_data(USER_DATA_IGNORE));
    }

    fn clock_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Drops all tasks, cancels their operations and waits for these, so that no buffer is freed under the kernel.
    /// An operation that a dead disk holds beyond [`SETTLE_MAX`] keeps its buffer for ever instead.
    fn wind_up(&self) {
        self.remote.close();
        self.tasks.clear();
        self.writers.hand_over(&self.remote);
        // An operation that was never submitted would never complete.
        while let Some(sqe) = self.heavy.next(false) {
            self.push(sqe);
        }
        // A letter to another shard may be among what was pushed last.
        self.ring.borrow().enter(0);
        let keys: Vec<u64> = self.ops.borrow().keys().collect();
        for key in keys {
            self.cancel(key);
        }
        let mut reaped = Vec::with_capacity(256);
        let end = Instant::now() + SETTLE_MAX;
        while self.ops.borrow().in_flight() > 0 && Instant::now() < end {
            let timespec = io_uring::types::Timespec::new().nsec(10_000_000);
            let arguments = io_uring::types::SubmitArgs::new().timespec(&timespec);
            // ETIME and EINTR only mean: look again.
            let _ = self.ring.borrow().uring().submitter().submit_with_args(1, &arguments);
            self.reap(&mut reaped);
            self.writers.collect(|key, completion| self.complete_op(key, completion));
        }
        if self.ops.borrow().in_flight() > 0 {
            std::mem::forget(self.ops.take());
        }
    }
}
