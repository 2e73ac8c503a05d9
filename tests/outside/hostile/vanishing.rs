//! Clients that go away at the worst moment.

use super::Bystander;
use crate::client::{DIALECTS, Dialect, READ, Request};
use crate::haggle::{GO, Haggle, SET_META, export_query, meta_query, option};
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wire::Wire;

/// Gone in the middle of the handshake, after each of its bytes.
#[test]
fn vanishing_anywhere_in_the_handshake_leaves_nothing() {
    let server = Server::tcp(["memory:1M"]);
    let mut bystander = Bystander::on(&server);
    let stream = [
        3_u32.to_be_bytes().to_vec(),
        option(8, &[]),
        option(SET_META, &meta_query("", &["base:allocation"])),
        option(GO, &export_query("", &[3])),
    ]
    .concat();
    for cut in 0..=stream.len() {
        let mut wire = Wire::connect(&server.address);
        wire.send(&stream[..cut]);
        if cut % 2 == 0 {
            wire.vanish();
        }
    }
    bystander.is_served();
}

#[test]
fn vanishing_in_the_middle_of_a_header_leaves_nothing() {
    for server in [Server::start(["memory:1M"]), Server::tcp(["memory:1M"])] {
        let mut bystander = Bystander::on(&server);
        for dialect in DIALECTS {
            let header = Request::new(READ, 0, 512).encode(dialect, 1);
            for cut in 0..header.len() {
                let mut client = server.client(dialect);
                client.wire.send(&header[..cut]);
                client.wire.vanish();
            }
        }
        bystander.is_served();
    }
}

/// A short read of a header is no request: no reply, just the close.
#[test]
fn half_a_header_gets_no_reply() {
    let server = Server::start(["memory:1M"]);
    for dialect in DIALECTS {
        let header = Request::new(READ, 0, 512).encode(dialect, 1);
        for cut in [1, 4, 27] {
            let mut client = server.client(dialect);
            client.wire.send(&header[..cut]);
            client.wire.finish_sending();
            client.wire.expect_close("half a header");
        }
    }
}

#[test]
fn vanishing_in_the_middle_of_a_payload_writes_nothing_else() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 80 << 20);
    for server in [Server::start([&path]), Server::tcp(["memory:80M"])] {
        let mut bystander = Bystander::on(&server);
        let memory = server.memory();
        for round in 0..40_usize {
            let mut client = server.client(DIALECTS[round % 3]);
            let whole = Request::write(1 << 20, vec![0xaa; 8 << 20]).encode(client.dialect, 1);
            client.wire.send(&whole[..whole.len() * (round + 1) / 41]);
            client.wire.vanish();
        }
        bystander.is_served();
        let after = server.client(Dialect::Simple).read(9 << 20, 4096);
        assert_eq!(after, [0; 4096], "nothing beyond the payload was touched");
        server_settles(&server, memory, 160 << 20);
    }
}

#[test]
fn vanishing_in_the_middle_of_a_reply_leaves_nothing() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 32 << 20);
    for unix in [true, false] {
        let server = if unix { Server::start([&path]) } else { Server::tcp([&path]) };
        let mut bystander = Bystander::on(&server);
        for round in 0..30_usize {
            let mut client = server.client(DIALECTS[round % 3]);
            for index in 0..16 {
                client.submit(&Request::new(READ, index << 20, 1 << 20));
            }
            client.wire.receive(1 + round * 40_000);
            client.wire.vanish();
        }
        bystander.is_served();
    }
}

/// Half-closed is not gone: what was asked before the FIN is answered.
#[test]
fn a_client_that_only_listens_on_gets_its_answers() {
    let server = Server::start(["memory:16M"]);
    let mut client = server.client(Dialect::Structured);
    for index in 0..100 {
        client.submit(&Request::write(index * 4096, vec![1; 4096]));
    }
    client.wire.finish_sending();
    for _ in 0..100 {
        client.reply().ok("WRITE before the FIN");
    }
    client.wire.expect_close("after the last answer");
}

#[test]
fn vanishing_without_disc_is_not_an_error() {
    let server = Server::tcp(["memory:1M"]);
    for _ in 0..10 {
        drop(server.client(Dialect::Simple));
    }
    server.comes_to_rest();
    let log = server.log().to_lowercase();
    assert!(!log.contains("error") && !log.contains("warn"), "fio closes without DISC: {log}");
    drop(Haggle::new(&server.address));
}

/// Pools may keep what they warmed up with, but not per client.
#[track_caller]
fn server_settles(server: &Server, before: u64, slack: u64) {
    let now = server.memory();
    assert!(now <= before + slack, "memory went from {before} to {now} bytes");
}
