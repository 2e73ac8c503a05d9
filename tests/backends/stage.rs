//! What the tests stand on: loop devices and mounts that are gone again when the test ends, however it ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Runs a program that has to be there and has to succeed: a missing peer is a failure, not a skip.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text} (these tests need root)");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device over a file.
pub(crate) struct Loop(PathBuf);

impl Loop {
    pub(crate) fn new(file: &Path, sector: u32) -> Self {
        let sector = sector.to_string();
        let file = file.to_str().unwrap();
        Self(run("losetup", &["--find", "--show", "--sector-size", &sector, file]).into())
    }

    pub(crate) fn readonly(file: &Path) -> Self {
        Self(run("losetup", &["--find", "--show", "--read-only", file.to_str().unwrap()]).into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A file system of its own in a sparse file.
pub(crate) struct Mount {
    dir: TempDir,
}

impl Mount {
    pub(crate) fn new(mkfs: &str, megabytes: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        run(mkfs, &["-q", image.to_str().unwrap()]);
        let mount = Self { dir };
        std::fs::create_dir(mount.path()).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), mount.path().to_str().unwrap()]);
        mount
    }

    /// The file system that is on a device.
    pub(crate) fn device(device: &Path) -> Self {
        let mount = Self { dir: TempDir::new().unwrap() };
        std::fs::create_dir(mount.path()).unwrap();
        run("mount", &[device.to_str().unwrap(), mount.path().to_str().unwrap()]);
        mount
    }

    /// A file system in memory, for files that must fill up or lack ZERO_RANGE.
    pub(crate) fn tmpfs(megabytes: u64) -> Self {
        let mount = Self { dir: TempDir::new().unwrap() };
        std::fs::create_dir(mount.path()).unwrap();
        let size = format!("size={megabytes}M");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", mount.path().to_str().unwrap()]);
        mount
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}
