//! Where clients come in: listening sockets, and the bytes of a connection in order.
//!
//! May be imported by `server`, `client`, `cli`; imports `rt`, `sys`. Knows no NBD.

mod inbox;
pub mod listen;

pub use inbox::Inbox;
