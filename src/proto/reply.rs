//! Replies as the server writes them.
//!
//! ```text
//! simple      magic32 error32 cookie64                               data of a READ follows
//! structured  magic32 flags16 type16 cookie64 length32               length bytes follow
//! extended    magic32 flags16 type16 cookie64 offset64 length64      length bytes follow
//! ```
//!
//! What precedes data is a [`Head`]: it lives on the stack, so a reply costs no allocation and
//! its data no copy. An extended reply repeats the offset of the *request* in every chunk.

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Deref;

use bytes::BufMut;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

use super::consts::{
    ChunkFlags, ChunkType, Command, CommandFlags, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC,
    STATUS_EXTENTS_MAX, STRING_LENGTH_MAX, STRUCTURED_REPLY_MAGIC,
};
use super::errno::Errno;
use super::option::clip;
use super::request::Request;
use super::session::Dialect;

/// A few bytes of header, held in place.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; Self::CAPACITY],
    length: u8,
}

impl Head {
    const CAPACITY: usize = 64;

    /// Nothing yet.
    #[inline]
    pub const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], length: 0 }
    }

    /// The bytes of a wire struct, as far as there is room; every header of NBD fits.
    #[inline]
    pub(super) fn of(wire: &(impl IntoBytes + Immutable)) -> Self {
        let mut head = Self::new();
        head.push(wire);
        head
    }

    #[inline]
    fn push(&mut self, wire: &(impl IntoBytes + Immutable)) {
        let start = usize::from(self.length);
        let source = wire.as_bytes();
        debug_assert!(start + source.len() <= Self::CAPACITY, "a header of NBD is at most 44 bytes");
        if let Some(room) = self.bytes.get_mut(start..start + source.len()) {
            room.copy_from_slice(source);
            self.length = u8::try_from(start + source.len()).unwrap_or(self.length);
        }
    }
}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Head {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Simple {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Structured {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Extended {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Hole {
    offset: U64,
    length: U32,
}

/// Success without data: ends every reply that no chunk ended.
#[inline]
pub fn done(dialect: Dialect, request: &Request) -> Head {
    match dialect {
        Dialect::Structured if request.command != Command::READ => simple(request, Errno::OK),
        _ => chunk(dialect, request, ChunkType::NONE, 0, true),
    }
}

/// What precedes `length` bytes of data at `offset`. `last` ends the reply, and a failure after
/// that can only be answered by closing. A simple reply has exactly one, the whole read.
///
/// No chunk may be empty: without bytes the head is that of [`done`], or nothing if not `last`.
#[inline]
pub fn data(dialect: Dialect, request: &Request, offset: u64, length: u32, last: bool) -> Head {
    if dialect == Dialect::Simple {
        return simple(request, Errno::OK);
    }
    if length == 0 {
        return empty(dialect, request, last);
    }
    let mut head = chunk(dialect, request, ChunkType::OFFSET_DATA, u64::from(length) + 8, last);
    head.push(&U64::new(offset));
    head
}

/// A whole chunk that says `length` bytes at `offset` read as zeroes. Not for simple replies,
/// nor for requests with DF. Without bytes it is what [`data`] is.
#[inline]
pub fn hole(dialect: Dialect, request: &Request, offset: u64, length: u32, last: bool) -> Head {
    debug_assert!(dialect != Dialect::Simple, "a simple reply has no holes");
    if length == 0 {
        return empty(dialect, request, last);
    }
    let mut head = chunk(dialect, request, ChunkType::OFFSET_HOLE, 12, last);
    head.push(&Hole { offset: U64::new(offset), length: U32::new(length) });
    head
}

#[cold]
fn empty(dialect: Dialect, request: &Request, last: bool) -> Head {
    if last { done(dialect, request) } else { Head::new() }
}

/// An error that ends the reply, with a sentence where the dialect has room for one. `at` is
/// the first byte that failed; it is left out if it is not in the range of the request.
pub fn error(
    out: &mut Vec<u8>,
    dialect: Dialect,
    request: &Request,
    errno: Errno,
    text: &str,
    at: Option<u64>,
) {
    debug_assert!(errno != Errno::OK, "an error must not look like success");
    let errno = if errno == Errno::OK { Errno::EIO } else { errno };
    if dialect == Dialect::Simple {
        out.extend_from_slice(&simple(request, errno));
        return;
    }
    let in_range = |at: &u64| *at >= request.offset && request.end().is_none_or(|end| *at < end);
    let at = at.filter(in_range);
    let text = clip(text, STRING_LENGTH_MAX);
    let text_length = u16::try_from(text.len()).unwrap_or(0);
    let (kind, tail) = if at.is_some() { (ChunkType::ERROR_OFFSET, 8) } else { (ChunkType::ERROR, 0) };
    out.extend_from_slice(&chunk(dialect, request, kind, 6 + u64::from(text_length) + tail, true));
    out.put_u32(errno.0);
    out.put_u16(text_length);
    out.extend_from_slice(&text.as_bytes()[..usize::from(text_length)]);
    if let Some(at) = at {
        out.put_u64(at);
    }
}

/// The extents `(length, status)` of one meta context, from the request's offset on. They are
/// brought into the form the wire demands: none empty, equal neighbours merged, at most 2^20,
/// none that starts past the range; one only, cut to the range, if REQ_ONE asks so; and cut to 32 bits
/// where the header is compact. No extent at all becomes one of status 0, which claims nothing.
///
/// The caller keeps the extents within the export's maximum payload (8 or 16 bytes each).
/// Not for simple replies.
pub fn block_status(
    out: &mut Vec<u8>,
    dialect: Dialect,
    request: &Request,
    context_id: u32,
    extents: &[(u64, u64)],
    last: bool,
) {
    debug_assert!(dialect != Dialect::Simple, "block status needs structured replies");
    let extended = dialect == Dialect::Extended;
    let start = out.len();
    let kind = if extended { ChunkType::BLOCK_STATUS_EXT } else { ChunkType::BLOCK_STATUS };
    let head = chunk(dialect, request, kind, 0, last);
    out.extend_from_slice(&head);
    out.put_u32(context_id);
    if extended {
        out.extend_from_slice(&[0; 4]);
    }
    let mut count: u32 = 0;
    for (length, status) in Merged::new(request, extended, extents) {
        if extended {
            out.put_u64(length);
            out.put_u64(status);
        } else {
            out.put_u32(narrow(length));
            out.put_u32(narrow(status));
        }
        count += 1;
    }
    // The chunk's length and count are known only now: write them over the zeroes left for them.
    let length = out.len() - start - head.len();
    let field = start + head.len();
    if extended {
        put(out, field - 8, &u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes());
        put(out, field + 4, &count.to_be_bytes());
    } else {
        put(out, field - 4, &u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }
}

/// Extents in the form of [`block_status`].
struct Merged<'a> {
    extents: std::slice::Iter<'a, (u64, u64)>,
    pending: Option<(u64, u64)>,
    range: u64,
    covered: u64,
    left: usize,
    length_max: u64,
    cut: bool,
}

impl<'a> Merged<'a> {
    /// Longest extent with 32 bits that is aligned to every possible block size.
    const LENGTH_MAX: u64 = 0xffff_0000;

    fn new(request: &Request, extended: bool, extents: &'a [(u64, u64)]) -> Self {
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        Self {
            extents: extents.iter(),
            pending: extents.is_empty().then_some((request.length.max(1), 0)),
            range: request.length.max(1),
            covered: 0,
            left: if one { 1 } else { STATUS_EXTENTS_MAX },
            length_max: if extended { u64::MAX } else { Self::LENGTH_MAX },
            cut: one,
        }
    }
}

impl Iterator for Merged<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        if self.left == 0 || self.covered >= self.range {
            return None;
        }
        let mut current = self.pending.take();
        for &(length, status) in self.extents.by_ref() {
            match &mut current {
                _ if length == 0 => {}
                None => current = Some((length, status)),
                Some(open) if open.1 == status => open.0 = open.0.saturating_add(length),
                Some(_) => {
                    self.pending = Some((length, status));
                    break;
                }
            }
        }
        let (mut length, status) = current.or_else(|| (self.covered == 0).then_some((self.range, 0)))?;
        if self.cut {
            length = length.min(self.range);
        }
        self.left -= 1;
        self.covered = self.covered.saturating_add(length);
        if length > self.length_max {
            // What follows would no longer be adjacent; the client asks on from here.
            length = self.length_max;
            self.left = 0;
        }
        Some((length, status))
    }
}

#[inline]
fn simple(request: &Request, errno: Errno) -> Head {
    Head::of(&Simple {
        magic: U32::new(SIMPLE_REPLY_MAGIC),
        error: U32::new(errno.0),
        cookie: U64::new(request.cookie),
    })
}

#[inline]
fn chunk(dialect: Dialect, request: &Request, kind: ChunkType, length: u64, last: bool) -> Head {
    let flags = U16::new(if last { ChunkFlags::DONE.0 } else { 0 });
    let (kind, cookie) = (U16::new(kind.0), U64::new(request.cookie));
    match dialect {
        Dialect::Simple => simple(request, Errno::OK),
        Dialect::Structured => Head::of(&Structured {
            magic: U32::new(STRUCTURED_REPLY_MAGIC),
            flags,
            kind,
            cookie,
            length: U32::new(narrow(length)),
        }),
        Dialect::Extended => Head::of(&Extended {
            magic: U32::new(EXTENDED_REPLY_MAGIC),
            flags,
            kind,
            cookie,
            offset: U64::new(request.offset),
            length: U64::new(length),
        }),
    }
}

#[inline]
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = out.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}
