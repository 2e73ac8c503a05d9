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

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::EventfdFlags;

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
    entries: BTreeMap<Key, Entry>,
    /// The longest range since there was none: one that reaches another begins no farther before it.
    longest: u64,
    /// How many entries want to be alone; while there are none, sharing needs no look.
    alone: usize,
    arrivals: u64,
}

/// Where a range begins, and when it came: a look at what overlaps goes over neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    start: u64,
    arrival: u64,
}

#[derive(Debug)]
struct Entry {
    end: u64,
    hold: Hold,
    /// Where the owner sleeps until it holds the range.
    waiting: Option<Arc<OwnedFd>>,
}

/// A range that is held, or waited for, until this is dropped.
#[derive(Debug)]
pub struct Held {
    ranges: Arc<Ranges>,
    key: Key,
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
        let key = Key { start: range.start, arrival: state.arrivals };
        let mut entry = Entry { end: range.end, hold, waiting: None };
        if state.blocked(key, &entry) {
            entry.waiting = Some(Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?));
        }
        let sleep = entry.waiting.clone();
        state.arrivals += 1;
        state.alone += usize::from(hold == Hold::Alone);
        state.longest = state.longest.max(range.end.saturating_sub(range.start));
        state.entries.insert(key, entry);
        Ok((Held { ranges: Arc::clone(self), key }, sleep))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (Key, &Entry)> {
        let first = Key { start: start.saturating_sub(self.longest).min(end), arrival: 0 };
        let neighbours = self.entries.range(first..Key { start: end, arrival: 0 });
        neighbours.filter(move |(_, other)| start < other.end).map(|(key, other)| (*key, other))
    }

    /// Whether somebody who came earlier holds, or waits for, a range that `entry` cannot share.
    fn blocked(&self, key: Key, entry: &Entry) -> bool {
        if self.alone == 0 && entry.hold == Hold::Shared {
            return false;
        }
        self.overlapping(key.start, entry.end).any(|(other_key, other)| {
            other_key.arrival < key.arrival && (other.hold == Hold::Alone || entry.hold == Hold::Alone)
        })
    }

    fn leave(&mut self, key: Key) {
        let Some(left) = self.entries.remove(&key) else { return };
        if self.entries.is_empty() {
            self.longest = 0;
        }
        if self.alone == 0 {
            return; // everybody shared, so nobody waits
        }
        self.alone -= usize::from(left.hold == Hold::Alone);
        let waiting = self.overlapping(key.start, left.end).filter(|(_, entry)| entry.waiting.is_some());
        let free: Vec<Key> =
            waiting.filter(|(key, entry)| !self.blocked(*key, entry)).map(|(key, _)| key).collect();
        for key in free {
            if let Some(fd) = self.entries.get_mut(&key).and_then(|entry| entry.waiting.take()) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Enter(Range<u64>, Hold),
        /// The one of this number, modulo how many there are.
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let length = prop_oneof![4 => 1u64..8, 1 => 20u64..200];
        let hold = prop_oneof![2 => Just(Hold::Shared), 1 => Just(Hold::Alone)];
        prop_oneof![
            3 => (0u64..100, length, hold).prop_map(|(start, length, hold)| Step::Enter(start..start + length, hold)),
            2 => (0usize..64).prop_map(Step::Leave),
        ]
    }

    /// Of those that are there, in the order in which they came, which have to wait.
    fn waiting(there: &[(Range<u64>, Hold, Held)]) -> Vec<bool> {
        let in_the_way = |(range, hold, _): &(Range<u64>, Hold, Held),
                          (other, other_hold, _): &(Range<u64>, Hold, Held)| {
            other.start < range.end
                && range.start < other.end
                && (*hold == Hold::Alone || *other_hold == Hold::Alone)
        };
        let waits = |(at, one)| there[..at].iter().any(|other| in_the_way(one, other));
        there.iter().enumerate().map(waits).collect()
    }

    proptest! {
        /// However they come and go, nobody is let in too early and nobody is forgotten.
        #[test]
        fn only_who_has_somebody_in_the_way_waits(steps in prop::collection::vec(step(), 1..60)) {
            let ranges = Arc::new(Ranges::default());
            let mut there = Vec::new();
            for step in steps {
                match step {
                    Step::Enter(range, hold) => {
                        let (held, _) = ranges.enter(range.clone(), hold).expect("an eventfd");
                        there.push((range, hold, held));
                    }
                    Step::Leave(which) if !there.is_empty() => drop(there.remove(which % there.len())),
                    Step::Leave(_) => {}
                }
                let state = ranges.lock();
                let found: Vec<bool> =
                    there.iter().map(|(_, _, held)| state.entries[&held.key].waiting.is_some()).collect();
                drop(state);
                prop_assert_eq!(found, waiting(&there));
            }
            drop(there);
            let state = ranges.lock();
            prop_assert_eq!((state.entries.len(), state.alone, state.longest), (0, 0, 0));
        }
    }
}
