//! Waiting on conditions with a deadline. The only place in the tests that may pause between two looks.

use std::os::fd::BorrowedFd;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long anything that should happen may take on a loaded two-core machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Looks at `condition` until it holds; panics with `what` after [`PATIENCE`].
#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_true(condition), "waited {PATIENCE:?} in vain: {what}");
}

/// Looks at `condition` until it holds, at most for [`PATIENCE`].
pub(crate) fn comes_true(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Whether `fd` becomes readable (or hangs up) within `limit`.
pub(crate) fn readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// The status of `child` if it ends within `limit`.
pub(crate) fn exit_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    use std::os::fd::AsFd;
    if let Some(status) = child.try_wait().expect("wait for a child") {
        return Some(status);
    }
    let pidfd = pidfd_open(pid_of(child), PidfdFlags::empty()).expect("pidfd_open");
    readable(pidfd.as_fd(), limit).then(|| child.wait().expect("wait for a child"))
}

/// The process id of `child` in rustix's words.
pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).expect("a process id is not zero")
}
