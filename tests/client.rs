//! The client library from outside, as other people's programs use it.
//!
//! ```text
//!   malformed  model     reconnect  discovery      others
//!       |        |           |         |              |
//!       '- script (a server by hand)   '- program (ringnbd, nbdkit, qemu-nbd, .. as processes)
//! ```
#![allow(clippy::cast_possible_truncation)] // test patterns and lengths that the test itself chose

#[path = "client/malformed.rs"]
mod malformed;
#[path = "client/model.rs"]
mod model;
#[path = "client/program.rs"]
mod program;
#[path = "client/reconnect.rs"]
mod reconnect;
#[path = "client/script.rs"]
mod script;
#[path = "outside/wait.rs"]
mod wait;
