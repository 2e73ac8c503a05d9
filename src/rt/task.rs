//! The executor: tasks in pooled slots, polled on the thread that owns them.
//!
//! ```text
//!   free --spawn--> running --pending--> idle --wake--> queued --run--> running
//!    ^                 |                                                  |
//!    '-----ready-------'-- woken while running: queued again at once -----'
//! ```
//!
//! Each slot owns a block of [`BLOCK_BYTES`] that is used again by the next tenant, so spawning allocates nothing once
//! as many slots exist as tasks were ever alive at the same time. A future too large for a block is boxed (the handshake
//! is; no read or write is, see `tests/no_allocation.rs`).
//!
//! # Invariants
//! * A block holds a live future exactly while its slot's `vtable` is `Some`; the table alone writes that field.
//! * A running slot is not polled again and not freed by anybody but the poll that runs it, so the pointer taken before
//!   a poll stays good while the poll spawns further tasks and the table grows (blocks are boxed one by one).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::waker::TaskId;

/// Bytes of future that a pooled slot holds without a box of its own.
pub const BLOCK_BYTES: usize = 2048;

#[repr(C, align(16))]
struct Block([MaybeUninit<u8>; BLOCK_BYTES]);

/// How to poll and drop the future in a block, whose type only the spawner knew.
struct VTable {
    poll: unsafe fn(*mut Block, &mut Context<'_>) -> Poll<()>,
    drop: unsafe fn(*mut Block),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Running,
    RunningWoken,
    Idle,
    Queued,
}

struct Slot {
    generation: u16,
    state: State,
    vtable: Option<&'static VTable>,
    block: Box<Block>,
}

/// The tasks of one shard.
pub(super) struct Tasks {
    shard: u16,
    table: RefCell<Table>,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: VecDeque<TaskId>,
}

impl Tasks {
    pub(super) fn new(shard: u16) -> Self {
        Self {
            shard,
            table: RefCell::new(Table { slots: Vec::new(), free: Vec::new(), ready: VecDeque::new() }),
        }
    }

    /// Places the future in a slot and polls it at once, so that its first op joins the submission being gathered. It is
    /// taken from where it is, because each call that it is passed through would copy it.
    pub(super) fn spawn<F: Future<Output = ()> + 'static>(&self, future: &mut Option<F>) {
        if size_of::<F>() > BLOCK_BYTES || align_of::<F>() > align_of::<Block>() {
            return self.spawn_placed(&mut future.take().map(Box::pin));
        }
        self.spawn_placed(future);
    }

    fn spawn_placed<F: Future<Output = ()> + 'static>(&self, future: &mut Option<F>) {
        assert!(size_of::<F>() <= BLOCK_BYTES, "spawn boxes what is larger");
        let id = {
            let mut table = self.table.borrow_mut();
            let index = match table.free.pop() {
                Some(index) => index,
                None => table.grow(),
            };
            let slot = &mut table.slots[index as usize];
            let future = future.take().expect("there is a future to spawn");
            // SAFETY: the slot was free, so its block holds no live future; F fits in size and alignment (spawn).
            unsafe { (&raw mut *slot.block).cast::<F>().write(future) };
            slot.vtable = Some(&VTable { poll: poll_in_place::<F>, drop: drop_in_place::<F> });
            slot.state = State::Running;
            TaskId { shard: self.shard, generation: slot.generation, index }
        };
        self.poll(id);
    }

    /// Marks a task ready; does nothing for a task that has ended.
    pub(super) fn wake(&self, id: TaskId) {
        let mut table = self.table.borrow_mut();
        let Some(slot) = table.slots.get_mut(id.index as usize) else { return };
        if slot.generation != id.generation {
            return;
        }
        match slot.state {
            State::Idle => {
                slot.state = State::Queued;
                table.ready.push_back(id);
            }
            State::Running => slot.state = State::RunningWoken,
            State::Free | State::Queued | State::RunningWoken => {}
        }
    }

    /// Polls every task that is ready now; tasks that these make ready wait for the next round.
    /// Returns whether there is a next round.
    pub(super) fn run_round(&self) -> bool {
        let round = self.table.borrow().ready.len();
        for _ in 0..round {
            let id = {
                let mut table = self.table.borrow_mut();
                let Some(id) = table.ready.pop_front() else { break };
                table.slots[id.index as usize].state = State::Running;
                id
            };
            self.poll(id);
        }
        !self.table.borrow().ready.is_empty()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.table.borrow().ready.is_empty()
    }

    /// Polls the task of a slot in state `Running`.
    fn poll(&self, id: TaskId) {
        let (block, vtable) = {
            let mut table = self.table.borrow_mut();
            let slot = &mut table.slots[id.index as usize];
            let vtable = slot.vtable.expect("a running slot holds a future");
            (&raw mut *slot.block, vtable)
        };
        let waker = id.waker();
        let mut context = Context::from_waker(&waker);
        // SAFETY: `vtable` is Some, so the block holds the future it was made for; the state `Running` keeps every other
        // poll and drop away (invariants at the top of this file).
        let polled = unsafe { (vtable.poll)(block, &mut context) };
        if polled.is_pending() {
            let mut table = self.table.borrow_mut();
            let slot = &mut table.slots[id.index as usize];
            if slot.state == State::RunningWoken {
                slot.state = State::Queued;
                table.ready.push_back(id);
            } else {
                slot.state = State::Idle;
            }
            return;
        }
        // SAFETY: as above; the future has finished and is dropped exactly once, here, before the slot is freed.
        unsafe { (vtable.drop)(block) };
        self.table.borrow_mut().release(id.index);
    }

    /// Drops every task that has not ended, in no particular order. Their ops become orphans.
    pub(super) fn clear(&self) {
        let count = self.table.borrow().slots.len();
        for index in 0..count {
            let held = {
                let mut table = self.table.borrow_mut();
                let slot = &mut table.slots[index];
                slot.vtable.take().map(|vtable| (&raw mut *slot.block, vtable))
            };
            let Some((block, vtable)) = held else { continue };
            // SAFETY: `vtable` was Some, so the block holds a live future; taking it made this the only drop.
            unsafe { (vtable.drop)(block) };
            self.table.borrow_mut().release(u32::try_from(index).expect("slots are numbered in u32"));
        }
        self.table.borrow_mut().ready.clear();
    }
}

impl Table {
    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 tasks on a shard");
        let block = Box::new(Block([MaybeUninit::uninit(); BLOCK_BYTES]));
        self.slots.push(Slot { generation: 0, state: State::Free, vtable: None, block });
        index
    }

    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.vtable = None;
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
    }
}

/// # Safety
/// `block` holds a live `F` that nothing else polls or moves.
unsafe fn poll_in_place<F: Future<Output = ()>>(block: *mut Block, context: &mut Context<'_>) -> Poll<()> {
    // SAFETY: the caller's promise; blocks are boxed and never move while they hold a future.
    let future = unsafe { &mut *block.cast::<F>() };
    // SAFETY: the future stays in its block until `drop_in_place`.
    unsafe { Pin::new_unchecked(future) }.poll(context)
}

/// # Safety
/// `block` holds a live `F`, which is dead afterwards.
unsafe fn drop_in_place<F>(block: *mut Block) {
    // SAFETY: the caller's promise.
    unsafe { block.cast::<F>().drop_in_place() };
}
