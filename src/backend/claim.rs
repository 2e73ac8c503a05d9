//! Keeping others out of what is served, and telling who is in the way.

use std::fs::Metadata;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::open::{OpenError, device_of};
use crate::sys::lock;

/// How long the remains of a killed process may keep a file, and how often to look.
const DYING_MAX: Duration = Duration::from_secs(1);
const DYING_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// QEMU locks bytes 100..104 for what it does and 200..204 for what it keeps others from (block/file-posix.c). A read
/// lock there would tell QEMU that we write.
const QEMU_LOCKS: Range<u64> = 100..204;
/// The byte that a QEMU holds that writes.
const QEMU_WRITES: Range<u64> = 101..102;

/// Keeps other writers out of the window, or all others if we write.
pub(super) fn window(
    path: &Path,
    fd: &OwnedFd,
    meta: &Metadata,
    window: &Range<u64>,
    readonly: bool,
) -> Result<(), OpenError> {
    unless_dying(path, |last| match try_lock(fd, window, readonly) {
        Ok(None) => Some(Ok(())),
        Ok(Some(range)) => match lock::holder(device_of(meta), meta.ino(), &range) {
            None if !last => None,
            holder => Some(Err(OpenError::Locked { path: path.to_owned(), holder })),
        },
        Err(source) => Some(Err(OpenError::Lock { path: path.to_owned(), source })),
    })
}

/// Locks the window, or answers with a range that is not to be had.
fn try_lock(fd: &OwnedFd, window: &Range<u64>, readonly: bool) -> io::Result<Option<Range<u64>>> {
    let Range { start, end } = *window;
    if !readonly {
        return Ok((!lock::try_lock(fd, lock::Kind::Write, start..end)?).then_some(start..end));
    }
    let around_qemu = [start..end.min(QEMU_LOCKS.start), start.max(QEMU_LOCKS.end)..end];
    for range in around_qemu.into_iter().filter(|range| range.start < range.end) {
        if !lock::try_lock(fd, lock::Kind::Read, range.clone())? {
            return Ok(Some(range));
        }
    }
    Ok(lock::would_conflict(fd, lock::Kind::Write, QEMU_WRITES)?.then_some(QEMU_WRITES))
}

/// Asks until there is an answer, or for the last time after a second. A process that was killed is gone before its ring
/// is, and the ring keeps files open: then something is in the way that nobody holds, and it goes away by itself.
pub(super) fn unless_dying<T>(
    path: &Path,
    mut ask: impl FnMut(bool) -> Option<Result<T, OpenError>>,
) -> Result<T, OpenError> {
    let deadline = Instant::now() + DYING_MAX;
    let mut closes = None;
    loop {
        let last = Instant::now() >= deadline;
        if let Some(answer) = ask(last) {
            return answer;
        }
        let failed =
            |errno: Errno| OpenError::Io { action: "watch", path: path.to_owned(), source: errno.into() };
        let closes = match &mut closes {
            Some(closes) => closes,
            None => closes.insert(watch_closes(path).map_err(failed)?),
        };
        // The kernel says so just before it lets go, hence the interval.
        match rustix::event::poll(&mut [PollFd::new(closes, PollFlags::IN)], Some(&DYING_INTERVAL)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => {
                let mut events = [0; 4096];
                rustix::io::read(&*closes, &mut events).map_err(failed)?;
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
}

fn watch_closes(path: &Path) -> rustix::io::Result<OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, path, inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE)?;
    Ok(watch)
}
