//! What every command does when all is well, and how a connection ends.

use std::collections::HashMap;

use crate::client::{
    BLOCK_STATUS, CACHE, DF, DIALECTS, DISC, Dialect, FLUSH, FUA, NO_HOLE, READ, Request, TRIM, WRITE,
    WRITE_ZEROES,
};
use crate::scratch::{Scratch, pattern};
use crate::server::Server;
use crate::wire::{Message, u32_at};

#[test]
fn every_command_succeeds_in_every_dialect() {
    let scratch = Scratch::new();
    let server = Server::start([scratch.sparse("disk", 16 << 20)]);
    for (dialect, offset) in DIALECTS.into_iter().zip([0, 1 << 20, 2 << 20]) {
        let mut client = server.client(dialect);
        let bytes = pattern(offset + 1, 200_000);
        client.write(offset, &bytes);
        assert_eq!(client.read(offset, bytes.len()), bytes, "{dialect:?}");
        client.call(&Request::write(offset, bytes.clone()).flags(FUA)).ok("WRITE with FUA");
        client.flush();
        client.call(&Request::new(CACHE, offset, 200_000)).ok("CACHE");
        assert_eq!(client.read(offset, bytes.len()), bytes, "CACHE changes nothing");
        for flags in [0, NO_HOLE, FUA, FUA | NO_HOLE] {
            client.write(offset, &bytes);
            client.call(&Request::new(WRITE_ZEROES, offset + 3, 150_000).flags(flags)).ok("WRITE_ZEROES");
            let mut expected = bytes.clone();
            expected[3..150_003].fill(0);
            assert_eq!(client.read(offset, bytes.len()), expected, "{dialect:?}, flags {flags}");
        }
        client.write(offset, &bytes);
        for flags in [0, FUA] {
            client.call(&Request::new(TRIM, offset + 4096, 65536).flags(flags)).ok("TRIM");
        }
        let after = client.read(offset, bytes.len());
        assert_eq!(after[..4096], bytes[..4096], "TRIM keeps what is before");
        assert_eq!(after[4096 + 65536..], bytes[4096 + 65536..], "TRIM keeps what is after");
        client.disconnect();
    }
}

#[test]
fn fua_is_accepted_on_every_command() {
    let scratch = Scratch::new();
    let server = Server::start([scratch.sparse("disk", 1 << 20)]);
    let mut client = server.client(Dialect::Structured);
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES] {
        let length = if command == FLUSH { 0 } else { 4096 };
        client.call(&Request::new(command, 0, length).flags(FUA)).ok(&format!("command {command} with FUA"));
    }
}

#[test]
fn zero_lengths_disconnect_nobody() {
    let scratch = Scratch::new();
    let server = Server::start([scratch.sparse("disk", 1 << 20)]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        for offset in [0, 512, 1 << 20] {
            for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES] {
                let symptom = format!("{dialect:?}: command {command} of no length at {offset}");
                client.call(&Request::new(command, offset, 0)).ok(&symptom);
                client.is_alive(&symptom);
            }
        }
        client.call(&Request::new(BLOCK_STATUS, 0, 0));
        client.is_alive("BLOCK_STATUS of no length");
    }
}

#[test]
fn flush_with_reserved_fields_set_is_no_reason_to_disconnect() {
    let server = Server::start(["memory:1M"]);
    let mut client = server.client(Dialect::Structured);
    for (offset, length) in [(1, 0), (0, 4096), (u64::MAX, 0xffff_ffff)] {
        client.call(&Request::new(FLUSH, offset, length));
        client.is_alive("after a strange FLUSH");
    }
}

#[test]
fn cookies_come_back_as_they_were_sent() {
    let server = Server::start(["memory:1M"]);
    let mut client = server.client(Dialect::Simple);
    for cookie in [0, 1, u64::MAX, 0x6744_6698_6744_6698] {
        client.wire.send(Request::new(READ, 0, 4).encode(Dialect::Simple, cookie));
        let expected = Message::default().u32(0x6744_6698).u32(0).u64(cookie).u32(0);
        client.wire.expect(&expected.0, "a simple reply of 4 bytes");
    }
}

/// More than any window holds, and as many as their replies fit into a socket whose client is still sending.
#[test]
fn hundreds_of_pipelined_requests_are_all_answered() {
    const BATCH: u64 = 200;
    let server = Server::start(["memory:16M"]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        for round in 0..5 {
            let mut stream = Vec::new();
            let mut blocks = HashMap::new();
            for index in 0..BATCH {
                let write = Request::write(index * 4096, pattern(round * BATCH + index, 4096));
                stream.extend(client.prepare(&write).1);
            }
            client.wire.send(&stream);
            for _ in 0..BATCH {
                client.reply().ok("WRITE");
            }
            stream.clear();
            for index in (0..BATCH).rev() {
                let (cookie, request) = client.prepare(&Request::new(READ, index * 4096, 4096));
                blocks.insert(cookie, index);
                stream.extend(request);
            }
            client.wire.send(&stream);
            for _ in 0..BATCH {
                let reply = client.reply();
                let index = blocks[&reply.cookie];
                let expected = pattern(round * BATCH + index, 4096);
                assert!(reply.ok("READ").data(index * 4096, 4096) == expected, "{dialect:?}: block {index}");
            }
        }
    }
}

/// Requests of all sizes cut at all places: headers and payloads never line up with what a receive brings.
#[test]
fn payloads_of_all_sizes_arrive_whole() {
    let server = Server::tcp(["memory:80M"]);
    let mut client = server.client(Dialect::Extended);
    let sizes =
        [1, 3, 511, 512, 513, 4095, 4097, 65535, 65536, 65537, 262_144, 1_000_003, 33_554_432, 67_108_864];
    for (index, size) in sizes.into_iter().enumerate() {
        let bytes = pattern(index as u64, size);
        let offset = index as u64 * 7;
        client.write(offset, &bytes);
        assert!(client.read(offset, size) == bytes, "{size} bytes");
    }
}

#[test]
fn last_byte_and_whole_export_are_reachable() {
    let scratch = Scratch::new();
    let server = Server::start([scratch.sparse("disk", 1_000_001)]);
    let mut client = server.client(Dialect::Structured);
    client.write(1_000_000, b"Z");
    assert_eq!(client.read(1_000_000, 1), b"Z");
    let all = client.read(0, 1_000_001);
    assert_eq!((all[1_000_000], all[999_999]), (b'Z', 0));
    for command in [TRIM, CACHE, WRITE_ZEROES] {
        client.call(&Request::new(command, 0, 1_000_001)).ok("the whole export");
    }
}

#[test]
fn disc_answers_what_is_in_flight_and_says_nothing_itself() {
    let server = Server::start(["memory:64M"]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        let mut stream = Vec::new();
        for index in 0..64 {
            stream.extend(client.prepare(&Request::write(index << 16, vec![9; 1 << 16])).1);
        }
        stream.extend(Request::new(DISC, 0, 0).encode(dialect, 1));
        client.wire.send(stream);
        for _ in 0..64 {
            client.reply().ok("WRITE before DISC");
        }
        client.wire.expect_close("DISC");
        assert_eq!(server.client(dialect).read(63 << 16, 4), [9; 4], "and the data is there");
    }
}

#[test]
fn disc_with_junk_is_still_disc() {
    let server = Server::start(["memory:1M"]);
    for dialect in DIALECTS {
        for (flags, offset, length) in [(0xffdf, 0, 0), (0, u64::MAX, 0), (0, 0, 0xffff_ffff)] {
            let mut client = server.client(dialect);
            client.wire.send(Request::new(DISC, offset, length).flags(flags).encode(dialect, 7));
            client.wire.expect_close("DISC with junk");
        }
    }
}

#[test]
fn bad_request_magic_closes() {
    let server = Server::start(["memory:1M"]);
    for dialect in DIALECTS {
        for magic in [0_u32, 0x1256_0953, 0x2560_9514, 0x6744_6698, u32::MAX] {
            let mut client = server.client(dialect);
            let mut bytes = Request::new(READ, 0, 512).encode(dialect, 7);
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            client.wire.send([bytes, vec![0; 100]].concat());
            // At most a last error; never the data.
            let rest = client.wire.rest();
            assert!(rest.len() < 300, "{dialect:?}: magic {magic:08x} got {} bytes", rest.len());
        }
        // The other dialect's magic is as bad as any.
        let mut client = server.client(dialect);
        let other = if dialect == Dialect::Extended { Dialect::Simple } else { Dialect::Extended };
        client.wire.send(Request::new(READ, 0, 512).encode(other, 7));
        client.wire.send([0; 32]);
        let rest = client.wire.rest();
        assert!(rest.len() < 300, "{dialect:?} took a request of {other:?}");
    }
}

#[test]
fn df_brings_one_data_chunk_with_the_zeroes_in_it() {
    let server = Server::start(["memory:8M"]);
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let mut client = server.client(dialect);
        client.write(4 << 20, b"data between holes");
        for length in [65536, 1 << 20, 4 << 20] {
            let offset = (4 << 20) - length as u64 / 2;
            let request = Request::new(READ, offset, length as u64).flags(DF);
            let reply = client.call(&request);
            let data = reply.ok("READ with DF").data(offset, length);
            assert!(!reply.has_hole(), "a mix of data and hole is sent as data");
            assert_eq!(&data[length / 2..][..18], b"data between holes");
        }
    }
}

#[test]
fn simple_read_refused_has_no_payload() {
    let server = Server::start(["memory:1M"]);
    let mut client = server.client(Dialect::Simple);
    let (_, bad) = client.prepare(&Request::new(READ, 1 << 20, 4096));
    let (_, good) = client.prepare(&Request::new(READ, 0, 4));
    client.wire.send([bad, good].concat());
    let errors: Vec<u32> = [client.reply(), client.reply()].iter().map(|reply| reply.errno).collect();
    assert!(errors.contains(&0) && errors.contains(&22), "{errors:?}");
    assert_eq!(client.in_flight(), 0);
    client.wire.send(Request::new(READ, 0, 4).encode(Dialect::Simple, 5));
    assert_eq!(u32_at(&client.wire.receive(20), 0), 0x6744_6698, "framing is kept");
}
