//! The client library from outside, as other people's programs use it.
//!
//! ```text
//!   malformed  model  several  reconnect       others  info  copy  release  upstream  tls -- certificates
//!        |       |        |       |  |            |      |     |      |       |       |
//!        '----- script ---'-------'  '---------- program ------'------'-------'-------'
//!            a server by hand           ringnbd, nbdkit, qemu-nbd, qemu-storage-daemon, nbd-server
//! ```
#![allow(clippy::cast_possible_truncation)] // test patterns and lengths that the test itself chose
#![allow(clippy::unwrap_used)] // a panic is how a test speaks

#[allow(dead_code)] // what is for those who speak TLS by hand
#[path = "outside/tls/authority.rs"]
mod authority;
#[path = "client/certificates.rs"]
mod certificates;
#[path = "client/copy.rs"]
mod copy;
#[path = "client/info.rs"]
mod info;
#[path = "client/malformed.rs"]
mod malformed;
#[path = "client/model.rs"]
mod model;
#[path = "client/others.rs"]
mod others;
#[path = "client/program.rs"]
mod program;
#[path = "client/reconnect.rs"]
mod reconnect;
#[path = "client/release.rs"]
mod release;
#[path = "client/script.rs"]
mod script;
#[path = "client/several.rs"]
mod several;
#[path = "client/tls.rs"]
mod tls;
#[path = "client/upstream.rs"]
mod upstream;
#[path = "outside/wait.rs"]
mod wait;
