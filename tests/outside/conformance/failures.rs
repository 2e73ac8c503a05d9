//! When the disk fails: the request hears of it, with the right errno and a sentence, and the connection lives on.

use crate::client::{
    Chunk, DIALECTS, Dialect, EINVAL, EIO, ENOSPC, FLUSH, FUA, READ, Request, TRIM, WRITE_ZEROES,
};
use crate::scratch::{LoopDevice, MIB, Ramdisk, pattern, random};
use crate::server::Server;

/// A backend that fails now and then, in every dialect: each failure is a whole reply, each success is true, and what
/// failed has touched nothing but its own range.
#[test]
fn a_failing_disk_costs_requests_and_never_a_connection() {
    for (dialect, seed) in DIALECTS.into_iter().zip([11, 22, 33]) {
        let server = Server::start(["--shards", "1", &format!("faulty:{seed}:memory:1M")]);
        let mut client = server.client(dialect);
        // What a byte may be: the last value that was surely written, and those that were tried since.
        let mut known = vec![vec![0_u8]; 256];
        let (mut failed, mut succeeded) = (0, 0);
        for (round, number) in (1_u8..=255).cycle().zip(random(seed).take(2000)) {
            let block = (number >> 32) as usize % 256;
            let offset = block as u64 * 4096;
            let reply = match number % 4 {
                0 | 1 => {
                    let reply = client.call(&Request::new(READ, offset, 4096));
                    if reply.errno == 0 {
                        let data = reply.data(offset, 4096);
                        assert!(
                            data.iter().all(|byte| known[block].contains(byte)),
                            "seed {seed}: block {block}"
                        );
                    }
                    reply
                }
                2 => {
                    let reply = client.call(&Request::write(offset, vec![round; 4096]));
                    settle(&mut known[block], round, reply.errno);
                    reply
                }
                _ => {
                    let reply = client.call(&Request::new(WRITE_ZEROES, offset, 4096));
                    settle(&mut known[block], 0, reply.errno);
                    reply
                }
            };
            if reply.errno == 0 {
                succeeded += 1;
            } else {
                failed += 1;
                assert!([EIO, ENOSPC, EINVAL].contains(&reply.errno), "errno {}", reply.errno);
                reply.refused(reply.errno, "a failure has a sentence");
            }
        }
        assert!(failed > 20 && succeeded > 1000, "seed {seed}: {failed} failed, {succeeded} succeeded");
        client.disconnect();
    }
}

fn settle(known: &mut Vec<u8>, value: u8, errno: u32) {
    if errno == 0 {
        known.clear();
    }
    known.push(value);
}

/// With a failure in the middle, what came before it may be used and is told apart.
#[test]
fn a_failed_read_says_where() {
    let server = Server::start(["--shards", "1", "faulty:5:memory:4M"]);
    let disk = pattern(3, 4 << 20);
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let mut client = server.client(dialect);
        for block in 0..64 {
            let offset = block << 16;
            let bytes = &disk[offset as usize..][..65536];
            while client.call(&Request::write(offset, bytes)).errno != 0 {}
        }
        let mut seen = 0;
        for round in 0..400_u64 {
            let reply = client.call(&Request::new(READ, (round % 64) << 16, 65536));
            let Some(at) = reply.error_at else { continue };
            seen += 1;
            for chunk in &reply.chunks {
                let Chunk::Data { offset, bytes } = chunk else { continue };
                let good = at.saturating_sub(*offset).min(bytes.len() as u64) as usize;
                assert!(
                    bytes[..good] == disk[*offset as usize..][..good],
                    "what is before the error is good"
                );
            }
        }
        assert!(seen > 0, "{dialect:?}: no failure in 400 reads told its offset");
    }
}

/// Requests that overtake each other: every reply finds its request.
#[test]
fn late_requests_are_overtaken_and_all_are_answered() {
    let server = Server::tcp(["faulty:9:memory:16M"]);
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        let (mut order, mut previous, mut overtaken) = (Vec::new(), 0, 0);
        for round in 0..10 {
            for index in 0..100_u64 {
                order.push(client.submit(&Request::new(READ, index * 4096 + round, 4096)));
            }
            while client.in_flight() > 0 {
                let cookie = client.reply().cookie;
                overtaken += u32::from(cookie < previous);
                previous = cookie;
            }
        }
        assert!(overtaken > 0, "{dialect:?}: nothing was ever late");
    }
}

/// The kernel tells of a lost write once. Whoever flushes after that must hear it too, or it believes a lie.
#[test]
fn a_failed_flush_is_told_to_everyone_who_flushes_afterwards() {
    let disk = Ramdisk::small(4 * MIB);
    let device = LoopDevice::over(disk.sparse("backing", 64 * MIB));
    let server = Server::start([&device.path]);
    let mut writer = server.client(Dialect::Structured);
    let mut other = server.client(Dialect::Simple);
    other.flush();
    writer.write(0, &pattern(1, 32 << 20));
    let reply = writer.call(&Request::new(FLUSH, 0, 0));
    assert!([EIO, ENOSPC].contains(&reply.errno), "32 MiB are durable on a disk of 4: {}", reply.errno);
    for symptom in ["the same connection again", "and again"] {
        assert_ne!(writer.call(&Request::new(FLUSH, 0, 0)).errno, 0, "{symptom}");
    }
    assert_ne!(other.call(&Request::new(FLUSH, 0, 0)).errno, 0, "another connection");
    let mut late = server.client(Dialect::Extended);
    assert_ne!(late.call(&Request::new(FLUSH, 0, 0)).errno, 0, "a connection that came later");
    assert_ne!(late.call(&Request::write(0, b"x").flags(FUA)).errno, 0, "FUA promises no less than FLUSH");
    late.is_alive("after a failed flush");
}

#[test]
fn a_full_disk_is_enospc() {
    let disk = Ramdisk::small(8 * MIB);
    let server = Server::start([disk.sparse("disk", 64 * MIB)]);
    let mut client = server.client(Dialect::Structured);
    client.call(&Request::write(0, vec![1; 16 << 20])).refused(ENOSPC, "16 MiB on a disk of 8");
    client.is_alive("after ENOSPC");
    client.call(&Request::new(TRIM, 0, 64 * MIB)).ok("TRIM makes room");
    client.call(&Request::write(0, vec![2; 4 << 20])).ok("4 MiB fit again");
}
