//! Files, file systems and devices to serve, each taken down again when its guard is dropped.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::program::run;

pub(crate) const MIB: u64 = 1 << 20;

/// Numbers without end from a seed.
pub(crate) fn random(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

/// Bytes that differ from block to block and from seed to seed, and are never zero.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let words = random(seed).take(length.div_ceil(8));
    let mut bytes: Vec<u8> = words.flat_map(|word| (word | 0x0101_0101_0101_0101).to_be_bytes()).collect();
    bytes.truncate(length);
    bytes
}

/// A directory of files.
pub(crate) struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file without any data.
    pub(crate) fn sparse(&self, name: &str, size: u64) -> PathBuf {
        sparse(&self.path(name), size)
    }

    /// A file full of data.
    pub(crate) fn full(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        let mut file = File::create(&path).expect("create a file");
        for block in 0..size.div_ceil(MIB) {
            let length = (size - block * MIB).min(MIB);
            file.write_all(&pattern(block + 1, length as usize)).expect("write a file");
        }
        path
    }
}

fn sparse(path: &Path, size: u64) -> PathBuf {
    File::create(path).and_then(|file| file.set_len(size)).expect("create a sparse file");
    path.to_owned()
}

/// What a file holds at `offset`.
pub(crate) fn on_disk(path: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open(path).and_then(|file| file.read_exact_at(&mut bytes, offset)).expect("read a file");
    bytes
}

/// Bytes that a file occupies.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").blocks() * 512
}

/// A loop device over a file of its own.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    pub(crate) backing: PathBuf,
    _scratch: Scratch,
}

impl LoopDevice {
    pub(crate) fn new(size: u64) -> Self {
        Self::with(size, &[])
    }

    /// `words` go to losetup.
    pub(crate) fn with(size: u64, words: &[&str]) -> Self {
        let scratch = Scratch::new();
        let backing = scratch.sparse("backing", size);
        Self::attach(backing, words, scratch)
    }

    /// Over a file that is there already.
    pub(crate) fn over(backing: PathBuf) -> Self {
        Self::attach(backing, &[], Scratch::new())
    }

    fn attach(backing: PathBuf, words: &[&str], scratch: Scratch) -> Self {
        let mut all = vec!["--find", "--show"];
        all.extend(words);
        all.push(backing.to_str().expect("a temporary path is UTF-8"));
        let path = PathBuf::from(run("losetup", all).ok().trim());
        Self { path, backing, _scratch: scratch }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", ["--detach".as_ref(), self.path.as_os_str()]);
    }
}

/// A file system in memory.
pub(crate) struct Ramdisk {
    dir: PathBuf,
    _scratch: Scratch,
}

impl Ramdisk {
    /// One that is soon full.
    pub(crate) fn small(size: u64) -> Self {
        Self::mount("tmpfs", &format!("size={size}"))
    }

    /// One without `fallocate`: it can neither punch holes nor zero ranges.
    pub(crate) fn plain() -> Self {
        Self::mount("ramfs", "mode=755")
    }

    fn mount(kind: &str, option: &str) -> Self {
        let scratch = Scratch::new();
        let dir = scratch.path("ram");
        fs::create_dir(&dir).expect("create a mount point");
        run(
            "mount",
            ["-t".as_ref(), kind.as_ref(), "-o".as_ref(), option.as_ref(), kind.as_ref(), dir.as_os_str()],
        )
        .ok();
        Self { dir, _scratch: scratch }
    }

    pub(crate) fn sparse(&self, name: &str, size: u64) -> PathBuf {
        sparse(&self.dir.join(name), size)
    }
}

impl Drop for Ramdisk {
    fn drop(&mut self) {
        run("umount", [self.dir.as_os_str()]);
    }
}

/// A file system of a kind, mounted on a directory of its own.
pub(crate) struct Mount {
    pub(crate) dir: PathBuf,
    _device: LoopDevice,
    _scratch: Scratch,
}

impl Mount {
    /// `kind` is what mkfs calls it; half a GiB, sparse underneath.
    pub(crate) fn new(kind: &str) -> Self {
        let device = LoopDevice::new(512 * MIB);
        run(&format!("mkfs.{kind}"), [device.path.as_os_str()]).ok();
        let scratch = Scratch::new();
        let dir = scratch.path("mnt");
        fs::create_dir(&dir).expect("create a mount point");
        run("mount", [device.path.as_os_str(), dir.as_os_str()]).ok();
        Self { dir, _device: device, _scratch: scratch }
    }

    pub(crate) fn sparse(&self, name: &str, size: u64) -> PathBuf {
        sparse(&self.dir.join(name), size)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", [self.dir.as_os_str()]);
    }
}
