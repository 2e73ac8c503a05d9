//! LIST_META_CONTEXT and SET_META_CONTEXT.

use crate::client::{BLOCK_STATUS, EINVAL, Request};
use crate::haggle::{
    ACK, GO, Haggle, INVALID, LIST_META, SET_META, UNKNOWN, export_query, meta_context, meta_query,
};
use crate::server::Server;
use crate::wire::Message;

const BASE: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";

/// Names that a meta option answered, its ids, and whether it ended in ACK.
fn contexts(haggle: &mut Haggle, code: u32, queries: &[&str]) -> (Vec<String>, Vec<u32>) {
    let mut replies = haggle.ask(code, &meta_query("", queries));
    assert_eq!(replies.pop().map(|reply| reply.kind), Some(ACK), "{queries:?}");
    let (ids, names) = replies.iter().map(meta_context).unzip();
    (names, ids)
}

#[test]
fn queries_find_what_the_table_says() {
    let long = format!("base:{}", "a".repeat(5000));
    let table: &[(&[&str], &[&str], &[&str])] = &[
        // queries, LIST finds, SET selects
        (&[], &[BASE, DEPTH], &[]),
        (&[BASE], &[BASE], &[BASE]),
        (&[DEPTH], &[DEPTH], &[DEPTH]),
        (&[DEPTH, BASE], &[BASE, DEPTH], &[BASE, DEPTH]),
        (&["base:"], &[BASE], &[]),
        (&["qemu:"], &[DEPTH], &[]),
        (&["qemu:dirty-bitmap:"], &[], &[]),
        (&["qemu:dirty-bitmap:b0"], &[], &[]),
        (&["base:allocatio"], &[], &[]),
        (&["base:allocation "], &[], &[]),
        (&["BASE:ALLOCATION"], &[], &[]),
        (&["x-nosuch:thing"], &[], &[]),
        (&["base"], &[], &[]),
        (&[""], &[], &[]),
        (&[BASE, BASE], &[BASE], &[BASE]),
        (&["base:", BASE], &[BASE], &[BASE]),
        (&["x-nosuch:", "base:nosuch", BASE, "qemu:nosuch"], &[BASE], &[BASE]),
        (&[&long, BASE], &[BASE], &[BASE]),
    ];
    let server = Server::start(["memory:1M"]);
    for extended in [false, true] {
        for (queries, listed, selected) in table {
            let mut haggle = Haggle::new(&server.address);
            haggle = if extended { haggle.extended() } else { haggle.structured() };
            // Lacking a colon is the one case that may also be refused.
            if queries.iter().any(|query| !query.contains(':')) {
                for code in [LIST_META, SET_META] {
                    let reply = haggle.outcome(code, &meta_query("", queries));
                    assert!([ACK, INVALID].contains(&reply.kind), "{queries:?}");
                }
                continue;
            }
            let (names, ids) = contexts(&mut haggle, LIST_META, queries);
            assert_eq!(&names, listed, "LIST {queries:?}");
            assert!(ids.iter().all(|id| *id == 0), "ids in LIST are reserved");
            let (names, mut ids) = contexts(&mut haggle, SET_META, queries);
            assert_eq!(&names, selected, "SET {queries:?}");
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), names.len(), "ids are unique");
        }
    }
}

#[test]
fn malformed_meta_options_are_invalid_and_consumed() {
    let m = Message::default;
    let table = [
        ("empty", m()),
        ("half a name length", m().u16(0)),
        ("no count", m().u32(0)),
        ("half a count", m().u32(0).u16(0)),
        ("name longer than the option", m().u32(9).bytes("abc").u32(0)),
        ("name length 2^32-1", m().u32(u32::MAX).u32(0)),
        ("one query announced, none sent", m().u32(0).u32(1)),
        ("2^32-1 queries announced", m().u32(0).u32(u32::MAX).string("base:")),
        ("query longer than the option", m().u32(0).u32(1).u32(99).bytes("base:")),
        ("query length 2^32-1", m().u32(0).u32(1).u32(u32::MAX).bytes("base:")),
        ("second query cut off", m().u32(0).u32(2).string(BASE).u32(4).bytes("ba")),
        ("trailing bytes", m().u32(0).u32(1).string(BASE).bytes("x")),
        ("trailing bytes after no query", m().u32(0).u32(0).bytes("base:allocation")),
        ("NUL in a query", m().u32(0).u32(1).string("base:allo\0cation")),
        ("NUL in the name", m().string("a\0b").u32(0)),
    ];
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address).structured();
    for code in [LIST_META, SET_META] {
        for (symptom, payload) in &table {
            let reply = haggle.outcome(code, &payload.0);
            assert_eq!(reply.kind, INVALID, "{symptom}");
            assert!(!reply.payload.is_empty(), "{symptom}: no reason given");
        }
        haggle.is_framed("after malformed meta options");
    }
}

#[test]
fn meta_contexts_of_an_unknown_export_are_unknown() {
    let server = Server::start(["disk=memory:1M"]);
    let mut haggle = Haggle::new(&server.address).structured();
    for code in [LIST_META, SET_META] {
        haggle.refused(code, &meta_query("nosuch", &[BASE, DEPTH]), UNKNOWN, "unknown export");
        haggle.is_framed("the queries of an unknown export are skipped");
    }
}

fn status_errno(haggle: Haggle, export: &str) -> u32 {
    let mut client = haggle.go(export);
    let reply = client.call(&Request::new(BLOCK_STATUS, 0, 4096));
    client.is_alive("after BLOCK_STATUS");
    reply.errno
}

#[test]
fn the_last_set_meta_context_counts_even_if_it_failed() {
    let server = Server::start(["memory:1M", "other=memory:1M"]);
    let start = || Haggle::new(&server.address).structured().contexts("", &[BASE]);

    assert_eq!(status_errno(start(), ""), 0, "selected");
    assert_eq!(status_errno(start().contexts("", &[]), ""), EINVAL, "replaced by nothing");

    let mut failed = start();
    failed.refused(SET_META, &meta_query("nosuch", &[BASE]), UNKNOWN, "unknown export");
    assert_eq!(status_errno(failed, ""), EINVAL, "a failed SET clears what was set");

    let mut malformed = start();
    malformed.refused(SET_META, &[0; 3], INVALID, "malformed");
    assert_eq!(status_errno(malformed, ""), EINVAL, "a malformed SET clears what was set");

    let mut listed = start();
    listed.ask(LIST_META, &meta_query("", &[]));
    assert_eq!(status_errno(listed, ""), 0, "LIST changes nothing");

    assert_eq!(status_errno(start(), "other"), EINVAL, "selected for another export");

    let mut astray = start();
    astray.refused(GO, &export_query("nosuch", &[]), UNKNOWN, "unknown export");
    assert_eq!(status_errno(astray, ""), 0, "a GO that failed does not void the selection");
}
