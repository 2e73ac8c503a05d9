//! Order between writes that share a block, on all shards.
//!
//! ```text
//!   a write of whole blocks    holds its range shared
//!   read, modify, write        holds the blocks it touches alone
//! ```
//!
//! Two requests wait for each other only if their ranges overlap and at least one wants its range alone; the one that came
//! first goes first. Only direct I/O comes here, and as long as nobody sends unaligned requests it costs one lock that is
//! held for a few instructions, and never waits.
//!
//! A waiter sleeps on an eventfd that its own ring reads. So it may be on another shard than whoever wakes it, and takes
//! nothing that the one it waits for could need: no helper, and no buffer beyond what its request has already.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::EventfdFlags;
use slab::Slab;

use super::Failure;
use crate::rt::{self, Buffer};

/// Who may hold an overlapping range at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Others who share.
    Shared,
    /// Nobody.
    Alone,
}

/// The ranges of one export that are being written.
#[derive(Debug, Default)]
pub struct Ranges {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Slab<Entry>,
    /// How many entries want to be alone; while there are none, sharing needs no look.
    alone: usize,
    arrivals: u64,
}

#[derive(Debug)]
struct Entry {
    range: Range<u64>,
    hold: Hold,
    arrival: u64,
    /// Where the owner sleeps until it holds the range.
    waiting: Option<Arc<OwnedFd>>,
}

/// A range that is held, or waited for, until this is dropped.
#[derive(Debug)]
pub struct Held {
    ranges: Arc<Ranges>,
    key: usize,
}

impl Ranges {
    /// Waits until nobody is in the way.
    pub async fn hold(self: &Arc<Self>, range: Range<u64>, hold: Hold) -> Result<Held, Failure> {
        let failed = |cause: io::Error| Failure::of("wait for an overlapping request", &cause);
        let (held, sleep) = self.enter(range, hold).map_err(failed)?;
        if let Some(fd) = sleep {
            let eventfd = rt::File::register(fd, rt::Writes::Ring).map_err(failed)?;
            let (woken, _) = eventfd.read_exact(Buffer::scratch(8), 0..8, 0).await;
            woken.map_err(failed)?;
        }
        Ok(held)
    }

    fn enter(self: &Arc<Self>, range: Range<u64>, hold: Hold) -> io::Result<(Held, Option<Arc<OwnedFd>>)> {
        let mut state = self.lock();
        let arrival = state.arrivals;
        let mut entry = Entry { range, hold, arrival, waiting: None };
        if state.blocked(&entry) {
            entry.waiting = Some(Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?));
        }
        let sleep = entry.waiting.clone();
        state.arrivals += 1;
        state.alone += usize::from(hold == Hold::Alone);
        let key = state.entries.insert(entry);
        Ok((Held { ranges: Arc::clone(self), key }, sleep))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether somebody who came earlier holds, or waits for, a range that `entry` cannot share.
    fn blocked(&self, entry: &Entry) -> bool {
        if self.alone == 0 && entry.hold == Hold::Shared {
            return false;
        }
        self.entries.iter().any(|(_, other)| {
            other.arrival < entry.arrival
                && other.range.start < entry.range.end
                && entry.range.start < other.range.end
                && (other.hold == Hold::Alone || entry.hold == Hold::Alone)
        })
    }

    fn leave(&mut self, key: usize) {
        let Some(left) = self.entries.try_remove(key) else { return };
        if self.alone == 0 {
            return; // everybody shared, so nobody waits
        }
        self.alone -= usize::from(left.hold == Hold::Alone);
        let waiting = self.entries.iter().filter(|(_, entry)| entry.waiting.is_some());
        let free: Vec<usize> =
            waiting.filter(|(_, entry)| !self.blocked(entry)).map(|(key, _)| key).collect();
        for key in free {
            if let Some(fd) = self.entries.get_mut(key).and_then(|entry| entry.waiting.take()) {
                // Any number but 0 wakes. It fails only at the counter's maximum, and this is its first and last write.
                let _ = rustix::io::write(&fd, &[1; 8]);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ranges.lock().leave(self.key);
    }
}
