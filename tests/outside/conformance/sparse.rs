//! Sparse reads: holes travel as holes, and what is put together again is the disk.

use crate::client::{Chunk, Dialect, READ, Request, TRIM, WRITE_ZEROES};
use crate::scratch::{MIB, Scratch, pattern};
use crate::server::Server;

#[test]
fn holes_of_a_sparse_file_travel_as_holes() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 16 * MIB);
    let server = Server::start([&path]);
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let mut client = server.client(dialect);
        client.write(4 * MIB, &pattern(3, MIB as usize));
        let reply = client.call(&Request::new(READ, 0, 16 * MIB));
        assert!(reply.ok("READ").has_hole(), "15 of 16 MiB are a hole");
        let data: u64 = reply
            .chunks
            .iter()
            .map(|chunk| match chunk {
                Chunk::Data { bytes, .. } => bytes.len() as u64,
                _ => 0,
            })
            .sum();
        assert!(data < 4 * MIB, "{data} bytes were sent for one MiB of data");
        let disk = reply.data(0, 16 << 20);
        assert!(disk[4 << 20..5 << 20] == pattern(3, MIB as usize));
        assert!(disk[..4 << 20].iter().chain(&disk[5 << 20..]).all(|byte| *byte == 0));
    }
}

#[test]
fn content_chunks_come_in_multiples_of_512() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", MIB);
    let server = Server::start([&path]);
    let mut client = server.client(Dialect::Structured);
    client.write(300_000, b"island");
    let reply = client.call(&Request::new(READ, 1, MIB - 2));
    for chunk in &reply.chunks {
        let (Chunk::Data { offset, .. } | Chunk::Hole { offset, .. }) = chunk else { continue };
        assert!(*offset == 1 || offset % 512 == 0, "a chunk begins at {offset}");
    }
}

/// Whatever an extent cache remembers, it must not remember wrongly: every way to change the disk, then a large read.
#[test]
fn a_write_into_a_known_hole_is_seen_by_the_next_read() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 8 * MIB);
    let server = Server::start([&path]);
    let mut one = server.client(Dialect::Structured);
    let mut two = server.client(Dialect::Extended);
    let whole = Request::new(READ, 0, 8 * MIB);
    assert!(one.call(&whole).has_hole());
    let mut disk = vec![0; 8 << 20];
    for round in 0..40_u64 {
        let offset = (round * 777_777) % (7 * MIB);
        let length = 1 + (round * 54_321) % MIB;
        let span = offset as usize..(offset + length) as usize;
        match round % 4 {
            0 | 2 => {
                let bytes = pattern(round, length as usize);
                two.write(offset, &bytes);
                disk[span].copy_from_slice(&bytes);
            }
            1 => {
                two.call(&Request::new(WRITE_ZEROES, offset, length)).ok("WRITE_ZEROES");
                disk[span].fill(0);
            }
            _ => {
                two.call(&Request::new(TRIM, offset, length)).ok("TRIM");
                let trimmed = two.read(offset, length as usize);
                disk[span].copy_from_slice(&trimmed);
            }
        }
        assert!(one.call(&whole).ok("READ").data(0, 8 << 20) == disk, "round {round}");
    }
}

/// Someone else's write to the file is no business of ours, but a hole we once saw must not hide it for ever.
#[test]
fn data_written_beside_the_server_is_seen() {
    use std::os::unix::fs::FileExt;
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 4 * MIB);
    let server = Server::start([&path]);
    let mut client = server.client(Dialect::Structured);
    assert_eq!(client.read(0, 4 << 20), vec![0; 4 << 20]);
    let file = std::fs::File::options().write(true).open(&path).expect("open");
    file.write_all_at(b"from the side", 2 * MIB).expect("write");
    assert_eq!(&client.read(0, 4 << 20)[2 << 20..][..13], b"from the side");
}

#[test]
fn simple_replies_carry_the_zeroes() {
    let server = Server::start(["memory:4M"]);
    let mut client = server.client(Dialect::Simple);
    client.write(MIB, b"x");
    let disk = client.read(0, 4 << 20);
    assert_eq!(disk[1 << 20], b'x');
    assert_eq!(disk.iter().filter(|byte| **byte != 0).count(), 1);
}
