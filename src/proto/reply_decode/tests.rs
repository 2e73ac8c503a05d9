//! What a server may not say.

use super::*;
use crate::proto::consts::{Command, CommandFlags};
use crate::proto::reply;
use crate::proto::request::Request;

const BOTH: [Dialect; 2] = [Dialect::Structured, Dialect::Extended];

fn request(command: Command) -> Request {
    Request { command, flags: CommandFlags::NONE, cookie: 42, offset: 4096, length: 8192, payload: 0 }
}

fn with(command: Command, flags: CommandFlags) -> Request {
    Request { flags, ..request(command) }
}

/// Decodes, after checking that every shorter input asks for more.
fn decode(dialect: Dialect, bytes: &[u8]) -> Result<Reply, Violation> {
    for cut in 0..bytes.len() {
        match Reply::decode(dialect, &bytes[..cut]) {
            Ok(None) => {}
            Ok(Some(_)) => panic!("a reply out of {cut} of {} bytes", bytes.len()),
            Err(violation) => return Err(violation),
        }
    }
    let (reply, consumed) = Reply::decode(dialect, bytes)?.expect("a whole reply");
    assert_eq!(consumed, bytes.len());
    Ok(reply)
}

fn chunk(dialect: Dialect, kind: u16, done: bool, payload: &[u8]) -> Vec<u8> {
    let extended = dialect == Dialect::Extended;
    let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(u16::from(done).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(42u64.to_be_bytes());
    let length = u32::try_from(payload.len()).unwrap();
    if extended {
        bytes.extend(4096u64.to_be_bytes());
        bytes.extend(u64::from(length).to_be_bytes());
    } else {
        bytes.extend(length.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

fn run(dialect: Dialect, request: Request, replies: &[&[u8]]) -> Result<Progress, Violation> {
    let mut pending = Pending::new(dialect, request, &[7]);
    let mut last = Progress { data: None, ended: None };
    for bytes in replies {
        last = pending.accept(&decode(dialect, bytes)?)?;
    }
    Ok(last)
}

fn succeeds(dialect: Dialect, request: Request, replies: &[&[u8]]) {
    assert_eq!(run(dialect, request, replies).unwrap().ended, Some(Ok(())), "{dialect:?}");
}

fn violates(dialect: Dialect, request: Request, replies: &[&[u8]]) {
    let outcome = run(dialect, request, replies);
    assert!(outcome.is_err(), "{dialect:?} {request:?}: {outcome:?}");
}

#[test]
fn our_own_replies_are_understood() {
    let read = request(Command::READ);
    for dialect in BOTH {
        let data = |offset, length, last| reply::data(dialect, &read, offset, length, last).to_vec();
        let hole = |offset, length, last| reply::hole(dialect, &read, offset, length, last).to_vec();
        let done = reply::done(dialect, &read);
        succeeds(dialect, read, &[&data(4096, 8192, true)]);
        succeeds(dialect, read, &[&hole(4096, 4096, false), &data(8192, 4096, true)]);
        succeeds(dialect, read, &[&data(8192, 4096, false), &hole(4096, 4096, false), &done]);
        succeeds(dialect, Request { length: 0, ..read }, &[&done]);
        for command in [Command::WRITE, Command::FLUSH, Command::TRIM] {
            succeeds(dialect, request(command), &[&reply::done(dialect, &request(command))]);
        }
        let status = request(Command::BLOCK_STATUS);
        let mut bytes = Vec::new();
        reply::block_status(&mut bytes, dialect, &status, 7, &[(4096, 0), (9000, 3)], true);
        succeeds(dialect, status, &[&bytes]);
    }
    let simple = run(Dialect::Simple, read, &[&reply::data(Dialect::Simple, &read, 4096, 8192, true)]);
    assert_eq!(simple, Ok(Progress { data: Some((4096, 8192)), ended: Some(Ok(())) }));
}

#[test]
fn errors_are_told_with_words_and_place() {
    for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
        let read = request(Command::READ);
        let mut bytes = Vec::new();
        reply::error(&mut bytes, dialect, &read, Errno::EIO, "bad sector", Some(5000));
        let error = run(dialect, read, &[&bytes]).unwrap().ended.unwrap().unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        if dialect == Dialect::Simple {
            assert_eq!(error.to_string(), format!("EIO: {}", Errno::EIO.sentence()));
        } else {
            assert_eq!((error.to_string().as_str(), error.at), ("EIO: bad sector", Some(5000)));
        }
    }
}

#[test]
fn a_magic_that_was_not_negotiated_is_fatal() {
    let simple = reply::done(Dialect::Simple, &request(Command::WRITE));
    let structured = chunk(Dialect::Structured, 0, true, &[]);
    let extended = chunk(Dialect::Extended, 0, true, &[]);
    for (dialect, bytes) in [
        (Dialect::Simple, &structured[..]),
        (Dialect::Simple, &extended),
        (Dialect::Structured, &extended),
        (Dialect::Extended, &structured),
        (Dialect::Extended, &simple),
        (Dialect::Structured, &[0; 20]),
    ] {
        assert!(matches!(decode(dialect, bytes), Err(Violation::ReplyMagic(_))));
    }
}

#[test]
fn malformed_chunks_are_fatal() {
    let hole = |length: u32| [&4096u64.to_be_bytes()[..], &length.to_be_bytes()].concat();
    let error = |errno: u8, text: u8| [0, 0, 0, errno, 0, text, b'a', b'b'];
    let cases: [(u16, bool, &[u8]); 13] = [
        (0, false, &[]),
        (0, true, &[1]),
        (1, true, &[0; 8]),
        (1, true, &[0; 3]),
        (2, true, &hole(1)[..11]),
        (2, true, &[&hole(1)[..], &[0]].concat()),
        (2, true, &hole(0)),
        (3, true, &[0; 16]),
        (4, true, &[]),
        (0x8001, true, &error(0, 2)),
        (0x8001, true, &error(5, 3)),
        (0x8001, true, &[0, 0, 0, 5, 0]),
        (0x8002, true, &error(5, 2)),
    ];
    for dialect in BOTH {
        for (kind, done, payload) in cases {
            let bytes = chunk(dialect, kind, done, payload);
            let outcome = decode(dialect, &bytes);
            assert!(matches!(outcome, Err(Violation::Reply(_))), "{dialect:?} {kind:#x}: {outcome:?}");
        }
    }
}

#[test]
fn an_unknown_error_type_is_an_error_and_not_fatal() {
    let bytes = chunk(Dialect::Structured, 0x8099, true, &[0, 0, 0, 22, 0, 2, b'n', b'o', 1, 2, 3]);
    let ended = run(Dialect::Structured, request(Command::TRIM), &[&bytes]).unwrap().ended;
    assert_eq!(ended.unwrap().unwrap_err().text, "no");
}

#[test]
fn content_must_cover_the_request_once_and_nothing_else() {
    for dialect in BOTH {
        let read = request(Command::READ);
        let data = |offset, length, last| reply::data(dialect, &read, offset, length, last).to_vec();
        let all = data(4096, 8192, false);
        violates(dialect, read, &[&data(4095, 2, true)]);
        violates(dialect, read, &[&data(12_287, 2, true)]);
        violates(dialect, read, &[&data(u64::MAX, 2, true)]);
        violates(dialect, read, &[&data(4096, 8191, true)]);
        violates(dialect, read, &[&all, &data(5000, 1, false)]);
        violates(dialect, read, &[&data(5000, 10, false), &data(4096, 905, false)]);
        violates(dialect, read, &[&data(5000, 10, false), &data(5009, 1, false)]);
        violates(dialect, read, &[&data(4096, 1, false), &data(6000, 1, false), &data(5000, 2000, false)]);
        violates(dialect, read, &[&reply::done(dialect, &read)]);
        violates(dialect, request(Command::WRITE), &[&all]);
        let df = with(Command::READ, CommandFlags::DF);
        violates(dialect, df, &[&data(4096, 4096, false), &data(8192, 4096, true)]);
        succeeds(dialect, df, &[&all, &reply::done(dialect, &read)]);
    }
}

#[test]
fn nothing_comes_after_the_end_and_nothing_mixes() {
    let read = request(Command::READ);
    let dialect = Dialect::Structured;
    let none = chunk(dialect, 0, true, &[]);
    let simple = reply::done(Dialect::Simple, &read);
    violates(dialect, read, &[&simple]);
    violates(dialect, request(Command::WRITE), &[&none, &none]);
    violates(dialect, request(Command::WRITE), &[&simple, &simple]);
    let error = chunk(dialect, 0x8001, false, &[0, 0, 0, 5, 0, 0]);
    violates(dialect, request(Command::WRITE), &[&error, &simple]);
    let ended = run(dialect, request(Command::WRITE), &[&error, &none]).unwrap().ended;
    assert_eq!(ended.unwrap().unwrap_err().errno, Errno::EIO);
    let other = Request { cookie: 43, ..request(Command::WRITE) };
    violates(dialect, other, &[&none]);
    let moved = Request { offset: 0, ..request(Command::WRITE) };
    violates(Dialect::Extended, moved, &[&chunk(Dialect::Extended, 0, true, &[])]);
    let outside = chunk(dialect, 0x8002, true, &[&[0, 0, 0, 5, 0, 0][..], &0u64.to_be_bytes()].concat());
    violates(dialect, request(Command::WRITE), &[&outside]);
}

#[test]
fn block_status_tells_each_context_once() {
    let status = request(Command::BLOCK_STATUS);
    let extents = |dialect, id, extents: &[(u64, u64)], last| {
        let extended = dialect == Dialect::Extended;
        let mut payload = u32::to_be_bytes(id).to_vec();
        if extended {
            payload.extend(u32::try_from(extents.len()).unwrap().to_be_bytes());
        }
        for (length, flags) in extents {
            for value in [*length, *flags] {
                let bytes = value.to_be_bytes();
                payload.extend(if extended { &bytes[..] } else { &bytes[4..] });
            }
        }
        chunk(dialect, if extended { 6 } else { 5 }, last, &payload)
    };
    for dialect in BOTH {
        let one = extents(dialect, 7, &[(8192, 0)], false);
        let done = chunk(dialect, 0, true, &[]);
        succeeds(dialect, status, &[&one, &done]);
        violates(dialect, status, &[&one, &one]);
        violates(dialect, status, &[&done]);
        violates(dialect, status, &[&extents(dialect, 8, &[(8192, 0)], true)]);
        violates(dialect, status, &[&extents(dialect, 7, &[(0, 0)], true)]);
        violates(dialect, status, &[&extents(dialect, 7, &[], true)]);
        violates(dialect, request(Command::READ), &[&one]);
        let req_one = with(Command::BLOCK_STATUS, CommandFlags::REQ_ONE);
        succeeds(dialect, req_one, &[&one, &done]);
        // Too much and too long: told by servers of old, repaired by the client.
        succeeds(dialect, req_one, &[&extents(dialect, 7, &[(8193, 0)], true)]);
        succeeds(dialect, status, &[&extents(dialect, 7, &[(8192, 0), (1, 1)], true)]);
        let wrong_width = chunk(dialect, if dialect == Dialect::Extended { 5 } else { 6 }, true, &[0; 24]);
        violates(dialect, status, &[&wrong_width]);
    }
    let miscounted = [&[0, 0, 0, 7, 0, 0, 0, 2][..], &[1; 16]].concat();
    violates(Dialect::Extended, status, &[&chunk(Dialect::Extended, 6, true, &miscounted)]);
    violates(Dialect::Structured, status, &[&reply::done(Dialect::Simple, &status)]);
}

#[test]
fn a_chunk_too_long_to_be_true_is_not_waited_for() {
    let mut bytes = chunk(Dialect::Extended, 6, true, &[]);
    bytes[24..32].copy_from_slice(&(8 + 16 * ((1 << 20) + 1) as u64).to_be_bytes());
    assert!(Reply::decode(Dialect::Extended, &bytes).is_err());
    bytes[24..32].copy_from_slice(&(8 + 16 * (1 << 20) as u64).to_be_bytes());
    assert_eq!(Reply::decode(Dialect::Extended, &bytes), Ok(None));
}
