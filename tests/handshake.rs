//! Both handshakes face to face, cut at every byte; then anything at all in place of either.

#[path = "handshake/anything.rs"]
mod anything;
#[path = "handshake/pair.rs"]
mod pair;

use pair::{Outcome, Wire, meet};
use ringnbd::proto::{
    Dialect, DialerConfig, HandshakeConfig, Style, SurveyConfig, TlsMode, TransmissionFlags, Which,
};

fn contexts() -> Vec<String> {
    ["base:allocation", "x-none:such", "qemu:allocation-depth"].map(str::to_owned).to_vec()
}

/// Every way for the two to agree or part.
fn pairs() -> Vec<(HandshakeConfig, DialerConfig)> {
    let fixed = HandshakeConfig::default();
    let oldstyle = HandshakeConfig { style: Style::Oldstyle, ..HandshakeConfig::default() };
    let mut pairs = vec![(oldstyle, DialerConfig::default())];
    for export in ["disk", "", "nobody"] {
        for (extended, structured) in [(true, true), (false, true), (false, false)] {
            let contexts = contexts();
            let export = export.to_owned();
            pairs.push((
                fixed.clone(),
                DialerConfig { export, extended, structured, contexts, tls: TlsMode::Disable },
            ));
        }
    }
    pairs
}

fn agrees(outcome: &Outcome) {
    assert_eq!(outcome.violation, None);
    let (Some(Ok(link)), Some(session)) = (&outcome.link, &outcome.session) else {
        assert!(matches!(outcome.link, Some(Err(_))) && outcome.session.is_none(), "{outcome:?}");
        return;
    };
    assert_eq!((link.dialect, link.size, link.flags), (session.dialect, session.size, session.flags));
    let ids = |ids: &mut dyn Iterator<Item = u32>| ids.collect::<Vec<_>>();
    let ours = ids(&mut session.contexts.iter().map(|context| context.id));
    assert_eq!(ours, ids(&mut link.contexts.iter().map(|(id, _)| *id)));
}

#[test]
fn a_cut_anywhere_changes_nothing() {
    for (server, client) in pairs() {
        let meet = |wires| meet(server.clone(), client.clone(), wires);
        let whole = meet([Wire::WHOLE; 2]);
        agrees(&whole);
        assert_eq!(meet([Wire::BYTES; 2]), whole, "{client:?}");
        for cut in 0..whole.sent[0] {
            assert_eq!(meet([Wire::cut(cut), Wire::WHOLE]), whole, "{client:?} server's byte {cut}");
        }
        for cut in 0..whole.sent[1] {
            assert_eq!(meet([Wire::WHOLE, Wire::cut(cut)]), whole, "{client:?} client's byte {cut}");
        }
    }
}

/// A damaged stream may end in a refusal, a violation, or two that wait for each other; never in
/// a panic, a flood, or a session that the client does not have.
#[test]
fn a_damaged_byte_anywhere_ends_in_order() {
    for (server, client) in pairs() {
        let whole = meet(server.clone(), client.clone(), [Wire::WHOLE; 2]);
        for (end, bits) in [(0, 1), (0, 0x80), (0, 0xff), (1, 1), (1, 0x80), (1, 0xff)] {
            for at in 0..whole.sent[end] {
                let mut wires = [Wire::WHOLE; 2];
                wires[end] = Wire::flip(at, bits);
                let outcome = meet(server.clone(), client.clone(), wires);
                assert!(outcome.sent.iter().all(|sent| *sent < 2048), "{client:?} {wires:?} {outcome:?}");
                if matches!(outcome.link, Some(Ok(_))) {
                    assert!(outcome.session.is_some(), "{client:?} {wires:?} {outcome:?}");
                }
            }
        }
    }
}

#[test]
fn the_best_dialect_both_know_is_agreed_on() {
    let dialects = pairs().into_iter().map(|(server, client)| {
        let outcome = meet(server, client, [Wire::WHOLE; 2]);
        let link = outcome.link.and_then(Result::ok);
        link.map(|link| (link.dialect, link.contexts.len()))
    });
    let per_export =
        [Some((Dialect::Extended, 2)), Some((Dialect::Structured, 2)), Some((Dialect::Simple, 0))];
    let mut expected = vec![Some((Dialect::Simple, 0))];
    expected.extend(per_export.iter().chain(&per_export));
    expected.extend([None; 3]);
    assert_eq!(dialects.collect::<Vec<_>>(), expected);
}

#[test]
fn extended_headers_with_contexts_offer_filtered_block_status() {
    let client = DialerConfig { export: "disk".to_owned(), contexts: contexts(), ..DialerConfig::default() };
    let outcome = meet(HandshakeConfig::default(), client, [Wire::WHOLE; 2]);
    let link = outcome.link.unwrap().unwrap();
    assert!(link.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD | TransmissionFlags::SEND_DF));
    assert_eq!(link.description.as_deref(), Some("the disk of the tests"));
    assert_eq!(link.block.unwrap().minimum, 512);
    assert!(outcome.session.unwrap().alignment_agreed);
}

/// What a client that only looks around finds out is the same however its answers arrive.
#[test]
fn a_survey_is_the_same_wherever_it_is_cut() {
    let fixed = HandshakeConfig::default();
    let oldstyle = HandshakeConfig { style: Style::Oldstyle, ..HandshakeConfig::default() };
    let one = |name: &str| SurveyConfig { which: Which::One(name.to_owned()), ..SurveyConfig::default() };
    for (server, client) in [
        (fixed.clone(), SurveyConfig::default()),
        (fixed.clone(), SurveyConfig { extended: false, ..SurveyConfig::default() }),
        (fixed.clone(), SurveyConfig { extended: false, structured: false, ..SurveyConfig::default() }),
        (fixed.clone(), one("disk")),
        (fixed, one("nobody")),
        (oldstyle, SurveyConfig::default()),
    ] {
        let survey = |cut| pair::survey(server.clone(), client.clone(), cut);
        let (found, length) = survey(usize::MAX);
        match (&client.which, server.style) {
            (_, Style::Oldstyle) => assert_eq!((found.len(), found[0].dialect), (1, None)),
            (Which::All, _) => {
                assert_eq!(found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["disk", ""]);
                assert_eq!(found[0].description.as_deref(), Some("the disk of the tests"));
                let contexts: &[&str] = match found[0].dialect {
                    Some(Dialect::Simple) => &[],
                    _ => &["base:allocation", "qemu:allocation-depth"],
                };
                assert_eq!(found[0].contexts, contexts);
                assert!(found.iter().all(|found| found.export.is_some_and(|(size, _)| size == 1 << 30)));
            }
            (Which::One(name), _) => {
                assert_eq!((found.len(), found[0].export.is_some()), (1, name == "disk"))
            }
        }
        for cut in 0..length {
            assert_eq!(survey(cut).0, found, "{client:?} server's byte {cut}");
        }
    }
}
