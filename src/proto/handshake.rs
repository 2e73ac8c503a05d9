//! The server's side of the handshake, from greeting to transmission.
//!
//! ```text
//!   new ---> Oldstyle --advance--> Find "" --found--> Transmit
//!    |
//!    '-----> ClientFlags ---> Header <--------------------------------.
//!                               |  \                                  |
//!                               |   '-- payload of no use --> Skip ---|--> Close (ABORT)
//!                               v                                     |
//!                            Payload ---> Asked: Find, List, StartTls -'
//!                                            '--found--> Transmit (EXPORT_NAME, GO), Close
//! ```
//!
//! The machine holds no more than one answerable option. Of an option's payload it wants either
//! all of it in one piece, never more than [`HandshakeConfig::option_kept_max`] bytes, or
//! nothing: then it drops the payload as it comes and answers afterwards, so framing is kept.
//!
//! What a client says before it has our answer piles up in `out`: at most
//! [`HandshakeConfig::options_max`] short sentences, and one answer per `found` or `listed`, between
//! which the caller can flush.

mod answer;
mod config;
#[cfg(test)]
mod tests;

use bytes::BufMut;

use super::consts::{
    ClientFlags, HandshakeFlags, INIT_MAGIC, OPTION_HEADER_LENGTH, OPTION_MAGIC, OptionCode, OptionReply,
    STRING_LENGTH_MAX,
};
use super::context::{MetaRequest, Selection};
use super::cursor::Cursor;
use super::export::{ExportInfo, Listing, Lookup};
use super::option::{self, InfoRequest, OptionHeader};
use super::session::{Dialect, Session};
use super::violation::Violation;
pub use config::{HandshakeConfig, Style, Tls};

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call [`Handshake::advance`] with what was not consumed, or with more if that consumed nothing.
    Receive,
    /// Look an export up and call [`Handshake::found`]. The empty name is the default export.
    Find {
        /// Its name.
        name: String,
    },
    /// Call [`Handshake::listed`] with the exports that may be listed.
    List,
    /// Flush what was written, shake hands as a TLS server and call [`Handshake::secured`]. Unconsumed bytes are the
    /// client's part of that handshake, whatever they look like.
    StartTls,
    /// Flush what was written; unconsumed bytes belong to the session.
    Transmit(Session),
    /// Flush what was written, if the client still reads, and close.
    Close,
}

/// One client's handshake.
#[derive(Debug)]
pub struct Handshake {
    config: HandshakeConfig,
    state: State,
    options: u32,
    no_zeroes: bool,
    fixed: bool,
    structured: bool,
    extended: bool,
    selection: Option<Selection>,
    draining: bool,
    encrypted: bool,
}

#[derive(Debug)]
enum State {
    Oldstyle,
    ClientFlags,
    Header,
    Payload(OptionHeader),
    Skip { left: u32, then: Answer },
    Asked(Question),
    Over,
}

/// The reply to an option whose payload is being dropped.
#[derive(Debug)]
enum Answer {
    /// ACK, and close.
    Abort,
    /// Close: EXPORT_NAME knows no other way to be refused.
    Leave,
    Refuse {
        option: OptionCode,
        kind: OptionReply,
        text: String,
        /// Close after it.
        leave: bool,
    },
}

/// What the caller was asked to find out, and for which option.
#[derive(Debug)]
enum Question {
    Oldstyle,
    ExportName { name: String },
    Info { go: bool, request: InfoRequest },
    Meta(MetaRequest),
    List,
    Tls,
}

impl Question {
    fn step(&self) -> Step {
        match self {
            Self::Oldstyle => Step::Find { name: String::new() },
            Self::ExportName { name }
            | Self::Info { request: InfoRequest { name, .. }, .. }
            | Self::Meta(MetaRequest { name, .. }) => Step::Find { name: name.clone() },
            Self::List => Step::List,
            Self::Tls => Step::StartTls,
        }
    }
}

impl Handshake {
    /// Begins: writes the newstyle greeting. The oldstyle one needs the export, which the first
    /// [`advance`](Self::advance) asks for.
    pub fn new(config: HandshakeConfig, out: &mut Vec<u8>) -> Self {
        let state = match config.style {
            Style::Oldstyle => State::Oldstyle,
            Style::Fixed => {
                out.put_u64(INIT_MAGIC);
                out.put_u64(OPTION_MAGIC);
                let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
                out.put_u16(flags.0);
                State::ClientFlags
            }
        };
        Self {
            config,
            state,
            options: 0,
            no_zeroes: false,
            fixed: false,
            structured: false,
            extended: false,
            selection: None,
            draining: false,
            encrypted: false,
        }
    }

    /// From now on options are answered with SHUTDOWN, except ABORT.
    pub const fn drain(&mut self) {
        self.draining = true;
    }

    /// Bytes that the next [`advance`](Self::advance) needs to get anywhere.
    pub fn needs(&self) -> usize {
        match &self.state {
            State::ClientFlags => 4,
            State::Header => OPTION_HEADER_LENGTH,
            State::Payload(header) => usize::try_from(header.length).unwrap_or(usize::MAX),
            State::Skip { .. } => 1,
            State::Oldstyle | State::Asked(_) | State::Over => 0,
        }
    }

    /// Takes what it can from `input`, writes replies, and says how many bytes it took. With
    /// [`Step::Receive`] it got as far as `input` allows.
    pub fn advance(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, Step), Violation> {
        let mut cursor = Cursor::new(input);
        loop {
            let before = cursor.remaining();
            match self.turn(&mut cursor, out) {
                Ok(Some(step)) => return Ok((cursor.consumed(), step)),
                Ok(None) if cursor.remaining() == before => return Ok((cursor.consumed(), Step::Receive)),
                Ok(None) => {}
                Err(violation) => {
                    self.state = State::Over;
                    return Err(violation);
                }
            }
        }
    }

    /// Answers [`Step::Find`]. After [`Step::Receive`], call `advance` with what was left over.
    pub fn found<'a>(&mut self, export: impl Into<Lookup<'a>>, out: &mut Vec<u8>) -> Result<Step, Violation> {
        let export = export.into();
        match std::mem::replace(&mut self.state, State::Header) {
            State::Asked(Question::Oldstyle) => Ok(self.greet_oldstyle(export, out)),
            State::Asked(Question::ExportName { .. }) => Ok(self.enter_by_name(export, out)),
            State::Asked(Question::Info { go, request }) => Ok(self.inform(go, &request, export, out)),
            State::Asked(Question::Meta(request)) => {
                self.answer_meta(&request, export, out);
                Ok(Step::Receive)
            }
            other => {
                debug_assert!(false, "found() answers Step::Find only");
                self.state = other;
                Ok(Step::Receive)
            }
        }
    }

    /// Answers [`Step::List`].
    pub fn listed(&mut self, exports: &[Listing], out: &mut Vec<u8>) -> Step {
        debug_assert!(matches!(self.state, State::Asked(Question::List)), "listed() answers Step::List only");
        if matches!(self.state, State::Asked(Question::List)) {
            for export in exports {
                option::listing(out, export);
            }
            option::ack(out, OptionCode::LIST);
            self.state = State::Header;
        }
        Step::Receive
    }

    /// Answers [`Step::StartTls`]: what follows comes through TLS. What was negotiated before is forgotten, since anybody on
    /// the way could have said it.
    pub fn secured(&mut self) {
        debug_assert!(
            matches!(self.state, State::Asked(Question::Tls)),
            "secured() answers Step::StartTls only"
        );
        if matches!(self.state, State::Asked(Question::Tls)) {
            self.structured = false;
            self.extended = false;
            self.selection = None;
            self.encrypted = true;
            self.state = State::Header;
        }
    }

    /// One transition. `None` without progress of the cursor asks for more bytes.
    fn turn(&mut self, cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<Option<Step>, Violation> {
        match &mut self.state {
            State::Oldstyle => Ok(Some(self.ask(Question::Oldstyle))),
            State::ClientFlags => {
                let Some(flags) = cursor.u32() else { return Ok(None) };
                self.accept_flags(ClientFlags(flags))?;
                Ok(None)
            }
            State::Header => {
                let Some(header) = OptionHeader::decode(cursor)? else { return Ok(None) };
                self.begin_option(header, out)
            }
            State::Payload(header) => {
                let header = *header;
                let Some(payload) =
                    usize::try_from(header.length).ok().and_then(|length| cursor.take(length))
                else {
                    return Ok(None);
                };
                self.state = State::Header;
                self.take_option(header, payload, out)
            }
            State::Skip { left, .. } => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX);
                *left -= u32::try_from(cursor.skip(length)).unwrap_or(*left);
                if *left > 0 { Ok(None) } else { Ok(self.after_skip(out)) }
            }
            State::Asked(question) => Ok(Some(question.step())),
            State::Over => Ok(Some(Step::Close)),
        }
    }

    fn accept_flags(&mut self, flags: ClientFlags) -> Result<(), Violation> {
        let known = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        if !flags.without(known).is_empty() {
            return Err(Violation::ClientFlags(flags.0));
        }
        self.fixed = flags.contains(ClientFlags::FIXED_NEWSTYLE);
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        if !self.fixed && self.config.tls == Tls::Required {
            return Err(Violation::NeedsTls);
        }
        self.state = State::Header;
        Ok(())
    }

    /// All that can be decided before the payload is there.
    fn begin_option(&mut self, header: OptionHeader, out: &mut Vec<u8>) -> Result<Option<Step>, Violation> {
        let OptionHeader { code, length } = header;
        self.options += 1;
        if !self.fixed && code != OptionCode::EXPORT_NAME {
            return Err(Violation::NotFixed(code));
        }
        if self.options > self.config.options_max {
            let text = format!("more than {} options; connect again", self.config.options_max);
            option::refuse(out, code, OptionReply::ERR_TOO_BIG, &text);
            return Err(Violation::Options(self.config.options_max));
        }
        if length > self.config.option_length_max {
            let limit = self.config.option_length_max;
            return Err(Violation::OptionLength { option: code, length, limit });
        }
        if code == OptionCode::SET_META_CONTEXT {
            // A new SET replaces the old one even when it fails.
            self.selection = None;
        }
        match self.judge(header)? {
            Some(then) => self.state = State::Skip { left: length, then },
            None => self.state = State::Payload(header),
        }
        // Without payload bytes to come, neither state needs input: go on at once.
        if length > 0 {
            return Ok(None);
        }
        self.turn(&mut Cursor::new(&[]), out)
    }

    /// The answer to an option that does not depend on its payload; `None`: keep the payload.
    fn judge(&self, header: OptionHeader) -> Result<Option<Answer>, Violation> {
        let OptionHeader { code, length } = header;
        let refuse = |kind, text: String| Ok(Some(Answer::Refuse { option: code, kind, text, leave: false }));
        let must_encrypt = self.config.tls == Tls::Required && !self.encrypted;
        match code {
            OptionCode::ABORT => return Ok(Some(Answer::Abort)),
            OptionCode::EXPORT_NAME if self.extended => {
                return Err(Violation::ExportName("is not allowed once extended headers are negotiated"));
            }
            OptionCode::EXPORT_NAME if length > self.name_length_max() => {
                return Err(Violation::ExportName("with a name that is too long"));
            }
            OptionCode::EXPORT_NAME if must_encrypt => return Ok(Some(Answer::Leave)),
            OptionCode::STARTTLS => {}
            _ if must_encrypt => {
                let text = format!("{code} is not answered without TLS here; begin with STARTTLS");
                return refuse(OptionReply::ERR_TLS_REQD, text);
            }
            _ => {}
        }
        match code {
            OptionCode::EXPORT_NAME if self.draining => return Ok(Some(Answer::Leave)),
            _ if self.draining => {
                return refuse(OptionReply::ERR_SHUTDOWN, "the server is shutting down".to_owned());
            }
            OptionCode::EXPORT_NAME => {}
            // What comes next is meant for TLS, and where it begins can only be guessed.
            OptionCode::STARTTLS if length > 0 && self.config.tls != Tls::Off && !self.encrypted => {
                let (kind, text) = (OptionReply::ERR_INVALID, format!("{code} takes no data"));
                return Ok(Some(Answer::Refuse { option: code, kind, text, leave: true }));
            }
            OptionCode::LIST
            | OptionCode::STARTTLS
            | OptionCode::STRUCTURED_REPLY
            | OptionCode::EXTENDED_HEADERS => {
                if length > 0 {
                    return refuse(OptionReply::ERR_INVALID, format!("{code} takes no data"));
                }
            }
            OptionCode::INFO
            | OptionCode::GO
            | OptionCode::LIST_META_CONTEXT
            | OptionCode::SET_META_CONTEXT => {
                let limit = self.config.option_kept_max;
                if length > limit {
                    let text = format!("{code} with {length} bytes of data; at most {limit} are looked at");
                    return refuse(OptionReply::ERR_TOO_BIG, text);
                }
            }
            _ => {
                return refuse(OptionReply::ERR_UNSUP, format!("option {code} is not known to this server"));
            }
        }
        Ok(None)
    }

    fn after_skip(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Skip { then: Answer::Refuse { option, kind, text, leave }, .. } => {
                option::refuse(out, option, kind, &text);
                if !leave {
                    return None;
                }
            }
            State::Skip { then: Answer::Abort, .. } => option::ack(out, OptionCode::ABORT),
            _ => {}
        }
        self.state = State::Over;
        Some(Step::Close)
    }

    /// An option with its whole payload.
    fn take_option(
        &mut self,
        header: OptionHeader,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Step>, Violation> {
        let name_length_max = self.name_length_max();
        let question = match header.code {
            OptionCode::EXPORT_NAME => {
                let name = option::checked_name(payload, name_length_max)
                    .map_err(|_| Violation::ExportName("with a name that is not UTF-8, or holds a NUL"))?;
                Ok(Question::ExportName { name })
            }
            OptionCode::LIST => Ok(Question::List),
            OptionCode::STARTTLS => {
                return Ok(self.start_tls(out));
            }
            OptionCode::STRUCTURED_REPLY => {
                self.structured_reply(out);
                return Ok(None);
            }
            OptionCode::EXTENDED_HEADERS => {
                self.extended_headers(out);
                return Ok(None);
            }
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT
                if !self.structured && !self.extended =>
            {
                Err("meta contexts need structured replies or extended headers first")
            }
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
                MetaRequest::decode(header.code, payload, name_length_max).map(Question::Meta)
            }
            _ => InfoRequest::decode(payload, name_length_max)
                .map(|request| Question::Info { go: header.code == OptionCode::GO, request }),
        };
        match question {
            Ok(question) => Ok(Some(self.ask(question))),
            Err(fault) => {
                option::refuse(out, header.code, OptionReply::ERR_INVALID, fault);
                Ok(None)
            }
        }
    }

    fn ask(&mut self, question: Question) -> Step {
        let step = question.step();
        self.state = State::Asked(question);
        step
    }

    const fn dialect(&self) -> Dialect {
        match (self.extended, self.structured) {
            (true, _) => Dialect::Extended,
            (false, true) => Dialect::Structured,
            (false, false) => Dialect::Simple,
        }
    }

    /// The contexts selected for this export, if there are any.
    fn selected(&self, export: &ExportInfo) -> Option<&Selection> {
        self.selection
            .as_ref()
            .filter(|selection| selection.export == export.id && !selection.contexts.is_empty())
    }

    fn session(&self, export: &ExportInfo, alignment_agreed: bool) -> Session {
        let contexts = self.selected(export).map(|selection| selection.contexts.clone()).unwrap_or_default();
        Session { alignment_agreed, ..Session::new(export, self.dialect(), contexts) }
    }

    fn name_length_max(&self) -> u32 {
        let protocol = u32::try_from(STRING_LENGTH_MAX).unwrap_or(u32::MAX);
        self.config.name_length_max.min(protocol)
    }
}
