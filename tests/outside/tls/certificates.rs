//! Which certificates are accepted, and how those that are not are told.

use std::fs;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair, SerialNumber, date_time_ymd};
use tempfile::TempDir;

use super::authority::{client_params, server_params};
use super::{Authority, Secure, client_config, name};
use crate::client::{READ, Request};
use crate::haggle::{ACK, Haggle, STARTTLS};
use crate::server::Server;
use crate::wait::until;

const READ_ONLY: u16 = 1 << 1;

/// A directory that trusts `authority` and shows what `fill` puts there.
fn client_dir(authority: &Authority, fill: impl FnOnce(&Path)) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::copy(authority.path("ca-cert.pem"), dir.path().join("ca-cert.pem")).expect("copy");
    fill(dir.path());
    dir
}

/// The server must refuse the client of `dir` and log `reason`; the client must learn of it.
#[track_caller]
fn refused(server: &Server, dir: &TempDir, reason: &str) {
    let mut haggle = Haggle::new(&server.address);
    assert_eq!(haggle.outcome(STARTTLS, &[]).kind, ACK);
    // In TLS 1.3 a client is done before the server has looked at its certificate.
    let told = haggle.wire.secure(client_config(dir.path()), name());
    let told = told.and_then(|()| haggle.wire.try_receive(1).map(drop)).expect_err(reason);
    assert!(told.to_string().contains("fatal alert"), "{reason}: {told}");
    until(reason, || server.log().contains(&format!("no TLS: {reason}")));
}

#[test]
fn with_verify_peer_only_good_clients_get_in() {
    let authority = Authority::new("ringnbd tests");
    authority.issue_pair();
    authority.revoke(4711);
    let other = Authority::new("somebody else");
    let words = ["--tls", "require", "--tls-verify-peer", "--verbose", "memory:1M"].map(str::to_owned);
    let server = Server::tcp(super::options(authority.dir()).into_iter().chain(words));

    let good = client_dir(&authority, |dir| authority.issue_to(dir, "client", client_params("good")));
    let mut haggle = Haggle::new(&server.address);
    assert_eq!(haggle.outcome(STARTTLS, &[]).kind, ACK);
    haggle.wire.secure(client_config(good.path()), name()).expect("TLS begins");
    haggle.go("").is_alive("with a good certificate");

    let none = client_dir(&authority, |_| {});
    refused(&server, &none, "the client shows no certificate");
    let stranger = client_dir(&authority, |dir| other.issue_to(dir, "client", client_params("good")));
    refused(&server, &stranger, "client certificate signed by unknown CA");
    let expired = client_dir(&authority, |dir| {
        let mut params = client_params("late");
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        authority.issue_to(dir, "client", params);
    });
    refused(&server, &expired, "client certificate expired");
    let revoked = client_dir(&authority, |dir| {
        let mut params = client_params("lost");
        params.serial_number = Some(SerialNumber::from(4711_u64));
        authority.issue_to(dir, "client", params);
    });
    refused(&server, &revoked, "client certificate revoked");
    let own = client_dir(&authority, |dir| {
        let key = KeyPair::generate().expect("a key");
        let certificate = client_params("self").self_signed(&key).expect("a certificate");
        fs::write(dir.join("client-key.pem"), key.serialize_pem()).expect("write");
        fs::write(dir.join("client-cert.pem"), certificate.pem()).expect("write");
    });
    refused(&server, &own, "client certificate signed by unknown CA");
    haggle = Haggle::new(&server.address);
    haggle.outcome(STARTTLS, &[]);
    haggle.wire.secure(client_config(good.path()), name()).expect("TLS begins");
    haggle.go("").is_alive("after all those that were refused");
}

/// What a client finds wrong with the server's certificate, by rustls' own words, and how the server's log has it.
#[test]
fn clients_refuse_bad_servers_and_the_log_says_why() {
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    };
    let elsewhere = |params: &mut CertificateParams| {
        params.subject_alt_names.clear();
    };
    type Spoil = fn(&mut CertificateParams);
    let table: [(Spoil, &str); 2] =
        [(expired, "our certificate has expired"), (elsewhere, "the client ended it")];
    for (spoil, reason) in table {
        let authority = Authority::new("ringnbd tests");
        let mut params = server_params();
        spoil(&mut params);
        authority.issue("server", params);
        let words = ["--tls", "require", "--verbose", "memory:1M"].map(str::to_owned);
        let server = Server::tcp(super::options(authority.dir()).into_iter().chain(words));
        let mut haggle = Haggle::new(&server.address);
        haggle.outcome(STARTTLS, &[]);
        haggle.wire.secure(client_config(authority.dir()), name()).expect_err("a bad certificate");
        until(reason, || server.log().contains(reason));
    }
    let authority = Authority::new("somebody else");
    let secure = Secure::start(&["--tls", "require", "--verbose", "memory:1M"]);
    let mut haggle = Haggle::new(&secure.server.address);
    haggle.outcome(STARTTLS, &[]);
    haggle.wire.secure(client_config(authority.dir()), name()).expect_err("another CA");
    until("the log says so", || secure.server.log().contains("it does not know the CA of our certificate"));
}

#[test]
fn rules_go_by_the_certificate() {
    let authority = Authority::new("ringnbd tests");
    authority.issue_pair();
    let words = [
        "--tls",
        "on",
        "--tls-verify-peer",
        "--allow",
        "cn=admin",
        "--allow",
        "cn=guest*,right=read",
        "--allow",
        "tls=off,export=public,right=read",
        "disk=memory:1M",
        "public=memory:1M",
    ]
    .map(str::to_owned);
    let server = Server::tcp(super::options(authority.dir()).into_iter().chain(words));
    for (name_of_client, read_only) in [("admin", Some(false)), ("guest-7", Some(true)), ("nobody", None)] {
        let dir =
            client_dir(&authority, |dir| authority.issue_to(dir, "client", client_params(name_of_client)));
        let mut haggle = Haggle::new(&server.address);
        haggle.outcome(STARTTLS, &[]);
        haggle.wire.secure(client_config(dir.path()), name()).expect("TLS begins");
        match read_only {
            Some(read_only) => {
                let client = haggle.go("disk");
                assert_eq!(client.flags & READ_ONLY != 0, read_only, "{name_of_client}");
            }
            None => {
                let payload = crate::haggle::export_query("disk", &[]);
                haggle.refused(crate::haggle::GO, &payload, crate::haggle::UNKNOWN, name_of_client);
            }
        }
    }
    let mut plain = Haggle::new(&server.address).go("public");
    plain.call(&Request::new(READ, 0, 512)).ok("without TLS");
}
