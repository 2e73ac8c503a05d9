//! A ring of provided buffers: the kernel picks one when data arrives, so a connection that is idle holds none.
//!
//! This is the classic kind (`IORING_REGISTER_PBUF_RING`, 5.19), one buffer per completion: bundles came back out of
//! order on 6.13.11-6.14 and incremental buffers had bugs on 6.16.
//!
//! # Invariants
//! * A buffer id is in the ring, or in a completion that nobody has looked at yet, or in one [`Received`].
//! * Entries and buffers stay mapped until the process ends, so a `Received` may outlive its shard.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{cqueue, types::BufRingEntry};

use super::op::Completion;
use super::ring::Ring;
use super::sync::Event;
use super::{Shard, caps};

/// The group id all receives of a shard select from.
pub(super) const GROUP: u16 = 0;

/// The receive buffers of one shard.
pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    count: u16,
    size: usize,
    tail: Cell<u16>,
    /// Buffers in a [`Received`].
    held: Cell<usize>,
    /// Notified when a buffer comes back, for receives that found the ring empty (`ENOBUFS`).
    pub(super) returned: Event,
}

impl BufferRing {
    /// Registers `count` (a power of two) buffers of `size` bytes.
    ///
    /// # Errors
    /// [`caps::Unsupported`] in words.
    pub(super) fn register(ring: &Ring, count: u16, size: usize) -> Result<Self, caps::Unsupported> {
        let other = caps::Unsupported::Other;
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        let entries = crate::sys::mmap::map_forever(bytes).map_err(other)?.cast::<BufRingEntry>();
        let memory = crate::sys::mmap::map_forever(usize::from(count) * size).map_err(other)?;
        let submitter = ring.uring().submitter();
        // SAFETY: the entries stay mapped for ever.
        unsafe { submitter.register_buf_ring_with_flags(entries.as_ptr().addr() as u64, count, GROUP, 0) }
            .map_err(|error| caps::explain(error, "the ring of receive buffers"))?;
        let this = Self {
            entries,
            memory,
            count,
            size,
            tail: Cell::new(0),
            held: Cell::new(0),
            returned: Event::new(),
        };
        for id in 0..count {
            this.provide(id);
        }
        Ok(this)
    }

    /// Puts a buffer back into the ring.
    fn provide(&self, id: u16) {
        let tail = self.tail.get();
        let slot = usize::from(tail & (self.count - 1));
        // SAFETY: `slot` is below `count`.
        let entry = unsafe { self.entries.add(slot) }.as_ptr();
        // SAFETY: the slot at the tail is the application's until the tail moves past it (io_uring_register(2)).
        let entry = unsafe { &mut *entry };
        entry.set_addr(self.address(id).as_ptr().addr() as u64);
        entry.set_len(u32::try_from(self.size).unwrap_or(u32::MAX));
        entry.set_bid(id);
        let tail = tail.wrapping_add(1);
        self.tail.set(tail);
        // SAFETY: the tail shares the first entry's reserved field; the address is valid as long as the entries are.
        let shared = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: aligned, mapped, and only ever accessed atomically from here on; the release pairs with the kernel's
        // acquire and publishes the entry.
        unsafe { AtomicU16::from_ptr(shared.cast_mut()) }.store(tail, Ordering::Release);
    }

    fn address(&self, id: u16) -> NonNull<u8> {
        // SAFETY: ids come from `register` and the kernel hands back only those.
        unsafe { self.memory.add(usize::from(id) * self.size) }
    }

    /// Whether somebody holds a buffer, so that one will come back.
    pub(super) fn is_held(&self) -> bool {
        self.held.get() > 0
    }

    fn put_back(&self, id: u16) {
        self.held.set(self.held.get() - 1);
        self.provide(id);
        self.returned.notify();
    }
}

/// Bytes that arrived, in a provided buffer that goes back to the ring when this is dropped.
pub struct Received {
    id: u16,
    start: NonNull<u8>,
    length: usize,
}

impl Received {
    /// Takes the buffer named by a completion; `None` if it names none (end of stream, error).
    pub(super) fn from_completion(shard: &Shard, completion: Completion) -> Option<Self> {
        let id = cqueue::buffer_select(completion.flags)?;
        let length = usize::try_from(completion.result).unwrap_or(0);
        shard.receive_buffers.held.set(shard.receive_buffers.held.get() + 1);
        Some(Self { id, start: shard.receive_buffers.address(id), length })
    }
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the kernel filled `length` bytes of this buffer and does not touch it until it is put back (drop).
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Received {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, borrowed exclusively through `&mut self`.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        super::try_with(|shard| shard.receive_buffers.put_back(self.id));
    }
}
