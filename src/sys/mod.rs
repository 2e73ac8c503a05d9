//! Thin wrappers of system calls, one corner of libc per file, where neither std nor rustix has a safe call.
//!
//! A leaf: imports nothing of ours; anyone may import it. `unsafe` is allowed here and in `rt` only.

pub mod affinity;
pub mod ioctl;
pub mod lock;
pub mod mmap;
pub mod nbd;
pub mod netlink;
pub mod socket;
