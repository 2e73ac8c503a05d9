//! ringnbd: an NBD storage node whose data path is io_uring from the socket to the disk.

pub mod backend;
pub mod cli;
pub mod client;
pub mod load;
pub mod metrics;
pub mod net;
pub mod proto;
#[allow(unsafe_code)]
pub mod rt;
pub mod server;
#[allow(unsafe_code)]
pub mod sys;
