//! The server seen from outside: a `ringnbd` process, sockets, bytes and other people's programs.
//!
//! ```text
//!   conformance  hostile  connections  drain  large_reads  limits  access  tls  command_line  surroundings  interop
//!        |          |          |         |        |          |        |         |             |           |
//!        '----------'---- client, haggle, wire ---'----------'--------'---------'             '--- program'
//!                                |                                                     |
//!                              server (the process and its guard), scratch, wait
//! ```
//!
//! Nothing here uses the crate's own protocol code: the bytes are written by hand, so that one misreading of the
//! specification cannot sit on both sides. One binary, because linking is what costs time.
#![allow(clippy::cast_possible_truncation)] // test patterns and lengths that the test itself chose

mod access;
mod client;
mod command_line;
mod conformance;
mod connections;
mod drain;
mod haggle;
mod hostile;
mod interop;
mod large_reads;
mod limits;
mod program;
mod scratch;
mod server;
mod surroundings;
mod tls;
mod wait;
mod wire;
mod witness;
