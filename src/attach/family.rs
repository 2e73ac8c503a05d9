//! The netlink family of the kernel's NBD client (linux/nbd-netlink.h, Linux 4.12 and later).
//!
//! A device that was attached here belongs to no process: it lasts until it is detached. Each of its connections that dies
//! is announced once, except when the device is being detached; `reconfigure` puts a new one in the place of a dead one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::device::Device;
use super::plan::Plan;
use super::{AttachError, Options, refused};
use crate::sys::netlink::{self, Attributes, attribute, attribute_u32, attributes};

const NAME: &str = "nbd";
const VERSION: u8 = 1;
const GROUP: &str = "nbd_mc_group";

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
const LINK_DEAD: u8 = 4;
const STATUS: u8 = 5;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const DEVICE_LIST: u16 = 9;
/// Linux 5.14 and later; ignored before.
const BACKEND_IDENTIFIER: u16 = 10;
/// In SOCKETS, and in that.
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;
/// In an item of DEVICE_LIST.
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

/// The family, found.
#[derive(Debug)]
pub(super) struct Family(netlink::Family);

impl Family {
    /// `None`: the module is not loaded, or this is another network namespace than the machine's first.
    pub(super) fn find() -> Result<Option<Self>, AttachError> {
        match netlink::Family::find(NAME, VERSION) {
            Ok(family) => Ok(Some(Self(family))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused("netlink".to_owned(), "ask for the family \"nbd\"", error)),
        }
    }

    /// Makes a device of connections; answers which.
    pub(super) fn connect(
        &mut self,
        options: &Options,
        plan: &Plan,
        identifier: &str,
        sockets: &[OwnedFd],
    ) -> Result<Device, AttachError> {
        let mut request = Attributes::new();
        if let Some(Device(index)) = options.device {
            request = request.u32(INDEX, index);
        }
        request = request
            .u64(SIZE_BYTES, plan.size)
            .u64(BLOCK_SIZE_BYTES, plan.block.into())
            .u64(SERVER_FLAGS, plan.flags.0.into())
            .u64(TIMEOUT, options.timeout_s.into())
            .u64(DEAD_CONN_TIMEOUT, options.dead_timeout_s.into())
            .text(BACKEND_IDENTIFIER, identifier)
            .nest(SOCKETS, &items(sockets.iter().map(AsFd::as_fd)));
        let subject = options.device.map_or_else(|| "a free device".to_owned(), |device| device.to_string());
        let answer =
            self.0.ask(CONNECT, &request).map_err(|error| match (error.raw_os_error(), options.device) {
                (Some(libc::EBUSY), Some(device)) => AttachError::Busy(device),
                _ => refused(subject.clone(), "attach it", error),
            })?;
        let index = answer.iter().find_map(|message| attribute_u32(&message.attributes, INDEX));
        index
            .map(Device)
            .or(options.device)
            .ok_or_else(|| refused(subject, "tell which it is", io::ErrorKind::InvalidData.into()))
    }

    /// Puts a connection in the place of one that is dead; without any dead one the kernel closes it again.
    pub(super) fn replace(
        &mut self,
        device: Device,
        identifier: &str,
        socket: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        let request = Attributes::new()
            .u32(INDEX, device.0)
            .text(BACKEND_IDENTIFIER, identifier)
            .nest(SOCKETS, &items([socket]));
        let answer = self.0.ask(RECONFIGURE, &request);
        answer.map(drop).map_err(|error| refused(device.to_string(), "replace a connection", error))
    }

    /// Says goodbye on all connections and ends them. What waits for an answer fails.
    pub(super) fn disconnect(&mut self, device: Device) -> Result<(), AttachError> {
        let answer = self.0.ask(DISCONNECT, &Attributes::new().u32(INDEX, device.0));
        answer.map(drop).map_err(|error| refused(device.to_string(), "detach it", error))
    }

    /// Whether the device is attached, or still held open after it was.
    pub(super) fn is_connected(&mut self, device: Device) -> Result<bool, AttachError> {
        let answer = self.0.ask(STATUS, &Attributes::new().u32(INDEX, device.0));
        let answer = answer.map_err(|error| refused(device.to_string(), "ask for its status", error))?;
        Ok(answer.iter().any(|message| {
            let list = attribute(&message.attributes, DEVICE_LIST).unwrap_or_default();
            attributes(list).any(|(_, item)| {
                let connected = attribute(item, DEVICE_CONNECTED).and_then(<[u8]>::first);
                attribute_u32(item, DEVICE_INDEX) == Some(device.0)
                    && connected.is_some_and(|flag| *flag != 0)
            })
        }))
    }

    /// Hears of connections that die from here on.
    pub(super) fn listen(&self) -> Result<Deaths, AttachError> {
        let events = self.0.listen(GROUP);
        Ok(Deaths(events.map_err(|error| refused("netlink".to_owned(), "listen to nbd_mc_group", error))?))
    }
}

/// Announcements of connections that died.
#[derive(Debug)]
pub(super) struct Deaths(netlink::Events);

impl Deaths {
    /// How many of the device's connections died since this was last asked; `None` when the kernel lost count.
    pub(super) fn take(&self, device: Device) -> io::Result<Option<usize>> {
        let events = self.0.take()?;
        Ok(events.map(|events| {
            let dead = events.iter().filter(|event| event.command == LINK_DEAD);
            dead.filter(|event| attribute_u32(&event.attributes, INDEX) == Some(device.0)).count()
        }))
    }
}

impl AsFd for Deaths {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn items<'fd>(sockets: impl IntoIterator<Item = BorrowedFd<'fd>>) -> Attributes {
    sockets.into_iter().fold(Attributes::new(), |items, socket| {
        let number = socket.as_raw_fd().unsigned_abs();
        items.nest(SOCKET_ITEM, &Attributes::new().u32(SOCKET_FD, number))
    })
}
