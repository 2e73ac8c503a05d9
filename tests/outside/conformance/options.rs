//! Options and how each is refused: always with a sentence, never at the price of the framing.

use crate::client::Dialect;
use crate::haggle::{
    ABORT, ACK, EXT_HEADER_REQD, EXTENDED_HEADERS, GO, Haggle, INVALID, LIST, LIST_META, POLICY, SET_META,
    STARTTLS, STRUCTURED_REPLY, UNSUP, enter, export_query, meta_query, option,
};
use crate::server::Server;
use crate::wire::{Message, u32_at};

#[test]
fn unknown_options_are_named_and_skipped() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    for code in [0_u32, 4, 12, 13, 99, 0x7fff_ffff, u32::MAX] {
        for length in [0, 1, 20, 4096, 100_000] {
            let symptom = format!("option {code} with {length} bytes");
            let text = haggle.refused(code, &vec![0x49; length], UNSUP, &symptom);
            // By number, or by the name it once had.
            let known_as = [code.to_string(), format!("{code:#x}"), "PEEK_EXPORT".to_owned()];
            let named = known_as[..if code == 4 { 3 } else { 2 }].iter().any(|name| text.contains(name));
            assert!(named, "{symptom}: the text does not name it: {text}");
        }
        haggle.is_framed("after an unknown option");
    }
}

#[test]
fn options_that_take_no_data_refuse_data_and_stay_framed() {
    let server = Server::start(["memory:1M"]);
    for code in [LIST, STRUCTURED_REPLY, EXTENDED_HEADERS, STARTTLS] {
        for length in [1, 4, 1000, 70_000] {
            let mut haggle = Haggle::new(&server.address);
            let symptom = format!("option {code} with {length} bytes");
            haggle.refused(code, &vec![0; length], INVALID, &symptom);
            haggle.is_framed(&symptom);
        }
    }
}

#[test]
fn structured_reply_twice_is_invalid() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address).structured();
    haggle.refused(STRUCTURED_REPLY, &[], INVALID, "a second STRUCTURED_REPLY");
    assert_eq!(haggle.go("").read(0, 512), [0; 512], "the first one holds");
}

#[test]
fn structured_reply_that_was_refused_does_not_take_effect() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    haggle.refused(STRUCTURED_REPLY, b"data", INVALID, "STRUCTURED_REPLY with data");
    assert_eq!(haggle.go("").read(0, 512), [0; 512], "simple replies are still spoken");
}

#[test]
fn extended_headers_take_precedence() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address).extended();
    haggle.refused(STRUCTURED_REPLY, &[], EXT_HEADER_REQD, "STRUCTURED_REPLY after EXTENDED_HEADERS");
    haggle.refused(EXTENDED_HEADERS, &[], INVALID, "a second EXTENDED_HEADERS");
    assert_eq!(haggle.go("").read(0, 512), [0; 512]);

    let client = Haggle::new(&server.address).structured().extended().go("");
    assert_eq!(client.dialect, Dialect::Extended);
    client.disconnect();
}

#[test]
fn starttls_without_credentials_is_policy() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    haggle.refused(STARTTLS, &[], POLICY, "STARTTLS");
    haggle.refused(STARTTLS, &[], POLICY, "STARTTLS again");
    haggle.is_framed("after STARTTLS");
}

#[test]
fn abort_is_acknowledged_and_ends_the_session() {
    let server = Server::start(["memory:1M"]);
    for payload in [&b""[..], b"goodbye"] {
        let mut haggle = Haggle::new(&server.address);
        assert_eq!(haggle.outcome(ABORT, payload).kind, ACK);
        haggle.wire.expect_close("ABORT");
    }
}

#[test]
fn abort_without_waiting_for_the_answer_harms_nobody() {
    let server = Server::tcp(["memory:1M"]);
    for _ in 0..20 {
        let mut haggle = Haggle::new(&server.address);
        haggle.wire.send(option(ABORT, &[]));
        haggle.wire.vanish();
    }
    enter(&server.address, "", Dialect::Simple).is_alive("after rude aborts");
}

#[test]
fn absurd_option_lengths_close_the_connection() {
    let server = Server::start(["memory:1M"]);
    for code in [LIST, GO, SET_META, 99] {
        for length in [(32 << 20) + 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut haggle = Haggle::new(&server.address);
            haggle.wire.send(Message::default().bytes(b"IHAVEOPT").u32(code).u32(length).0);
            // A last word of error is welcome; what counts is that nobody waits for 2 GiB.
            let rest = haggle.wire.rest();
            assert!(rest.len() < 5000, "option {code} of {length} bytes");
            assert!(rest.is_empty() || u32_at(&rest, 12) & 0x8000_0000 != 0, "option {code} was accepted");
        }
    }
}

/// Long, but not absurd: skipped, refused, and the next option is understood.
#[test]
fn long_options_are_skipped_without_losing_the_frame() {
    let server = Server::start(["memory:1M"]);
    for code in [LIST, GO, LIST_META, 99] {
        let mut haggle = Haggle::new(&server.address).structured();
        let reply = haggle.outcome(code, &vec![0xff; 1 << 20]);
        assert!(reply.is_error() && !reply.payload.is_empty(), "option {code} of a MiB: {:08x}", reply.kind);
        haggle.is_framed("after an option of a MiB");
    }
}

#[test]
fn meta_contexts_before_structured_replies_are_invalid() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    for code in [LIST_META, SET_META] {
        haggle.refused(code, &meta_query("", &["base:allocation"]), INVALID, "meta contexts too early");
    }
    haggle.is_framed("after meta contexts too early");
}

/// Nothing in the list of options says that one cannot come again and again.
#[test]
fn a_refused_go_may_be_followed_by_another() {
    let server = Server::start(["disk=memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    for name in ["", "nosuch", "disk ", "DISK"] {
        haggle.refused(GO, &export_query(name, &[]), crate::haggle::UNKNOWN, name);
    }
    assert_eq!(haggle.go("disk").size, 1 << 20);
}
