//! Payload buffers: pooled, aligned, budgeted.
//!
//! ```text
//!    base                 payload (512-byte aligned)
//!     |<---- HEADROOM ---->|<------- capacity: a power of two, 4 KiB .. 64 MiB ------->|
//!                   [ head ][ len() bytes of payload ]
//! ```
//!
//! A reply's header is written into the headroom right before the payload ([`Buffer::set_head`]), so header and payload
//! go out as one iovec and the payload stays aligned for direct I/O.
//!
//! # Limits
//! The budget counts bytes of capacity that clients hold (`payload_memory_max` of the server). [`Buffer::acquire`] waits
//! in line for it: nobody starves and nothing is refused. An eighth of it is reserved for small requests (up to
//! [`SMALL_MAX`]), so that a few clients who promise large payloads and stall do not stop everybody else. Blocks of up to 256 KiB are kept for reuse, last in first out
//! (cache-hot), up to [`RETAINED_BYTES_MAX`]; larger ones are mapped for each use and go back to the kernel.
//!
//! # Invariants
//! * A block belongs to one `Buffer` or to the free list of its class.
//! * Blocks from the registered arena are never freed one by one: the arena stays mapped until the process ends, so a
//!   buffer may outlive its shard.

use std::alloc::{self, Layout};
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use super::sync::Semaphore;

/// Bytes before the payload that a reply header may use.
pub const HEADROOM: usize = 512;
/// The largest payload one buffer holds: the protocol's usual ceiling of 64 MiB.
pub const CAPACITY_MAX: usize = 64 << 20;
/// Free blocks a shard keeps for reuse, in bytes of capacity.
pub(super) const RETAINED_BYTES_MAX: usize = 32 << 20;

/// The largest request that may use the reserve.
pub(super) const SMALL_MAX: usize = POOLED_CAPACITY_MAX;

const CAPACITY_MIN: usize = 4 << 10;
const POOLED_CAPACITY_MAX: usize = 256 << 10;
const CLASSES: usize = (CAPACITY_MAX / CAPACITY_MIN).ilog2() as usize + 1;
const ALIGNMENT: usize = 4096;

/// Where blocks come from and go back to; one per shard.
pub(super) struct Pool {
    budget: Semaphore,
    reserve: Semaphore,
    free: RefCell<[Vec<NonNull<u8>>; CLASSES]>,
    retained: Cell<usize>,
    arena: Option<Arena>,
}

/// What a buffer owes.
#[derive(Clone, Copy)]
enum Charge {
    None,
    Budget(usize),
    Reserve(usize),
}

/// Memory registered with the ring: reads and writes into it skip pinning pages (`READ_FIXED`).
struct Arena {
    base: NonNull<u8>,
    length: usize,
    used: Cell<usize>,
}

impl Pool {
    /// A pool that lends at most `budget` bytes at a time.
    ///
    /// # Errors
    /// `ENOMEM` when `registered` bytes cannot be mapped.
    pub(super) fn new(budget: usize, registered: usize) -> io::Result<Self> {
        let arena = if registered == 0 { None } else { Some(Arena::map(registered)?) };
        let free = RefCell::new(std::array::from_fn(|_| Vec::new()));
        let reserve = budget / 8;
        Ok(Self {
            budget: Semaphore::new(budget - reserve),
            reserve: Semaphore::new(reserve),
            free,
            retained: Cell::new(0),
            arena,
        })
    }

    /// Bytes of the budget that nobody holds.
    pub(super) fn budget_free(&self) -> usize {
        self.budget.free() + self.reserve.free()
    }

    /// Takes `bytes` of the budget without waiting.
    fn try_charge(&self, bytes: usize) -> Option<Charge> {
        if self.budget.try_acquire(bytes) {
            return Some(Charge::Budget(bytes));
        }
        (bytes <= SMALL_MAX && self.reserve.try_acquire(bytes)).then_some(Charge::Reserve(bytes))
    }

    /// Takes `bytes` of the budget, waiting in line.
    async fn charge(&self, bytes: usize) -> Charge {
        if let Some(charge) = self.try_charge(bytes) {
            return charge;
        }
        if bytes <= SMALL_MAX {
            self.reserve.acquire(bytes).await;
            return Charge::Reserve(bytes);
        }
        self.budget.acquire(bytes).await;
        Charge::Budget(bytes)
    }

    fn refund(&self, charge: Charge) {
        match charge {
            Charge::Budget(bytes) => self.budget.release(bytes),
            Charge::Reserve(bytes) => self.reserve.release(bytes),
            Charge::None => {}
        }
    }

    /// What is to be registered as the ring's fixed buffer 0.
    pub(super) fn arena_iovec(&self) -> Option<libc::iovec> {
        let arena = self.arena.as_ref()?;
        Some(libc::iovec { iov_base: arena.base.as_ptr().cast(), iov_len: arena.length })
    }

    fn take(&self, length: usize, charge: Charge) -> Buffer {
        let class = class_of(length);
        let capacity = CAPACITY_MIN << class;
        let recycled = self.free.borrow_mut()[class].pop();
        let base = match recycled {
            Some(base) => {
                self.retained.set(self.retained.get() - capacity);
                base
            }
            None => self.carve(class),
        };
        Buffer { base, length, head: 0, class, charge }
    }

    fn carve(&self, class: usize) -> NonNull<u8> {
        let size = HEADROOM + (CAPACITY_MIN << class);
        if size <= HEADROOM + POOLED_CAPACITY_MAX
            && let Some(base) = self.arena.as_ref().and_then(|arena| arena.carve(size))
        {
            return base;
        }
        allocate(class)
    }

    fn recycle(&self, base: NonNull<u8>, class: usize) {
        let capacity = CAPACITY_MIN << class;
        let in_arena = self.owns_registered(base);
        let keeps = capacity <= POOLED_CAPACITY_MAX && self.retained.get() + capacity <= RETAINED_BYTES_MAX;
        if in_arena || keeps {
            self.retained.set(self.retained.get() + capacity);
            self.free.borrow_mut()[class].push(base);
        } else {
            free(base, class);
        }
    }

    fn owns_registered(&self, base: NonNull<u8>) -> bool {
        self.arena.as_ref().is_some_and(|arena| arena.contains(base))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for class in 0..CLASSES {
            for base in std::mem::take(&mut self.free.borrow_mut()[class]) {
                if !self.owns_registered(base) {
                    free(base, class);
                }
            }
        }
    }
}

impl Arena {
    fn map(length: usize) -> io::Result<Self> {
        let base = crate::sys::mmap::map_forever(length)?;
        Ok(Self { base, length, used: Cell::new(0) })
    }

    fn carve(&self, size: usize) -> Option<NonNull<u8>> {
        let at = self.used.get();
        let end = at.checked_add(size)?;
        if end > self.length {
            return None;
        }
        self.used.set(end);
        // SAFETY: `at` is inside the mapping of `length` bytes.
        Some(unsafe { self.base.add(at) })
    }

    fn contains(&self, base: NonNull<u8>) -> bool {
        let start = self.base.as_ptr().addr();
        (start..start + self.length).contains(&base.as_ptr().addr())
    }
}

fn class_of(length: usize) -> usize {
    assert!(length <= CAPACITY_MAX, "a payload of {length} bytes was admitted");
    let capacity = length.next_power_of_two().max(CAPACITY_MIN);
    (capacity / CAPACITY_MIN).ilog2() as usize
}

fn capacity_for(length: usize) -> usize {
    CAPACITY_MIN << class_of(length)
}

fn layout(class: usize) -> Layout {
    Layout::from_size_align(HEADROOM + (CAPACITY_MIN << class), ALIGNMENT).expect("classes end at 64 MiB")
}

fn allocate(class: usize) -> NonNull<u8> {
    let layout = layout(class);
    // SAFETY: the layout's size is never zero.
    let base = unsafe { alloc::alloc_zeroed(layout) };
    NonNull::new(base).unwrap_or_else(|| alloc::handle_alloc_error(layout))
}

fn free(base: NonNull<u8>, class: usize) {
    // SAFETY: the block came from `allocate(class)`: arena blocks never get here (callers), and its one owner gave it up.
    unsafe { alloc::dealloc(base.as_ptr(), layout(class)) };
}

/// A payload buffer of `len()` bytes, 512-byte aligned, with room for a reply header before it.
///
/// Its content is whatever its last user left, zeroes at first: overwrite all of it before sending any of it.
pub struct Buffer {
    base: NonNull<u8>,
    length: usize,
    head: usize,
    class: usize,
    charge: Charge,
}

impl Buffer {
    /// A buffer of `length` bytes, waiting in line for the shard's payload budget.
    ///
    /// One acquisition per request and never a second one while holding one: two such requests could wait for each
    /// other for ever.
    pub async fn acquire(length: usize) -> Self {
        if let Some(buffer) = Self::try_acquire(length) {
            return buffer;
        }
        let shard = super::current();
        let charge = shard.pool.charge(capacity_for(length)).await;
        shard.pool.take(length, charge)
    }

    /// Several buffers in one acquisition, for a reply in several pieces. Waits until all can be had.
    ///
    /// The sum of their capacities, each rounded up to a power of two, must not exceed seven eighths of the budget.
    pub async fn acquire_all(lengths: impl Iterator<Item = usize> + Clone) -> Vec<Self> {
        let shard = super::current();
        let charge = shard.pool.charge(lengths.clone().map(capacity_for).sum()).await;
        let part = |bytes| match charge {
            Charge::Budget(_) => Charge::Budget(bytes),
            Charge::Reserve(_) => Charge::Reserve(bytes),
            Charge::None => Charge::None,
        };
        lengths.map(|length| shard.pool.take(length, part(capacity_for(length)))).collect()
    }

    /// Like [`Buffer::acquire`], if it need not wait.
    pub fn try_acquire(length: usize) -> Option<Self> {
        super::with(|shard| {
            let charge = shard.pool.try_charge(capacity_for(length))?;
            Some(shard.pool.take(length, charge))
        })
    }

    /// A buffer outside of the budget, for bounded use inside one operation (edges of direct I/O, zeroes to write).
    pub fn scratch(length: usize) -> Self {
        super::with(|shard| shard.pool.take(length, Charge::None))
    }

    /// Bytes it could hold.
    pub fn capacity(&self) -> usize {
        CAPACITY_MIN << self.class
    }

    /// Changes the payload's length.
    ///
    /// # Panics
    /// When `length` exceeds the capacity.
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity());
        self.length = length;
    }

    /// Writes `head` into the headroom, right before the payload.
    ///
    /// # Panics
    /// When `head` is longer than [`HEADROOM`].
    pub fn set_head(&mut self, head: &[u8]) {
        assert!(head.len() <= HEADROOM);
        self.head = head.len();
        // SAFETY: HEADROOM bytes lie before the payload and `head.len()` of them are used.
        let target = unsafe { self.base.add(HEADROOM - head.len()) };
        // SAFETY: `target` has `head.len()` bytes up to the payload, borrowed exclusively through `&mut self`.
        unsafe { slice::from_raw_parts_mut(target.as_ptr(), head.len()) }.copy_from_slice(head);
    }

    /// Head and payload in one piece.
    pub fn framed(&self) -> &[u8] {
        // SAFETY: `head` is at most HEADROOM (set_head).
        let start = unsafe { self.base.add(HEADROOM - self.head) };
        // SAFETY: head and payload are contiguous, initialised (zeroed at allocation) and borrowed through `&self`.
        unsafe { slice::from_raw_parts(start.as_ptr(), self.head + self.length) }
    }

    /// The same, to be changed.
    pub fn framed_mut(&mut self) -> &mut [u8] {
        // SAFETY: `head` is at most HEADROOM (set_head).
        let start = unsafe { self.base.add(HEADROOM - self.head) };
        // SAFETY: as in `framed`, borrowed exclusively through `&mut self`.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), self.head + self.length) }
    }

    /// Whether the ring has this buffer registered (index 0).
    pub(super) fn is_registered(&self) -> bool {
        super::with(|shard| shard.pool.owns_registered(self.base))
    }

    pub(super) fn payload_ptr(&mut self) -> *mut u8 {
        // SAFETY: the block is HEADROOM bytes longer than the payload.
        unsafe { self.base.add(HEADROOM) }.as_ptr()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the payload starts HEADROOM bytes into the block.
        let start = unsafe { self.base.add(HEADROOM) };
        // SAFETY: `length` bytes within capacity, initialised (zeroed at allocation), borrowed through `&self`.
        unsafe { slice::from_raw_parts(start.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let length = self.length;
        // SAFETY: as in `deref`, borrowed exclusively through `&mut self`.
        unsafe { slice::from_raw_parts_mut(self.payload_ptr(), length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let (base, class, charge) = (self.base, self.class, self.charge);
        let returned = super::try_with(|shard| {
            shard.pool.recycle(base, class);
            shard.pool.refund(charge);
        });
        // A buffer that outlived its shard may stem from the arena, which nobody is left to tell: it stays mapped.
        let _ = returned;
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.length, self.capacity())
    }
}
