//! What an export's options promise to a client: windows, durability, direct I/O, holes on disk, errors of the disk.

use crate::client::{
    Dialect, EINVAL, EIO, ENOSPC, FAST_ZERO, FUA, NO_HOLE, READ, Request, TRIM, WRITE_ZEROES,
};
use crate::haggle::Haggle;
use crate::scratch::{MIB, Scratch, allocated, on_disk, pattern};
use crate::server::Server;

/// `path` with options behind it, as a word of the command line.
fn word(path: &std::path::Path, options: &str) -> String {
    format!("{}{options}", path.display())
}

#[test]
fn a_window_shows_its_part_of_the_file_and_no_more() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 4 * MIB);
    let server = Server::start([word(&path, ",offset=1M,size=1000000")]);
    let mut client = server.client(Dialect::Structured);
    assert_eq!(client.size, 1_000_000);
    assert_eq!(client.read(0, 1000), on_disk(&path, MIB, 1000));
    client.write(999_996, b"last");
    client.call(&Request::write(999_997, b"past")).refused(ENOSPC, "past the window");
    client.call(&Request::new(READ, 999_999, 2)).refused(EINVAL, "past the window");
    client.call(&Request::new(WRITE_ZEROES, 0, 1000)).ok("WRITE_ZEROES");
    client.flush();
    assert_eq!(on_disk(&path, MIB + 999_996, 4), b"last");
    assert_eq!(on_disk(&path, MIB - 1, 1)[0] & 1, 1, "the byte before the window is untouched");
    assert_eq!(on_disk(&path, MIB, 1000), vec![0; 1000]);
    assert_ne!(on_disk(&path, MIB + 1000, 1), [0], "the byte after the zeroes is untouched");
}

#[test]
fn trim_gives_blocks_back_and_no_hole_keeps_them() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 4 * MIB);
    let server = Server::start([&path]);
    let mut client = server.client(Dialect::Structured);
    let before = allocated(&path);
    client.call(&Request::new(TRIM, 0, MIB).flags(FUA)).ok("TRIM");
    assert!(allocated(&path) + MIB / 2 < before, "TRIM frees blocks");
    client.call(&Request::new(WRITE_ZEROES, MIB, MIB).flags(FUA)).ok("WRITE_ZEROES");
    let held = allocated(&path);
    client.call(&Request::new(WRITE_ZEROES, 0, 2 * MIB).flags(NO_HOLE | FUA)).ok("NO_HOLE");
    assert!(allocated(&path) >= before.max(held), "NO_HOLE provisions what it zeroes");
    assert_eq!(client.read(0, 2 << 20), vec![0; 2 << 20]);
    let reply = client.call(&Request::new(WRITE_ZEROES, 2 * MIB, MIB).flags(FAST_ZERO));
    reply.ok("a file can be zeroed fast");
    assert_eq!(client.read(2 * MIB, 1 << 20), vec![0; 1 << 20]);
}

#[test]
fn unaligned_requests_are_served_on_a_direct_export() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 4 * MIB);
    let server = Server::start([word(&path, ",direct=on")]);
    let mut model = on_disk(&path, 0, 4 << 20);
    for dialect in crate::client::DIALECTS {
        let mut client = server.client(dialect);
        assert!(client.block[0] >= 512, "a direct export advertises its minimum block: {:?}", client.block);
        for (round, (offset, length)) in
            [(0, 4096), (1, 1), (511, 2), (4095, 4098), (MIB - 3, 700_001), (4 * MIB - 1, 1)]
                .into_iter()
                .enumerate()
        {
            let bytes = pattern(round as u64 + 50, length);
            client.write(offset, &bytes);
            model[offset as usize..][..length].copy_from_slice(&bytes);
            assert_eq!(client.read(offset, length), bytes, "{dialect:?} at {offset} for {length}");
        }
        client.call(&Request::new(WRITE_ZEROES, 5, 9000)).ok("unaligned zeroes");
        model[5..9005].fill(0);
        client.flush();
        assert!(client.read(0, 4 << 20) == model, "{dialect:?}");
    }
    assert!(on_disk(&path, 0, 4 << 20) == model);
}

/// Neighbours in one block: each read-modify-write must not undo another's bytes.
#[test]
fn overlapping_edges_on_a_direct_export_lose_nothing() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", MIB);
    let server = Server::start(["--shards", "2", &word(&path, ",direct=on")]);
    let mut clients: Vec<_> = (0..4).map(|_| server.client(Dialect::Structured)).collect();
    for round in 0..20_u8 {
        for (index, client) in clients.iter_mut().enumerate() {
            for part in 0..16_u64 {
                let at = (part * 4 + index as u64) * 100;
                client.submit(&Request::write(at, [round + 1; 100]));
            }
        }
        for client in &mut clients {
            while client.in_flight() > 0 {
                client.reply().ok("WRITE");
            }
        }
        assert_eq!(clients[0].read(0, 6400), [round + 1; 6400], "round {round}");
    }
}

#[test]
fn strict_refuses_what_is_not_aligned() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", MIB);
    let server = Server::start([word(&path, ",direct=on,strict=on")]);
    let mut client = server.client(Dialect::Structured);
    let minimum = u64::from(client.block[0]);
    client.call(&Request::new(READ, 1, minimum)).refused(EINVAL, "unaligned offset");
    client.call(&Request::new(READ, 0, minimum - 1)).refused(EINVAL, "unaligned length");
    client.call(&Request::write(3, vec![0; 100])).refused(EINVAL, "unaligned write");
    client.call(&Request::new(READ, minimum, minimum)).ok("aligned");
}

#[test]
fn writethrough_and_fua_reach_the_file() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", MIB);
    let server = Server::start([word(&path, ",writethrough=on")]);
    let mut client = server.client(Dialect::Simple);
    client.write(0, b"durable");
    client.call(&Request::write(512, b"fua").flags(FUA)).ok("FUA");
    assert_eq!(on_disk(&path, 0, 7), b"durable");
    assert_eq!(on_disk(&path, 512, 3), b"fua");
}

/// The file was cut behind our back. What is left is served, what is gone is an error at its offset, nobody is thrown
/// out and the operator can read about it.
#[test]
fn a_file_that_shrank_is_an_error_and_never_zeroes() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 4 * MIB);
    let server = Server::start([&path]);
    let mut client = server.client(Dialect::Structured);
    let first = client.read(0, 4096);
    std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(MIB)).expect("truncate");
    let reply = client.call(&Request::new(READ, MIB - 4096, 8192));
    reply.refused(EIO, "READ across the new end");
    assert_eq!(reply.error_at, Some(MIB), "ERROR_OFFSET names the first byte that failed");
    client.call(&Request::new(READ, 2 * MIB, 4096)).refused(EIO, "READ beyond the new end");
    client.call(&Request::new(READ, 0, 4 * MIB)).refused(EIO, "a large READ across the new end");
    assert_eq!(client.read(0, 4096), first);
    drop(client);
    assert!(server.log().contains("size"), "the log tells that the size changed: {}", server.log());
}

#[test]
fn exports_of_one_server_do_not_mix() {
    let server = Server::start(["a=memory:1M", "b=memory:1M"]);
    let mut a = Haggle::new(&server.address).structured().go("a");
    let mut b = Haggle::new(&server.address).structured().go("b");
    a.write(0, b"only in a");
    assert_eq!(b.read(0, 9), [0; 9]);
    assert_eq!(a.read(0, 9), b"only in a");
}
