//! Large reads, however they get into the socket: from a buffer, from a mapping of the file, by sendfile, lent to the kernel.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use crate::client::{Client, Dialect, EIO, READ, Request};
use crate::program::outcome;
use crate::scratch::{MIB, Scratch, on_disk};
use crate::server::{Server, program};

const WAYS: [&str; 4] = ["auto", "off", "map", "sendfile"];

fn each_way(path: &Path, mut check: impl FnMut(&Server, &str)) {
    for way in WAYS {
        let words = ["--zero-copy", way, "--shards", "1"];
        let words = words.iter().map(|word| word.to_string()).chain([path.display().to_string()]);
        let words: Vec<_> = words.collect();
        check(&Server::start(&words), &format!("unix, {way}"));
        check(&Server::tcp(&words), &format!("tcp, {way}"));
    }
}

/// Drops a file's pages from the page cache.
fn evict(path: &Path) {
    let file = OpenOptions::new().read(true).open(path).expect("open the file");
    file.sync_all().expect("sync the file");
    fadvise(&file, 0, None, Advice::DontNeed).expect("drop the page cache");
}

#[test]
fn every_way_brings_the_same_bytes() {
    let scratch = Scratch::new();
    let size = 9 * MIB + 777;
    let path = scratch.full("disk", size);
    each_way(&path, |server, way| {
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            let mut client = server.client(dialect);
            for (offset, length) in [
                (0, 64 << 10),
                (1, 65_537),
                (4095, 128 << 10),
                (MIB - 1, 2 * MIB + 3),
                (size - 100_000, 100_000),
                (0, size),
            ] {
                let got = client.read(offset, length as usize);
                assert!(
                    got == on_disk(&path, offset, length as usize),
                    "{way}, {dialect:?}: {length} at {offset}"
                );
            }
            client.disconnect();
        }
    });
}

#[test]
fn many_at_once_stay_apart() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 16 * MIB);
    each_way(&path, |server, way| {
        let mut client = server.client(Dialect::Structured);
        let wanted: Vec<_> = (0..60).map(|index| (index * 200_001, 64 * 1024 + index * 3000)).collect();
        let mut cookies = Vec::new();
        for &(offset, length) in &wanted {
            cookies.push(client.submit(&Request::new(READ, offset, length)));
            cookies.push(client.submit(&Request::new(READ, offset, 512)));
        }
        for _ in 0..cookies.len() {
            let reply = client.reply();
            let place = cookies.iter().position(|cookie| *cookie == reply.cookie).expect("one of ours");
            let (offset, length) = wanted[place / 2];
            let length = if place % 2 == 0 { length as usize } else { 512 };
            assert!(reply.ok(way).data(offset, length) == on_disk(&path, offset, length), "{way}: {place}");
        }
    });
}

#[test]
fn what_the_page_cache_lost_is_read_again() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 4 * MIB);
    let expected = on_disk(&path, 0, 4 << 20);
    each_way(&path, |server, way| {
        let mut client = server.client(Dialect::Structured);
        assert!(client.read(0, 4 << 20) == expected, "{way}: cached");
        evict(&path);
        assert!(client.read(0, 4 << 20) == expected, "{way}: evicted");
        evict(&path);
        assert!(client.read(MIB, 256 << 10) == expected[1 << 20..][..256 << 10], "{way}: evicted, a part");
        assert!(client.read(0, 4 << 20) == expected, "{way}: partly cached");
    });
}

#[test]
fn a_file_cut_short_fails_the_reads_beyond_its_end_and_nothing_else() {
    let scratch = Scratch::new();
    for way in WAYS {
        let path = scratch.full("disk", 8 * MIB);
        let expected = on_disk(&path, 0, 8 << 20);
        let export = format!("{},lock=off", path.display());
        let server = Server::tcp(["--zero-copy", way, &export]);
        let mut client = server.client(Dialect::Structured);
        assert!(client.read(0, 8 << 20) == expected, "{way}");
        let file = OpenOptions::new().write(true).open(&path).expect("open the file");
        file.set_len(3 * MIB).expect("cut the file short");
        let reply = client.call(&Request::new(READ, 2 * MIB, 2 * MIB));
        reply.refused(EIO, way);
        client.is_alive(way);
        assert!(client.read(MIB, 1 << 20) == expected[1 << 20..][..1 << 20], "{way}: before the cut");
    }
}

/// Reads fill the socket, then the file is cut short under them. What comes is right, up to where the connection ends.
#[test]
fn a_file_cut_short_under_a_reply_never_makes_up_bytes() {
    let scratch = Scratch::new();
    for way in WAYS {
        let path = scratch.full("disk", 64 * MIB);
        let expected = on_disk(&path, 0, 64 << 20);
        let export = format!("{},lock=off", path.display());
        let server = Server::start(["--zero-copy", way, &export]);
        let mut client = server.client(Dialect::Simple);
        client.submit(&Request::new(READ, 0, 32 * MIB));
        client.submit(&Request::new(READ, 32 * MIB, 32 * MIB));
        // The first reply has begun: the socket is full of it.
        let mut got = client.wire.receive(16 + 4096);
        let file = OpenOptions::new().write(true).open(&path).expect("open the file");
        file.set_len(MIB).expect("cut the file short");
        got.extend(client.wire.rest_within(16 + (32 << 20) - got.len()));
        let payload = &got[16..];
        assert!(*payload == expected[..payload.len()], "{way}: bytes that were never in the file");
        drop(client);
        Client::is_alive(&mut server.client(Dialect::Simple), way);
        drop(file);
    }
}

#[test]
fn a_hole_punched_under_a_reply_shows_as_old_bytes_or_zeroes() {
    let scratch = Scratch::new();
    for way in WAYS {
        let path = scratch.full("disk", 16 * MIB);
        let expected = on_disk(&path, 0, 16 << 20);
        let export = format!("{},lock=off", path.display());
        let server = Server::tcp(["--zero-copy", way, &export]);
        let mut client = server.client(Dialect::Simple);
        client.submit(&Request::new(READ, 0, 16 * MIB));
        let mut got = client.wire.receive(16 + 4096);
        let file = OpenOptions::new().write(true).open(&path).expect("open the file");
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, flags, 0, 16 * MIB).expect("punch a hole");
        got.extend(client.wire.receive(16 + (16 << 20) - got.len()));
        let old_or_zero = got[16..].iter().zip(&expected).all(|(got, old)| got == old || *got == 0);
        assert!(old_or_zero, "{way}: neither the old bytes nor zeroes");
    }
}

/// Two addresses of a network namespace's loopback are two machines to the server. The kernel copies there, which it says.
#[test]
fn between_machines_large_replies_are_lent_until_the_kernel_copies() {
    let scratch = Scratch::new();
    let disk = scratch.full("disk", 32 * MIB);
    let copy = scratch.path("copy");
    for way in ["off", "sendfile", "auto"] {
        let script = format!(
            "set -e
            ip link set lo up
            ip addr add 10.99.0.1/32 dev lo
            ip addr add 10.99.0.2/32 dev lo
            ip route replace local 10.99.0.1 dev lo table local src 10.99.0.2
            exec {program} serve -vv --zero-copy {way} --listen tcp:10.99.0.1:10809 {disk} \
                --run 'nbdcopy nbd://10.99.0.1 {copy} && cmp {copy} {disk} && echo same'",
            program = program(),
            disk = disk.display(),
            copy = copy.display(),
        );
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", &script]);
        let outcome = outcome(command);
        assert_eq!(outcome.code, Some(0), "{way}: {}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stdout.contains("same"), "{way}: {}", outcome.stdout);
        // sendfile needs no loan: what the kernel sends is its own.
        let lent = (outcome.stdout + &outcome.stderr).contains("the kernel copied what was lent");
        assert_eq!(lent, way == "off", "{way}: {}", outcome.stderr);
    }
}

#[test]
fn a_kernel_thread_that_submits_serves_as_well() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 8 * MIB);
    let server = Server::tcp(["--sqpoll", "10ms", "--shards", "2", &path.display().to_string()]);
    let mut clients: Vec<_> = (0..4).map(|_| server.client(Dialect::Structured)).collect();
    for round in 0..50 {
        for (index, client) in clients.iter_mut().enumerate() {
            let offset = (round * 4 + index as u64) * 30_011;
            let bytes = [u8::try_from(round).expect("small"); 5000];
            client.write(offset, &bytes);
            assert!(client.read(offset, 5000) == bytes, "round {round}");
        }
    }
    clients.iter_mut().for_each(Client::flush);
}
