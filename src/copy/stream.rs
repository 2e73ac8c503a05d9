//! What has only one direction: a pipe, a terminal, a socket, a character device; also a file that standard input or output is
//! in the middle of.
//!
//! Reads come one after the other. Writes come from many tasks, and each waits until all before it are done.

use std::cell::Cell;
use std::io;

use super::error::CopyError;
use crate::rt::sync::Event;
use crate::rt::{self, Buffer};

/// A stream, read from or written to.
pub(super) struct Stream {
    pub(super) file: rt::File,
    pub(super) label: String,
    /// Where a regular file is begun; of no effect elsewhere.
    pub(super) base: u64,
    /// The next byte to be written.
    turn: Cell<u64>,
    stopped: Cell<bool>,
    moved: Event,
}

impl Stream {
    pub(super) fn new(file: rt::File, label: String, base: u64) -> Self {
        Self { file, label, base, turn: Cell::new(0), stopped: Cell::new(false), moved: Event::new() }
    }

    /// Fills `buffer` with what comes next, from byte `at` on, and shortens it where the stream ends.
    pub(super) async fn fill(&self, at: u64, mut buffer: Buffer) -> Result<Buffer, CopyError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let (offset, range) = (at + filled as u64, filled..buffer.len());
            let (result, back) = self.file.read_some(buffer, range, self.base + offset).await;
            buffer = back;
            match result.map_err(|error| self.failed("read", offset, error))? {
                0 => break,
                count => filled += count,
            }
        }
        buffer.set_len(filled);
        Ok(buffer)
    }

    /// Writes all of `buffer` as soon as it is the turn of byte `at`.
    pub(super) async fn write(&self, at: u64, buffer: Buffer) -> Result<(), CopyError> {
        if !self.is_turn_of(at).await {
            return Ok(()); // whoever stopped it tells why
        }
        let length = buffer.len();
        let (result, _) = self.file.write_all(buffer, 0..length, self.base + at, false).await;
        result.map_err(|error| self.failed("write", at, error))?;
        self.turn.set(at + length as u64);
        self.moved.notify();
        Ok(())
    }

    /// Lets all who wait for their turn go, without it.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.moved.notify();
    }

    async fn is_turn_of(&self, at: u64) -> bool {
        loop {
            let moved = self.moved.wait();
            if self.stopped.get() {
                return false;
            }
            if self.turn.get() == at {
                return true;
            }
            moved.await;
        }
    }

    fn failed(&self, action: &'static str, offset: u64, error: io::Error) -> CopyError {
        CopyError::Io { action, label: self.label.clone(), offset, error }
    }
}
