//! TLS: against everybody's servers, with every kind of wrong certificate, and through every command.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use ringnbd::client::{Buffer, Client, ConnectError, Options, Uri, survey};
use ringnbd::proto::SurveyConfig;
use ringnbd::rt;
use rustix::process::Signal;

use crate::certificates::{Authority, client, complete, elsewhere, expired, numbered, server, trusting};
use crate::others::{exercise, nbdkit, qemu_nbd, several};
use crate::program::{Daemon, Process, Scratch, program};
use crate::reconnect::{progress, under_load};
use crate::script::with_client;
use crate::wait::PATIENCE;

const SIZE: u64 = 4 << 20;

/// The URI of `export` on the scratch's socket, by TLS, with the certificates in `directory`.
fn secure(scratch: &Scratch, export: &str, directory: &Path) -> String {
    let socket = scratch.socket();
    format!("nbds+unix:///{export}?socket={}&tls-certificates={}", socket.display(), directory.display())
}

/// nbdkit that takes TLS connections only, and of those only clients of its CA.
fn strict_nbdkit(scratch: &Scratch, directory: &Path, words: &[&str]) -> Process {
    let certificates = format!("--tls-certificates={}", directory.display());
    nbdkit(scratch, &[&["--tls=require", "--tls-verify-peer", &certificates], words].concat())
}

/// The same by nbdkit that does not ask who its clients are.
fn open_nbdkit(scratch: &Scratch, directory: &Path) -> Process {
    let certificates = format!("--tls-certificates={}", directory.display());
    nbdkit(scratch, &["--tls=require", &certificates, "memory", "4M"])
}

fn strict_ringnbd(scratch: &Scratch, directory: &Path, words: &[&str]) -> Process {
    let directory = directory.display().to_string();
    let tls = ["--tls", "require", "--tls-verify-peer", "--tls-certificates", &directory];
    Process::ringnbd(&scratch.socket(), &[&tls[..], words].concat())
}

/// Connects once and says why that failed.
#[track_caller]
fn refused(uri: &str) -> String {
    let uri = Uri::parse(uri).unwrap();
    let outcome = rt::block_on(async move { Client::open(&uri, Options::default()).await.map(|_| ()) });
    outcome.unwrap().expect_err("a refusal").to_string()
}

#[track_caller]
fn reached(uri: &str) {
    with_client(uri, Options::default(), |client| async move {
        client.read_at(0, &mut [1; 4096]).await.unwrap();
        client.disconnect().await;
    });
}

#[test]
fn nbdkit_takes_everything() {
    let (authority, scratch) = (complete(), Scratch::new());
    let _server = strict_nbdkit(&scratch, authority.dir(), &["memory", "4M"]);
    with_client(&secure(&scratch, "", authority.dir()), several(), |client| async move {
        assert!(client.link().tls);
        exercise(client).await;
    });
}

#[test]
fn qemu_nbd_takes_everything() {
    let (authority, scratch) = (complete(), Scratch::new());
    let credentials =
        format!("tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir={}", authority.dir().display());
    let _server = qemu_nbd(&scratch, &["--object", &credentials, "--tls-creds", "tls0"]);
    with_client(&secure(&scratch, "", authority.dir()), several(), exercise);
}

#[test]
fn nbd_server_takes_everything() {
    let (authority, scratch) = (complete(), Scratch::new());
    let (socket, image) = (scratch.socket(), scratch.image("disk", SIZE));
    let [config, pid_file] = ["config", "pid"].map(|name| scratch.dir.path().join(name));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[generic]\nunixsock = {}\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\nforce_tls = true\n\
         certfile = {place}/server-cert.pem\nkeyfile = {place}/server-key.pem\ncacertfile = {place}/ca-cert.pem\n\
         [disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
        socket.display(),
        image.display(),
        place = authority.dir().display()
    );
    fs::write(&config, text).unwrap();
    let [config, pid] = [&config, &pid_file].map(|path| path.display().to_string());
    let _server = Daemon::start(&socket, &pid_file, "nbd-server", &["-C", &config, "-p", &pid]);
    with_client(&secure(&scratch, "disk", authority.dir()), several(), exercise);
}

#[test]
fn our_own_server_takes_everything_in_every_dialect() {
    let authority = complete();
    for (extended, structured) in [(true, true), (false, true), (false, false)] {
        let scratch = Scratch::new();
        let image = scratch.image("disk", SIZE).display().to_string();
        let _server = strict_ringnbd(&scratch, authority.dir(), &[&image]);
        let mut options = several();
        (options.extended, options.structured) = (extended, structured);
        with_client(&secure(&scratch, "", authority.dir()), options, exercise);
    }
}

#[test]
fn over_tcp_the_host_is_whom_the_certificate_has_to_name() {
    let (by_both, by_name) = (complete(), complete());
    let mut nameless = server();
    nameless.subject_alt_names.truncate(1);
    by_name.issue("server", nameless);
    let start = |authority: &Authority| {
        let place = authority.dir().display().to_string();
        let words = ["--tls", "require", "--tls-certificates", &place, "null:4M"];
        let (process, port) = Process::ringnbd_on_tcp(&words);
        (process, move |host: &str| format!("nbds://{host}:{port}/?tls-certificates={place}"))
    };
    let (_both, uri) = start(&by_both);
    reached(&uri("localhost"));
    reached(&uri("127.0.0.1"));
    let (_name, uri) = start(&by_name);
    reached(&uri("localhost"));
    let said = refused(&uri("127.0.0.1"));
    assert!(said.contains("server certificate for another name") && said.contains("127.0.0.1"), "{said}");
    reached(&format!("{}&tls-hostname=localhost", uri("127.0.0.1")));
}

/// Each wrong certificate has words of its own; with the right one all is well.
#[test]
fn wrong_certificates_of_servers_are_told_apart() {
    let authority = complete();
    let other = Authority::new("another CA");
    let trust = trusting(&authority, "trust");
    let cases = [
        (&authority, server(), None),
        (&other, server(), Some("server certificate signed by unknown CA")),
        (&authority, elsewhere(), Some("server certificate for another name")),
        (&authority, expired(server()), Some("server certificate expired")),
        (&authority, numbered(server(), 4711), Some("server certificate revoked")),
        (&authority, client("localhost"), Some("server certificate not made for this purpose")),
    ];
    authority.revoke(4711);
    fs::copy(authority.path("ca-crl.pem"), trust.join("ca-crl.pem")).unwrap();
    for (signer, params, expected) in cases {
        let (scratch, place) = (Scratch::new(), tempfile::tempdir().unwrap());
        signer.issue_to(place.path(), "server", params);
        fs::copy(signer.path("ca-cert.pem"), place.path().join("ca-cert.pem")).unwrap();
        let _server = open_nbdkit(&scratch, place.path());
        let uri = secure(&scratch, "", &trust);
        match expected {
            None => reached(&uri),
            Some(expected) => {
                let said = refused(&uri);
                assert!(said.contains("TLS: ") && said.contains(expected), "{expected}: {said}");
                // Only who says so does without the proof.
                reached(&format!("{uri}&tls-verify-peer=0"));
            }
        }
    }
}

#[test]
fn wrong_certificates_of_ours_are_told_apart() {
    let authority = complete();
    let other = Authority::new("another CA");
    let (nobody, gone) = (trusting(&authority, "nobody"), trusting(&authority, "gone"));
    authority.issue_to(&gone, "client", expired(client("client")));
    let stranger = trusting(&authority, "stranger");
    other.issue_to(&stranger, "client", client("client"));
    let scratch = Scratch::new();
    let _server = strict_ringnbd(&scratch, authority.dir(), &["null:4M"]);
    reached(&secure(&scratch, "", authority.dir()));
    for (place, expected) in [
        (&nobody, "the server ended it: it wants a certificate of ours"),
        (&gone, "the server ended it: our certificate has expired"),
        (&stranger, "the server ended it: it does not know the CA of our certificate"),
    ] {
        let said = refused(&secure(&scratch, "", place));
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn files_that_are_no_use_are_named_before_anybody_is_asked() {
    let authority = complete();
    let scratch = Scratch::new();
    let nowhere = scratch.dir.path().join("nowhere");
    let said = refused(&secure(&scratch, "", &nowhere));
    assert!(said.contains("nowhere/ca-cert.pem") && said.contains("right directory"), "{said}");
    let half = trusting(&authority, "half");
    fs::copy(authority.path("client-cert.pem"), half.join("client-cert.pem")).unwrap();
    let said = refused(&secure(&scratch, "", &half));
    assert!(said.contains("half/client-key.pem"), "{said}");
    let said = refused(&format!("{}&tls-hostname=a%20b", secure(&scratch, "", authority.dir())));
    assert!(said.contains("\"a b\" is not a name") && said.contains("tls-hostname="), "{said}");
}

#[test]
fn who_wants_tls_and_who_has_it_find_out() {
    let authority = complete();
    let (plain, strict) = (Scratch::new(), Scratch::new());
    let _plain = nbdkit(&plain, &["memory", "4M"]);
    let _strict = open_nbdkit(&strict, authority.dir());
    let said = refused(&secure(&plain, "", authority.dir()));
    assert!(said.contains("STARTTLS") && said.contains("nbd instead of nbds"), "{said}");
    let said = refused(&strict.uri(""));
    assert!(said.contains("demands TLS") && said.contains("write nbds instead of nbd"), "{said}");
    for (scratch, expected) in [(&plain, false), (&strict, true)] {
        let allow = secure(scratch, "", authority.dir()).replacen("nbds", "nbd", 1) + "&tls=allow";
        with_client(&allow, Options::default(), move |client| async move {
            assert_eq!(client.link().tls, expected);
            client.read_at(0, &mut [1; 4096]).await.unwrap();
            client.disconnect().await;
        });
    }
    // A server that begins TLS and cannot prove who it is, is not asked again without.
    let wrong = complete();
    let allow = secure(&strict, "", wrong.dir()).replacen("nbds", "nbd", 1) + "&tls=allow";
    assert!(
        refused(&allow).contains("unknown CA") || refused(&allow).contains("another CA"),
        "{}",
        refused(&allow)
    );
}

#[test]
fn without_a_directory_the_systems_authorities_are_asked() {
    let (authority, scratch) = (complete(), Scratch::new());
    let _server = open_nbdkit(&scratch, authority.dir());
    let uri = format!("nbds+unix:///?socket={}", scratch.socket().display());
    let said = refused(&uri);
    assert!(said.contains("signed by unknown CA") || said.contains("the system has no CA"), "{said}");
    reached(&format!("{uri}&tls-verify-peer=0"));
}

/// What is written comes back as it was given, and whole, also when it is sent in many records.
#[test]
fn a_payload_is_sent_encrypted_and_kept_as_it_is() {
    let (authority, scratch) = (complete(), Scratch::new());
    let _server = strict_nbdkit(&scratch, authority.dir(), &["memory", "64M"]);
    with_client(&secure(&scratch, "", authority.dir()), Options::default(), |client| async move {
        for length in [1, 512, 16_383, 16_384, 16_385, 300_000, 8 << 20] {
            let content: Vec<u8> =
                (0..length).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let mut buffer = Buffer::acquire(content.len()).await;
            buffer.copy_from_slice(&content);
            let (result, buffer) = client.write(4096, buffer).await;
            result.unwrap();
            assert!(buffer[..] == content[..], "{length}: the caller's buffer");
            let mut target = vec![0; content.len()];
            client.read_at(4096, &mut target).await.unwrap();
            assert!(target == content, "{length}: what is there");
        }
        client.disconnect().await;
    });
}

/// Requests in flight are sent again, by a session of new keys; certificates are read again.
#[test]
fn a_killed_server_comes_back_with_another_certificate() {
    let (authority, scratch) = (complete(), Scratch::new());
    let image = scratch.image("disk", crate::reconnect::SIZE).display().to_string();
    let place = authority.dir();
    let start = || strict_ringnbd(&scratch, place, &[&image]);
    let mut running = start();
    under_load(&secure(&scratch, "", place), 3, |shared| {
        for _ in 0..3 {
            progress(shared);
            running.end(Signal::KILL);
            authority.issue_to(place, "server", server());
            running = start();
        }
        progress(shared);
        running
    });
}

fn ringnbd(words: &[&str]) -> Output {
    Command::new(program()).args(words).output().unwrap()
}

#[track_caller]
fn succeeds(words: &[&str]) -> String {
    let output = ringnbd(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_takes_it() {
    let (authority, scratch) = (complete(), Scratch::new());
    let (image, copy) = (scratch.image("disk", SIZE), scratch.dir.path().join("copy"));
    fs::write(&image, vec![7; SIZE as usize]).unwrap();
    let _server = strict_ringnbd(&scratch, authority.dir(), &[&image.display().to_string()]);
    let uri = secure(&scratch, "", authority.dir());
    assert_eq!(succeeds(&["info", "--size", &uri]).trim(), SIZE.to_string());
    assert!(ringnbd(&["info", "--is", "tls", &uri]).status.success());
    let described = succeeds(&["info", &uri]);
    assert!(described.contains("with TLS") && described.contains(&format!("\turi: {uri}\n")), "{described}");
    assert!(succeeds(&["info", "--list", "--json", &uri]).contains("\"TLS\": true"));
    assert!(succeeds(&["info", "--map", &uri]).contains("data"));
    succeeds(&["copy", &uri, &copy.display().to_string()]);
    assert!(fs::read(&copy).unwrap() == vec![7; SIZE as usize]);
    let words = ["--rw", "randrw", "--bs", "4k/80:64k", "--iodepth", "8", "--numjobs", "2", "--fsync", "32"];
    let bench = [&["bench"], &words[..], &["--verify", "--runtime", "1", "--ramp", "0", &uri]].concat();
    assert!(succeeds(&bench).contains("IOPS") || succeeds(&bench).contains("iops"));
    let output = ringnbd(&["attach", &uri]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("the kernel's client has no TLS"), "{said}");
}

/// A node adds TLS to a server that has none, and speaks TLS to one that wants it.
#[test]
fn a_node_in_front_adds_tls_or_takes_it_off() {
    let authority = complete();
    let (plain, wrapped, unwrapped) = (Scratch::new(), Scratch::new(), Scratch::new());
    let _plain = nbdkit(&plain, &["memory", "4M"]);
    let _wrapped = strict_ringnbd(&wrapped, authority.dir(), &[&plain.uri("")]);
    let uri = secure(&wrapped, "", authority.dir());
    // A comma in an export's words is written twice; there is none in this one.
    let _unwrapped = Process::ringnbd(&unwrapped.socket(), &[&uri]);
    with_client(&uri, several(), exercise);
    with_client(&unwrapped.uri(""), several(), exercise);
}

/// nbdinfo of this age knows the same URIs.
#[test]
fn a_server_is_described_as_by_nbdinfo() {
    let (authority, scratch) = (complete(), Scratch::new());
    let _server = strict_nbdkit(&scratch, authority.dir(), &["memory", "4M"]);
    let uri = secure(&scratch, "", authority.dir());
    for words in [&["--no-content"][..], &["--no-content", "--json"], &["--map"], &["--is", "tls"]] {
        let ours = ringnbd(&[&["info"], words, &[&uri]].concat());
        let theirs = Command::new("nbdinfo").args(words).arg(&uri).output().unwrap();
        let text = |output: &Output| String::from_utf8(output.stdout.clone()).unwrap();
        assert_eq!((text(&ours), ours.status.code()), (text(&theirs), theirs.status.code()), "{words:?}");
    }
}

#[test]
fn an_error_of_tls_is_one_for_programs_too() {
    let (authority, scratch) = (complete(), Scratch::new());
    let _server = open_nbdkit(&scratch, authority.dir());
    let uri = Uri::parse(&secure(&scratch, "", Authority::new("x").dir())).unwrap();
    let outcome = rt::block_on(async move { Client::open(&uri, Options::default()).await.map(|_| ()) });
    assert!(matches!(outcome.unwrap(), Err(ConnectError::Certificates(_) | ConnectError::Tls { .. })));
}

/// What rules say of a client: the size of what it can open, and whether it may write.
fn seen(scratch: &Scratch, export: &str, directory: &Path) -> Option<(String, bool)> {
    let uri = secure(scratch, export, directory);
    let info = |words: &[&str]| Command::new("nbdinfo").args(words).arg(&uri).output().unwrap();
    let size = info(&["--size"]);
    let size = size.status.success().then(|| String::from_utf8(size.stdout).unwrap().trim().to_owned())?;
    Some((size, info(&["--can", "write"]).status.success()))
}

/// Rules by everything that a certificate says, for nbdinfo, qemu-img and our own client.
#[test]
fn rules_tell_clients_apart_by_what_their_certificates_say() {
    let (authority, scratch) = (complete(), Scratch::new());
    let words = [
        "--deny",
        "san=dns:lost.TEST",
        "--allow",
        "dn=CN=admin,,O=Example",
        "--allow",
        "cn=guest-*,export=b,right=read",
        "--allow",
        "issuer=CN=a CA,export=c,right=list",
        "a=memory:1M",
        "b=memory:2M",
        "c=memory:3M",
    ];
    let _server = strict_ringnbd(&scratch, authority.dir(), &words);
    let place = |name: &str| {
        let place = trusting(&authority, name);
        authority.issue_to(&place, "client", client(name));
        place
    };
    let megabytes = |count: u64, writes| Some(((count << 20).to_string(), writes));
    for (name, expected, listed) in [
        ("admin", [megabytes(1, true), megabytes(2, true), megabytes(3, true)], &["a", "b", "c"][..]),
        ("guest-1", [None, megabytes(2, false), None], &["b", "c"]),
        ("nobody", [None, None, None], &["c"]),
        // A name that would look like the admin's, if names were put together without care.
        ("admin,O=Example", [None, None, None], &["c"]),
        ("lost", [None, None, None], &[]),
    ] {
        let place = place(name);
        assert_eq!(["a", "b", "c"].map(|export| seen(&scratch, export, &place)), expected, "{name}");
        let uri = Uri::parse(&secure(&scratch, "", &place)).unwrap();
        let found = rt::block_on(async move { survey(&uri, SurveyConfig::default(), PATIENCE).await });
        let names: Vec<_> = found.unwrap().unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, listed, "{name}");
        let credentials = format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={}",
            place.display().to_string().replace(',', ",,")
        );
        let image = format!(
            "driver=nbd,server.type=unix,server.path={},export=b,tls-creds=tls0,tls-hostname=localhost",
            scratch.socket().display()
        );
        let qemu = Command::new("qemu-img")
            .args(["info", "--object", &credentials, "--image-opts", &image])
            .output()
            .unwrap_or_else(|error| panic!("qemu-img: {error} (tests/run installs the peers)"));
        let said = String::from_utf8_lossy(&qemu.stdout).into_owned();
        assert_eq!(qemu.status.success(), expected[1].is_some(), "{name}: {said}");
    }
}
