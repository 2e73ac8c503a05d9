//! Other people's programs against our server, and our load generator against theirs. Each needs its peer; a missing one fails its test.

mod bench;
mod devices;
mod fio;
mod libnbd;
mod python;
mod qemu;
mod relay;
