//! The NBD protocol without sockets, clocks or threads: bytes in, decisions and bytes out.
//!
//! ```text
//!            server                                     client
//!   handshake  option  context                dialer
//!        |                                       |
//!        v      what was negotiated              v
//!     session <------------------------------> link
//!        |                                       |
//!   request (decode)  <------ wire ------  request (encode)
//!   reply   (encode)  ------- wire ----->  reply_decode
//!                 consts  errno  cursor  violation
//! ```
//!
//! May be imported by anyone above except `rt`, `net` and `backend`; imports nothing of ours.
//!
//! Always true:
//! * No input, in any order or cut anywhere, reaches a panic, an index or an overflow.
//! * What a peer can make us hold is bounded by a limit with a name.
//! * A peer that breaks the protocol is a [`Violation`]; a request that cannot be served is a
//!   [`Refusal`] and the connection lives on.
//! * Decoding and admitting a request, and the head of its reply, allocate nothing.
//!
//! Source: `doc/proto.md` of the NBD project and its branches `extension-ext-header` and
//! `extension-resize`.

pub mod consts;
mod context;
mod cursor;
mod dialer;
mod errno;
mod export;
mod handshake;
mod option;
pub mod reply;
pub mod reply_decode;
mod request;
mod session;
mod violation;

pub use consts::{
    AllocationFlags, ChunkFlags, ChunkType, ClientFlags, Command, CommandFlags, HandshakeFlags, InfoType,
    OptionCode, OptionReply, TransmissionFlags,
};
pub use cursor::Cursor;
pub use dialer::{DialError, Dialed, Dialer, DialerConfig, Found, Link, SurveyConfig, TlsMode, Which};
pub use errno::Errno;
pub use export::{BlockSizes, ExportInfo, Listing, Lookup};
pub use handshake::{Handshake, HandshakeConfig, Step, Style, Tls};
pub use reply::Head;
pub use reply_decode::{Body as ReplyBody, Reply};
pub use request::Request;
pub use session::{Admission, Dialect, Refusal, SelectedContext, Session};
pub use violation::Violation;
