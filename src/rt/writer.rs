//! Buffered writes on threads of ours, where the ring would hand each one to a kernel worker of its own.
//!
//! A write through the page cache may have to wait, so io_uring first tries without waiting. File systems that cannot do
//! that (ext4; block devices) make every single write a job for a kernel worker: a wake-up, two switches and a hash table
//! each, 13 us of processor time and more. Here a shard hands over all writes of a turn at once, one thread does them, and
//! one doorbell brings all the answers:
//!
//! ```text
//!   shard: write, write, write --turn ends--> queue --> thread: pwrite, pwrite, pwrite --one doorbell--> shard
//! ```
//!
//! To the shard such a write is an operation like any other ([`super::op`]): its buffer is kept until its completion.
//! The kernel orders overlapping writes no more than it does on the ring, and a sync covers what was answered before it.
//!
//! Each shard has up to [`WRITERS`] threads, started at the first write; files are dealt out to them, so that a file
//! system that blocks its writers (dirty limit, a dying disk) holds up one in so many.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::slice;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use io_uring::{opcode, types};

use super::op::{Completion, Op};
use super::remote::Remote;
use super::ring::{Mode, Ring};
use super::{Shard, buffer::Buffer};
use crate::sys;

/// Threads of one shard: a file system takes one buffered write to a file at a time (its inode lock), so this is about
/// several exports, of which a slow one must not stop the others.
pub const WRITERS: usize = 4;
/// Writes that are handed over at once although the shard has more to do: by then a wake-up is cheap for each.
const BATCH: usize = 32;
/// Turns of a busy shard that a write waits for others to be handed over with.
const TURNS_WAITED_MAX: u32 = 4;
/// Answers go back after so many bytes, so that the replies to a batch of large writes start early.
const ANSWER_BYTES: usize = 256 << 10;

/// One write to be done.
struct Job {
    key: u64,
    file: Arc<OwnedFd>,
    start: Address,
    length: usize,
    offset: u64,
}

/// Where the bytes are: in a buffer that the operation's future or entry keeps.
struct Address(*const u8);

// SAFETY: the memory is neither changed nor freed before the operation's completion was entered (Ownership, op.rs), and
// that follows the thread's last look at it.
unsafe impl Send for Address {}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    answers: Vec<(u64, i32)>,
    closed: bool,
}

/// One thread's side and the shard's side of its queue.
#[derive(Default)]
struct Desk {
    queue: Mutex<Queue>,
    filled: Condvar,
}

impl Desk {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writers of one shard.
pub(super) struct Writers {
    desks: [RefCell<Option<Arc<Desk>>>; WRITERS],
    /// Writes not yet handed over.
    fresh: [RefCell<VecDeque<Job>>; WRITERS],
    fresh_count: Cell<usize>,
    /// Turns that the oldest of them has waited.
    turns_waited: Cell<u32>,
    answers: RefCell<Vec<(u64, i32)>>,
    /// Writes handed over and not yet answered.
    in_flight: Cell<usize>,
    /// Threads of this process have one processor between them.
    one_processor: bool,
}

impl Writers {
    pub(super) fn new() -> Self {
        Self {
            desks: Default::default(),
            fresh: Default::default(),
            fresh_count: Cell::new(0),
            turns_waited: Cell::new(0),
            answers: RefCell::new(Vec::new()),
            in_flight: Cell::new(0),
            one_processor: sys::affinity::shared().is_ok_and(|count| count == 1),
        }
    }

    /// Hands over the writes of the last turns, unless there are few and the shard goes on at once.
    pub(super) fn end_turn(&self, goes_on: bool, remote: &Remote) {
        let turns = self.turns_waited.get() + 1;
        if self.fresh_count.get() == 0 {
            return;
        }
        if !goes_on || self.fresh_count.get() >= BATCH || turns >= TURNS_WAITED_MAX {
            self.hand_over(remote);
        } else {
            self.turns_waited.set(turns);
        }
    }

    /// Hands over all writes that there are.
    pub(super) fn hand_over(&self, remote: &Remote) {
        self.turns_waited.set(0);
        if self.fresh_count.replace(0) == 0 {
            return;
        }
        for (desk, fresh) in self.desks.iter().zip(&self.fresh) {
            let mut fresh = fresh.borrow_mut();
            if fresh.is_empty() {
                continue;
            }
            self.in_flight.set(self.in_flight.get() + fresh.len());
            let mut desk = desk.borrow_mut();
            let desk = desk.get_or_insert_with(|| start(remote.clone()));
            desk.queue().jobs.append(&mut fresh);
            desk.filled.notify_one();
        }
    }

    /// Whether a shard that looks for completions keeps a writer from making them.
    pub(super) fn need_this_processor(&self) -> bool {
        self.one_processor && self.in_flight.get() > 0
    }

    /// Takes the answers that have come, each once.
    pub(super) fn collect(&self, mut enter: impl FnMut(u64, Completion)) {
        if self.in_flight.get() == 0 {
            return;
        }
        let mut answers = self.answers.borrow_mut();
        for desk in &self.desks {
            let Some(desk) = desk.borrow().clone() else { continue };
            mem::swap(&mut desk.queue().answers, &mut *answers);
            self.in_flight.set(self.in_flight.get() - answers.len());
            for (key, result) in answers.drain(..) {
                enter(key, Completion { result, flags: 0 });
            }
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for desk in self.desks.iter().filter_map(|desk| desk.take()) {
            desk.queue().closed = true;
            desk.filled.notify_one();
        }
    }
}

/// Writes `buffer[at..at + length]` at `offset` on the writer thread that `slot` falls to.
pub(super) fn submit(
    shard: &Shard,
    slot: u32,
    file: Arc<OwnedFd>,
    buffer: Buffer,
    part: std::ops::Range<usize>,
    offset: u64,
) -> Op<Buffer> {
    let (start, length) = (Address(buffer[part.clone()].as_ptr()), part.len());
    Op::submit_elsewhere(shard, buffer, |key| {
        let writers = &shard.writers;
        writers.fresh[slot as usize % WRITERS].borrow_mut().push_back(Job {
            key,
            file,
            start,
            length,
            offset,
        });
        writers.fresh_count.set(writers.fresh_count.get() + 1);
    })
}

/// Whether the ring hands buffered writes to a kernel worker, tried on the first bytes of `scratch`: a file on the file
/// system in question whose content is of no interest.
pub fn buffered_writes_wait(scratch: &OwnedFd) -> bool {
    static BYTES: [u8; 512] = [0; 512];
    let Ok(mut ring) = Ring::new(4, Mode::Plain) else { return false };
    let mut reaped = Vec::with_capacity(1);
    // The first try may be sent away only because space is to be allocated; the worker sees to that.
    for _ in 0..4 {
        ring.push(&opcode::Write::new(types::Fd(scratch.as_raw_fd()), BYTES.as_ptr(), 512).build());
        ring.enter(0);
        let at_once = ring.reap(&mut reaped);
        while reaped.is_empty() {
            ring.enter(1);
            ring.reap(&mut reaped);
        }
        reaped.clear();
        if at_once {
            return false;
        }
    }
    true
}

fn start(remote: Remote) -> Arc<Desk> {
    let desk = Arc::new(Desk::default());
    let theirs = Arc::clone(&desk);
    thread::Builder::new()
        .name("writer".to_owned())
        .spawn(move || {
            // The shard that starts this thread may be pinned; a writer beside it is only in its way there.
            let _ = sys::affinity::unpin();
            work(&theirs, &remote);
        })
        .expect("a process that serves may start its writers");
    desk
}

fn work(desk: &Desk, remote: &Remote) {
    let mut jobs = VecDeque::new();
    let mut answers = Vec::new();
    loop {
        {
            let mut queue = desk.queue();
            while queue.jobs.is_empty() {
                if queue.closed {
                    return;
                }
                queue = desk.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            mem::swap(&mut queue.jobs, &mut jobs);
        }
        let mut bytes = 0;
        for job in jobs.drain(..) {
            bytes += job.length;
            answers.push((job.key, write(&job)));
            if bytes >= ANSWER_BYTES {
                bytes = 0;
                answer(desk, remote, &mut answers);
            }
        }
        answer(desk, remote, &mut answers);
    }
}

fn answer(desk: &Desk, remote: &Remote, answers: &mut Vec<(u64, i32)>) {
    if !answers.is_empty() {
        desk.queue().answers.append(answers);
        remote.nudge();
    }
}

/// A completion's result: bytes written, or a negative errno.
fn write(job: &Job) -> i32 {
    // SAFETY: the buffer is kept, unchanged, until the completion of this job (`Address`).
    let bytes = unsafe { slice::from_raw_parts(job.start.0, job.length) };
    write_here(&job.file, bytes, job.offset)
}

/// Writes on this thread; answers as a completion does.
pub(super) fn write_here(file: &OwnedFd, bytes: &[u8], offset: u64) -> i32 {
    match rustix::io::pwrite(file, bytes, offset) {
        Ok(count) => i32::try_from(count).unwrap_or(i32::MAX),
        Err(errno) => -errno.raw_os_error(),
    }
}
