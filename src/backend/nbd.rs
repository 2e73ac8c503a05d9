//! An export of another NBD server, on one shard: requests go on to it, holes and block status come back as it tells them.
//!
//! ```text
//!   shard 0:  Nbd -- Client -- connections --.
//!   shard 1:  Nbd -- Client -- connections ---+-- the server that Upstream names
//!                \_ made by the first request
//! ```
//!
//! The client reconnects by its own rules while requests wait. If the export comes back different, or the server breaks the
//! protocol, a client is of no use any more; the next request makes another, which compares what it finds with what was
//! there when the export was opened.
//!
//! A block of the other server's that a request changes in part is read, changed and written back. [`Ranges`] keeps other
//! requests, of all shards, away from it meanwhile.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::ranges::{Held, Hold};
use super::upstream::Upstream;
use super::{Done, Extent, Extents, Failure, Zero};
use crate::client::{AllocationFlags, Client, CommandFlags, Error};
use crate::rt::sync::Semaphore;
use crate::rt::{self, Buffer};

/// What is told of a range: runs of bytes of one status, in order, from its first byte on.
pub type Runs = Vec<(u64, u64)>;

const ALLOCATION: &str = "base:allocation";
/// How long a failed attempt to make a client answers for the requests that come next.
const REST: Duration = Duration::from_secs(1);

/// Another server's export, on one shard.
pub struct Nbd {
    upstream: Arc<Upstream>,
    client: RefCell<Option<Client>>,
    /// Whose turn it is to make a client.
    opening: Semaphore,
    /// Until when, in [`rt::clock_ns`], and how, attempts to make one are answered without making one.
    refused: RefCell<Option<(u64, Failure)>>,
    /// How often the client had reconnected when the first write was answered that no flush has covered yet.
    unflushed_since: Cell<Option<u64>>,
}

impl Nbd {
    pub(super) fn attach(upstream: Arc<Upstream>) -> Self {
        let (client, refused) = (RefCell::new(None), RefCell::new(None));
        Self { upstream, client, opening: Semaphore::new(1), refused, unflushed_since: Cell::new(None) }
    }

    pub(super) async fn read(&self, buffer: Buffer, offset: u64) -> Done {
        let (result, buffer) = self.read_sparse(buffer, offset).await;
        (result.map(drop), buffer)
    }

    /// As `read`; answers with the holes that the other server told, in order.
    pub async fn read_sparse(
        &self,
        buffer: Buffer,
        offset: u64,
    ) -> (Result<Vec<Range<u64>>, Failure>, Buffer) {
        let client = match self.client().await {
            Ok(client) => client,
            Err(failure) => return (Err(failure), buffer),
        };
        let (result, buffer) = client.read_sparse(self.position(offset), buffer, CommandFlags::NONE).await;
        let base = self.upstream.base;
        let own = |hole: Range<u64>| hole.start.saturating_sub(base)..hole.end.saturating_sub(base);
        let holes = result.map(|holes| holes.into_iter().map(own).collect());
        (holes.map_err(|error| self.failed(&error)), buffer)
    }

    pub(super) async fn write(&self, buffer: Buffer, offset: u64, fua: bool) -> Done {
        let position = self.position(offset);
        let (client, _held) = match self.hold(position, buffer.len() as u64).await {
            Ok(held) => held,
            Err(failure) => return (Err(failure), buffer),
        };
        let (result, buffer) = client.write_with(position, buffer, fua_flag(fua)).await;
        self.note_unflushed(&client);
        (result.map_err(|error| self.failed(&error)), buffer)
    }

    pub(super) async fn flush(&self) -> Result<(), Failure> {
        let client = self.client().await?;
        let since = self.unflushed_since.take();
        let flushed = client.flush().await;
        if flushed.is_ok() && since.is_some_and(|since| since != client.reconnects()) {
            tracing::warn!(
                "{}: it was gone between writes and the flush that covers them: if its machine died, or it keeps writes to \
                 itself, what it had answered may be lost",
                self.upstream.uri
            );
        }
        flushed.map_err(|error| self.failed(&error))
    }

    fn note_unflushed(&self, client: &Client) {
        let since = self.unflushed_since.get().unwrap_or_else(|| client.reconnects());
        self.unflushed_since.set(Some(since));
    }

    pub(super) async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), Failure> {
        let position = self.position(offset);
        let (client, _held) = self.hold(position, length).await?;
        self.note_unflushed(&client);
        client.trim(position, length, fua_flag(fua)).await.map_err(|error| self.failed(&error))
    }

    pub(super) async fn zero(&self, offset: u64, length: u64, how: Zero, fua: bool) -> Result<(), Failure> {
        let position = self.position(offset);
        let (client, _held) = self.hold(position, length).await?;
        let flags = [
            (fua, CommandFlags::FUA),
            (!how.may_punch, CommandFlags::NO_HOLE),
            (how.fast_only, CommandFlags::FAST_ZERO),
        ];
        let flags = flags.into_iter().filter(|(holds, _)| *holds);
        let flags = flags.fold(CommandFlags::NONE, |flags, (_, flag)| flags | flag);
        self.note_unflushed(&client);
        client.write_zeroes(position, length, flags).await.map_err(|error| self.failed(&error))
    }

    pub(super) async fn cache(&self, offset: u64, length: u64) -> Result<(), Failure> {
        let client = self.client().await?;
        client.cache(self.position(offset), length).await.map_err(|error| self.failed(&error))
    }

    /// By `base:allocation`; without it all is data.
    pub(super) async fn extents(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Extents, Failure> {
        let data = || vec![(length, 0)];
        let runs = match self.upstream.contexts().iter().position(|name| name == ALLOCATION) {
            Some(number) => {
                let told = self.status(&[number], offset, length, extents_max).await?;
                told.into_iter().next().unwrap_or_else(data)
            }
            None => data(),
        };
        let has = |status: u64, flag: AllocationFlags| status & u64::from(flag.0) != 0;
        let extent = |(length, status)| Extent {
            length,
            hole: has(status, AllocationFlags::HOLE),
            zero: has(status, AllocationFlags::ZERO),
        };
        Ok(runs.into_iter().map(extent).collect())
    }

    /// What each of the contexts, by its number in `Upstream::contexts`, says of the range: at least one run, at most
    /// `extents_max`, as far as the other server told.
    pub async fn status(
        &self,
        contexts: &[usize],
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Runs>, Failure> {
        let names = self.upstream.contexts();
        let asked: Vec<_> = contexts
            .iter()
            .filter_map(|number| self.upstream.theirs().get(*number))
            .map(String::as_str)
            .collect();
        let mut told = Vec::new();
        if !asked.is_empty() {
            let client = self.client().await?;
            let status = client.block_status(self.position(offset), length, &asked, extents_max == 1);
            told = status.await.map_err(|error| self.failed(&error))?;
        }
        let of = |number: &usize| {
            let name = names.get(*number);
            let status = told.iter().find(|status| Some(&status.context) == name);
            let runs = status.into_iter().flat_map(|status| &status.extents).take(extents_max);
            let runs: Runs = runs.map(|extent| (extent.length, extent.status)).collect();
            // Our own context, which says that we are in the way and nothing of any range.
            if runs.is_empty() { vec![(length, 0)] } else { runs }
        };
        Ok(contexts.iter().map(of).collect())
    }

    /// Says goodbye to the other server.
    pub(super) async fn close(&self) {
        let client = self.client.take();
        if let Some(client) = client {
            client.disconnect().await;
        }
    }

    fn position(&self, offset: u64) -> u64 {
        self.upstream.base + offset
    }

    /// The client, and the range if it has to be held.
    async fn hold(&self, start: u64, length: u64) -> Result<(Client, Option<Held>), Failure> {
        let client = self.client().await?;
        let block = self.upstream.block;
        if block <= 1 {
            return Ok((client, None));
        }
        let end = start.saturating_add(length);
        let is_whole = start.is_multiple_of(block) && (end.is_multiple_of(block) || end == client.size());
        let hold = if is_whole { Hold::Shared } else { Hold::Alone };
        let blocks = start / block * block..end.checked_next_multiple_of(block).unwrap_or(end);
        let held = self.upstream.ranges.hold(blocks, hold).await?;
        Ok((client, Some(held)))
    }

    async fn client(&self) -> Result<Client, Failure> {
        if let Some(client) = self.client.borrow().as_ref() {
            return Ok(client.clone());
        }
        self.opening.acquire(1).await;
        let _turn = Turn(&self.opening);
        if let Some(client) = self.client.borrow().as_ref() {
            return Ok(client.clone()); // whoever had the turn before
        }
        let now_ns = rt::clock_ns();
        if let Some((until_ns, failure)) = self.refused.borrow().as_ref()
            && now_ns < *until_ns
        {
            return Err(failure.clone());
        }
        match Box::pin(self.upstream.connect()).await {
            Ok(client) => {
                self.refused.replace(None);
                self.client.replace(Some(client.clone()));
                Ok(client)
            }
            Err(error) => {
                tracing::error!("{}: {error}", self.upstream.uri);
                let failure = Failure::new(
                    libc::EIO,
                    "the upstream server cannot be reached, or its export has changed",
                );
                let rest_ns = u64::try_from(REST.as_nanos()).unwrap_or(u64::MAX);
                self.refused.replace(Some((rt::clock_ns().saturating_add(rest_ns), failure.clone())));
                Err(failure)
            }
        }
    }

    fn failed(&self, error: &Error) -> Failure {
        match error {
            Error::Failed { error, .. } => {
                let text = match error.text.as_str() {
                    "" => "the upstream server says no, without a reason".to_owned(),
                    text => format!("the upstream server says: {text}"),
                };
                let errno = match i32::try_from(error.errno.0) {
                    Ok(libc::ESHUTDOWN) | Err(_) => libc::EIO, // it goes, we stay
                    Ok(errno) => errno,
                };
                let at = error.at.and_then(|at| at.checked_sub(self.upstream.base));
                Failure { at, ..Failure::new(errno, text) }
            }
            Error::Changed { .. } | Error::Violation { .. } => {
                tracing::error!("{}: {error}", self.upstream.uri);
                // Another request may have made the next client already.
                if self.client.borrow().as_ref().is_some_and(Client::is_over) {
                    self.client.take();
                }
                Failure::new(libc::EIO, "the upstream server broke the protocol, or its export has changed")
            }
            Error::Lost { cause, .. } => {
                tracing::debug!("{}: a request was given up: {cause}", self.upstream.uri);
                Failure::new(libc::EIO, "the connection to the upstream server is lost")
            }
            _ => {
                let errno = i32::try_from(error.errno().0).unwrap_or(libc::EIO);
                Failure::new(errno, format!("the upstream server's client says: {error}"))
            }
        }
    }
}

/// The turn to make a client.
struct Turn<'a>(&'a Semaphore);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.release(1);
    }
}

fn fua_flag(fua: bool) -> CommandFlags {
    if fua { CommandFlags::FUA } else { CommandFlags::NONE }
}
