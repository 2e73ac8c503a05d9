//! The request header, both ways.
//!
//! ```text
//! compact   magic32 flags16 type16 cookie64 offset64 length32            28 bytes
//! extended  magic32 flags16 type16 cookie64 offset64 length64            32 bytes
//! ```
//!
//! In the compact form only WRITE has a payload, of `length` bytes. In the extended form
//! PAYLOAD_LEN says that `length` counts a payload; otherwise it is the range's length.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::consts::{
    Command, CommandFlags, EXTENDED_REQUEST_LENGTH, EXTENDED_REQUEST_MAGIC, REQUEST_LENGTH, REQUEST_MAGIC,
};
use super::reply::Head;
use super::session::Dialect;
use super::violation::Violation;

/// One request, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// How to do it.
    pub flags: CommandFlags,
    /// The client's name for it; opaque, comes back in every reply.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range. 0 for a BLOCK_STATUS with a payload, until the payload has told it.
    pub length: u64,
    /// Bytes that follow the header on the wire, whatever becomes of the request.
    pub payload: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Common {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Compact {
    common: Common,
    length: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Extended {
    common: Common,
    length: U64,
}

impl Request {
    /// Reads one header from the front of `input`; `None` asks for more bytes.
    #[inline]
    pub(super) fn decode(dialect: Dialect, input: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        if dialect == Dialect::Extended { Self::decode_extended(input) } else { Self::decode_compact(input) }
    }

    #[inline]
    fn decode_compact(input: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Ok((wire, _)) = Compact::ref_from_prefix(input) else {
            return need_more(input, REQUEST_MAGIC);
        };
        if wire.common.magic.get() != REQUEST_MAGIC {
            return Err(Violation::RequestMagic(wire.common.magic.get()));
        }
        let command = Command(wire.common.command.get());
        let length = u64::from(wire.length.get());
        let request = Self {
            command,
            flags: CommandFlags(wire.common.flags.get()),
            cookie: wire.common.cookie.get(),
            offset: wire.common.offset.get(),
            length,
            payload: if command == Command::WRITE { length } else { 0 },
        };
        Ok(Some((request, REQUEST_LENGTH)))
    }

    #[inline]
    fn decode_extended(input: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Ok((wire, _)) = Extended::ref_from_prefix(input) else {
            return need_more(input, EXTENDED_REQUEST_MAGIC);
        };
        if wire.common.magic.get() != EXTENDED_REQUEST_MAGIC {
            return Err(Violation::RequestMagic(wire.common.magic.get()));
        }
        let command = Command(wire.common.command.get());
        let flags = CommandFlags(wire.common.flags.get());
        let length = wire.length.get();
        // A WRITE without PAYLOAD_LEN breaks the rules, yet can only mean one thing; QEMU takes it too.
        let (length, payload) = if command == Command::WRITE {
            (length, length)
        } else if flags.contains(CommandFlags::PAYLOAD_LEN) {
            (0, length)
        } else {
            (length, 0)
        };
        let request = Self {
            command,
            flags,
            cookie: wire.common.cookie.get(),
            offset: wire.common.offset.get(),
            length,
            payload,
        };
        Ok(Some((request, EXTENDED_REQUEST_LENGTH)))
    }

    /// The header as a client sends it. In the extended dialect a payload sets PAYLOAD_LEN.
    ///
    /// The compact form has 32 bits for the length; a longer one is cut to them.
    pub fn encode(&self, dialect: Dialect) -> Head {
        let extended = dialect == Dialect::Extended;
        let mut flags = self.flags;
        if extended && (self.payload > 0 || self.command == Command::WRITE) {
            flags |= CommandFlags::PAYLOAD_LEN;
        }
        let common = Common {
            magic: U32::new(if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC }),
            flags: U16::new(flags.0),
            command: U16::new(self.command.0),
            cookie: U64::new(self.cookie),
            offset: U64::new(self.offset),
        };
        if extended {
            let length = if flags.contains(CommandFlags::PAYLOAD_LEN) { self.payload } else { self.length };
            Head::of(&Extended { common, length: U64::new(length) })
        } else {
            let length = u32::try_from(self.length).unwrap_or(u32::MAX);
            Head::of(&Compact { common, length: U32::new(length) })
        }
    }

    /// First byte after the range, unless that does not fit.
    #[inline]
    pub const fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }
}

/// Too short for a header. A magic that is wrong already need not be waited for.
#[cold]
fn need_more(input: &[u8], magic: u32) -> Result<Option<(Request, usize)>, Violation> {
    match input.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) {
        Some(found) if found != magic => Err(Violation::RequestMagic(found)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: Command, length: u64, payload: u64) -> Request {
        Request { command, flags: CommandFlags::FUA, cookie: 0x0102, offset: 4096, length, payload }
    }

    #[test]
    fn both_forms_survive_the_round_trip_at_every_length() {
        let cases = [
            (Dialect::Simple, request(Command::WRITE, 512, 512), 28),
            (Dialect::Structured, request(Command::READ, 0xffff_ffff, 0), 28),
            (Dialect::Extended, request(Command::READ, 1 << 40, 0), 32),
        ];
        for (dialect, request, length) in cases {
            let head = request.encode(dialect);
            assert_eq!(head.len(), length);
            for cut in 0..length {
                assert_eq!(Request::decode(dialect, &head[..cut]), Ok(None));
            }
            assert_eq!(Request::decode(dialect, &head), Ok(Some((request, length))));
        }
    }

    #[test]
    fn payload_len_turns_the_length_into_a_payload() {
        let sent = request(Command::BLOCK_STATUS, 0, 12);
        let head = sent.encode(Dialect::Extended);
        let (got, _) = Request::decode(Dialect::Extended, &head).unwrap().unwrap();
        assert_eq!((got.length, got.payload), (0, 12));
        assert!(got.flags.contains(CommandFlags::PAYLOAD_LEN));
    }

    #[test]
    fn a_write_without_payload_len_still_brings_its_payload() {
        let mut head = request(Command::WRITE, 512, 512).encode(Dialect::Extended).to_vec();
        head[4..6].copy_from_slice(&[0, 0]);
        let (got, _) = Request::decode(Dialect::Extended, &head).unwrap().unwrap();
        assert_eq!((got.flags, got.length, got.payload), (CommandFlags::NONE, 512, 512));
    }

    #[test]
    fn the_other_forms_magic_is_refused_as_soon_as_it_is_there() {
        let head = request(Command::READ, 1, 0).encode(Dialect::Simple);
        assert_eq!(Request::decode(Dialect::Extended, &head[..3]), Ok(None));
        let refused = Err(Violation::RequestMagic(REQUEST_MAGIC));
        assert_eq!(Request::decode(Dialect::Extended, &head[..4]), refused);
        assert_eq!(Request::decode(Dialect::Extended, &head), refused);
    }
}
