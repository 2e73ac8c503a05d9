//! Other people's programs against our server. Each needs its peer; a missing one fails its test.

mod devices;
mod fio;
mod libnbd;
mod python;
mod qemu;
mod relay;
