//! What comes through TLS: records to bytes, decrypted where they lie.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::Inbox;
use crate::net::tls::{Fault, Finished, Opened, Session};
use crate::rt::Received;

/// Type, version and length: what a record's length can be told from.
const HEADER: usize = 5;

/// What is not decrypted yet.
pub(super) struct Sealed {
    session: Rc<RefCell<Session>>,
    /// Where in the chunk the next record begins.
    at: usize,
    /// The beginning of a record that goes on in the next chunk; at first, what came behind the handshake.
    cut: Vec<u8>,
    /// The stream has ended.
    ended: bool,
}

enum Next {
    /// The chunk has a data part, or bytes were staged.
    Data,
    /// The peer said that nothing follows.
    Closed,
    /// The next record is not here yet; the chunk is given back.
    Starved,
}

impl Sealed {
    /// Whether every record in `chunk` was looked at.
    pub(super) fn is_past(&self, chunk: Option<&Received>) -> bool {
        chunk.is_none_or(|chunk| self.at >= chunk.len())
    }
}

impl Inbox {
    /// From here on everything is a record of `finished`'s session, which is shared with whoever sends.
    ///
    /// # Panics
    /// When there are bytes at hand: the handshake takes all there are.
    pub fn secure(&mut self, finished: Finished) -> Rc<RefCell<Session>> {
        assert!(self.bytes().is_empty() && self.tls.is_none(), "the handshake takes all bytes");
        let Finished { session, plaintext, ciphertext } = finished;
        let session = Rc::new(RefCell::new(session));
        self.staged = plaintext;
        self.staged_at = 0;
        self.in_place = false;
        let shared = Rc::clone(&session);
        self.tls = Some(Box::new(Sealed { session: shared, at: 0, cut: ciphertext, ended: false }));
        session
    }

    /// Whether the stream ended without the peer's word that it does (`close_notify`): something may have been cut off.
    pub fn was_cut_off(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.ended && !tls.session.borrow().is_closed())
    }

    /// Reads and drops up to `count` more bytes, whatever they are.
    ///
    /// # Errors
    /// As [`Inbox::read_exact`].
    pub async fn run_out(&mut self, count: u64) -> io::Result<()> {
        self.tls = None;
        self.staged.clear();
        self.staged_at = 0;
        self.chunk = None;
        (self.chunk_at, self.chunk_end) = (0, 0);
        self.skip(count).await
    }

    /// Decrypts the next record that holds data: as the chunk's part, or onto the staged bytes where it was cut in two.
    /// False at the end. Dropping the future loses nothing.
    pub(super) async fn fill_sealed(&mut self) -> io::Result<bool> {
        loop {
            match self.open_next()? {
                Next::Data => return Ok(true),
                Next::Closed => return Ok(false),
                Next::Starved => {}
            }
            let next = match self.queue.pop_front() {
                Some(received) => Some(received),
                None => self.receiver.next(None).await?,
            };
            let Some(tls) = &mut self.tls else { return Ok(false) };
            let Some(received) = next else {
                tls.ended = true;
                return Ok(false);
            };
            tls.at = 0;
            self.chunk = Some(received);
            (self.chunk_at, self.chunk_end) = (0, 0);
        }
    }

    fn open_next(&mut self) -> Result<Next, Fault> {
        let Some(tls) = &mut self.tls else { return Ok(Next::Closed) };
        let Sealed { session, at, cut, .. } = &mut **tls;
        let session = &mut *session.borrow_mut();
        loop {
            let sealed: &mut [u8] = match &mut self.chunk {
                Some(chunk) => &mut chunk[*at..],
                None => &mut [],
            };
            if session.is_closed() {
                return Ok(Next::Closed);
            }
            if cut.is_empty() {
                let length = session.record_length(sealed)?;
                let Some(length) = length.filter(|length| *length <= sealed.len()) else {
                    cut.extend_from_slice(sealed);
                    self.chunk = None;
                    (self.chunk_at, self.chunk_end) = (0, 0);
                    return Ok(Next::Starved);
                };
                let opened = session.open(&mut sealed[..length])?;
                if let Opened::Data(range) = opened {
                    (self.chunk_at, self.chunk_end) = (*at + range.start, *at + range.end);
                    *at += length;
                    return Ok(Next::Data);
                }
                *at += length;
                continue;
            }
            let length = session.record_length(cut)?.unwrap_or(HEADER);
            if cut.len() < length {
                let part = sealed.len().min(length - cut.len());
                if part == 0 {
                    self.chunk = None;
                    (self.chunk_at, self.chunk_end) = (0, 0);
                    return Ok(Next::Starved);
                }
                cut.extend_from_slice(&sealed[..part]);
                *at += part;
                continue;
            }
            let opened = session.open(&mut cut[..length])?;
            let Opened::Data(range) = opened else {
                cut.drain(..length);
                continue;
            };
            if self.staged_at == self.staged.len() && cut.len() == length {
                std::mem::swap(&mut self.staged, cut);
                self.staged.truncate(range.end);
                self.staged_at = range.start;
                cut.clear();
            } else {
                self.staged.extend_from_slice(&cut[range]);
                cut.drain(..length);
            }
            return Ok(Next::Data);
        }
    }
}
