//! Raw bytes in, raw bytes out. The export `vault` is for encrypted connections.

use super::*;
use crate::proto::consts::{InfoType, OLDSTYLE_MAGIC, OPTION_REPLY_MAGIC, TransmissionFlags};
use crate::proto::export::BlockSizes;

type Reply = (OptionCode, OptionReply, Vec<u8>);

fn exports() -> Vec<ExportInfo> {
    let disk = ExportInfo {
        id: 0,
        name: "disk".to_owned(),
        description: Some("a disk".to_owned()),
        size: 1 << 20,
        flags: TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA,
        block: BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 25 },
        strict: false,
        contexts: vec!["base:allocation".to_owned(), "qemu:allocation-depth".to_owned()],
    };
    let other = ExportInfo {
        id: 1,
        name: "other".to_owned(),
        description: None,
        block: BlockSizes::default(),
        ..disk.clone()
    };
    let vault = ExportInfo { id: 2, name: "vault".to_owned(), ..other.clone() };
    vec![disk, other, vault]
}

/// A server with a table of exports, as the real caller would drive it.
struct Server {
    handshake: Handshake,
    out: Vec<u8>,
    session: Option<Session>,
    closed: bool,
    /// Bytes behind a STARTTLS that was acknowledged.
    behind: Option<Vec<u8>>,
}

impl Server {
    fn start(config: HandshakeConfig, flags: u32) -> Self {
        let mut out = Vec::new();
        let handshake = Handshake::new(config, &mut out);
        assert_eq!(out, [&INIT_MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 3]].concat());
        let mut server = Self { handshake, out: Vec::new(), session: None, closed: false, behind: None };
        server.feed(&flags.to_be_bytes()).unwrap();
        server
    }

    fn fixed() -> Self {
        Self::start(HandshakeConfig::default(), 3)
    }

    fn feed(&mut self, mut input: &[u8]) -> Result<(), Violation> {
        loop {
            let (consumed, mut step) = self.handshake.advance(input, &mut self.out)?;
            input = &input[consumed..];
            loop {
                step = match step {
                    Step::Receive if consumed == 0 || input.is_empty() => return Ok(()),
                    Step::Receive => break,
                    Step::Find { name } => {
                        let exports = exports();
                        let found = exports.iter().find(|export| export.name == name);
                        let encrypted = self.handshake.encrypted;
                        let export = match found {
                            Some(export) if export.name == "vault" && !encrypted => Lookup::TlsRequired,
                            found => found.into(),
                        };
                        match self.handshake.found(export, &mut self.out)? {
                            Step::Receive => break,
                            step => step,
                        }
                    }
                    Step::List => {
                        let list: Vec<_> = exports()
                            .into_iter()
                            .filter(|export| export.name != "vault")
                            .map(|export| Listing { name: export.name, description: export.description })
                            .collect();
                        self.handshake.listed(&list, &mut self.out);
                        break;
                    }
                    Step::StartTls => {
                        self.behind = Some(input.to_vec());
                        return Ok(());
                    }
                    Step::Transmit(session) => {
                        self.session = Some(session);
                        return Ok(());
                    }
                    Step::Close => {
                        self.closed = true;
                        return Ok(());
                    }
                }
            }
        }
    }

    fn ask(&mut self, code: OptionCode, payload: &[u8]) -> Vec<Reply> {
        self.feed(&option(code, payload)).unwrap();
        replies(&std::mem::take(&mut self.out))
    }

    /// The one reply, an error, and its sentence.
    fn refused(&mut self, code: OptionCode, payload: &[u8]) -> (OptionReply, String) {
        let mut replies = self.ask(code, payload);
        let (option, kind, text) = replies.pop().expect("a reply");
        assert!(replies.is_empty() && option == code && kind.is_error(), "{replies:?} {kind:?}");
        let text = String::from_utf8(text).unwrap();
        assert!(text.len() > 10, "{kind:?} has no sentence");
        (kind, text)
    }
}

fn option(code: OptionCode, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(code.0.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn replies(mut bytes: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let mut cursor = Cursor::new(bytes);
        assert_eq!(cursor.u64(), Some(OPTION_REPLY_MAGIC));
        let option = OptionCode(cursor.u32().unwrap());
        let kind = OptionReply(cursor.u32().unwrap());
        replies.push((option, kind, cursor.counted().expect("a whole reply").to_vec()));
        bytes = cursor.rest();
    }
    replies
}

fn named(name: &[u8], rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap();
    [&length.to_be_bytes()[..], name, rest].concat()
}

fn info(name: &str, wanted: &[InfoType]) -> Vec<u8> {
    let mut rest = u16::try_from(wanted.len()).unwrap().to_be_bytes().to_vec();
    rest.extend(wanted.iter().flat_map(|info| info.0.to_be_bytes()));
    named(name.as_bytes(), &rest)
}

fn meta(name: &str, queries: &[&[u8]]) -> Vec<u8> {
    let mut rest = u32::try_from(queries.len()).unwrap().to_be_bytes().to_vec();
    rest.extend(queries.iter().flat_map(|query| named(query, &[])));
    named(name.as_bytes(), &rest)
}

fn kinds(replies: &[Reply]) -> Vec<OptionReply> {
    replies.iter().map(|reply| reply.1).collect()
}

const INFO: OptionReply = OptionReply::INFO;
const ACK: OptionReply = OptionReply::ACK;
const INVALID: OptionReply = OptionReply::ERR_INVALID;

#[test]
fn flags_that_were_not_offered_close_the_connection() {
    for flags in [4, 0x8000_0000, 7] {
        let mut server = Handshake::new(HandshakeConfig::default(), &mut Vec::new());
        let refused = server.advance(&u32::to_be_bytes(flags), &mut Vec::new());
        assert_eq!(refused, Err(Violation::ClientFlags(flags)));
        assert_eq!(server.advance(&[0; 64], &mut Vec::new()), Ok((0, Step::Close)));
    }
}

#[test]
fn an_option_without_its_magic_closes_the_connection_before_the_rest_is_there() {
    let refused = Server::fixed().feed(&[0xff; 8]);
    assert_eq!(refused, Err(Violation::OptionMagic(u64::MAX)));
}

#[test]
fn a_client_without_fixed_newstyle_may_only_name_its_export() {
    let mut server = Server::start(HandshakeConfig::default(), 0);
    let refused = server.feed(&option(OptionCode::LIST, &[]));
    assert_eq!(refused, Err(Violation::NotFixed(OptionCode::LIST)));
    let mut server = Server::start(HandshakeConfig::default(), 0);
    server.feed(&option(OptionCode::EXPORT_NAME, b"disk")).unwrap();
    assert_eq!(server.out.len(), 8 + 2 + 124);
    assert_eq!(server.session.unwrap().dialect, Dialect::Simple);
}

#[test]
fn export_name_answers_ten_bytes_when_no_zeroes_was_negotiated() {
    let mut server = Server::fixed();
    server.ask(OptionCode::STRUCTURED_REPLY, &[]);
    server.feed(&option(OptionCode::EXPORT_NAME, b"other")).unwrap();
    let session = server.session.unwrap();
    assert_eq!(server.out, [&(1u64 << 20).to_be_bytes()[..], &session.flags.0.to_be_bytes()].concat());
    assert!(session.flags.contains(TransmissionFlags::SEND_DF | TransmissionFlags::HAS_FLAGS));
    assert_eq!((session.export, session.dialect), (1, Dialect::Structured));
}

#[test]
fn export_name_that_cannot_be_served_closes_without_a_reply() {
    let mut server = Server::fixed();
    server.feed(&option(OptionCode::EXPORT_NAME, b"nobody")).unwrap();
    assert!(server.closed && server.out.is_empty());
    for name in [&[b'a'; 4097][..], b"a\0b", b"\xff"] {
        let refused = Server::fixed().feed(&option(OptionCode::EXPORT_NAME, name));
        assert!(matches!(refused, Err(Violation::ExportName(_))), "{refused:?}");
    }
    let mut server = Server::fixed();
    server.ask(OptionCode::EXTENDED_HEADERS, &[]);
    let refused = server.feed(&option(OptionCode::EXPORT_NAME, b"disk"));
    assert!(matches!(refused, Err(Violation::ExportName(_))), "{refused:?}");
}

#[test]
fn oldstyle_greets_with_152_bytes_and_takes_nothing() {
    let mut out = Vec::new();
    let config = HandshakeConfig { style: Style::Oldstyle, ..HandshakeConfig::default() };
    let mut handshake = Handshake::new(config, &mut out);
    assert!(out.is_empty());
    assert_eq!(handshake.advance(&[], &mut out), Ok((0, Step::Find { name: String::new() })));
    let Ok(Step::Transmit(session)) = handshake.found(exports().first(), &mut out) else { panic!() };
    assert_eq!((out.len(), session.dialect), (152, Dialect::Simple));
    let mut cursor = Cursor::new(&out);
    assert_eq!(cursor.u64(), Some(INIT_MAGIC));
    assert_eq!(cursor.u64(), Some(OLDSTYLE_MAGIC));
    assert_eq!(cursor.u64(), Some(1 << 20));
    assert_eq!(cursor.u32(), Some(u32::from(session.flags.0)));
    assert!(cursor.rest().iter().all(|byte| *byte == 0));
}

#[test]
fn go_tells_name_description_sizes_and_export_in_that_order() {
    let mut server = Server::fixed();
    let replies =
        server.ask(OptionCode::GO, &info("disk", &[InfoType::BLOCK_SIZE, InfoType::NAME, InfoType(99)]));
    assert_eq!(kinds(&replies), [INFO, INFO, INFO, INFO, ACK]);
    assert_eq!(replies[0].2, b"\0\x01disk");
    assert_eq!(replies[1].2, b"\0\x02a disk");
    assert_eq!(replies[2].2, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
    assert_eq!(replies[3].2.len(), 12);
    let session = server.session.unwrap();
    assert!(session.alignment_agreed && session.block.minimum == 512);
    assert!(!session.flags.contains(TransmissionFlags::SEND_DF), "DF without structured replies");
}

#[test]
fn go_without_asking_for_sizes_is_promised_single_bytes_but_info_insists() {
    let mut server = Server::fixed();
    let replies = server.ask(OptionCode::INFO, &info("disk", &[]));
    assert_eq!(kinds(&replies), [INFO, INFO, INFO, OptionReply::ERR_BLOCK_SIZE_REQD]);
    assert_eq!(replies[1].2[2..6], 512u32.to_be_bytes());
    assert!(!replies[3].2.is_empty());
    let replies = server.ask(OptionCode::INFO, &info("other", &[]));
    assert_eq!(kinds(&replies), [INFO, INFO, ACK]);
    let replies = server.ask(OptionCode::GO, &info("disk", &[]));
    assert_eq!(kinds(&replies), [INFO, INFO, INFO, ACK]);
    assert_eq!(replies[1].2[2..6], 1u32.to_be_bytes());
    assert!(!server.session.unwrap().alignment_agreed);
}

#[test]
fn an_export_that_may_not_be_opened_is_refused_by_policy_and_framing_survives() {
    for code in [OptionCode::INFO, OptionCode::GO] {
        let mut out = Vec::new();
        let mut handshake = Handshake::new(HandshakeConfig::default(), &mut out);
        handshake.advance(&3u32.to_be_bytes(), &mut out).unwrap();
        let mut option = Vec::new();
        for field in [OPTION_MAGIC.to_be_bytes().as_slice(), &code.0.to_be_bytes(), &10u32.to_be_bytes()] {
            option.extend_from_slice(field);
        }
        option.extend_from_slice(b"\0\0\0\x04disk\0\0");
        let (_, step) = handshake.advance(&option, &mut out).unwrap();
        assert_eq!(step, Step::Find { name: "disk".to_owned() });
        out.clear();
        assert_eq!(handshake.found(Lookup::Forbidden, &mut out), Ok(Step::Receive));
        assert_eq!(out[12..16], OptionReply::ERR_POLICY.0.to_be_bytes());
        assert_eq!(handshake.needs(), OPTION_HEADER_LENGTH);
    }
}

#[test]
fn info_and_the_same_go_say_the_same() {
    for extended in [false, true] {
        let mut server = Server::fixed();
        if extended {
            server.ask(OptionCode::EXTENDED_HEADERS, &[]);
            server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"]));
        }
        let wanted = info("disk", &[InfoType::BLOCK_SIZE]);
        let strip = |replies: Vec<Reply>| replies.into_iter().map(|r| (r.1, r.2)).collect::<Vec<_>>();
        let described = strip(server.ask(OptionCode::INFO, &wanted));
        assert_eq!(described, strip(server.ask(OptionCode::GO, &wanted)));
    }
}

#[test]
fn malformed_info_is_invalid_and_framing_survives() {
    let mut server = Server::fixed();
    let two = info("disk", &[InfoType::NAME, InfoType::EXPORT]);
    let mut lying = two.clone();
    lying[0] = 0xff;
    let cases: [&[u8]; 9] = [
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        b"\0\0\0\0\0",
        &two[..two.len() - 1],
        &two[..two.len() - 2],
        &[&two[..], b"x"].concat(),
        &lying,
        &info("di\0sk", &[]),
    ];
    for payload in cases {
        for code in [OptionCode::INFO, OptionCode::GO] {
            assert_eq!(server.refused(code, payload).0, INVALID, "{payload:?}");
        }
    }
    let long = "x".repeat(4097);
    assert_eq!(server.refused(OptionCode::GO, &info(&long, &[])).0, INVALID);
    assert_eq!(server.refused(OptionCode::GO, &named(b"\xff\xfe", &[0, 0])).0, INVALID);
    assert_eq!(kinds(&server.ask(OptionCode::GO, &info("other", &[]))), [INFO, INFO, ACK]);
}

#[test]
fn an_unknown_export_is_named_safely_in_the_sentence() {
    let mut server = Server::fixed();
    let (kind, text) = server.refused(OptionCode::GO, &info("no\x1b[31m\nbody", &[]));
    assert_eq!(kind, OptionReply::ERR_UNKNOWN);
    assert!(text.contains("no\\u{1b}[31m\\nbody") && !text.contains('\n'), "{text}");
    let (_, text) = server.refused(OptionCode::INFO, &info(&"é".repeat(200), &[]));
    assert!(text.ends_with(&format!("{}\"...", "é".repeat(80))), "{text}");
    let (_, text) = server.refused(OptionCode::INFO, &info("", &[]));
    assert!(text.contains("default"), "{text}");
}

#[test]
fn list_gives_names_and_descriptions() {
    let mut server = Server::fixed();
    let replies = server.ask(OptionCode::LIST, &[]);
    assert_eq!(kinds(&replies), [OptionReply::SERVER, OptionReply::SERVER, ACK]);
    assert_eq!(replies[0].2, b"\0\0\0\x04diska disk");
    assert_eq!(replies[1].2, b"\0\0\0\x05other");
}

#[test]
fn options_that_take_no_data_drop_it_and_stay_framed() {
    let mut server = Server::fixed();
    let codes =
        [OptionCode::LIST, OptionCode::STARTTLS, OptionCode::STRUCTURED_REPLY, OptionCode::EXTENDED_HEADERS];
    for code in codes {
        assert_eq!(server.refused(code, &[0xa5; 300]).0, INVALID);
    }
    assert_eq!(server.refused(OptionCode::STARTTLS, &[]).0, OptionReply::ERR_POLICY);
    assert_eq!(kinds(&server.ask(OptionCode::EXTENDED_HEADERS, &[])), [ACK]);
}

#[test]
fn an_unknown_option_is_named_and_its_payload_dropped() {
    let mut server = Server::fixed();
    let (kind, text) = server.refused(OptionCode(0xbeef), &vec![1; 100_000]);
    assert_eq!(kind, OptionReply::ERR_UNSUP);
    assert!(text.contains("0xbeef"), "{text}");
    assert!(server.refused(OptionCode::PEEK_EXPORT, &[]).1.contains("PEEK_EXPORT"));
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    for payload in [&[][..], &[1; 9000]] {
        let mut server = Server::fixed();
        assert_eq!(kinds(&server.ask(OptionCode::ABORT, payload)), [ACK]);
        assert!(server.closed);
    }
}

#[test]
fn structured_and_extended_each_once_and_extended_wins() {
    let mut server = Server::fixed();
    assert_eq!(kinds(&server.ask(OptionCode::STRUCTURED_REPLY, &[])), [ACK]);
    assert_eq!(server.refused(OptionCode::STRUCTURED_REPLY, &[]).0, INVALID);
    assert_eq!(kinds(&server.ask(OptionCode::EXTENDED_HEADERS, &[])), [ACK]);
    assert_eq!(server.refused(OptionCode::EXTENDED_HEADERS, &[]).0, INVALID);
    assert_eq!(server.refused(OptionCode::STRUCTURED_REPLY, &[]).0, OptionReply::ERR_EXT_HEADER_REQD);
    server.ask(OptionCode::GO, &info("disk", &[]));
    assert_eq!(server.session.unwrap().dialect, Dialect::Extended);
}

#[test]
fn too_long_is_dropped_with_an_answer_and_far_too_long_closes() {
    let mut server = Server::fixed();
    let long = meta("disk", &[&[b'x'; 70_000]]);
    assert_eq!(server.refused(OptionCode::GO, &long).0, OptionReply::ERR_TOO_BIG);
    let mut header = option(OptionCode(77), &[]);
    header[12..16].copy_from_slice(&(32u32 << 20 | 1).to_be_bytes());
    assert!(matches!(server.feed(&header), Err(Violation::OptionLength { .. })));
}

#[test]
fn endless_options_close_with_a_last_word() {
    let config = HandshakeConfig { options_max: 3, ..HandshakeConfig::default() };
    let mut server = Server::start(config, 3);
    for _ in 0..3 {
        server.refused(OptionCode(50), &[]);
    }
    assert_eq!(server.feed(&option(OptionCode(50), &[])), Err(Violation::Options(3)));
    assert_eq!(kinds(&replies(&server.out)), [OptionReply::ERR_TOO_BIG]);
}

#[test]
fn a_draining_server_answers_shutdown_but_lets_go() {
    let mut server = Server::fixed();
    server.handshake.drain();
    assert_eq!(server.refused(OptionCode::LIST, &[]).0, OptionReply::ERR_SHUTDOWN);
    assert_eq!(server.refused(OptionCode::GO, &info("disk", &[])).0, OptionReply::ERR_SHUTDOWN);
    assert_eq!(kinds(&server.ask(OptionCode::ABORT, &[])), [ACK]);
    let mut server = Server::fixed();
    server.handshake.drain();
    server.feed(&option(OptionCode::EXPORT_NAME, b"disk")).unwrap();
    assert!(server.closed && server.out.is_empty() && server.session.is_none());
}

mod meta_contexts;
mod tls;
