//! Extended headers: 32 bytes each way, payloads announced by a flag, lengths of 64 bits.

use crate::client::{
    BLOCK_STATUS, CACHE, Dialect, EINVAL, FLUSH, PAYLOAD_LEN, READ, Request, TRIM, WRITE, WRITE_ZEROES,
};
use crate::haggle::Haggle;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wire::{Message, u16_at, u32_at, u64_at};

#[test]
fn replies_are_thirty_two_bytes_and_echo_the_offset() {
    let scratch = Scratch::new();
    let server = Server::start([scratch.sparse("disk", 1 << 20)]);
    let mut client = server.client(Dialect::Extended);
    let none = |cookie: u64, offset: u64| {
        Message::default().u32(0x6e8a_278c).u16(1).u16(0).u64(cookie).u64(offset).u64(0).0
    };
    for (cookie, request) in [
        Request::write(4096, b"abcd"),
        Request::new(FLUSH, 0, 0),
        Request::new(TRIM, 8192, 4096),
        Request::new(CACHE, 4096, 4096),
        Request::new(WRITE_ZEROES, 12288, 4096),
    ]
    .into_iter()
    .enumerate()
    {
        client.wire.send(request.encode(Dialect::Extended, cookie as u64));
        client.wire.expect(&none(cookie as u64, request.offset), "success is one NONE chunk");
    }
    client.wire.send(Request::new(READ, 4096, 4).encode(Dialect::Extended, 99));
    let head = client.wire.receive(32);
    assert_eq!(u32_at(&head, 0), 0x6e8a_278c);
    assert_eq!((u64_at(&head, 8), u64_at(&head, 16)), (99, 4096));
    assert_eq!(u16_at(&head, 6), 1, "OFFSET_DATA");
    let payload = client.wire.receive(u64_at(&head, 24) as usize);
    assert_eq!((u64_at(&payload, 0), &payload[8..]), (4096, &b"abcd"[..]));
}

#[test]
fn errors_echo_the_offset_even_if_it_is_absurd() {
    let server = Server::start(["memory:1M"]);
    let mut client = server.client(Dialect::Extended);
    for offset in [1 << 20, u64::MAX, 1 << 63] {
        client.call(&Request::new(READ, offset, 1)).refused(EINVAL, "past the end");
        client.call(&Request::new(999, offset, 0)).refused(EINVAL, "unknown command");
    }
    client.is_alive("after absurd offsets");
}

/// QEMU serves such a client, and so do we.
#[test]
fn write_without_payload_len_is_tolerated() {
    let server = Server::start(["memory:1M"]);
    let mut client = server.client(Dialect::Extended);
    let mut bytes = Request::write(0, b"bare").encode(Dialect::Extended, 7);
    assert_eq!(bytes[5], PAYLOAD_LEN as u8);
    bytes[5] = 0;
    client.wire.send(bytes);
    let expected = Message::default().u32(0x6e8a_278c).u16(1).u16(0).u64(7).u64(0).u64(0);
    client.wire.expect(&expected.0, "WRITE without PAYLOAD_LEN");
    assert_eq!(client.read(0, 4), b"bare");
}

#[test]
fn unexpected_payload_is_consumed_and_einval() {
    let server = Server::start(["memory:1M"]);
    let mut client = server.client(Dialect::Extended);
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 8, 500] {
        for length in [1, 512, 100_000] {
            let request = Request { command, ..Request::write(0, vec![0x21; length]) };
            let symptom = format!("command {command} with a payload of {length}");
            client.call(&request).refused(EINVAL, &symptom);
            client.is_alive(&symptom);
        }
    }
}

#[test]
fn oversized_payload_disconnects() {
    let server = Server::start(["null:1T"]);
    for command in [READ, WRITE, TRIM, BLOCK_STATUS, 500] {
        for length in [1_u64 << 32, 1 << 40, u64::MAX] {
            let mut client = server.client(Dialect::Extended);
            let request = Request::new(command, 0, length).flags(PAYLOAD_LEN);
            client.wire.send(request.encode(Dialect::Extended, 7));
            let rest = client.wire.rest();
            assert!(rest.len() < 4200, "command {command}, {length} bytes: {} bytes came", rest.len());
        }
    }
}

#[test]
fn effect_lengths_beyond_32_bits_are_served() {
    let server = Server::start(["null:8T"]);
    let mut client = server.client(Dialect::Extended);
    for command in [TRIM, WRITE_ZEROES] {
        for (offset, length) in [(0, 8_u64 << 40), (1 << 32, (4 << 40) + 512)] {
            client
                .call(&Request::new(command, offset, length))
                .ok(&format!("command {command} for {length}"));
        }
    }
}

#[test]
fn reads_beyond_32_bits_are_refused_and_live_on() {
    let server = Server::start(["null:8T"]);
    let mut client = server.client(Dialect::Extended);
    for length in [1 << 32, (1 << 32) + 512, 8 << 40, u64::MAX] {
        let reply = client.call(&Request::new(READ, 0, length));
        assert_ne!(reply.errno, 0, "READ of {length}");
        client.is_alive("after a READ beyond 32 bits");
    }
}

#[test]
fn meta_contexts_may_be_set_right_after_extended_headers() {
    let server = Server::start(["memory:1M"]);
    let haggle = Haggle::new(&server.address).extended().contexts("", &["base:allocation"]);
    let mut client = haggle.go("");
    client.call(&Request::new(BLOCK_STATUS, 0, 4096)).ok("BLOCK_STATUS");
}

/// What is counted of requests that arrived together must not overflow, whatever length a refused one claims.
#[test]
fn the_longest_length_behind_a_short_request_is_only_refused() {
    let server = Server::start(["null:8T"]);
    let mut client = server.client(Dialect::Extended);
    for command in [READ, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] {
        let mut together = client.prepare(&Request::new(READ, 0, 4096)).1;
        together.extend(client.prepare(&Request::new(command, 0, u64::MAX)).1);
        client.wire.send(together);
        let errnos = [client.reply().errno, client.reply().errno];
        assert!(errnos.contains(&0), "the short READ failed before command {command}");
        assert!(errnos.iter().any(|errno| *errno != 0), "command {command} of 2^64 - 1 bytes was served");
        client.is_alive("after the longest length");
    }
}
