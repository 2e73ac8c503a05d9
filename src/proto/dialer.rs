//! The client's side of the handshake.
//!
//! ```text
//!   Greeting --oldstyle--------------------------------------------------> Linked
//!      |  '--newstyle, not fixed-----------------------.
//!      v                                               v
//!   STARTTLS --ACK--> Secure (the caller brings up TLS), secured()
//!      v                                               v
//!   EXTENDED_HEADERS -> STRUCTURED_REPLY -> SET_META_CONTEXT -> GO ------> Linked
//!      each may be refused; the next is what is left     | UNSUP             ^
//!                            |                           v                   |
//!                            |             LIST (is it there?) -> EXPORT_NAME
//!                            '--a survey: `survey`
//! ```
//!
//! Failing, it writes ABORT as a courtesy where the server would understand it, and does not
//! wait for the answer.

mod replies;
mod survey;
#[cfg(test)]
mod tests;

use bytes::BufMut;
use thiserror::Error;

use super::consts::{
    ClientFlags, HandshakeFlags, INIT_MAGIC, InfoType, OLDSTYLE_MAGIC, OPTION_MAGIC, OptionCode, OptionReply,
    RESERVED_ZEROES, TransmissionFlags,
};
use super::cursor::Cursor;
use super::export::BlockSizes;
use super::option::printable;
use super::session::Dialect;
use super::violation::Violation;
use replies::{Payload, Reply};
pub use survey::{Found, SurveyConfig, Which};

/// What a client wants of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialerConfig {
    /// The export's name; empty for the default export. At most 4096 bytes.
    pub export: String,
    /// Try extended headers.
    pub extended: bool,
    /// Try structured replies, if there are no extended headers.
    pub structured: bool,
    /// Meta contexts to select, by full name.
    pub contexts: Vec<String>,
    /// Whether to begin TLS.
    pub tls: TlsMode,
}

impl Default for DialerConfig {
    fn default() -> Self {
        Self {
            export: String::new(),
            extended: true,
            structured: true,
            contexts: Vec::new(),
            tls: TlsMode::Disable,
        }
    }
}

/// Whether a client begins TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum TlsMode {
    /// It does not ask for it.
    #[default]
    Disable,
    /// It goes on without if the server refuses. Whoever sits on the line can refuse in the server's place ("Downgrade
    /// attacks").
    Allow,
    /// It goes on under TLS or not at all.
    Require,
}

/// What was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// TLS is in use.
    pub tls: bool,
    /// Headers in use.
    pub dialect: Dialect,
    /// Bytes of the export.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Block sizes, if the server told them.
    pub block: Option<BlockSizes>,
    /// Canonical name, if the server told it.
    pub name: Option<String>,
    /// Description, if there is one.
    pub description: Option<String>,
    /// Meta contexts that were selected: wire id and name.
    pub contexts: Vec<(u32, String)>,
}

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dialed {
    /// Flush, then call [`Dialer::advance`] with what was not consumed and more.
    Receive,
    /// Flush, bring up TLS on the socket, then call [`Dialer::secured`]. Nothing that came before may be used after.
    Secure,
    /// Flush; the session begins with the next byte.
    Linked(Box<Link>),
    /// Flush and close: the survey is over.
    Surveyed(Vec<Found>),
}

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DialError {
    /// The server broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The server said no.
    #[error("server refused {option}: {}{}", explain(*reply), hint(text))]
    Refused {
        /// To what.
        option: OptionCode,
        /// How.
        reply: OptionReply,
        /// In its own words; may be empty.
        text: String,
    },
    /// The server speaks oldstyle, which has no names.
    #[error("server has a single export without a name, not {0:?}")]
    Nameless(String),
    /// The server lists its exports, and the wanted one is not among them.
    #[error("server does not list an export named {0:?}")]
    NotListed(String),
    /// The name does not fit the protocol.
    #[error("an export name is at most 4096 bytes without NUL")]
    Name,
    /// TLS was wanted of a server that cannot begin it.
    #[error("server speaks {0}, which has no TLS")]
    NoTls(&'static str),
    /// A list was wanted of a server that cannot give one.
    #[error("server speaks newstyle that is not fixed, which cannot tell what it exports")]
    NoList,
}

fn explain(reply: OptionReply) -> &'static str {
    match reply {
        OptionReply::ERR_UNSUP => "it does not know this option",
        OptionReply::ERR_POLICY => "its policy forbids it",
        OptionReply::ERR_INVALID => "it finds the request invalid",
        OptionReply::ERR_PLATFORM => "its platform lacks support",
        OptionReply::ERR_TLS_REQD => "it demands TLS first",
        OptionReply::ERR_UNKNOWN => "it has no such export",
        OptionReply::ERR_SHUTDOWN => "it is shutting down",
        OptionReply::ERR_BLOCK_SIZE_REQD => "it demands that block sizes be negotiated",
        OptionReply::ERR_TOO_BIG => "the request is too big for it",
        OptionReply::ERR_EXT_HEADER_REQD => "it demands extended headers first",
        _ => "for a reason not known to this client",
    }
}

fn hint(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" (server says: {})", printable(text)) }
}

/// One client's handshake.
#[derive(Debug)]
pub struct Dialer {
    config: DialerConfig,
    state: State,
    fixed: bool,
    no_zeroes: bool,
    told_export: bool,
    /// Of the list that stands in for GO: entries seen, the wanted one among them.
    listed: Option<bool>,
    link: Link,
    /// What to look at, where no export is to be opened.
    survey: Option<Box<survey::Survey>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// Waiting for replies to this option.
    Asked(OptionCode),
    /// Dropping the too long sentence of an error reply.
    Skip(OptionCode, OptionReply, u32),
    /// Waiting for the answer to EXPORT_NAME, which is no option reply.
    Named,
    /// The caller brings up TLS.
    Securing,
    /// GO succeeded.
    Linked,
    /// All was looked at.
    Surveyed,
    Over,
}

/// What one turn of the machine came to.
enum Turn {
    Hungry,
    Again,
    Secure,
    Linked,
    Surveyed,
}

impl Dialer {
    /// Begins; the server speaks first.
    pub const fn new(config: DialerConfig) -> Self {
        let link = Link {
            tls: false,
            dialect: Dialect::Simple,
            size: 0,
            flags: TransmissionFlags::NONE,
            block: None,
            name: None,
            description: None,
            contexts: Vec::new(),
        };
        Self {
            config,
            state: State::Greeting,
            fixed: false,
            no_zeroes: false,
            told_export: false,
            listed: None,
            link,
            survey: None,
        }
    }

    /// Begins to look around, opening nothing.
    pub fn survey(config: SurveyConfig) -> Self {
        let SurveyConfig { which, extended, structured, contexts, tls } = config;
        let config = DialerConfig { export: String::new(), extended, structured, contexts: Vec::new(), tls };
        Self { survey: Some(Box::new(survey::Survey::new(which, contexts))), ..Self::new(config) }
    }

    /// TLS is up: the handshake goes on under it.
    pub fn secured(&mut self, out: &mut Vec<u8>) {
        if self.state == State::Securing {
            self.link.tls = true;
            self.ask_next(Some(OptionCode::STARTTLS), out);
        }
    }

    /// What the dialer waits for, to explain a connection that ended. A server without a better
    /// way to refuse an export closes while `EXPORT_NAME` is waited for.
    pub const fn waits_for(&self) -> Option<OptionCode> {
        match self.state {
            State::Asked(option) | State::Skip(option, ..) => Some(option),
            State::Named => Some(OptionCode::EXPORT_NAME),
            State::Securing => Some(OptionCode::STARTTLS),
            State::Greeting | State::Linked | State::Surveyed | State::Over => None,
        }
    }

    /// Takes what it can from `input`, writes options, and says how many bytes it took. It never
    /// needs more than 64 KiB and a header at once.
    pub fn advance(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Dialed), DialError> {
        let mut cursor = Cursor::new(input);
        loop {
            match self.turn(&mut cursor, out) {
                Ok(Turn::Again) => {}
                Ok(Turn::Hungry) => return Ok((cursor.consumed(), Dialed::Receive)),
                // Whoever sits on the line may have put bytes before the secret ones.
                Ok(Turn::Secure) if !cursor.is_empty() => {
                    self.state = State::Over;
                    let fault = "bytes follow in the clear";
                    return Err(Violation::OptionReply { option: OptionCode::STARTTLS, fault }.into());
                }
                Ok(Turn::Secure) => return Ok((cursor.consumed(), Dialed::Secure)),
                Ok(Turn::Surveyed) => {
                    self.state = State::Over;
                    let found = self.survey.take().map(|survey| survey.found()).unwrap_or_default();
                    return Ok((cursor.consumed(), Dialed::Surveyed(found)));
                }
                Ok(Turn::Linked) => {
                    self.state = State::Over;
                    return Ok((cursor.consumed(), Dialed::Linked(Box::new(self.link.clone()))));
                }
                Err(error) => {
                    if self.fixed && matches!(self.state, State::Asked(_) | State::Skip(..)) {
                        send(out, OptionCode::ABORT, &[]);
                    }
                    self.state = State::Over;
                    return Err(error);
                }
            }
        }
    }

    fn turn(&mut self, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<Turn, DialError> {
        match self.state {
            State::Greeting => self.greeted(cursor, out),
            State::Asked(option) => {
                let Some(reply) = Reply::decode(cursor, option)? else {
                    return Ok(Turn::Hungry);
                };
                match reply.payload {
                    Payload::Whole(payload) => self.replied(option, reply.kind, payload, out)?,
                    Payload::Unread(length) => self.state = State::Skip(option, reply.kind, length),
                }
                Ok(Turn::Again)
            }
            State::Skip(option, kind, left) => {
                let skipped = cursor.skip(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left.saturating_sub(u32::try_from(skipped).unwrap_or(left));
                self.state = State::Skip(option, kind, left);
                if left > 0 {
                    return Ok(Turn::Hungry);
                }
                self.refused(option, kind, "", out)?;
                Ok(Turn::Again)
            }
            State::Named => Ok(self.named(cursor)),
            State::Securing => Ok(Turn::Secure),
            State::Linked => Ok(Turn::Linked),
            State::Surveyed => Ok(Turn::Surveyed),
            State::Over => Ok(Turn::Hungry),
        }
    }

    fn greeted(&mut self, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<Turn, DialError> {
        let mut ahead = cursor.clone();
        let Some(magic) = ahead.u64() else { return Ok(Turn::Hungry) };
        if magic != INIT_MAGIC {
            return Err(Violation::GreetingMagic(magic).into());
        }
        let Some(magic) = ahead.u64() else { return Ok(Turn::Hungry) };
        match magic {
            OLDSTYLE_MAGIC => {
                let (Some(size), Some(flags), Some(_)) =
                    (ahead.u64(), ahead.u32(), ahead.take(RESERVED_ZEROES))
                else {
                    return Ok(Turn::Hungry);
                };
                let flags = u16::try_from(flags).map_err(|_| Violation::OldstyleFlags(flags))?;
                if self.config.tls == TlsMode::Require {
                    return Err(DialError::NoTls("oldstyle"));
                }
                let wanted =
                    self.survey.as_ref().map_or(self.config.export.as_str(), |survey| survey.wanted());
                if !wanted.is_empty() {
                    return Err(DialError::Nameless(wanted.to_owned()));
                }
                (self.link.size, self.link.flags) = (size, TransmissionFlags(flags));
                *cursor = ahead;
                if self.survey.is_some() {
                    self.surveyed_oldstyle(out);
                    return Ok(Turn::Surveyed);
                }
                Ok(Turn::Linked)
            }
            OPTION_MAGIC => {
                let Some(flags) = ahead.u16() else { return Ok(Turn::Hungry) };
                *cursor = ahead;
                let wanted =
                    self.survey.as_ref().map_or(self.config.export.as_str(), |survey| survey.wanted());
                let name = wanted.as_bytes();
                if name.len() > super::consts::STRING_LENGTH_MAX || name.contains(&0) {
                    return Err(DialError::Name);
                }
                let offered = HandshakeFlags(flags);
                if !offered.contains(HandshakeFlags::FIXED_NEWSTYLE) {
                    if self.config.tls == TlsMode::Require {
                        return Err(DialError::NoTls("newstyle that is not fixed"));
                    }
                    if self.survey.is_some() {
                        return Err(DialError::NoList);
                    }
                }
                self.answer_flags(offered, out);
                Ok(Turn::Again)
            }
            other => Err(Violation::GreetingMagic(other).into()),
        }
    }

    fn answer_flags(&mut self, offered: HandshakeFlags, out: &mut Vec<u8>) {
        self.fixed = offered.contains(HandshakeFlags::FIXED_NEWSTYLE);
        self.no_zeroes = offered.contains(HandshakeFlags::NO_ZEROES);
        let mut flags = ClientFlags::NONE;
        if self.fixed {
            flags |= ClientFlags::FIXED_NEWSTYLE;
        }
        if self.no_zeroes {
            flags |= ClientFlags::NO_ZEROES;
        }
        out.put_u32(flags.0);
        if self.fixed { self.ask_next(None, out) } else { self.ask(OptionCode::EXPORT_NAME, out) }
    }

    /// The option that follows `after`, skipping what was not asked for or cannot be had.
    fn ask_next(&mut self, after: Option<OptionCode>, out: &mut Vec<u8>) {
        const ORDER: [OptionCode; 5] = [
            OptionCode::STARTTLS,
            OptionCode::EXTENDED_HEADERS,
            OptionCode::STRUCTURED_REPLY,
            OptionCode::SET_META_CONTEXT,
            OptionCode::GO,
        ];
        let done = after.and_then(|after| ORDER.iter().position(|option| *option == after));
        let wanted = |option: &OptionCode| match *option {
            OptionCode::STARTTLS => self.config.tls != TlsMode::Disable,
            OptionCode::EXTENDED_HEADERS => self.config.extended,
            OptionCode::STRUCTURED_REPLY => self.config.structured && self.link.dialect == Dialect::Simple,
            OptionCode::SET_META_CONTEXT => {
                self.link.dialect != Dialect::Simple && !self.config.contexts.is_empty()
            }
            _ => true,
        };
        let from = done.map_or(0, |at| at + 1);
        match ORDER.into_iter().skip(from).find(wanted).unwrap_or(OptionCode::GO) {
            OptionCode::GO if self.survey.is_some() => self.survey_next(out),
            next => self.ask(next, out),
        }
    }

    fn ask(&mut self, option: OptionCode, out: &mut Vec<u8>) {
        let name = self.config.export.as_bytes();
        let mut payload = Vec::new();
        match option {
            OptionCode::EXPORT_NAME => payload.extend_from_slice(name),
            OptionCode::SET_META_CONTEXT => {
                replies::push_counted(&mut payload, name);
                replies::push_length(&mut payload, self.config.contexts.len());
                for context in &self.config.contexts {
                    replies::push_counted(&mut payload, context.as_bytes());
                }
            }
            OptionCode::GO => push_info(&mut payload, name),
            _ => {}
        }
        send(out, option, &payload);
        let named = option == OptionCode::EXPORT_NAME;
        self.state = if named { State::Named } else { State::Asked(option) };
    }

    /// The answer to EXPORT_NAME.
    fn named(&mut self, cursor: &mut Cursor<'_>) -> Turn {
        let mut ahead = cursor.clone();
        let zeroes = if self.no_zeroes { 0 } else { RESERVED_ZEROES };
        let (Some(size), Some(flags), Some(_)) = (ahead.u64(), ahead.u16(), ahead.take(zeroes)) else {
            return Turn::Hungry;
        };
        (self.link.size, self.link.flags) = (size, TransmissionFlags(flags));
        *cursor = ahead;
        Turn::Linked
    }
}

/// What INFO and GO carry: a name and what is to be told of it.
fn push_info(payload: &mut Vec<u8>, name: &[u8]) {
    let wanted = [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
    replies::push_counted(payload, name);
    payload.extend_from_slice(&[0, 3]);
    payload.extend(wanted.iter().flat_map(|info| info.0.to_be_bytes()));
}

fn send(out: &mut Vec<u8>, option: OptionCode, payload: &[u8]) {
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option.0);
    replies::push_counted(out, payload);
}
