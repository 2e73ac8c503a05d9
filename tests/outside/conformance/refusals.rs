//! Which error for which mistake; after each of them the connection lives on.

use crate::client::{
    BLOCK_STATUS, CACHE, DF, DIALECTS, Dialect, EINVAL, ENOSPC, EOVERFLOW, EPERM, FAST_ZERO, FLUSH, FUA,
    NO_HOLE, PAYLOAD_LEN, READ, REQ_ONE, Request, TRIM, WRITE, WRITE_ZEROES,
};
use crate::haggle::Haggle;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wire::Message;

const SIZE: u64 = 1 << 20;

#[test]
fn past_the_end_is_enospc_for_writers_and_einval_for_the_rest() {
    let table = [
        (READ, EINVAL),
        (WRITE, ENOSPC),
        (TRIM, EINVAL),
        (CACHE, EINVAL),
        (WRITE_ZEROES, ENOSPC),
        (BLOCK_STATUS, EINVAL),
    ];
    let places = [
        (SIZE, 1),
        (SIZE - 1, 2),
        (0, SIZE + 1),
        (SIZE + 1, 1),
        (1 << 40, 512),
        (1 << 63, 512),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (u64::MAX - 100, 512),
        (u64::MAX, 65536),
    ];
    let scratch = Scratch::new();
    let server = Server::start([scratch.sparse("disk", SIZE)]);
    for dialect in DIALECTS {
        let mut haggle = Haggle::new(&server.address).dialect(dialect);
        if dialect != Dialect::Simple {
            haggle = haggle.contexts("", &["base:allocation"]);
        }
        let mut client = haggle.go("");
        for (command, errno) in table {
            for (offset, length) in places {
                let mut request = Request::new(command, offset, length);
                if command == WRITE {
                    request.payload = vec![1; length as usize];
                }
                let symptom = format!("{dialect:?}: command {command} at {offset} for {length}");
                client.call(&request).refused(errno, &symptom);
                client.is_alive(&symptom);
            }
        }
    }
}

#[test]
fn read_only_exports_answer_eperm() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", SIZE);
    let server = Server::start([format!("{},readonly=on", path.display())]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        for request in [
            Request::write(0, vec![1; 4096]),
            Request::write(0, vec![1; 4096]).flags(FUA),
            Request::write(SIZE - 1, vec![1; 4096]),
            Request::new(TRIM, 0, 4096),
            Request::new(WRITE_ZEROES, 0, 4096),
            Request::new(WRITE_ZEROES, 0, 4096).flags(NO_HOLE),
        ] {
            let symptom = format!("{dialect:?}: command {} on a read-only export", request.command);
            client.call(&request).refused(EPERM, &symptom);
            client.is_alive(&symptom);
        }
        client.flush();
        client.call(&Request::new(CACHE, 0, 4096)).ok("CACHE on a read-only export");
        assert_eq!(client.read(0, 4096), [0; 4096]);
    }
}

#[test]
fn the_read_only_option_covers_every_export() {
    let server = Server::start(["--read-only", "a=memory:1M", "b=memory:1M,readonly=on"]);
    for name in ["a", "b"] {
        let mut client = Haggle::new(&server.address).structured().go(name);
        client.call(&Request::write(0, b"x")).refused(EPERM, name);
    }
}

#[test]
fn flags_that_do_not_belong_are_einval() {
    let table: [(u16, &[u16]); 7] = [
        (READ, &[NO_HOLE, REQ_ONE, FAST_ZERO, 1 << 6, 1 << 15]),
        (WRITE, &[NO_HOLE, DF, REQ_ONE, FAST_ZERO, 1 << 6, 1 << 15]),
        (FLUSH, &[NO_HOLE, DF, REQ_ONE, FAST_ZERO, 1 << 7]),
        (TRIM, &[NO_HOLE, DF, REQ_ONE, FAST_ZERO, 1 << 8]),
        (CACHE, &[NO_HOLE, DF, REQ_ONE, FAST_ZERO, 1 << 9]),
        (WRITE_ZEROES, &[DF, REQ_ONE, 1 << 10]),
        (BLOCK_STATUS, &[NO_HOLE, DF, FAST_ZERO, 1 << 11]),
    ];
    let server = Server::start(["memory:1M"]);
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let haggle = Haggle::new(&server.address).dialect(dialect);
        let mut client = haggle.contexts("", &["base:allocation"]).go("");
        for (command, flags) in table {
            for flag in flags {
                let mut request = Request::new(command, 0, 512).flags(*flag);
                match command {
                    WRITE => request.payload = vec![1; 512],
                    FLUSH => request.length = 0,
                    _ => {}
                }
                let symptom = format!("{dialect:?}: flag {flag:#x} on command {command}");
                client.call(&request).refused(EINVAL, &symptom);
                client.is_alive(&symptom);
            }
        }
        assert_eq!(client.read(0, 512), [0; 512], "none of the refused writes was done");
    }
}

/// DF is not advertised to a client of simple replies, and so it is as unknown as any other flag.
#[test]
fn df_without_structured_replies_is_einval() {
    let server = Server::start(["memory:1M"]);
    let mut client = server.client(Dialect::Simple);
    client.call(&Request::new(READ, 0, 512).flags(DF)).refused(EINVAL, "DF");
    client.is_alive("after DF");
}

#[test]
fn payload_len_in_the_compact_dialect_is_einval() {
    let server = Server::start(["memory:1M"]);
    let mut client = server.client(Dialect::Structured);
    client.call(&Request::new(READ, 0, 512).flags(PAYLOAD_LEN)).refused(EINVAL, "PAYLOAD_LEN");
    client.is_alive("after PAYLOAD_LEN");
}

/// nbdkit 1.32 dies of this one.
#[test]
fn unadvertised_fast_zero_is_einval() {
    let server = Server::start(["memory:1M,readonly=on"]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        assert_eq!(client.flags & (1 << 11), 0, "FAST_ZERO is not advertised on a read-only export");
        let reply = client.call(&Request::new(WRITE_ZEROES, 0, 4096).flags(FAST_ZERO));
        assert!([EINVAL, EPERM].contains(&reply.errno), "errno {}", reply.errno);
        client.is_alive("after FAST_ZERO");
    }
}

#[test]
fn unknown_commands_are_einval_and_named() {
    let server = Server::start(["memory:1M"]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        for command in [8, 9, 100, 255, 0x8000, 0xffff] {
            let reply = client.call(&Request::new(command, 0, 4096));
            reply.refused(EINVAL, &format!("{dialect:?}: command {command}"));
            let known_as = [command.to_string(), format!("{command:#x}"), "RESIZE".to_owned()];
            let named =
                known_as[..if command == 8 { 3 } else { 2 }].iter().any(|name| reply.text.contains(name));
            assert!(named || dialect == Dialect::Simple, "command {command} is not named: {}", reply.text);
            client.is_alive("after an unknown command");
        }
    }
}

#[test]
fn block_status_without_a_context_is_einval() {
    let server = Server::start(["memory:1M"]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        client.call(&Request::new(BLOCK_STATUS, 0, 4096)).refused(EINVAL, "no context");
        client.is_alive("after BLOCK_STATUS");
    }
}

#[test]
fn reads_beyond_the_maximum_payload_are_eoverflow() {
    let server = Server::start(["null:1T"]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        for length in [(64 << 20) + 1, 0x8000_0000, 0xffff_ffff] {
            let symptom = format!("{dialect:?}: READ of {length}");
            client.call(&Request::new(READ, 0, length)).refused(EOVERFLOW, &symptom);
            client.is_alive(&symptom);
        }
    }
}

/// The payload is unread when the refusal is decided: it is drained, and the next request is found behind it.
#[test]
fn write_just_beyond_the_maximum_is_drained_and_refused() {
    let server = Server::start(["null:1T"]);
    for dialect in [Dialect::Simple, Dialect::Structured] {
        let mut client = server.client(dialect);
        let reply = client.call(&Request::write(0, vec![1; (64 << 20) + 1]));
        assert!([EINVAL, EOVERFLOW].contains(&reply.errno), "{dialect:?}: errno {}", reply.errno);
        client.is_alive("after an oversized WRITE");
    }
}

#[test]
fn write_of_absurd_length_is_refused_and_closed() {
    let server = Server::start(["null:1T"]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        let mut bytes = Request::new(WRITE, 0, 0xffff_ffff).encode(dialect, 7);
        if dialect == Dialect::Extended {
            bytes[5] = PAYLOAD_LEN as u8;
        }
        client.wire.send(bytes);
        let rest = client.wire.rest();
        assert!(rest.len() < 4200, "{dialect:?}: at most one error reply, got {} bytes", rest.len());
    }
}

/// Two mistakes at once, in the raw: the reply's cookie and nothing after it.
#[test]
fn refusals_in_the_simple_dialect_are_sixteen_bytes() {
    let server = Server::start(["memory:1M,readonly=on"]);
    let mut client = server.client(Dialect::Simple);
    let requests = [
        (Request::write(0, vec![0; 512]), EPERM),
        (Request::new(READ, SIZE, 512), EINVAL),
        (Request::new(77, 0, 0), EINVAL),
    ];
    for (cookie, (request, errno)) in requests.into_iter().enumerate() {
        client.wire.send(request.encode(Dialect::Simple, cookie as u64));
        let expected = Message::default().u32(0x6744_6698).u32(errno).u64(cookie as u64);
        client.wire.expect(&expected.0, "a refusal");
    }
    client.is_alive("after refusals");
}
