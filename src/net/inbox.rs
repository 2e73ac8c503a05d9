//! The bytes of one connection, in order, wherever they lie.
//!
//! ```text
//!   staged (a header cut in two)   chunk (a provided buffer)      queue         socket
//!   [.......]                      [...............]              [....] [..]   ~~~~~
//!    ^ bytes() while it is not empty, else the chunk
//! ```
//!
//! With TLS a chunk holds records. Each is decrypted where it lies when its turn comes, and its data is the chunk's part
//! from `chunk_at` to `chunk_end`; one that was cut in two is put together in a buffer that then is the staged bytes:
//!
//! ```text
//!   chunk  [header data tag][header data tag][header da      next chunk  ta tag][header ..
//!                  ^ bytes() ^sealed_at              '---- cut --------------'
//! ```
//!
//! Small payloads lie in the chunk behind their header and are copied once (a 4 KiB copy is about 2 % of a 4 KiB write).
//! A large one is received straight into the buffer that will be written: the multishot receive is disarmed for it, and
//! as long as large payloads keep coming only headers are received ahead of them.

mod sealed;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use sealed::Sealed;

use crate::rt::net::{Receiver, Socket};
use crate::rt::{Buffer, Received};

/// Bytes missing from a payload from which on they are received in place. Below, another chunk and a copy cost less than
/// disarming and arming the multishot receive.
const IN_PLACE_MIN: usize = 32 << 10;

/// A connection's incoming bytes.
pub struct Inbox {
    receiver: Receiver,
    staged: Vec<u8>,
    staged_at: usize,
    chunk: Option<Received>,
    chunk_at: usize,
    chunk_end: usize,
    queue: VecDeque<Received>,
    /// The last payload was received in place: expect another, and receive no further than its header.
    in_place: bool,
    tls: Option<Box<Sealed>>,
}

impl Inbox {
    /// The incoming bytes of `socket`.
    pub fn new(socket: Rc<Socket>) -> Self {
        Self {
            receiver: Receiver::new(socket),
            staged: Vec::new(),
            staged_at: 0,
            chunk: None,
            chunk_at: 0,
            chunk_end: 0,
            queue: VecDeque::new(),
            in_place: false,
            tls: None,
        }
    }

    /// Bytes at hand, in one piece.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        if self.staged_at < self.staged.len() { &self.staged[self.staged_at..] } else { self.chunk_rest() }
    }

    /// Drops the first `count` of [`Inbox::bytes`].
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.bytes().len(), "consumed more than there is");
        if self.staged_at < self.staged.len() {
            self.staged_at += count;
            if self.staged_at == self.staged.len() {
                self.staged.clear();
                self.staged_at = 0;
            }
            return;
        }
        self.chunk_at += count;
        self.let_go();
    }

    /// Makes [`Inbox::bytes`] longer, towards `want` bytes in one piece. False at the end of the stream.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// The errno of `recv(2)`; `InvalidData` with a [`Fault`](super::tls::Fault) where TLS is broken.
    pub async fn fill(&mut self, want: usize) -> io::Result<bool> {
        if !self.chunk_rest().is_empty() && self.staged.is_empty() {
            self.stage(usize::MAX);
        }
        if self.tls.is_some() && self.chunk_rest().is_empty() {
            let staged = self.staged.len();
            if !self.fill_sealed().await? {
                return Ok(false);
            }
            if self.staged.len() > staged {
                return Ok(true);
            }
        } else if self.chunk_rest().is_empty() {
            self.chunk = None;
            let have = self.staged.len() - self.staged_at;
            let limit =
                if self.in_place { u32::try_from(want.saturating_sub(have).max(1)).ok() } else { None };
            let next = match self.queue.pop_front() {
                Some(received) => Some(received),
                None => self.receiver.next(limit).await?,
            };
            let Some(received) = next else { return Ok(false) };
            self.lay(received);
        }
        if self.staged_at < self.staged.len() {
            let have = self.staged.len() - self.staged_at;
            self.stage(want.saturating_sub(have).max(1));
        }
        Ok(true)
    }

    /// Fills `buffer[range]` with the next bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` where the stream ends before; else the errno of `recv(2)`.
    pub async fn read_exact(&mut self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        let mut at = range.start;
        loop {
            at += self.take(&mut buffer[at..range.end]);
            let missing = range.end - at;
            if missing == 0 {
                self.in_place &= range.len() >= IN_PLACE_MIN;
                return (Ok(()), buffer);
            }
            if missing >= IN_PLACE_MIN && self.tls.is_none() {
                return self.read_in_place(buffer, at..range.end).await;
            }
            match self.fill(missing).await {
                Ok(true) => {}
                Ok(false) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                Err(error) => return (Err(error), buffer),
            }
        }
    }

    /// Drops the next `count` bytes.
    ///
    /// # Errors
    /// As [`Inbox::read_exact`].
    pub async fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let have = self.bytes().len();
            if have == 0 {
                if !self.fill(1 << 20).await? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            let part = usize::try_from(count).unwrap_or(usize::MAX).min(have);
            self.consume(part);
            count -= part as u64;
        }
        Ok(())
    }

    /// Stops receiving, so that the socket can go to somebody else; answers how many bytes were received already.
    ///
    /// # Errors
    /// The errno of `recv(2)`.
    pub async fn stop(&mut self) -> io::Result<usize> {
        let mut arrived = Vec::new();
        self.receiver.disarm(&mut arrived).await?;
        self.queue.extend(arrived);
        let waiting: usize = self.queue.iter().map(|received| received.len()).sum();
        Ok(self.staged.len() - self.staged_at + self.chunk_rest().len() + waiting)
    }

    /// A payload that is small, or a command that has none, ends the expectation of large ones.
    #[inline]
    pub fn expect_small(&mut self) {
        self.in_place = false;
    }

    async fn read_in_place(&mut self, mut buffer: Buffer, range: Range<usize>) -> (io::Result<()>, Buffer) {
        let mut arrived = Vec::new();
        if let Err(error) = self.receiver.disarm(&mut arrived).await {
            return (Err(error), buffer);
        }
        self.queue.extend(arrived);
        let mut at = range.start;
        while at < range.end && !self.queue.is_empty() {
            if let Some(received) = self.queue.pop_front() {
                self.lay(received);
            }
            at += self.take(&mut buffer[at..range.end]);
        }
        self.in_place = true;
        let missing = range.end - at;
        let (result, buffer) = self.receiver.socket().receive_into(buffer, at..range.end).await;
        let result = match result {
            Ok(count) if count < missing => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        (result, buffer)
    }

    /// Copies what is at hand, up to the whole target; answers the count.
    fn take(&mut self, target: &mut [u8]) -> usize {
        let mut done = 0;
        while done < target.len() {
            let bytes = self.bytes();
            if bytes.is_empty() {
                // What is queued with TLS is not decrypted yet.
                if self.tls.is_some() {
                    break;
                }
                match self.queue.pop_front() {
                    Some(received) => {
                        self.lay(received);
                        continue;
                    }
                    None => break,
                }
            }
            let part = bytes.len().min(target.len() - done);
            target[done..done + part].copy_from_slice(&bytes[..part]);
            self.consume(part);
            done += part;
        }
        done
    }

    #[inline]
    fn chunk_rest(&self) -> &[u8] {
        self.chunk.as_ref().map_or(&[], |chunk| &chunk[self.chunk_at..self.chunk_end])
    }

    fn lay(&mut self, received: Received) {
        self.chunk_at = 0;
        self.chunk_end = received.len();
        self.chunk = Some(received);
    }

    /// Gives the chunk back once nothing of it is left.
    #[inline]
    fn let_go(&mut self) {
        if self.chunk_at == self.chunk_end
            && self.tls.as_ref().is_none_or(|tls| tls.is_past(self.chunk.as_ref()))
        {
            self.chunk = None;
        }
    }

    /// Moves up to `count` bytes of the chunk behind those that are staged.
    fn stage(&mut self, count: usize) {
        let rest = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk[self.chunk_at..self.chunk_end]);
        let part = count.min(rest.len());
        if self.staged_at > 0 {
            self.staged.drain(..self.staged_at);
            self.staged_at = 0;
        }
        self.staged.extend_from_slice(&rest[..part]);
        self.chunk_at += part;
        self.let_go();
    }
}
