//! Block devices: loop devices with real discard, with sectors of 512 and of 4096 bytes.

use std::ffi::OsStr;
use std::path::Path;

use super::fio::fio;
use crate::client::{Dialect, EINVAL, FAST_ZERO, FUA, NO_HOLE, READ, Request, TRIM, WRITE_ZEROES};
use crate::haggle::Haggle;
use crate::program::run;
use crate::scratch::{LoopDevice, MIB, allocated, pattern};
use crate::server::{Server, program};

fn block(device: &LoopDevice, options: &str) -> String {
    format!("block:{}{options}", device.path.display())
}

#[test]
fn a_loop_device_verifies_and_discards() {
    for options in ["", ",direct=on"] {
        let device = LoopDevice::new(64 * MIB);
        let server = Server::start([block(&device, options)]);
        fio(&server, &["--rw=randwrite", "--bs=4k", "--size=32M", "--iodepth=32", "--verify=crc32c"]);
        let mut client = server.client(Dialect::Structured);
        client.write(0, &pattern(1, 8 << 20));
        client.flush();
        let before = allocated(&device.backing);
        client.call(&Request::new(TRIM, 0, 8 * MIB).flags(FUA)).ok("TRIM");
        assert!(allocated(&device.backing) + 7 * MIB < before, "{options}: TRIM is a discard of the device");
    }
}

#[test]
fn zeroes_on_a_device_read_back_as_zeroes() {
    for options in ["", ",direct=on"] {
        let device = LoopDevice::new(16 * MIB);
        let server = Server::start([block(&device, options)]);
        let mut client = server.client(Dialect::Structured);
        for flags in [0, NO_HOLE, FUA, NO_HOLE | FUA] {
            let mut model = pattern(7, 4 << 20);
            client.write(0, &model);
            for (offset, length) in [(0, MIB), (MIB + 512, 100_352), (3 * MIB + 5, 7777)] {
                client.call(&Request::new(WRITE_ZEROES, offset, length).flags(flags)).ok("WRITE_ZEROES");
                model[offset as usize..][..length as usize].fill(0);
            }
            assert!(client.read(0, 4 << 20) == model, "{options}: flags {flags}");
        }
        let reply = client.call(&Request::new(WRITE_ZEROES, 0, MIB).flags(FAST_ZERO));
        reply.ok("FAST_ZERO: the file behind the device punches holes");
        assert_eq!(client.read(0, 1 << 20), vec![0; 1 << 20], "{options}");
    }
}

#[test]
fn the_sector_of_the_device_is_its_minimum_block() {
    let device = LoopDevice::with(16 * MIB, &["--sector-size", "4096"]);
    for options in ["", ",direct=on"] {
        let server = Server::start([block(&device, options)]);
        let mut client = server.client(Dialect::Extended);
        assert_eq!(client.block[0], 4096, "{options}");
        client.write(100, b"not a sector");
        assert_eq!(client.read(100, 12), b"not a sector", "{options}: who ignores it is still served");
        client.call(&Request::new(READ, 16 * MIB, 1)).refused(EINVAL, "past the end of the device");
        client.flush();
    }
}

#[test]
fn a_bare_path_of_a_device_is_a_device() {
    let device = LoopDevice::new(16 * MIB);
    let server = Server::start([&device.path]);
    assert_eq!(server.client(Dialect::Simple).size, 16 * MIB);
    run("nbdcopy", ["--flush".to_owned(), server.uri(""), "null:".to_owned()]).ok();
}

#[test]
fn rotational_is_what_the_kernel_says() {
    let device = LoopDevice::new(MIB);
    let name = device.path.file_name().expect("a name").to_string_lossy().into_owned();
    let queue = std::fs::read_to_string(format!("/sys/block/{name}/queue/rotational")).expect("sysfs");
    let server = Server::start([&device.path]);
    let flags = Haggle::new(&server.address).go("").flags;
    assert_eq!(u16::from(queue.trim() == "1"), flags >> 4 & 1, "ROTATIONAL");
}

/// A file system made and checked through the server, as a machine's disk would be.
#[test]
fn mkfs_and_fsck_through_nbd() {
    let device = LoopDevice::new(64 * MIB);
    run("mkfs.ext4", ["-q".as_ref(), device.path.as_os_str()]).ok();
    let server = Server::start([&device.path]);
    let copy = crate::scratch::Scratch::new();
    let image = copy.path("image");
    run("nbdcopy", [server.uri("").as_ref(), image.as_os_str()]).ok();
    run("fsck.ext4", ["-f".as_ref(), "-n".as_ref(), image.as_os_str()]).ok();
}

#[test]
fn a_device_is_copied_to_and_from_and_gives_back_what_is_zero() {
    let scratch = crate::scratch::Scratch::new();
    let (source, back) = (scratch.path("source"), scratch.path("back"));
    let size = 15 * MIB + 777;
    let mut content = vec![0; size as usize];
    content[5 << 20..][..1_000_001].copy_from_slice(&pattern(3, 1_000_001));
    content[size as usize - 9..].copy_from_slice(b"odd end!\n");
    std::fs::write(&source, &content).expect("an image");
    for words in [&["--flush"][..], &["--flush", "--allocated"]] {
        let device = LoopDevice::new(16 * MIB);
        std::fs::write(&device.path, pattern(7, 16 << 20)).expect("something to be overwritten");
        let copy = |from: &Path, to: &Path| {
            let places = [from.as_os_str(), to.as_os_str()];
            let words = ["copy", "--verify"].into_iter().chain(words.iter().copied()).map(OsStr::new);
            run(program(), words.chain(places)).ok();
        };
        copy(&source, &device.path);
        assert_eq!(allocated(&device.backing) < 8 * MIB, words.len() == 1, "{words:?}");
        copy(&device.path, &back);
        let read = std::fs::read(&back).expect("the copy");
        assert!(read[..content.len()] == content[..], "{words:?}");
        assert!(read[content.len()..] == pattern(7, 16 << 20)[content.len()..], "what lies behind is kept");
    }
}

#[test]
fn a_device_that_is_mounted_or_too_small_is_not_written_to() {
    let mount = crate::scratch::Mount::new("ext4");
    let image = mount.sparse("image", 64 * MIB);
    let device = LoopDevice::over(image);
    let scratch = crate::scratch::Scratch::new();
    let large = scratch.sparse("large", 64 * MIB + 1);
    let copy = |from: &Path| run(program(), ["copy".as_ref(), from.as_os_str(), device.path.as_os_str()]);
    let refused = copy(&large);
    assert!(refused.code == Some(1) && refused.stderr.contains("1 fewer than"), "{}", refused.stderr);
    run("mkfs.ext4", ["-q".as_ref(), device.path.as_os_str()]).ok();
    let inner = mount.dir.join("inner");
    std::fs::create_dir(&inner).expect("a mount point");
    run("mount", [device.path.as_os_str(), inner.as_os_str()]).ok();
    let small = mount.sparse("small", MIB);
    let refused = copy(&small);
    run("umount", [inner.as_os_str()]).ok();
    assert!(refused.code == Some(1) && refused.stderr.contains("busy"), "{}", refused.stderr);
}

#[test]
fn a_full_file_system_ends_a_copy_with_its_name() {
    let disk = crate::scratch::Ramdisk::small(4 * MIB);
    let target = disk.sparse("target", 0);
    let server = Server::start(["memory:16M"]);
    server.client(Dialect::Structured).write(0, &pattern(1, 16 << 20));
    let full = run(program(), ["copy".as_ref(), server.uri("").as_ref(), target.as_os_str()]);
    assert_eq!(full.code, Some(1));
    assert!(full.stderr.contains("cannot write") && full.stderr.contains("No space left"), "{}", full.stderr);
}

#[test]
fn a_file_system_without_holes_is_copied_to_and_from() {
    let disk = crate::scratch::Ramdisk::plain();
    let target = disk.sparse("target", 0);
    let server = Server::start(["memory:16M", "back=memory:16M"]);
    server.client(Dialect::Structured).write(5 * MIB, &pattern(1, 4 << 20));
    for words in [&["copy", "--verify"][..], &["copy", "--verify", "--allocated"]] {
        let (from, to, target) = (server.uri(""), server.uri("back"), target.to_str().expect("UTF-8"));
        run(program(), words.iter().copied().chain([from.as_str(), target])).ok();
        run(program(), words.iter().copied().chain([target, to.as_str()])).ok();
        assert!(std::fs::read(target).expect("the copy")[5 << 20..9 << 20] == pattern(1, 4 << 20));
    }
}
