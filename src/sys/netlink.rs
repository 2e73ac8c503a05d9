//! Netlink sockets, as far as the kernel's NBD client speaks them: generic netlink (a request and its answer, multicast
//! events) and the kernel's own announcements of what happens to devices.
//!
//! ```text
//!   | nlmsghdr 16 | genlmsghdr 4 | attribute | attribute ...        numbers are in the machine's byte order
//!                                  | length 2 | kind 2 | payload, padded to 4 |
//! ```
//!
//! Source: netlink(7), linux/netlink.h, linux/genetlink.h. What comes in was written by the kernel, and is read with every
//! length checked all the same.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `NLMSG_ERROR`: the answer's last message; an error of 0 acknowledges.
const MESSAGE_ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_AND_ACK: u16 = 1 | 4;
/// `GENL_ID_CTRL`: the family that knows the others.
const CONTROL: u16 = 0x10;
const CONTROL_VERSION: u8 = 1;
/// `CTRL_CMD_GETFAMILY` and the attributes of its answer.
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// `NLA_F_NESTED | NLA_F_NET_BYTEORDER`: not part of an attribute's kind.
const KIND_FLAGS: u16 = 0xc000;
const KIND_NESTED: u16 = 0x8000;
/// The kernel makes messages of up to a page; the answers here are far smaller.
const MESSAGE_MAX: usize = 32 << 10;
/// Longest payload that a 16-bit length can tell.
const PAYLOAD_MAX: usize = u16::MAX as usize - size_of::<AttributeHead>();
/// Multicast group of the kernel's own announcements (those of udev have another).
const KERNEL_EVENTS: u32 = 1;

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct MessageHead {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct GenericHead {
    command: u8,
    version: u8,
    reserved: u16,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct AttributeHead {
    length: u16,
    kind: u16,
}

/// Attributes in the making.
#[derive(Clone, Debug, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Appends a number.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, value.as_bytes())
    }

    /// Appends a number.
    #[must_use]
    pub fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, value.as_bytes())
    }

    /// Appends a text, with the NUL that ends it.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Appends attributes in an attribute.
    #[must_use]
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | KIND_NESTED, &inner.0)
    }

    /// # Panics
    /// Above [`PAYLOAD_MAX`]: callers bound what they say.
    fn bytes(mut self, kind: u16, payload: &[u8]) -> Self {
        assert!(payload.len() <= PAYLOAD_MAX, "an attribute of {} bytes", payload.len());
        let length = u16::try_from(size_of::<AttributeHead>() + payload.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(AttributeHead { length, kind }.as_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// The attributes in `bytes`, by kind; ends at the first that is cut off.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = AttributeHead::read_from_prefix(bytes).ok()?;
        let length = usize::from(head.length);
        let payload = bytes.get(size_of::<AttributeHead>()..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((head.kind & !KIND_FLAGS, payload))
    })
}

/// The first attribute of this kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

/// The first attribute of this kind, as a number.
pub fn attribute_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    u32::read_from_bytes(attribute(bytes, kind)?).ok()
}

/// A family of generic netlink, found by its name, with a socket to ask it on.
#[derive(Debug)]
pub struct Family {
    socket: OwnedFd,
    id: u16,
    version: u8,
    groups: Vec<(String, u32)>,
    sequence: u32,
}

/// A message of a family: its command, and its attributes as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which.
    pub command: u8,
    /// To be read with [`attribute`].
    pub attributes: Vec<u8>,
}

impl Family {
    /// Looks a family up.
    ///
    /// # Errors
    /// `NotFound` where the kernel has no family of this name: its module is not loaded, or it is not shown to this
    /// network namespace.
    pub fn find(name: &str, version: u8) -> io::Result<Self> {
        let socket = open(netlink::GENERIC, 0)?;
        let mut control =
            Self { socket, id: CONTROL, version: CONTROL_VERSION, groups: Vec::new(), sequence: 0 };
        let answer = control.ask(GET_FAMILY, &Attributes::new().text(FAMILY_NAME, name))?;
        let told = answer.first().map(|message| message.attributes.as_slice()).unwrap_or_default();
        let id = attribute(told, FAMILY_ID).and_then(|id| u16::read_from_bytes(id).ok());
        let Some(id) = id else { return Err(io::ErrorKind::NotFound.into()) };
        let groups = attributes(attribute(told, GROUPS).unwrap_or_default())
            .filter_map(|(_, group)| {
                let name = attribute(group, GROUP_NAME)?;
                let name = name.strip_suffix(&[0]).unwrap_or(name);
                Some((String::from_utf8_lossy(name).into_owned(), attribute_u32(group, GROUP_ID)?))
            })
            .collect();
        Ok(Self { id, version, groups, ..control })
    }

    /// Sends a request; answers with what came before its acknowledgement.
    ///
    /// # Errors
    /// What the family answers.
    pub fn ask(&mut self, command: u8, attributes: &Attributes) -> io::Result<Vec<Message>> {
        self.sequence = self.sequence.wrapping_add(1);
        let generic = GenericHead { command, version: self.version, reserved: 0 };
        let length = size_of::<MessageHead>() + size_of::<GenericHead>() + attributes.0.len();
        let head = MessageHead {
            length: u32::try_from(length).unwrap_or(u32::MAX),
            kind: self.id,
            flags: REQUEST_AND_ACK,
            sequence: self.sequence,
            port: 0,
        };
        let request = [head.as_bytes(), generic.as_bytes(), &attributes.0].concat();
        retry(|| Ok(rustix::net::send(&self.socket, &request, SendFlags::empty())?))?;
        let mut answer = Vec::new();
        let mut buffer = vec![0; MESSAGE_MAX];
        loop {
            let count = receive(&self.socket, &mut buffer, RecvFlags::empty())?;
            for (head, body) in messages(&buffer[..count]) {
                if head.sequence != self.sequence {
                    continue;
                }
                if head.kind == MESSAGE_ERROR {
                    return match i32::read_from_prefix(body) {
                        Ok((0, _)) => Ok(answer),
                        Ok((errno, _)) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                        Err(_) => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                answer.extend(generic_message(body));
            }
        }
    }

    /// Takes part in one of the family's multicast groups from here on.
    ///
    /// # Errors
    /// `NotFound` where the family has no group of this name.
    pub fn listen(&self, group: &str) -> io::Result<Events> {
        let found = self.groups.iter().find(|(name, _)| name == group);
        let (_, id) = found.ok_or(io::ErrorKind::NotFound)?;
        let socket = open(netlink::GENERIC, 0)?;
        join(&socket, *id)?;
        Ok(Events { socket, family: self.id })
    }
}

/// Messages of a multicast group.
#[derive(Debug)]
pub struct Events {
    socket: OwnedFd,
    family: u16,
}

impl Events {
    /// Takes what has arrived, without waiting. `None`: more came than the socket could hold, and some is lost.
    ///
    /// # Errors
    /// The errno of `recv(2)`.
    pub fn take(&self) -> io::Result<Option<Vec<Message>>> {
        let mut taken = Vec::new();
        let complete = drain(&self.socket, |bytes| {
            let ours = messages(bytes).filter(|(head, _)| head.kind == self.family);
            taken.extend(ours.filter_map(|(_, body)| generic_message(body)));
        })?;
        Ok(complete.then_some(taken))
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the kernel announces of its devices (`NETLINK_KOBJECT_UEVENT`), before udev sees to it.
#[derive(Debug)]
pub struct DeviceEvents {
    socket: OwnedFd,
}

impl DeviceEvents {
    /// Listens from here on.
    ///
    /// # Errors
    /// The errno of `socket(2)` or `bind(2)`.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { socket: open(netlink::KOBJECT_UEVENT, KERNEL_EVENTS)? })
    }

    /// Takes what has arrived, without waiting: whether some of it was, or may have been, about the device of this path
    /// below /sys.
    ///
    /// # Errors
    /// The errno of `recv(2)`.
    pub fn take(&self, path_end: &str) -> io::Result<bool> {
        let mut seen = false;
        let complete = drain(&self.socket, |bytes| {
            // `change@/devices/virtual/block/nbd0`, then NUL and the same in more words.
            let title = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            seen |= title.ends_with(path_end.as_bytes());
        })?;
        Ok(seen || !complete)
    }
}

impl AsFd for DeviceEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(protocol: Protocol, groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(protocol))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// A group's number can lie beyond the 32 that fit into an address.
fn join(socket: &OwnedFd, group: u32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<u32>()).map_err(io::Error::other)?;
    // SAFETY: NETLINK_ADD_MEMBERSHIP reads one u32 through the pointer, which `group` outlives.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            length,
        )
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives everything that has arrived to `each`; false if the socket had to drop some.
fn drain(socket: &OwnedFd, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let mut complete = true;
    loop {
        match receive(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok(count) => each(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(complete),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => complete = false,
            Err(error) => return Err(error),
        }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    retry(|| {
        let (count, _) = rustix::net::recv(socket, &mut *buffer, flags)?;
        Ok(count)
    })
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// The messages in what one receive brought; ends at the first that is cut off.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (MessageHead, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = MessageHead::read_from_prefix(bytes).ok()?;
        let length = usize::try_from(head.length).ok()?;
        let body = bytes.get(size_of::<MessageHead>()..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((head, body))
    })
}

fn generic_message(body: &[u8]) -> Option<Message> {
    let (head, rest) = GenericHead::read_from_prefix(body).ok()?;
    Some(Message { command: head.command, attributes: rest.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_nested_and_found_again() {
        let inner = Attributes::new().u32(1, 7);
        let all = Attributes::new().text(2, "nbd").u64(3, 1 << 40).nest(4, &inner).0;
        assert_eq!(all.len(), 8 + 12 + 12);
        assert_eq!(attribute(&all, 2), Some(&b"nbd\0"[..]));
        assert_eq!(attribute(&all, 3).and_then(|value| u64::read_from_bytes(value).ok()), Some(1 << 40));
        assert_eq!(attribute(&all, 4).and_then(|inner| attribute_u32(inner, 1)), Some(7));
        assert_eq!(attribute(&all, 5), None);
        for end in 0..all.len() {
            // Cut off anywhere, what is whole is found and nothing else.
            let found = attributes(&all[..end]).count();
            assert!(found <= 2, "{found} attributes in {end} bytes");
        }
        let nonsense = AttributeHead { length: 3, kind: 1 };
        assert_eq!(attributes(nonsense.as_bytes()).count(), 0, "shorter than its own head");
    }

    #[test]
    fn the_control_family_knows_itself_and_no_others_of_any_name() {
        let found = Family::find("nlctrl", CONTROL_VERSION).unwrap();
        assert_eq!(found.id, CONTROL);
        assert!(found.groups.iter().any(|(name, _)| name == "notify"), "{:?}", found.groups);
        let events = found.listen("notify").unwrap();
        assert!(events.take().unwrap().is_some());
        assert_eq!(found.listen("no-such-group").unwrap_err().kind(), io::ErrorKind::NotFound);
        let missing = Family::find("no-such-family", 1).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_refusal_is_the_error_that_it_tells() {
        let mut control = Family::find("nlctrl", CONTROL_VERSION).unwrap();
        let refused = control.ask(200, &Attributes::new()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn device_events_are_taken_without_waiting() {
        let events = DeviceEvents::listen().unwrap();
        assert!(!events.take("/block/no-such-device").unwrap());
    }
}
