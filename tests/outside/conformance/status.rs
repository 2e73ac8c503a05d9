//! BLOCK_STATUS: which parts of an export are holes, and what the request may ask for.

use crate::client::{BLOCK_STATUS, Client, Dialect, EINVAL, FUA, REQ_ONE, Request, TRIM, WRITE_ZEROES};
use crate::haggle::Haggle;
use crate::scratch::{MIB, Scratch, pattern};
use crate::server::Server;

const BASE: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";
const WORDY: [Dialect; 2] = [Dialect::Structured, Dialect::Extended];

fn client(server: &Server, dialect: Dialect, contexts: &[&str]) -> Client {
    Haggle::new(&server.address).dialect(dialect).contexts("", contexts).go("")
}

/// Data at [1 MiB, 2 MiB) of 8 MiB.
fn island(scratch: &Scratch) -> Server {
    let path = scratch.sparse("disk", 8 * MIB);
    let server = Server::start([&path]);
    server.client(Dialect::Simple).write(MIB, &pattern(5, MIB as usize));
    server
}

#[test]
fn base_allocation_tells_data_from_holes() {
    let scratch = Scratch::new();
    let server = island(&scratch);
    for dialect in WORDY {
        let mut client = client(&server, dialect, &[BASE]);
        let id = client.context(BASE);
        let reply = client.call(&Request::new(BLOCK_STATUS, 0, 8 * MIB));
        assert_eq!(reply.ok("BLOCK_STATUS").extents(id), [(MIB, 3), (MIB, 0), (6 * MIB, 3)], "{dialect:?}");

        let reply = client.call(&Request::new(BLOCK_STATUS, MIB + 512, 1024));
        assert_eq!(reply.extents(id)[0].1, 0, "inside the data");
    }
}

#[test]
fn req_one_brings_one_extent_within_the_request() {
    let scratch = Scratch::new();
    let server = island(&scratch);
    for dialect in WORDY {
        let mut client = client(&server, dialect, &[BASE, DEPTH]);
        for (offset, length) in [(0, 8 * MIB), (0, 512), (MIB, 4 * MIB), (3 * MIB, 1)] {
            let reply = client.call(&Request::new(BLOCK_STATUS, offset, length).flags(REQ_ONE));
            for name in [BASE, DEPTH] {
                assert_eq!(reply.ok("REQ_ONE").extents(client.context(name)).len(), 1);
            }
        }
        client
            .call(&Request::new(BLOCK_STATUS, 0, MIB).flags(REQ_ONE | FUA))
            .ok("FUA is accepted everywhere");
    }
}

#[test]
fn every_selected_context_gets_its_chunk() {
    let scratch = Scratch::new();
    let server = island(&scratch);
    for dialect in WORDY {
        let mut client = client(&server, dialect, &[DEPTH, BASE]);
        let reply = client.call(&Request::new(BLOCK_STATUS, 0, 8 * MIB));
        let depth = reply.extents(client.context(DEPTH));
        // One layer: data is at depth 1; what is not allocated may be told as 0 or as 1.
        let mut at = 0;
        for (length, value) in depth {
            assert!(value <= 1, "{dialect:?}: depth {value} of a single layer");
            assert!(value == 1 || at + length <= MIB || at >= 2 * MIB, "{dialect:?}: data at depth 0");
            at += length;
        }
        assert_eq!(at, 8 * MIB);
        assert_eq!(reply.extents(client.context(BASE)).len(), 3);
    }
}

#[test]
fn trim_and_zeroes_show_as_holes() {
    let scratch = Scratch::new();
    let server = island(&scratch);
    let mut client = client(&server, Dialect::Structured, &[BASE]);
    let id = client.context(BASE);
    client.call(&Request::new(TRIM, MIB, MIB / 2)).ok("TRIM");
    let reply = client.call(&Request::new(BLOCK_STATUS, MIB, MIB));
    assert_eq!(reply.extents(id)[0], (MIB / 2, 3), "trimmed");
    client.call(&Request::new(WRITE_ZEROES, 0, 8 * MIB)).ok("WRITE_ZEROES");
    let reply = client.call(&Request::new(BLOCK_STATUS, 0, 8 * MIB));
    assert_eq!(reply.extents(id)[0].1 & 2, 2, "zeroed reads as zero");
}

#[test]
fn an_odd_tail_is_covered_to_the_byte() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", MIB + 77);
    let server = Server::start([&path]);
    for dialect in WORDY {
        let mut client = client(&server, dialect, &[BASE]);
        let reply = client.call(&Request::new(BLOCK_STATUS, 0, MIB + 77));
        let total: u64 = reply.extents(client.context(BASE)).iter().map(|extent| extent.0).sum();
        assert_eq!(total, MIB + 77, "no extent goes beyond the export");
    }
}

/// A checkerboard of holes: more extents than anyone wants to hear of in one reply may be cut, never wrong.
#[test]
fn many_extents_walk_to_the_end() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 64 * MIB);
    let server = Server::start([&path]);
    let mut writer = server.client(Dialect::Simple);
    for block in (0..1024_u64).step_by(2) {
        writer.write(block * 65536, &[1; 65536]);
    }
    writer.flush();
    for dialect in WORDY {
        let mut client = client(&server, dialect, &[BASE]);
        let id = client.context(BASE);
        let mut at = 0;
        let mut data = 0;
        while at < 64 * MIB {
            let reply = client.call(&Request::new(BLOCK_STATUS, at, 64 * MIB - at));
            for (length, flags) in reply.ok("BLOCK_STATUS").extents(id) {
                data += if flags == 0 { length } else { 0 };
                at += length;
            }
        }
        assert_eq!((at, data), (64 * MIB, 32 * MIB), "{dialect:?}");
    }
}

#[test]
fn huge_exports_answer_in_the_width_of_their_dialect() {
    let server = Server::start(["null:8T"]);
    let mut wide = client(&server, Dialect::Extended, &[BASE]);
    let reply = wide.call(&Request::new(BLOCK_STATUS, 0, 8 << 40));
    let total: u64 = reply.ok("8 TiB").extents(wide.context(BASE)).iter().map(|extent| extent.0).sum();
    assert_eq!(total, 8 << 40, "64-bit extents");
    let mut narrow = client(&server, Dialect::Structured, &[BASE]);
    let reply = narrow.call(&Request::new(BLOCK_STATUS, 0, 0xffff_ffff));
    assert!(!reply.ok("4 GiB").extents(narrow.context(BASE)).is_empty());
}

/// Filter by payload: an 8-byte effect length, then the ids.
fn filtered(offset: u64, length: u64, ids: &[u32]) -> Request {
    let mut payload = length.to_be_bytes().to_vec();
    payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
    Request { payload, ..Request::write(offset, []) }.status()
}

impl Request {
    fn status(mut self) -> Self {
        self.command = BLOCK_STATUS;
        self.length = self.payload.len() as u64;
        self
    }
}

#[test]
fn filtered_queries_answer_only_what_was_asked() {
    let scratch = Scratch::new();
    let server = island(&scratch);
    let mut client = client(&server, Dialect::Extended, &[BASE, DEPTH]);
    let [base, depth] = [client.context(BASE), client.context(DEPTH)];
    for ids in [&[base][..], &[depth], &[depth, base]] {
        let reply = client.call(&filtered(0, 8 * MIB, ids));
        assert_eq!(reply.ok("filtered").chunks.len(), ids.len());
        for id in ids {
            assert!(!reply.extents(*id).is_empty());
        }
    }
    let unknown = base.max(depth) + 1;
    for ids in [&[base, base][..], &[unknown], &[base, unknown], &[u32::MAX]] {
        client.call(&filtered(0, 4096, ids)).refused(EINVAL, &format!("ids {ids:?}"));
        client.is_alive("after a bad filter");
    }
    client.call(&filtered(8 * MIB, 512, &[base])).refused(EINVAL, "filtered past the end");
    client.call(&filtered(u64::MAX, u64::MAX, &[base])).refused(EINVAL, "filtered and wrapping");
    client.is_alive("after filters past the end");
}

#[test]
fn malformed_filters_are_consumed_and_einval() {
    let server = Server::start(["memory:1M"]);
    let mut client = client(&server, Dialect::Extended, &[BASE]);
    for length in [1, 4, 7, 9, 10, 11, 13, 15, 1001, 65535] {
        let request = Request { payload: vec![0; length], ..Request::write(0, []) }.status();
        client.call(&request).refused(EINVAL, &format!("a filter of {length} bytes"));
        client.is_alive("after a malformed filter");
    }
    let many: Vec<u32> = (0..10_000).collect();
    client.call(&filtered(0, 4096, &many)).refused(EINVAL, "ten thousand ids");
    client.is_alive("after ten thousand ids");
}
