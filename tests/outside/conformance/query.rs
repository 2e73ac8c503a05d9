//! LIST, INFO and GO: what is told about an export, in which order, and what is refused.

use crate::haggle::{
    ACK, GO, Haggle, INFO, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, INVALID, LIST,
    OptionReply, SERVER, UNKNOWN, export_query,
};
use crate::scratch::Scratch;
use crate::server::Server;
use crate::wire::{Message, u32_at, u64_at};

fn listing(reply: &OptionReply) -> (String, String) {
    assert_eq!(reply.kind, SERVER);
    let length = u32_at(&reply.payload, 0) as usize;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (text(&reply.payload[4..4 + length]), text(&reply.payload[4 + length..]))
}

#[test]
fn list_names_exports_in_order_and_hides_the_hidden() {
    let server = Server::start([
        "memory:1M,description=the default one",
        "b=memory:2M,description=second",
        "secret=memory:1M,hidden=on",
        "a=null:1G",
    ]);
    let mut haggle = Haggle::new(&server.address);
    let mut replies = haggle.ask(LIST, &[]);
    assert_eq!(replies.pop().map(|reply| reply.kind), Some(ACK));
    let listed: Vec<_> = replies.iter().map(listing).collect();
    let names: Vec<_> = listed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["", "b", "a"]);
    assert_eq!(listed[0].1, "the default one");
    assert_eq!(listed[1].1, "second");
    assert_eq!(haggle.go("secret").size, 1 << 20, "hidden, but served to who knows the name");
}

#[test]
fn malformed_info_and_go_are_invalid_and_consumed() {
    let m = Message::default;
    let table = [
        ("empty", m()),
        ("half a name length", m().u16(0)),
        ("a name length and no more", m().u32(0)),
        ("half a count", m().u32(0).bytes([0])),
        ("name longer than the option", m().u32(5).bytes("abc").u16(0)),
        ("name length 2^32-1", m().u32(u32::MAX).bytes("abc").u16(0)),
        ("name length that wraps with the rest", m().u32(u32::MAX - 5).bytes("abcd").u16(0)),
        ("name that eats the count", m().u32(2).u16(0)),
        ("one item announced, none sent", m().u32(0).u16(1)),
        ("items announced, fewer sent", m().u32(0).u16(3).u16(3)),
        ("65535 items announced", m().u32(0).u16(u16::MAX).u16(0)),
        ("odd remainder", m().u32(0).u16(1).u16(3).bytes([0])),
        ("half an item", m().u32(0).u16(1).bytes([0])),
        ("trailing bytes", m().u32(0).u16(0).u16(3)),
        ("more items than announced", m().u32(0).u16(1).u16(3).u16(0)),
        ("NUL inside the name", m().string("dis\0k").u16(0)),
        ("a name of 5000 bytes", m().string(&"n".repeat(5000)).u16(0)),
    ];
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    for code in [INFO, GO] {
        for (symptom, payload) in &table {
            let reply = haggle.outcome(code, &payload.0);
            // A name that no export can have may also be called unknown or too big.
            let other = symptom.starts_with("a name of") && reply.is_error();
            assert!(reply.kind == INVALID || other, "{symptom}: {:08x} {:?}", reply.kind, reply.text());
            assert!(!reply.payload.is_empty(), "{symptom}: no reason given");
        }
        haggle.is_framed("after malformed queries");
    }
}

#[test]
fn unknown_export_is_named_in_the_error() {
    let server = Server::start(["disk=memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    for code in [INFO, GO] {
        let text = haggle.refused(code, &export_query("dsik", &[]), UNKNOWN, "unknown export");
        assert!(text.contains("dsik"), "{text}");
        let text = haggle.refused(code, &export_query(&"long".repeat(1000), &[]), UNKNOWN, "long name");
        assert!(text.len() < 300, "a name of 4000 bytes is cut in the text: {} bytes", text.len());
        haggle.refused(code, &export_query("\u{1b}[2J\n", &[]), UNKNOWN, "control characters");
        let reply = haggle.outcome(code, &[0, 0, 0, 2, 0xff, 0xfe, 0, 0]);
        assert!([INVALID, UNKNOWN].contains(&reply.kind), "a name that is not UTF-8: {:08x}", reply.kind);
        assert!(!reply.text().is_empty());
    }
}

#[test]
fn infos_come_name_description_block_size_export() {
    let server = Server::start(["disk=memory:1M,description=spinning rust"]);
    let mut haggle = Haggle::new(&server.address);
    let kinds = |replies: &[OptionReply]| -> Vec<u16> {
        replies[..replies.len() - 1].iter().map(OptionReply::info).collect()
    };
    let replies = haggle.ask(INFO, &export_query("disk", &[INFO_NAME]));
    assert_eq!(kinds(&replies), [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, INFO_EXPORT]);
    assert_eq!(&replies[0].payload[2..], b"disk");
    assert_eq!(&replies[1].payload[2..], b"spinning rust");
    assert_eq!(u64_at(&replies[3].payload, 2), 1 << 20);

    let replies = haggle.ask(INFO, &export_query("disk", &[]));
    assert_eq!(kinds(&replies), [INFO_DESCRIPTION, INFO_BLOCK_SIZE, INFO_EXPORT], "NAME only if asked");
    assert_eq!(replies.last().map(|reply| reply.kind), Some(ACK));
}

#[test]
fn unknown_and_repeated_info_items_are_ignored() {
    let server = Server::start(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    let many: Vec<u16> = (4..300).chain([u16::MAX, INFO_BLOCK_SIZE, INFO_BLOCK_SIZE]).collect();
    let replies = haggle.ask(INFO, &export_query("", &many));
    assert_eq!(replies.last().map(|reply| reply.kind), Some(ACK));
    assert!(replies.len() <= 4, "each item is told once");
}

#[test]
fn info_and_the_same_go_answer_alike() {
    let server = Server::start(["disk=memory:1M,description=d"]);
    for extended in [false, true] {
        let mut haggle = Haggle::new(&server.address);
        haggle = if extended { haggle.extended() } else { haggle.structured() };
        haggle = haggle.contexts("disk", &["base:allocation"]);
        let query = export_query("disk", &[INFO_NAME, INFO_BLOCK_SIZE, INFO_DESCRIPTION]);
        let info = haggle.ask(INFO, &query);
        let go = haggle.ask(GO, &query);
        assert_eq!(info, go, "extended: {extended}");
    }
}

#[test]
fn block_sizes_obey_the_rules() {
    let server = Server::start(["memory:1M", "odd=memory:1234567", "n=null:8T"]);
    for name in ["", "odd", "n"] {
        let [minimum, preferred, maximum] = Haggle::new(&server.address).go(name).block;
        assert!(minimum.is_power_of_two() && minimum <= 65536, "minimum {minimum}");
        assert!(preferred.is_power_of_two() && preferred >= minimum.max(512), "preferred {preferred}");
        assert_eq!(maximum, 64 << 20, "maximum payload");
        assert_eq!(minimum, 1, "a file or memory takes any byte");
    }
}

#[test]
fn sizes_are_exact_to_the_byte() {
    for (word, size) in [("memory:1", 1), ("memory:513", 513), ("null:3P", 3 << 50), ("memory:3K", 3072)] {
        let server = Server::start([word]);
        assert_eq!(Haggle::new(&server.address).go("").size, size, "{word}");
    }
}

/// Flags by export: truthful, with those that depend on the dialect only where they hold.
#[test]
fn transmission_flags_are_truthful() {
    let scratch = Scratch::new();
    let path = format!("{},rotational=off", scratch.sparse("disk", 1 << 20).display());
    let server = Server::start([&path, "ro=memory:1M,readonly=on"]);
    let names = [
        "HAS_FLAGS",
        "READ_ONLY",
        "FLUSH",
        "FUA",
        "ROTATIONAL",
        "TRIM",
        "WRITE_ZEROES",
        "DF",
        "MULTI_CONN",
        "RESIZE",
        "CACHE",
        "FAST_ZERO",
        "STATUS_PAYLOAD",
    ];
    let flags = |haggle: Haggle, export: &str| -> Vec<&str> {
        let flags = haggle.go(export).flags;
        assert_eq!(flags >> 13, 0, "unknown flags {flags:#x}");
        names.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| *name).collect()
    };
    let base = ["HAS_FLAGS", "FLUSH", "FUA", "TRIM", "WRITE_ZEROES", "MULTI_CONN", "CACHE", "FAST_ZERO"];
    let simple = flags(Haggle::new(&server.address), "");
    assert_eq!(simple, base);
    let structured = flags(Haggle::new(&server.address).structured(), "");
    assert!(structured.contains(&"DF") && !structured.contains(&"STATUS_PAYLOAD"), "{structured:?}");
    let extended = flags(Haggle::new(&server.address).extended(), "");
    assert!(extended.contains(&"DF"), "{extended:?}");
    assert!(!extended.contains(&"STATUS_PAYLOAD"), "without a meta context there is nothing to filter");
    let filtered = flags(Haggle::new(&server.address).extended().contexts("", &["base:allocation"]), "");
    assert!(filtered.contains(&"STATUS_PAYLOAD"), "{filtered:?}");
    let readonly = flags(Haggle::new(&server.address), "ro");
    assert!(readonly.contains(&"READ_ONLY"), "{readonly:?}");
    for absent in ["TRIM", "WRITE_ZEROES", "FAST_ZERO"] {
        assert!(!readonly.contains(&absent), "{absent} on a read-only export");
    }
}

#[test]
fn names_are_neither_paths_nor_patterns() {
    let server = Server::start(["a/b=memory:1M", "*=memory:2M", "ü=memory:3M", " =memory:4M"]);
    for (name, size) in [("a/b", 1), ("*", 2), ("ü", 3), (" ", 4)] {
        assert_eq!(Haggle::new(&server.address).go(name).size, size << 20, "{name:?}");
    }
}
