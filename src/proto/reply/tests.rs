//! The bytes of every reply.

use super::*;
use crate::proto::cursor::Cursor;

const DIALECTS: [Dialect; 3] = [Dialect::Simple, Dialect::Structured, Dialect::Extended];

fn request(command: Command) -> Request {
    Request {
        command,
        flags: CommandFlags::NONE,
        cookie: 0x1122_3344_5566_7788,
        offset: 0x1000,
        length: 0x2000,
        payload: 0,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const COOKIE: &str = "1122334455667788";
const OFFSET: &str = "0000000000001000";

#[test]
fn success_is_simple_where_it_may_be() {
    let simple = format!("67446698{:08x}{COOKIE}", 0);
    assert_eq!(hex(&done(Dialect::Simple, &request(Command::WRITE))), simple);
    assert_eq!(hex(&done(Dialect::Structured, &request(Command::WRITE))), simple);
    let none = format!("668e33ef00010000{COOKIE}00000000");
    assert_eq!(hex(&done(Dialect::Structured, &request(Command::READ))), none);
    let none = format!("6e8a278c00010000{COOKIE}{OFFSET}{:016x}", 0);
    assert_eq!(hex(&done(Dialect::Extended, &request(Command::WRITE))), none);
}

#[test]
fn data_is_announced_with_its_own_offset_and_the_requests() {
    let read = request(Command::READ);
    let heads = DIALECTS.map(|dialect| hex(&data(dialect, &read, 0x1800, 0x200, false)));
    assert_eq!(heads[0], format!("6744669800000000{COOKIE}"));
    assert_eq!(heads[1], format!("668e33ef00000001{COOKIE}000002080000000000001800"));
    assert_eq!(heads[2], format!("6e8a278c00000001{COOKIE}{OFFSET}00000000000002080000000000001800"));
    assert_eq!(&data(Dialect::Structured, &read, 0, 1, true)[4..6], [0, 1]);
}

#[test]
fn no_content_chunk_is_empty() {
    let read = request(Command::READ);
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let end = hex(&done(dialect, &read));
        assert_eq!(hex(&data(dialect, &read, 0x1000, 0, true)), end);
        assert_eq!(hex(&hole(dialect, &read, 0x1000, 0, true)), end);
        assert!(data(dialect, &read, 0x1000, 0, false).is_empty());
        assert!(hole(dialect, &read, 0x1000, 0, false).is_empty());
    }
}

#[test]
fn a_hole_is_one_whole_chunk() {
    let read = request(Command::READ);
    let head = hex(&hole(Dialect::Structured, &read, 0x1000, 0x2000, true));
    assert_eq!(head, format!("668e33ef00010002{COOKIE}0000000c{OFFSET}00002000"));
    let head = hex(&hole(Dialect::Extended, &read, 0x1000, 0x2000, false));
    assert_eq!(head, format!("6e8a278c00000002{COOKIE}{OFFSET}000000000000000c{OFFSET}00002000"));
}

fn error_bytes(dialect: Dialect, text: &str, at: Option<u64>) -> Vec<u8> {
    let mut out = Vec::new();
    error(&mut out, dialect, &request(Command::READ), Errno::EIO, text, at);
    out
}

#[test]
fn errors_carry_a_sentence_and_an_offset_where_there_is_room() {
    assert_eq!(hex(&error_bytes(Dialect::Simple, "bad", None)), format!("6744669800000005{COOKIE}"));
    let plain = format!("668e33ef00018001{COOKIE}00000009000000050003626164");
    assert_eq!(hex(&error_bytes(Dialect::Structured, "bad", None)), plain);
    assert_eq!(hex(&error_bytes(Dialect::Structured, "bad", Some(0xfff))), plain, "before the range");
    assert_eq!(hex(&error_bytes(Dialect::Structured, "bad", Some(0x3000))), plain, "after the range");
    let placed = format!("668e33ef00018002{COOKIE}000000110000000500036261640000000000002fff");
    assert_eq!(hex(&error_bytes(Dialect::Structured, "bad", Some(0x2fff))), placed);
    let extended = error_bytes(Dialect::Extended, "", None);
    assert_eq!(hex(&extended), format!("6e8a278c00018001{COOKIE}{OFFSET}0000000000000006000000050000"));
}

#[test]
fn a_long_sentence_is_cut_between_characters() {
    let bytes = error_bytes(Dialect::Structured, &"é".repeat(5000), None);
    assert_eq!(bytes.len(), 20 + 6 + 4096);
    let bytes = error_bytes(Dialect::Structured, &format!("a{}", "é".repeat(5000)), None);
    assert_eq!(bytes.len(), 20 + 6 + 4095);
}

/// The extents in a block status chunk, after checking everything around them.
fn status(request: &Request, dialect: Dialect, extents: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = vec![0xee; 3];
    block_status(&mut out, dialect, request, 7, extents, true);
    let mut cursor = Cursor::new(&out[3..]);
    let extended = dialect == Dialect::Extended;
    let length = if extended {
        assert_eq!(hex(cursor.take(24).unwrap()), format!("6e8a278c00010006{COOKIE}{OFFSET}"));
        cursor.u64().unwrap()
    } else {
        assert_eq!(hex(cursor.take(16).unwrap()), format!("668e33ef00010005{COOKIE}"));
        cursor.u32().unwrap().into()
    };
    assert_eq!(usize::try_from(length).unwrap(), cursor.remaining());
    assert_eq!(cursor.u32(), Some(7));
    let count = extended.then(|| cursor.u32().unwrap());
    let mut extents = Vec::new();
    while !cursor.is_empty() {
        extents.push(if extended {
            (cursor.u64().unwrap(), cursor.u64().unwrap())
        } else {
            (cursor.u32().unwrap().into(), cursor.u32().unwrap().into())
        });
    }
    assert!(count.is_none_or(|count| usize::try_from(count).unwrap() == extents.len()));
    extents
}

#[test]
fn extents_are_merged_never_empty_and_never_start_past_the_range() {
    let request = request(Command::BLOCK_STATUS);
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let status = |extents: &[(u64, u64)]| status(&request, dialect, extents);
        assert_eq!(status(&[(0x1000, 0), (0x1000, 3)]), [(0x1000, 0), (0x1000, 3)]);
        assert_eq!(status(&[(0x800, 1), (0, 9), (0x800, 1), (0x1000, 2)]), [(0x1000, 1), (0x1000, 2)]);
        assert_eq!(status(&[(0x1000, 0), (0x9000, 3)]), [(0x1000, 0), (0x9000, 3)]);
        assert_eq!(status(&[(0x2000, 0), (0x1000, 3)]), [(0x2000, 0)]);
        assert_eq!(status(&[]), [(0x2000, 0)]);
        assert_eq!(status(&[(0, 3)]), [(0x2000, 0)]);
    }
}

#[test]
fn req_one_gets_one_extent_within_the_range() {
    let request = Request { flags: CommandFlags::REQ_ONE, ..request(Command::BLOCK_STATUS) };
    for dialect in [Dialect::Structured, Dialect::Extended] {
        assert_eq!(status(&request, dialect, &[(0x1000, 0), (0x1000, 3)]), [(0x1000, 0)]);
        assert_eq!(status(&request, dialect, &[(0x1000, 3), (0x9000, 3)]), [(0x2000, 3)]);
    }
}

#[test]
fn an_extent_too_long_for_32_bits_is_cut_and_is_the_last() {
    let request = Request { length: u64::from(u32::MAX), ..request(Command::BLOCK_STATUS) };
    let extents = [(1 << 33, 3), (0x1000, 0)];
    assert_eq!(status(&request, Dialect::Structured, &extents), [(0xffff_0000, 3)]);
    assert_eq!(status(&request, Dialect::Extended, &extents), [(1 << 33, 3)]);
    assert_eq!(status(&request, Dialect::Extended, &[(u64::MAX, 1), (u64::MAX, 1)]), [(u64::MAX, 1)]);
}

#[test]
fn a_chunk_holds_at_most_a_million_extents() {
    let request = Request { length: 1 << 40, ..request(Command::BLOCK_STATUS) };
    let extents: Vec<_> = (0..STATUS_EXTENTS_MAX as u64 + 5).map(|n| (512, n % 2)).collect();
    assert_eq!(status(&request, Dialect::Extended, &extents).len(), STATUS_EXTENTS_MAX);
}
