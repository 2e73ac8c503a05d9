//! Who may see and touch what, as other machines and other users find it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::client::{Client, EPERM, READ, Request, TRIM, WRITE_ZEROES};
use crate::haggle::{
    ACK, EXPORT_NAME, FIXED, GO, Haggle, INFO, INFO_BLOCK_SIZE, INFO_NAME, LIST, LIST_META, NO_ZEROES,
    POLICY, SERVER, SET_META, UNKNOWN, export_query, meta_query, option,
};
use crate::program::{Outcome, run};
use crate::server::Server;
use crate::wait::{PATIENCE, until};
use crate::wire::{Address, Wire, u32_at};

const READ_ONLY: u16 = 1 << 1;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;

fn from(source: &str, server: &Server) -> Haggle {
    Haggle::over(Wire::connect_from(source, &server.address), FIXED | NO_ZEROES)
}

/// Names in the order of the list.
fn listed(haggle: &mut Haggle) -> Vec<String> {
    let mut replies = haggle.ask(LIST, &[]);
    assert_eq!(replies.pop().map(|reply| reply.kind), Some(ACK), "LIST is allowed to everybody");
    let name = |payload: &[u8]| payload[4..4 + u32_at(payload, 0) as usize].to_vec();
    replies
        .iter()
        .map(|reply| {
            assert_eq!(reply.kind, SERVER);
            String::from_utf8(name(&reply.payload)).expect("a name is UTF-8")
        })
        .collect()
}

/// Three exports: a neighbour at .2 may read one, one at .3 may list two, one at .4 nothing, we at .1 everything.
fn neighbourhood() -> Server {
    Server::tcp([
        "--deny",
        "ip=127.0.0.4",
        "--allow",
        "ip=127.0.0.2,export=disk-1,right=read",
        "--allow",
        "ip=127.0.0.3,export=disk-*,right=list",
        "--allow",
        "ip=127.0.0.1",
        "--verbose",
        "disk-1=memory:1M",
        "disk-2=memory:1M",
        "memory:1M",
    ])
}

#[test]
fn neighbours_see_what_they_may_list() {
    let server = neighbourhood();
    for (source, expected) in [
        ("127.0.0.1", &["disk-1", "disk-2", ""][..]),
        ("127.0.0.2", &["disk-1"]),
        ("127.0.0.3", &["disk-1", "disk-2"]),
        ("127.0.0.4", &[]),
        ("127.0.0.5", &[]),
    ] {
        assert_eq!(listed(&mut from(source, &server)), expected, "{source}");
    }
}

#[test]
fn who_may_not_write_gets_a_read_only_export() {
    let server = neighbourhood();
    let mut owner = from("127.0.0.1", &server).go("disk-1");
    assert_eq!(owner.flags & READ_ONLY, 0);
    assert_eq!(owner.flags & SEND_TRIM, SEND_TRIM);
    owner.write(0, b"ours");
    let mut reader: Client = from("127.0.0.2", &server).structured().go("disk-1");
    assert_eq!(reader.flags & (READ_ONLY | SEND_TRIM | SEND_WRITE_ZEROES), READ_ONLY);
    assert_eq!(reader.read(0, 4), b"ours");
    for request in
        [Request::write(0, b"mine"), Request::new(TRIM, 0, 4096), Request::new(WRITE_ZEROES, 0, 4096)]
    {
        reader.call(&request).refused(EPERM, "a change by who may only read");
    }
    assert_eq!(reader.read(0, 4), b"ours");
    reader.disconnect();
    owner.call(&Request::new(READ, 0, 4)).ok("the owner is not disturbed");
}

/// Everything that a client can find out about a name, from the answers to it; the name itself is taken out.
fn answers(server: &Server, source: &str, name: &str) -> Vec<String> {
    let mut haggle = from(source, server).structured();
    let options = [
        (INFO, export_query(name, &[])),
        (INFO, export_query(name, &[INFO_NAME, INFO_BLOCK_SIZE])),
        (GO, export_query(name, &[])),
        (LIST_META, meta_query(name, &[])),
        (SET_META, meta_query(name, &["base:allocation"])),
    ];
    let mut told = Vec::new();
    for (code, payload) in options {
        for reply in haggle.ask(code, &payload) {
            let text = if reply.is_error() { reply.text() } else { format!("{:?}", reply.payload) };
            told.push(format!("{code}: {:08x} {}", reply.kind, text.replace(name, "NAME")));
        }
    }
    haggle.wire.send(option(EXPORT_NAME, name.as_bytes()));
    told.push(format!("{:?}", haggle.wire.rest()));
    told
}

#[test]
fn an_export_that_may_not_be_listed_is_as_if_it_were_not() {
    let server = neighbourhood();
    for source in ["127.0.0.2", "127.0.0.4", "127.0.0.5"] {
        let missing = answers(&server, source, "disk-9");
        assert!(missing[0].contains(&format!("{UNKNOWN:08x}")), "{missing:?}");
        assert_eq!(answers(&server, source, "disk-2"), missing, "{source}");
    }
    let mut stranger = from("127.0.0.5", &server);
    let default = stranger.refused(GO, &export_query("", &[]), UNKNOWN, "the default export");
    assert!(default.contains("no default export"), "{default}");
    until("the log tells what was refused, by which rule", || {
        let log = server.log();
        log.contains("the export \"disk-2\" is refused, no rule allows it")
            && log.contains("the export \"disk-2\" is refused, by rule 1: deny ip=127.0.0.4")
            && log.contains("the export \"disk-9\" is refused, there is none")
    });
}

#[test]
fn an_export_that_may_only_be_listed_is_refused_by_policy() {
    let server = neighbourhood();
    for (code, payload) in [
        (INFO, export_query("disk-1", &[])),
        (GO, export_query("disk-1", &[])),
        (LIST_META, meta_query("disk-1", &[])),
        (SET_META, meta_query("disk-1", &["base:allocation"])),
    ] {
        let mut haggle = from("127.0.0.3", &server).structured();
        let text = haggle.refused(code, &payload, POLICY, "listed, not to be read");
        assert!(text.contains("not allowed"), "{text}");
        haggle.is_framed("after a refusal");
    }
    let mut haggle = from("127.0.0.3", &server);
    haggle.wire.send(option(EXPORT_NAME, b"disk-1"));
    haggle.wire.expect_close("EXPORT_NAME of an export that may only be listed");
}

#[test]
fn decisions_are_logged_once_and_counted() {
    let mut server = neighbourhood();
    let mut reader = from("127.0.0.2", &server);
    for _ in 0..3 {
        assert_eq!(listed(&mut reader), ["disk-1"]);
        reader.ask(INFO, &export_query("disk-1", &[]));
    }
    reader.go("disk-1").disconnect();
    assert_eq!(listed(&mut from("127.0.0.3", &server)).len(), 2);
    drop(from("127.0.0.1", &server).go("disk-2"));
    server.comes_to_rest();
    server.signal(rustix::process::Signal::TERM);
    server.ended(PATIENCE);
    let log = server.log();
    let access = |part: &str| log.lines().filter(|line| line.contains(part)).count();
    assert_eq!(
        access("access to \"disk-1\": read, by rule 2: allow ip=127.0.0.2,export=disk-1,right=read"),
        1,
        "{log}"
    );
    assert_eq!(access("access to \"disk-2\": nothing, no rule allows it"), 1, "{log}");
    assert_eq!(access("access to \"disk-2\": write, by rule 4: allow ip=127.0.0.1"), 1, "{log}");
    // .2: read one, nothing of the two others. .3: list two, nothing of the third. .1 asked for one.
    for (counter, count) in
        [("access_denied", 3), ("access_to_list", 2), ("access_to_read", 1), ("access_to_write", 1)]
    {
        assert!(log.contains(&format!("{counter} {count}\n")), "{counter} {count}: {log}");
    }
}

#[test]
fn a_guesser_of_names_does_not_fill_the_log() {
    let server = neighbourhood();
    let mut guesser = from("127.0.0.5", &server);
    for number in 0..100 {
        guesser.refused(INFO, &export_query(&format!("guess-{number}"), &[]), UNKNOWN, "a guess");
    }
    guesser.is_framed("after a hundred guesses");
    assert_eq!(server.log().matches("is refused").count(), 16, "{}", server.log());
}

#[test]
fn an_oldstyle_client_that_may_not_read_gets_no_greeting() {
    let words =
        ["--oldstyle", "--allow", "ip=127.0.0.1,right=list", "--allow", "ip=127.0.0.2", "name=memory:1M"];
    let server = Server::tcp(words);
    Wire::connect_from("127.0.0.1", &server.address).expect_close("list is not read");
    Wire::connect_from("127.0.0.3", &server.address).expect_close("nothing at all");
    let hello = Wire::connect_from("127.0.0.2", &server.address).receive(152);
    assert_eq!(&hello[..8], b"NBDMAGIC");
}

/// nbdinfo as another user of this machine.
fn nbdinfo_as(uid: u32, gid: u32, words: &[&str]) -> Outcome {
    let ids = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()];
    let words = words.iter().map(|word| (*word).to_owned());
    run("setpriv", ids.into_iter().chain(["nbdinfo".to_owned()]).chain(words))
}

#[test]
fn users_of_the_machine_are_told_apart() {
    let server = Server::start([
        "--deny",
        "uid=65533",
        "--allow",
        "uid=0",
        "--allow",
        "gid=4242,export=group,right=read",
        "--allow",
        "export=public,right=read",
        "group=memory:1M",
        "public=memory:2M",
        "memory:3M",
    ]);
    let Address::Unix(path) = &server.address else { panic!("a unix socket") };
    fs::set_permissions(server.dir.path(), Permissions::from_mode(0o755)).expect("open the directory");
    fs::set_permissions(path, Permissions::from_mode(0o777)).expect("open the socket");
    let size = |uid, gid, name: &str| {
        let outcome = nbdinfo_as(uid, gid, &["--size", &server.uri(name)]);
        outcome.success.then(|| outcome.stdout.trim().to_owned())
    };
    let megabytes = |count: u64| Some((count << 20).to_string());
    // user, group, and the sizes of what they can open: "group", "public", "".
    for (uid, gid, expected) in [
        (0, 0, [megabytes(1), megabytes(2), megabytes(3)]),
        (65_534, 4242, [megabytes(1), megabytes(2), None]),
        (65_534, 65_534, [None, megabytes(2), None]),
        (65_533, 4242, [None, None, None]),
    ] {
        assert_eq!(["group", "public", ""].map(|name| size(uid, gid, name)), expected, "{uid}:{gid}");
    }
    let is_read_only = |uid, gid| nbdinfo_as(uid, gid, &["--is", "read-only", &server.uri("group")]).code;
    assert_eq!((is_read_only(0, 0), is_read_only(65_534, 4242)), (Some(2), Some(0)));
    let list = nbdinfo_as(65_534, 65_534, &["--list", &server.uri("")]).ok();
    assert!(list.contains("public") && !list.contains("group"), "{list}");
}

#[test]
fn a_rule_without_sense_is_a_usage_error() {
    let outcome = run(crate::server::program(), ["serve", "--allow", "user=bob", "memory:1M"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("unknown key `user`: the keys are dn, cn"), "{}", outcome.stderr);
}
