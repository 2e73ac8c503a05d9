//! Servers that are old, terse or wrong, byte by byte.

use super::*;
use crate::proto::consts::OPTION_REPLY_MAGIC;

fn config(export: &str) -> DialerConfig {
    DialerConfig { export: export.to_owned(), ..DialerConfig::default() }
}

fn greeting(flags: u16) -> Vec<u8> {
    [&INIT_MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn reply(option: OptionCode, kind: OptionReply, payload: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.0.to_be_bytes());
    bytes.extend(kind.0.to_be_bytes());
    replies::push_counted(&mut bytes, payload);
    bytes
}

fn ack(option: OptionCode) -> Vec<u8> {
    reply(option, OptionReply::ACK, &[])
}

fn unsup(option: OptionCode) -> Vec<u8> {
    reply(option, OptionReply::ERR_UNSUP, b"what?")
}

fn info_export() -> Vec<u8> {
    reply(OptionCode::GO, OptionReply::INFO, &[0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 1])
}

/// Feeds a script one byte at a time; the dialer keeps no byte that it did not consume.
fn dial(config: DialerConfig, script: &[&[u8]]) -> (Result<Link, DialError>, Vec<u8>) {
    let mut dialer = Dialer::new(config);
    let mut out = Vec::new();
    let mut held = Vec::new();
    for byte in script.concat() {
        held.push(byte);
        match dialer.advance(&held, &mut out) {
            Ok((consumed, Dialed::Receive)) => drop(held.drain(..consumed)),
            Ok((_, Dialed::Linked(link))) => return (Ok(*link), out),
            Ok((_, other)) => panic!("{other:?}"),
            Err(error) => return (Err(error), out),
        }
    }
    panic!("the script ended while waiting for {:?}", dialer.waits_for());
}

/// The options that a client sent after its flags.
fn asked(out: &[u8]) -> Vec<OptionCode> {
    let mut cursor = Cursor::new(out);
    cursor.u32().unwrap();
    let mut options = Vec::new();
    while !cursor.is_empty() {
        assert_eq!(cursor.u64(), Some(OPTION_MAGIC));
        options.push(OptionCode(cursor.u32().unwrap()));
        cursor.counted().unwrap();
    }
    options
}

fn violation(config: DialerConfig, script: &[&[u8]]) {
    match dial(config, script).0 {
        Err(DialError::Violation(_)) => {}
        other => panic!("{other:?}"),
    }
}

fn plain(export: &str) -> DialerConfig {
    DialerConfig { extended: false, structured: false, ..config(export) }
}

#[test]
fn a_modern_server_is_asked_in_order() {
    let config = DialerConfig { contexts: vec!["base:allocation".to_owned()], ..config("disk") };
    let set = OptionCode::SET_META_CONTEXT;
    let context = [&[0, 0, 0, 9][..], b"base:allocation"].concat();
    let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0];
    let script = [
        greeting(3),
        ack(OptionCode::EXTENDED_HEADERS),
        reply(set, OptionReply::META_CONTEXT, &context),
        ack(set),
        reply(OptionCode::GO, OptionReply::INFO, b"\0\x01disk"),
        reply(OptionCode::GO, OptionReply::INFO, b"\0\x02a disk"),
        reply(OptionCode::GO, OptionReply::INFO, &sizes),
        reply(OptionCode::GO, OptionReply::INFO, b"\xff\xffwho knows"),
        info_export(),
        ack(OptionCode::GO),
    ];
    let (link, out) = dial(config, &script.each_ref().map(Vec::as_slice));
    let link = link.unwrap();
    assert_eq!(asked(&out), [OptionCode::EXTENDED_HEADERS, set, OptionCode::GO]);
    assert_eq!((link.dialect, link.size), (Dialect::Extended, 4096));
    assert_eq!(link.contexts, [(9, "base:allocation".to_owned())]);
    assert_eq!(link.block, Some(BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 25 }));
    assert_eq!((link.name.as_deref(), link.description.as_deref()), (Some("disk"), Some("a disk")));
}

#[test]
fn a_server_that_knows_nothing_is_asked_for_its_list_and_then_by_name() {
    let script = [
        greeting(3),
        unsup(OptionCode::EXTENDED_HEADERS),
        unsup(OptionCode::STRUCTURED_REPLY),
        unsup(OptionCode::GO),
        reply(OptionCode::LIST, OptionReply::SERVER, b"\0\0\0\x05other"),
        reply(OptionCode::LIST, OptionReply::SERVER, b"\0\0\0\x04diska disk"),
        ack(OptionCode::LIST),
        vec![0, 0, 0, 0, 0, 0, 16, 0, 0, 3],
    ];
    let (link, out) = dial(config("disk"), &script.each_ref().map(Vec::as_slice));
    let link = link.unwrap();
    assert_eq!((link.dialect, link.size, link.flags), (Dialect::Simple, 4096, TransmissionFlags(3)));
    assert_eq!(asked(&out).last(), Some(&OptionCode::EXPORT_NAME));
}

#[test]
fn an_empty_or_forbidden_list_proves_nothing_but_a_full_one_does() {
    let go = unsup(OptionCode::GO);
    let answer = [0, 0, 0, 0, 0, 0, 16, 0, 0, 3];
    let empty = ack(OptionCode::LIST);
    assert!(dial(plain("disk"), &[&greeting(3), &go, &empty, &answer]).0.is_ok());
    let forbidden = reply(OptionCode::LIST, OptionReply::ERR_POLICY, b"");
    assert!(dial(plain("disk"), &[&greeting(3), &go, &forbidden, &answer]).0.is_ok());
    let other = reply(OptionCode::LIST, OptionReply::SERVER, b"\0\0\0\x05other");
    let (link, out) = dial(plain("disk"), &[&greeting(3), &go, &other, &empty]);
    assert_eq!(link, Err(DialError::NotListed("disk".to_owned())));
    assert_eq!(asked(&out).last(), Some(&OptionCode::ABORT));
}

#[test]
fn a_server_without_fixed_newstyle_is_asked_by_name_at_once() {
    let answer = [&[0, 0, 0, 0, 0, 0, 16, 0, 0, 3][..], &[0; 124]].concat();
    let (link, out) = dial(config("disk"), &[&greeting(0), &answer]);
    assert_eq!(link.unwrap().size, 4096);
    assert_eq!((&out[..4], asked(&out)), (&[0; 4][..], vec![OptionCode::EXPORT_NAME]));
}

#[test]
fn an_oldstyle_server_has_one_nameless_export() {
    let hello = |flags: u32| {
        let magics = [INIT_MAGIC.to_be_bytes(), OLDSTYLE_MAGIC.to_be_bytes()].concat();
        [&magics[..], &4096u64.to_be_bytes(), &flags.to_be_bytes(), &[0; 124]].concat()
    };
    let (link, out) = dial(config(""), &[&hello(5)]);
    assert_eq!(link.unwrap().flags, TransmissionFlags(5));
    assert!(out.is_empty());
    assert_eq!(dial(config("disk"), &[&hello(5)]).0, Err(DialError::Nameless("disk".to_owned())));
    violation(config(""), &[&hello(0x1_0000)]);
}

#[test]
fn a_refusal_keeps_the_servers_words_and_says_goodbye() {
    let refusal = reply(OptionCode::GO, OptionReply::ERR_UNKNOWN, b"no such disk\x07");
    let (link, out) = dial(plain("disk"), &[&greeting(3), &refusal]);
    let text = link.unwrap_err().to_string();
    assert!(text.contains("no such export") && text.contains("no such disk\\u{7}"), "{text}");
    assert_eq!(asked(&out), [OptionCode::GO, OptionCode::ABORT]);
    for reply_kind in [OptionReply::ERR_TLS_REQD, OptionReply::ERR_SHUTDOWN] {
        let refusal = reply(OptionCode::EXTENDED_HEADERS, reply_kind, b"");
        let (link, _) = dial(config("disk"), &[&greeting(3), &refusal]);
        assert!(matches!(link, Err(DialError::Refused { .. })), "{link:?}");
    }
}

#[test]
fn a_sentence_too_long_to_read_is_skipped() {
    let refusal = reply(OptionCode::GO, OptionReply::ERR_POLICY, &vec![b'x'; 100_000]);
    let mut dialer = Dialer::new(plain("disk"));
    let mut out = Vec::new();
    let script = [greeting(3), refusal].concat();
    let mut at = 0;
    let refused = loop {
        let end = script.len().min(at + 4096);
        match dialer.advance(&script[at..end], &mut out) {
            Ok((consumed, _)) => at += consumed,
            Err(error) => break error,
        }
    };
    let reply = OptionReply::ERR_POLICY;
    assert_eq!(refused, DialError::Refused { option: OptionCode::GO, reply, text: String::new() });
}

#[test]
fn contexts_before_an_error_do_not_count() {
    let set = OptionCode::SET_META_CONTEXT;
    let contexts = vec!["base:allocation".to_owned()];
    let config = DialerConfig { extended: false, contexts, ..config("disk") };
    let context = [&[0, 0, 0, 9][..], b"base:allocation"].concat();
    let script = [
        greeting(3),
        ack(OptionCode::STRUCTURED_REPLY),
        reply(set, OptionReply::META_CONTEXT, &context),
        reply(set, OptionReply::ERR_TOO_BIG, b""),
        info_export(),
        ack(OptionCode::GO),
    ];
    let (link, _) = dial(config, &script.each_ref().map(Vec::as_slice));
    assert!(link.unwrap().contexts.is_empty());
}

#[test]
fn replies_that_make_no_sense_are_violations() {
    let go = OptionCode::GO;
    let info = |payload: &[u8]| reply(go, OptionReply::INFO, payload);
    let sizes = |minimum: u32, preferred: u32, maximum: u32| {
        info(&[&[0, 3][..], &[minimum, preferred, maximum].map(u32::to_be_bytes).concat()].concat())
    };
    let wrong_magic = [&[0xee][..], &ack(go)[1..]].concat();
    let cases = [
        wrong_magic,
        ack(OptionCode::LIST),
        ack(go),
        reply(go, OptionReply::ACK, b"x"),
        reply(go, OptionReply::SERVER, b"\0\0\0\0"),
        reply(go, OptionReply(77), b""),
        info(b""),
        info(b"\0"),
        info(&[0; 11]),
        info(&[0; 13]),
        info(b"\0\x03"),
        info(b"\0\x01\xff\xfe"),
        sizes(0, 4096, 4096),
        sizes(3, 4096, 4096),
        sizes(1 << 17, 1 << 17, 1 << 20),
        sizes(512, 1000, 4096),
        sizes(512, 256, 4096),
        sizes(512, 4096, 256),
        reply(go, OptionReply::INFO, &vec![0; 70_000]),
        [&reply(go, OptionReply::ERR_POLICY, b"")[..16], &u32::MAX.to_be_bytes()].concat(),
    ];
    for case in cases {
        violation(plain("disk"), &[&greeting(3), &case]);
    }
    violation(
        plain("disk"),
        &[&greeting(3), &unsup(go), &reply(OptionCode::LIST, OptionReply::SERVER, b"\0\0\0")],
    );
    violation(
        plain("disk"),
        &[&greeting(3), &unsup(go), &reply(OptionCode::LIST, OptionReply::SERVER, b"\0\0\0\x09short")],
    );
    violation(plain(""), &[&[0; 8]]);
    violation(plain(""), &[&[&INIT_MAGIC.to_be_bytes()[..], &[1; 8]].concat()]);
}

#[test]
fn contexts_that_were_not_asked_for_are_violations() {
    let set = OptionCode::SET_META_CONTEXT;
    let contexts = vec!["base:allocation".to_owned(), "x:y".to_owned()];
    let config = DialerConfig { extended: false, contexts, ..config("disk") };
    let context = |id: u8, name: &str| {
        reply(set, OptionReply::META_CONTEXT, &[&[0, 0, 0, id][..], name.as_bytes()].concat())
    };
    let first = context(1, "base:allocation");
    let cases = [
        context(1, ""),
        context(1, "base:other"),
        reply(set, OptionReply::META_CONTEXT, &[0, 0]),
        [first.clone(), first.clone()].concat(),
        [first, context(1, "x:y")].concat(),
    ];
    for case in cases {
        violation(config.clone(), &[&greeting(3), &ack(OptionCode::STRUCTURED_REPLY), &case]);
    }
}

#[test]
fn extended_headers_leave_no_way_back_to_export_name() {
    let script = [greeting(3), ack(OptionCode::EXTENDED_HEADERS), unsup(OptionCode::GO)];
    let (link, _) = dial(config("disk"), &script.each_ref().map(Vec::as_slice));
    assert!(matches!(link, Err(DialError::Refused { .. })), "{link:?}");
}

#[test]
fn tls_comes_first_and_nothing_from_before_it_counts() {
    let wants = || DialerConfig { tls: TlsMode::Require, ..plain("disk") };
    let mut dialer = Dialer::new(wants());
    let mut out = Vec::new();
    let before = [greeting(3), ack(OptionCode::STARTTLS)].concat();
    assert_eq!(dialer.advance(&before, &mut out), Ok((before.len(), Dialed::Secure)));
    assert_eq!(asked(&out), [OptionCode::STARTTLS]);
    dialer.secured(&mut out);
    assert_eq!(asked(&out), [OptionCode::STARTTLS, OptionCode::GO]);
    let after = [info_export(), ack(OptionCode::GO)].concat();
    assert!(matches!(dialer.advance(&after, &mut out), Ok((_, Dialed::Linked(_)))));

    let mut dialer = Dialer::new(wants());
    let smuggled = [before, after].concat();
    assert!(matches!(dialer.advance(&smuggled, &mut out), Err(DialError::Violation(_))));
}

#[test]
fn a_server_without_tls_is_left_when_tls_is_wanted() {
    let wants = || DialerConfig { tls: TlsMode::Require, ..plain("") };
    let refused = reply(OptionCode::STARTTLS, OptionReply::ERR_POLICY, b"not here");
    let (link, out) = dial(wants(), &[&greeting(3), &refused]);
    let said = link.unwrap_err().to_string();
    assert!(said.contains("policy") && said.contains("not here"), "{said}");
    assert_eq!(asked(&out), [OptionCode::STARTTLS, OptionCode::ABORT]);
    let (link, out) = dial(wants(), &[&greeting(0)]);
    assert_eq!((link, out.len()), (Err(DialError::NoTls("newstyle that is not fixed")), 0));
}

#[test]
fn a_server_without_tls_is_good_enough_where_tls_is_only_allowed() {
    let allows = || DialerConfig { tls: TlsMode::Allow, ..plain("") };
    for kind in [OptionReply::ERR_POLICY, OptionReply::ERR_UNSUP] {
        let refused = reply(OptionCode::STARTTLS, kind, b"not here");
        let rest = [info_export(), ack(OptionCode::GO)].concat();
        let (link, out) = dial(allows(), &[&greeting(3), &refused, &rest]);
        assert!(!link.unwrap().tls);
        assert_eq!(asked(&out), [OptionCode::STARTTLS, OptionCode::GO]);
    }
    let mut dialer = Dialer::new(allows());
    let begun = [greeting(3), ack(OptionCode::STARTTLS)].concat();
    assert!(
        matches!(dialer.advance(&begun, &mut Vec::new()), Ok((_, Dialed::Secure))),
        "and taken where it is"
    );
}
