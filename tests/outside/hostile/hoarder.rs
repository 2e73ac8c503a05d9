//! Clients that ask for much and take nothing, or promise much and send nothing.

use super::Bystander;
use crate::client::{Client, DIALECTS, Dialect, PAYLOAD_LEN, READ, Request, WRITE};
use crate::haggle::Haggle;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wait::readable;
use crate::wire::Wire;

/// Default payload memory of one shard, with room for what is not payload.
const MEMORY_MAX: u64 = 320 << 20;

/// A window full of MiB reads, none of them ever taken.
fn hoard(server: &Server, dialect: Dialect) -> Client {
    let mut client = server.client(dialect);
    client.wire.shrink_receive_buffer();
    for index in 0..128 {
        client.submit(&Request::new(READ, (index % 32) << 20, 1 << 20));
    }
    client
}

#[test]
fn never_reading_replies_starves_nobody_else() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 32 << 20);
    let server = Server::start(["--shards".as_ref(), "1".as_ref(), path.as_os_str()]);
    let mut bystander = Bystander::on(&server);
    let _hoarders: Vec<_> = (0..6).map(|round| hoard(&server, DIALECTS[round % 3])).collect();
    bystander.is_served();
    let mut late = Bystander::on(&server);
    late.is_served();
    let memory = server.memory();
    assert!(memory < MEMORY_MAX, "six hoarders cost {memory} bytes");
}

#[test]
fn beyond_the_window_there_is_back_pressure_and_no_error() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 32 << 20);
    let server = Server::start(["--window".as_ref(), "4".as_ref(), path.as_os_str()]);
    let mut client = server.client(Dialect::Structured);
    let mut stream = Vec::new();
    // More than the socket (some 200 KB) and all receive buffers of a shard (4 MiB) can hold.
    for index in 0..200_000 {
        stream.extend(client.prepare(&Request::new(READ, index % 8000 * 4096, 4096)).1);
    }
    let sent = client.wire.stuff(&stream);
    assert!(sent < stream.len(), "the server kept reading requests from a client that reads none");
    Bystander::on(&server).is_served();
    assert!(server.memory() < MEMORY_MAX);
    // Now it reads, and every request comes through.
    let whole = sent / 28;
    for _ in 0..whole {
        client.reply().ok("READ beyond the window");
    }
}

#[test]
fn promised_payloads_that_never_come_hold_no_more_than_the_budget() {
    let server = Server::start(["--shards", "1", "memory:128M"]);
    let mut bystander = Bystander::on(&server);
    let mut stalled = Vec::new();
    for round in 0..20_usize {
        let mut client = server.client(DIALECTS[round % 3]);
        let mut header = Request::new(WRITE, 0, 64 << 20).encode(client.dialect, 1);
        if client.dialect == Dialect::Extended {
            header[5] = PAYLOAD_LEN as u8;
        }
        client.wire.send(header);
        client.wire.send([1; 100]);
        stalled.push(client);
    }
    bystander.is_served();
    let memory = server.memory();
    assert!(memory < MEMORY_MAX, "twenty promises of 64 MiB cost {memory} bytes");
}

#[test]
fn one_byte_at_a_time_starves_nobody() {
    let server = Server::tcp(["--shards", "1", "memory:1M"]);
    let mut bystander = Bystander::on(&server);
    let mut slow = server.client(Dialect::Structured);
    let request = Request::write(0, vec![7; 600]);
    let (_, bytes) = slow.prepare(&request);
    for (index, byte) in bytes.iter().enumerate() {
        slow.wire.send([*byte]);
        if index % 100 == 0 {
            bystander.is_served();
        }
    }
    slow.reply().ok("WRITE, byte by byte");
    slow.submit(&Request::new(READ, 0, 600));
    slow.reply().ok("READ");
}

#[test]
fn reading_one_byte_at_a_time_gets_everything() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 1 << 20);
    let server = Server::tcp([&path]);
    let mut client = server.client(Dialect::Simple);
    client.wire.shrink_receive_buffer();
    let (_, request) = client.prepare(&Request::new(READ, 0, 50_000));
    client.wire.send(request);
    let mut got = Vec::new();
    while got.len() < 50_016 {
        got.extend(client.wire.receive(1));
    }
    assert!(got[16..] == crate::scratch::on_disk(&path, 0, 50_000));
}

/// The clock of this test is a client that never says a word: when it is thrown out, the deadline has passed.
#[test]
fn the_handshake_has_a_deadline_and_transmission_has_none() {
    let server = Server::start(["--handshake-timeout", "1", "memory:1M"]);
    let mut idle = server.client(Dialect::Structured);
    let mut silent = Wire::connect(&server.address);
    let mut haggling = Haggle::new(&server.address);
    haggling.is_framed("still haggling");
    silent.receive(18);
    silent.expect_close("silence in the handshake");
    haggling.wire.expect_close("a handshake without end");
    idle.is_alive("an idle client in transmission");
}

/// A deadline that each byte pushes back is none.
#[test]
fn dribbling_bytes_does_not_push_the_deadline_back() {
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};
    let server = Server::start(["--handshake-timeout", "1", "memory:1M"]);
    let mut wire = Wire::connect(&server.address);
    wire.receive(18);
    let started = Instant::now();
    let long = crate::haggle::option(99, &[0; 2000]);
    wire.send([3_u32.to_be_bytes().to_vec(), long[..16].to_vec()].concat());
    // Waiting for the close is what paces the bytes.
    while !readable(wire.as_fd(), Duration::from_millis(100)) {
        assert!(started.elapsed() < Duration::from_secs(10), "a byte now and then keeps the handshake open");
        let _ = wire.try_send(&[0]);
    }
    wire.expect_close("dribble");
}
