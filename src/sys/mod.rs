//! One corner of the operating system each, where rustix and socket2 stop or need a word of ours.
//!
//! A leaf: imports nothing of ours, and anyone may import it.

pub mod affinity;
pub mod socket;
