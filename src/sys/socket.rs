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

/// Who connected to a unix socket, or called listen(2) on what it is connected to, as they were then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// `None` where that is in a PID namespace of which this process sees nothing.
    pub pid: Option<rustix::process::Pid>,
    /// Effective user id; 65534 (`kernel.overflowuid`) where the user namespace of this process has no name for it.
    pub uid: u32,
    /// Effective group id; supplementary groups are not told.
    pub gid: u32,
}

/// Who is behind a unix socket (`SO_PEERCRED`, unix(7)). For a socket of another family the kernel answers with nobody:
/// no process, and ids of `u32::MAX`.
///
/// # Errors
/// The errno of `getsockopt(2)`.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
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
    Ok(Credentials { pid: rustix::process::Pid::from_raw(peer.pid), uid: peer.uid, gid: peer.gid })
}

#[cfg(test)]
mod tests {
    use rustix::process::{getgid, getpid, getuid};

    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_who_made_it() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let us = Credentials { pid: Some(getpid()), uid: getuid().as_raw(), gid: getgid().as_raw() };
        assert_eq!(peer_credentials(&one).unwrap(), us);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = Credentials { pid: None, uid: u32::MAX, gid: u32::MAX };
        assert_eq!(peer_credentials(&tcp).unwrap(), nobody);
    }
}
