//! Our own load generator: against our server, and against other people's, which end a connection each in its own way.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::program::{Outcome, outcome, run};
use crate::scratch::{MIB, Scratch, on_disk};
use crate::server::{Server, program};
use crate::wait::{PATIENCE, exit_within, until};
use crate::wire::Address;
use crate::witness::Peer;

/// Runs `ringnbd bench` to its end; one that hangs is a failure.
#[track_caller]
fn bench(uri: &str, words: &[&str]) -> Outcome {
    let mut command = Command::new(program());
    command.arg("bench").arg(uri).args(words);
    outcome(command)
}

/// A short run that must go well; its JSON.
#[track_caller]
fn short(uri: &str, words: &[&str]) -> String {
    let brief = ["--json", "--runtime", "200ms", "--ramp", "20ms"];
    bench(uri, &[&brief, words].concat()).ok()
}

/// What jq finds in a report.
#[track_caller]
fn figure(report: &str, path: &str) -> f64 {
    let scratch = Scratch::new();
    let file = scratch.path("report.json");
    fs::write(&file, report).expect("write the report");
    let found = run("jq", [path.as_ref(), file.as_os_str()]).ok();
    found.trim().parse().unwrap_or_else(|_| panic!("{path} is {found} in {report}"))
}

/// A run in the background, killed if the test fails before it ends.
struct Background {
    child: Child,
    scratch: Scratch,
}

impl Background {
    fn start(uri: &str, words: &[&str]) -> Self {
        let scratch = Scratch::new();
        let file = |name| File::create(scratch.path(name)).expect("create a file");
        let child = Command::new(program())
            .arg("bench")
            .arg(uri)
            .args(words)
            .arg("--hlog")
            .arg(scratch.path("hlog"))
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .expect("start the load");
        Self { child, scratch }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.scratch.path(name)).unwrap_or_default()
    }

    #[track_caller]
    fn end(mut self) -> (Option<i32>, String, String) {
        let status = exit_within(&mut self.child, PATIENCE).expect("the load ends");
        (status.code(), self.read("stdout"), self.read("stderr"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run that ended just after the last reply of a batch waited for ever for another one.
#[test]
fn runs_of_any_depth_end() {
    let server = Server::start(["null:64M"]);
    for depth in 1..=32_u32 {
        let words = ["--iodepth", &depth.to_string(), "--runtime", "15ms", "--ramp", "0"];
        bench(&server.uri(""), &words).ok();
    }
}

#[test]
fn every_command_is_made_and_reported() {
    let server = Server::start(["memory:64M"]);
    let uri = server.uri("");
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--rw", "read"], &["read"]),
        (&["--rw", "write"], &["write"]),
        (&["--rw", "randread"], &["read"]),
        (&["--rw", "randwrite", "--fua"], &["write"]),
        (&["--rw", "randrw", "--fsync", "4"], &["read", "write", "flush"]),
        (&["--rw", "readwrite", "--rwmixread", "70"], &["read", "write"]),
        (&["--rw", "trim", "--bs", "64k"], &["trim"]),
        (&["--rw", "randtrim"], &["trim"]),
        (
            &[
                "--rw",
                "randread",
                "--random-distribution",
                "zipf:0.9",
                "--bs",
                "4k/50:256k",
                "--numjobs",
                "3",
            ],
            &["read"],
        ),
    ];
    for (words, commands) in cases {
        let report = short(&uri, words);
        for command in ["read", "write", "trim", "flush"] {
            let made = figure(&report, &format!(".{command}.requests // 0"));
            assert_eq!(made > 0.0, commands.contains(&command), "{words:?}: {command}: {report}");
        }
    }
}

#[test]
fn the_window_is_kept() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 4 * MIB);
    let server = Server::start([&path]);
    short(&server.uri(""), &["--rw", "randwrite", "--offset", "1M", "--size", "1M", "--bs", "4k/50:64k"]);
    let end = usize::try_from(2 * MIB).expect("small");
    assert!(on_disk(&path, 0, end / 2).iter().all(|byte| *byte == 0));
    assert!(on_disk(&path, 2 * MIB, end).iter().all(|byte| *byte == 0));
    assert!(on_disk(&path, MIB, end / 2).iter().any(|byte| *byte != 0));
}

#[test]
fn what_is_written_verifies_with_any_mix() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 64 * MIB);
    for server in [Server::start([&path]), Server::tcp(["--shards", "2", "memory:64M"])] {
        let cases: [&[&str]; 4] = [
            &["--rw", "randrw", "--bs", "4k/60:64k/20:1M", "--numjobs", "3", "--fsync", "16"],
            &["--rw", "randwrite", "--random_distribution", "zipf:1.2", "--iodepth", "128", "--fua"],
            &["--rw", "rw", "--bs", "64", "--size", "64k"],
            &["--rw", "write", "--bs", "256k", "--offset", "1M", "--size", "8M"],
        ];
        for words in cases {
            let report = short(&server.uri(""), &[&["--verify"], words].concat());
            assert!(figure(&report, ".verified_blocks") > 0.0, "{words:?}: {report}");
        }
        // What the last of them wrote is known to who has its seed.
        let words = ["--verify", "--rw", "randread", "--bs", "256k", "--offset", "1M", "--size", "8M"];
        short(&server.uri(""), &words);
    }
}

#[test]
fn damage_behind_the_servers_back_is_found_and_explained() {
    const STAMPED: &[u8] = b"ringnbd1";
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 64 * MIB);
    let server = Server::start([&path]);
    let words = ["--rw", "randwrite", "--verify", "--rate_iops", "2000", "--runtime", "2s", "--ramp", "0"];
    let load = Background::start(&server.uri(""), &words);
    let mut stamped = Vec::new();
    until("some blocks were written", || {
        let begins = |offset: &u64| on_disk(&path, *offset, STAMPED.len()) == STAMPED;
        stamped = (0..64 * MIB).step_by(4096).filter(begins).take(40).collect();
        stamped.len() == 40
    });
    // Some of them will be written again; not all.
    for offset in stamped {
        flip(&path, offset + 700);
    }
    let (code, stdout, stderr) = load.end();
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    for part in [
        "verify: the block at offset",
        "expected generation",
        "1 of 4096 bytes differ, the first at byte 700",
    ] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open the disk");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read the disk");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("write the disk");
}

#[test]
fn a_reader_finds_what_another_run_left_damaged() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", MIB);
    let server = Server::start([&path]);
    let uri = server.uri("");
    short(&uri, &["--rw", "write", "--verify"]);
    short(&uri, &["--rw", "read", "--verify"]);
    let zeroes = OpenOptions::new().write(true).open(&path).expect("open the disk");
    zeroes.write_all_at(&[0; 4096], 64 << 10).expect("write the disk");
    let found = bench(&uri, &["--rw", "read", "--verify", "--runtime", "5s"]);
    assert_eq!(found.code, Some(1));
    assert!(found.stderr.contains("offset 65536") && found.stderr.contains("zeroes"), "{}", found.stderr);
    let other = bench(&uri, &["--rw", "read", "--verify", "--seed", "9"]);
    assert!(other.stderr.contains("--seed 1"), "{}", other.stderr);
}

/// A server that stops for half a second is late with each of the requests that were due meanwhile, not only with the one
/// that a client in a closed loop would have waited for.
#[test]
fn a_stall_is_seen_by_every_request_that_was_due_in_it() {
    const STALL: Duration = Duration::from_millis(500);
    let server = Server::start(["memory:64M"]);
    let words = ["--rate_iops", "500", "--iodepth", "1", "--runtime", "3s", "--ramp", "0", "--json"];
    let mut load = Background::start(&server.uri(""), &words);
    until("the load has run for a second", || load.read("hlog").contains("Tag=read"));
    server.signal(Signal::STOP);
    let ended = exit_within(&mut load.child, STALL);
    server.signal(Signal::CONT);
    assert!(ended.is_none(), "the load ended while the server was stopped");
    let (code, report, stderr) = load.end();
    assert_eq!(code, Some(0), "{stderr}");
    // 250 of 1500 were due in the stall, the first half a second late, the last not at all.
    assert!(figure(&report, ".read.requests") > 1400.0, "{report}");
    assert!(figure(&report, ".read.p90_us") > 100_000.0, "{report}");
    assert!(figure(&report, ".read.max_us") > 400_000.0, "{report}");
}

#[test]
fn files_of_percentiles_and_intervals_have_a_part_for_each_command() {
    let server = Server::start(["memory:64M"]);
    let scratch = Scratch::new();
    let [hgrm, hlog] = ["run.hgrm", "run.hlog"].map(|name| scratch.path(name));
    let [hgrm, hlog] = [&hgrm, &hlog].map(|path| path.to_str().expect("UTF-8"));
    short(&server.uri(""), &["--hgrm", hgrm, "--hlog", hlog]);
    assert!(fs::read_to_string(hgrm).expect("written").contains("Total count"));
    fs::remove_file(hgrm).expect("was there");
    short(&server.uri(""), &["--rw", "randrw", "--fsync", "9", "--hgrm", hgrm, "--hlog", hlog]);
    let log = fs::read_to_string(hlog).expect("written");
    for command in ["read", "write", "flush"] {
        assert!(scratch.path(&format!("run.{command}.hgrm")).exists(), "{command}");
        assert_eq!(log.matches(&format!("Tag={command},0.000,")).count(), 1, "{log}");
    }
    assert!(!Path::new(hgrm).exists());
}

const PARTS: [&str; 4] = ["network", "queued", "service_less_backend", "backend"];

/// Both sides speak of the same requests, none more and none less, whatever was done before; and every column adds up.
#[test]
fn the_parts_of_a_requests_time_add_up_to_what_the_client_saw() {
    let scratch = Scratch::new();
    let socket = scratch.path("stats").display().to_string();
    let server = Server::start(["--stats-socket", &socket, "a=memory:64M", "memory:64M"]);
    for (export, words) in
        [("a", ["--numjobs", "3"]), ("", ["--iodepth", "128"]), ("a", ["--rate_iops", "2000"])]
    {
        let mix = ["--stats-socket", &socket, "--rw", "randrw", "--fsync", "8", "--ramp", "50ms"];
        let report =
            bench(&server.uri(export), &[&["--json", "--runtime", "300ms"], &mix[..], &words].concat()).ok();
        for command in ["read", "write", "flush"] {
            let of = |path: &str| figure(&report, &format!(".server.{command}.{path}"));
            assert_eq!(of("requests"), figure(&report, &format!(".{command}.requests")), "{report}");
            assert_eq!(of("foreign_requests"), 0.0, "{report}");
            for column in ["mean", "p50", "p99", "p99_9", "max"] {
                let total = of(&format!("total.{column}_us"));
                let client = figure(&report, &format!(".{command}.{column}_us"));
                assert!((total - client).abs() < 0.01, "{command} {column}: {report}");
                let sum: f64 = PARTS.iter().map(|part| of(&format!("{part}.{column}_us"))).sum();
                assert!((sum - total).abs() < 0.01, "{command} {column}: {report}");
            }
            // The path there and back takes time; means are within 1 %.
            assert!(of("network.mean_us") > -0.01 * of("total.mean_us"), "{command}: {report}");
            assert!(of("service_less_backend.mean_us") > 0.0, "{command}: {report}");
        }
    }
}

/// Time is where it was spent: what waits for the window is queued, and what waits for a slow disk waits in the backend.
#[test]
fn time_is_found_where_it_was_spent() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 64 * MIB);
    let socket = scratch.path("stats").display().to_string();
    let mean = |report: &str, part: &str| figure(report, &format!(".server.read.{part}.mean_us"));
    for (window, is_queued) in [("128", false), ("1", true)] {
        let direct = format!("{},direct=on", path.display());
        let server = Server::start(["--window", window, "--stats-socket", &socket, &direct]);
        let report = short(&server.uri(""), &["--stats-socket", &socket, "--iodepth", "16"]);
        assert_eq!(mean(&report, "queued") > 0.0, is_queued, "{report}");
        assert!(mean(&report, "backend") > 0.0, "{report}");
    }
}

#[test]
fn a_server_that_is_not_the_one_that_was_loaded_is_told_apart() {
    let scratch = Scratch::new();
    let [socket, other, none] =
        ["stats", "other", "none"].map(|name| scratch.path(name).display().to_string());
    let server = Server::start(["--stats-socket", &socket, "a=memory:1M", "memory:1M"]);
    let _other = Server::start(["--stats-socket", &other, "memory:1M"]);
    let cases =
        [("", &other, "answered 0 of"), ("a", &other, "has no export \"a\""), ("", &none, "cannot ask")];
    for (export, socket, part) in cases {
        let words = ["--stats-socket", socket, "--runtime", "50ms", "--ramp", "0"];
        let refused = bench(&server.uri(export), &words);
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    // Somebody else on the same export is counted and told.
    let words = ["--runtime", "3s", "--rate_iops", "500"];
    let others = Background::start(&server.uri(""), &words);
    until("the other load has begun", || others.read("hlog").contains("Tag=read"));
    let table =
        bench(&server.uri(""), &["--stats-socket", &socket, "--runtime", "300ms", "--ramp", "0"]).ok();
    assert!(table.contains("are not from here: others use the export"), "{table}");
    assert!(table.contains("where a read's time went") && table.contains("service, less backend"), "{table}");
}

#[test]
fn a_plan_that_does_not_fit_is_refused_with_what_to_do() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", MIB);
    let fixed = format!("fixed={},readonly=on", path.display());
    let server = Server::start([fixed.as_str(), "memory:1M"]);
    let cases: [(&str, &[&str], &str); 13] = [
        ("fixed", &["--rw", "randwrite"], "the export is read-only"),
        ("fixed", &["--rw", "trim"], "takes no TRIM"),
        ("", &["--size", "2M"], "at most --size 1048576"),
        ("", &["--offset", "1M"], "--offset 1048576 is not inside"),
        ("", &["--offset", "512k", "--size", "1M"], "at most --size 524288"),
        ("", &["--bs", "2M"], "the window has 1048576 bytes"),
        ("", &["--size", "4k", "--bs", "4k/50:8k"], "one request of 8192"),
        ("", &["--rw", "read", "--fua"], "--fua goes with writes"),
        ("", &["--rw", "randtrim", "--fsync", "1"], "--fsync counts writes"),
        ("", &["--rw", "trim", "--verify"], "--verify has nothing to check"),
        ("", &["--rw", "read", "--random_distribution", "zipf:1"], "sequential"),
        ("", &["--rw", "write", "--verify", "--bs", "32"], "at least 64 bytes"),
        ("", &["--rw", "write", "--verify", "--bs", "4k/50:6k"], "multiples of the smallest"),
    ];
    for (export, words, part) in cases {
        let refused = bench(&server.uri(export), words);
        assert_eq!(refused.code, Some(1), "{words:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(part) && refused.stdout.is_empty(), "{words:?}: {}", refused.stderr);
    }
    let unknown = bench(&server.uri(""), &["--bs", "4k/60:8k/60"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
}

/// nbdkit starts the load when it is ready, and ends with it.
#[track_caller]
fn under_nbdkit(words: &[&str], load: &str) -> Outcome {
    let line = format!("{} bench \"$uri\" --runtime 200ms --ramp 0 {load}", program());
    run("nbdkit", [&["-U", "-"], words, &["--run", &line]].concat())
}

#[test]
fn nbdkit_is_loaded_verified_and_left() {
    let done = under_nbdkit(&["memory", "16M"], "--rw randrw --verify --bs 4k/50:64k --numjobs 2").ok();
    assert!(done.contains("blocks read and verified"), "{done}");
    let fua = under_nbdkit(&["--filter=fua", "memory", "16M"], "--rw write --fua");
    assert!(!fua.success && fua.stderr.contains("does not offer FUA"), "{}", fua.stderr);
    let failing =
        under_nbdkit(&["--filter=error", "memory", "16M", "error=EIO", "error-rate=100%"], "--rw randread");
    assert!(failing.stderr.contains("READ of 4096 bytes at offset"), "{}", failing.stderr);
}

#[test]
fn qemu_is_loaded_verified_and_left() {
    let qemu = Peer::qemu();
    let Address::Unix(socket) = &qemu.address else { panic!("qemu-nbd listens on a unix socket") };
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    let report = short(&uri, &["--rw", "randrw", "--verify", "--fsync", "16", "--numjobs", "2"]);
    assert!(figure(&report, ".verified_blocks") > 0.0, "{report}");
    short(&uri, &["--rw", "randtrim", "--bs", "64k"]);
}
