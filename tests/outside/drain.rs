//! Ending: answer what is in flight, refuse what comes after, be gone in time.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::{Client, DIALECTS, Dialect, ESHUTDOWN, READ, Request};
use crate::haggle::{ABORT, ACK, Haggle, LIST, SHUTDOWN};
use crate::scratch::Scratch;
use crate::server::{Server, program};
use crate::wait::{PATIENCE, until};
use crate::wire::Wire;

/// Reads that cannot all be answered before the client takes some of them.
fn clog(server: &Server, dialect: Dialect, count: u64) -> Client {
    let mut client = server.client(dialect);
    client.wire.shrink_receive_buffer();
    for index in 0..count {
        client.submit(&Request::new(READ, (index % 16) << 20, 1 << 20));
    }
    client.reply().ok("the first READ");
    client
}

fn begin(server: &Server, signal: Signal) {
    server.signal(signal);
    until("nobody is let in any more", || Wire::try_connect(&server.address).is_err());
}

#[test]
fn sigterm_answers_what_is_in_flight_and_refuses_what_comes_after() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 16 << 20);
    for dialect in DIALECTS {
        for signal in [Signal::TERM, Signal::INT] {
            let mut server = Server::start([&path]);
            let mut client = clog(&server, dialect, 64);
            begin(&server, signal);
            let late = client.submit(&Request::new(READ, 0, 4096));
            let mut served = 0;
            while client.in_flight() > 0 {
                let reply = client.reply();
                if reply.cookie == late {
                    reply.refused(ESHUTDOWN, "a request after SIGTERM");
                } else {
                    // What had not been read from the socket when the signal came is "after" as well.
                    assert!([0, ESHUTDOWN].contains(&reply.errno), "{dialect:?}: errno {}", reply.errno);
                    served += u32::from(reply.errno == 0);
                }
            }
            assert!(served > 0, "{dialect:?}: what was in flight is answered");
            drop(client);
            let status = server.ended(PATIENCE);
            assert!(status.success(), "{signal:?}: {status}");
        }
    }
}

#[test]
fn a_payload_under_way_is_still_taken_or_refused() {
    let mut server = Server::start(["memory:16M"]);
    let mut client = server.client(Dialect::Structured);
    client.is_alive("before the signal");
    let (_, bytes) = client.prepare(&Request::write(0, vec![3; 1 << 20]));
    client.wire.send(&bytes[..500_000]);
    begin(&server, Signal::TERM);
    client.wire.send(&bytes[500_000..]);
    let reply = client.reply();
    assert!([0, ESHUTDOWN].contains(&reply.errno), "errno {}", reply.errno);
    drop(client);
    assert!(server.ended(PATIENCE).success());
}

/// Who is idle need not be waited for, but if it speaks it hears ESHUTDOWN or sees the close.
#[test]
fn idle_clients_do_not_hold_the_server_up() {
    let mut server = Server::start(["--drain-timeout", "3", "memory:1M"]);
    let mut idle: Vec<_> = DIALECTS.map(|dialect| server.client(dialect)).into();
    let started = Instant::now();
    begin(&server, Signal::TERM);
    for client in &mut idle {
        let (cookie, bytes) = client.prepare(&Request::new(READ, 0, 512));
        if client.wire.try_send(&bytes).is_ok() && client.wire.try_peek().is_some_and(|count| count > 0) {
            let reply = client.reply();
            assert_eq!((reply.cookie, reply.errno), (cookie, ESHUTDOWN));
        }
    }
    let status = server.ended(PATIENCE);
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < Duration::from_secs(10), "held up for {:?}", started.elapsed());
}

#[test]
fn options_during_the_drain_are_shut_down() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 16 << 20);
    let mut server = Server::start([&path]);
    let client = clog(&server, Dialect::Simple, 64);
    let mut haggle = Haggle::new(&server.address);
    haggle.is_framed("before the signal");
    begin(&server, Signal::TERM);
    // Told so, or closed: both let the client know.
    if haggle.wire.try_send(&crate::haggle::option(LIST, &[])).is_ok()
        && haggle.wire.try_peek().is_some_and(|n| n > 0)
    {
        let reply = haggle.reply(LIST);
        assert_eq!(reply.kind, SHUTDOWN, "an option during the drain");
        if haggle.wire.try_send(&crate::haggle::option(ABORT, &[])).is_ok()
            && haggle.wire.try_peek().is_some_and(|n| n > 0)
        {
            assert_eq!(haggle.reply(ABORT).kind, ACK, "ABORT is always acknowledged");
        }
    }
    drop((client, haggle));
    assert!(server.ended(PATIENCE).success());
}

#[test]
fn the_drain_ends_at_its_deadline() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 16 << 20);
    let mut server = Server::start(["--drain-timeout".as_ref(), "1".as_ref(), path.as_os_str()]);
    let _clogged = clog(&server, Dialect::Structured, 100);
    let started = Instant::now();
    server.signal(Signal::TERM);
    server.ended(Duration::from_secs(10));
    assert!(started.elapsed() >= Duration::from_millis(900), "the client had a second to take its replies");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 16 << 20);
    let mut server = Server::start(["--drain-timeout".as_ref(), "60".as_ref(), path.as_os_str()]);
    let _clogged = clog(&server, Dialect::Structured, 100);
    begin(&server, Signal::TERM);
    server.signal(Signal::TERM);
    server.ended(Duration::from_secs(10));
}

#[test]
fn written_data_is_there_after_the_drain() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 16 << 20);
    let mut server = Server::start([&path]);
    let mut client = server.client(Dialect::Extended);
    let mut sent = std::collections::HashMap::new();
    for index in 0..100_u64 {
        sent.insert(client.submit(&Request::write(index << 16, vec![index as u8 + 1; 1 << 16])), index);
    }
    begin(&server, Signal::TERM);
    while client.in_flight() > 0 {
        let reply = client.reply();
        let index = sent[&reply.cookie];
        if reply.errno == 0 {
            let on_disk = crate::scratch::on_disk(&path, index << 16, 1 << 16);
            assert!(on_disk == vec![index as u8 + 1; 1 << 16], "block {index} was acknowledged");
        }
    }
    drop(client);
    assert!(server.ended(PATIENCE).success());
}

#[test]
fn sigusr1_prints_the_latency_table() {
    let server = Server::start(["disk=memory:1M"]);
    let mut client = Haggle::new(&server.address).go("disk");
    for _ in 0..100 {
        client.read(0, 4096);
    }
    server.signal(Signal::USR1);
    until("the table is printed", || {
        let log = server.log().to_lowercase();
        ["disk", "read", "99.9"].iter().all(|word| log.contains(word))
    });
    client.is_alive("after SIGUSR1");
}

/// A supervisor restarts at once. The ring of a killed process keeps its sockets some milliseconds longer than it lives.
#[test]
fn after_a_kill_the_same_address_can_be_taken_at_once() {
    let scratch = Scratch::new();
    let unix = format!("unix:{}", scratch.path("socket").display());
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let tcp = format!("tcp:{}", free.local_addr().expect("bound"));
    drop(free);
    for listen in [unix, tcp] {
        for life in 0..10 {
            let words = ["serve", "--quiet", "--print-uri", "--listen", &listen, "memory:16M"];
            let mut command = Command::new(program());
            command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("start the server");
            let mut uri = String::new();
            let stdout = child.stdout.take().expect("stdout is a pipe");
            BufReader::new(stdout).read_line(&mut uri).expect("read the URI");
            let _ = child.kill();
            let rest = child.wait_with_output().expect("it ends");
            assert!(
                uri.starts_with("nbd"),
                "{listen}, life {life}: {}",
                String::from_utf8_lossy(&rest.stderr)
            );
        }
    }
}
