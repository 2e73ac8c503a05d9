//! libnbd, QEMU, GnuTLS and OpenSSL.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use super::{Authority, Secure};
use crate::haggle::{FIXED, NO_ZEROES, STARTTLS, option};
use crate::program::{nbdsh, run};
use crate::scratch::{MIB, Scratch, on_disk};
use crate::server::Server;
use crate::wait::until;
use crate::wire::Address;

#[test]
fn libnbd_copies_both_ways_on_tcp_and_unix() {
    let authority = Authority::new("ringnbd tests");
    authority.issue_pair();
    let scratch = Scratch::new();
    let source = scratch.full("source", 24 * MIB);
    let disk = scratch.sparse("disk", 24 * MIB);
    let back = scratch.path("back");
    let words = || {
        let options = ["--tls", "require", "--tls-verify-peer"].map(str::to_owned);
        let export = disk.display().to_string();
        super::options(authority.dir()).into_iter().chain(options).chain([export]).collect()
    };
    let starts: [fn(Vec<String>) -> Server; 2] = [Server::tcp, Server::start];
    for start in starts {
        let server = start(words());
        // What other programs than libnbd verify by name has no name on a unix socket.
        let uri = match &server.address {
            Address::Tcp(_) => server.uri_with_tls("", authority.dir()),
            Address::Unix(_) => server.uri_with_tls("", authority.dir()).replace("///", "//localhost/"),
        };
        let info = run("nbdinfo", [&uri]).ok();
        assert!(info.contains("newstyle-fixed with TLS"), "{info}");
        let [source, back] = [&source, &back].map(|path| path.to_str().expect("UTF-8"));
        run("nbdcopy", ["--connections=2", "--flush", source, &uri]).ok();
        assert!(on_disk(&disk, 0, 24 << 20) == on_disk(source.as_ref(), 0, 24 << 20), "to the server");
        run("nbdcopy", [&uri, back]).ok();
        assert!(on_disk(back.as_ref(), 0, 24 << 20) == on_disk(&disk, 0, 24 << 20), "from the server");
        std::fs::remove_file(back).expect("remove");
        let script = "h.connect_uri(uri)\nassert h.get_tls_negotiated()\n\
                      h.pwrite(b'x' * 100000, 5)\nassert h.pread(100000, 5) == b'x' * 100000\nh.shutdown()\n";
        // nbdsh keeps URIs from naming files unless it is told that they may.
        nbdsh(&uri, &format!("h.set_uri_allow_local_file(True)\n{script}"));
        let refused = run("nbdinfo", [&server.uri("")]);
        assert!(!refused.success, "without TLS: {}", refused.stdout);
    }
}

#[test]
fn qemu_converts_with_its_own_credentials() {
    let secure = Secure::start(&["--tls", "require", "--tls-verify-peer", "memory:16M"]);
    let scratch = Scratch::new();
    let source = scratch.full("source", 16 * MIB);
    let back = scratch.path("back");
    let Address::Tcp(address) = secure.server.address else { panic!("a TCP server") };
    let credentials =
        format!("tls-creds-x509,id=tls,endpoint=client,dir={}", secure.authority.dir().display());
    let target =
        format!("driver=nbd,host=127.0.0.1,port={},tls-creds=tls,tls-hostname=localhost", address.port());
    let convert =
        |words: &[&str]| run("qemu-img", [&["convert", "--object", &credentials], words].concat()).ok();
    convert(&["-n", "--target-image-opts", "-f", "raw", source.to_str().expect("UTF-8"), &target]);
    convert(&["--image-opts", &target, "-O", "raw", back.to_str().expect("UTF-8")]);
    assert!(on_disk(&back, 0, 16 << 20) == on_disk(&source, 0, 16 << 20));
}

/// Takes one connection, says STARTTLS for whoever made it, then hands everything on.
fn bridge(server: &Address) -> SocketAddr {
    let Address::Tcp(server) = *server else { panic!("a TCP server") };
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || -> io::Result<()> {
        let (near, _) = listener.accept()?;
        let far = TcpStream::connect(server)?;
        let mut say = &far;
        io::copy(&mut io::Read::take(&far, 18), &mut io::sink())?;
        io::Write::write_all(&mut say, &(FIXED | NO_ZEROES).to_be_bytes())?;
        io::Write::write_all(&mut say, &option(STARTTLS, &[]))?;
        io::copy(&mut io::Read::take(&far, 20), &mut io::sink())?;
        let (back_from, back_to) = (far.try_clone()?, near.try_clone()?);
        let back = thread::spawn(move || {
            let _ = io::copy(&mut &back_from, &mut &back_to);
            let _ = back_to.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut &near, &mut &far);
        let _ = far.shutdown(Shutdown::Write);
        let _ = back.join();
        Ok(())
    });
    address
}

#[test]
fn openssl_agrees_on_12_and_13_and_not_on_11() {
    let secure = Secure::start(&["--tls", "require", "--verbose", "memory:1M"]);
    let ca = secure.authority.path("ca-cert.pem");
    let connect = |words: &[&str]| {
        let at = bridge(&secure.server.address).to_string();
        let ca = ca.to_str().expect("UTF-8");
        let base = ["s_client", "-connect", &at, "-CAfile", ca, "-verify_hostname", "localhost"];
        run("openssl", [&base[..], &["-verify_return_error"], words].concat())
    };
    for (version, words) in [
        ("TLSv1.3", &["-tls1_3"][..]),
        ("TLSv1.2", &["-tls1_2"]),
        ("TLS_CHACHA20_POLY1305_SHA256", &["-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"]),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]),
    ] {
        let said = connect(words).ok();
        assert!(said.contains(version) && said.contains("Verification: OK"), "{version}: {said}");
    }
    let old = connect(&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
    assert!(!old.success, "{}", old.stdout);
    until("the log says why", || secure.server.log().contains("the client speaks neither TLS 1.2 nor 1.3"));
}

#[test]
fn gnutls_agrees_and_its_renegotiation_is_refused() {
    let secure = Secure::start(&["--tls", "require", "--verbose", "memory:1M"]);
    let ca = secure.authority.path("ca-cert.pem").display().to_string();
    let connect = |words: &[&str]| {
        let port = bridge(&secure.server.address).port().to_string();
        let base = ["--x509cafile", &ca, "--verify-hostname", "localhost", "-p", &port];
        run("gnutls-cli", [&base[..], words, &["127.0.0.1"]].concat())
    };
    for (version, priority) in
        [("TLS1.3", "NORMAL:-VERS-ALL:+VERS-TLS1.3"), ("TLS1.2", "NORMAL:-VERS-ALL:+VERS-TLS1.2")]
    {
        let said = connect(&["--priority", priority]).ok();
        assert!(said.contains("Handshake was completed") && said.contains(version), "{version}: {said}");
    }
    let old = connect(&["--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.1:%VERIFY_ALLOW_SIGN_WITH_SHA1"]);
    assert!(!old.success, "{}", old.stdout);
    connect(&["--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.2", "--rehandshake"]);
    until("the log says what the client wanted", || secure.server.log().contains("wants to negotiate again"));
}
