//! Who watches the watchman: our raw client against other people's servers, so that a rule it enforces is known to be
//! one that others keep too.

use std::process::{Child, Command, Stdio};

use crate::client::{BLOCK_STATUS, Client, Dialect, EINVAL, FLUSH, FUA, READ, Request, TRIM, WRITE_ZEROES};
use crate::haggle::{Haggle, INVALID, LIST, UNKNOWN, UNSUP, export_query};
use crate::scratch::{MIB, Scratch, pattern};
use crate::wait::until;
use crate::wire::{Address, Wire};

/// Another server on a unix socket, killed when dropped.
pub(crate) struct Peer {
    child: Child,
    pub(crate) address: Address,
    _scratch: Scratch,
}

impl Peer {
    /// `words` with `SOCKET` and `DISK` replaced; the disk has 16 MiB, the second of them data.
    fn start(program: &str, words: &[&str]) -> Self {
        let scratch = Scratch::new();
        let socket = scratch.path("socket");
        let disk = scratch.sparse("disk", 16 * MIB);
        let file = std::fs::File::options().write(true).open(&disk).expect("open");
        std::os::unix::fs::FileExt::write_all_at(&file, &pattern(5, MIB as usize), MIB).expect("write");
        let place = |word: &&str| {
            word.replace("SOCKET", socket.to_str().expect("UTF-8"))
                .replace("DISK", disk.to_str().expect("UTF-8"))
        };
        let child = Command::new(program)
            .args(words.iter().map(place))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs the peers)"));
        let address = Address::Unix(socket);
        until("the peer listens", || Wire::try_connect(&address).is_ok());
        Self { child, address, _scratch: scratch }
    }

    pub(crate) fn qemu() -> Self {
        let words = [
            "--persistent",
            "--shared=0",
            "-f",
            "raw",
            "-k",
            "SOCKET",
            "-x",
            "disk",
            "--discard=unmap",
            "DISK",
        ];
        Self::start("qemu-nbd", &words)
    }

    fn nbdkit(words: &[&str]) -> Self {
        Self::start("nbdkit", &[&["-f", "-U", "SOCKET"], words, &["file", "DISK"]].concat())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exercise(mut client: Client, has_contexts: bool) {
    assert_eq!(client.size, 16 * MIB);
    assert!(client.read(MIB, 1 << 20) == pattern(5, 1 << 20));
    let bytes = pattern(9, 100_000);
    client.write(5 * MIB, &bytes);
    client.call(&Request::write(5 * MIB, bytes.clone()).flags(FUA)).ok("WRITE with FUA");
    assert_eq!(client.read(5 * MIB, 100_000), bytes);
    client.call(&Request::new(WRITE_ZEROES, 5 * MIB, 50_000)).ok("WRITE_ZEROES");
    client.call(&Request::new(TRIM, 6 * MIB, 65536)).ok("TRIM");
    client.call(&Request::new(FLUSH, 0, 0)).ok("FLUSH");
    let whole = client.call(&Request::new(READ, 0, 16 * MIB));
    whole.ok("READ").data(0, 16 << 20);
    assert_eq!(client.call(&Request::new(READ, 16 * MIB, 1)).errno, EINVAL);
    if has_contexts {
        let reply = client.call(&Request::new(BLOCK_STATUS, 0, 16 * MIB));
        assert!(reply.extents(client.context("base:allocation")).len() >= 3);
    }
    client.disconnect();
}

#[test]
fn qemu_speaks_all_three_dialects_with_us() {
    let qemu = Peer::qemu();
    exercise(Haggle::new(&qemu.address).go("disk"), false);
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let haggle = Haggle::new(&qemu.address).dialect(dialect);
        exercise(haggle.contexts("disk", &["base:allocation"]).go("disk"), true);
    }
}

#[test]
fn qemu_refuses_what_we_expect_to_be_refused() {
    let qemu = Peer::qemu();
    let mut haggle = Haggle::new(&qemu.address);
    haggle.refused(99, b"junk", UNSUP, "unknown option");
    haggle.refused(LIST, b"junk", INVALID, "LIST with data");
    haggle.refused(crate::haggle::INFO, &export_query("nosuch", &[]), UNKNOWN, "unknown export");
    haggle.is_framed("after refusals");
}

#[test]
fn nbdkit_speaks_two_dialects_and_oldstyle_with_us() {
    let nbdkit = Peer::nbdkit(&[]);
    exercise(Haggle::new(&nbdkit.address).go(""), false);
    exercise(Haggle::new(&nbdkit.address).structured().contexts("", &["base:allocation"]).go(""), true);
    let old = Peer::nbdkit(&["--oldstyle"]);
    let mut wire = Wire::connect(&old.address);
    let hello = wire.receive(152);
    assert_eq!(&hello[..16], b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53");
}
