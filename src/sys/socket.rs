//! Sockets that the process was born with, and who is behind a unix socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
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

/// The process that connected to this unix socket, or that called listen(2) on what it is connected to (`SO_PEERCRED`,
/// unix(7)). `None` where that is in a PID namespace of which this process sees nothing.
///
/// # Errors
/// The errno of `getsockopt(2)`.
pub fn peer_process(socket: impl AsFd) -> io::Result<Option<rustix::process::Pid>> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let length = libc::socklen_t::try_from(size_of::<libc::ucred>());
    let mut length = length.map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `peer` has `length` bytes, which the kernel overwrites with any numbers; the descriptor is borrowed.
    let got = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut length)
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(rustix::process::Pid::from_raw(peer.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_who_made_it() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_process(&one).unwrap(), Some(rustix::process::getpid()));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(peer_process(&tcp).unwrap(), None);
    }
}
