//! One io_uring, set up the way the loop wants it.
//!
//! `SINGLE_ISSUER + DEFER_TASKRUN`: completions are made when the loop asks for them, on its own thread, not in the
//! middle of it. `TASKRUN_FLAG`: without it, `submit()` of the io-uring crate never runs deferred work. `SUBMIT_ALL`: one
//! bad SQE does not hold back the rest of a batch. With `SQPOLL` a kernel thread submits and completes, so there is nothing to
//! defer.

use std::io;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, squeue};

/// Who submits and who completes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    /// Both when the kernel is entered.
    Plain,
    /// A kernel thread, which sleeps after `idle` without work (`IORING_SETUP_SQPOLL`).
    Thread { idle: Duration },
    /// Whoever enters looks at the devices (`IORING_SETUP_IOPOLL`): direct reads and writes, nothing else.
    Polled,
}

/// A ring owned by the thread that built it.
pub(super) struct Ring {
    uring: IoUring,
}

impl Ring {
    /// Builds a ring with room for `entries` SQEs and four times as many CQEs.
    ///
    /// # Errors
    /// `ENOSYS`/`EPERM` where io_uring is absent or disabled, `ENOMEM` where `RLIMIT_MEMLOCK` is too small, `EINVAL`
    /// on kernels before 6.1; [`super::caps`] puts them into words.
    pub(super) fn new(entries: u32, mode: Mode) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_submit_all().setup_cqsize(entries * 4);
        match mode {
            Mode::Plain => builder.setup_defer_taskrun().setup_taskrun_flag(),
            Mode::Thread { idle } => {
                builder.setup_sqpoll(u32::try_from(idle.as_millis()).unwrap_or(u32::MAX))
            }
            Mode::Polled => builder.setup_iopoll().setup_defer_taskrun(),
        };
        let uring = builder.build(entries)?;
        // Saves the kernel an fdget per enter (5.18). Only a convenience: no table, no harm.
        let _ = uring.submitter().register_ring_fd();
        Ok(Self { uring })
    }

    pub(super) fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// Queues an SQE; enters the kernel only if the submission queue is full.
    pub(super) fn push(&mut self, sqe: &squeue::Entry) {
        loop {
            {
                let mut queue = self.uring.submission();
                // SAFETY: memory that the SQE points to is kept by its op's future or entry until the terminal CQE
                // (Ownership, op.rs); ops without memory have nothing to keep.
                if unsafe { queue.push(sqe) }.is_ok() {
                    return;
                }
            }
            // With SQPOLL the thread makes room; submitting only wakes it.
            let room = if self.uring.params().is_setup_sqpoll() {
                self.uring.submit().and_then(|_| self.uring.submitter().squeue_wait())
            } else {
                self.uring.submit()
            };
            match room {
                Ok(_) => {}
                // EBUSY, EAGAIN: the completion queue overflowed or memory is short; entering again makes room.
                Err(error) if is_transient(&error) => {}
                Err(error) => panic!("io_uring_enter failed while the submission queue was full: {error}"),
            }
        }
    }

    /// Submits what is queued and waits until `want` completions are there.
    pub(super) fn enter(&self, want: usize) {
        match self.uring.submit_and_wait(want) {
            Ok(_) => {}
            Err(error) if is_transient(&error) => {}
            Err(error) => panic!("io_uring_enter failed: {error}"),
        }
    }

    /// SQEs queued and not yet submitted.
    pub(super) fn pushed(&mut self) -> usize {
        self.uring.submission().len()
    }

    /// Whether the kernel holds back completions until it is entered (`IORING_SQ_TASKRUN`).
    pub(super) fn has_work(&mut self) -> bool {
        self.uring.submission().taskrun()
    }

    /// Whether there are completions, or will be on entering.
    pub(super) fn has_arrived(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.has_work()
    }

    /// Looks for completions without entering the kernel, for as long as `look_max`. Whether there are any.
    pub(super) fn look_for(&mut self, look_max: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < look_max {
            if self.has_arrived() {
                return true;
            }
            std::hint::spin_loop();
        }
        self.has_arrived()
    }

    /// Moves completions that are there into `into`, up to its spare capacity. Returns whether there were any.
    pub(super) fn reap(&mut self, into: &mut Vec<cqueue::Entry>) -> bool {
        let room = into.capacity() - into.len();
        into.extend(self.uring.completion().take(room));
        !into.is_empty()
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME))
}
