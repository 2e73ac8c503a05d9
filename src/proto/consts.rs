//! The numbers of the NBD protocol, as open sets: a value nobody named is data, not an error.
//!
//! Source: `doc/proto.md` of the NBD project, section "Values", and its branches
//! `extension-ext-header` and `extension-resize`.

use std::fmt;

/// Server's first word: `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of newstyle, and first word of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second word of oldstyle (`cliserv_magic`).
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First word of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Compact request, 28 bytes.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Extended request, 32 bytes.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Simple reply, 16 bytes.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Structured reply chunk, 20 bytes and a payload.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Extended reply chunk, 32 bytes and a payload.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The port that IANA reserved for NBD.
pub const PORT: u16 = 10809;
/// Longest string the protocol allows, in bytes.
pub const STRING_LENGTH_MAX: usize = 4096;
/// Zeroes that end an oldstyle greeting, and an EXPORT_NAME answer without NO_ZEROES.
pub const RESERVED_ZEROES: usize = 124;
/// Most extents in one block status chunk.
pub const STATUS_EXTENTS_MAX: usize = 1 << 20;
/// A payload of this length must never be called an attack, whatever maximum was advertised.
pub const PAYLOAD_TOLERATED: u64 = 1 << 25;
/// Bytes of an option before its payload: magic, code, length.
pub const OPTION_HEADER_LENGTH: usize = 16;
/// Bytes of a compact request header.
pub const REQUEST_LENGTH: usize = 28;
/// Bytes of an extended request header.
pub const EXTENDED_REQUEST_LENGTH: usize = 32;

/// An open set of numbers with names; `Debug` prints the name, `Display` the name as the
/// specification spells it.
macro_rules! wire_consts {
    ($(#[$meta:meta])* $name:ident($int:ty, $prefix:literal) {
        $($(#[$item:meta])* $constant:ident = $value:literal),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$item])* pub const $constant: Self = Self($value);)*

            /// The name without its prefix, if the value has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($constant)),)*
                    _ => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{}({:#x})", stringify!($name), self.0),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => write!(f, concat!($prefix, "{}"), name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }
    };
}

/// An open set of bits with names; values are bit numbers.
macro_rules! wire_flags {
    ($(#[$meta:meta])* $name:ident($int:ty) {
        $($(#[$item:meta])* $constant:ident = $bit:literal),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// No bit set.
            pub const NONE: Self = Self(0);
            $($(#[$item])* pub const $constant: Self = Self(1 << $bit);)*

            /// Every bit of `other` is set.
            #[inline]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The bits that are not in `other`.
            #[inline]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The bits of both.
            #[inline]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// No bit is set.
            #[inline]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;
            #[inline]
            fn bitor(self, other: Self) -> Self {
                self.with(other)
            }
        }

        impl std::ops::BitOrAssign for $name {
            #[inline]
            fn bitor_assign(&mut self, other: Self) {
                self.0 |= other.0;
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut separator = "";
                let mut rest = *self;
                $(if rest.contains(Self::$constant) {
                    write!(f, "{separator}{}", stringify!($constant))?;
                    separator = "|";
                    rest = rest.without(Self::$constant);
                })*
                if !rest.is_empty() || separator.is_empty() {
                    write!(f, "{separator}{:#x}", rest.0)?;
                }
                Ok(())
            }
        }
    };
}

wire_consts! {
    /// What a request asks for.
    Command(u16, "NBD_CMD_") {
        /// Read bytes.
        READ = 0,
        /// Write the payload.
        WRITE = 1,
        /// End the session; has no reply.
        DISC = 2,
        /// Make all completed writes durable.
        FLUSH = 3,
        /// The range is no longer needed.
        TRIM = 4,
        /// The range will be wanted soon.
        CACHE = 5,
        /// Write zeroes without a payload.
        WRITE_ZEROES = 6,
        /// Ask the selected meta contexts about a range.
        BLOCK_STATUS = 7,
        /// Change the size (experimental; not served).
        RESIZE = 8,
    }
}

wire_consts! {
    /// What a client negotiates before transmission.
    OptionCode(u32, "NBD_OPT_") {
        /// Choose an export and enter transmission, without a way to say no.
        EXPORT_NAME = 1,
        /// End the session politely.
        ABORT = 2,
        /// List the exports.
        LIST = 3,
        /// Withdrawn.
        PEEK_EXPORT = 4,
        /// Go on under TLS.
        STARTTLS = 5,
        /// Describe an export.
        INFO = 6,
        /// Describe an export and enter transmission.
        GO = 7,
        /// Use structured replies.
        STRUCTURED_REPLY = 8,
        /// List an export's meta contexts.
        LIST_META_CONTEXT = 9,
        /// Select meta contexts of an export.
        SET_META_CONTEXT = 10,
        /// Use extended headers.
        EXTENDED_HEADERS = 11,
    }
}

wire_consts! {
    /// How the server answers an option.
    OptionReply(u32, "NBD_REP_") {
        /// Done.
        ACK = 1,
        /// One export of a list.
        SERVER = 2,
        /// One fact about an export.
        INFO = 3,
        /// One meta context.
        META_CONTEXT = 4,
        /// The option is not known.
        ERR_UNSUP = 0x8000_0001,
        /// The option is not allowed here.
        ERR_POLICY = 0x8000_0002,
        /// The option is malformed or out of place.
        ERR_INVALID = 0x8000_0003,
        /// The option needs what this platform lacks.
        ERR_PLATFORM = 0x8000_0004,
        /// TLS comes first.
        ERR_TLS_REQD = 0x8000_0005,
        /// No such export.
        ERR_UNKNOWN = 0x8000_0006,
        /// The server is being shut down.
        ERR_SHUTDOWN = 0x8000_0007,
        /// The client must ask for the block sizes.
        ERR_BLOCK_SIZE_REQD = 0x8000_0008,
        /// Request or reply is too large.
        ERR_TOO_BIG = 0x8000_0009,
        /// Extended headers come first, or took precedence.
        ERR_EXT_HEADER_REQD = 0x8000_000a,
    }
}

impl OptionReply {
    /// An error reply: bit 31 is set, the payload is a sentence for a person.
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

wire_consts! {
    /// What one INFO reply is about.
    InfoType(u16, "NBD_INFO_") {
        /// Size and transmission flags.
        EXPORT = 0,
        /// Canonical name.
        NAME = 1,
        /// Description for a person.
        DESCRIPTION = 2,
        /// Minimum, preferred and maximum sizes.
        BLOCK_SIZE = 3,
    }
}

wire_consts! {
    /// What a reply chunk carries.
    ChunkType(u16, "NBD_REPLY_TYPE_") {
        /// Nothing: ends the reply.
        NONE = 0,
        /// Bytes of the export.
        OFFSET_DATA = 1,
        /// A range that reads as zeroes.
        OFFSET_HOLE = 2,
        /// Extents of one meta context, 32-bit.
        BLOCK_STATUS = 5,
        /// Extents of one meta context, 64-bit.
        BLOCK_STATUS_EXT = 6,
        /// An error.
        ERROR = 0x8001,
        /// An error at an offset.
        ERROR_OFFSET = 0x8002,
    }
}

impl ChunkType {
    /// An error chunk: bit 15 is set.
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

wire_flags! {
    /// What the server says of itself in a newstyle greeting.
    HandshakeFlags(u16) {
        /// Options may be refused without a disconnect.
        FIXED_NEWSTYLE = 0,
        /// The 124 zeroes after EXPORT_NAME can be left out.
        NO_ZEROES = 1,
    }
}

wire_flags! {
    /// What the client answers to a newstyle greeting.
    ClientFlags(u32) {
        /// Understands option replies.
        FIXED_NEWSTYLE = 0,
        /// Leave the 124 zeroes out.
        NO_ZEROES = 1,
    }
}

wire_flags! {
    /// What an export can do.
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0,
        /// Writes are refused.
        READ_ONLY = 1,
        /// FLUSH is served.
        SEND_FLUSH = 2,
        /// FUA is honoured.
        SEND_FUA = 3,
        /// The medium rotates.
        ROTATIONAL = 4,
        /// TRIM is served.
        SEND_TRIM = 5,
        /// WRITE_ZEROES and NO_HOLE are served.
        SEND_WRITE_ZEROES = 6,
        /// DF is honoured; needs structured or extended replies.
        SEND_DF = 7,
        /// A flush on one connection covers the completed writes of all.
        CAN_MULTI_CONN = 8,
        /// RESIZE is served (experimental).
        SEND_RESIZE = 9,
        /// CACHE is served.
        SEND_CACHE = 10,
        /// FAST_ZERO is honoured.
        SEND_FAST_ZERO = 11,
        /// BLOCK_STATUS takes a payload; needs extended headers.
        BLOCK_STATUS_PAYLOAD = 12,
    }
}

wire_flags! {
    /// How a request is to be carried out.
    CommandFlags(u16) {
        /// Durable before the reply.
        FUA = 0,
        /// Leave the zeroed range allocated.
        NO_HOLE = 1,
        /// At most one content chunk.
        DF = 2,
        /// One extent per context.
        REQ_ONE = 3,
        /// Fail unless zeroing is faster than writing.
        FAST_ZERO = 4,
        /// The length is that of a payload (extended headers).
        PAYLOAD_LEN = 5,
    }
}

wire_flags! {
    /// Of a reply chunk.
    ChunkFlags(u16) {
        /// The last chunk of this reply.
        DONE = 0,
    }
}

wire_flags! {
    /// Status bits of `base:allocation`.
    AllocationFlags(u32) {
        /// Not allocated.
        HOLE = 0,
        /// Reads as zeroes.
        ZERO = 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_printed_and_unknown_values_survive() {
        assert_eq!(format!("{:?}", Command::WRITE_ZEROES), "WRITE_ZEROES");
        assert_eq!(format!("{:?}", Command(77)), "Command(0x4d)");
        assert_eq!(OptionCode::GO.to_string(), "NBD_OPT_GO");
        assert_eq!(OptionCode(0xdead).to_string(), "0xdead");
        assert_eq!(OptionReply(0x8000_0001), OptionReply::ERR_UNSUP);
        assert!(OptionReply::ERR_TOO_BIG.is_error() && !OptionReply::ACK.is_error());
        assert!(ChunkType(0x8123).is_error() && !ChunkType::BLOCK_STATUS.is_error());
    }

    #[test]
    fn flags_print_each_bit_and_the_unnamed_rest() {
        let flags = CommandFlags::FUA | CommandFlags::DF | CommandFlags(0x100);
        assert_eq!(flags.to_string(), "FUA|DF|0x100");
        assert_eq!(CommandFlags::NONE.to_string(), "0x0");
        assert_eq!(flags.without(CommandFlags::FUA), CommandFlags(0x104));
        assert!(flags.contains(CommandFlags::DF) && !flags.contains(CommandFlags::NO_HOLE));
    }
}
