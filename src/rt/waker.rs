//! Wakers that are integers.
//!
//! A waker is `(shard, generation, task)` packed into the 64 bits of a `RawWaker`'s data pointer: cloning is a copy,
//! dropping does nothing, waking marks a task ready in the table of the current shard. Nothing is dereferenced, so a
//! waker that outlives its task, or its runtime, is harmless: the generation no longer matches and it does nothing.
//!
//! A waker used on another thread is an error of ours (the data path is not `Send`; other threads post to a shard
//! through [`super::Remote`]) and aborts with a message rather than being lost.

use std::ptr;
use std::task::{RawWaker, RawWakerVTable, Waker};

/// Which task on which shard; `generation` tells the slot's tenants apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TaskId {
    pub(super) shard: u16,
    pub(super) generation: u16,
    pub(super) index: u32,
}

impl TaskId {
    fn pack(self) -> usize {
        (self.shard as usize) << 48 | (self.generation as usize) << 32 | self.index as usize
    }

    #[allow(clippy::cast_possible_truncation)] // the three fields are cut out of the word on purpose
    fn unpack(word: usize) -> Self {
        Self { shard: (word >> 48) as u16, generation: (word >> 32) as u16, index: word as u32 }
    }

    pub(super) fn waker(self) -> Waker {
        // SAFETY: the vtable below never dereferences the data, so any word is a valid one (contract of RawWaker).
        unsafe { Waker::from_raw(raw(self.pack())) }
    }
}

fn raw(word: usize) -> RawWaker {
    RawWaker::new(ptr::without_provenance(word), &VTABLE)
}

static VTABLE: RawWakerVTable =
    RawWakerVTable::new(|data| raw(data.addr()), |data| wake(data.addr()), |data| wake(data.addr()), |_| {});

fn wake(word: usize) {
    let id = TaskId::unpack(word);
    let woken = super::try_with(|shard| {
        assert_eq!(shard.id, id.shard, "a task was woken from another shard's thread");
        shard.tasks.wake(id);
    });
    assert!(woken.is_some(), "a task was woken from a thread without a ring");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_id_survives_packing() {
        let id = TaskId { shard: u16::MAX, generation: 7, index: u32::MAX - 1 };
        assert_eq!(TaskId::unpack(id.pack()), id);
    }
}
