//! What the machine around it gives: locked memory, sockets to inherit, the journal.

use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::haggle::Haggle;
use crate::program::{Outcome, outcome, run};
use crate::scratch::{MIB, Scratch};
use crate::server::program;
use crate::wait::{PATIENCE, exit_within, until};
use crate::wire::{Address, Wire};

/// Starts a server that may lock so many KiB of memory and has no capability to lock more.
fn with_locked_memory(kibibytes: u64, export: &str) -> Outcome {
    let limit = format!("--memlock={}", kibibytes << 10);
    let words = [&limit, "setpriv", "--inh-caps", "-ipc_lock", "--bounding-set", "-ipc_lock", program()];
    let serve = ["serve", "--shards", "2", "--listen", "127.0.0.1:0", "--run", "true", export];
    run("prlimit", words.into_iter().chain(serve))
}

#[test]
fn too_little_lockable_memory_is_told_with_the_way_out() {
    let scratch = Scratch::new();
    let direct = format!("{},direct=on", scratch.full("disk", MIB).display());
    let ring = with_locked_memory(4, "memory:1M");
    assert_eq!(ring.code, Some(1), "{}", ring.stderr);
    assert!(ring.stderr.contains("a ring does not fit RLIMIT_MEMLOCK (4096 bytes)"), "{}", ring.stderr);
    assert!(ring.stderr.contains("`ulimit -l`") && ring.stderr.contains("LimitMEMLOCK="), "{}", ring.stderr);
    // Debian's default for users: enough for rings, not for what direct I/O registers.
    let registered = with_locked_memory(8 << 10, &direct);
    assert_eq!(registered.code, Some(1), "{}", registered.stderr);
    for hint in ["direct I/O", "MiB for each shard", "RLIMIT_MEMLOCK (8388608 bytes)"] {
        assert!(registered.stderr.contains(hint), "{hint:?} is not in: {}", registered.stderr);
    }
    with_locked_memory(8 << 10, "memory:1M").ok();
}

/// Runs a shell command in a server that starts with these soft and hard limits of descriptors.
fn with_descriptors(limits: &str, connections: &str, command: &str) -> Outcome {
    let limit = format!("--nofile={limits}");
    let listen = ["serve", "--listen", "127.0.0.1:0", "--max-connections", connections];
    let words = [&limit, program()].into_iter().chain(listen);
    run("prlimit", words.chain(["--run", command, "memory:1M"]))
}

/// 1024 connections are the default, and so are 1024 descriptors.
#[test]
fn the_soft_limit_of_descriptors_makes_room_for_the_connections() {
    let crowd = r#"/usr/bin/python3 -c '
import os, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
crowd = [socket.create_connection(("127.0.0.1", int(os.environ["port"]))) for _ in range(500)]
for client in crowd:
    client.settimeout(20)
    assert len(client.recv(18)) == 18
print("all are greeted")
'"#;
    let outcome = with_descriptors("128:4096", "600", crowd);
    assert!(!outcome.stderr.contains("RLIMIT_NOFILE"), "{}", outcome.stderr);
    assert_eq!(outcome.ok().trim(), "all are greeted");
    let short = with_descriptors("128:1100", "1000", "true");
    for hint in ["RLIMIT_NOFILE allows 1100", "1000 connections", "--max-connections", "LimitNOFILE="] {
        assert!(short.stderr.contains(hint), "{hint:?} is not in: {}", short.stderr);
    }
    short.ok();
    let hopeless = with_descriptors("128:700", "10", "true");
    assert_eq!(hopeless.code, Some(1), "{}", hopeless.stderr);
    assert!(
        hopeless.stderr.contains("table of files does not fit RLIMIT_NOFILE (700"),
        "{}",
        hopeless.stderr
    );
}

/// Listens on the paths and becomes the server, as systemd would start it for a service with several sockets.
const ACTIVATE: &str = r#"
import os, socket, sys
program, paths, words = sys.argv[1], sys.argv[2].split(":"), sys.argv[3:]
for number, path in enumerate(paths):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    os.dup2(listener.fileno(), 10 + number)
for number in range(len(paths)):
    os.dup2(10 + number, 3 + number)
    os.close(10 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(paths)), LISTEN_FDNAMES="front:back:side")
os.execv(program, [program] + words)
"#;

#[test]
fn several_sockets_are_inherited_and_left_in_place() {
    let scratch = Scratch::new();
    let paths = ["front", "back", "side"].map(|name| scratch.path(name));
    let joined = paths.iter().map(|path| path.to_str().expect("UTF-8")).collect::<Vec<_>>().join(":");
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", ACTIVATE, program(), &joined, "serve", "--quiet", "a=memory:1M", "b=memory:2M"])
        .stdin(Stdio::null())
        .spawn()
        .expect("start Python");
    for path in &paths {
        let address = Address::Unix(path.clone());
        until("the socket is there", || Wire::try_connect(&address).is_ok());
        assert_eq!(Haggle::new(&address).go("b").size, 2 * MIB, "{}", path.display());
    }
    rustix::process::kill_process(crate::wait::pid_of(&child), rustix::process::Signal::TERM)
        .expect("SIGTERM");
    let status = exit_within(&mut child, PATIENCE).expect("it ends");
    assert!(status.success(), "{status}");
    assert!(paths.iter().all(|path| path.exists()), "who made the sockets removes them");
}

#[test]
fn an_inherited_descriptor_that_does_not_listen_is_named() {
    let script = "exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve memory:1M";
    let refused = run("sh", ["-c", script, program()]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("descriptor 3 is not a listening"), "{}", refused.stderr);
}

/// systemd's Type=notify: ready when clients can come, stopping when they should not.
#[test]
fn a_service_manager_is_told_of_the_beginning_and_the_end() {
    let scratch = Scratch::new();
    let path = scratch.path("notify");
    let manager = UnixDatagram::bind(&path).expect("bind");
    let mut command = Command::new(program());
    command.args(["serve", "--listen", "127.0.0.1:0", "--run", "nbdinfo --size \"$uri\"", "memory:1M"]);
    command.env("NOTIFY_SOCKET", &path);
    outcome(command).ok();
    manager.set_nonblocking(true).expect("set_nonblocking");
    let mut told = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = manager.recv(&mut buffer) {
        told.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
    }
    assert_eq!(told, ["READY=1", "STOPPING=1"]);
}

/// Runs the server where /run holds nothing but, if there is one, the journal's socket.
fn with_journal(socket: Option<&Path>) -> Outcome {
    let script = r#"
mount -t tmpfs tmpfs /run || exit 99
if [ -n "$1" ]; then
    mkdir -p /run/systemd/journal && : > /run/systemd/journal/socket || exit 99
    mount --bind "$1" /run/systemd/journal/socket || exit 99
fi
exec "$0" serve --log-format journald -v --listen 127.0.0.1:0 --run true memory:1M
"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, program()]);
    command.arg(socket.unwrap_or_else(|| Path::new("")));
    outcome(command)
}

/// Fields of one message in the journal's native protocol: `NAME=value\n`, or `NAME\n`, a little-endian length of 64
/// bits, the value, `\n` (systemd.io/JOURNAL_NATIVE_PROTOCOL).
fn fields(mut datagram: &[u8]) -> HashMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let mut fields = HashMap::new();
    while let Some(end) = datagram.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&datagram[..end], &datagram[end + 1..]);
        let (name, value, rest) = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => (&line[..at], &line[at + 1..], rest),
            None => {
                let (length, rest) = rest.split_at(8);
                let length = length.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                assert_eq!(rest[length], b'\n', "a value ends with a line feed");
                (line, &rest[..length], &rest[length + 1..])
            }
        };
        fields.insert(text(name), text(value));
        datagram = rest;
    }
    assert!(datagram.is_empty(), "{datagram:?}");
    fields
}

#[test]
fn the_journal_gets_fields() {
    let scratch = Scratch::new();
    let path = scratch.path("journal");
    let journal = UnixDatagram::bind(&path).expect("bind");
    with_journal(Some(&path)).ok();
    journal.set_nonblocking(true).expect("set_nonblocking");
    let mut messages = Vec::new();
    let mut buffer = [0; 65536];
    while let Ok(length) = journal.recv(&mut buffer) {
        messages.push(fields(&buffer[..length]));
    }
    let listening = messages.iter().find(|fields| {
        fields.get("MESSAGE").is_some_and(|message| message.starts_with("listening on tcp:127.0.0.1:"))
    });
    let listening = listening.unwrap_or_else(|| panic!("not in {messages:?}"));
    assert_eq!(listening.get("SYSLOG_IDENTIFIER").map(String::as_str), Some("ringnbd"));
    assert!(
        listening.get("PRIORITY").is_some_and(|priority| matches!(priority.as_str(), "5" | "6")),
        "{listening:?}"
    );
}

#[test]
fn a_missing_journal_is_told() {
    let refused = with_journal(None);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    for hint in ["/run/systemd/journal/socket", "--log-format text"] {
        assert!(refused.stderr.contains(hint), "{hint:?} is not in: {}", refused.stderr);
    }
}

#[test]
fn what_cannot_be_polled_is_refused_with_the_way_out() {
    let scratch = Scratch::new();
    let disk = scratch.full("disk", MIB).display().to_string();
    let serve = |words: &[&str]| {
        let start = ["serve", "--listen", "127.0.0.1:0", "--run", "nbdinfo --size \"$uri\""];
        run(program(), start.iter().chain(words))
    };
    // No file system on a disk without poll queues; on a machine whose disk has some it is served.
    let outcome = serve(&[&format!("{disk},direct=on,iopoll=on")]);
    if outcome.code != Some(0) {
        for hint in [&disk, "iopoll=on", "poll_queues"] {
            assert!(outcome.stderr.contains(hint), "{hint:?} is not in: {}", outcome.stderr);
        }
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    }
    let outcome = serve(&[&format!("{disk},iopoll=on")]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("add direct=on"), "{}", outcome.stderr);
    assert_eq!(serve(&["--busy-poll", "50us", &disk]).ok().trim(), MIB.to_string());
}
