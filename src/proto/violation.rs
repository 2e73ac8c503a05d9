//! The peer broke the protocol: there is nothing to do but to close.

use thiserror::Error;

use super::consts::OptionCode;

/// Why a connection cannot go on. What is in the output buffer already may be flushed; then
/// the caller closes, counts and logs.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// The client set flags that were not offered.
    #[error("client flags {0:#x} hold bits that the server did not offer")]
    ClientFlags(u32),
    /// An option did not start with its magic.
    #[error("option magic is {0:#018x}")]
    OptionMagic(u64),
    /// An option longer than anyone needs.
    #[error("{option} announces {length} bytes, over the limit of {limit}")]
    OptionLength {
        /// The option.
        option: OptionCode,
        /// Bytes announced.
        length: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// The client negotiates without end.
    #[error("more than {0} options in one handshake")]
    Options(u32),
    /// A client that did not say FIXED_NEWSTYLE may only send EXPORT_NAME.
    #[error("{0} from a client that did not negotiate fixed newstyle")]
    NotFixed(OptionCode),
    /// TLS begins with an option, and this client has none.
    #[error("a client without fixed newstyle, where TLS is required")]
    NeedsTls,
    /// EXPORT_NAME has no error reply, so what is wrong with it ends the session.
    #[error("NBD_OPT_EXPORT_NAME {0}")]
    ExportName(&'static str),
    /// A request did not start with the magic of the negotiated header.
    #[error("request magic is {0:#010x}")]
    RequestMagic(u32),
    /// The server's greeting is not one of NBD.
    #[error("greeting magic is {0:#018x}")]
    GreetingMagic(u64),
    /// The server's oldstyle flags are wider than 16 bits.
    #[error("oldstyle greeting has flags {0:#x}")]
    OldstyleFlags(u32),
    /// An option reply did not start with its magic.
    #[error("option reply magic is {0:#018x}")]
    OptionReplyMagic(u64),
    /// The server answered an option nobody asked.
    #[error("reply to {replied} while waiting for {asked}")]
    OptionReplyOption {
        /// The option that was sent.
        asked: OptionCode,
        /// The option in the reply.
        replied: OptionCode,
    },
    /// An option reply that makes no sense.
    #[error("reply to {option}: {fault}")]
    OptionReply {
        /// The option that was sent.
        option: OptionCode,
        /// What is wrong with the reply.
        fault: &'static str,
    },
    /// A reply did not start with a magic that was negotiated.
    #[error("reply magic is {0:#010x}")]
    ReplyMagic(u32),
    /// A reply to no request in flight.
    #[error("reply with cookie {0:#x}, which is not in flight")]
    ReplyCookie(u64),
    /// A reply or chunk that makes no sense.
    #[error("reply: {0}")]
    Reply(&'static str),
}
