//! LIST_META_CONTEXT and SET_META_CONTEXT, and what GO makes of them.

use super::*;

const CONTEXT: OptionReply = OptionReply::META_CONTEXT;

fn structured() -> Server {
    let mut server = Server::fixed();
    server.ask(OptionCode::STRUCTURED_REPLY, &[]);
    server
}

fn list(queries: &[&[u8]]) -> Vec<(u32, String)> {
    names(&structured().ask(OptionCode::LIST_META_CONTEXT, &meta("disk", queries)))
}

fn names(replies: &[Reply]) -> Vec<(u32, String)> {
    let (last, contexts) = replies.split_last().unwrap();
    assert_eq!(last.1, ACK);
    let context = |(_, kind, bytes): &Reply| {
        assert_eq!(*kind, CONTEXT);
        let mut cursor = Cursor::new(bytes);
        (cursor.u32().unwrap(), String::from_utf8(cursor.rest().to_vec()).unwrap())
    };
    contexts.iter().map(context).collect()
}

fn go(server: &mut Server, name: &str) -> Session {
    server.ask(OptionCode::GO, &info(name, &[]));
    server.session.take().unwrap()
}

#[test]
fn need_structured_or_extended_first() {
    for code in [OptionCode::LIST_META_CONTEXT, OptionCode::SET_META_CONTEXT] {
        let (kind, text) = Server::fixed().refused(code, &meta("disk", &[]));
        assert_eq!(kind, INVALID);
        assert!(text.contains("structured"), "{text}");
    }
    let mut server = Server::fixed();
    server.ask(OptionCode::EXTENDED_HEADERS, &[]);
    assert_eq!(server.ask(OptionCode::LIST_META_CONTEXT, &meta("disk", &[])).len(), 3);
}

#[test]
fn list_knows_wildcards_and_ignores_what_it_does_not_know() {
    let base = (0, "base:allocation".to_owned());
    let depth = (0, "qemu:allocation-depth".to_owned());
    assert_eq!(list(&[]), [base.clone(), depth.clone()]);
    assert_eq!(list(&[b"base:"]), std::slice::from_ref(&base));
    assert_eq!(list(&[b"qemu:", b"base:allocation"]), [base.clone(), depth]);
    assert_eq!(list(&[b"base:allocation", b"base:", b"base:allocation"]), [base]);
    let long = [b"base:".as_slice(), &[b'a'; 5000]].concat();
    let strange: [&[u8]; 6] = [b"x-none:", b"base:other", b"base", b"", b"\xff\xff:", &long];
    assert_eq!(list(&strange), []);
}

#[test]
fn set_takes_full_names_only_each_once_with_ids_of_their_own() {
    let mut server = structured();
    let queries: [&[u8]; 4] = [b"qemu:allocation-depth", b"base:allocation", b"base:allocation", b"base:"];
    let set = server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &queries));
    assert_eq!(names(&set), [(0, "base:allocation".to_owned()), (1, "qemu:allocation-depth".to_owned())]);
    let session = go(&mut server, "disk");
    let selected: Vec<_> = session.contexts.iter().map(|context| (context.id, context.number)).collect();
    assert_eq!(selected, [(0, 0), (1, 1)]);
    assert!(!session.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    let none = structured().ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[]));
    assert_eq!(kinds(&none), [ACK]);
}

#[test]
fn a_selection_for_another_export_is_void() {
    let mut server = structured();
    server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"]));
    server.ask(OptionCode::INFO, &info("other", &[]));
    assert!(go(&mut server, "other").contexts.is_empty());
    let mut server = structured();
    server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"]));
    server.ask(OptionCode::INFO, &info("other", &[]));
    assert_eq!(go(&mut server, "disk").contexts.len(), 1);
}

#[test]
fn a_set_that_fails_clears_the_selection_and_a_list_does_not() {
    let failing =
        [meta("nobody", &[b"base:allocation"]), meta("disk", &[b"base\0"]), b"\0".to_vec(), vec![0; 70_000]];
    for payload in failing {
        let mut server = structured();
        server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"]));
        server.refused(OptionCode::SET_META_CONTEXT, &payload);
        assert!(go(&mut server, "disk").contexts.is_empty());
    }
    let mut server = structured();
    server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"]));
    server.ask(OptionCode::LIST_META_CONTEXT, &meta("other", &[]));
    assert_eq!(go(&mut server, "disk").contexts.len(), 1);
}

#[test]
fn malformed_requests_are_invalid_and_unknown_exports_unknown() {
    let mut server = structured();
    let good = meta("disk", &[b"base:allocation"]);
    let trailing = [&good[..], b"x"].concat();
    for cut in 0..good.len() {
        assert_eq!(server.refused(OptionCode::LIST_META_CONTEXT, &good[..cut]).0, INVALID, "{cut}");
    }
    assert_eq!(server.refused(OptionCode::LIST_META_CONTEXT, &trailing).0, INVALID);
    let unknown = server.refused(OptionCode::LIST_META_CONTEXT, &meta("nobody", &[]));
    assert_eq!(unknown.0, OptionReply::ERR_UNKNOWN);
}

#[test]
fn the_payload_flag_needs_extended_headers_and_a_context() {
    let mut server = Server::fixed();
    server.ask(OptionCode::EXTENDED_HEADERS, &[]);
    assert!(!go(&mut server, "disk").flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    let mut server = Server::fixed();
    server.ask(OptionCode::EXTENDED_HEADERS, &[]);
    server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"]));
    assert!(go(&mut server, "disk").flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
}

#[test]
fn contexts_survive_whatever_order_they_are_negotiated_in() {
    let mut server = structured();
    server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"]));
    server.ask(OptionCode::EXTENDED_HEADERS, &[]);
    assert_eq!(go(&mut server, "disk").contexts.len(), 1);
}
