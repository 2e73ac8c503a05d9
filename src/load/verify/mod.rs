//! Blocks that describe themselves, and the knowledge of what each must hold.
//!
//! ```text
//!   WRITE  --ledger: generation + 1--> stamp ---> server
//!   READ   <--ledger: generation ----- check <--- server      of what this run wrote; the rest is not looked at
//!   after the run: every block that was written is read back and checked
//! ```
//!
//! A *block* is as large as the smallest request. While a write of a block is in flight no other request touches it, nor
//! a write while it is read: NBD leaves open which of two requests in flight comes first, so nothing could be expected.
//! A run that only reads expects that an earlier run with the same seed and block size wrote every block.

mod explain;
mod ledger;
mod stamp;

pub(super) use ledger::{BLOCK_MIN, Ledger};
pub(super) use stamp::Author;
