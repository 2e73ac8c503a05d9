//! What a server exports, without opening any of it.
//!
//! ```text
//!   LIST ---> for each name:  INFO -> LIST_META_CONTEXT -> LIST_META_CONTEXT "qemu:" -.
//!             ^                                            (one old server)           |
//!             '-----------------------------------------------------------------------'---> ABORT
//! ```
//!
//! A server without INFO still has its list; one export that is refused does not hide the others.

#[cfg(test)]
mod tests;

use super::{DialError, Dialer, State, TlsMode, push_info, replies, send};
use crate::proto::consts::{
    Command, CommandFlags, OptionCode, OptionReply, STRING_LENGTH_MAX, TransmissionFlags,
};
use crate::proto::cursor::Cursor;
use crate::proto::export::BlockSizes;
use crate::proto::request::Request;
use crate::proto::session::Dialect;
use crate::proto::violation::Violation;

/// Bytes that one survey remembers, each entry counted with [`ENTRY_BYTES`] more, so that a server cannot fill our memory.
const REMEMBERED_MAX: usize = 32 << 20;
/// Meta contexts of one export. QEMU has one for each dirty bitmap.
const CONTEXTS_MAX: usize = 4096;
/// What an entry takes besides its text.
const ENTRY_BYTES: usize = 256;

/// Which exports to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that the server lists.
    All,
    /// The one of this name.
    One(String),
}

/// What to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyConfig {
    /// Where.
    pub which: Which,
    /// Try extended headers: what is told may depend on them.
    pub extended: bool,
    /// Try structured replies, if there are no extended headers. Without either there are no meta contexts.
    pub structured: bool,
    /// Ask for the names of meta contexts.
    pub contexts: bool,
    /// Whether to begin TLS.
    pub tls: TlsMode,
}

impl Default for SurveyConfig {
    fn default() -> Self {
        Self { which: Which::All, extended: true, structured: true, contexts: true, tls: TlsMode::Disable }
    }
}

/// One export, as far as the server tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The name to open it by.
    pub name: String,
    /// Canonical name, if the server told it.
    pub canonical: Option<String>,
    /// Description, if there is one.
    pub description: Option<String>,
    /// Bytes and flags, unless the server knows no INFO or refused it.
    pub export: Option<(u64, TransmissionFlags)>,
    /// Block sizes, if the server told them.
    pub block: Option<BlockSizes>,
    /// Names of meta contexts.
    pub contexts: Vec<String>,
    /// Why the server does not tell more of this export: how it said so, and its words.
    pub refused: Option<(OptionReply, String)>,
    /// Headers that were agreed on; `None` is oldstyle.
    pub dialect: Option<Dialect>,
    /// TLS was in use.
    pub tls: bool,
}

#[derive(Debug)]
pub(super) struct Survey {
    which: Which,
    wants_contexts: bool,
    found: Vec<Found>,
    /// The export in question.
    at: usize,
    /// What comes next for it.
    step: Step,
    knows_info: bool,
    begun: bool,
    remembered: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Info,
    Contexts,
    /// A server of old lists its `qemu:` contexts only when asked for them.
    QemuContexts,
    Next,
}

impl Survey {
    pub(super) const fn new(which: Which, wants_contexts: bool) -> Self {
        Self {
            which,
            wants_contexts,
            found: Vec::new(),
            at: 0,
            step: Step::Info,
            knows_info: true,
            begun: false,
            remembered: 0,
        }
    }

    fn remember(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.remembered = self.remembered.saturating_add(bytes).saturating_add(ENTRY_BYTES);
        if self.remembered > REMEMBERED_MAX { Err("it tells more than 32 MiB") } else { Ok(()) }
    }

    pub(super) fn found(self) -> Vec<Found> {
        self.found
    }

    /// The one name in question, empty where there is none.
    pub(super) fn wanted(&self) -> &str {
        match &self.which {
            Which::All => "",
            Which::One(name) => name,
        }
    }
}

impl Dialer {
    /// Oldstyle told everything in its greeting; the session that it began is ended.
    pub(super) fn surveyed_oldstyle(&mut self, out: &mut Vec<u8>) {
        let (command, flags) = (Command::DISC, CommandFlags::NONE);
        let goodbye = Request { command, flags, cookie: 0, offset: 0, length: 0, payload: 0 };
        out.extend_from_slice(&goodbye.encode(Dialect::Simple));
        let export = Some((self.link.size, self.link.flags));
        if let Some(survey) = &mut self.survey {
            survey.found.push(Found { export, ..Found::default() });
        }
    }

    /// The next question.
    pub(super) fn survey_next(&mut self, out: &mut Vec<u8>) {
        let dialect = self.link.dialect;
        let Some(survey) = &mut self.survey else { return };
        if !survey.begun {
            survey.begun = true;
            match &survey.which {
                Which::All => {
                    send(out, OptionCode::LIST, &[]);
                    self.state = State::Asked(OptionCode::LIST);
                    return;
                }
                Which::One(name) => survey.found.push(Found { name: name.clone(), ..Found::default() }),
            }
        }
        let mut payload = Vec::new();
        let tls = self.link.tls;
        let asks_contexts = survey.wants_contexts && dialect != Dialect::Simple;
        while let Some(found) = survey.found.get_mut(survey.at) {
            found.dialect = Some(dialect);
            found.tls = tls;
            let name = found.name.as_bytes();
            let option = match survey.step {
                Step::Info if survey.knows_info => {
                    push_info(&mut payload, name);
                    OptionCode::INFO
                }
                Step::Contexts if asks_contexts => {
                    replies::push_counted(&mut payload, name);
                    replies::push_length(&mut payload, 0);
                    OptionCode::LIST_META_CONTEXT
                }
                Step::QemuContexts if found.has_namespace("base:") && !found.has_namespace("qemu:") => {
                    replies::push_counted(&mut payload, name);
                    replies::push_length(&mut payload, 1);
                    replies::push_counted(&mut payload, b"qemu:");
                    OptionCode::LIST_META_CONTEXT
                }
                Step::Next => {
                    survey.at += 1;
                    survey.step = Step::Info;
                    continue;
                }
                skipped => {
                    survey.step = skipped.after();
                    continue;
                }
            };
            survey.step = survey.step.after();
            self.forget_info();
            send(out, option, &payload);
            self.state = State::Asked(option);
            return;
        }
        send(out, OptionCode::ABORT, &[]);
        self.state = State::Surveyed;
    }

    pub(super) fn survey_acknowledged(
        &mut self,
        option: OptionCode,
        out: &mut Vec<u8>,
    ) -> Result<(), DialError> {
        if option == OptionCode::INFO {
            let told =
                [&self.link.name, &self.link.description].map(|text| text.as_ref().map_or(0, String::len));
            if let Some(survey) = &mut self.survey {
                survey
                    .remember(told.iter().sum())
                    .map_err(|fault| Violation::OptionReply { option, fault })?;
            }
            if !self.told_export {
                let fault = "success without NBD_INFO_EXPORT";
                return Err(Violation::OptionReply { option, fault }.into());
            }
            let link = &mut self.link;
            let survey = self.survey.as_mut();
            if let Some(found) = survey.and_then(|survey| survey.found.get_mut(survey.at)) {
                found.export = Some((link.size, link.flags));
                found.block = link.block;
                found.canonical = link.name.take();
                found.description = link.description.take().or_else(|| found.description.take());
            }
        }
        self.survey_next(out);
        Ok(())
    }

    pub(super) fn survey_refused(
        &mut self,
        option: OptionCode,
        reply: OptionReply,
        text: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), DialError> {
        let Some(survey) = &mut self.survey else { return Ok(()) };
        match option {
            OptionCode::LIST => return Err(DialError::Refused { option, reply, text: text.to_owned() }),
            OptionCode::INFO => {
                survey.knows_info = reply != OptionReply::ERR_UNSUP;
                if let Some(found) = survey.found.get_mut(survey.at) {
                    found.refused = Some((reply, text.to_owned()));
                }
                if survey.knows_info {
                    survey.step = Step::Next;
                }
            }
            _ => survey.step = Step::Next,
        }
        self.survey_next(out);
        Ok(())
    }

    /// One line of the list: a name, and what follows it describes the export.
    pub(super) fn survey_entry(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let Some(survey) = &mut self.survey else { return Ok(()) };
        survey.remember(payload.len())?;
        let mut cursor = Cursor::new(payload);
        let name = cursor.counted().ok_or("a listed name is longer than its entry")?;
        if name.len() > STRING_LENGTH_MAX {
            return Err("a listed name is longer than 4096 bytes");
        }
        let name = std::str::from_utf8(name).map_err(|_| "a listed name that is not UTF-8")?.to_owned();
        let description = String::from_utf8_lossy(cursor.rest()).into_owned();
        let description = (!description.is_empty()).then_some(description);
        survey.found.push(Found { name, description, ..Found::default() });
        Ok(())
    }

    pub(super) fn survey_context(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let mut cursor = Cursor::new(payload);
        cursor.u32().ok_or("a meta context without an id")?;
        let name =
            std::str::from_utf8(cursor.rest()).map_err(|_| "a meta context whose name is not UTF-8")?;
        if name.is_empty() {
            return Err("a meta context without a name");
        }
        let Some(survey) = &mut self.survey else { return Ok(()) };
        survey.remember(payload.len())?;
        if survey.found.get(survey.at).is_some_and(|found| found.contexts.len() >= CONTEXTS_MAX) {
            return Err("it lists more than 4096 meta contexts");
        }
        if let Some(found) = survey.found.get_mut(survey.at)
            && !found.contexts.iter().any(|known| known == name)
        {
            found.contexts.push(name.to_owned());
        }
        Ok(())
    }
}

impl Found {
    fn has_namespace(&self, namespace: &str) -> bool {
        self.contexts.iter().any(|context| context.starts_with(namespace))
    }
}

impl Step {
    const fn after(self) -> Self {
        match self {
            Self::Info => Self::Contexts,
            Self::Contexts => Self::QemuContexts,
            Self::QemuContexts | Self::Next => Self::Next,
        }
    }
}
