//! Data out: what is gathered for one send, as records.
//!
//! ```text
//!   small:  [prefix][reply reply reply ...][suffix]                 copied together, sealed there
//!   large:  [prefix][16 KiB of the buffer ][suffix + prefix][16 KiB of the buffer ][suffix]
//!                    sealed where it lies                    sealed where it lies
//! ```
//!
//! All but payload lies in the gather's scratch, one piece after the other; so nothing is allocated after warm-up.

use std::cell::RefMut;

use super::fault::Fault;
use super::record::{PLAIN_MAX, PREFIX_MAX, SUFFIX_MAX};
use super::session::Session;
use crate::rt::Buffer;
use crate::rt::gather::Gather;

/// From here on a buffer is sealed where it lies. Below, a copy costs less than a record of its own, for us and more so
/// for the peer.
const IN_PLACE_MIN: usize = 8 << 10;

/// Seals what is appended into a gather. Dropped without [`Outbox::finish`] it leaves a torn record: do not send that.
pub struct Outbox<'a> {
    session: RefMut<'a, Session>,
    gather: &'a mut Gather,
    /// Plaintext in the record at the end of the gather that can take more.
    open: usize,
    prefix: usize,
    suffix: usize,
    fault: Option<Fault>,
}

impl<'a> Outbox<'a> {
    /// Appends records of `session` to `gather`.
    pub fn new(session: RefMut<'a, Session>, gather: &'a mut Gather) -> Self {
        let (prefix, suffix) = session.overhead();
        Self { session, gather, open: 0, prefix, suffix, fault: None }
    }

    /// Bytes gathered, with all that TLS adds so far.
    pub fn len(&self) -> usize {
        self.gather.len()
    }

    /// Whether nothing was gathered.
    pub fn is_empty(&self) -> bool {
        self.gather.is_empty()
    }

    /// Appends a copy of some bytes; neighbours share records.
    pub fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.fault.is_none() {
            if self.open == 0 {
                self.begin();
                self.gather.bytes(&[0; PREFIX_MAX][..self.prefix]);
            }
            let (part, rest) = bytes.split_at(bytes.len().min(PLAIN_MAX - self.open));
            self.gather.bytes(part);
            self.open += part.len();
            bytes = rest;
            if self.open == PLAIN_MAX {
                self.end();
            }
        }
    }

    /// Appends a buffer, its head and its payload. What it held is ciphertext from then on.
    pub fn buffer(&mut self, buffer: Buffer) {
        let length = buffer.framed().len();
        if length < IN_PLACE_MIN {
            return self.bytes(buffer.framed());
        }
        self.end();
        self.gather.hold(buffer);
        for start in (0..length).step_by(PLAIN_MAX) {
            let range = start..length.min(start + PLAIN_MAX);
            self.begin();
            let (mut prefix, mut suffix) = ([0; PREFIX_MAX], [0; SUFFIX_MAX]);
            let (prefix, suffix) = (&mut prefix[..self.prefix], &mut suffix[..self.suffix]);
            if self.fault.is_none() {
                let plain = &mut self.gather.held_mut()[range.clone()];
                self.fault = self.session.seal(plain, prefix, suffix).err();
            }
            if self.fault.is_some() {
                return;
            }
            self.gather.bytes(prefix);
            self.gather.framed_part(range);
            self.gather.bytes(suffix);
        }
    }

    /// Seals what is left open.
    ///
    /// # Errors
    /// [`Fault`] when something could not be sealed: the gather must not be sent.
    pub fn finish(mut self) -> Result<(), Fault> {
        self.end();
        self.fault.take().map_or(Ok(()), Err)
    }

    /// What has to be said before a record of data.
    fn begin(&mut self) {
        let mut words = Vec::new();
        match self.session.prepare(&mut words) {
            Ok(()) => self.gather.bytes(&words),
            Err(fault) => self.fault = Some(fault),
        }
    }

    fn end(&mut self) {
        let length = std::mem::take(&mut self.open);
        if length == 0 || self.fault.is_some() {
            return;
        }
        let mut suffix = [0; SUFFIX_MAX];
        let suffix = &mut suffix[..self.suffix];
        let (prefix, plain) = self.gather.tail_mut(self.prefix + length).split_at_mut(self.prefix);
        match self.session.seal(plain, prefix, suffix) {
            Ok(()) => self.gather.bytes(suffix),
            Err(fault) => self.fault = Some(fault),
        }
    }
}
