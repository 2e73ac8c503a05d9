//! File operations on the ring: one function per opcode, and the loops that make transfers whole.
//!
//! Files are in the shard's fixed-file table (no fdget per operation). `EINTR` and `EAGAIN` are retried here and nowhere
//! else. Buffers are lent: they go in and come back with the result.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};

use super::buffer::Buffer;
use super::fault::{Kind, Verdict};
use super::mood::Mood;
use super::op::{Completion, Op};
use super::polled::Polled;
use super::{Shard, timer, writer};

/// Files one shard can have registered: exports, each with up to two descriptors.
pub const FILES_MAX: u32 = 1024;

/// The longest write that a shard does itself: a copy of some 50 us. 256k sequential writes, depth 16: 153 us of CPU and a p99 of
/// 1.5 ms so, 172 us and 3.8 ms by a thread on the same processor.
const INLINE_LENGTH_MAX: usize = 256 << 10;

/// The largest single write: the kernel's own limit is `INT_MAX` rounded to a page.
const WRITE_MAX: usize = 1 << 30;
/// The largest single read around the page cache. What is copied from the page cache while the shard stands still is read in
/// smaller pieces, which let others in (`heavy.rs`); of commands to a disk, pieces would come one after the other.
/// (Writes go to threads instead: cut up, each piece would be synced.)
const DIRECT_READ_MAX: usize = 4 << 20;

/// A file in the fixed-file table of the shard that registered it. Cheap to clone; not `Send`.
#[derive(Clone, Debug)]
pub struct File {
    inner: Rc<Registered>,
}

#[derive(Debug)]
struct Registered {
    slot: u32,
    fd: Arc<OwnedFd>,
    writes: Writes,
    /// Around the page cache.
    direct: bool,
    mood: Mood,
    /// Reads and writes go to the ring that is polled.
    polled: bool,
}

/// Who carries out a write that need not be durable at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// The ring.
    #[default]
    Ring,
    /// A thread of ours (`writer.rs`).
    Thread,
    /// The shard itself, which stands still meanwhile: for what never waits, such as memory.
    Inline,
    /// The shard itself while small writes return at once, threads for the rest (`mood.rs`).
    Adaptive,
}

impl File {
    /// Registers `fd` with the current shard's ring.
    ///
    /// # Errors
    /// `ENFILE` when the table is full; else what `io_uring_register(2)` says.
    pub fn register(fd: Arc<OwnedFd>, writes: Writes) -> io::Result<Self> {
        let slot = super::with(|shard| {
            let slot = shard.file_slots.borrow_mut().pop();
            let slot = slot.ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?;
            let ring = shard.ring.borrow();
            let updated = ring.uring().submitter().register_files_update(slot, &[fd.as_raw_fd()]);
            if let Err(error) = updated {
                shard.file_slots.borrow_mut().push(slot);
                return Err(error);
            }
            Ok(slot)
        })?;
        let direct =
            rustix::fs::fcntl_getfl(&fd).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::DIRECT));
        Ok(Self {
            inner: Rc::new(Registered { slot, fd, writes, direct, mood: Mood::default(), polled: false }),
        })
    }

    /// The same for a file opened with O_DIRECT on a device whose queues are polled; `align` is the least it reads.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the device has no such queues; else as [`File::register`].
    pub fn register_polled(fd: Arc<OwnedFd>, align: usize) -> io::Result<Self> {
        let mut file = Self::register(fd, Writes::Ring)?;
        super::with(|shard| Polled::register(shard, &file.inner.fd, file.inner.slot, align))?;
        if let Some(inner) = Rc::get_mut(&mut file.inner) {
            inner.polled = true;
        }
        Ok(file)
    }

    /// The descriptor, for calls that have no opcode.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.inner.fd
    }

    fn fixed(&self) -> types::Fixed {
        types::Fixed(self.inner.slot)
    }

    /// Reads `buffer[range]` from `offset`, all of it.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends before; else the errno of `preadv2(2)`. The buffer comes back in any case;
    /// what of it was read is unknown after an error.
    pub async fn read_exact(
        &self,
        mut buffer: Buffer,
        range: Range<usize>,
        offset: u64,
    ) -> (io::Result<()>, Buffer) {
        let mut done = 0;
        while done < range.len() {
            let direct = self.inner.direct;
            let most = if direct { DIRECT_READ_MAX } else { super::with(|shard| shard.heavy.piece()) };
            let part = range.start + done..range.end.min(range.start + done + most);
            let (result, back) = self.read_once(buffer, part, offset + done as u64).await;
            buffer = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                Ok(count) => done += count,
                Err(error) if is_retried(&error) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Reads what there is into `buffer[range]`, up to all of it, and waits for the first byte; 0 at the end. For pipes and
    /// the like, whose reads end early and know no `offset`.
    ///
    /// # Errors
    /// The errno of `preadv2(2)`.
    pub async fn read_some(
        &self,
        mut buffer: Buffer,
        range: Range<usize>,
        offset: u64,
    ) -> (io::Result<usize>, Buffer) {
        loop {
            let (result, back) = self.read_once(buffer, range.clone(), offset).await;
            buffer = back;
            match result {
                Err(error) if is_retried(&error) => {}
                result => return (result, buffer),
            }
        }
    }

    /// Writes `buffer[range]` at `offset`, all of it; with `dsync` it is durable before this resolves (`RWF_DSYNC`).
    ///
    /// # Errors
    /// The errno of `pwritev2(2)`; a prefix may have been written.
    pub async fn write_all(
        &self,
        mut buffer: Buffer,
        range: Range<usize>,
        offset: u64,
        dsync: bool,
    ) -> (io::Result<()>, Buffer) {
        let mut done = 0;
        while done < range.len() {
            let part = range.start + done..range.end.min(range.start + done + WRITE_MAX);
            let (result, back) = self.write_once(buffer, part, offset + done as u64, dsync).await;
            buffer = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(count) => done += count,
                Err(error) if is_retried(&error) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    async fn read_once(
        &self,
        mut buffer: Buffer,
        part: Range<usize>,
        offset: u64,
    ) -> (io::Result<usize>, Buffer) {
        let mut length = part.len();
        if faults_planned() {
            match Box::pin(judge(Kind::Read, length)).await {
                Ok(shorter) => length = shorter,
                Err(result) => return Box::pin(refused(result, buffer)).await,
            }
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let registered = buffer.is_registered();
        let start = pointer(&mut buffer, part);
        let sqe = if registered {
            opcode::ReadFixed::new(self.fixed(), start, length, 0).offset(offset).build()
        } else {
            opcode::Read::new(self.fixed(), start, length).offset(offset).build()
        };
        transferred(self.transfer(sqe, buffer, length).await)
    }

    fn transfer(&self, sqe: squeue::Entry, buffer: Buffer, length: u32) -> Op<Buffer> {
        if self.inner.polled {
            return super::with(|shard| Op::submit_polled(shard, sqe, buffer));
        }
        // The disk moves it, not the shard.
        if self.inner.direct { submit(sqe, buffer) } else { submit_weighed(sqe, buffer, length) }
    }

    async fn write_once(
        &self,
        mut buffer: Buffer,
        part: Range<usize>,
        offset: u64,
        dsync: bool,
    ) -> (io::Result<usize>, Buffer) {
        let mut length = part.len();
        if faults_planned() {
            match Box::pin(judge(Kind::Write, length)).await {
                Ok(shorter) => length = shorter,
                Err(result) => return Box::pin(refused(result, buffer)).await,
            }
        }
        let part = part.start..part.start + length;
        match self.inner.writes {
            // A write that waits for the disk would hold up those behind it on its thread.
            _ if dsync => {}
            Writes::Ring => {}
            Writes::Inline => {
                let result = writer::write_here(&self.inner.fd, &buffer[part], offset);
                return (checked(result), buffer);
            }
            Writes::Adaptive if length <= INLINE_LENGTH_MAX && self.inner.mood.is_calm(super::now_ns()) => {
                let start_ns = super::clock_ns();
                let result = writer::write_here(&self.inner.fd, &buffer[part], offset);
                self.inner.mood.took(start_ns, super::clock_ns());
                return (checked(result), buffer);
            }
            Writes::Thread | Writes::Adaptive => {
                let file = Arc::clone(&self.inner.fd);
                let op =
                    super::with(|shard| writer::submit(shard, self.inner.slot, file, buffer, part, offset));
                return transferred(op.await);
            }
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let flags = if dsync { libc::RWF_DSYNC } else { 0 };
        let registered = buffer.is_registered();
        let start = pointer(&mut buffer, part);
        let sqe = if registered {
            opcode::WriteFixed::new(self.fixed(), start, length, 0).offset(offset).rw_flags(flags).build()
        } else {
            opcode::Write::new(self.fixed(), start, length).offset(offset).rw_flags(flags).build()
        };
        // What is synced has to wait for more than the device's queue.
        let op = if dsync { submit_weighed(sqe, buffer, length) } else { self.transfer(sqe, buffer, length) };
        transferred(op.await)
    }

    /// Makes completed writes durable (`fdatasync(2)`).
    ///
    /// # Errors
    /// Its errno. After `EIO` the kernel may have dropped dirty pages: do not take a later success for durability.
    pub async fn fdatasync(&self) -> io::Result<()> {
        let sqe = opcode::Fsync::new(self.fixed()).flags(types::FsyncFlags::DATASYNC).build();
        self.without_buffer(Kind::Sync, sqe).await
    }

    /// Allocates, punches or zeroes (`fallocate(2)`; works on block devices as well).
    ///
    /// # Errors
    /// Its errno; `EOPNOTSUPP` where file system or device lacks the mode.
    pub async fn fallocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        let sqe = opcode::Fallocate::new(self.fixed(), length).offset(offset).mode(mode).build();
        self.without_buffer(Kind::Allocate, sqe).await
    }

    /// Tells the page cache what is coming (`posix_fadvise(2)`), in steps of at most 1 GiB.
    ///
    /// # Errors
    /// Its errno.
    pub async fn fadvise(&self, offset: u64, length: u64, advice: i32) -> io::Result<()> {
        const STEP: u64 = 1 << 30;
        let mut done = 0;
        while done < length {
            let step = STEP.min(length - done);
            let length = libc::off_t::try_from(step).unwrap_or(libc::off_t::MAX);
            let sqe = opcode::Fadvise::new(self.fixed(), length, advice).offset(offset + done).build();
            self.without_buffer(Kind::Read, sqe).await?;
            done += step;
        }
        Ok(())
    }

    async fn without_buffer(&self, kind: Kind, sqe: squeue::Entry) -> io::Result<()> {
        loop {
            let verdict = if faults_planned() { Box::pin(judge(kind, 1)).await } else { Ok(1) };
            let op = match verdict {
                Ok(_) => submit(sqe.clone(), self.clone()),
                Err(result) => super::with(|shard| Op::submit_replaced(shard, result, self.clone())),
            };
            match checked(op.await.0.result) {
                Ok(_) => return Ok(()),
                Err(error) if is_retried(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        super::try_with(|shard| {
            // The kernel holds the file until operations in flight on the slot have ended.
            let ring = shard.ring.borrow();
            if ring.uring().submitter().register_files_update(self.slot, &[-1]).is_ok() {
                shard.file_slots.borrow_mut().push(self.slot);
            }
        });
    }
}

fn pointer(buffer: &mut Buffer, part: Range<usize>) -> *mut u8 {
    buffer[part].as_mut_ptr()
}

fn submit<K: 'static>(sqe: squeue::Entry, kept: K) -> Op<K> {
    super::with(|shard: &Shard| Op::submit(shard, sqe, kept))
}

/// For what moves so many bytes.
fn submit_weighed<K: 'static>(sqe: squeue::Entry, kept: K, length: u32) -> Op<K> {
    super::with(|shard: &Shard| Op::submit_weighed(shard, sqe, kept, length as usize))
}

fn transferred((completion, buffer): (Completion, Buffer)) -> (io::Result<usize>, Buffer) {
    (checked(completion.result), buffer)
}

/// A CQE's result as a count or an errno.
pub(super) fn checked(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

fn is_retried(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Whether operations are to be judged; outside of tests they never are.
#[inline]
pub(super) fn faults_planned() -> bool {
    super::with(|shard| shard.faults.is_some())
}

/// Asks the fault plan: the bytes to transfer, or the (negative) result to answer instead.
pub(super) async fn judge(kind: Kind, length: usize) -> Result<usize, i32> {
    loop {
        match super::with(|shard| shard.faults.as_ref().map(|faults| faults.judge(kind, length))) {
            None => return Ok(length),
            Some(Verdict::Transfer(length)) => return Ok(length),
            Some(Verdict::Refuse(errno)) => return Err(-errno),
            Some(Verdict::Late(delay)) => timer::sleep(delay).await,
        }
    }
}

async fn refused<K: 'static>(result: i32, kept: K) -> (io::Result<usize>, K) {
    let (completion, kept) = super::with(|shard| Op::submit_replaced(shard, result, kept)).await;
    (checked(completion.result), kept)
}
