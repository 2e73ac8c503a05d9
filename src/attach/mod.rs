//! Exports as block devices of this machine: connections are negotiated here and handed to the kernel's NBD client, which
//! then speaks to the server itself.
//!
//! ```text
//!   client::Connection ----socket----> kernel ----> /dev/nbdN      netlink: several connections, timeouts, reconnect
//!      ^   (simple replies:              |                         ioctl:   one connection, held by a thread that waits
//!      |    the kernel knows no other)   |
//!      '-------- watch <--a link died----'
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `plan` | what of an export the kernel is told, and what it cannot hold |
//! | `device` | /dev/nbdN and what /sys says of it |
//! | `family` | the netlink family: connect, reconfigure, disconnect, events |
//! | `watch` | another connection for each that dies |
//! | `ioctls` | the way without netlink |
//!
//! May be imported by `cli`; imports `client`, `proto`, `rt`, `sys`.
//!
//! The netlink family is found where the module is loaded, and only in the network namespace that the machine started
//! with; in a container with a network of its own the ioctls are what is left.

mod device;
mod family;
mod ioctls;
mod plan;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

pub use device::{Device, DeviceError};
pub use ioctls::Held;

use crate::client::{self, ConnectError, Connection, Security, Uri, changed};
use crate::proto::{DialerConfig, Link, TlsMode, TransmissionFlags};
use crate::rt::caps::Unsupported;
use family::{Deaths, Family};
use plan::Plan;

/// How long a server may take over a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(30);
/// After so much silence TCP asks whether the peer is there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// The kernel keeps its timeouts in ticks, up to 1000 a second, in 32 bits.
pub const SECONDS_MAX: u32 = 4_000_000;
/// The kernel has a receiving thread and a queue for each.
pub const CONNECTIONS_MAX: usize = 64;
/// /sys shows what is remembered of a device within one page, and early kernels do not check.
const IDENTIFIER_MAX: usize = 1024;

/// How an export becomes a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The device, or any that is free.
    pub device: Option<Device>,
    /// Connections, if the server says that several are safe (CAN_MULTI_CONN); else one is made. At most
    /// [`CONNECTIONS_MAX`] are.
    pub connections: usize,
    /// A server that leaves a request unanswered for so many seconds counts as gone; 0 waits for ever.
    pub timeout_s: u32,
    /// How many seconds requests wait for another connection when all are dead; 0 fails them at once.
    pub dead_timeout_s: u32,
    /// Write-protect the device, whatever the server says.
    pub read_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: None, connections: 1, timeout_s: 0, dead_timeout_s: 0, read_only: false }
    }
}

/// Why a device was not attached or detached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is no connection to hand over.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// This kernel does not run the client's rings.
    #[error(transparent)]
    Ring(#[from] Unsupported),
    /// The connection broke between the handshake and its use.
    #[error("{uri}: the connection broke after the handshake: {error}")]
    Broken {
        /// Of the export.
        uri: String,
        /// Why.
        error: io::Error,
    },
    /// The kernel's client is not there.
    #[error("the kernel has no NBD client: load it with `modprobe nbd`")]
    NoModule,
    /// The kernel's client is there, and its netlink family is not.
    #[error("the kernel's netlink family \"nbd\" is not to be seen here: is this another network namespace?")]
    NoNetlink,
    /// Somebody has the device.
    #[error("{0} is in use: `ringnbd attach --list` tells by which export, `ringnbd detach` frees it")]
    Busy(Device),
    /// Something has the device mounted or claimed for itself.
    #[error("{0} is mounted or part of something else: unmount it first, or use --force")]
    Claimed(Device),
    /// There is nothing to detach.
    #[error("{0} is not attached")]
    NotAttached(Device),
    /// Attaching and detaching is up to root.
    #[error("{0}: this needs root (CAP_SYS_ADMIN)")]
    Permission(String),
    /// The kernel counts bytes of a device in a signed number, and some count blocks in fewer bits.
    #[error("{0} bytes are more than the kernel can hold in a device")]
    TooLarge(u64),
    /// The kernel's blocks are at most a page.
    #[error("the server wants blocks of {minimum} bytes, and the kernel's are at most {page}")]
    BlockSize {
        /// The server's smallest.
        minimum: u32,
        /// The kernel's largest.
        page: usize,
    },
    /// The next connection leads to something else.
    #[error("{uri}: the export came back different: {what}")]
    Changed {
        /// Of the export.
        uri: String,
        /// In what.
        what: String,
    },
    /// The kernel would have to encrypt.
    #[error(
        "{uri}: the kernel's client has no TLS: serve it to the kernel by a node of your own, \
         ringnbd serve -l unix:PATH {uri:?}, and attach nbd+unix:///?socket=PATH"
    )]
    Tls {
        /// Of the export.
        uri: String,
    },
    /// The kernel says no to something else.
    #[error("{subject}: cannot {what}: {error}")]
    Refused {
        /// The device, or what stands for it.
        subject: String,
        /// What was asked.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

/// An export that is a device now. It stays one when this is dropped, and when the process ends.
#[derive(Debug)]
pub struct Attached {
    uri: Uri,
    link: Link,
    plan: Plan,
    device: Device,
    connections: usize,
    family: Family,
    /// Heard from before the first connection could die.
    deaths: Deaths,
}

impl Attached {
    /// Which device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Connections that were handed over.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Bytes at the end of the export that make no whole block, and that the device does not reach.
    pub fn bytes_lost(&self) -> u64 {
        self.plan.bytes_lost
    }

    /// Stays with the device and hands over another connection for each that dies, until the device is detached.
    ///
    /// # Errors
    /// [`AttachError::Changed`] when the export comes back different: the device stays as it is, without a connection.
    pub fn watch(self) -> Result<(), AttachError> {
        watch::watch(self)
    }
}

/// Attaches an export over netlink.
///
/// # Errors
/// [`AttachError`]; [`AttachError::NoNetlink`] where [`hold`] is the way that is left.
pub fn attach(uri: &Uri, options: &Options) -> Result<Attached, AttachError> {
    let uri = &plain(uri)?;
    let Some(mut family) = Family::find()? else {
        let has_module = device::all().next().is_some();
        return Err(if has_module { AttachError::NoNetlink } else { AttachError::NoModule });
    };
    let (link, sockets) = open(uri, options.connections)?;
    let plan = Plan::of(&link, options.read_only)?;
    let identifier = identifier(uri);
    let deaths = family.listen()?;
    let device = family.connect(options, &plan, &identifier, &sockets)?;
    let attached =
        Attached { uri: uri.clone(), link, plan, device, connections: sockets.len(), family, deaths };
    match device.took(&attached.plan).and_then(|()| device.limit_requests(&attached.plan)) {
        Ok(()) => Ok(attached),
        Err(error) => {
            let Attached { mut family, .. } = attached;
            // What failed first is what is told.
            let _ = family.disconnect(device);
            Err(error)
        }
    }
}

/// Attaches an export by ioctls, for as long as somebody waits in [`Held::serve`].
///
/// # Errors
/// [`AttachError`].
pub fn hold(uri: &Uri, device: Device, options: &Options) -> Result<Held, AttachError> {
    let (link, sockets) = open(&plain(uri)?, 1)?;
    let plan = Plan::of(&link, options.read_only)?;
    ioctls::prepare(device, &plan, options.timeout_s, sockets)
}

/// Detaches a device. Unless `force` is set, one that is mounted or claimed stays.
///
/// # Errors
/// [`AttachError`].
pub fn detach(device: Device, force: bool) -> Result<(), AttachError> {
    if device.holder().is_none() {
        let there = device::all().next().is_some();
        return Err(if there { AttachError::NotAttached(device) } else { AttachError::NoModule });
    }
    if !force && device.is_claimed() {
        return Err(AttachError::Claimed(device));
    }
    match Family::find()? {
        Some(mut family) => family.disconnect(device),
        None => ioctls::disconnect(device),
    }
}

/// A device of the kernel's client that has a server behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub device: Device,
    /// Bytes.
    pub size: u64,
    /// Bytes of its blocks.
    pub block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Connections that are used at a time: no more than the machine has processors.
    pub queues: usize,
    /// The process that attached it; it need not be there any more.
    pub pid: u32,
    /// The export's URI, where the kernel (5.14 and later) remembers it.
    pub export: Option<String>,
}

/// The devices that are attached, in order.
///
/// # Errors
/// [`AttachError::NoModule`].
pub fn list() -> Result<Vec<Entry>, AttachError> {
    let mut devices: Vec<Device> = device::all().collect();
    if devices.is_empty() {
        return Err(AttachError::NoModule);
    }
    devices.sort_unstable();
    Ok(devices.into_iter().filter_map(Device::entry).collect())
}

/// The same export without TLS, whose keys the kernel's client could not use.
fn plain(uri: &Uri) -> Result<Uri, AttachError> {
    match uri.security.tls {
        TlsMode::Require => Err(AttachError::Tls { uri: uri.to_string() }),
        TlsMode::Allow | TlsMode::Disable => Ok(Uri { security: Security::default(), ..uri.clone() }),
    }
}

/// Connections to an export, negotiated and quiet; what was agreed on with the first.
fn open(uri: &Uri, wanted: usize) -> Result<(Link, Vec<OwnedFd>), AttachError> {
    let wanted = wanted.clamp(1, CONNECTIONS_MAX);
    let (target, shown) = (uri.clone(), uri.to_string());
    client::block_on(async move {
        let (link, first) = dial(&target).await?;
        let mut sockets = vec![first];
        let several = link.flags.contains(TransmissionFlags::CAN_MULTI_CONN);
        while several && sockets.len() < wanted {
            let (other, socket) = dial(&target).await?;
            if let Some(what) = changed(&link, &other) {
                return Err(AttachError::Changed { uri: shown, what });
            }
            sockets.push(socket);
        }
        Ok((link, sockets))
    })?
}

async fn dial(uri: &Uri) -> Result<(Link, OwnedFd), AttachError> {
    let export = uri.export.clone();
    let config = DialerConfig { export, extended: false, structured: false, ..DialerConfig::default() };
    let connection = Connection::open_within(uri, config, HANDSHAKE_MAX, Some(KEEPALIVE)).await?;
    connection.release().await.map_err(|error| AttachError::Broken { uri: uri.to_string(), error })
}

/// What the kernel remembers of an export: later connections must name the same.
fn identifier(uri: &Uri) -> String {
    let mut text = uri.to_string();
    text.truncate((0..=IDENTIFIER_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0));
    text
}

/// What the kernel's answer means.
fn refused(subject: String, what: &'static str, error: io::Error) -> AttachError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => AttachError::Permission(subject),
        _ => AttachError::Refused { subject, what, error },
    }
}

fn open_device(device: Device) -> Result<File, AttachError> {
    let path = PathBuf::from(device.to_string());
    // Writing is up to the plan: the node of a read-only device opens for writing too.
    File::options().read(true).write(true).open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => AttachError::NoModule,
        _ => refused(device.to_string(), "open it", error),
    })
}
