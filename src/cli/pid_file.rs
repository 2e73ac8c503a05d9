//! `--pid-file`: says which process serves, and keeps a second one from claiming the same place.
//!
//! The file stays locked (flock) while the server runs. So a file whose lock is free is stale, whatever
//! process has its number by now, and there is no moment at which two servers both think it theirs.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// A pid file of ours: removed on drop, if what is there is still ours.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: File,
}

/// A pid has at most seven digits; what is longer is no pid file.
const LENGTH_MAX: u64 = 32;

impl PidFile {
    /// Writes this process's id and a newline to `path`.
    pub(super) fn claim(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot write the pid file {shown}"))?;
        let mut before = String::new();
        let readable = (&file).take(LENGTH_MAX).read_to_string(&mut before);
        let before = before.trim();
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error == rustix::io::Errno::WOULDBLOCK {
                bail!(
                    "the pid file {shown} belongs to running process {before}: stop it, or choose another file"
                );
            }
            return Err(error).with_context(|| format!("cannot lock the pid file {shown}"));
        }
        if readable.is_err() || !before.bytes().all(|byte| byte.is_ascii_digit()) {
            bail!("{shown} exists and does not hold a process id: remove it, or choose another pid file");
        }
        if !before.is_empty() {
            tracing::info!("replacing the stale pid file {shown} of process {before}");
        }
        let write = file.set_len(0).and_then(|()| {
            std::io::Seek::rewind(&mut file)?;
            // One write, so that a reader sees all of it or nothing.
            file.write_all(format!("{}\n", std::process::id()).as_bytes())
        });
        write.with_context(|| format!("cannot write the pid file {shown}"))?;
        Ok(Self { path: path.to_path_buf(), file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let same = |ours: std::fs::Metadata, there: std::fs::Metadata| {
            (ours.dev(), ours.ino()) == (there.dev(), there.ino())
        };
        let there = std::fs::symlink_metadata(&self.path);
        if self.file.metadata().ok().zip(there.ok()).is_some_and(|(ours, there)| same(ours, there)) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_server_keeps_its_pid_file_and_a_dead_one_loses_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ringnbd.pid");
        // Our own number in a file that nobody holds: numbers are reused, so this too is stale.
        std::fs::write(&path, format!("{}\n", std::process::id())).expect("writable");
        let held = PidFile::claim(&path).expect("stale files are replaced");
        let error = PidFile::claim(&path).expect_err("the file is held").to_string();
        assert!(error.contains(&format!("running process {}", std::process::id())), "{error}");
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_pid_file_is_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk.img");
        for content in ["precious", "12345 and more"] {
            std::fs::write(&path, content).expect("writable");
            PidFile::claim(&path).expect_err("not a pid");
            assert_eq!(std::fs::read_to_string(&path).expect("readable"), content);
        }
    }
}
