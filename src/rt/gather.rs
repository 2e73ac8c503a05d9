//! One gathered message: small heads copied together, payloads by reference, all sent by one `sendmsg`.
//!
//! ```text
//!   bytes(head) bytes(head) buffer(b0: head+payload) part(b1, range) cached(range of a file) ...
//!   '---- one iovec ------' '------ one iovec -----' '- one iovec -'
//! ```
//!
//! A gather is used again and again: after warm-up, gathering allocates nothing.

use std::ops::Range;
use std::ptr;

use super::buffer::Buffer;
use super::cached::Cached;

/// Most iovecs the kernel takes in one message (`UIO_MAXIOV`).
const IOVECS_MAX: usize = 1024;
/// Longest iovec, so that a message can end where it lets others in (`heavy.rs`): a little more than a quarter of 256 KiB
/// with their header, which so take four and not five.
const IOVEC_MAX: usize = (64 << 10) + 512;

enum Piece {
    Scratch(Range<usize>),
    Framed(usize),
    Part(usize, Range<usize>),
    FramedPart(usize, Range<usize>),
    Blob(usize),
    Cached(usize),
}

/// What one send hands to the kernel; owns everything it points to.
pub struct Gather {
    scratch: Vec<u8>,
    pieces: Vec<Piece>,
    buffers: Vec<Buffer>,
    blobs: Vec<Vec<u8>>,
    cached: Vec<Cached>,
    more: bool,
    length: usize,
    iovecs: Vec<libc::iovec>,
    sent_iovecs: usize,
    header: libc::msghdr,
}

impl Default for Gather {
    fn default() -> Self {
        Self::new()
    }
}

impl Gather {
    /// An empty gather.
    pub fn new() -> Self {
        let header = libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        Self {
            scratch: Vec::new(),
            pieces: Vec::new(),
            buffers: Vec::new(),
            blobs: Vec::new(),
            cached: Vec::new(),
            more: false,
            length: 0,
            iovecs: Vec::new(),
            sent_iovecs: 0,
            header,
        }
    }

    /// Bytes gathered.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was gathered.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends a copy of a few bytes (a reply without payload); neighbours share an iovec.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let start = self.scratch.len();
        self.scratch.extend_from_slice(bytes);
        self.length += bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Scratch(range)) => range.end = self.scratch.len(),
            _ => self.pieces.push(Piece::Scratch(start..self.scratch.len())),
        }
    }

    /// Appends a buffer: its head and its payload.
    pub fn buffer(&mut self, buffer: Buffer) {
        self.length += buffer.framed().len();
        self.pieces.push(Piece::Framed(self.buffers.len()));
        self.buffers.push(buffer);
    }

    /// Takes a buffer whose parts are appended by [`Gather::part`].
    pub fn hold(&mut self, buffer: Buffer) {
        self.buffers.push(buffer);
    }

    /// Appends a part of the payload of the buffer that was held last.
    ///
    /// # Panics
    /// When none was held or the range lies outside of it.
    pub fn part(&mut self, range: Range<usize>) {
        let index = self.buffers.len().checked_sub(1).expect("hold a buffer first");
        self.length += self.buffers[index][range.clone()].len();
        self.pieces.push(Piece::Part(index, range));
    }

    /// Head and payload of the buffer that was held last, to be changed before a part is appended.
    ///
    /// # Panics
    /// When none was held.
    pub fn held_mut(&mut self) -> &mut [u8] {
        self.buffers.last_mut().expect("hold a buffer first").framed_mut()
    }

    /// Appends a part of the head and payload of the buffer that was held last.
    ///
    /// # Panics
    /// As [`Gather::part`].
    pub fn framed_part(&mut self, range: Range<usize>) {
        let index = self.buffers.len().checked_sub(1).expect("hold a buffer first");
        self.length += self.buffers[index].framed()[range.clone()].len();
        self.pieces.push(Piece::FramedPart(index, range));
    }

    /// The last `count` bytes that were appended by [`Gather::bytes`].
    ///
    /// # Panics
    /// When there are fewer.
    pub fn tail_mut(&mut self, count: usize) -> &mut [u8] {
        let start = self.scratch.len().checked_sub(count).expect("so many bytes were appended");
        &mut self.scratch[start..]
    }

    /// Appends bytes that are too many to copy.
    pub fn blob(&mut self, bytes: Vec<u8>) {
        self.length += bytes.len();
        self.pieces.push(Piece::Blob(self.blobs.len()));
        self.blobs.push(bytes);
    }

    /// Appends what the page cache holds of a file.
    pub fn cached(&mut self, cached: Cached) {
        self.length += cached.len();
        self.pieces.push(Piece::Cached(self.cached.len()));
        self.cached.push(cached);
    }

    /// Gives back what only a burst needed, for a connection that may rest for long and be one of 10,000. Call it when empty.
    pub fn rest(&mut self) {
        // Room for 32 small replies with their payload, encrypted: with less a busy connection would allocate in each burst.
        const KEPT: usize = 256 << 10;
        if self.scratch.capacity() > KEPT {
            self.scratch.shrink_to(KEPT);
        }
    }

    /// Says that more follows at once, so that TCP need not send a small packet (`MSG_MORE`).
    pub fn more_follows(&mut self) {
        self.more = true;
    }

    /// Takes back the buffer that was appended or held last, so that it can be sent again. Clear the gather then.
    pub fn reclaim(&mut self) -> Option<Buffer> {
        self.buffers.pop()
    }

    /// Whether the kernel takes all of it in one message.
    pub fn is_one_message(&self) -> bool {
        self.pieces.len() + self.length / IOVEC_MAX < IOVECS_MAX
    }

    /// Forgets what was gathered; its buffers go back to the pool.
    pub fn clear(&mut self) {
        self.scratch.clear();
        self.pieces.clear();
        self.buffers.clear();
        self.blobs.clear();
        self.cached.clear();
        self.more = false;
        self.iovecs.clear();
        self.length = 0;
        self.sent_iovecs = 0;
    }

    /// Fixes the addresses: nothing may be appended until [`Gather::clear`].
    pub(super) fn lay_out(&mut self) {
        self.iovecs.clear();
        self.sent_iovecs = 0;
        for piece in &self.pieces {
            let bytes: &[u8] = match piece {
                Piece::Scratch(range) => &self.scratch[range.clone()],
                Piece::Framed(index) => self.buffers[*index].framed(),
                Piece::Part(index, range) => &self.buffers[*index][range.clone()],
                Piece::FramedPart(index, range) => &self.buffers[*index].framed()[range.clone()],
                Piece::Blob(index) => &self.blobs[*index],
                Piece::Cached(index) => {
                    // No slice: what others do to the file may change these bytes at any time.
                    let cached = &self.cached[*index];
                    for at in (0..cached.len()).step_by(IOVEC_MAX) {
                        let iov_base = cached.start().wrapping_add(at).cast_mut().cast();
                        self.iovecs.push(libc::iovec { iov_base, iov_len: IOVEC_MAX.min(cached.len() - at) });
                    }
                    continue;
                }
            };
            for part in bytes.chunks(IOVEC_MAX) {
                let base = part.as_ptr().cast_mut().cast();
                self.iovecs.push(libc::iovec { iov_base: base, iov_len: part.len() });
            }
        }
    }

    /// All that was gathered from memory of ours, in order; what lies in files of others is left out.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|piece| match piece {
            Piece::Scratch(range) => &self.scratch[range.clone()],
            Piece::Framed(index) => self.buffers[*index].framed(),
            Piece::Part(index, range) => &self.buffers[*index][range.clone()],
            Piece::FramedPart(index, range) => &self.buffers[*index].framed()[range.clone()],
            Piece::Blob(index) => &self.blobs[*index],
            Piece::Cached(_) => &[],
        })
    }

    /// The same in one piece.
    #[cfg(test)]
    pub(crate) fn contents(&self) -> Vec<u8> {
        self.slices().collect::<Vec<_>>().concat()
    }

    pub(super) fn flags(&self) -> i32 {
        if self.more { libc::MSG_MORE } else { 0 }
    }

    pub(super) fn remains(&self) -> bool {
        self.sent_iovecs < self.iovecs.len()
    }

    /// The msghdr of what is sent next, valid while the gather is kept in its box. It ends with the iovec that reaches
    /// `enough` bytes.
    pub(super) fn message(&mut self, enough: usize) -> *const libc::msghdr {
        let rest = &mut self.iovecs[self.sent_iovecs..];
        let (mut count, mut length) = (0, 0);
        for iovec in rest.iter().take(IOVECS_MAX) {
            if length >= enough {
                break;
            }
            count += 1;
            length += iovec.iov_len;
        }
        self.header.msg_iov = rest.as_mut_ptr();
        self.header.msg_iovlen = count;
        &raw const self.header
    }

    /// Notes that `count` bytes went out.
    pub(super) fn advance(&mut self, mut count: usize) {
        while count > 0 && self.remains() {
            let first = &mut self.iovecs[self.sent_iovecs];
            if count < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(count);
                first.iov_len -= count;
                return;
            }
            count -= first.iov_len;
            self.sent_iovecs += 1;
        }
    }
}
