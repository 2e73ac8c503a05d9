//! What the operator may get wrong, each with its own clear error, and who may hold a file.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::client::Dialect;
use crate::program::{Outcome, run};
use crate::scratch::{LoopDevice, MIB, Scratch};
use crate::server::{Server, program};

/// Starts a server that must refuse to start.
#[track_caller]
fn refused(words: &[&str], code: i32, hints: &[&str]) -> Outcome {
    let scratch = Scratch::new();
    let listen = format!("unix:{}", scratch.path("socket").display());
    let all = ["serve", "--run", "true", "--listen", &listen].into_iter().chain(words.iter().copied());
    let outcome = run(program(), all);
    assert_eq!(outcome.code, Some(code), "{words:?}: {}{}", outcome.stdout, outcome.stderr);
    for hint in hints {
        assert!(outcome.stderr.contains(hint), "{words:?}: {hint:?} is not in: {}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    assert!(!scratch.path("socket").exists(), "{words:?}: the socket was left behind");
    outcome
}

#[test]
fn each_mistake_has_its_own_error() {
    let scratch = Scratch::new();
    let dir = scratch.path("directory");
    fs::create_dir(&dir).expect("create a directory");
    let missing = scratch.path("missing").display().to_string();
    let empty = scratch.sparse("empty", 0).display().to_string();
    let disk = scratch.full("disk", MIB).display().to_string();
    let dir = dir.display().to_string();
    let window = format!("{disk},offset=512K,size=1M");
    let beyond = format!("{disk},offset=2M");
    let all = format!("{disk},offset=1M");
    let unknown = format!("{disk},colour=blue");
    let twice = format!("a={disk}");
    let table: &[(&[&str], &[&str])] = &[
        (&[&missing], &[&missing]),
        (&[&dir], &["directory"]),
        (&[&empty], &[&empty]),
        (&["memory:0"], &["0"]),
        (&["null:0"], &["0"]),
        (&["memory:9000P"], &["9000P"]),
        (&["memory:99999999999999999999"], &["99999999999999999999"]),
        (&[&window], &[&disk]),
        (&[&beyond], &[&disk]),
        (&[&all], &[&disk]),
        (&[&twice, "a=memory:1M"], &["a"]),
        (&["memory:1M", "null:1M"], &["name"]),
        (&[&unknown], &["colour"]),
        (&["memory:1X"], &["1X"]),
        (&["memory:"], &["memory:"]),
        (&["memory:-1"], &["-1"]),
    ];
    let mut seen = Vec::new();
    for (words, hints) in table {
        // A word clap can judge alone is a usage error (2); what the system says of it is the operator's (1).
        let scratch = Scratch::new();
        let listen = format!("unix:{}", scratch.path("socket").display());
        let outcome =
            run(program(), ["serve", "--run", "true", "--listen", &listen].iter().chain(words.iter()));
        assert!(matches!(outcome.code, Some(1 | 2)), "{words:?}: {:?} {}", outcome.code, outcome.stderr);
        for hint in *hints {
            assert!(outcome.stderr.contains(hint), "{words:?}: {hint:?} is not in: {}", outcome.stderr);
        }
        seen.push(outcome.stderr);
    }
    let total = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), total, "two mistakes share one message");
}

#[test]
fn usage_errors_exit_with_2() {
    for words in [
        &[][..],
        &["--nosuch", "memory:1M"],
        &["--shards", "0", "memory:1M"],
        &["--shards", "many", "memory:1M"],
        &["--listen", "unix:", "memory:1M"],
        &["--window", "0", "memory:1M"],
        &["--log-format", "xml", "memory:1M"],
    ] {
        refused(words, 2, &[]);
    }
}

#[test]
fn oldstyle_takes_one_export() {
    let scratch = Scratch::new();
    let listen = format!("unix:{}", scratch.path("socket").display());
    let outcome = run(program(), ["serve", "--oldstyle", "--listen", &listen, "a=memory:1M", "b=memory:1M"]);
    assert!(matches!(outcome.code, Some(1 | 2)), "{:?}", outcome.code);
    assert!(outcome.stderr.contains("oldstyle"), "{}", outcome.stderr);
}

#[test]
fn a_device_that_cannot_be_written_says_how_to_serve_it() {
    let device = LoopDevice::with(MIB, &["--read-only"]);
    let path = device.path.display().to_string();
    refused(&[&path], 1, &[&path, "readonly=on"]);
    let server = Server::start([format!("{path},readonly=on")]);
    assert_eq!(server.client(Dialect::Simple).read(0, 512), [0; 512]);
}

#[test]
fn a_second_writer_is_refused_and_the_holder_named() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", MIB).display().to_string();
    let server = Server::start([&path]);
    refused(&[&path], 1, &[&path, "ringnbd", &server.pid().to_string()]);
    refused(&[&format!("{path},readonly=on")], 1, &[&path]);
    let unlocked = Server::start([format!("{path},lock=off")]);
    assert_eq!(unlocked.client(Dialect::Simple).size, MIB);
    drop((server, unlocked));
    drop(Server::start([&path]));
}

#[test]
fn readers_share_and_windows_apart_do_not_conflict() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 4 * MIB).display().to_string();
    let readers = [0, 1].map(|_| Server::start([format!("{path},readonly=on")]));
    refused(&[&path], 1, &[&path]);
    drop(readers);
    let _low = Server::start([format!("{path},size=2M")]);
    let _high = Server::start([format!("{path},offset=2M")]);
    refused(&[&format!("{path},offset=1M,size=2M")], 1, &[&path]);
}

#[test]
fn a_device_is_locked_like_a_file() {
    let device = LoopDevice::new(MIB);
    let path = device.path.display().to_string();
    let _server = Server::start([&path]);
    refused(&[&path], 1, &[&path]);
}

#[test]
fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let listen = format!("unix:{}", path.display());

    drop(UnixListener::bind(&path).expect("bind"));
    assert!(path.exists(), "a socket file that nobody listens on");
    let outcome =
        run(program(), ["serve", "--listen", &listen, "--run", "test -S \"$unixsocket\"", "memory:1M"]);
    outcome.ok();
    assert!(!path.exists(), "removed at exit");

    let _live = UnixListener::bind(&path).expect("bind");
    let outcome = run(program(), ["serve", "--listen", &listen, "memory:1M"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(path.exists(), "the live socket is still there");

    let file = scratch.sparse("file", 10);
    let outcome = run(program(), ["serve", "--listen", &format!("unix:{}", file.display()), "memory:1M"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert_eq!(fs::metadata(&file).expect("stat").len(), 10, "a file that is no socket is not touched");
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let server = Server::tcp(["memory:1M"]);
    let crate::wire::Address::Tcp(address) = &server.address else { panic!("TCP") };
    let outcome = run(program(), ["serve", "--listen", &format!("tcp:{address}"), "memory:1M"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&address.port().to_string()), "{}", outcome.stderr);
}

/// Long names, many exports: what fits is served.
#[test]
fn a_hundred_exports_are_listed() {
    let words: Vec<_> = (0..100).map(|index| format!("export-{index:03}=null:1M")).collect();
    let server = Server::start(words);
    let mut haggle = crate::haggle::Haggle::new(&server.address);
    assert_eq!(haggle.ask(crate::haggle::LIST, &[]).len(), 101);
    assert_eq!(haggle.go("export-099").size, MIB);
}
