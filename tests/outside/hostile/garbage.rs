//! Noise: random bytes, random requests, options without end. The seeds are in the messages.

use std::io::ErrorKind;

use super::Bystander;
use crate::client::{DIALECTS, Dialect, PAYLOAD_LEN, Request};
use crate::haggle::{Haggle, LIST, export_query, meta_query, option};
use crate::scratch::{pattern, random};
use crate::server::Server;
use crate::wire::Wire;

#[test]
fn random_bytes_at_any_stage_hurt_nobody() {
    let server = Server::start(["--shards", "1", "memory:1M"]);
    let mut bystander = Bystander::on(&server);
    for seed in 1..120_u64 {
        let noise = pattern(seed, 64 + (seed as usize * 331) % 20_000);
        // Straight at the greeting, among the options, and as requests.
        let _ = Wire::connect(&server.address).try_send(&noise);
        let _ = Haggle::new(&server.address).wire.try_send(&noise);
        let _ = server.client(DIALECTS[seed as usize % 3]).wire.try_send(&noise);
    }
    bystander.is_served();
}

/// Well-framed options with random insides.
#[test]
fn random_options_are_answered_or_closed() {
    let server = Server::start(["memory:1M"]);
    for seed in 1..60 {
        let mut haggle = Haggle::new(&server.address);
        let valid = [export_query("", &[3, 1]), meta_query("", &["base:allocation", "qemu:"])].concat();
        for (index, number) in random(seed).take(40).enumerate() {
            let mut payload = valid.clone();
            payload.truncate(number as usize % (valid.len() + 1));
            if let Some(byte) = payload.get_mut((number >> 16) as usize % valid.len()) {
                *byte = (number >> 32) as u8;
            }
            // All but EXPORT_NAME, ABORT and GO, which end the haggling.
            let code = [3, 4, 5, 6, 8, 9, 10, 11, 12][index % 9];
            haggle.ask(code, &payload);
        }
        haggle.is_framed(&format!("seed {seed}"));
    }
}

/// Well-framed requests with random fields: each gets an answer of its own, and the last one a good one.
#[test]
fn random_requests_are_each_answered() {
    let server = Server::start(["memory:1M"]);
    for seed in 1..30 {
        for dialect in DIALECTS {
            let mut haggle = Haggle::new(&server.address).dialect(dialect);
            if dialect != Dialect::Simple {
                haggle = haggle.contexts("", &["base:allocation", "qemu:allocation-depth"]);
            }
            let mut client = haggle.go("");
            for number in random(seed).take(200) {
                let command = [0, 1, 3, 4, 5, 6, 7, 8, 77][(number & 0xff) as usize % 9];
                let offset = [number >> 44, number >> 20, number][(number >> 8 & 0xff) as usize % 3];
                let mut request = Request::new(command, offset, number >> 16 & 0xfffff);
                request.flags = if number & 1 << 60 == 0 { 0 } else { (number >> 52) as u16 & !PAYLOAD_LEN };
                if command == 1 {
                    request.length &= 0xffff;
                    request.payload = vec![1; request.length as usize];
                }
                let reply = client.call(&request);
                assert!(
                    [0, 1, 22, 28, 75, 95].contains(&reply.errno),
                    "seed {seed}: {request:?}: {}",
                    reply.errno
                );
            }
            client.is_alive(&format!("seed {seed}"));
        }
    }
}

#[test]
fn options_without_end_are_cut_off() {
    let server = Server::start(["memory:1M"]);
    let mut bystander = Bystander::on(&server);
    let mut haggle = Haggle::new(&server.address);
    let answer: usize = haggle.ask(LIST, &[]).iter().map(|reply| 20 + reply.payload.len()).sum();
    let flood = option(LIST, &[]).repeat(100);
    // A server with a limit stops listening long before this; one without would go on for ever.
    let closed = (0..1000).any(|_| {
        let sent = haggle.wire.try_send(&flood);
        let answered = sent.and_then(|()| haggle.wire.try_receive(answer * 100));
        answered.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
    });
    assert!(closed, "a hundred thousand options in one handshake");
    bystander.is_served();
}

#[test]
fn options_without_reading_the_answers_are_bounded() {
    let server = Server::start(["memory:1M,description=a description that makes each answer longer"]);
    let mut bystander = Bystander::on(&server);
    let before = server.memory();
    let flood = option(LIST, &[]).repeat(4000);
    let mut floods: Vec<_> = (0..20).map(|_| Haggle::new(&server.address)).collect();
    for haggle in &mut floods {
        let _ = haggle.wire.try_send(&flood);
    }
    bystander.is_served();
    assert!(server.memory() < before + (32 << 20), "answers that nobody reads are piled up");
}
