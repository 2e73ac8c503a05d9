//! Direct reads and writes whose completions are looked for instead of interrupting us (`IORING_SETUP_IOPOLL`, 5.1).
//!
//! Such a ring takes nothing else, so a shard that has files of this kind has a second one:
//!
//! ```text
//!   sockets, fsync, everything else --> the ring     sleeps when there is nothing to do
//!   reads and writes of these files --> this ring    while any is in flight the shard does not sleep
//! ```
//!
//! It takes a device with queues that raise no interrupts: NVMe with `nvme.poll_queues=N`, virtio-blk with
//! `virtio_blk.num_poll_queues=N`.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{cqueue, opcode, squeue, types};

use super::buffer::Buffer;
use super::ring::{Mode, Ring};
use super::{FILES_MAX, Shard};

/// SQEs of the second ring: more than an NVMe queue takes.
const ENTRIES: u32 = 1024;

/// The second ring, once there is a file for it.
#[derive(Default)]
pub(super) struct Polled {
    ring: RefCell<Option<Ring>>,
    in_flight: Cell<usize>,
}

impl Polled {
    /// Puts a file into `slot` of this ring too.
    ///
    /// # Errors
    /// What the kernel says; `EOPNOTSUPP` if a first read of `align` bytes finds that the device cannot be polled.
    pub(super) fn register(shard: &Shard, fd: &OwnedFd, slot: u32, align: usize) -> io::Result<()> {
        let mut place = shard.polled.ring.borrow_mut();
        let ring = match &mut *place {
            Some(ring) => ring,
            None => place.insert(Self::build(shard)?),
        };
        ring.uring().submitter().register_files_update(slot, &[fd.as_raw_fd()])?;
        try_reading(ring, slot, align)
    }

    fn build(shard: &Shard) -> io::Result<Ring> {
        let ring = Ring::new(ENTRIES, Mode::Polled)?;
        let submitter = ring.uring().submitter();
        submitter.register_files_sparse(FILES_MAX)?;
        if let Some(iovec) = shard.pool.arena_iovec() {
            // SAFETY: the arena stays mapped for ever (buffer.rs, invariants).
            unsafe { submitter.register_buffers(&[iovec]) }?;
        }
        Ok(ring)
    }

    pub(super) fn push(&self, sqe: &squeue::Entry) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.ring.borrow_mut().as_mut().expect("a file was registered").push(sqe);
    }

    /// Whether there is something to look for.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.get() > 0
    }

    /// Submits, looks at the device's queues and takes what has completed.
    pub(super) fn look(&self, into: &mut Vec<cqueue::Entry>) {
        if !self.is_busy() {
            return;
        }
        if let Some(ring) = &mut *self.ring.borrow_mut() {
            ring.enter(0);
            ring.reap(into);
            self.in_flight.set(self.in_flight.get() - into.len());
        }
    }
}

fn try_reading(ring: &mut Ring, slot: u32, align: usize) -> io::Result<()> {
    let mut buffer = Buffer::try_acquire(align).ok_or(io::ErrorKind::OutOfMemory)?;
    let length = u32::try_from(align).map_err(|_| io::ErrorKind::InvalidInput)?;
    ring.push(&opcode::Read::new(types::Fixed(slot), buffer.as_mut_ptr(), length).build());
    let mut reaped = Vec::with_capacity(1);
    while reaped.is_empty() {
        ring.enter(1);
        ring.reap(&mut reaped);
    }
    super::file::checked(reaped[0].result()).map(drop)
}
