//! What is answered before, at and after STARTTLS.

use super::Secure;
use crate::client::{Dialect, READ, Request};
use crate::haggle::{
    ABORT, ACK, EXPORT_NAME, FIXED, GO, Haggle, INFO, INVALID, LIST, NO_ZEROES, POLICY, SET_META, STARTTLS,
    STRUCTURED_REPLY, TLS_REQD, UNKNOWN, export_query, meta_query, option,
};
use crate::scratch::pattern;
use crate::server::Server;
use crate::wait::until;

#[test]
fn every_command_works_through_tls_in_every_dialect() {
    let secure = Secure::start(&["--tls", "require", "memory:16M"]);
    for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
        let mut client = secure.haggle().dialect(dialect).go("");
        for (round, length) in [1, 512, 4096, 8192, 16384, 40_000, 1 << 20, 5_000_000].into_iter().enumerate()
        {
            let data = pattern(round as u64 + 1, length);
            client.write(round as u64, &data);
            assert!(client.read(round as u64, length) == data, "{length} bytes");
        }
        client.flush();
        // Replies of all sizes at once, in records that they share.
        let requests: Vec<_> =
            (0..100_u64).map(|index| Request::new(READ, index * 4096, 1 << (index % 20))).collect();
        for request in &requests {
            client.submit(request);
        }
        for _ in &requests {
            client.reply().ok("one of a hundred reads");
        }
        client.is_alive("after a hundred reads at once");
        client.disconnect();
    }
}

#[test]
fn without_tls_starttls_is_refused_by_policy() {
    let server = Server::tcp(["memory:1M"]);
    let mut haggle = Haggle::new(&server.address);
    haggle.refused(STARTTLS, &[], POLICY, "STARTTLS to a server without TLS");
    haggle.is_framed("after STARTTLS");
    haggle.go("").is_alive("without TLS");
}

#[test]
fn a_server_that_requires_tls_says_so_to_everything() {
    let secure = Secure::start(&["--tls", "require", "memory:1M"]);
    let mut haggle = Haggle::new(&secure.server.address);
    for (code, payload) in [
        (LIST, vec![]),
        (INFO, export_query("", &[])),
        (GO, export_query("", &[])),
        (STRUCTURED_REPLY, vec![]),
        (SET_META, meta_query("", &["base:allocation"])),
        (77, vec![1, 2, 3]),
    ] {
        haggle.refused(code, &payload, TLS_REQD, "an option before TLS");
    }
    secure.secure(&mut haggle);
    haggle.refused(STARTTLS, &[], INVALID, "STARTTLS again");
    haggle.is_framed("after STARTTLS again");
    haggle.go("").is_alive("through TLS");

    let mut haggle = Haggle::new(&secure.server.address);
    haggle.wire.send(option(EXPORT_NAME, b""));
    haggle.wire.expect_close("EXPORT_NAME before TLS");
    let mut haggle = Haggle::with_flags(&secure.server.address, NO_ZEROES);
    haggle.wire.expect_close("a client without fixed newstyle");
    let mut haggle = Haggle::new(&secure.server.address);
    assert_eq!(haggle.outcome(ABORT, &[]).kind, ACK);
    haggle.wire.expect_close("ABORT before TLS");
    let mut haggle = Haggle::new(&secure.server.address);
    haggle.refused(STARTTLS, b"data", INVALID, "STARTTLS with data");
    haggle.wire.expect_close("STARTTLS with data");
}

#[test]
fn an_export_that_needs_tls_is_out_of_sight_without_it() {
    let secure = Secure::start(&["--tls", "on", "open=memory:1M", "vault=memory:2M,tls=require"]);
    let mut haggle = Haggle::new(&secure.server.address);
    assert_eq!(haggle.ask(LIST, &[]).len(), 2, "one export and ACK");
    for name in ["vault", "nowhere"] {
        haggle.refused(INFO, &export_query(name, &[]), TLS_REQD, name);
        haggle.refused(GO, &export_query(name, &[]), TLS_REQD, name);
    }
    haggle.wire.send(option(EXPORT_NAME, b"vault"));
    haggle.wire.expect_close("EXPORT_NAME of an export that needs TLS");
    Haggle::new(&secure.server.address).go("open").is_alive("an export that does not need TLS");

    let mut haggle = secure.haggle();
    assert_eq!(haggle.ask(LIST, &[]).len(), 3, "two exports and ACK");
    haggle.refused(INFO, &export_query("nowhere", &[]), UNKNOWN, "through TLS nothing asks for it");
    let client = haggle.go("vault");
    assert_eq!(client.size, 2 << 20);
}

#[test]
fn what_was_negotiated_before_tls_does_not_count() {
    let secure = Secure::start(&["--tls", "on", "memory:1M"]);
    let mut haggle = Haggle::new(&secure.server.address);
    assert_eq!(haggle.outcome(STRUCTURED_REPLY, &[]).kind, ACK);
    secure.secure(&mut haggle);
    haggle.refused(
        SET_META,
        &meta_query("", &["base:allocation"]),
        INVALID,
        "contexts need structured replies",
    );
    assert_eq!(haggle.outcome(STRUCTURED_REPLY, &[]).kind, ACK, "again, as if for the first time");
}

/// Somebody on the way appends options to STARTTLS, in plaintext. They must not be taken for the client's.
#[test]
fn options_injected_behind_starttls_are_not_answered() {
    for tls in ["on", "require"] {
        let secure = Secure::start(&["--tls", tls, "--verbose", "memory:1M"]);
        let mut haggle = Haggle::new(&secure.server.address);
        let injected = [option(STARTTLS, &[]), option(STRUCTURED_REPLY, &[]), option(LIST, &[])].concat();
        haggle.wire.send(injected);
        assert_eq!(haggle.reply(STARTTLS).kind, ACK);
        let rest = haggle.wire.rest();
        assert!(
            rest.len() < 16 && rest.first().is_none_or(|kind| *kind == 21),
            "an alert at most: {rest:02x?}"
        );
        until("the log says what it was", || {
            secure.server.log().contains("what the client sends is not TLS")
        });
    }
}

#[test]
fn a_client_may_send_its_hello_with_starttls() {
    let secure = Secure::start(&["--tls", "require", "memory:1M"]);
    // rustls writes its hello at once; the acknowledgement is read before anything of TLS.
    let mut haggle = Haggle::with_flags(&secure.server.address, FIXED | NO_ZEROES);
    haggle.wire.send(option(STARTTLS, &[]));
    assert_eq!(haggle.reply(STARTTLS).kind, ACK);
    haggle.wire.secure(super::client_config(secure.authority.dir()), super::name()).expect("TLS begins");
    haggle.go("").is_alive("through TLS");
}

#[test]
fn what_makes_no_sense_is_refused_at_start() {
    let authority = super::Authority::new("ringnbd tests");
    let dir = authority.dir().display().to_string();
    for (words, expected) in [
        (&["--tls", "on", "memory:1M"][..], "--tls-certificates"),
        (&["--tls-verify-peer", "memory:1M"], "--tls-certificates"),
        (&["--tls-certificates", &dir, "memory:1M"], "--tls on or --tls require"),
        (&["memory:1M,tls=require"], "--tls on"),
        (&["memory:1M,tls=on"], "write require"),
        (&["--tls", "on", "--tls-certificates", &dir, "memory:1M"], "server-cert.pem"),
        (&["--tls", "on", "--tls-certificates", "/nonexistent", "memory:1M"], "is it the right directory?"),
    ] {
        let listen = ["serve", "--listen", "127.0.0.1:0"];
        let outcome = crate::program::run(crate::server::program(), listen.iter().chain(words));
        assert!(!outcome.success && outcome.stderr.contains(expected), "{words:?}: {}", outcome.stderr);
    }
    authority.issue_pair();
    let words = ["serve", "--listen", "127.0.0.1:0", "--oldstyle", "--tls", "on", "--tls-certificates", &dir];
    let outcome = crate::program::run(crate::server::program(), words.iter().chain(&["memory:1M"]));
    assert!(outcome.stderr.contains("--oldstyle has no TLS"), "{}", outcome.stderr);
}
