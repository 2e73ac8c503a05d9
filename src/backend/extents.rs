//! Holes and data of a file, by SEEK_DATA and SEEK_HOLE (lseek(2)).
//!
//! io_uring has no lseek, and one can stall for milliseconds behind writeback: the whole question goes to the helper pool
//! in one trip. On the way the map of known data learns the runs in full, also beyond what was asked, so that a fully
//! allocated file is asked once.

use std::io;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::disk::{Disk, Kind};
use super::{Extent, Extents, Failure};
use crate::rt;

/// Holes after which the helper lets a shard go first that it shares a processor with: some 30 us. Else the shard waits for
/// the helper's time slice to end.
const HOLES_PER_TURN: usize = 16;

pub(super) async fn find(
    disk: &Arc<Disk>,
    offset: u64,
    length: u64,
    extents_max: usize,
) -> Result<Extents, Failure> {
    if length == 0 {
        return Ok(Extents::new());
    }
    // Devices cannot tell: they know no SEEK_HOLE, and what a discarded block holds is theirs to say.
    if matches!(disk.kind, Kind::Block { .. }) {
        return Ok(smallvec::smallvec![Extent { length, hole: false, zero: false }]);
    }
    // Known data is not asked about twice: in a file of many extents each SEEK_HOLE walks to the next hole, however far
    // that is, and a client that maps the whole file would pay for it at every step.
    if disk.known.covers(offset, length) {
        return Ok(smallvec::smallvec![Extent { length, hole: false, zero: false }]);
    }
    let disk = Arc::clone(disk);
    rt::blocking(move || walk(&disk, offset, length, extents_max.max(1))).await
}

fn walk(disk: &Disk, offset: u64, length: u64, extents_max: usize) -> Result<Extents, Failure> {
    let failed = |cause: io::Error| Failure::of("find holes", &cause);
    let (start, end) = (disk.position(offset), disk.position(offset) + length);
    // Beyond the end of a file that shrank, everything would pass for a hole.
    let size = disk.current_size().map_err(failed)?;
    if size < end {
        return Err(disk.too_short(size, offset));
    }
    let mut holes = 0;
    let mut runs = Runs { found: Extents::new(), start, end };
    // From the start of a granule, so that it can become known as a whole.
    let mut at = disk.position(offset & !(disk.known.granule() - 1));
    while at < end && runs.found.len() < extents_max {
        let data = match rustix::fs::seek(&disk.fd, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => end, // no data up to the end of the file
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                runs.push(at, end, false);
                break;
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        runs.push(at, data, true);
        holes += 1;
        if holes % HOLES_PER_TURN == 0 {
            std::thread::yield_now();
        }
        if data >= end || runs.found.len() >= extents_max {
            break;
        }
        let hole = match rustix::fs::seek(&disk.fd, SeekFrom::Hole(data)) {
            Ok(hole) => hole,
            Err(Errno::NXIO) => return Err(failed(io::Error::from_raw_os_error(libc::EIO))), // cut off meanwhile
            Err(errno) => return Err(failed(errno.into())),
        };
        let window_end = disk.base + disk.size;
        disk.known.insert(data - disk.base, hole.min(window_end).saturating_sub(data));
        runs.push(data, hole, false);
        at = hole;
    }
    Ok(runs.found)
}

/// What was found of `start..end`.
struct Runs {
    found: Extents,
    start: u64,
    end: u64,
}

impl Runs {
    /// Adds the part of `from..to` that was asked for. The file may change under the walk, so neighbours may turn out to be
    /// of one kind, and runs empty.
    fn push(&mut self, from: u64, to: u64, hole: bool) {
        let length = to.min(self.end).saturating_sub(from.max(self.start));
        match self.found.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.hole == hole => last.length += length,
            _ => self.found.push(Extent { length, hole, zero: hole }),
        }
    }
}
