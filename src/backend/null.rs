//! `null:SIZE`: reads zeroes, forgets writes. What is left to measure is the path itself.

use super::{Extent, Extents};
use crate::rt::Buffer;

/// Nothing, of a certain size.
#[derive(Debug)]
pub struct Null(());

impl Null {
    pub(super) fn new() -> Self {
        Self(())
    }

    pub(super) fn read(&self, mut buffer: Buffer) -> Buffer {
        buffer.fill(0);
        buffer
    }

    pub(super) fn extents(&self, length: u64) -> Extents {
        smallvec::smallvec![Extent { length, hole: true, zero: true }]
    }
}
