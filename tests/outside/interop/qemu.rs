//! QEMU's tools, which ask for extended headers first.

use crate::program::run;
use crate::scratch::{MIB, Scratch, allocated};
use crate::server::Server;

/// Runs qemu-io commands on the default export; none may fail.
#[track_caller]
fn qemu_io(server: &Server, commands: &[&str]) -> String {
    let mut words = vec!["-f", "raw"];
    for command in commands {
        words.extend(["-c", command]);
    }
    let uri = server.uri("");
    words.push(&uri);
    let out = run("qemu-io", words).ok();
    assert!(!out.contains("failed") && !out.contains("error"), "{out}");
    out
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_patterns() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 16 * MIB);
    let server = Server::start([&path]);
    qemu_io(
        &server,
        &[
            "write -P 0xa5 0 4M",
            "read -P 0xa5 0 4M",
            "write -f -P 0x5a 1M 64k",
            "read -P 0x5a 1M 64k",
            "write -z 2M 1M",
            "read -P 0 2M 1M",
            "write -z -u 0 512k",
            "read -P 0 0 512k",
            "discard 3M 1M",
            "flush",
            "write -P 0x11 4194305 1000",
            "read -P 0x11 4194305 1000",
            "aio_write -P 0x22 8M 1M",
            "aio_write -P 0x23 9M 1M",
            "aio_flush",
            "read -P 0x22 8M 1M",
            "read -P 0x23 9M 1M",
            "length",
        ],
    );
    assert!(allocated(&path) < 8 * MIB);
}

#[test]
fn qemu_io_zeroes_and_discards_more_than_four_gib() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 6 << 30);
    let server = Server::start([&path]);
    qemu_io(&server, &["write -P 1 5G 64k", "write -z -n -u 0 6G", "read -P 0 5G 64k", "discard 4G 1G"]);
    assert!(allocated(&path) < 16 * MIB, "zeroes of 6 GiB are not written");
}

#[test]
fn qemu_img_convert_compare_and_map() {
    let scratch = Scratch::new();
    let source = scratch.sparse("source", 64 * MIB);
    let file = std::fs::File::options().write(true).open(&source).expect("open");
    for index in 0..10 {
        let bytes = crate::scratch::pattern(index, 1 << 20);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, index * 6 * MIB).expect("write");
    }
    let source = source.to_str().expect("UTF-8").to_owned();
    let disk = scratch.sparse("disk", 64 * MIB);
    let back = scratch.path("back").display().to_string();
    for server in [Server::start([&disk]), Server::tcp(["memory:64M"])] {
        let uri = server.uri("");
        run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "16", &source, &uri]).ok();
        run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &source, &uri]).ok();
        run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", &uri, &back]).ok();
        run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", &source, &back]).ok();
        let map = run("qemu-img", ["map", "--output=json", "-f", "raw", &uri]).ok();
        assert_eq!(map.matches("\"data\": true").count(), 10, "{map}");
    }
}

#[test]
fn qemu_img_bench_and_info() {
    let server = Server::start(["memory:64M"]);
    let uri = server.uri("");
    let info = run("qemu-img", ["info", "-f", "raw", &uri]).ok();
    assert!(info.contains("virtual size: 64 MiB"), "{info}");
    for words in [&["-c", "20000", "-d", "64"][..], &["-c", "5000", "-d", "16", "-w", "--flush-interval=100"]]
    {
        let all = ["bench", "-f", "raw", "-s", "4k"].iter().chain(words).copied().chain([uri.as_str()]);
        run("qemu-img", all).ok();
    }
}

#[test]
fn qemu_asks_for_extended_headers_and_gets_them() {
    let server = Server::start(["null:8T"]);
    let out = run("qemu-img", ["map", "--output=json", "-f", "raw", &server.uri("")]).ok();
    assert!(out.contains("8796093022208"), "one extent of 8 TiB needs 64 bits: {out}");
}

/// A virtual machine's image format on top of our raw disk.
#[test]
fn a_qcow2_image_lives_on_an_export() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 64 * MIB);
    let server = Server::start([&path]);
    let uri = server.uri("");
    run("qemu-img", ["create", "-f", "qcow2", &uri, "256M"]).ok();
    let io =
        ["-f", "qcow2", "-c", "write -P 7 100M 4M", "-c", "read -P 7 100M 4M", "-c", "discard 100M 1M", &uri];
    let out = run("qemu-io", io).ok();
    assert!(!out.contains("failed"), "{out}");
    run("qemu-img", ["check", "-f", "qcow2", &uri]).ok();
}

#[test]
fn qemu_sees_read_only_and_missing_exports() {
    let server = Server::start(["disk=memory:1M,readonly=on"]);
    let uri = server.uri("disk");
    let out = run("qemu-io", ["-f", "raw", "-c", "write 0 4k", &uri]);
    assert!(!out.success, "opened for writing: {}", out.stdout);
    run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 0 0 4k", &uri]).ok();
    let out = run("qemu-img", ["info", &server.uri("nosuch")]);
    assert!(!out.success && out.stderr.contains("nosuch"), "the server's sentence is shown: {}", out.stderr);
}

/// QEMU's client still speaks the protocol of before 2011.
#[test]
fn qemu_speaks_oldstyle_with_us() {
    let server = Server::start(["--oldstyle", "disk=memory:16M"]);
    qemu_io(&server, &["write -P 3 1M 100k", "read -P 3 1M 100k", "flush", "read -P 0 2M 64k"]);
    let info = run("qemu-img", ["info", "-f", "raw", &server.uri("")]).ok();
    assert!(info.contains("virtual size: 16 MiB"), "{info}");
    let named = run("qemu-img", ["info", "-f", "raw", &server.uri("disk")]);
    assert!(!named.success, "the old greeting has no names, and the client says so: {}", named.stdout);
}
