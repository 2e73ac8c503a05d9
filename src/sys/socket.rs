//! Sockets that the process was born with.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes the descriptors that LISTEN_FDS passes to this process (`sd_listen_fds(3)`), marked close-on-exec.
///
/// They are taken once: later calls answer with nothing. Nothing as well when LISTEN_PID is not this process.
pub fn inherited() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let fds = sd_notify::listen_fds()?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // SAFETY: the parent passed these descriptors to this process by pid, listen_fds() found each of
    // them open, and TAKEN makes this the only place that ever owns them.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}
