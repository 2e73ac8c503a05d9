//! Byte-range locks that belong to an open file (`F_OFD_SETLK`, fcntl(2)), and who holds the one in the way.
//!
//! Unlike classic POSIX locks they last until the last descriptor of that open file is closed, and conflict between two
//! opens of one process too: two exports of one file meet each other here.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

/// What a lock allows others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Others may lock the range for reading.
    Read,
    /// Nobody else may lock the range.
    Write,
}

/// A process that has the file locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// The kernel's name of the program, at most 15 bytes.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == std::process::id() {
            return f.write_str("another export of this server");
        }
        write!(f, "{} (process {})", self.command, self.pid)
    }
}

/// Locks a range for as long as the open file behind `file` lives. `Ok(false)`: somebody else is in the way.
pub fn try_lock(file: impl AsFd, kind: Kind, range: Range<u64>) -> io::Result<bool> {
    let mut lock = flock(kind.number(), &range)?;
    match fcntl(file, libc::F_OFD_SETLK, &mut lock) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives up all locks of this open file, also where a ring or a child that has not called exec yet still holds it open.
pub fn unlock(file: impl AsFd) -> io::Result<()> {
    let mut lock = flock(libc::F_UNLCK, &(0..0))?; // a length of 0 reaches to the end of all files
    fcntl(file, libc::F_OFD_SETLK, &mut lock)
}

/// Whether somebody else holds a lock in the range that `kind` would meet; locks nothing.
pub fn would_conflict(file: impl AsFd, kind: Kind, range: Range<u64>) -> io::Result<bool> {
    let mut lock = flock(kind.number(), &range)?;
    fcntl(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Finds who holds a lock that overlaps `range` of the inode, by reading `/proc/*/fdinfo`; `None` if nobody that this
/// process may look at does.
pub fn holder(device: (u32, u32), inode: u64, range: &Range<u64>) -> Option<Holder> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find_map(|pid: u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?;
        let holds = |text: String| text.lines().any(|line| is_lock(line, device, inode, range));
        files.flatten().any(|file| fs::read_to_string(file.path()).is_ok_and(holds)).then(|| {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Holder { pid, command: command.trim_end().to_owned() }
        })
    })
}

/// `lock: 1: OFDLCK ADVISORY  WRITE -1 fe:00:10010685 100 5099`: device numbers in hexadecimal, first and last byte.
fn is_lock(line: &str, device: (u32, u32), inode: u64, range: &Range<u64>) -> bool {
    let parse = || {
        let mut words = line.strip_prefix("lock:")?.split_ascii_whitespace().skip(5);
        let mut place = words.next()?.split(':');
        let major = u32::from_str_radix(place.next()?, 16).ok()?;
        let minor = u32::from_str_radix(place.next()?, 16).ok()?;
        let number: u64 = place.next()?.parse().ok()?;
        let first: u64 = words.next()?.parse().ok()?;
        let last: u64 = words.next()?.parse().unwrap_or(u64::MAX); // "EOF"
        Some((major, minor) == device && number == inode && first < range.end && last >= range.start)
    };
    parse().unwrap_or(false)
}

impl Kind {
    fn number(self) -> libc::c_int {
        match self {
            Self::Read => libc::F_RDLCK,
            Self::Write => libc::F_WRLCK,
        }
    }
}

fn flock(l_type: libc::c_int, range: &Range<u64>) -> io::Result<libc::flock> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    Ok(libc::flock {
        l_type: libc::c_short::try_from(l_type).map_err(invalid)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(invalid)?,
        l_start: range.start.try_into().map_err(invalid)?,
        l_len: (range.end - range.start).try_into().map_err(invalid)?,
        l_pid: 0,
    })
}

fn fcntl(file: impl AsFd, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both OFD commands read and write one `flock` through the pointer, which `lock` borrows for the call.
    let code = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut *lock) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_range_and_inode() {
        let line = "lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:10010685 100 5099";
        assert!(is_lock(line, (254, 0), 10_010_685, &(0..101)));
        assert!(is_lock(line, (254, 0), 10_010_685, &(5099..6000)));
        assert!(!is_lock(line, (254, 0), 10_010_685, &(0..100)));
        assert!(!is_lock(line, (254, 0), 10_010_685, &(5100..6000)));
        assert!(!is_lock(line, (254, 1), 10_010_685, &(0..101)));
        assert!(!is_lock(line, (254, 0), 1, &(0..101)));
        let whole = "lock:\t2: POSIX  ADVISORY  READ 77 00:1f:5 0 EOF";
        assert!(is_lock(whole, (0, 31), 5, &(1 << 40..1 << 41)));
        assert!(!is_lock("lock:\t1: OFDLCK", (0, 0), 0, &(0..1)));
        assert!(!is_lock("pos:\t0", (0, 0), 0, &(0..1)));
    }

    #[test]
    fn two_opens_of_one_process_conflict() {
        use std::os::unix::fs::MetadataExt as _;

        let file = tempfile::NamedTempFile::new().unwrap();
        let other = file.reopen().unwrap();
        assert!(try_lock(&file, Kind::Write, 0..100).unwrap());
        assert!(!try_lock(&other, Kind::Read, 99..100).unwrap());
        assert!(would_conflict(&other, Kind::Read, 0..1).unwrap());
        assert!(try_lock(&other, Kind::Write, 100..200).unwrap());
        let meta = other.metadata().unwrap();
        let device = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let found = holder(device, meta.ino(), &(0..1)).unwrap();
        assert_eq!(found.pid, std::process::id());

        let copy = file.as_file().try_clone().unwrap();
        unlock(&file).unwrap();
        assert!(try_lock(&other, Kind::Read, 0..100).unwrap(), "a copy of the descriptor kept the lock");
        drop(copy);
    }
}
