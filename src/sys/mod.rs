//! Thin wrappers of system calls, one corner of libc per file. A leaf: imports nothing of ours; anyone may import it.
//!
//! `unsafe` is allowed here and in `rt` only.

pub mod ioctl;
pub mod lock;
pub mod mmap;
