//! `faulty:SEED:BACKEND`: another backend that fails now and then, for testing clients and ourselves.
//!
//! About one request in sixteen fails, and as many are late, so that requests overtake each other. A failed read has
//! delivered its first bytes, a failed write or zero has done its first part, and both say where they stopped. The same
//! requests in the same order on one shard meet the same faults. Never for data that matters.

use std::cell::Cell;

use super::{Backend, Done, Extents, Failure, Zero};
use crate::rt::{self, Buffer};

/// One request in this many fails, one is late.
const RARITY: u64 = 16;
/// Trips to the helper pool that make a request late.
const LATE_TRIPS: u64 = 8;

/// Another backend, with faults.
pub struct Faulty {
    inner: Backend,
    state: Cell<u64>,
}

impl Faulty {
    pub(super) fn new(seed: u64, inner: Backend) -> Self {
        Self { inner, state: Cell::new(seed) }
    }

    pub(super) async fn read(&self, buffer: Buffer, offset: u64) -> Done {
        let fault = self.fault(&[libc::EIO]).await;
        let length = buffer.len() as u64;
        // Boxed because a backend that holds a backend makes futures of unbounded size.
        let (result, mut buffer) = Box::pin(self.inner.read(buffer, offset)).await;
        match fault {
            Some(errno) if result.is_ok() => {
                let good = self.below(length);
                if let Some(rest) = usize::try_from(good).ok().and_then(|good| buffer.get_mut(good..)) {
                    rest.fill(0xdb); // whoever uses it shall notice
                }
                (Err(injected(errno).at(offset + good)), buffer)
            }
            _ => (result, buffer),
        }
    }

    pub(super) async fn write(&self, buffer: Buffer, offset: u64, fua: bool) -> Done {
        let Some(errno) = self.fault(&[libc::EIO, libc::ENOSPC]).await else {
            return Box::pin(self.inner.write(buffer, offset, fua)).await;
        };
        let good = self.below(buffer.len() as u64);
        let Ok(length) = usize::try_from(good) else { return (Err(injected(errno)), buffer) };
        let mut part = Buffer::scratch(length.min(PART_LENGTH_MAX));
        let length = part.len();
        part.copy_from_slice(&buffer[..length]);
        let (result, _) = Box::pin(self.inner.write(part, offset, fua)).await;
        (result.and_then(|()| Err(injected(errno).at(offset + length as u64))), buffer)
    }

    pub(super) async fn flush(&self) -> Result<(), Failure> {
        match self.fault(&[libc::EIO]).await {
            Some(errno) => Err(injected(errno)),
            None => Box::pin(self.inner.flush()).await,
        }
    }

    pub(super) async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), Failure> {
        match self.fault(&[libc::EIO]).await {
            Some(errno) => Err(injected(errno)),
            None => Box::pin(self.inner.trim(offset, length, fua)).await,
        }
    }

    pub(super) async fn zero(&self, offset: u64, length: u64, how: Zero, fua: bool) -> Result<(), Failure> {
        let Some(errno) = self.fault(&[libc::EIO, libc::ENOSPC, libc::EOPNOTSUPP]).await else {
            return Box::pin(self.inner.zero(offset, length, how, fua)).await;
        };
        if errno == libc::EOPNOTSUPP {
            // Allowed only as the answer to fast_only, and then nothing may have changed.
            return if how.fast_only {
                Err(injected(errno))
            } else {
                Box::pin(self.inner.zero(offset, length, how, fua)).await
            };
        }
        let good = self.below(length);
        Box::pin(self.inner.zero(offset, good, how, fua)).await?;
        Err(injected(errno).at(offset + good))
    }

    pub(super) async fn cache(&self, offset: u64, length: u64) -> Result<(), Failure> {
        match self.fault(&[libc::EIO]).await {
            Some(errno) => Err(injected(errno)),
            None => Box::pin(self.inner.cache(offset, length)).await,
        }
    }

    pub(super) async fn extents(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Extents, Failure> {
        match self.fault(&[libc::EIO]).await {
            Some(errno) => Err(injected(errno)),
            None => Box::pin(self.inner.extents(offset, length, extents_max)).await,
        }
    }

    pub(super) async fn close(&self) {
        self.inner.close().await;
    }

    pub(super) fn known_data(&self, offset: u64, length: u64) -> bool {
        self.inner.known_data(offset, length)
    }

    /// Decides about one request: an errno to fail with, or a while to wait first.
    async fn fault(&self, errnos: &[i32]) -> Option<i32> {
        match self.below(RARITY) {
            0 => usize::try_from(self.below(errnos.len() as u64))
                .ok()
                .and_then(|index| errnos.get(index))
                .copied(),
            1 => {
                for _ in 0..=self.below(LATE_TRIPS) {
                    rt::blocking(|| ()).await;
                }
                None
            }
            _ => None,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), reduced to `0..bound`; 0 if the bound is 0.
    fn below(&self, bound: u64) -> u64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(bound).unwrap_or(0)
    }
}

/// Most of a failed write that is done all the same.
const PART_LENGTH_MAX: usize = 64 * 1024;

fn injected(errno: i32) -> Failure {
    Failure::new(errno, "a fault injected by the faulty: backend")
}
