//! TLS with both ends in memory: whatever happens to the records on their way, what is opened is what was sealed, from the
//! first byte on and in order.

use std::fs;
use std::sync::OnceLock;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ringnbd::net::tls::{Certificates, ClientCertificates, Handshake, Opened, ServerName, Session};

fn certificates() -> &'static (Certificates, ClientCertificates) {
    static CERTIFICATES: OnceLock<(Certificates, ClientCertificates)> = OnceLock::new();
    CERTIFICATES.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        for (file, text) in [
            ("ca-cert.pem", issuer.pem()),
            ("server-cert.pem", certificate.pem()),
            ("server-key.pem", key.serialize_pem()),
        ] {
            fs::write(dir.path().join(file), text).expect("write");
        }
        let server = Certificates::load(dir.path(), false).expect("good certificates");
        (server, ClientCertificates::load(Some(dir.path()), true).expect("good certificates"))
    })
}

/// A client and a server that have shaken hands.
fn pair() -> [Session; 2] {
    let (server, client) = certificates();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut server = Handshake::server(server.current()).expect("a server");
    let mut client = Handshake::client(client.current(), name).expect("a client");
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut done = [client.advance(&[], &mut to_server).expect("begins"), false];
    while done != [true, true] {
        done[1] = server.advance(&std::mem::take(&mut to_server), &mut to_client).expect("goes on");
        done[0] = client.advance(&std::mem::take(&mut to_client), &mut to_server).expect("goes on");
    }
    [client.finish().expect("a session").session, server.finish().expect("a session").session]
}

/// Even first byte: the rest goes to a server's handshake. Odd: a program of four bytes for each step, which seals, exchanges
/// keys, and spoils what is on the wire.
pub(crate) fn tls(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else { return };
    if first % 2 == 0 { handshake(rest, usize::from(first / 2) + 1) } else { records(rest) }
}

fn handshake(input: &[u8], piece: usize) {
    let mut server = Handshake::server(certificates().0.current()).expect("a server");
    let mut out = Vec::new();
    for part in input.chunks(piece) {
        match server.advance(part, &mut out) {
            Ok(done) => assert!(!done, "a handshake without the other end"),
            Err(_) => break,
        }
    }
    assert!(out.len() <= 8192, "{} bytes in answer to {}", out.len(), input.len());
}

fn records(program: &[u8]) {
    let [mut client, mut server] = pair();
    let (mut sealed, mut wire, mut spoiled) = (Vec::new(), Vec::new(), false);
    for step in program.chunks_exact(4).take(64) {
        let number = usize::from(u16::from_be_bytes([step[1], step[2]]));
        match step[0] % 8 {
            0..=3 => seal(&mut client, number % (16 << 10) + 1, step[3], &mut sealed, &mut wire),
            4 => client.wear_out_after(number as u64),
            5 if !wire.is_empty() => {
                let at = number % wire.len();
                wire[at] ^= step[3].max(1);
                spoiled = true;
            }
            6 if !wire.is_empty() => {
                let at = number % wire.len();
                let end = wire.len().min(at + usize::from(step[3]) + 1);
                wire.drain(at..end);
                spoiled = true;
            }
            7 if !wire.is_empty() => {
                let at = number % wire.len();
                let end = wire.len().min(at + usize::from(step[3]) + 1);
                let copy = wire[at..end].to_vec();
                wire.splice(at..at, copy);
                spoiled = true;
            }
            _ => {}
        }
    }
    let opened = open(&mut server, &mut wire);
    assert!(sealed.starts_with(&opened), "opened what was not sealed");
    assert!(spoiled || opened == sealed, "{} of {} bytes arrived", opened.len(), sealed.len());
}

fn seal(client: &mut Session, length: usize, seed: u8, sealed: &mut Vec<u8>, wire: &mut Vec<u8>) {
    let mut plain: Vec<u8> =
        (0..length).map(|at| at.to_le_bytes()[0].wrapping_mul(31).wrapping_add(seed)).collect();
    sealed.extend_from_slice(&plain);
    client.prepare(wire).expect("there is always another key");
    let (prefix, suffix) = client.overhead();
    let (mut prefix, mut suffix) = (vec![0; prefix], vec![0; suffix]);
    client.seal(&mut plain, &mut prefix, &mut suffix).expect("seals");
    wire.extend([prefix, plain, suffix].concat());
}

/// What a server takes for data, up to the first thing that it does not understand.
fn open(server: &mut Session, wire: &mut [u8]) -> Vec<u8> {
    let (mut opened, mut at) = (Vec::new(), 0);
    while let Ok(Some(length)) = server.record_length(&wire[at..]) {
        if wire.len() - at < length {
            break;
        }
        let record = &mut wire[at..at + length];
        match server.open(record) {
            Ok(Opened::Data(range)) => opened.extend_from_slice(&record[range]),
            Ok(Opened::Nothing) => {}
            Ok(Opened::Closed) | Err(_) => break,
        }
        at += length;
    }
    opened
}
