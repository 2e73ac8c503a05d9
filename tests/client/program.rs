//! Servers as processes: ours, and other people's. One that is missing is a failure: a test that did not run proves
//! nothing.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{PATIENCE, exit_within, pid_of, until};

/// The program under test: the one built with the tests, or the one that `RINGNBD_PROGRAM` names.
pub(crate) fn program() -> String {
    std::env::var("RINGNBD_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_ringnbd").to_owned())
}

/// A server process, ended with its guard.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// `ringnbd serve` on a unix socket; returns when it listens. The kernel takes a moment to end the ring of a process
    /// that was killed, and until then its socket still looks taken.
    #[track_caller]
    pub(crate) fn ringnbd(socket: &Path, words: &[&str]) -> Self {
        let mut process = None;
        until("the server starts", || {
            process = Self::try_ringnbd(&format!("unix:{}", socket.display()), words);
            process.is_some()
        });
        process.expect("it started").0
    }

    /// `ringnbd serve` on a free TCP port of the loopback, and the port.
    #[track_caller]
    pub(crate) fn ringnbd_on_tcp(words: &[&str]) -> (Self, u16) {
        let (process, uri) = Self::try_ringnbd("tcp:127.0.0.1:0", words).expect("it starts");
        let authority = uri.split_once("://").and_then(|(_, rest)| rest.split('/').next());
        let port = authority.and_then(|authority| authority.rsplit(':').next()?.parse().ok());
        (process, port.unwrap_or_else(|| panic!("no port in {uri}")))
    }

    fn try_ringnbd(listen: &str, words: &[&str]) -> Option<(Self, String)> {
        let mut child = Command::new(program())
            .args(["serve", "--quiet", "--print-uri", "--no-pin", "--shards", "1", "--listen"])
            .arg(listen)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the server");
        let mut uri = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut uri).expect("read the URI");
        let process = Self { child };
        (!uri.is_empty()).then_some((process, uri))
    }

    /// Another program, which is up when it takes connections on `socket`.
    #[track_caller]
    pub(crate) fn other(socket: &Path, program: &str, words: &[String]) -> Self {
        let child = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs the peers)"));
        let mut process = Self { child };
        until(program, || {
            assert!(process.child.try_wait().expect("wait").is_none(), "{program} ended: {words:?}");
            UnixStream::connect(socket).is_ok()
        });
        process
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid_of(&self.child), signal).expect("it is there to be signalled");
    }

    /// Stopped, as the kernel sees it.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        until("the server is stopped", || fs::read_to_string(&stat).is_ok_and(|text| text.contains(") T ")));
    }

    /// Sends `signal` and waits for the end.
    #[track_caller]
    pub(crate) fn end(mut self, signal: Signal) {
        self.signal(signal);
        exit_within(&mut self.child, PATIENCE).expect("it ends");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that goes into the background by itself.
pub(crate) struct Daemon {
    pid: Pid,
}

impl Daemon {
    #[track_caller]
    pub(crate) fn start(socket: &Path, pid_file: &Path, program: &str, words: &[&str]) -> Self {
        let status = Command::new(program).args(words).stdin(Stdio::null()).status();
        assert!(
            status
                .unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs the peers)"))
                .success()
        );
        let mut pid = None;
        until(program, || {
            let text = fs::read_to_string(pid_file).unwrap_or_default();
            pid = text.trim().parse().ok().and_then(Pid::from_raw);
            pid.is_some() && UnixStream::connect(socket).is_ok()
        });
        Self { pid: pid.expect("it wrote its number") }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::TERM);
    }
}

/// An image of `size` bytes in a directory, and the path of a socket beside it.
pub(crate) struct Scratch {
    pub(crate) dir: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// A sparse file.
    pub(crate) fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::File::create(&path).and_then(|file| file.set_len(size)).expect("an image");
        path
    }
}
