//! Instructions for each request, counted under valgrind's callgrind and held against `benches/instructions.baseline`:
//! unlike time they are the same on a busy machine, so a few per cent more show up at once.
//!
//! ```text
//!   cargo bench --bench instructions               count and compare; fails above +5 %
//!   cargo bench --bench instructions -- --update   count and write the baseline
//!
//!   this --valgrind--> this --work ROW COUNT --tally of the codec,  in a loop
//!                           '----------------- of a whole server on `null`, loaded by <-- this --client (not counted)
//! ```
//!
//! * Each row is counted twice, with few and with many requests: the difference has nothing of starting and ending.
//! * *Ours* is what runs in this program: the server and its libraries, Rust's too. *libc* is the rest: copies, system
//!   calls. Each version has its own code for copies, so these are compared only with the baseline's. Which of a
//!   version's variants runs does not depend on the machine: valgrind shows every x86-64 with AVX2 the same processor.
//! * The server's requests are in lockstep: as many as are in flight are sent together, the next when all are answered.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command as Process, ExitCode, Stdio};

use anyhow::{Context, bail, ensure};
use ringnbd::backend::ExportSpec;
use ringnbd::net::listen::Listen;
use ringnbd::proto::{
    Admission, BlockSizes, Command, CommandFlags, Dialect, ExportInfo, Reply, Request, Session,
    TransmissionFlags, reply,
};
use ringnbd::rt::Poll;
use ringnbd::server::{Config, Server};
use smallvec::SmallVec;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.baseline");
const UPDATE: &str = "cargo bench --bench instructions -- --update";
/// More than this is a failure.
const GROWTH_MAX: f64 = 0.05;
/// Growth below this many instructions is none: a row of a dozen instructions has no smaller steps.
const GROWTH_MIN: f64 = 3.0;

/// Keeps libc from copying by one instruction with a count, of which callgrind makes one for each byte.
const TUNABLES: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";

/// Seconds after which a run hangs; it takes about one.
const LIMIT_S: &str = "120";

const BLOCK: u32 = 4096;
const GREETING_LENGTH: usize = 152; // proto.md, "Oldstyle negotiation"
const REPLY_LENGTH: usize = 16;

const READ: Request = Request {
    command: Command::READ,
    flags: CommandFlags::NONE,
    cookie: 7,
    offset: 8192,
    length: BLOCK as u64,
    payload: 0,
};

/// What is counted.
#[derive(Clone, Copy)]
enum Work {
    /// Bytes to an admitted request.
    Request(Dialect),
    /// The head of a reply with data.
    Head(Dialect),
    /// The client's side of it.
    Reply(Dialect),
    /// A server from socket to socket, with so many reads in flight.
    Server(usize),
}

const ROWS: [(&str, Work); 11] = [
    ("request-simple", Work::Request(Dialect::Simple)),
    ("request-structured", Work::Request(Dialect::Structured)),
    ("request-extended", Work::Request(Dialect::Extended)),
    ("head-simple", Work::Head(Dialect::Simple)),
    ("head-structured", Work::Head(Dialect::Structured)),
    ("head-extended", Work::Head(Dialect::Extended)),
    ("reply-simple", Work::Reply(Dialect::Simple)),
    ("reply-structured", Work::Reply(Dialect::Structured)),
    ("reply-extended", Work::Reply(Dialect::Extended)),
    ("null-read-4k-depth-1", Work::Server(1)),
    ("null-read-4k-depth-32", Work::Server(32)),
];

impl Work {
    /// Few and many repetitions, and requests in each.
    fn counts(self) -> (u64, u64, u64) {
        match self {
            Self::Server(depth) => (200, 1200, depth as u64),
            _ => (1000, 11_000, 1),
        }
    }

    fn run(self, count: u64) -> anyhow::Result<()> {
        match self {
            Self::Request(dialect) => {
                let session = Session::new(&export(), dialect, SmallVec::new());
                let bytes = READ.encode(dialect);
                for _ in 0..count {
                    let decoded = session.decode(black_box(&bytes));
                    let (request, _) = decoded.expect("it is well-formed").expect("it is whole");
                    assert_eq!(black_box(session.admit(&request)), Admission::Serve);
                }
            }
            Self::Head(dialect) => {
                for _ in 0..count {
                    black_box(reply::data(dialect, black_box(&READ), READ.offset, BLOCK, true));
                }
            }
            Self::Reply(dialect) => {
                let head = reply::data(dialect, &READ, READ.offset, BLOCK, true);
                for _ in 0..count {
                    let decoded = Reply::decode(dialect, black_box(&head));
                    assert!(black_box(decoded).is_ok_and(|reply| reply.is_some()));
                }
            }
            Self::Server(depth) => serve(depth, count)?,
        }
        Ok(())
    }
}

fn export() -> ExportInfo {
    ExportInfo {
        id: 0,
        name: String::new(),
        description: None,
        size: 1 << 30,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA,
        block: BlockSizes { minimum: 1, preferred: BLOCK, maximum: 32 << 20 },
        contexts: Vec::new(),
        strict: false,
    }
}

/// A server of `null` and, in a process of its own, a client of it. Ends this process when the client has gone.
///
/// Valgrind (3.19) lets no other thread run while one waits in `io_uring_enter`. The shard's does nearly all the time, so
/// it is the one that has to say that it is over: by what it logs when the connection is closed.
fn serve(depth: usize, count: u64) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("nbd.sock");
    let listeners = Listen::Unix(path.clone()).bind(1)?;
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(EndWithConnection))?;
    Process::new(std::env::current_exe()?)
        .arg("--client")
        .arg(&path)
        .args([depth.to_string(), count.to_string()])
        .spawn()?;
    let exports = vec![ExportSpec::parse("null:1G")?];
    let server = Server::start(Config {
        shards: Some(1),
        pin: false,
        poll: Poll::Never,
        oldstyle: true,
        ..Config::new(exports, listeners)
    })?;
    server.ended().wait();
    bail!("the server ended before its client")
}

struct EndWithConnection;

impl<S: tracing::Subscriber> Layer<S> for EndWithConnection {
    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                if field.name() == "message" {
                    let _ = write!(self.0, "{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0.ends_with(": closed") {
            std::process::exit(0);
        }
    }
}

/// Reads from the server, `depth` at a time, `count` times, and says goodbye.
fn load(path: &str, depth: usize, count: u64) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.read_exact(&mut [0; GREETING_LENGTH])?;
    let mut requests = Vec::new();
    for cookie in 0..depth as u64 {
        let request = Request { cookie, offset: cookie * u64::from(BLOCK), ..READ };
        requests.extend_from_slice(&request.encode(Dialect::Simple));
    }
    let mut replies = vec![0; depth * (REPLY_LENGTH + BLOCK as usize)];
    for _ in 0..count {
        stream.write_all(&requests)?;
        stream.read_exact(&mut replies)?;
    }
    let goodbye = Request { command: Command::DISC, offset: 0, length: 0, ..READ };
    Ok(stream.write_all(&goodbye.encode(Dialect::Simple))?)
}

/// Instructions, by where they are.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    ours: f64,
    libc: f64,
}

/// Counts one run of a row.
fn count(name: &str, repetitions: u64) -> anyhow::Result<Tally> {
    // What the program leaves in the second, because it ends where it is, goes with us.
    let (directory, scratch) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let program = std::env::current_exe()?;
    let output = Process::new("timeout")
        .args(["--kill-after=5", LIMIT_S, "valgrind", "--tool=callgrind", "--separate-threads=yes"])
        .arg(format!("--callgrind-out-file={}", directory.path().join("out").display()))
        .arg(&program)
        .args(["--work", name, &repetitions.to_string()])
        .env("GLIBC_TUNABLES", TUNABLES)
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .output()
        .context("cannot start timeout(1)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} under valgrind ended with {}:\n{said}", output.status);
    // A file for each thread, and an empty one for all: the thread that did most did the work.
    let mut most = Tally::default();
    for entry in fs::read_dir(directory.path())? {
        let tally = read_tally(&fs::read_to_string(entry?.path())?, &program)?;
        if tally.ours > most.ours {
            most = tally;
        }
    }
    ensure!(most.ours > 0.0, "{name}: callgrind counted nothing:\n{said}");
    Ok(most)
}

/// Adds up a callgrind file (format 1, callgrind's manual): `ob=` says whose the costs that follow are, and a line
/// after `calls=` has the costs of what was called, which stand elsewhere by themselves.
fn read_tally(text: &str, program: &Path) -> anyhow::Result<Tally> {
    let (mut tally, mut names) = (Tally::default(), HashMap::new());
    let (mut is_ours, mut is_of_call) = (false, false);
    for line in text.lines() {
        if let Some(object) = line.strip_prefix("ob=") {
            is_ours = Path::new(resolve(object, &mut names)) == program;
        } else if let Some(object) = line.strip_prefix("cob=") {
            resolve(object, &mut names);
        } else if line.starts_with("calls=") {
            is_of_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let cost = line.split(' ').nth(1).map_or(Ok(0.0), str::parse);
            let cost: f64 = cost.with_context(|| format!("callgrind wrote {line:?}"))?;
            match (std::mem::take(&mut is_of_call), is_ours) {
                (true, _) => {}
                (false, true) => tally.ours += cost,
                (false, false) => tally.libc += cost,
            }
        }
    }
    Ok(tally)
}

/// `(3) /name` gives number 3 a name, `(3)` means it.
fn resolve<'a>(word: &'a str, names: &mut HashMap<&'a str, &'a str>) -> &'a str {
    match word.split_once(' ') {
        Some((number, name)) => {
            names.insert(number, name);
            name
        }
        None => names.get(word).copied().unwrap_or(word),
    }
}

/// Counts of all rows, and what they depend on.
struct Counts {
    rustc: String,
    libc: String,
    rows: Vec<(String, Tally)>,
}

impl Counts {
    fn take() -> anyhow::Result<Self> {
        let mut rows = Vec::new();
        for (name, work) in ROWS {
            let (few, many, requests) = work.counts();
            let (before, after) = (count(name, few)?, count(name, many)?);
            let each =
                |before: f64, after: f64| ((after - before) / ((many - few) * requests) as f64).max(0.0);
            let tally = Tally { ours: each(before.ours, after.ours), libc: each(before.libc, after.libc) };
            rows.push((name.to_owned(), tally));
        }
        let rustc = version_of("rustc", "--version")?;
        Ok(Self { rustc, libc: version_of("getconf", "GNU_LIBC_VERSION")?, rows })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let rustc = lines.next()?.to_owned();
        let libc = lines.next()?.to_owned();
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            Some((name, Tally { ours: words.next()?.parse().ok()?, libc: words.next()?.parse().ok()? }))
        };
        Some(Self { rustc, libc, rows: lines.map(row).collect::<Option<_>>()? })
    }

    fn text(&self) -> String {
        let mut text = format!("# Instructions for each request, ours and libc's. Written by: {UPDATE}\n");
        let _ = writeln!(text, "{}\n{}", self.rustc, self.libc);
        for (name, tally) in &self.rows {
            let _ = writeln!(text, "{name:24} {:9.1} {:9.1}", tally.ours, tally.libc);
        }
        text
    }
}

fn version_of(program: &str, word: &str) -> anyhow::Result<String> {
    let output =
        Process::new(program).arg(word).output().with_context(|| format!("cannot start {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Prints both counts of each row; what has grown too much, in words.
fn compare(baseline: &Counts, now: &Counts) -> anyhow::Result<Vec<String>> {
    let mut grown = Vec::new();
    let same_libc = baseline.libc == now.libc;
    println!(
        "{:24} {:>9} {:>9} {:>8}   {:>9} {:>9}",
        "instructions, ours", "baseline", "now", "", "libc", "now"
    );
    for (name, tally) in &now.rows {
        let row = baseline.rows.iter().find(|(known, _)| known == name);
        let Some((_, before)) = row else { bail!("the baseline has no {name}; write it: {UPDATE}") };
        let percent = |before: f64, now: f64| (now - before) / before.max(1.0) * 100.0;
        println!(
            "{name:24} {:9.1} {:9.1} {:+7.1}%   {:9.1} {:9.1}",
            before.ours,
            tally.ours,
            percent(before.ours, tally.ours),
            before.libc,
            tally.libc
        );
        let parts = [("ours", before.ours, tally.ours, true), ("libc's", before.libc, tally.libc, same_libc)];
        for (whose, before, now, _) in parts.into_iter().filter(|(.., compared)| *compared) {
            if now - before > (before * GROWTH_MAX).max(GROWTH_MIN) {
                let percent = percent(before, now);
                grown.push(format!(
                    "{name}: {now:.1} instructions of {whose}, {percent:+.1} % over {before:.1}"
                ));
            }
        }
    }
    if !same_libc {
        println!("libc's are not compared: {} here, {} in the baseline", now.libc, baseline.libc);
    }
    Ok(grown)
}

fn check() -> anyhow::Result<ExitCode> {
    let text = fs::read_to_string(BASELINE)
        .with_context(|| format!("cannot read {BASELINE}; write it: {UPDATE}"))?;
    let baseline = Counts::parse(&text).with_context(|| format!("{BASELINE} is not what this writes"))?;
    let now = Counts::take()?;
    let grown = compare(&baseline, &now)?;
    if grown.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for line in &grown {
        eprintln!("{line}");
    }
    if baseline.rustc != now.rustc {
        eprintln!("the compiler may be why: {} here, {} in the baseline", now.rustc, baseline.rustc);
    }
    eprintln!("above +{:.0} %. If that is worth it: {UPDATE}, and say why in the commit", GROWTH_MAX * 100.0);
    Ok(ExitCode::FAILURE)
}

fn run(words: &[&str]) -> anyhow::Result<ExitCode> {
    match words {
        [] => return check(),
        ["--update"] => {
            let text = Counts::take()?.text();
            print!("{text}");
            fs::write(BASELINE, text).with_context(|| format!("cannot write {BASELINE}"))?;
        }
        ["--work", name, count] => {
            let row = ROWS.iter().find(|(known, _)| known == name);
            row.context("there is no such row")?.1.run(count.parse()?)?;
        }
        ["--client", path, depth, count] => load(path, depth.parse()?, count.parse()?)?,
        _ => bail!("the words are: nothing, or --update"),
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run(&words).unwrap_or_else(|error| {
        eprintln!("instructions: {error:#}");
        ExitCode::FAILURE
    })
}
