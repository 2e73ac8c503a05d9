//! Replies as a client reads them.
//!
//! ```text
//!   bytes --Reply::decode--> Reply --Pending::accept--> Progress
//!              form                   sense: of this request, not twice, not beyond
//! ```
//!
//! Data is not read here: [`Progress::data`] says how many bytes follow and where they belong,
//! so that the caller can receive them in place.

mod pending;
#[cfg(test)]
mod tests;

use super::consts::{
    ChunkFlags, ChunkType, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STATUS_EXTENTS_MAX,
    STRUCTURED_REPLY_MAGIC,
};
use super::cursor::Cursor;
use super::errno::Errno;
use super::session::Dialect;
use super::violation::Violation;

pub use pending::{Pending, Progress, ReplyError};

/// Longest payload that is not data, in bytes: a block status of 2^20 extents.
const PAYLOAD_KEPT_MAX: u64 = 8 + 16 * STATUS_EXTENTS_MAX as u64;

/// One simple reply, or one chunk, without the data of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset, as an extended reply repeats it.
    pub offset: Option<u64>,
    /// The last of its request.
    pub done: bool,
    /// What it says.
    pub body: Body,
}

/// What a reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A simple reply. The data of a successful read follows.
    Simple(Errno),
    /// Nothing more.
    None,
    /// `length` bytes of data follow.
    Data {
        /// Where they belong.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// A range reads as zeroes.
    Hole {
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        length: u64,
    },
    /// Extents of one meta context: length and status, from the request's offset on.
    Status {
        /// The context.
        id: u32,
        /// At least one, none empty.
        extents: Vec<(u64, u64)>,
    },
    /// An error.
    Error {
        /// Never [`Errno::OK`].
        errno: Errno,
        /// The server's words; may be empty.
        text: String,
        /// The byte it happened at, if told.
        at: Option<u64>,
    },
}

/// The part that structured and extended chunks share.
struct Chunk {
    done: bool,
    kind: ChunkType,
    cookie: u64,
    offset: Option<u64>,
    length: u64,
}

impl Reply {
    /// Reads one reply from the front of `input` and says how long it was, its data not counted;
    /// `None` asks for more bytes.
    pub fn decode(dialect: Dialect, input: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let mut cursor = Cursor::new(input);
        let Some(magic) = cursor.u32() else { return Ok(None) };
        let reply = match (magic, dialect) {
            (SIMPLE_REPLY_MAGIC, Dialect::Simple | Dialect::Structured) => Self::simple(&mut cursor),
            (STRUCTURED_REPLY_MAGIC, Dialect::Structured) | (EXTENDED_REPLY_MAGIC, Dialect::Extended) => {
                match Chunk::decode(dialect, &mut cursor) {
                    Some(chunk) => chunk.body(dialect, &mut cursor)?.map(|body| Self {
                        cookie: chunk.cookie,
                        offset: chunk.offset,
                        done: chunk.done,
                        body,
                    }),
                    None => None,
                }
            }
            _ => return Err(Violation::ReplyMagic(magic)),
        };
        Ok(reply.map(|reply| (reply, cursor.consumed())))
    }

    fn simple(cursor: &mut Cursor<'_>) -> Option<Self> {
        let (errno, cookie) = (Errno(cursor.u32()?), cursor.u64()?);
        Some(Self { cookie, offset: None, done: true, body: Body::Simple(errno) })
    }
}

impl Chunk {
    fn decode(dialect: Dialect, cursor: &mut Cursor<'_>) -> Option<Self> {
        let flags = ChunkFlags(cursor.u16()?);
        let kind = ChunkType(cursor.u16()?);
        let cookie = cursor.u64()?;
        let (offset, length) = if dialect == Dialect::Extended {
            (Some(cursor.u64()?), cursor.u64()?)
        } else {
            (None, cursor.u32()?.into())
        };
        Some(Self { done: flags.contains(ChunkFlags::DONE), kind, cookie, offset, length })
    }

    /// Checks the payload's form before waiting for it; `None` asks for more bytes.
    fn body(&self, dialect: Dialect, cursor: &mut Cursor<'_>) -> Result<Option<Body>, Violation> {
        let extended = dialect == Dialect::Extended;
        match self.kind {
            ChunkType::NONE if !self.done => Err(Violation::Reply("an empty chunk that is not the last")),
            ChunkType::NONE if self.length != 0 => Err(Violation::Reply("an empty chunk with a payload")),
            ChunkType::NONE => Ok(Some(Body::None)),
            ChunkType::OFFSET_DATA if self.length < 9 => Err(Violation::Reply("a data chunk without data")),
            ChunkType::OFFSET_DATA => {
                Ok(cursor.u64().map(|offset| Body::Data { offset, length: self.length - 8 }))
            }
            ChunkType::OFFSET_HOLE if self.length != 12 => {
                Err(Violation::Reply("a hole chunk not of 12 bytes"))
            }
            ChunkType::OFFSET_HOLE => match (cursor.u64(), cursor.u32()) {
                (Some(_), Some(0)) => Err(Violation::Reply("a hole of no bytes")),
                (Some(offset), Some(length)) => Ok(Some(Body::Hole { offset, length: length.into() })),
                _ => Ok(None),
            },
            ChunkType::BLOCK_STATUS if !extended => self.status(cursor),
            ChunkType::BLOCK_STATUS_EXT if extended => self.status_ext(cursor),
            kind if kind.is_error() => self.error(cursor),
            _ => Err(Violation::Reply("a chunk of unknown type")),
        }
    }

    fn status(&self, cursor: &mut Cursor<'_>) -> Result<Option<Body>, Violation> {
        let extents_length = self.length.saturating_sub(4);
        if extents_length == 0 || !extents_length.is_multiple_of(8) {
            return Err(Violation::Reply("a block status of a length that holds no whole extents"));
        }
        let Some(mut payload) = self.payload(cursor)? else { return Ok(None) };
        let id = payload.u32().unwrap_or_default();
        let mut extents = Vec::with_capacity(payload.remaining() / 8);
        while let (Some(length), Some(status)) = (payload.u32(), payload.u32()) {
            extents.push((length.into(), status.into()));
        }
        Self::checked_status(id, extents)
    }

    fn status_ext(&self, cursor: &mut Cursor<'_>) -> Result<Option<Body>, Violation> {
        let extents_length = self.length.saturating_sub(8);
        if extents_length == 0 || !extents_length.is_multiple_of(16) {
            return Err(Violation::Reply("a block status of a length that holds no whole extents"));
        }
        let Some(mut payload) = self.payload(cursor)? else { return Ok(None) };
        let (id, count) = (payload.u32().unwrap_or_default(), payload.u32().unwrap_or_default());
        if u64::from(count) != extents_length / 16 {
            return Err(Violation::Reply("a block status that miscounts its extents"));
        }
        let mut extents = Vec::with_capacity(payload.remaining() / 16);
        while let (Some(length), Some(status)) = (payload.u64(), payload.u64()) {
            extents.push((length, status));
        }
        Self::checked_status(id, extents)
    }

    fn checked_status(id: u32, extents: Vec<(u64, u64)>) -> Result<Option<Body>, Violation> {
        if extents.iter().any(|(length, _)| *length == 0) {
            return Err(Violation::Reply("an extent of no bytes"));
        }
        Ok(Some(Body::Status { id, extents }))
    }

    /// Error types not known to us begin like the plain one, and count as it.
    fn error(&self, cursor: &mut Cursor<'_>) -> Result<Option<Body>, Violation> {
        let tail = if self.kind == ChunkType::ERROR_OFFSET { 8 } else { 0 };
        if self.length < 6 + tail {
            return Err(Violation::Reply("an error chunk too short for its fields"));
        }
        let Some(mut payload) = self.payload(cursor)? else { return Ok(None) };
        let errno = Errno(payload.u32().unwrap_or_default());
        if errno == Errno::OK {
            return Err(Violation::Reply("an error chunk without an error"));
        }
        let text_length = payload.u16().unwrap_or_default();
        if u64::from(text_length) > self.length - 6 - tail {
            return Err(Violation::Reply("an error text longer than its chunk"));
        }
        let text = payload.take(text_length.into()).unwrap_or_default();
        let at = if tail > 0 { payload.u64() } else { None };
        Ok(Some(Body::Error { errno, text: String::from_utf8_lossy(text).into_owned(), at }))
    }

    /// The whole payload; `None` asks for more bytes.
    fn payload<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Option<Cursor<'a>>, Violation> {
        if self.length > PAYLOAD_KEPT_MAX {
            return Err(Violation::Reply("a chunk longer than any legal one"));
        }
        let bytes = usize::try_from(self.length).ok().and_then(|length| cursor.take(length));
        Ok(bytes.map(Cursor::new))
    }
}
