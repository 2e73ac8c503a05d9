use super::*;
use crate::proto::consts::{INIT_MAGIC, OLDSTYLE_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC};
use crate::proto::dialer::Dialed;

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

fn greeting() -> Vec<u8> {
    [&INIT_MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 3]].concat()
}

fn entry(name: &str, description: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    replies::push_counted(&mut payload, name.as_bytes());
    payload.extend(description.as_bytes());
    reply(OptionCode::LIST, OptionReply::SERVER, &payload)
}

fn context(name: &str) -> Vec<u8> {
    let payload = [&[0; 4][..], name.as_bytes()].concat();
    reply(OptionCode::LIST_META_CONTEXT, OptionReply::META_CONTEXT, &payload)
}

fn info(size: u64) -> Vec<u8> {
    let export = [&[0, 0][..], &size.to_be_bytes(), &[0, 3]].concat();
    [reply(OptionCode::INFO, OptionReply::INFO, &export), ack(OptionCode::INFO)].concat()
}

/// Byte by byte; what was found, and each option asked with its payload.
fn survey(config: SurveyConfig, script: &[Vec<u8>]) -> (Result<Vec<Found>, DialError>, Vec<u8>) {
    let mut dialer = Dialer::survey(config);
    let (mut held, mut out) = (Vec::new(), Vec::new());
    for byte in script.concat() {
        held.push(byte);
        match dialer.advance(&held, &mut out) {
            Ok((consumed, Dialed::Receive)) => drop(held.drain(..consumed)),
            Ok((_, Dialed::Surveyed(found))) => return (Ok(found), out),
            Ok((_, other)) => panic!("{other:?}"),
            Err(error) => return (Err(error), out),
        }
    }
    panic!("the script ended while waiting for {:?}", dialer.waits_for());
}

fn asked(out: &[u8]) -> Vec<OptionCode> {
    let mut cursor = Cursor::new(&out[4..]);
    let mut options = Vec::new();
    while cursor.u64().is_some() {
        options.push(OptionCode(cursor.u32().unwrap()));
        cursor.counted().unwrap();
    }
    options
}

fn compact() -> SurveyConfig {
    SurveyConfig { extended: false, ..SurveyConfig::default() }
}

#[test]
fn every_export_is_asked_for_its_facts_and_contexts() {
    let (list, meta) = (OptionCode::LIST, OptionCode::LIST_META_CONTEXT);
    let script = [
        greeting(),
        ack(OptionCode::STRUCTURED_REPLY),
        entry("a", "the first"),
        entry("b", ""),
        ack(list),
        info(4096),
        context("base:allocation"),
        context("qemu:dirty-bitmap:x"),
        ack(meta),
        info(8192),
        context("base:allocation"),
        ack(meta),
        context("qemu:allocation-depth"),
        ack(meta),
    ];
    let (found, out) = survey(compact(), &script);
    let found = found.unwrap();
    let facts: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.export.unwrap().0)).collect();
    assert_eq!(facts, [("a", 4096), ("b", 8192)]);
    assert_eq!(found[0].description.as_deref(), Some("the first"));
    assert_eq!(found[0].contexts, ["base:allocation", "qemu:dirty-bitmap:x"]);
    // Only where base: came without qemu: is the second question asked.
    assert_eq!(found[1].contexts, ["base:allocation", "qemu:allocation-depth"]);
    let (sr, info, abort) = (OptionCode::STRUCTURED_REPLY, OptionCode::INFO, OptionCode::ABORT);
    assert_eq!(asked(&out), [sr, list, info, meta, info, meta, meta, abort]);
}

#[test]
fn a_server_without_info_still_has_its_list() {
    let script = [
        greeting(),
        reply(OptionCode::STRUCTURED_REPLY, OptionReply::ERR_UNSUP, b""),
        entry("a", ""),
        entry("b", ""),
        ack(OptionCode::LIST),
        reply(OptionCode::INFO, OptionReply::ERR_UNSUP, b""),
    ];
    let (found, out) = survey(compact(), &script);
    assert_eq!(found.unwrap().iter().map(|found| found.export).collect::<Vec<_>>(), [None, None]);
    assert_eq!(asked(&out).iter().filter(|option| **option == OptionCode::INFO).count(), 1);
}

#[test]
fn an_export_that_is_refused_does_not_hide_the_next() {
    let script = [
        greeting(),
        reply(OptionCode::STRUCTURED_REPLY, OptionReply::ERR_UNSUP, b""),
        entry("a", ""),
        entry("b", ""),
        ack(OptionCode::LIST),
        reply(OptionCode::INFO, OptionReply::ERR_POLICY, b"not for you"),
        info(8192),
    ];
    let found = survey(compact(), &script).0.unwrap();
    assert_eq!(found[0].refused, Some((OptionReply::ERR_POLICY, "not for you".to_owned())));
    assert_eq!(found[1].export, Some((8192, TransmissionFlags(3))));
}

#[test]
fn oldstyle_has_one_export_without_a_name_and_is_left_politely() {
    let magics = [INIT_MAGIC.to_be_bytes(), OLDSTYLE_MAGIC.to_be_bytes()].concat();
    let hello = [&magics[..], &4096u64.to_be_bytes(), &[0, 0, 0, 5], &[0; 124]].concat();
    let (found, out) = survey(SurveyConfig::default(), std::slice::from_ref(&hello));
    let found = found.unwrap();
    assert_eq!((found.len(), found[0].export), (1, Some((4096, TransmissionFlags(5)))));
    assert_eq!((out.len(), out[7]), (28, 2), "a request to disconnect");
    let one = SurveyConfig { which: Which::One("x".to_owned()), ..SurveyConfig::default() };
    assert_eq!(survey(one, &[hello]).0, Err(DialError::Nameless("x".to_owned())));
    let unfixed = [&greeting()[..16], &[0, 0]].concat();
    assert_eq!(survey(SurveyConfig::default(), &[unfixed]).0, Err(DialError::NoList));
}

#[test]
fn a_list_without_end_is_left() {
    let name = "x".repeat(4096);
    let lines = std::iter::repeat_with(|| entry(&name, ""));
    let script: Vec<_> =
        [greeting(), ack(OptionCode::STRUCTURED_REPLY)].into_iter().chain(lines.take(8000)).collect();
    let mut dialer = Dialer::survey(compact());
    let mut out = Vec::new();
    let outcomes: Vec<_> = script.iter().map(|bytes| dialer.advance(bytes, &mut out)).collect();
    assert!(matches!(outcomes.iter().find(|outcome| outcome.is_err()), Some(Err(DialError::Violation(_)))));
}
