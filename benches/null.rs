//! Where a request's CPU time goes when there is no storage: a server of `null` under 32 reads of 4 KiB in flight, and
//! what of it is measuring. Prints a table; fails if measuring costs more than 2 %.
//!
//! The client is a bare loop on an oldstyle connection, so that nothing of it runs on the server's thread.

use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ringnbd::backend::ExportSpec;
use ringnbd::metrics::{CommandKind, Sample, ShardMetrics};
use ringnbd::net::listen::Listen;
use ringnbd::proto::{Command, CommandFlags, Dialect, Request};
use ringnbd::rt::Poll;
use ringnbd::server::{Config, Server};

const DEPTH: usize = 32;
const BLOCK: usize = 4096;
const GREETING_LENGTH: usize = 152; // proto.md, "Oldstyle negotiation"
const REPLY_LENGTH: usize = 16;
const RUNTIME: Duration = Duration::from_secs(2);
/// Most of the server's CPU time that may go into histograms and counters.
const SHARE_MAX: f64 = 0.02;

/// CPU time of the only shard's thread so far.
fn shard_cpu() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").expect("proc is mounted");
    for task in tasks.flatten() {
        let path = task.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "shard-0") {
            let text = fs::read_to_string(path.join("schedstat")).expect("the shard lives");
            let ran = text.split(' ').next().and_then(|word| word.parse().ok());
            return Duration::from_nanos(ran.expect("schedstat begins with nanoseconds"));
        }
    }
    panic!("no thread is called shard-0");
}

/// Keeps [`DEPTH`] reads in flight for [`RUNTIME`]; answers how many there were.
fn drive(stream: &mut UnixStream) -> u32 {
    let mut requests = Vec::new();
    for cookie in 0..DEPTH as u64 {
        let request = Request {
            command: Command::READ,
            flags: CommandFlags::NONE,
            cookie,
            offset: cookie * BLOCK as u64,
            length: BLOCK as u64,
            payload: 0,
        };
        requests.extend_from_slice(&request.encode(Dialect::Simple));
    }
    let mut replies = vec![0; DEPTH * (REPLY_LENGTH + BLOCK)];
    let mut count = 0;
    let start = Instant::now();
    while start.elapsed() < RUNTIME {
        stream.write_all(&requests).expect("the server takes requests");
        stream.read_exact(&mut replies).expect("the server answers");
        count += 32;
    }
    count
}

/// What measuring one request costs, besides the clock that is read once per turn of the loop: batches of [`DEPTH`]
/// that arrived and left together, as they do here.
fn metrics_ns() -> f64 {
    const COUNT: u32 = 10_000_000;
    let mut metrics = ShardMetrics::new(1);
    let start = Instant::now();
    for index in 0..COUNT {
        let service_ns = u64::from(index / 32 % 100_000);
        let sample = Sample { service_ns, backend_ns: service_ns / 2, queued_ns: 0, bytes: 4096, errno: 0 };
        metrics.begin(black_box(0), CommandKind::Read);
        metrics.end(black_box(0), CommandKind::Read, black_box(&sample));
    }
    start.elapsed().as_nanos() as f64 / f64::from(COUNT)
}

fn clock_ns() -> f64 {
    const COUNT: u32 = 1_000_000;
    let start = Instant::now();
    for _ in 0..COUNT {
        black_box(Instant::now());
    }
    start.elapsed().as_nanos() as f64 / f64::from(COUNT)
}

fn main() -> ExitCode {
    let directory = tempfile::tempdir().expect("a directory for the socket");
    let path = directory.path().join("nbd.sock");
    let exports = vec![ExportSpec::parse("null:1G").expect("a valid backend")];
    let listeners = Listen::Unix(path.clone()).bind(16).expect("a socket to listen on");
    let config = Config {
        shards: Some(1),
        pin: false,
        poll: Poll::Never,
        oldstyle: true,
        ..Config::new(exports, listeners)
    };
    let server = Server::start(config).expect("the server starts");
    let mut stream = UnixStream::connect(&path).expect("the server listens");
    stream.read_exact(&mut [0; GREETING_LENGTH]).expect("the server greets");
    drive(&mut stream); // warm-up
    let before = shard_cpu();
    let requests = drive(&mut stream);
    let request_ns = (shard_cpu() - before).as_nanos() as f64 / f64::from(requests);
    drop(stream);
    server.stop();
    server.join().expect("the server ends well");

    // A request that is alone in its turn of the loop pays for both clock readings of a turn; of 32, each pays a share.
    let measuring_ns = metrics_ns() + clock_ns() / DEPTH as f64;
    let share = measuring_ns / request_ns;
    println!("4 KiB reads of null, {DEPTH} in flight, {requests} requests");
    println!("  server CPU per request   {request_ns:8.1} ns");
    println!("  of which measuring       {measuring_ns:8.1} ns, {:.2} %", share * 100.0);
    if share > SHARE_MAX {
        eprintln!("measuring costs more than {} % of a request", SHARE_MAX * 100.0);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
