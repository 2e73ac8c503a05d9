//! Stalls, cuts, a thousand handshakes, new certificates under load.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rcgen::date_time_ymd;
use rustix::process::Signal;

use super::authority::server_params;
use super::{Authority, Secure, client_config, name};
use crate::client::{Dialect, READ, Request};
use crate::haggle::{ACK, Haggle, STARTTLS};
use crate::scratch::pattern;
use crate::wait::until;

#[test]
fn a_handshake_that_stalls_is_closed() {
    let secure = Secure::start(&["--tls", "require", "--handshake-timeout", "500ms", "memory:1M"]);
    for begun in [&[][..], &[22, 3, 1, 2, 0, 1, 0, 1]] {
        let mut haggle = Haggle::new(&secure.server.address);
        assert_eq!(haggle.outcome(STARTTLS, &[]).kind, ACK);
        haggle.wire.send(begun);
        haggle.wire.expect_close("a TLS handshake that does not go on");
    }
    until("it is logged", || secure.server.log().matches("no handshake within 500ms").count() == 2);
    secure.haggle().go("").is_alive("after the stalled ones");
}

/// Garbage instead of a record, and records that were changed on the way: told by an alert, closed, nothing executed.
#[test]
fn records_that_were_changed_end_the_session() {
    let secure = Secure::start(&["--tls", "require", "--verbose", "memory:1M"]);
    for (bytes, reason) in [
        (&b"\x17\x03\x03\x00\x20 this is not what it should be !!"[..], "cannot be decrypted"),
        (b"IHAVEOPT plaintext again", "bytes that are not a record"),
        (b"\x17\x03\x03\xff\xff", "a record that is too long"),
        (b"\x16\x03\x03\x00\x04\x01\x00\x00\x00", "a record that is not encrypted"),
    ] {
        let mut client = secure.haggle().go("");
        client.is_alive("before");
        client.wire.send_raw(bytes);
        let told = client.wire.try_receive(1).expect_err("the session is over");
        assert!(told.to_string().contains("fatal alert"), "{reason}: {told}");
        until(reason, || secure.server.log().contains(reason));
    }
    secure.haggle().go("").is_alive("another session");
}

#[test]
fn an_end_without_close_notify_is_noted() {
    let secure = Secure::start(&["--tls", "require", "--verbose", "memory:1M"]);
    let mut client = secure.haggle().go("");
    client.is_alive("before");
    client.wire.finish_sending();
    until("it is logged", || secure.server.log().contains("cut off: without close_notify"));
    let mut client = secure.haggle().go("");
    client.is_alive("before");
    client.wire.close_notify();
    client.wire.finish_sending();
    // The server's own close_notify comes; without it this fails.
    client.wire.expect_close("after close_notify");
    assert_eq!(secure.server.log().matches("cut off").count(), 1);
}

/// A client that has said all it wants to say still gets every answer.
#[test]
fn a_half_closed_session_gets_its_answers() {
    let secure = Secure::start(&["--tls", "require", "memory:4M"]);
    let mut client = secure.haggle().dialect(Dialect::Structured).go("");
    let data = pattern(3, 1 << 20);
    client.write(0, &data);
    for _ in 0..16 {
        client.submit(&Request::new(READ, 0, 1 << 20));
    }
    client.wire.close_notify();
    client.wire.finish_sending();
    for _ in 0..16 {
        assert!(client.reply().data(0, 1 << 20) == data);
    }
    client.wire.expect_close("after the last answer");
}

#[test]
fn a_thousand_handshakes_leave_nothing() {
    let secure = Secure::start(&["--tls", "require", "--tls-verify-peer", "memory:1M"]);
    let some = |count: usize| {
        for index in 0..count {
            let haggle = secure.haggle();
            match index % 4 {
                0 => haggle.go("").disconnect(),
                1 => drop(haggle),
                2 => haggle.wire.vanish(),
                _ => {
                    let mut haggle = Haggle::new(&secure.server.address);
                    haggle.outcome(STARTTLS, &[]);
                    haggle.wire.send([0x80; 100]);
                    haggle.wire.rest();
                }
            }
        }
        secure.server.comes_to_rest();
    };
    some(200);
    let before = secure.server.memory();
    some(1000);
    let after = secure.server.memory();
    assert!(after < before + (2 << 20), "{before} bytes before, {after} after");
}

#[test]
fn certificates_are_exchanged_under_load() {
    let mut secure = Secure::start(&["--tls", "require", "--verbose", "memory:4M"]);
    let mut old = secure.haggle().dialect(Dialect::Structured).go("");
    let data = pattern(9, 100_000);
    old.write(0, &data);
    let reload = |secure: &Secure, expected: &str, count: usize| {
        secure.server.signal(Signal::HUP);
        until(expected, || secure.server.log().matches(expected).count() == count);
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, data) = (&done, &data);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                assert!(old.read(0, data.len()) == *data, "the session from before");
            }
            old.disconnect();
        });
        let fresh = Authority::new("the next CA");
        fresh.issue_pair();
        for file in ["server-cert.pem", "server-key.pem"] {
            fs::copy(fresh.path(file), secure.authority.path(file)).expect("copy");
        }
        reload(&secure, "certificates loaded again", 1);
        let mut haggle = Haggle::new(&secure.server.address);
        haggle.outcome(STARTTLS, &[]);
        haggle.wire.secure(client_config(secure.authority.dir()), name()).expect_err("the CA from before");
        let mut haggle = Haggle::new(&secure.server.address);
        haggle.outcome(STARTTLS, &[]);
        haggle.wire.secure(client_config(fresh.dir()), name()).expect("the next CA");
        haggle.go("").is_alive("with the next certificate");

        fs::write(secure.authority.path("server-cert.pem"), "broken").expect("write");
        reload(&secure, "the certificates from before stay in use", 1);
        let mut brief = server_params();
        brief.not_before = date_time_ymd(2020, 1, 1);
        brief.not_after = date_time_ymd(2021, 1, 1);
        let mut haggle = Haggle::new(&secure.server.address);
        haggle.outcome(STARTTLS, &[]);
        haggle.wire.secure(client_config(fresh.dir()), name()).expect("the one from before stays");
        fresh.issue("server", brief);
        for file in ["server-cert.pem", "server-key.pem"] {
            fs::copy(fresh.path(file), secure.authority.path(file)).expect("copy");
        }
        reload(&secure, "has expired: clients refuse it", 1);
        done.store(true, Ordering::Relaxed);
    });
    secure.server.stop();
}
