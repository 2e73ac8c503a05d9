//! Direct I/O, past the page cache, for clients that align their requests and for those that do not.
//!
//! ```text
//!            |--------|--------|--------|--------|--------|----       blocks of `align` bytes; the file ends inside one
//!   request       [###|########|########|####]
//!                bounce   straight       bounce
//!   request                                         [#####|###]
//!                                             bounce  cached: beyond `tail`
//! ```
//!
//! * straight: whole blocks, from or to the request's own buffer. All of a well-behaved client's requests.
//! * bounce: through a small buffer of whole blocks. A write reads the blocks at its edges, changes its part and writes them
//!   back, alone on these blocks ([`ranges`](super::ranges)): an overlapping request comes before or after, on every shard.
//! * cached: when the size is no multiple of `align`, O_DIRECT cannot write the end without growing the file. The last page
//!   goes through the page cache on a second descriptor, and only through it. Such a write is synced before it lets go of
//!   its range, and holds the blocks before it as far as a folio can reach: a dirty folio that also spans blocks which are
//!   written directly could be written back over them.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::discard::write_zeroes;
use super::disk::Disk;
use super::ranges::{Held, Hold, Ranges};
use super::{Done, Extents, Failure, File, Zero};
use crate::rt::{self, Buffer};

/// Memory that one request may use beside its buffer, but for one block more at each end.
const BOUNCE_LENGTH_MAX: u64 = 64 * 1024;
/// Largest folio of the page cache (MAX_PAGECACHE_ORDER is PMD_ORDER at most; 2 MiB with 4 KiB pages).
const FOLIO_LENGTH_MAX: u64 = 2 * 1024 * 1024;
/// Alignment in memory of rt's buffers, and all that direct I/O is opened for.
const MEMORY_ALIGN: u64 = 512;

/// A file or block device opened with O_DIRECT, on one shard.
pub struct Direct {
    /// The same through the page cache: for the tail, and for what moves no data.
    file: File,
    handle: rt::File,
    blocks: Blocks,
    ranges: Arc<Ranges>,
}

/// Where blocks begin and where they stop.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    align: u64,
    tail: u64,
}

fn no_queues(disk: &Disk, error: &io::Error) -> io::Error {
    let cause = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            "its device has no queues that can be polled (nvme.poll_queues=N on the kernel's command line \
             makes some)"
        }
        _ => "it cannot be polled",
    };
    io::Error::new(error.kind(), format!("{}: iopoll=on: {cause}: {error}; leave out iopoll=on", disk.label))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Straight,
    Bounce,
    Cached,
}

/// The parts of one request, in order, as positions in the file.
type Parts = SmallVec<[(Way, Range<u64>); 4]>;

impl Direct {
    pub(super) fn attach(disk: Arc<Disk>) -> io::Result<Self> {
        let Some(access) = disk.direct() else { return Err(io::ErrorKind::Unsupported.into()) };
        let blocks = Blocks { align: access.align, tail: access.tail };
        let handle = if access.polled {
            let align = usize::try_from(access.align).map_err(|_| io::ErrorKind::InvalidInput)?;
            rt::File::register_polled(Arc::clone(&access.fd), align)
                .map_err(|error| no_queues(&disk, &error))?
        } else {
            rt::File::register(Arc::clone(&access.fd), rt::Writes::Ring)?
        };
        let ranges = Arc::clone(&access.ranges);
        Ok(Self { file: File::attach(disk)?, handle, blocks, ranges })
    }

    pub(super) async fn read(&self, mut buffer: Buffer, offset: u64) -> Done {
        let length = buffer.len() as u64;
        let start = self.file.disk.position(offset);
        for (way, part) in self.blocks.plan(start..start + length) {
            let place = place(&part, start);
            let result;
            (result, buffer) = match way {
                Way::Straight => self.handle.read_exact(buffer, place, part.start).await,
                Way::Cached => self.file.handle.read_exact(buffer, place, part.start).await,
                Way::Bounce => Box::pin(self.bounce_read(buffer, place, part)).await,
            };
            if let Err(cause) = result {
                return (Err(Box::pin(self.file.disk.read_failed(cause, offset, length)).await), buffer);
            }
        }
        (Ok(()), buffer)
    }

    pub(super) async fn write(&self, mut buffer: Buffer, offset: u64, fua: bool) -> Done {
        let length = buffer.len() as u64;
        let durable = fua || self.file.disk.writethrough;
        let start = self.file.disk.position(offset);
        let parts = self.blocks.plan(start..start + length);
        let _held = match self.hold_for(&parts, start..start + length).await {
            Ok(held) => held,
            Err(failure) => return (Err(failure), buffer),
        };
        for (way, part) in parts {
            let place = place(&part, start);
            let sync = durable || way == Way::Cached;
            let result;
            (result, buffer) = match way {
                Way::Straight => self.handle.write_all(buffer, place, part.start, sync).await,
                Way::Cached => self.file.handle.write_all(buffer, place, part.start, sync).await,
                Way::Bounce => Box::pin(self.bounce_write(buffer, place, part, sync)).await,
            };
            if let Err(cause) = result {
                return (Err(Box::pin(self.file.disk.write_failed(cause, sync)).await), buffer);
            }
        }
        self.file.disk.known.insert(offset, length);
        let outcome = if durable { self.file.disk.check_sync() } else { Ok(()) };
        (outcome, buffer)
    }

    pub(super) async fn flush(&self) -> Result<(), Failure> {
        self.file.flush().await
    }

    pub(super) async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), Failure> {
        let _held = self.share(offset, length).await?;
        self.file.trim(offset, length, fua).await
    }

    pub(super) async fn zero(&self, offset: u64, length: u64, how: Zero, fua: bool) -> Result<(), Failure> {
        let held = self.share(offset, length).await?;
        let rest = self.file.zero_offloaded(offset, length, how).await?;
        drop(held);
        for (offset, length) in rest {
            write_zeroes(offset, length, async |buffer, at| self.write(buffer, at, false).await).await?;
        }
        self.file.sync_if(fua).await
    }

    pub(super) async fn extents(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Extents, Failure> {
        self.file.extents(offset, length, extents_max).await
    }

    #[inline]
    pub(super) fn known_data(&self, offset: u64, length: u64) -> bool {
        self.file.known_data(offset, length)
    }

    /// Keeps read-modify-write cycles out of the blocks that a trim or zero touches. The kernel orders those against direct
    /// writes by itself.
    async fn share(&self, offset: u64, length: u64) -> Result<Held, Failure> {
        let start = self.file.disk.position(offset);
        self.ranges.hold(self.blocks.cover(&(start..start + length)), Hold::Shared).await
    }

    async fn hold_for(&self, parts: &Parts, range: Range<u64>) -> Result<Held, Failure> {
        let mut cover = self.blocks.cover(&range);
        if parts.iter().all(|(way, _)| *way == Way::Straight) {
            return self.ranges.hold(cover, Hold::Shared).await;
        }
        if parts.iter().any(|(way, _)| *way == Way::Cached) {
            cover.start = cover.start.min(self.blocks.tail.saturating_sub(FOLIO_LENGTH_MAX));
        }
        self.ranges.hold(cover, Hold::Alone).await
    }

    async fn bounce_read(
        &self,
        mut buffer: Buffer,
        place: Range<usize>,
        part: Range<u64>,
    ) -> (io::Result<()>, Buffer) {
        let mut into = place.start;
        for piece in self.blocks.pieces(part) {
            let cover = self.blocks.cover(&piece);
            let bounce = Buffer::scratch(small(cover.end - cover.start));
            let whole = 0..bounce.len();
            let (result, bounce) = self.handle.read_exact(bounce, whole, cover.start).await;
            if result.is_err() {
                return (result, buffer);
            }
            let from = small(piece.start - cover.start);
            let length = small(piece.end - piece.start);
            buffer[into..into + length].copy_from_slice(&bounce[from..from + length]);
            into += length;
        }
        (Ok(()), buffer)
    }

    async fn bounce_write(
        &self,
        buffer: Buffer,
        place: Range<usize>,
        part: Range<u64>,
        sync: bool,
    ) -> (io::Result<()>, Buffer) {
        let mut from = place.start;
        for piece in self.blocks.pieces(part) {
            let cover = self.blocks.cover(&piece);
            let mut bounce = Buffer::scratch(small(cover.end - cover.start));
            let whole = 0..bounce.len();
            if cover != piece {
                let result;
                (result, bounce) = self.handle.read_exact(bounce, whole.clone(), cover.start).await;
                if result.is_err() {
                    return (result, buffer);
                }
            }
            let into = small(piece.start - cover.start);
            let length = small(piece.end - piece.start);
            bounce[into..into + length].copy_from_slice(&buffer[from..from + length]);
            let (result, _) = self.handle.write_all(bounce, whole, cover.start, sync).await;
            if result.is_err() {
                return (result, buffer);
            }
            from += length;
        }
        (Ok(()), buffer)
    }
}

impl Blocks {
    /// How each part of a request is done.
    fn plan(self, range: Range<u64>) -> Parts {
        let mut parts = Parts::new();
        let mut push = |way, start: u64, end: u64| {
            if start < end {
                parts.push((way, start..end));
            }
        };
        let Range { start, end } = range;
        let body = end.min(self.tail);
        let (first, last) = (start.next_multiple_of(self.align), body - body % self.align);
        let in_memory = (first - start).is_multiple_of(MEMORY_ALIGN);
        if first < last && in_memory {
            push(Way::Bounce, start, first);
            push(Way::Straight, first, last);
            push(Way::Bounce, last, body);
        } else {
            push(Way::Bounce, start, body);
        }
        push(Way::Cached, start.max(self.tail), end);
        parts
    }

    /// The whole blocks that a range touches.
    fn cover(self, range: &Range<u64>) -> Range<u64> {
        range.start - range.start % self.align..range.end.next_multiple_of(self.align)
    }

    /// Cuts a range at block boundaries into pieces for one bounce buffer.
    fn pieces(self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let step = BOUNCE_LENGTH_MAX.next_multiple_of(self.align);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let piece = at..range.end.min(at - at % self.align + step);
            at = piece.end;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// Where a part of a request that began at `start` is in its buffer.
fn place(part: &Range<u64>, start: u64) -> Range<usize> {
    small(part.start - start)..small(part.end - start)
}

/// A length inside a buffer, so it fits.
fn small(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: Blocks = Blocks { align: 4096, tail: 40_960 };

    #[test]
    fn whole_blocks_go_straight() {
        assert_eq!(BLOCKS.plan(4096..12_288)[..], [(Way::Straight, 4096..12_288)]);
        assert_eq!(BLOCKS.plan(32_768..40_960)[..], [(Way::Straight, 32_768..40_960)]);
        assert!(BLOCKS.plan(5..5).is_empty());
    }

    #[test]
    fn edges_bounce_and_the_middle_goes_straight_when_memory_allows() {
        let parts = BLOCKS.plan(512..9000);
        assert_eq!(
            parts[..],
            [(Way::Bounce, 512..4096), (Way::Straight, 4096..8192), (Way::Bounce, 8192..9000)]
        );
        assert_eq!(BLOCKS.plan(511..9000)[..], [(Way::Bounce, 511..9000)]);
        assert_eq!(BLOCKS.plan(4097..4098)[..], [(Way::Bounce, 4097..4098)]);
    }

    #[test]
    fn what_lies_beyond_the_last_whole_page_is_cached() {
        assert_eq!(BLOCKS.plan(40_960..41_000)[..], [(Way::Cached, 40_960..41_000)]);
        assert_eq!(
            BLOCKS.plan(36_864..41_000)[..],
            [(Way::Straight, 36_864..40_960), (Way::Cached, 40_960..41_000)]
        );
        assert_eq!(
            BLOCKS.plan(40_950..40_970)[..],
            [(Way::Bounce, 40_950..40_960), (Way::Cached, 40_960..40_970)]
        );
        assert_eq!(BLOCKS.plan(40_970..40_990)[..], [(Way::Cached, 40_970..40_990)]);
    }

    #[test]
    fn parts_join_without_gaps_and_pieces_fit_their_buffer() {
        for start in (0..41_000).step_by(97) {
            for end in (start + 1..41_000).step_by(1013) {
                let mut at = start;
                for (way, part) in BLOCKS.plan(start..end) {
                    assert_eq!(part.start, at);
                    at = part.end;
                    let mut from = part.start;
                    for piece in BLOCKS.pieces(part).take_while(|_| way == Way::Bounce) {
                        assert_eq!(piece.start, from);
                        from = piece.end;
                        let cover = BLOCKS.cover(&piece);
                        assert!(cover.end - cover.start <= BOUNCE_LENGTH_MAX && cover.end <= BLOCKS.tail);
                    }
                }
                assert_eq!(at, end);
            }
        }
    }
}
