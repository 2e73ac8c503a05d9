//! The three modes of TLS (specification, "TLS support").

use super::*;

const TLS_REQD: OptionReply = OptionReply::ERR_TLS_REQD;

fn with(tls: Tls) -> Server {
    Server::start(HandshakeConfig { tls, ..HandshakeConfig::default() }, 3)
}

const SELECTIVE: Tls = Tls::On { hides_unknown: false };

/// Begins TLS and answers with what came behind the option.
fn secure(server: &mut Server, behind: &[u8]) -> Vec<u8> {
    server.feed(&[&option(OptionCode::STARTTLS, &[])[..], behind].concat()).unwrap();
    let said = replies(&std::mem::take(&mut server.out));
    assert_eq!(said, [(OptionCode::STARTTLS, ACK, Vec::new())]);
    let behind = server.behind.take().expect("TLS begins");
    server.handshake.secured();
    behind
}

#[test]
fn without_tls_the_option_is_refused_by_policy_and_nothing_asks_for_it() {
    let mut server = Server::fixed();
    assert_eq!(server.refused(OptionCode::STARTTLS, &[]).0, OptionReply::ERR_POLICY);
    assert_eq!(server.refused(OptionCode::STARTTLS, b"data").0, INVALID);
    assert_eq!(server.refused(OptionCode::INFO, &info("nowhere", &[])).0, OptionReply::ERR_UNKNOWN);
    assert_eq!(kinds(&server.ask(OptionCode::LIST, &[])).last(), Some(&ACK));
}

#[test]
fn where_tls_is_required_nothing_else_is_answered() {
    let mut server = with(Tls::Required);
    let long = vec![0; 70_000];
    for (code, payload) in [
        (OptionCode::LIST, &[][..]),
        (OptionCode::LIST, b"data"),
        (OptionCode::STRUCTURED_REPLY, &[]),
        (OptionCode::EXTENDED_HEADERS, &[]),
        (OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:"])),
        (OptionCode::INFO, &info("disk", &[])),
        (OptionCode::INFO, &info("nowhere", &[])),
        (OptionCode::GO, &info("disk", &[])),
        (OptionCode::GO, &long),
        (OptionCode(4711), b"what is this"),
    ] {
        assert_eq!(server.refused(code, payload).0, TLS_REQD, "{code}");
    }
    assert!(secure(&mut server, &[]).is_empty());
    assert_eq!(kinds(&server.ask(OptionCode::GO, &info("disk", &[]))).last(), Some(&ACK));
    assert!(server.session.is_some());
}

#[test]
fn where_tls_is_required_who_cannot_begin_it_is_closed() {
    let mut server = with(Tls::Required);
    server.feed(&option(OptionCode::EXPORT_NAME, b"disk")).unwrap();
    assert!(server.closed && server.out.is_empty());
    let mut out = Vec::new();
    let config = HandshakeConfig { tls: Tls::Required, ..HandshakeConfig::default() };
    let mut handshake = Handshake::new(config, &mut out);
    assert_eq!(handshake.advance(&[0, 0, 0, 0], &mut out), Err(Violation::NeedsTls));
}

#[test]
fn abort_is_acknowledged_before_tls() {
    for tls in [Tls::Required, SELECTIVE] {
        let mut server = with(tls);
        assert_eq!(kinds(&server.ask(OptionCode::ABORT, &[])), [ACK]);
        assert!(server.closed);
    }
}

#[test]
fn what_was_negotiated_before_tls_is_forgotten() {
    for (option, again) in [
        (OptionCode::STRUCTURED_REPLY, Dialect::Structured),
        (OptionCode::EXTENDED_HEADERS, Dialect::Extended),
    ] {
        let mut server = with(SELECTIVE);
        assert_eq!(kinds(&server.ask(option, &[])), [ACK]);
        server.ask(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"]));
        secure(&mut server, &[]);
        assert_eq!(
            server.refused(OptionCode::SET_META_CONTEXT, &meta("disk", &[b"base:allocation"])).0,
            INVALID,
            "meta contexts need what was forgotten"
        );
        let mut plain = with(SELECTIVE);
        server.ask(OptionCode::GO, &info("disk", &[]));
        plain.ask(OptionCode::GO, &info("disk", &[]));
        assert_eq!(server.session, plain.session);
        let mut server = with(SELECTIVE);
        server.ask(option, &[]);
        secure(&mut server, &[]);
        assert_eq!(kinds(&server.ask(option, &[])), [ACK]);
        server.ask(OptionCode::GO, &info("disk", &[]));
        assert_eq!(server.session.expect("a session").dialect, again);
    }
}

/// The classic injection: options that somebody on the way appended to STARTTLS would be taken for the client's own.
#[test]
fn bytes_behind_starttls_are_not_options() {
    let injected = [option(OptionCode::STRUCTURED_REPLY, &[]), option(OptionCode::ABORT, &[])].concat();
    for tls in [Tls::Required, SELECTIVE] {
        let mut server = with(tls);
        assert_eq!(secure(&mut server, &injected), injected, "all of it is for TLS");
        assert!(!server.closed && !server.handshake.structured);
    }
}

#[test]
fn tls_begins_once() {
    for tls in [Tls::Required, SELECTIVE] {
        let mut server = with(tls);
        secure(&mut server, &[]);
        assert_eq!(server.refused(OptionCode::STARTTLS, &[]).0, INVALID);
        assert_eq!(server.refused(OptionCode::STARTTLS, b"data").0, INVALID);
        assert!(!server.closed);
        assert_eq!(server.refused(OptionCode::INFO, &info("nowhere", &[])).0, OptionReply::ERR_UNKNOWN);
    }
}

#[test]
fn starttls_with_data_is_refused_and_closed() {
    for tls in [Tls::Required, SELECTIVE] {
        let mut server = with(tls);
        assert_eq!(server.refused(OptionCode::STARTTLS, b"data").0, INVALID);
        assert!(server.closed && server.behind.is_none());
    }
}

#[test]
fn an_export_that_needs_tls_is_for_those_who_come_through_it() {
    for hides_unknown in [false, true] {
        let mut server = with(Tls::On { hides_unknown });
        for code in [OptionCode::INFO, OptionCode::GO] {
            assert_eq!(server.refused(code, &info("vault", &[])).0, TLS_REQD);
            let (kind, _) = server.refused(code, &info("nowhere", &[]));
            assert_eq!(kind, if hides_unknown { TLS_REQD } else { OptionReply::ERR_UNKNOWN });
        }
        assert_eq!(kinds(&server.ask(OptionCode::INFO, &info("other", &[]))).last(), Some(&ACK));
        // Only INFO and GO may say that it is TLS that is missing.
        assert_eq!(kinds(&server.ask(OptionCode::STRUCTURED_REPLY, &[])), [ACK]);
        for code in [OptionCode::LIST_META_CONTEXT, OptionCode::SET_META_CONTEXT] {
            assert_eq!(server.refused(code, &meta("vault", &[b"base:"])).0, OptionReply::ERR_UNKNOWN);
        }
        secure(&mut server, &[]);
        assert_eq!(server.refused(OptionCode::INFO, &info("nowhere", &[])).0, OptionReply::ERR_UNKNOWN);
        server.ask(OptionCode::GO, &info("vault", &[]));
        assert!(server.session.is_some());
        let mut server = with(Tls::On { hides_unknown });
        server.feed(&option(OptionCode::EXPORT_NAME, b"vault")).unwrap();
        assert!(server.closed && server.out.is_empty());
    }
}

#[test]
fn a_draining_server_begins_no_tls() {
    let mut server = with(Tls::Required);
    server.handshake.drain();
    assert_eq!(server.refused(OptionCode::STARTTLS, &[]).0, OptionReply::ERR_SHUTDOWN);
    assert_eq!(server.refused(OptionCode::LIST, &[]).0, TLS_REQD);
    assert_eq!(kinds(&server.ask(OptionCode::ABORT, &[])), [ACK]);
}
