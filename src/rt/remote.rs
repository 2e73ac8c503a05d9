//! Reaching a shard from another thread: a mailbox, and a doorbell that appears as a completion on the shard's ring.
//!
//! Letters are closures; the shard runs them between two rounds of its tasks. The doorbell rings only when the mailbox
//! was empty, so a burst of letters costs one wake-up. It is, by what the kernel can do and where the sender stands:
//!
//! | sender | doorbell |
//! |---|---|
//! | a shard | `MSG_RING` in its own next submission: no system call of its own |
//! | another thread, 6.13+ | `MSG_RING` by registration: one system call, no descriptor to read |
//! | otherwise | a write to an eventfd that the shard keeps a read on: works everywhere |
//!
//! Measured (`benches/doorbell.rs`, 6.18, two processors): a letter to another shard and back takes 6.0 us by MSG_RING and
//! 10.6 us by eventfd, because the message joins a submission that happens anyway and the shard has no read to repeat. A
//! question to a helper and back takes 13.5 us by registration and 12.5 us by eventfd, within each other's spread; so there
//! the choice is for the one that leaves no operation standing on the ring.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::{opcode, types};

use super::caps::{self, Capabilities};
use super::op::{Op, USER_DATA_DOORBELL, USER_DATA_IGNORE};

type Letter = Box<dyn FnOnce() + Send>;

/// How a doorbell is rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// By messages between rings; `sync`: also from threads without one.
    Message {
        /// `IORING_REGISTER_SEND_MSG_RING` works.
        sync: bool,
    },
    /// By eventfd.
    Eventfd,
}

impl Doorbell {
    /// The fastest that `capabilities` allow.
    pub fn choose(capabilities: &Capabilities) -> Self {
        if capabilities.message_ring {
            Self::Message { sync: capabilities.message_sync }
        } else {
            Self::Eventfd
        }
    }
}

/// A shard's address: clone it, send it anywhere.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    ring_fd: i32,
    doorbell: Doorbell,
    eventfd: OwnedFd,
    letters: Mutex<Vec<Letter>>,
    rung: AtomicBool,
    closed: AtomicBool,
}

impl Remote {
    pub(super) fn new(ring_fd: i32, doorbell: Doorbell) -> io::Result<Self> {
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let inner = Inner {
            ring_fd,
            doorbell,
            eventfd: rustix::event::eventfd(0, flags)?,
            letters: Mutex::new(Vec::new()),
            rung: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs `letter` on the shard's thread, soon. Returns false when the shard has ended.
    pub fn post(&self, letter: impl FnOnce() + Send + 'static) -> bool {
        {
            let mut letters = self.inner.letters.lock().unwrap_or_else(PoisonError::into_inner);
            if self.inner.closed.load(Ordering::Acquire) {
                return false;
            }
            letters.push(Box::new(letter));
        }
        self.nudge();
        true
    }

    /// Makes the shard look at what other threads have for it, soon.
    pub(super) fn nudge(&self) {
        if !self.inner.rung.swap(true, Ordering::AcqRel) {
            self.ring();
        }
    }

    fn ring(&self) {
        let fd = self.inner.ring_fd;
        if let Doorbell::Message { sync } = self.inner.doorbell {
            let sent = super::try_with(|shard| {
                let sqe = opcode::MsgRingData::new(types::Fd(fd), 0, USER_DATA_DOORBELL, None).build();
                shard.push(sqe.user_data(USER_DATA_IGNORE));
            });
            if sent.is_some() || (sync && caps::send_sync_message(fd).is_ok()) {
                return;
            }
        }
        // Cannot fail: the counter is far from overflow and the descriptor is ours. Any eight bytes but zero ring.
        let _ = rustix::io::write(&self.inner.eventfd, &1_u64.to_le_bytes());
    }

    /// Runs the letters that are there; called by the shard when the doorbell rang.
    pub(super) fn open_mailbox(&self) {
        self.inner.rung.store(false, Ordering::Release);
        let letters = std::mem::take(&mut *self.inner.letters.lock().unwrap_or_else(PoisonError::into_inner));
        for letter in letters {
            letter();
        }
    }

    /// No more letters: those not yet run are dropped, later ones refused.
    pub(super) fn close(&self) {
        let letters = {
            let mut letters = self.inner.letters.lock().unwrap_or_else(PoisonError::into_inner);
            self.inner.closed.store(true, Ordering::Release);
            std::mem::take(&mut *letters)
        };
        drop(letters);
    }

    /// Keeps a read on the eventfd, for senders that have no other doorbell.
    pub(super) async fn listen_eventfd(self) {
        loop {
            let mut count = Box::new([0_u8; 8]);
            let fd = types::Fd(self.inner.eventfd.as_raw_fd());
            let sqe = opcode::Read::new(fd, count.as_mut_ptr(), 8).build();
            let kept = (count, self.clone());
            super::with(|shard| Op::submit(shard, sqe, kept).cancel_on_drop()).await;
            super::with(|shard| shard.look_outside());
        }
    }
}
