//! Where clients come in: listening sockets, the bytes of a connection in order, and TLS between the two.
//!
//! May be imported by `server`, `client`, `cli`; imports `rt`, `sys`. Knows no NBD.

mod inbox;
mod line;
pub mod listen;
pub mod tls;

pub use inbox::Inbox;
pub use line::Line;
