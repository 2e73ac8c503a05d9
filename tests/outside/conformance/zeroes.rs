//! WRITE_ZEROES where zeroing is cheap, where only half of it is, and where it has to be written: what FAST_ZERO promises.

use std::path::Path;

use crate::client::{
    Client, DIALECTS, Dialect, EINVAL, ENOTSUP, FAST_ZERO, FUA, NO_HOLE, Request, TRIM, WRITE_ZEROES,
};
use crate::scratch::{LoopDevice, MIB, Mount, Ramdisk, allocated, pattern};
use crate::server::Server;

const CAN_TRIM: u16 = 1 << 5;
const CAN_ZERO: u16 = 1 << 6;
const CAN_ZERO_FAST: u16 = 1 << 11;

/// Zeroes 64 KiB of data; the reply is an errno.
fn zero(client: &mut Client, flags: u16) -> u32 {
    let bytes = pattern(3, 3 * 65536);
    client.write(0, &bytes);
    let reply = client.call(&Request::new(WRITE_ZEROES, 65536, 65536).flags(flags));
    let after = client.read(0, bytes.len());
    let mut zeroed = bytes.clone();
    zeroed[65536..131_072].fill(0);
    let expected = if reply.errno == 0 { zeroed } else { bytes };
    assert!(after == expected, "flags {flags}, errno {}: not what was promised", reply.errno);
    reply.errno
}

/// A memfd punches holes but has no ZERO_RANGE; a file of ext3 has block maps, for which ext4 has none either.
#[test]
fn fast_zero_is_refused_where_the_zeroes_would_be_written() {
    let mount = Mount::new("ext3");
    let path = mount.sparse("disk", 16 * MIB);
    for word in ["memory:16M".to_owned(), path.display().to_string(), format!("{},direct=on", path.display())]
    {
        let server = Server::start([&word]);
        for dialect in DIALECTS {
            let mut client = server.client(dialect);
            assert_ne!(client.flags & CAN_ZERO_FAST, 0, "{word}: holes are fast, so it is advertised");
            assert_eq!(zero(&mut client, FAST_ZERO), 0, "{word}: a hole is fast");
            assert_eq!(zero(&mut client, FAST_ZERO | NO_HOLE), ENOTSUP, "{word}: {dialect:?}");
            assert_eq!(zero(&mut client, NO_HOLE), 0, "{word}: zeroes that are written");
            assert_eq!(zero(&mut client, NO_HOLE | FUA), 0, "{word}");
        }
    }
}

#[test]
fn zeroes_that_are_no_hole_stay_allocated_where_they_have_to_be_written() {
    let mount = Mount::new("ext3");
    let path = mount.sparse("disk", 16 * MIB);
    let server = Server::start([&path]);
    let mut client = server.client(Dialect::Structured);
    client.call(&Request::new(WRITE_ZEROES, 0, 8 * MIB).flags(NO_HOLE | FUA)).ok("zeroes are written");
    assert!(allocated(&path) >= 8 * MIB, "{} bytes", allocated(&path));
    assert_eq!(client.read(0, 8 << 20), vec![0; 8 << 20]);
}

/// Without `fallocate` nothing is advertised that would not work, and zeroes are written.
#[test]
fn a_file_system_without_fallocate_gets_its_zeroes_written() {
    let ram = Ramdisk::plain();
    let path = ram.sparse("disk", 16 * MIB);
    fallocate_is_unknown(&path);
    let server = Server::start([&path]);
    only_writes(&server);
}

/// A loop device over such a file has no discard and no zeroing of its own either.
#[test]
fn a_device_without_zeroing_gets_its_zeroes_written() {
    let ram = Ramdisk::plain();
    let device = LoopDevice::over(ram.sparse("disk", 16 * MIB));
    for options in ["", ",direct=on"] {
        let server = Server::start([format!("block:{}{options}", device.path.display())]);
        only_writes(&server);
    }
}

/// A zero that begins and ends inside a block of a device cannot do without writing.
#[test]
fn fast_zero_of_half_a_block_is_refused() {
    let device = LoopDevice::with(16 * MIB, &["--sector-size", "4096"]);
    for options in ["", ",direct=on"] {
        let server = Server::start([format!("{}{options}", device.path.display())]);
        let mut client = server.client(Dialect::Structured);
        assert_ne!(client.flags & CAN_ZERO_FAST, 0, "a loop device over a file that punches holes");
        let bytes = pattern(4, 65536);
        client.write(0, &bytes);
        for (offset, length) in [(100, 100), (0, 5000), (4000, 8192), (4096, 4097)] {
            let request = Request::new(WRITE_ZEROES, offset, length).flags(FAST_ZERO);
            client.call(&request).refused(ENOTSUP, "not whole blocks");
        }
        assert!(client.read(0, 65536) == bytes, "{options}: nothing was changed");
        client.call(&Request::new(WRITE_ZEROES, 4096, 8192).flags(FAST_ZERO)).ok("whole blocks");
        assert_eq!(client.read(4096, 8192), [0; 8192]);
    }
}

#[track_caller]
fn fallocate_is_unknown(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).expect("open");
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let refused = rustix::fs::fallocate(&file, flags, 0, 4096);
    assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP), "this test needs a file system without fallocate");
}

#[track_caller]
fn only_writes(server: &Server) {
    for dialect in DIALECTS {
        let mut client = server.client(dialect);
        assert_eq!(
            client.flags & (CAN_TRIM | CAN_ZERO | CAN_ZERO_FAST),
            CAN_ZERO,
            "flags {:#x}",
            client.flags
        );
        for flags in [0, NO_HOLE, FUA, NO_HOLE | FUA] {
            assert_eq!(zero(&mut client, flags), 0);
        }
        // What is not advertised is not offered: EINVAL, says the specification.
        assert_eq!(zero(&mut client, FAST_ZERO), EINVAL);
        client.call(&Request::new(TRIM, 0, 4096)).refused(EINVAL, "TRIM was not advertised");
        client.call(&Request::new(WRITE_ZEROES, 3 * MIB + 1, 5 * MIB)).ok("more than one piece, not aligned");
        client.flush();
    }
}
