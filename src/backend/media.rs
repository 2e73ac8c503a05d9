//! One open export: what all shards share.

use std::io;
use std::sync::Arc;

use super::disk::Disk;
use super::upstream::Upstream;
use super::{Backend, Direct, ExportSpec, Faulty, File, Nbd, Null, OpenError};

/// What an export can do and how it wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traits {
    /// Writes, trims and zeroes are refused; the caller does that.
    pub readonly: bool,
    /// Seeking costs time.
    pub rotational: bool,
    /// What is offered beyond reading and writing.
    pub can: Can,
    /// Requests aligned to this many bytes cost least; a power of two. Others are served too.
    pub minimum: u32,
    /// Requests aligned to this many bytes are fast; a power of two, at least `minimum`.
    pub preferred: u32,
    /// The operator wants requests that are not aligned to `minimum` refused; the caller does that.
    pub strict: bool,
    /// Every write is made durable before it returns, whether asked or not.
    pub writethrough: bool,
    /// Not to be listed.
    pub hidden: bool,
    /// Text for people who list exports.
    pub description: Option<String>,
}

/// What an export offers beyond reading and writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)] // each is one flag of the protocol
pub struct Can {
    /// [`Backend::flush`] makes writes durable (or there is nothing to make durable).
    pub flush: bool,
    /// `fua` is kept.
    pub fua: bool,
    /// [`Backend::trim`] does something.
    pub trim: bool,
    /// [`Backend::zero`] works.
    pub zero: bool,
    /// [`super::Zero::fast_only`] is kept, and can succeed.
    pub fast_zero: bool,
    /// [`Backend::cache`] does something.
    pub cache: bool,
    /// [`Backend::extents`] can tell holes from data.
    pub extents: bool,
    /// A flush on any shard covers what has been written on all.
    pub multi_conn: bool,
}

/// An open export. Dropping the last reference closes it and gives up its lock.
#[derive(Debug)]
pub struct Media {
    size: u64,
    traits: Traits,
    store: Store,
}

#[derive(Debug)]
pub(super) enum Store {
    Null,
    Disk(Arc<Disk>),
    Nbd(Arc<Upstream>),
    Faulty { seed: u64, inner: Box<Self> },
}

impl Media {
    /// Opens, checks and locks what `spec` names. Blocks; called before shards run.
    pub fn open(spec: &ExportSpec) -> Result<Arc<Self>, OpenError> {
        let (size, traits, store) = super::open::open(spec)?;
        Ok(Arc::new(Self { size, traits, store }))
    }

    /// Bytes, exactly.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What it can do.
    pub fn traits(&self) -> &Traits {
        &self.traits
    }

    /// Names of its own meta contexts, by number: what another server has. `None` for those that every export has.
    pub fn contexts(&self) -> Option<&[String]> {
        match &self.store {
            Store::Nbd(upstream) => Some(upstream.contexts()),
            Store::Null | Store::Disk(_) | Store::Faulty { .. } => None,
        }
    }

    /// Takes the export into use on the calling shard.
    ///
    /// # Errors
    /// The shard's file table is full.
    pub fn attach(self: &Arc<Self>) -> io::Result<Backend> {
        self.store.attach()
    }
}

impl Store {
    fn attach(&self) -> io::Result<Backend> {
        Ok(match self {
            Self::Null => Backend::Null(Null::new()),
            Self::Disk(disk) if disk.direct().is_some() => {
                Backend::Direct(Box::new(Direct::attach(Arc::clone(disk))?))
            }
            Self::Disk(disk) => Backend::File(File::attach(Arc::clone(disk))?),
            Self::Nbd(upstream) => Backend::Nbd(Box::new(Nbd::attach(Arc::clone(upstream)))),
            Self::Faulty { seed, inner } => Backend::Faulty(Box::new(Faulty::new(*seed, inner.attach()?))),
        })
    }
}
