//! After warm-up, a request allocates nothing: the whole process is counted while a client that allocates nothing itself
//! keeps 32 requests in flight.

#![allow(unsafe_code)] // a counting allocator is an unsafe trait
#![allow(clippy::unwrap_used)] // a test, outside of any function marked so

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ringnbd::backend::ExportSpec;
use ringnbd::net::listen::Listen;
use ringnbd::net::tls::{Certificates, ClientCertificates, Handshake, Opened, ServerName, Session};
use ringnbd::proto::{Command, CommandFlags, Dialect, Dialed, Dialer, DialerConfig, Request};
use ringnbd::rt::Poll;
use ringnbd::server::{Config, Encryption, Server};

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
const LARGE: usize = 64 << 10;

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

/// One at a time: the whole process is counted.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn requests_that_need_no_helper_allocate_nothing_after_warm_up() {
    let _alone = ALONE.lock();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let file = directory.path().join("disk.img");
    std::fs::write(&file, vec![1_u8; DEPTH * BLOCK]).unwrap();
    // A write that the disk holds up would go to a thread, which has a queue of its own.
    let file = format!("file={},writes=inline", file.display());
    let exports = ["null=null:1G".to_owned(), "memory=memory:64M".to_owned(), file];
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

/// A client's end of TLS that allocates nothing either, once its buffers have grown.
struct Secured {
    stream: UnixStream,
    session: Session,
    wire: Vec<u8>,
    input: Vec<u8>,
}

impl Secured {
    /// Says STARTTLS and shakes hands.
    fn begin(path: &Path, certificates: &ClientCertificates) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&[&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 5, 0, 0, 0, 0]].concat()).unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut handshake = Handshake::client(certificates.current(), name).unwrap();
        let (mut out, mut chunk) = (Vec::new(), [0; 4096]);
        let mut done = handshake.advance(&[], &mut out).unwrap();
        loop {
            stream.write_all(&out).unwrap();
            out.clear();
            if done {
                break;
            }
            let count = stream.read(&mut chunk).unwrap();
            done = handshake.advance(&chunk[..count], &mut out).unwrap();
        }
        let session = handshake.finish().unwrap().session;
        Self { stream, session, wire: Vec::new(), input: Vec::with_capacity(4 << 20) }
    }

    fn send(&mut self, plain: &[u8]) {
        let (before, behind) = self.session.overhead();
        self.wire.clear();
        for part in plain.chunks(16 << 10) {
            let start = self.wire.len();
            self.wire.resize(start + before, 0);
            self.wire.extend_from_slice(part);
            self.wire.resize(start + before + part.len() + behind, 0);
            let (prefix, rest) = self.wire[start..].split_at_mut(before);
            let (plain, suffix) = rest.split_at_mut(part.len());
            self.session.seal(plain, prefix, suffix).unwrap();
        }
        self.stream.write_all(&self.wire).unwrap();
    }

    /// Receives `count` bytes of data; the first of them go to `head`.
    fn receive(&mut self, count: usize, head: &mut [u8]) {
        let mut got = 0;
        while got < count {
            let have = self.input.len();
            let length = self.session.record_length(&self.input).unwrap().unwrap_or(5);
            if have < length {
                self.input.resize(have + (64 << 10), 0);
                let count = self.stream.read(&mut self.input[have..]).unwrap();
                assert!(count > 0, "the server closed");
                self.input.truncate(have + count);
                continue;
            }
            if let Opened::Data(range) = self.session.open(&mut self.input[..length]).unwrap() {
                let data = &self.input[range];
                let part = head.len().saturating_sub(got).min(data.len());
                let at = got.min(head.len());
                head[at..][..part].copy_from_slice(&data[..part]);
                got += data.len();
            }
            self.input.drain(..length);
        }
        assert_eq!(got, count);
    }
}

#[test]
fn requests_through_tls_allocate_nothing_after_warm_up() {
    let _alone = ALONE.lock();
    let directory = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(directory.path().join("ca-cert.pem"), issuer.pem()).unwrap();
    std::fs::write(directory.path().join("server-cert.pem"), certificate.pem()).unwrap();
    std::fs::write(directory.path().join("server-key.pem"), key.serialize_pem()).unwrap();
    let certificates = Arc::new(Certificates::load(directory.path(), false).unwrap());
    let trusted = ClientCertificates::load(Some(directory.path()), true).unwrap();

    let path = directory.path().join("nbd.sock");
    let file = directory.path().join("disk.img");
    std::fs::write(&file, vec![1_u8; DEPTH * LARGE]).unwrap();
    // A write that the disk holds up would go to a thread, which has a queue of its own.
    let exports = vec![ExportSpec::parse(&format!("{},writes=inline", file.display())).unwrap()];
    let listeners = Listen::Unix(path.clone()).bind(16).unwrap();
    let encryption = Some(Encryption { required: true, certificates });
    let config = Config {
        shards: Some(1),
        pin: false,
        poll: Poll::Never,
        encryption,
        ..Config::new(exports, listeners)
    };
    let server = Server::start(config).unwrap();
    for (command, length) in
        [(Command::READ, BLOCK), (Command::WRITE, BLOCK), (Command::READ, LARGE), (Command::WRITE, LARGE)]
    {
        let mut client = Secured::begin(&path, &trusted);
        client.send(&[&b"IHAVEOPT"[..], &[0, 0, 0, 1, 0, 0, 0, 0]].concat());
        client.receive(10, &mut []);
        let mut requests = Vec::new();
        for index in 0..DEPTH as u64 {
            let payload = if command == Command::WRITE { length as u64 } else { 0 };
            let request = Request {
                command,
                flags: CommandFlags::NONE,
                cookie: index,
                offset: index * length as u64,
                length: length as u64,
                payload,
            };
            requests.extend_from_slice(&request.encode(Dialect::Simple));
            requests.resize(requests.len() + if payload > 0 { length } else { 0 }, 7);
        }
        let answer = DEPTH * (16 + if command == Command::READ { length } else { 0 });
        let mut head = [0; 16];
        for _ in 0..64 {
            client.send(&requests);
            client.receive(answer, &mut head);
        }
        assert_eq!(head[4..8], [0; 4], "{command:?} failed");
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..64 {
            client.send(&requests);
            client.receive(answer, &mut head);
        }
        let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
        // Nothing for a request. A batch of 2 MiB may take one, where it arrives while the shard does not run: on a machine
        // that was busy 64 were seen for writes and 24 for reads, on one that was not none.
        let batches = if length == LARGE { 64 } else { 0 };
        let bytes = 64 * (requests.len() + answer);
        assert!(
            allocated < 16 + batches,
            "{command:?} of {length}: {allocated} allocations in {} requests and {} records or more",
            64 * DEPTH,
            bytes >> 14
        );
    }
    server.stop();
    server.join().unwrap();
}
