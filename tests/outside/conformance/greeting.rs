//! The first bytes, the client's flags, EXPORT_NAME and the plain newstyle clients that know nothing else.

use crate::client::{Client, DF, Dialect, READ, Request};
use crate::haggle::{EXPORT_NAME, FIXED, Haggle, NO_ZEROES, STRUCTURED_REPLY, enter, export_query, option};
use crate::server::Server;
use crate::wait::until;
use crate::wire::{Wire, u16_at, u64_at};

#[test]
fn greeting_is_eighteen_known_bytes() {
    let server = Server::start(["memory:1M"]);
    Wire::connect(&server.address).expect(b"NBDMAGICIHAVEOPT\x00\x03", "the greeting");
}

#[test]
fn unknown_client_flags_close_the_connection() {
    let server = Server::start(["memory:1M"]);
    for flags in [4_u32, 7, 0x8000_0000, 0x0001_0003, u32::MAX] {
        let mut wire = Wire::connect(&server.address);
        wire.receive(18);
        wire.send(flags.to_be_bytes());
        wire.expect_close(&format!("client flags {flags:#x}"));
    }
}

#[test]
fn bad_option_magic_closes_the_connection() {
    let server = Server::start(["memory:1M"]);
    for magic in [b"IHAVEOPU", b"NBDMAGIC", &[0; 8], &[0xff; 8]] {
        let mut haggle = Haggle::new(&server.address);
        haggle.wire.send([magic.as_slice(), &[0, 0, 0, 3, 0, 0, 0, 0]].concat());
        haggle.wire.expect_close("bad option magic");
    }
}

/// The answer to EXPORT_NAME: size, flags, and 124 zeroes unless both sides said NO_ZEROES.
#[test]
fn export_name_answers_10_or_134_bytes() {
    let server = Server::start(["disk=memory:1M"]);
    for (flags, zeroes) in [(FIXED | NO_ZEROES, 0), (FIXED, 124), (NO_ZEROES, 0), (0, 124)] {
        let mut haggle = Haggle::with_flags(&server.address, flags);
        haggle.wire.send(option(EXPORT_NAME, b"disk"));
        let answer = haggle.wire.receive(10 + zeroes);
        assert_eq!(u64_at(&answer, 0), 1 << 20);
        assert_eq!(u16_at(&answer, 8) & 1, 1, "HAS_FLAGS");
        assert_eq!(u16_at(&answer, 8) & (1 << 7), 0, "DF is offered only with structured replies");
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        let mut client = Client::new(haggle.wire, Dialect::Simple, Vec::new());
        assert_eq!(client.read(0, 512), [0; 512]);
        client.disconnect();
    }
}

#[test]
fn export_name_after_structured_replies_offers_df() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address).structured();
    haggle.wire.send(option(EXPORT_NAME, b""));
    let answer = haggle.wire.receive(10);
    assert_ne!(u16_at(&answer, 8) & (1 << 7), 0);
    let mut client = Client::new(haggle.wire, Dialect::Structured, Vec::new());
    client.call(&Request::new(READ, 0, 4096).flags(DF)).ok("READ with DF");
}

#[test]
fn export_name_of_an_unknown_export_closes() {
    let server = Server::start(["-v", "disk=memory:1M"]);
    for name in ["", "dis", "disk2", "disk\0", "\u{fffd}", &"x".repeat(4096), &"x".repeat(5000)] {
        let mut haggle = Haggle::new(&server.address);
        haggle.wire.send(option(EXPORT_NAME, name.as_bytes()));
        haggle.wire.expect_close(&format!("unknown name of {} bytes", name.len()));
    }
    // There is no reply that could say why; the operator can find out.
    until("the log says what was asked for", || server.log().contains("that is not here, \"disk2\""));
}

#[test]
fn export_name_after_extended_headers_closes() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address).extended();
    haggle.wire.send(option(EXPORT_NAME, b""));
    haggle.wire.expect_close("EXPORT_NAME is forbidden after EXTENDED_HEADERS");
}

/// No byte of the protocol may depend on how the transport cuts it.
#[test]
fn bytes_that_come_one_at_a_time_are_understood() {
    let server = Server::tcp(["memory:1M"]);
    let mut client = Client::new(Wire::connect(&server.address), Dialect::Structured, Vec::new());
    let write = client.prepare(&Request::write(512, b"drop by drop")).1;
    let read = client.prepare(&Request::new(READ, 512, 12)).1;
    let stream = [
        (FIXED | NO_ZEROES).to_be_bytes().to_vec(),
        option(STRUCTURED_REPLY, &[]),
        option(crate::haggle::GO, &export_query("", &[])),
        write,
        read,
    ];
    for byte in stream.concat() {
        client.wire.send([byte]);
    }
    client.wire.receive(18 + 20);
    skip_go(&mut client.wire);
    let replies = [client.reply(), client.reply()];
    let read = replies.iter().find(|reply| !reply.chunks.is_empty()).expect("the READ is answered");
    assert!(matches!(read.data(512, 12).as_slice(), b"drop by drop" | [0, ..]), "written or not yet");
    assert_eq!(client.read(512, 12), b"drop by drop");
}

/// A client may know the answer and not wait for it: requests right behind GO belong to transmission.
#[test]
fn requests_sent_together_with_go_are_served() {
    let server = Server::start(["memory:1M"]);
    let haggle = Haggle::new(&server.address);
    let mut client = Client::new(haggle.wire, Dialect::Simple, Vec::new());
    let go = option(crate::haggle::GO, &export_query("", &[]));
    let write = client.prepare(&Request::write(0, vec![7; 100_000])).1;
    client.wire.send([go, write].concat());
    skip_go(&mut client.wire);
    client.reply().ok("WRITE behind GO");
    assert_eq!(client.read(0, 100_000), vec![7; 100_000]);
}

/// Clients by the thousand differ in what they know; all of them see the same bytes.
#[test]
fn all_dialects_see_the_same_disk() {
    let server = Server::start(["memory:1M"]);
    enter(&server.address, "", Dialect::Simple).write(4096, b"shared");
    for dialect in crate::client::DIALECTS {
        assert_eq!(enter(&server.address, "", dialect).read(4096, 6), b"shared", "{dialect:?}");
    }
}

/// Reads the replies to GO up to its ACK.
fn skip_go(wire: &mut Wire) {
    loop {
        let head = wire.receive(20);
        let length = crate::wire::u32_at(&head, 16);
        wire.receive(length as usize);
        if crate::wire::u32_at(&head, 12) == crate::haggle::ACK {
            return;
        }
    }
}
