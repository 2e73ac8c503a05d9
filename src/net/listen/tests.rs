use std::os::unix::net::UnixListener;

use super::*;

fn tcp(host: &str, port: u16) -> Listen {
    Listen::Tcp { host: host.to_owned(), port }
}

#[test]
fn addresses_parse_and_print_the_same() {
    let table = [
        ("tcp:127.0.0.1:10809", tcp("127.0.0.1", 10809), "tcp:127.0.0.1:10809"),
        ("localhost:1", tcp("localhost", 1), "tcp:localhost:1"),
        ("localhost", tcp("localhost", PORT), "tcp:localhost:10809"),
        (":0", tcp("", 0), "tcp::0"),
        ("[::1]:7", tcp("::1", 7), "tcp:[::1]:7"),
        ("tcp:[::1]", tcp("::1", PORT), "tcp:[::1]:10809"),
        ("unix:/run/a b", Listen::Unix("/run/a b".into()), "unix:/run/a b"),
        ("vsock:3:10809", Listen::Vsock { cid: 3, port: 10809 }, "vsock:3:10809"),
        ("vsock:any:70000", Listen::Vsock { cid: VSOCK_ANY, port: 70_000 }, "vsock:any:70000"),
    ];
    for (text, expected, printed) in table {
        let parsed = Listen::parse(text).expect(text);
        assert_eq!(parsed, expected, "{text}");
        assert_eq!(parsed.to_string(), printed);
    }
    for text in
        ["", "tcp:", "host:port", "::1:10809", "[::1", "[x]:1", "h:65536", "unix:", "vsock:3", "a b:1"]
    {
        Listen::parse(text).expect_err(text);
    }
}

#[test]
fn uris_name_an_address_that_a_client_can_dial() {
    assert_eq!(tcp("0.0.0.0", 10809).uri(""), "nbd://127.0.0.1:10809/");
    assert_eq!(tcp("::", 1).uri("a b"), "nbd://[::1]:1/a%20b");
    assert_eq!(Listen::Unix("/tmp/a+b".into()).uri("x"), "nbd+unix:///x?socket=/tmp/a%2Bb");
    assert_eq!(Listen::Vsock { cid: VSOCK_ANY, port: 9 }.uri(""), "nbd+vsock://1:9/");
}

#[test]
fn uris_through_tls_name_the_certificates() {
    let listeners = Listen::parse("127.0.0.1:0").expect("parses").bind(1).expect("binds");
    let uri = listeners[0].uri_with_tls("a", Path::new("/etc/a b"));
    assert!(uri.starts_with("nbds://127.0.0.1:") && uri.ends_with("/a?tls-certificates=/etc/a%20b"), "{uri}");
    let dir = tempfile::tempdir().expect("temporary directory");
    let listeners = Listen::Unix(dir.path().join("s")).bind(1).expect("binds");
    let uri = listeners[0].uri_with_tls("", Path::new("/c"));
    assert!(uri.starts_with("nbds+unix:///?socket=/") && uri.ends_with("/s&tls-certificates=/c"), "{uri}");
}

#[test]
fn a_free_port_is_chosen_and_told() {
    let listeners = Listen::parse("127.0.0.1:0").expect("parses").bind(8).expect("binds");
    assert!(matches!(&listeners[..], [Listener { bound: Listen::Tcp { port: 1.., .. }, .. }]));
    let error = listeners[0].bound.bind(8).expect_err("the port is taken");
    assert!(error.to_string().contains("another server listens there"), "{error}");
    let listeners = Listen::parse("vsock:any:0").expect("parses").bind(8).expect("binds");
    assert!(
        matches!(&listeners[..], [Listener { bound: Listen::Vsock { port: 1024..=0xffff_fffe, .. }, .. }]),
        "{listeners:?}"
    );
}

#[test]
fn a_stale_socket_is_replaced_and_removed_at_the_end() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("nbd.sock");
    drop(UnixListener::bind(&path).expect("binds"));
    assert!(path.exists(), "a dropped listener leaves its socket behind");
    let listen = Listen::Unix(path.clone());
    let listeners = listen.bind(8).expect("the stale socket is replaced");
    assert!(matches!(listen.bind(8), Err(ListenError::Taken(_))), "a live server keeps its socket");
    drop(listeners);
    assert!(!path.exists(), "the socket is removed with its listener");
}

#[test]
fn only_our_own_socket_is_removed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("nbd.sock");
    let listeners = Listen::Unix(path.clone()).bind(8).expect("binds");
    std::fs::remove_file(&path).expect("removable");
    std::fs::write(&path, "another").expect("writable");
    drop(listeners);
    assert!(path.exists());
    let error = Listen::Unix(path).bind(8).expect_err("a file is in the way");
    assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
}
