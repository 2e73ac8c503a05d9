//! A `ringnbd serve` process and the guard that asks, when the test is over, whether it left the house in order.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process, kill_process_group, test_kill_process_group};
use tempfile::TempDir;

use crate::client::{Client, Dialect};
use crate::haggle::enter;
use crate::wait::{PATIENCE, comes_true, exit_within, pid_of, readable, until};
use crate::wire::Address;

/// The program under test: the one built with the tests, or the one that `RINGNBD_PROGRAM` names.
pub(crate) fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    let built = || env!("CARGO_BIN_EXE_ringnbd").to_owned();
    PROGRAM.get_or_init(|| std::env::var("RINGNBD_PROGRAM").unwrap_or_else(|_| built()))
}

/// A running server. Dropping it stops it and checks that nothing was left behind.
pub(crate) struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub(crate) address: Address,
    pub(crate) dir: TempDir,
    at_rest: BTreeSet<String>,
    over: bool,
}

impl Server {
    /// Serves on a unix socket. `words` are options and exports, as on the command line.
    #[track_caller]
    pub(crate) fn start<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut listen = OsString::from("unix:");
        listen.push(dir.path().join("socket"));
        Self::launch(dir, &listen, words)
    }

    /// Serves on a free TCP port of the loopback.
    #[track_caller]
    pub(crate) fn tcp<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::launch(dir, "tcp:127.0.0.1:0".as_ref(), words)
    }

    #[track_caller]
    fn launch<W: AsRef<OsStr>>(dir: TempDir, listen: &OsStr, words: impl IntoIterator<Item = W>) -> Self {
        let log = File::create(dir.path().join("log")).expect("a log file");
        let mut child = Command::new(program())
            .args(["serve", "--print-uri", "--no-pin", "--listen"])
            .arg(listen)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("start the server");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let mut uri = String::new();
        if readable(stdout.get_ref().as_fd(), PATIENCE) {
            stdout.read_line(&mut uri).expect("read the URI");
        }
        if uri.is_empty() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not start: {}", read_log(dir.path()));
        }
        let address = address_of(uri.trim());
        let mut server = Self { child, stdout, address, dir, at_rest: BTreeSet::new(), over: false };
        server.at_rest = server.descriptors();
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The URI of one export, as other programs want it.
    pub(crate) fn uri(&self, name: &str) -> String {
        match &self.address {
            Address::Unix(path) => format!("nbd+unix:///{name}?socket={}", path.display()),
            Address::Tcp(address) => format!("nbd://{address}/{name}"),
        }
    }

    /// The same through TLS.
    pub(crate) fn uri_with_tls(&self, name: &str, certificates: &Path) -> String {
        let plain = self.uri(name);
        let separator = if plain.contains('?') { '&' } else { '?' };
        let secure = plain.replacen("nbd", "nbds", 1);
        format!("{secure}{separator}tls-certificates={}", certificates.display())
    }

    /// A client in transmission on the default export.
    #[track_caller]
    pub(crate) fn client(&self, dialect: Dialect) -> Client {
        enter(&self.address, "", dialect)
    }

    pub(crate) fn log(&self) -> String {
        read_log(self.dir.path())
    }

    /// The next line of stdout.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read a line of stdout");
        line.trim_end().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid_of(&self.child), signal).expect("the server is there to be signalled");
    }

    /// Anonymous memory in use, in bytes: what the server allocated, without files and memfd pages.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("read /proc");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
        let kilobytes = line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
        kilobytes.expect("RssAnon is a number") * 1024
    }

    /// Open descriptors with what they are. Sockets by number, so that a leaked one is seen.
    pub(crate) fn descriptors(&self) -> BTreeSet<String> {
        let dir = format!("/proc/{}/fd", self.pid());
        let entries = fs::read_dir(dir).expect("read /proc/PID/fd").flatten();
        entries
            .filter_map(|entry| {
                let target = fs::read_link(entry.path()).ok()?;
                Some(format!("{} -> {}", entry.file_name().display(), target.display()))
            })
            .collect()
    }

    /// All connections are gone and so are their descriptors.
    #[track_caller]
    pub(crate) fn comes_to_rest(&self) {
        let mut now = BTreeSet::new();
        let rests = comes_true(|| {
            now = self.descriptors();
            now.len() <= self.at_rest.len()
        });
        assert!(rests, "descriptors leaked: {:?}", now.difference(&self.at_rest).collect::<Vec<_>>());
    }

    /// Waits for an end that the test itself brought about.
    #[track_caller]
    pub(crate) fn ended(&mut self, limit: Duration) -> ExitStatus {
        let status = exit_within(&mut self.child, limit);
        let status = status.unwrap_or_else(|| panic!("still running after {limit:?}: {}", self.log()));
        self.over = true;
        self.left_nothing();
        status
    }

    /// SIGTERM must end an idle server at once, with success.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        if self.over {
            return;
        }
        self.comes_to_rest();
        let memory = self.memory();
        self.signal(Signal::TERM);
        let status = self.ended(PATIENCE);
        assert!(status.success(), "SIGTERM: {status}: {}", self.log());
        assert!(memory < 1 << 30, "an idle server holds {memory} bytes");
    }

    #[track_caller]
    fn left_nothing(&self) {
        let group = pid_of(&self.child);
        until("no process of the server's group is left", || test_kill_process_group(group).is_err());
        if let Address::Unix(path) = &self.address {
            assert!(!path.exists(), "{} was left behind", path.display());
        }
        let log = self.log();
        assert!(!log.contains("panicked"), "the server panicked: {log}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            if !self.over {
                let _ = kill_process_group(pid_of(&self.child), Signal::KILL);
                let _ = self.child.wait();
            }
            eprintln!("--- the server's log\n{}", self.log());
        } else {
            self.stop();
        }
    }
}

fn read_log(dir: &Path) -> String {
    fs::read_to_string(dir.join("log")).unwrap_or_default()
}

/// Where a printed URI leads.
fn address_of(uri: &str) -> Address {
    if let Some((_, socket)) = uri.split_once("?socket=") {
        let socket = socket.split('&').next().expect("split yields something");
        return Address::Unix(PathBuf::from(socket));
    }
    let host = uri
        .strip_prefix("nbd://")
        .or_else(|| uri.strip_prefix("nbds://"))
        .unwrap_or_else(|| panic!("an NBD URI, not {uri:?}"));
    let host = host.split('/').next().expect("split yields something");
    Address::Tcp(host.parse().unwrap_or_else(|_| panic!("address and port in {uri:?}")))
}
