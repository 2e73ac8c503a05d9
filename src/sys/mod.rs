//! One corner of libc each, where neither std nor rustix has a safe call.
//!
//! Leaf: imports nothing of ours; anyone may import it. `unsafe` is allowed here.

pub mod ioctl;
pub mod lock;
