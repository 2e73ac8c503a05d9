//! After warm-up, a request allocates nothing: the whole process is counted while a client that allocates nothing itself
//! keeps 32 requests in flight.

#![allow(unsafe_code)] // a counting allocator is an unsafe trait
#![allow(clippy::unwrap_used)] // a test, outside of any function marked so

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use ringnbd::backend::ExportSpec;
use ringnbd::net::listen::Listen;
use ringnbd::proto::{Command, CommandFlags, Dialect, Dialed, Dialer, DialerConfig, Request};
use ringnbd::rt::Poll;
use ringnbd::server::{Config, Server};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const DEPTH: usize = 32;
const BLOCK: usize = 4096;

/// A batch of requests as bytes, and how many bytes answer it.
fn batch(dialect: Dialect, command: Command) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    for index in 0..DEPTH as u64 {
        let length = if command == Command::FLUSH { 0 } else { BLOCK as u64 };
        let offset = if command == Command::FLUSH { 0 } else { index * BLOCK as u64 };
        let payload = if command == Command::WRITE { length } else { 0 };
        let request = Request { command, flags: CommandFlags::NONE, cookie: index, offset, length, payload };
        bytes.extend_from_slice(&request.encode(dialect));
        if command == Command::WRITE {
            bytes.resize(bytes.len() + BLOCK, 7);
        }
    }
    let reply = match (dialect, command) {
        (Dialect::Simple, Command::READ) => 16 + BLOCK,
        (Dialect::Structured, Command::READ) => 20 + 8 + BLOCK,
        (Dialect::Extended, Command::READ) => 32 + 8 + BLOCK,
        (Dialect::Extended, _) => 32,
        _ => 16,
    };
    (bytes, reply * DEPTH)
}

fn dial(stream: &mut UnixStream, config: DialerConfig) -> Dialect {
    let mut dialer = Dialer::new(config);
    let (mut input, mut out, mut chunk) = (Vec::new(), Vec::new(), [0; 4096]);
    loop {
        let (consumed, dialed) = dialer.advance(&input, &mut out).unwrap();
        input.drain(..consumed);
        stream.write_all(&out).unwrap();
        out.clear();
        if let Dialed::Linked(link) = dialed {
            assert!(input.is_empty());
            return link.dialect;
        }
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "the server ended the handshake");
        input.extend_from_slice(&chunk[..count]);
    }
}

#[test]
fn requests_that_need_no_helper_allocate_nothing_after_warm_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let file = directory.path().join("disk.img");
    std::fs::write(&file, vec![1_u8; DEPTH * BLOCK]).unwrap();
    let exports =
        ["null=null:1G".to_owned(), "memory=memory:64M".to_owned(), format!("file={}", file.display())];
    let exports: Vec<_> = exports.iter().map(|text| ExportSpec::parse(text).unwrap()).collect();
    let names: Vec<_> = exports.iter().map(|spec| spec.name.clone()).collect();
    let listeners = Listen::Unix(path.clone()).bind(16).unwrap();
    let config = Config { shards: Some(1), pin: false, poll: Poll::Never, ..Config::new(exports, listeners) };
    let server = Server::start(config).unwrap();
    let dialects = [(false, false), (false, true), (true, true)];
    for (name, (extended, structured)) in
        names.iter().flat_map(|name| dialects.map(|dialect| (name, dialect)))
    {
        let mut stream = UnixStream::connect(&path).unwrap();
        let config = DialerConfig { export: name.clone(), extended, structured, ..DialerConfig::default() };
        let dialect = dial(&mut stream, config);
        let commands = [
            Command::READ,
            Command::WRITE,
            Command::FLUSH,
            Command::TRIM,
            Command::WRITE_ZEROES,
            Command::CACHE,
        ];
        for command in commands.into_iter().filter(|command| *command != Command::CACHE || name == "file") {
            let (requests, replies) = batch(dialect, command);
            let mut answer = vec![0; replies];
            let mut turn = |answer: &mut [u8]| {
                stream.write_all(&requests).unwrap();
                stream.read_exact(answer).unwrap();
            };
            (0..64).for_each(|_| turn(&mut answer));
            if dialect == Dialect::Simple {
                // What is refused is no proof.
                assert_eq!(answer[4..8], [0; 4], "{name} {command:?} failed");
            }
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            (0..64).for_each(|_| turn(&mut answer));
            let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
            // A burst may still be the deepest so far (a queue grows once); a request that allocates would count 2,048.
            assert!(
                allocated < 16,
                "{name} {dialect:?} {command:?}: {allocated} allocations in {} requests",
                64 * DEPTH
            );
        }
    }
    server.stop();
    server.join().unwrap();
}
