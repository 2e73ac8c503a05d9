//! Opening what a spec names: type, size, window, permission; `claim` locks it. Each way to fail is an error of its own.

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64};

use rustix::fs::{AtFlags, FallocateFlags, MemfdFlags, StatxFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::claim;
use super::device::{self, Queue};
use super::disk::{DirectAccess, Disk, Kind};
use super::known::KnownData;
use super::media::Store;
use super::ranges::Ranges;
use super::spec::{BACKENDS, SIZE_MAX};
use super::upstream::Upstream;
use super::{Can, ExportOptions, ExportSpec, Source, Traits};
use crate::client::ConnectError;
use crate::rt::caps::Unsupported;
use crate::rt::{self, Writes};
use crate::sys::ioctl;
use crate::sys::lock::{self, Holder};

/// Page of the page cache, and the block that most file systems think in.
const PAGE: u64 = 4096;
/// What rt's buffers are aligned to in memory.
const BUFFER_ALIGN: u32 = 512;
/// Coarsest blocks that direct I/O is done in: edges are read and written through buffers of a few blocks.
const DIRECT_ALIGN_MAX: u64 = 1 << 20;
/// What has no device behind it can do everything, and has nothing to bring into memory.
const IN_MEMORY: Can = Can {
    flush: true,
    fua: true,
    trim: true,
    zero: true,
    fast_zero: true,
    cache: false,
    extents: true,
    multi_conn: true,
};

/// Why an export cannot be opened: what, where, and what to do.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the message of each variant is its documentation
pub enum OpenError {
    #[error("{path}: there is no such file{hint}")]
    Missing { path: PathBuf, hint: String },
    #[error("{path} is a directory: name a regular file or a block device")]
    Directory { path: PathBuf },
    #[error("{path} is {found}, not {wanted}")]
    Type { path: PathBuf, found: &'static str, wanted: &'static str },
    #[error(
        "{path} has a size of 0: there would be nothing to serve (truncate -s 1G makes a sparse file of 1 GiB)"
    )]
    Empty { path: PathBuf },
    #[error("offset={offset} is beyond the end of {path}, which has {whole} bytes")]
    Offset { path: PathBuf, offset: u64, whole: u64 },
    #[error("offset={offset},size={size} reaches beyond the end of {path}, which has {whole} bytes")]
    Window { path: PathBuf, offset: u64, size: u64, whole: u64 },
    #[error("no permission to read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("no permission to write {path}: {source}; add readonly=on to serve it read-only")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is locked by {}: stop that, or add lock=off if sharing it is safe", who(.holder.as_ref()))]
    Locked { path: PathBuf, holder: Option<Holder> },
    #[error("{path} is in use: {by}; free it, add readonly=on, or add lock=off if sharing it is safe")]
    Busy { path: PathBuf, by: String },
    #[error("{path} cannot be locked: {source}; add lock=off to serve it without")]
    Lock { path: PathBuf, source: io::Error },
    #[error("{path} has no usable direct I/O: leave out direct=on")]
    Direct { path: PathBuf },
    #[error(
        "{path} wants direct I/O from memory aligned to {align} bytes, more than this program has: leave out direct=on"
    )]
    DirectMemory { path: PathBuf, align: u32 },
    #[error("{key}={value} is not a multiple of {align}, which direct I/O on {path} needs")]
    DirectWindow { path: PathBuf, key: &'static str, value: u64, align: u64 },
    #[error("{path} has {whole} bytes, not a multiple of {align}: strict=on would make its end unreachable; add size={}", .whole - .whole % .align)]
    StrictTail { path: PathBuf, whole: u64, align: u64 },
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot open {uri}: {cause}{}", upstream_hint(.cause))]
    Upstream { uri: String, cause: ConnectError },
    #[error("{uri} has {whole} bytes: what has from 1 to {SIZE_MAX} can be served")]
    UpstreamSize { uri: String, whole: u64 },
    #[error("cannot look at {uri}: the thread that did has died")]
    Looking { uri: String },
    #[error(transparent)]
    Ring { cause: Unsupported },
    #[error("cannot set aside {size} bytes of memory: {source}")]
    Memory { size: u64, source: io::Error },
}

fn who(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another program".to_owned(), Holder::to_string)
}

fn upstream_hint(cause: &ConnectError) -> &'static str {
    match cause {
        ConnectError::Unwanted { .. } => {
            ", which is this server's own mark: requests would go round for ever; serve something else there or here"
        }
        cause if cause.may_pass() => {
            "; is the server there running? open-timeout=SECONDS waits for one that is still starting"
        }
        _ => "",
    }
}

type Opened = (u64, Traits, Store);

pub(super) fn open(spec: &ExportSpec) -> Result<Opened, OpenError> {
    open_source(&spec.source, spec)
}

fn open_source(source: &Source, spec: &ExportSpec) -> Result<Opened, OpenError> {
    let options = &spec.options;
    match source {
        Source::Path(path) => open_path(path, "a regular file or block device", spec),
        Source::File(path) => open_path(path, "a regular file", spec),
        Source::Block(path) => open_path(path, "a block device", spec),
        Source::Memory(size) => open_memory(*size, options),
        Source::Null(size) => Ok((*size, traits(options, IN_MEMORY, 1, false), Store::Null)),
        Source::Nbd(uri) => {
            let (size, traits, upstream) = Upstream::open(uri, options)?;
            Ok((size, traits, Store::Nbd(Arc::new(upstream))))
        }
        Source::Faulty { seed, inner } => {
            let (size, traits, inner) = open_source(inner, spec)?;
            Ok((size, traits, Store::Faulty { seed: *seed, inner: Box::new(inner) }))
        }
    }
}

fn traits(options: &ExportOptions, can: Can, minimum: u32, rotational: bool) -> Traits {
    Traits {
        readonly: options.readonly,
        rotational: options.rotational.unwrap_or(rotational),
        can,
        minimum,
        preferred: minimum.max(4096),
        strict: options.strict,
        writethrough: options.writethrough,
        hidden: options.hidden,
        description: options.description.clone(),
    }
}

fn open_memory(size: u64, options: &ExportOptions) -> Result<Opened, OpenError> {
    let failed = |errno: Errno| OpenError::Memory { size, source: errno.into() };
    let fd = rustix::fs::memfd_create("ringnbd", MemfdFlags::CLOEXEC).map_err(failed)?;
    rustix::fs::ftruncate(&fd, size).map_err(failed)?;
    let found = Found { kind: Kind::Memory, whole: size, block: 1, window: 0..size };
    let disk = found.disk(fd, None, None, "memory".to_owned(), options);
    Ok((size, traits(options, IN_MEMORY, 1, false), Store::Disk(Arc::new(disk))))
}

/// What was found at a path.
struct Found {
    kind: Kind,
    whole: u64,
    block: u64,
    window: Range<u64>,
}

impl Found {
    fn disk(
        &self,
        fd: OwnedFd,
        witness: Option<OwnedFd>,
        direct: Option<DirectAccess>,
        label: String,
        options: &ExportOptions,
    ) -> Disk {
        let size = self.window.end - self.window.start;
        let writes = match (options.writes, self.kind) {
            (Some(writes), _) => writes,
            // The ring has memory and devices wait, whatever is behind them.
            (None, Kind::Memory | Kind::Block { .. }) => Writes::Adaptive,
            (None, Kind::Regular) if !options.readonly && writes_wait_beside(Path::new(&label)) => {
                Writes::Adaptive
            }
            (None, Kind::Regular) => Writes::Ring,
        };
        tracing::debug!("{label}: buffered writes by {writes:?}");
        let fd = Arc::new(fd);
        let cached =
            if direct.is_some() { None } else { super::file::page_cache(&fd, self.window.end, &label) };
        Disk {
            fd,
            witness,
            direct,
            kind: self.kind,
            base: self.window.start,
            size,
            whole: self.whole,
            block: self.block,
            readonly: options.readonly,
            writethrough: options.writethrough,
            writes,
            label,
            known: KnownData::new(size),
            cached,
            lacks_punch: AtomicBool::new(false),
            lacks_zero_range: AtomicBool::new(false),
            sync_errno: AtomicI32::new(0),
            size_logged: AtomicU64::new(self.whole),
        }
    }
}

fn open_path(path: &Path, wanted: &'static str, spec: &ExportSpec) -> Result<Opened, OpenError> {
    let options = &spec.options;
    let io_error = |action| move |source: io::Error| OpenError::Io { action, path: path.to_owned(), source };
    // Looked at before it is opened: opening a FIFO or a tape does things.
    let before = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::Missing { path: path.to_owned(), hint: hint(path, spec) },
        io::ErrorKind::PermissionDenied => OpenError::Read { path: path.to_owned(), source },
        _ => io_error("look at")(source),
    })?;
    check_type(path, &before, wanted)?;
    let is_block = before.file_type().is_block_device();
    // An exclusive open keeps mounts and other exclusive users away from a device for as long as it lasts. Exports that are
    // windows must be able to share one, and make do with a look.
    let exclusive = is_block && options.lock && !options.readonly;
    let windowed = options.offset > 0 || options.size.is_some();
    let mut fd = open_fd(path, options, exclusive, &before)?;
    if exclusive && windowed {
        drop(fd);
        fd = open_fd(path, options, false, &before)?;
    }
    let after =
        fs::File::from(fd.try_clone().map_err(io_error("open"))?).metadata().map_err(io_error("look at"))?;
    check_type(path, &after, wanted)?;

    if is_block && !options.readonly && ioctl::is_readonly(&fd).map_err(io_error("look at"))? {
        let source = io::Error::from_raw_os_error(libc::EROFS);
        return Err(OpenError::Write { path: path.to_owned(), source });
    }

    let queue = Queue::of(if is_block { after.rdev() } else { after.dev() });
    let found = look(path, &fd, is_block, &after, &queue, options)?;
    if options.lock {
        claim::window(path, &fd, &after, &found.window, options.readonly)?;
    }
    let direct = if options.direct { Some(open_direct(path, &fd, &found, &queue, options)?) } else { None };
    let witness = (!options.readonly).then(|| reopen(&fd, libc::O_RDONLY)).and_then(Result::ok);

    let punches = !options.readonly && !is_block && can_punch(&fd, found.whole);
    let can = Can {
        flush: true,
        fua: true,
        trim: !options.readonly && if is_block { queue.discards() } else { punches },
        zero: !options.readonly,
        fast_zero: !options.readonly && if is_block { queue.zeroes() } else { punches },
        cache: !options.direct,
        extents: !is_block,
        multi_conn: true,
    };
    let align = direct.as_ref().map_or(found.block, |direct| direct.align);
    // A window that begins or ends inside a block is served exactly, so the block is not a minimum.
    let whole_blocks = found.window.start % align == 0 && found.window.end % align == 0;
    let minimum = if whole_blocks { align } else { 1 };
    let minimum = u32::try_from(minimum).unwrap_or(1);
    let traits = traits(options, can, minimum, queue.rotational().unwrap_or(false));
    let disk = found.disk(fd, witness, direct, path.display().to_string(), options);
    Ok((disk.size, traits, Store::Disk(Arc::new(disk))))
}

/// Whether buffered writes wait on the file system of `path`: asked of a nameless file beside it.
fn writes_wait_beside(path: &Path) -> bool {
    let scratch = path.canonicalize().and_then(|path| {
        let directory = path.parent().ok_or(io::ErrorKind::NotFound)?;
        OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(directory)
    });
    // Where none can be made, the ring it is: right in any case, only slower where it has to wait.
    scratch.is_ok_and(|scratch| rt::buffered_writes_wait(&scratch.into()))
}

/// What may have been meant by a path that is not there.
fn hint(path: &Path, spec: &ExportSpec) -> String {
    if let Some((_, key)) = spec.name.rsplit_once(',') {
        return format!(
            "; `{key}` is not an option, so what stands before the first `=` was taken as the export's name, `{}`",
            spec.name
        );
    }
    match path.to_str().and_then(|text| text.split_once(':')) {
        Some((prefix, _)) if prefix.bytes().all(|byte| byte.is_ascii_lowercase()) => {
            format!("; if `{prefix}:` was to be a backend, there are {BACKENDS}")
        }
        _ => String::new(),
    }
}

fn check_type(path: &Path, meta: &fs::Metadata, wanted: &'static str) -> Result<(), OpenError> {
    let kind = meta.file_type();
    let found = match () {
        () if kind.is_dir() => return Err(OpenError::Directory { path: path.to_owned() }),
        () if kind.is_file() => "a regular file",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "of an unknown type",
    };
    let fits = wanted == found || (wanted.contains(" or ") && (kind.is_file() || kind.is_block_device()));
    if fits { Ok(()) } else { Err(OpenError::Type { path: path.to_owned(), found, wanted }) }
}

fn open_fd(
    path: &Path,
    options: &ExportOptions,
    exclusive: bool,
    meta: &fs::Metadata,
) -> Result<OwnedFd, OpenError> {
    let flags = libc::O_NOCTTY | if exclusive { libc::O_EXCL } else { 0 };
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    let file = claim::unless_dying(path, |last| match open(!options.readonly) {
        Ok(file) => Some(Ok(file)),
        Err(source) if source.raw_os_error() == Some(libc::EBUSY) => {
            let path = path.to_owned();
            match (lock::holder(device_of(meta), meta.ino(), &(0..u64::MAX)), device::user(meta.rdev())) {
                (Some(holder), _) => Some(Err(OpenError::Locked { path, holder: Some(holder) })),
                (None, Some(by)) => Some(Err(OpenError::Busy { path, by })),
                (None, None) if last => {
                    Some(Err(OpenError::Busy { path, by: "another program has it exclusively".to_owned() }))
                }
                (None, None) => None,
            }
        }
        Err(source) => Some(Err(refusal(path, source, !options.readonly && open(false).is_ok()))),
    });
    file.map(OwnedFd::from)
}

/// `readable`: reading alone would have been allowed.
fn refusal(path: &Path, source: io::Error, readable: bool) -> OpenError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if readable => OpenError::Write { path, source },
        Some(libc::EACCES | libc::EPERM) => OpenError::Read { path, source },
        _ => OpenError::Io { action: "open", path, source },
    }
}

/// Size, blocks and window.
fn look(
    path: &Path,
    fd: &OwnedFd,
    is_block: bool,
    meta: &fs::Metadata,
    queue: &Queue,
    options: &ExportOptions,
) -> Result<Found, OpenError> {
    let path = || path.to_owned();
    let io_error = |source| OpenError::Io { action: "find the size of", path: path(), source };
    let (kind, whole, block) = if is_block {
        let block = rustix::fs::ioctl_blksszget(fd).map_err(|errno| io_error(errno.into()))?;
        let whole = ioctl::block_size_bytes(fd).map_err(io_error)?;
        (Kind::Block { zeroes: queue.zeroes() }, whole, u64::from(block).max(1))
    } else {
        (Kind::Regular, meta.len(), 1)
    };
    if whole == 0 {
        return Err(OpenError::Empty { path: path() });
    }
    let offset = options.offset;
    if offset >= whole {
        return Err(OpenError::Offset { path: path(), offset, whole });
    }
    let size = options.size.unwrap_or(whole - offset);
    if size > whole - offset {
        return Err(OpenError::Window { path: path(), offset, size, whole });
    }
    Ok(Found { kind, whole, block, window: offset..offset + size })
}

fn open_direct(
    path: &Path,
    fd: &OwnedFd,
    found: &Found,
    queue: &Queue,
    options: &ExportOptions,
) -> Result<DirectAccess, OpenError> {
    let access = if options.readonly { libc::O_RDONLY } else { libc::O_RDWR };
    let direct = reopen(fd, access | libc::O_DIRECT).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL | libc::EOPNOTSUPP) => OpenError::Direct { path: path.to_owned() },
        _ => OpenError::Io { action: "open without the page cache", path: path.to_owned(), source },
    })?;
    let flags = AtFlags::EMPTY_PATH;
    let stat = rustix::fs::statx(fd, c"", flags, StatxFlags::DIOALIGN);
    let (memory, align) = match stat {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            (stat.stx_dio_mem_align, u64::from(stat.stx_dio_offset_align))
        }
        _ => (BUFFER_ALIGN, found.block.max(PAGE)), // a file system that does not say: what suits any disk
    };
    if !(1..=DIRECT_ALIGN_MAX).contains(&align) || queue.overruns_buffers() {
        return Err(OpenError::Direct { path: path.to_owned() });
    }
    if memory > BUFFER_ALIGN {
        return Err(OpenError::DirectMemory { path: path.to_owned(), align: memory });
    }
    let align = align.max(found.block).next_power_of_two();
    // Blocks at the edges of the window are read, changed and written whole: they must not be shared with a neighbour.
    let Range { start, end } = found.window;
    for (key, value, fits) in
        [("offset", start, start % align == 0), ("size", end - start, end % align == 0 || end == found.whole)]
    {
        if !fits {
            return Err(OpenError::DirectWindow { path: path.to_owned(), key, value, align });
        }
    }
    let tail = if end % align == 0 { end } else { start.max(end - end % align.max(PAGE)) };
    if tail != end && options.strict {
        return Err(OpenError::StrictTail { path: path.to_owned(), whole: end - start, align });
    }
    Ok(DirectAccess {
        fd: Arc::new(direct),
        polled: options.iopoll,
        align,
        tail,
        ranges: Arc::new(Ranges::default()),
    })
}

/// Opens the same file again: another open file description, with its own flags and error cursor.
fn reopen(fd: &OwnedFd, flags: i32) -> io::Result<OwnedFd> {
    let writes = flags & libc::O_ACCMODE == libc::O_RDWR;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = flags & !libc::O_ACCMODE;
    OpenOptions::new().read(true).write(writes).custom_flags(flags).open(path).map(OwnedFd::from)
}

/// Whether the file system has PUNCH_HOLE: asked far beyond the end of the file, where there is nothing to lose.
fn can_punch(fd: &OwnedFd, whole: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let offset = whole.next_multiple_of(PAGE).saturating_add(1 << 30);
    !matches!(rustix::fs::fallocate(fd, flags, offset, PAGE), Err(Errno::OPNOTSUPP | Errno::NOSYS))
}

pub(super) fn device_of(meta: &fs::Metadata) -> (u32, u32) {
    (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()))
}
