//! Opening a place: a source first, then a destination that it fits into. What is wrong is told before anything is written.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, OFlags};

use super::Job;
use super::end::{ALLOCATION, End};
use super::error::CopyError;
use super::file::LocalFile;
use super::place::Place;
use super::stream::Stream;
use crate::client::{Client, Options, Uri};
use crate::proto::TransmissionFlags;
use crate::rt::{self, Writes};
use crate::sys::{ioctl, lock};

/// What a pipe is made to hold, if that is allowed: at 64 KiB both ends are woken four times for each request.
const PIPE_BYTES: usize = 1 << 20;

/// A side, and which file it is.
pub(super) struct Opened {
    pub(super) end: End,
    identity: Option<Identity>,
}

/// Two files are the same if these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Inode { device: u64, inode: u64 },
    Device(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    Device,
    Stream,
}

/// Something local, open.
struct Found {
    fd: OwnedFd,
    label: String,
    kind: Kind,
    meta: fs::Metadata,
    is_standard: bool,
}

/// Opens the source.
pub(super) async fn source(job: &Job) -> Result<Opened, CopyError> {
    let found = match &job.source {
        Place::Nbd(uri) => return connect(uri, job, job.extents).await,
        Place::Null => return Err(CopyError::NullSource),
        Place::Standard => Found::standard(io::stdin().as_fd().try_clone_to_owned(), "standard input")?,
        Place::Path(path) => Found::path(path, OpenOptions::new().read(true), "read")?,
    };
    let identity = found.identity();
    let position = found.position();
    if found.kind == Kind::Stream || position > 0 {
        if job.verify {
            return Err(CopyError::Once(found.label));
        }
        return Ok(Opened { end: found.stream(position)?, identity });
    }
    let size = found.size()?;
    // Advice: whoever cannot take it reads as well without.
    let _ = rustix::fs::fadvise(&found.fd, 0, None, Advice::Sequential);
    Ok(Opened { end: found.file(size, Writes::Ring)?, identity })
}

/// Opens the destination of `source`; a file is then empty and has its size.
pub(super) async fn destination(job: &Job, source: &Opened) -> Result<End, CopyError> {
    let mut options = OpenOptions::new();
    options.write(true);
    let found = match &job.destination {
        Place::Nbd(uri) => {
            let end = connect(uri, job, job.verify).await?.end;
            if matches!(&end, End::Nbd { client, .. } if client.offers(TransmissionFlags::READ_ONLY)) {
                return Err(CopyError::ReadOnly(end.label().to_owned()));
            }
            check_room(&source.end, end.label(), end.room())?;
            return Ok(end);
        }
        Place::Null if job.verify => return Err(CopyError::Once("null:".to_owned())),
        Place::Null => return Ok(End::Null),
        Place::Standard if job.verify => return Err(CopyError::Once("standard output".to_owned())),
        Place::Standard => Found::standard(io::stdout().as_fd().try_clone_to_owned(), "standard output")?,
        Place::Path(path) => {
            let kind = fs::metadata(path).ok().map(|meta| meta.file_type());
            let is_device = kind.is_some_and(|kind| kind.is_block_device());
            let is_file = kind.is_none_or(|kind| kind.is_file() || kind.is_dir());
            if job.verify && !is_device && !is_file {
                return Err(CopyError::Once(path.display().to_string()));
            }
            options.read(job.verify).create(is_file);
            if is_device {
                // Fails on devices that are mounted, or used by others who open them so.
                options.custom_flags(libc::O_EXCL);
            }
            Found::path(path, &options, "write to")?
        }
    };
    let identity = found.identity();
    if identity.is_some() && identity == source.identity {
        return Err(CopyError::Same(found.label));
    }
    let position = found.position();
    let appends = rustix::fs::fcntl_getfl(&found.fd).is_ok_and(|flags| flags.contains(OFlags::APPEND));
    match found.kind {
        Kind::Stream => found.stream(0),
        _ if position > 0 || appends => found.stream(position),
        Kind::Device => {
            let size = found.size()?;
            if ioctl::is_readonly(&found.fd).map_err(|error| found.failed("look at", error))? {
                return Err(CopyError::ReadOnly(found.label));
            }
            check_room(&source.end, &found.label, Some(size))?;
            found.file(size, Writes::Thread)
        }
        Kind::Regular => {
            // Others may go on with standard output after us, and a lock belongs to all who share it.
            if !found.is_standard {
                found.lock()?;
            }
            let size = source.end.size().unwrap_or(0);
            found.resize(0)?;
            found.resize(size)?;
            // This thread has enough to do with what arrives.
            found.file(size, Writes::Thread)
        }
    }
}

fn check_room(source: &End, destination: &str, room: Option<u64>) -> Result<(), CopyError> {
    match (source.size(), room) {
        (Some(size), Some(room)) if room < size => Err(CopyError::Small {
            source_name: source.label().to_owned(),
            size,
            destination: destination.to_owned(),
            room,
        }),
        _ => Ok(()),
    }
}

async fn connect(uri: &Uri, job: &Job, extents: bool) -> Result<Opened, CopyError> {
    let options = Options {
        connections: job.connections,
        window: job.requests,
        contexts: if extents { vec![ALLOCATION.to_owned()] } else { Vec::new() },
        open_timeout: job.open_timeout,
        reconnect_delay: job.reconnect_delay,
        ..Options::default()
    };
    let client = Client::open(uri, options).await?;
    Ok(Opened { end: End::Nbd { client, label: uri.to_string() }, identity: None })
}

impl Found {
    fn standard(fd: io::Result<OwnedFd>, label: &str) -> Result<Self, CopyError> {
        let fd = fd.map_err(|error| failed("use", label, error))?;
        Self::of(fd, label.to_owned(), true)
    }

    fn path(path: &Path, options: &OpenOptions, action: &'static str) -> Result<Self, CopyError> {
        let label = path.display().to_string();
        if let Ok(kind) = fs::metadata(path).map(|meta| meta.file_type()) {
            let wrong = |found| CopyError::Type { path: path.to_owned(), found };
            if kind.is_dir() {
                return Err(wrong("a directory"));
            }
            if kind.is_socket() {
                return Err(wrong("a socket"));
            }
        }
        let file = options.open(path).map_err(|error| failed(action, &label, error))?;
        Self::of(file.into(), label, false)
    }

    fn of(fd: OwnedFd, label: String, is_standard: bool) -> Result<Self, CopyError> {
        let file = fs::File::from(fd);
        let meta = file.metadata().map_err(|error| failed("look at", &label, error))?;
        let kind = match meta.file_type() {
            kind if kind.is_file() => Kind::Regular,
            kind if kind.is_block_device() => Kind::Device,
            _ => Kind::Stream,
        };
        Ok(Self { fd: file.into(), label, kind, meta, is_standard })
    }

    fn identity(&self) -> Option<Identity> {
        match self.kind {
            Kind::Regular => Some(Identity::Inode { device: self.meta.dev(), inode: self.meta.ino() }),
            Kind::Device => Some(Identity::Device(self.meta.rdev())),
            Kind::Stream => None,
        }
    }

    /// Where standard input or output has got to.
    fn position(&self) -> u64 {
        let has_one = self.is_standard && self.kind != Kind::Stream;
        if has_one { rustix::fs::tell(&self.fd).unwrap_or(0) } else { 0 }
    }

    fn size(&self) -> Result<u64, CopyError> {
        match self.kind {
            Kind::Device => ioctl::block_size_bytes(&self.fd).map_err(|error| self.failed("look at", error)),
            _ => Ok(self.meta.len()),
        }
    }

    /// Keeps others who lock out while it is written to: QEMU, and servers of ours.
    fn lock(&self) -> Result<(), CopyError> {
        let all = 0..i64::MAX.unsigned_abs();
        // Where the file system has no locks there is nobody to meet.
        if lock::try_lock(&self.fd, lock::Kind::Write, all.clone()).unwrap_or(true) {
            return Ok(());
        }
        let device = (rustix::fs::major(self.meta.dev()), rustix::fs::minor(self.meta.dev()));
        let holder = lock::holder(device, self.meta.ino(), &all);
        Err(CopyError::Locked { path: self.label.clone(), holder })
    }

    fn resize(&self, size: u64) -> Result<(), CopyError> {
        rustix::fs::ftruncate(&self.fd, size).map_err(|errno| self.failed("resize", errno.into()))
    }

    fn file(self, size: u64, writes: Writes) -> Result<End, CopyError> {
        let file = rt::File::register(Arc::new(self.fd), writes);
        let file = file.map_err(|error| failed("open", &self.label, error))?;
        let is_device = self.kind == Kind::Device;
        Ok(End::File(LocalFile::new(file, self.label, size, is_device, self.is_standard)))
    }

    fn stream(self, base: u64) -> Result<End, CopyError> {
        // With O_NONBLOCK the ring would answer that there is nothing, instead of waiting.
        if let Ok(flags) = rustix::fs::fcntl_getfl(&self.fd)
            && flags.contains(OFlags::NONBLOCK)
        {
            let cleared = rustix::fs::fcntl_setfl(&self.fd, flags - OFlags::NONBLOCK);
            cleared.map_err(|errno| self.failed("use", errno.into()))?;
        }
        let _ = rustix::pipe::fcntl_setpipe_size(&self.fd, PIPE_BYTES);
        let file = rt::File::register(Arc::new(self.fd), Writes::Ring);
        let file = file.map_err(|error| failed("open", &self.label, error))?;
        Ok(End::Stream(Stream::new(file, self.label, base)))
    }

    fn failed(&self, action: &'static str, error: io::Error) -> CopyError {
        failed(action, &self.label, error)
    }
}

fn failed(action: &'static str, path: &str, error: io::Error) -> CopyError {
    CopyError::Open { action, path: path.to_owned(), error }
}
