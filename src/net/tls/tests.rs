use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite};
use tempfile::TempDir;

use super::certificates::{client_config, server_config};
use super::*;
use crate::rt::gather::Gather;

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A CA of its own.
fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Writes `kind`-cert.pem and `kind`-key.pem.
fn issue(directory: &Path, kind: &str, params: CertificateParams, issuer: &Issuer) {
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    fs::write(directory.join(format!("{kind}-cert.pem")), certificate.pem()).expect("writes");
    fs::write(directory.join(format!("{kind}-key.pem")), key.serialize_pem()).expect("writes");
}

/// A directory with a CA, a server's and a client's certificate.
fn directory() -> (TempDir, Issuer) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let issuer = authority("test CA");
    fs::write(directory.path().join("ca-cert.pem"), issuer.pem()).expect("writes");
    issue(directory.path(), "server", params("localhost"), &issuer);
    issue(directory.path(), "client", params("client"), &issuer);
    (directory, issuer)
}

/// Both ends with one suite, and so one version, only.
fn configs(suite: SupportedCipherSuite, directory: &Path) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() });
    let server = server_config(directory, false, Arc::clone(&provider)).expect("loads");
    (server, client_config(Some(directory), true, provider).expect("loads"))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

fn shake_hands(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    step: usize,
) -> Result<(Session, Session), (Fault, Fault)> {
    let mut server = Handshake::server(server).expect("a server");
    let mut client = Handshake::client(client, name()).expect("a client");
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let (mut server_done, mut client_done) = (Ok(false), client.advance(&[], &mut to_server));
    for _ in 0..100_000 {
        if to_server.is_empty() && to_client.is_empty() {
            break;
        }
        let part: Vec<_> = to_server.drain(..step.min(to_server.len())).collect();
        if let Ok(false) = server_done {
            server_done = server.advance(&part, &mut to_client);
        }
        let part: Vec<_> = to_client.drain(..step.min(to_client.len())).collect();
        if !part.is_empty() && client_done == Ok(false) {
            client_done = client.advance(&part, &mut to_server);
        }
        // One that believes to be done learns from the first record that it was refused.
    }
    match (server_done, client_done) {
        (Ok(true), Ok(true)) => {
            let server = server.finish().expect("a session");
            let client = client.finish().expect("a session");
            assert!(server.ciphertext.is_empty() && client.ciphertext.is_empty());
            Ok((server.session, client.session))
        }
        (server, client) => {
            let words = |outcome: Result<bool, Fault>| outcome.err().unwrap_or_else(|| Fault::silent("none"));
            Err((words(server), words(client)))
        }
    }
}

fn session_pair(directory: &Path) -> (Session, Session) {
    let server = Certificates::load(directory, true).expect("loads").current();
    let client = ClientCertificates::load(Some(directory), true).expect("loads").current();
    shake_hands(server, client, usize::MAX).expect("a handshake")
}

/// Seals `data` as one gathered send would, small pieces together.
fn seal(session: &RefCell<Session>, pieces: &[&[u8]]) -> Result<Vec<u8>, Fault> {
    let mut gather = Gather::new();
    let mut outbox = Outbox::new(session.borrow_mut(), &mut gather);
    for piece in pieces {
        outbox.bytes(piece);
    }
    outbox.finish()?;
    Ok(gather.contents())
}

/// Opens every record of `wire`, and answers with the data.
fn open(session: &RefCell<Session>, mut wire: Vec<u8>) -> Result<Vec<u8>, Fault> {
    let mut data = Vec::new();
    let mut at = 0;
    while at < wire.len() {
        let length = session.borrow_mut().record_length(&wire[at..])?.expect("whole records");
        let record = &mut wire[at..at + length];
        if let Opened::Data(range) = session.borrow_mut().open(record)? {
            data.extend_from_slice(&record[range]);
        }
        at += length;
    }
    Ok(data)
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + seed * 7) % 251).unwrap_or(0)).collect()
}

#[test]
fn every_suite_carries_data_both_ways() {
    let (directory, _) = directory();
    for suite in aws_lc_rs::ALL_CIPHER_SUITES {
        let (server, client) = configs(*suite, directory.path());
        // The server's certificate is ECDSA: suites that sign with RSA do not get this far.
        let Ok((server, client)) = shake_hands(server, client, 7) else {
            assert!(format!("{suite:?}").contains("RSA"), "{suite:?}");
            continue;
        };
        let (server, client) = (RefCell::new(server), RefCell::new(client));
        for (round, length) in [1, 28, 4096, 16383, 16384, 16385, 100_000].into_iter().enumerate() {
            let data = pattern(length, round);
            let wire = seal(&server, &[&data, b"tail"]).expect("seals");
            assert_eq!(open(&client, wire).expect("opens"), [&data[..], b"tail"].concat(), "{suite:?}");
            let wire = seal(&client, &[&data]).expect("seals");
            assert_eq!(open(&server, wire).expect("opens"), data, "{suite:?}");
        }
    }
}

/// rustls' own records are the measure of ours.
#[test]
fn rustls_understands_our_records_and_we_its() {
    use std::io::{Read, Write};
    let (directory, _) = directory();
    for suite in aws_lc_rs::ALL_CIPHER_SUITES.iter().filter(|suite| !format!("{suite:?}").contains("_RSA_")) {
        let (server, client) = configs(*suite, directory.path());
        let mut theirs = rustls::ClientConnection::new(client, name()).expect("a client");
        let mut handshake = Handshake::server(server).expect("a server");
        let mut done = false;
        let mut rest = Vec::new();
        while !done || theirs.is_handshaking() {
            let (mut to_us, mut to_them) = (Vec::new(), Vec::new());
            theirs.write_tls(&mut to_us).expect("writes");
            if theirs.is_handshaking() || !done {
                done = handshake.advance(&to_us, &mut to_them).expect("goes on");
            } else {
                rest = to_us;
            }
            // rustls takes nothing to read for the end.
            if !to_them.is_empty() {
                theirs.read_tls(&mut &to_them[..]).expect("reads");
                theirs.process_new_packets().expect("a handshake");
            }
        }
        assert!(rest.is_empty());
        let ours = RefCell::new(handshake.finish().expect("a session").session);
        for (round, length) in [1, 5000, 16384, 70_000].into_iter().enumerate() {
            let data = pattern(length, round);
            theirs.set_buffer_limit(None);
            theirs.writer().write_all(&data).expect("writes");
            let mut wire = Vec::new();
            while theirs.wants_write() {
                theirs.write_tls(&mut wire).expect("writes");
            }
            assert_eq!(open(&ours, wire).expect("opens"), data, "{suite:?}");
            let wire = seal(&ours, &[&data]).expect("seals");
            let mut rest = &wire[..];
            let mut got = vec![0; length];
            let mut have = 0;
            while have < length {
                if !rest.is_empty() {
                    theirs.read_tls(&mut rest).expect("reads");
                    theirs.process_new_packets().expect("opens");
                }
                have += match theirs.reader().read(&mut got[have..]) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !rest.is_empty() => 0,
                    read => read.expect("data"),
                };
            }
            assert_eq!(got, data, "{suite:?}");
        }
        // A change of keys that rustls asks for is answered in kind.
        if matches!(suite, SupportedCipherSuite::Tls13(_)) {
            theirs.refresh_traffic_keys().expect("TLS 1.3 can");
            theirs.writer().write_all(b"after").expect("writes");
            let mut wire = Vec::new();
            while theirs.wants_write() {
                theirs.write_tls(&mut wire).expect("writes");
            }
            assert_eq!(open(&ours, wire).expect("opens"), b"after");
            ours.borrow_mut().wear_out_after(1);
            let wire = seal(&ours, &[b"again"]).expect("seals");
            theirs.read_tls(&mut &wire[..]).expect("reads");
            theirs.process_new_packets().expect("takes the new key");
            let mut got = [0; 5];
            theirs.reader().read_exact(&mut got).expect("data");
            assert_eq!(&got, b"again");
        }
        let mut wire = Vec::new();
        ours.borrow_mut().farewell(&mut wire);
        theirs.read_tls(&mut &wire[..]).expect("reads");
        let state = theirs.process_new_packets().expect("a clean end");
        assert!(state.peer_has_closed(), "{suite:?}");
    }
}

#[test]
fn a_worn_key_gives_way_to_the_next() {
    let (directory, _) = directory();
    let (server, client) = session_pair(directory.path());
    let (server, client) = (RefCell::new(server), RefCell::new(client));
    server.borrow_mut().wear_out_after(64 << 10);
    let data = pattern(1 << 20, 1);
    let wire = seal(&server, &[&data]).expect("seals");
    let records = 64;
    let without = (1 << 20) + records * 22;
    assert!(wire.len() > without, "no update among {} bytes", wire.len());
    assert_eq!(open(&client, wire).expect("opens"), data);
    let wire = seal(&client, &[b"still"]).expect("seals");
    assert_eq!(open(&server, wire).expect("opens"), b"still");
}

#[test]
fn a_worn_key_of_tls12_ends_the_session() {
    let (directory, _) = directory();
    let suite = aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let (server, client) = configs(suite, directory.path());
    let (server, _) = shake_hands(server, client, usize::MAX).expect("a handshake");
    let server = RefCell::new(server);
    server.borrow_mut().wear_out_after(10);
    seal(&server, &[&[7; 10]]).expect("seals");
    let fault = seal(&server, &[b"more"]).expect_err("is worn");
    assert!(fault.to_string().contains("256 GiB"), "{fault}");
}

#[test]
fn a_changed_record_is_refused_and_nothing_after_it_is_opened() {
    let (directory, _) = directory();
    let (server, client) = session_pair(directory.path());
    let (server, client) = (RefCell::new(server), RefCell::new(client));
    let good = seal(&client, &[b"good"]).expect("seals");
    let mut bad = good.clone();
    bad[7] ^= 1;
    let fault = open(&server, bad).expect_err("was changed");
    assert!(fault.to_string().contains("cannot be decrypted"), "{fault}");
    open(&server, good).expect_err("the session is over");
    seal(&server, &[b"no"]).expect_err("the session is over");
    let mut last = Vec::new();
    server.borrow_mut().farewell(&mut last);
    let told = open(&client, last).expect_err("is told");
    assert!(told.to_string().contains("BadRecordMac"), "{told}");
}

#[test]
fn a_record_is_taken_once_and_in_order() {
    let (directory, _) = directory();
    for replayed in [true, false] {
        let (server, client) = session_pair(directory.path());
        let (server, client) = (RefCell::new(server), RefCell::new(client));
        let first = seal(&client, &[b"first"]).expect("seals");
        let second = seal(&client, &[b"second"]).expect("seals");
        if replayed {
            assert_eq!(open(&server, first.clone()).expect("opens"), b"first");
            open(&server, first).expect_err("was there already");
        } else {
            open(&server, second).expect_err("the first is missing");
        }
    }
}

#[test]
fn plaintext_in_a_session_is_not_a_record() {
    let (directory, _) = directory();
    let (mut server, _) = session_pair(directory.path());
    server.record_length(b"IHAVEOPT\0\0\0\x01\0\0\0\0").expect_err("not a record");
    let (mut server, _) = session_pair(directory.path());
    let mut record = vec![22, 3, 3, 0, 4, 1, 0, 0, 0];
    server.open(&mut record).expect_err("not encrypted");
}

#[test]
fn close_notify_is_the_end_and_an_end_without_it_is_not() {
    let (directory, _) = directory();
    let (server, client) = session_pair(directory.path());
    let (server, client) = (RefCell::new(server), RefCell::new(client));
    let mut wire = seal(&client, &[b"last"]).expect("seals");
    assert!(!server.borrow().is_closed());
    client.borrow_mut().farewell(&mut wire);
    client.borrow_mut().farewell(&mut wire);
    wire.extend_from_slice(b"what follows does not count");
    let mut at = 0;
    let mut opened = Vec::new();
    for _ in 0..2 {
        let length = server.borrow_mut().record_length(&wire[at..]).expect("a record").expect("whole");
        opened.push(server.borrow_mut().open(&mut wire[at..at + length]).expect("opens"));
        at += length;
    }
    assert!(matches!(opened[..], [Opened::Data(_), Opened::Closed]), "{opened:?}");
    assert!(server.borrow().is_closed());
    assert_eq!(&wire[at..], b"what follows does not count");
    seal(&client, &[b"more"]).expect_err("said its last word");
    seal(&server, &[b"the other direction is open"]).expect("seals");
}

#[test]
fn certificates_that_do_not_fit_are_named() {
    let (directory, issuer) = directory();
    let other = authority("another CA");
    let place = directory.path();
    let client = || ClientCertificates::load(Some(place), true).expect("loads").current();
    let server = || Certificates::load(place, true).expect("loads").current();
    let refused = |expected: &str| {
        let (at_server, at_client) =
            shake_hands(server(), client(), usize::MAX).err().expect("a handshake that fails");
        let words = format!("{at_server} / {at_client}");
        assert!(words.contains(expected), "{words}");
    };

    issue(place, "client", params("client"), &other);
    refused("client certificate signed by unknown CA");
    issue(place, "client", params("client"), &authority("test CA"));
    refused("client certificate signed by another CA of that name");
    fs::remove_file(place.join("client-cert.pem")).expect("removes");
    fs::remove_file(place.join("client-key.pem")).expect("removes");
    refused("the client shows no certificate");
    let mut expired = params("client");
    expired.not_before = date_time_ymd(2001, 1, 1);
    expired.not_after = date_time_ymd(2002, 1, 1);
    issue(place, "client", expired, &issuer);
    refused("client certificate expired");
    let mut unborn = params("client");
    unborn.not_before = date_time_ymd(3000, 1, 1);
    issue(place, "client", unborn, &issuer);
    refused("client certificate not valid yet");

    let mut revoked = params("client");
    revoked.serial_number = Some(SerialNumber::from(4711_u64));
    issue(place, "client", revoked, &issuer);
    shake_hands(server(), client(), 100).expect("not revoked yet");
    revoke(place, &issuer, 4711);
    refused("client certificate revoked");
    revoke(place, &issuer, 4712);
    shake_hands(server(), client(), 100).expect("another one is revoked");

    issue(place, "server", params("elsewhere"), &issuer);
    refused("server certificate for another name");
    issue(place, "server", params("localhost"), &other);
    refused("server certificate signed by unknown CA");
}

fn revoke(directory: &Path, issuer: &Issuer, serial: u64) {
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2999, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(issuer).expect("a list");
    fs::write(directory.join("ca-crl.pem"), list.pem().expect("PEM")).expect("writes");
}

#[test]
fn files_that_are_no_use_are_named() {
    let (directory, issuer) = directory();
    let place = directory.path();
    let refused = |expected: &str| {
        let words = Certificates::load(place, true).expect_err("no use").to_string();
        assert!(words.contains(expected), "{words}");
    };
    let certificates = Certificates::load(place, true).expect("loads");
    let before = certificates.current();
    fs::write(place.join("server-key.pem"), KeyPair::generate().expect("a key").serialize_pem())
        .expect("writes");
    refused("server-key.pem does not belong to ");
    certificates.reload().expect_err("they do not belong together");
    assert!(Arc::ptr_eq(&before, &certificates.current()), "the old ones stay");
    fs::write(place.join("server-key.pem"), "nothing").expect("writes");
    refused("server-key.pem holds no private key");
    fs::remove_file(place.join("server-cert.pem")).expect("removes");
    refused("is it the right directory?");
    let mut brief = params("localhost");
    brief.not_after = date_time_ymd(2001, 1, 1);
    brief.not_before = date_time_ymd(2000, 1, 1);
    issue(place, "server", brief, &issuer);
    certificates.reload().expect("loads");
    assert!(!Arc::ptr_eq(&before, &certificates.current()));
    assert_eq!(certificates.expire_soon().len(), 1);
    assert!(certificates.expire_soon()[0].left.is_zero());
    fs::write(place.join("ca-cert.pem"), "").expect("writes");
    refused("ca-cert.pem holds no certificate");
}

/// rustls must not be asked again about what it has refused: it refuses once.
#[test]
fn garbage_behind_garbage_is_refused_once() {
    let (directory, _) = directory();
    let mut bytes = pattern(500, 3);
    for first in [0, 20, 21, 22, 23, 0x80, b'I'] {
        bytes[0] = first;
        let mut server =
            Handshake::server(Certificates::load(directory.path(), true).expect("loads").current())
                .expect("a server");
        let mut out = Vec::new();
        let mut refused = false;
        for part in bytes.chunks(9) {
            refused |= server.advance(part, &mut out).is_err();
        }
        assert!(refused || matches!(first, 20..=23), "{first}");
        assert!(out.len() <= 14, "{out:02x?}");
    }
}
