//! The words of the command line and the ways to be started.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::client::{Dialect, READ, Request};
use crate::haggle::Haggle;
use crate::program::{nbdsh, run};
use crate::scratch::{MIB, Scratch};
use crate::server::{Server, program};
use crate::wait::{PATIENCE, exit_within, until};
use crate::wire::{Address, Wire};

#[test]
fn libnbd_starts_it_by_socket_activation() {
    let start = format!("h.connect_systemd_socket_activation([{:?}, 'serve', 'memory:1M'])", program());
    let script = r#"
h.pwrite(b'inherited' + bytes(503), 0)
assert h.pread(9, 0) == b'inherited'
print(h.get_size())
h.shutdown()
"#;
    let size = nbdsh("", &(start + script));
    assert_eq!(size.trim(), "1048576");
}

#[test]
fn run_gives_the_command_its_uri_and_takes_its_status() {
    let serve = |listen: &str, command: &str| {
        run(program(), ["serve", "--listen", listen, "--run", command, "disk=memory:1M", "memory:2M"])
    };
    let scratch = Scratch::new();
    let socket = format!("unix:{}", scratch.path("socket").display());
    let size = serve("tcp:127.0.0.1:0", "nbdinfo --size \"$uri\"").ok();
    assert_eq!(size.trim(), "2097152");
    assert_eq!(serve(&socket, "nbdinfo --size \"$uri\"").ok().trim(), "2097152");
    let shown = serve(&socket, "echo \"$unixsocket\"").ok();
    assert_eq!(shown.trim(), scratch.path("socket").display().to_string());
    let port = serve("tcp:127.0.0.1:0", "echo \"$port\"").ok();
    assert!(port.trim().parse::<u16>().is_ok_and(|port| port > 0), "{port}");
    assert_eq!(serve(&socket, "exit 7").code, Some(7));
    assert_eq!(serve(&socket, "true").code, Some(0));
    assert!(!scratch.path("socket").exists());
}

#[test]
fn it_ends_with_its_parent_if_asked_to() {
    let scratch = Scratch::new();
    let socket = scratch.path("socket");
    let script = r#""$0" serve --exit-with-parent --listen "unix:$1" memory:1M & echo $!; read -r _"#;
    let mut parent = Command::new("sh")
        .args(["-c", script, program()])
        .arg(&socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a shell");
    let mut line = String::new();
    BufReader::new(parent.stdout.take().expect("a pipe")).read_line(&mut line).expect("read the pid");
    until("the server listens", || Wire::try_connect(&Address::Unix(socket.clone())).is_ok());
    drop(parent.stdin.take());
    assert!(exit_within(&mut parent, PATIENCE).is_some(), "the shell ends at the end of its input");
    let status = format!("/proc/{}/status", line.trim());
    // An orphan that nobody reaps counts as ended.
    until("the server is gone with its parent", || {
        fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"))
    });
    assert!(!socket.exists(), "it took its socket along");
}

#[test]
fn the_pid_file_lives_as_long_as_the_server() {
    let scratch = Scratch::new();
    let path = scratch.path("pid");
    let server = Server::start(["--pid-file".as_ref(), path.as_os_str(), "memory:1M".as_ref()]);
    assert_eq!(fs::read_to_string(&path).expect("a pid file").trim(), server.pid().to_string());
    drop(server);
    assert!(!path.exists(), "removed at exit");
}

#[test]
fn it_listens_on_all_the_addresses_it_is_given() {
    let scratch = Scratch::new();
    let second = scratch.path("second");
    let unix = format!("unix:{}", second.display());
    let mut server = Server::tcp(["--listen", &unix, "--listen", "tcp:[::1]:0", "memory:1M"]);
    let uris = [server.line(), server.line()];
    assert!(uris[0].contains("second"), "{uris:?}");
    assert!(uris[1].starts_with("nbd://[::1]:"), "{uris:?}");
    let host = uris[1].trim_start_matches("nbd://").split('/').next().expect("a host");
    let addresses = [
        server.address.clone(),
        Address::Unix(second.clone()),
        Address::Tcp(host.parse().expect("an IPv6 address and a port")),
    ];
    for address in &addresses {
        assert_eq!(Haggle::new(address).go("").size, MIB, "{address:?}");
    }
    drop(server);
    assert!(!second.exists());
}

#[test]
fn only_the_kernels_nbd_devices_are_attached_and_detached() {
    for words in [&["attach", "nbd://127.0.0.1:1/", "/dev/sda"][..], &["detach", "/dev/nbd0p1"]] {
        let told = run(program(), words);
        assert_eq!(told.code, Some(2), "{}", told.stderr);
        assert!(told.stderr.contains("is not one of the kernel's NBD devices"), "{}", told.stderr);
    }
}

#[test]
fn words_mean_what_the_manual_says() {
    let scratch = Scratch::new();
    let plain = scratch.sparse("plain", MIB).display().to_string();
    let comma = scratch.sparse("a,b", 2 * MIB).display().to_string().replace(',', ",,");
    let colon = scratch.sparse("memory:5M", 3 * MIB).display().to_string();
    let table = [
        (plain.clone(), "", MIB),
        (format!("={plain}"), "", MIB),
        (format!("n={plain}"), "n", MIB),
        (format!("n=file:{plain}"), "n", MIB),
        (format!("file:{plain}"), "", MIB),
        (format!("with,comma={plain}"), "with,comma", MIB),
        (format!("with:colon={plain}"), "with:colon", MIB),
        (comma.clone(), "", 2 * MIB),
        (format!("{comma},readonly=on"), "", 2 * MIB),
        (format!("file:{colon}"), "", 3 * MIB),
        ("memory:3K".into(), "", 3072),
        ("n=memory:1T".into(), "n", 1 << 40),
        ("null:1P".into(), "", 1 << 50),
        ("memory:12345".into(), "", 12345),
    ];
    for (word, name, size) in table {
        let server = Server::start([&word]);
        assert_eq!(Haggle::new(&server.address).go(name).size, size, "{word}");
    }
}

#[test]
fn help_version_completions_and_manual() {
    let help = run(program(), ["serve", "--help"]).ok();
    for word in [
        "--listen",
        "--read-only",
        "--shards",
        "--oldstyle",
        "--max-connections",
        "--handshake-timeout",
        "--drain-timeout",
        "--window",
        "--pid-file",
        "--no-pin",
        "--run",
        "--exit-with-parent",
        "--hdr-log",
        "--hdr-interval",
        "--hgrm",
        "--stats",
        "--stats-socket",
        "--log-format",
        "--verbose",
        "--quiet",
        "--print-uri",
    ] {
        assert!(help.contains(word), "{word} is not in the help");
    }
    assert!(help.contains("ringnbd serve "), "an example is in the help");
    assert!(run(program(), ["--version"]).ok().starts_with("ringnbd "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(program(), ["completions", shell]).ok().contains("serve"), "{shell}");
    }
    assert!(run(program(), ["man"]).ok().contains(".TH"));
}

#[test]
fn verbose_tells_what_the_kernel_can_do() {
    let server = Server::start(["-v", "memory:1M"]);
    let log = server.log();
    assert!(log.contains("shard"), "{log}");
    let quiet = Server::start(["-q", "memory:1M"]);
    assert_eq!(quiet.log(), "", "nothing to say");
}

#[test]
fn json_logs_are_json() {
    let server = Server::start(["-v", "--log-format", "json", "memory:1M"]);
    server.client(Dialect::Simple).disconnect();
    let log = server.dir.path().join("log");
    assert!(!server.log().is_empty());
    run("jq", ["-e".as_ref(), ".".as_ref(), log.as_os_str()]).ok();
}

/// What is measured is there at exit: a table for people, percentiles for each command, and a picture of them.
#[test]
fn latencies_are_left_behind_at_exit() {
    let scratch = Scratch::new();
    let dir = scratch.path("latency");
    let mut server =
        Server::start(["--stats".as_ref(), "--hgrm".as_ref(), dir.as_os_str(), "disk=memory:1M".as_ref()]);
    let mut client = Haggle::new(&server.address).go("disk");
    for index in 0..100 {
        client.read(index * 4096, 4096);
    }
    client.call(&Request::new(READ, MIB, 1)).refused(crate::client::EINVAL, "past the end");
    drop(client);
    server.stop();
    let log = server.log();
    let table = log
        .lines()
        .find(|line| line.starts_with("disk") && line.contains("read") && line.contains("service"));
    let columns: Vec<_> = table.unwrap_or_else(|| panic!("no table: {log}")).split_whitespace().collect();
    assert_eq!(columns[..4], ["disk", "read", "service", "101"], "{log}");
    let read = dir.join("disk.read.hgrm");
    let percentiles = fs::read_to_string(&read).expect("percentiles of the reads");
    assert!(percentiles.contains("TotalCount") && percentiles.contains("1.000000000000"), "{percentiles}");
    let count = percentiles.lines().find(|line| line.contains("1.000000000000")).expect("the last line");
    assert_eq!(count.split_whitespace().nth(2), Some("101"), "{percentiles}");
    assert!(!dir.join("disk.write.hgrm").exists(), "nothing was written");
    let picture = scratch.path("latency.svg");
    run(program(), ["plot".as_ref(), read.as_os_str(), "--output".as_ref(), picture.as_os_str()]).ok();
    assert!(fs::read_to_string(&picture).expect("a picture").contains("<svg"));
    let labelled = format!("what I call it={}", read.display());
    let words =
        ["plot", &labelled, &labelled, "--colours", "2,9", "--output", picture.to_str().expect("UTF-8")];
    run(program(), words).ok();
    let drawn = fs::read_to_string(&picture).expect("a picture");
    assert!(drawn.contains("what I call it"), "{drawn}");
    // Okabe and Ito's vermilion; and the second again, thin.
    let line = |width: u8| format!("stroke=\"#D55E00\" stroke-width=\"{width}\"");
    assert!(drawn.contains(&line(3)) && drawn.contains(&line(1)), "{drawn}");
    let uneven = run(program(), [&words[..4], &["2"]].concat());
    assert!(uneven.stderr.contains("1 for 2 files"), "{}", uneven.stderr);
}

/// How many values each tag has, by the ecosystem's own reader.
#[track_caller]
fn by_the_pypi_reader(path: &Path) -> String {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin/python");
    let script = r#"
import sys
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
total = HdrHistogram(1, 3600 * 1000 * 1000 * 1000, 2)
counts = {}
reader = HistogramLogReader(sys.argv[1], total)
while True:
    histogram = reader.get_next_interval_histogram()
    if histogram is None:
        break
    tag = histogram.get_tag()
    counts[tag] = counts.get(tag, 0) + histogram.get_total_count()
for tag in sorted(counts, key=str):
    print(tag, counts[tag])
"#;
    run(reader.to_str().expect("UTF-8"), ["-c".as_ref(), script.as_ref(), path.as_os_str()]).ok()
}

/// The logs of histograms, in a file and from a socket, are read back with the ecosystem's own reader.
#[test]
fn histogram_logs_are_read_by_the_pypi_reader() {
    let scratch = Scratch::new();
    let [path, socket, totals] = ["latency.hlog", "stats", "totals.hlog"].map(|name| scratch.path(name));
    let mut server = Server::start([
        "--stats-socket".as_ref(),
        socket.as_os_str(),
        "--hdr-log".as_ref(),
        path.as_os_str(),
        "--hdr-interval".as_ref(),
        "1".as_ref(),
        "disk=memory:16M".as_ref(),
    ]);
    let mut client = Haggle::new(&server.address).go("disk");
    for index in 0..1000 {
        client.write(index * 4096, &[1; 4096]);
        client.call(&Request::new(READ, index * 4096, 4096)).ok("READ");
    }
    drop(client);
    // One that connects and reads nothing is in nobody's way.
    let _idle = UnixStream::connect(&socket).expect("the server answers there");
    let mut said = File::create(&totals).expect("create a file");
    let mut stream = UnixStream::connect(&socket).expect("the server answers there");
    std::io::copy(&mut stream, &mut said).expect("all histograms, and the end");
    server.stop();
    assert!(!socket.exists(), "the socket was left behind");
    let table = by_the_pypi_reader(&path);
    for line in ["disk.read 1000", "disk.write 1000"] {
        assert!(table.lines().any(|found| found == line), "{line:?} is not in:\n{table}");
    }
    let table = by_the_pypi_reader(&totals);
    for line in ["disk.read.service 1000", "disk.write.backend 1000", "disk.write.queued 1000"] {
        assert!(table.lines().any(|found| found == line), "{line:?} is not in:\n{table}");
    }
}
