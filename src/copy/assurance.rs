//! Nothing that a server answered gets lost with the server.
//!
//! ```text
//!   step written --> ledger --every FLUSH_BYTES, one at a time: flush, and no reconnect meanwhile--> forgotten
//!                      |
//!                      '--end of the copy: reconnects since? --> from a file or server: copied again
//!                                                            '-> from a pipe: read back, compared by digest
//! ```
//!
//! A connection may break because the network did, and then nothing is lost; from here that looks the same as a server
//! that was killed, or a machine that lost power, and came back with what it had made durable.

use std::mem;
use std::rc::Rc;

use super::end::End;
use super::engine::{Deed, Engine};
use super::error::CopyError;
use super::ledger::Entry;
use crate::client;
use crate::proto::Errno;
use crate::rt::sync::{Either, select};
use crate::rt::{self, Buffer};

/// After so much data the server is asked to make it durable, so that a restart costs no more than copying this again.
const FLUSH_BYTES: u64 = 4 << 30;
/// How often the same may be in doubt.
const ROUNDS_MAX: usize = 16;

impl Engine {
    /// Remembers what was written, if its destination may forget it.
    pub(super) fn enter(&self, entry: Entry) {
        if self.destination.may_forget() {
            self.ledger.borrow_mut().enter(entry);
        }
    }

    /// So much more data was written or is about to be. Waits for the last flush when it is time for the next.
    pub(super) async fn flush_now_and_then(self: &Rc<Self>, bytes: u64) {
        let unflushed = self.unflushed.get() + bytes;
        self.unflushed.set(unflushed);
        if unflushed < FLUSH_BYTES || !self.destination.may_forget() {
            return;
        }
        self.unflushed.set(0);
        if let Either::Second(()) = select(self.flushing.acquire(1), self.stopped()).await {
            return;
        }
        let engine = Rc::clone(self);
        rt::spawn(async move {
            let reconnects = engine.destination.reconnects();
            let written = mem::take(&mut *engine.ledger.borrow_mut());
            match engine.destination.flush().await {
                Err(error) if !is_no_flush(&error) => engine.fail(error),
                Ok(()) if engine.destination.reconnects() == reconnects => {
                    let doubtful = { written }.take_doubtful(reconnects);
                    doubtful.into_iter().for_each(|entry| engine.enter(entry));
                }
                _ => engine.ledger.borrow_mut().absorb(written),
            }
            engine.flushing.release(1);
        });
    }

    /// Makes sure that the destination has everything; with `durable`, for good. No step is under way.
    pub(super) async fn assure(self: &Rc<Self>, durable: bool) -> Result<(), CopyError> {
        for _ in 0..ROUNDS_MAX {
            // While a flush is under way the ledger is with it.
            self.flushing.acquire(1).await;
            self.flushing.release(1);
            self.settle().await?;
            let reconnects = self.destination.reconnects();
            let doubtful = self.ledger.borrow_mut().take_doubtful(reconnects);
            if !doubtful.is_empty() {
                self.repeat(doubtful).await?;
                continue;
            }
            if !durable {
                return Ok(());
            }
            self.destination.flush().await?;
            if self.destination.reconnects() == reconnects {
                return Ok(());
            }
        }
        Err(CopyError::Unsteady { label: self.destination.label().to_owned(), times: ROUNDS_MAX })
    }

    async fn repeat(self: &Rc<Self>, doubtful: Vec<Entry>) -> Result<(), CopyError> {
        if !matches!(self.source, End::Stream(_)) {
            self.is_repeating.set(true);
            let ranges = doubtful.into_iter().map(|entry| entry.range).collect();
            let outcome = self.walk(Deed::Copy, ranges).await;
            self.is_repeating.set(false);
            return outcome;
        }
        for entry in doubtful {
            self.slots.acquire(1).await;
            let engine = Rc::clone(self);
            rt::spawn(async move {
                let outcome = engine.recognize(entry).await;
                engine.end_step(outcome);
            });
        }
        self.settle().await
    }

    /// Looks whether what cannot be written again is still there.
    async fn recognize(&self, entry: Entry) -> Result<(), CopyError> {
        let reconnects = self.destination.reconnects();
        let length = entry.range.end - entry.range.start;
        let buffer = Buffer::acquire(usize::try_from(length).unwrap_or(usize::MAX)).await;
        let (result, buffer) = self.destination.read(entry.range.start, buffer).await;
        result?;
        if entry.digest != Some(crc32fast::hash(&buffer)) {
            return Err(CopyError::Forgotten {
                destination: self.destination.label().to_owned(),
                source_name: self.source.label().to_owned(),
                offset: entry.range.start,
                length,
            });
        }
        self.enter(Entry { reconnects, ..entry });
        Ok(())
    }
}

/// A server that offers FLUSH and then knows of none (nbdkit, oldstyle): no matter, where nobody asked for it.
fn is_no_flush(error: &CopyError) -> bool {
    let CopyError::Request { error: client::Error::Failed { error, .. }, .. } = error else { return false };
    matches!(error.errno, Errno::EINVAL | Errno::ENOTSUP)
}
