//! What is served: a file of random bytes for those that read, and a copy for those that write.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::interrupt::Interrupt;

const CHUNK: usize = 1 << 20;

/// A directory with both files and the sockets and reports of one sample; all of it goes when this goes.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: tempfile::TempDir,
    size: u64,
    has_copy: bool,
}

impl Disk {
    /// Makes the files. `TMPDIR`, else /var/tmp: /tmp may be memory.
    pub(crate) fn make(mib: u64, with_copy: bool, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let parent = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = tempfile::Builder::new().prefix("ringnbd-rig.").tempdir_in(&parent);
        let dir = dir.with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let disk = Self { dir, size: mib << 20, has_copy: with_copy };
        let mut random = File::open("/dev/urandom")?;
        let mut files = vec![File::create(disk.file(false))?];
        if with_copy {
            files.push(File::create(disk.file(true))?);
        }
        let mut chunk = vec![0; CHUNK];
        for _ in 0..mib {
            interrupt.check()?;
            random.read_exact(&mut chunk)?;
            for file in &mut files {
                file.write_all(&chunk).context("cannot write the file that is to be served")?;
            }
        }
        for file in files {
            file.sync_all()?;
        }
        Ok(disk)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn file(&self, copy: bool) -> PathBuf {
        self.dir.path().join(if copy { "written.img" } else { "read.img" })
    }

    /// The file to serve, wholly in the page cache and with nothing left to be written back, so that nobody pays
    /// for what another did.
    pub(crate) fn prepare(&self, to_write: bool, interrupt: &Interrupt) -> anyhow::Result<String> {
        let path = self.file(to_write && self.has_copy);
        let mut file = File::open(&path)?;
        if to_write {
            file.sync_data()?;
        }
        let mut chunk = vec![0; CHUNK];
        loop {
            interrupt.check()?;
            if file.read(&mut chunk)? == 0 {
                break;
            }
        }
        path.into_os_string().into_string().ok().context("the directory's name is not UTF-8: set TMPDIR")
    }

    /// An empty directory of this name.
    pub(crate) fn fresh_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.path().join(name);
        match fs::remove_dir_all(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot empty {}", dir.display())),
        }
        fs::create_dir(&dir)?;
        Ok(dir)
    }
}
