//! What the dialer makes of each option reply.

use bytes::BufMut;

use super::{DialError, Dialer, State, TlsMode};
use crate::proto::consts::{InfoType, OPTION_REPLY_MAGIC, OptionCode, OptionReply, TransmissionFlags};
use crate::proto::cursor::Cursor;
use crate::proto::export::BlockSizes;
use crate::proto::session::Dialect;
use crate::proto::violation::Violation;

/// Longest reply that anyone needs to send, in bytes; a longer one ends the connection.
const REPLY_LENGTH_MAX: u32 = 32 << 20;
/// Longest reply that is looked at, in bytes: two of the protocol's longest strings fit many times.
const REPLY_KEPT_MAX: u32 = 64 << 10;

/// One option reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    pub(super) kind: OptionReply,
    pub(super) payload: Payload<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    Whole(&'a [u8]),
    /// The sentence of an error, too long to be read: bytes to skip.
    Unread(u32),
}

impl<'a> Reply<'a> {
    /// A whole reply to `asked`; `None` asks for more bytes, and nothing was consumed.
    pub(super) fn decode(cursor: &mut Cursor<'a>, asked: OptionCode) -> Result<Option<Self>, Violation> {
        let fault = |fault| Violation::OptionReply { option: asked, fault };
        let mut ahead = cursor.clone();
        let Some(magic) = ahead.u64() else { return Ok(None) };
        if magic != OPTION_REPLY_MAGIC {
            return Err(Violation::OptionReplyMagic(magic));
        }
        let (Some(option), Some(kind), Some(length)) = (ahead.u32(), ahead.u32(), ahead.u32()) else {
            return Ok(None);
        };
        let (replied, kind) = (OptionCode(option), OptionReply(kind));
        if replied != asked {
            return Err(Violation::OptionReplyOption { asked, replied });
        }
        if length > REPLY_LENGTH_MAX {
            return Err(fault("it is longer than 32 MiB"));
        }
        if length > REPLY_KEPT_MAX {
            if !kind.is_error() {
                return Err(fault("it is longer than any legal one"));
            }
            *cursor = ahead;
            return Ok(Some(Self { kind, payload: Payload::Unread(length) }));
        }
        let Some(payload) = usize::try_from(length).ok().and_then(|length| ahead.take(length)) else {
            return Ok(None);
        };
        *cursor = ahead;
        Ok(Some(Self { kind, payload: Payload::Whole(payload) }))
    }
}

impl Dialer {
    /// One reply to the option in question.
    pub(super) fn replied(
        &mut self,
        option: OptionCode,
        kind: OptionReply,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), DialError> {
        let fault = |fault| DialError::Violation(Violation::OptionReply { option, fault });
        match (kind, option) {
            (OptionReply::ACK, _) if !payload.is_empty() => Err(fault("success comes with data")),
            (OptionReply::ACK, _) => self.acknowledged(option, out),
            (OptionReply::INFO, OptionCode::GO | OptionCode::INFO) => self.informed(payload).map_err(fault),
            (OptionReply::META_CONTEXT, OptionCode::SET_META_CONTEXT) => {
                self.selected(payload).map_err(fault)
            }
            (OptionReply::META_CONTEXT, OptionCode::LIST_META_CONTEXT) => {
                self.survey_context(payload).map_err(fault)
            }
            (OptionReply::SERVER, OptionCode::LIST) if self.survey.is_some() => {
                self.survey_entry(payload).map_err(fault)
            }
            (OptionReply::SERVER, OptionCode::LIST) => self.entry(payload).map_err(fault),
            _ if kind.is_error() => {
                self.refused(option, kind, String::from_utf8_lossy(payload).trim_end(), out)
            }
            _ => Err(fault("it is of a kind that this option does not have")),
        }
    }

    fn acknowledged(&mut self, option: OptionCode, out: &mut Vec<u8>) -> Result<(), DialError> {
        match option {
            OptionCode::STARTTLS => {
                self.state = State::Securing;
                return Ok(());
            }
            _ if self.survey.is_some() && !negotiates(option) => {
                return self.survey_acknowledged(option, out);
            }
            OptionCode::EXTENDED_HEADERS => self.link.dialect = Dialect::Extended,
            OptionCode::STRUCTURED_REPLY => self.link.dialect = Dialect::Structured,
            OptionCode::GO if self.told_export => {
                self.state = State::Linked;
                return Ok(());
            }
            OptionCode::GO => {
                let fault = "success without NBD_INFO_EXPORT";
                return Err(Violation::OptionReply { option, fault }.into());
            }
            OptionCode::LIST => return self.after_list(out),
            _ => {}
        }
        self.ask_next(Some(option), out);
        Ok(())
    }

    /// An error reply. Most options can be done without.
    pub(super) fn refused(
        &mut self,
        option: OptionCode,
        reply: OptionReply,
        text: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), DialError> {
        let final_words = matches!(reply, OptionReply::ERR_TLS_REQD | OptionReply::ERR_SHUTDOWN);
        let extended = self.link.dialect == Dialect::Extended;
        match option {
            _ if final_words => {}
            _ if self.survey.is_some() && !negotiates(option) => {
                return self.survey_refused(option, reply, text, out);
            }
            OptionCode::STARTTLS if self.config.tls == TlsMode::Allow => {
                self.ask_next(Some(option), out);
                return Ok(());
            }
            OptionCode::EXTENDED_HEADERS | OptionCode::STRUCTURED_REPLY => {
                self.ask_next(Some(option), out);
                return Ok(());
            }
            OptionCode::SET_META_CONTEXT => {
                // Contexts that came before an error do not count.
                self.link.contexts.clear();
                self.ask_next(Some(option), out);
                return Ok(());
            }
            // With extended headers there is no falling back: EXPORT_NAME is forbidden.
            OptionCode::GO if reply == OptionReply::ERR_UNSUP && !extended => {
                self.forget_info();
                self.ask(OptionCode::LIST, out);
                return Ok(());
            }
            OptionCode::LIST => {
                self.ask(OptionCode::EXPORT_NAME, out);
                return Ok(());
            }
            _ => {}
        }
        Err(DialError::Refused { option, reply, text: text.to_owned() })
    }

    /// An empty list says nothing: servers may hide their exports.
    fn after_list(&mut self, out: &mut Vec<u8>) -> Result<(), DialError> {
        if self.listed == Some(false) {
            return Err(DialError::NotListed(self.config.export.clone()));
        }
        self.ask(OptionCode::EXPORT_NAME, out);
        Ok(())
    }

    fn entry(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let mut cursor = Cursor::new(payload);
        let name = cursor.counted().ok_or("a listed name is longer than its entry")?;
        // The default export has no name of its own to be listed by.
        let wanted = self.config.export.is_empty() || name == self.config.export.as_bytes();
        self.listed = Some(wanted || self.listed == Some(true));
        Ok(())
    }

    fn selected(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let mut cursor = Cursor::new(payload);
        let id = cursor.u32().ok_or("a meta context without an id")?;
        let name =
            std::str::from_utf8(cursor.rest()).map_err(|_| "a meta context whose name is not UTF-8")?;
        if !self.config.contexts.iter().any(|context| context == name) {
            return Err("a meta context that was not asked for");
        }
        if self.link.contexts.iter().any(|(other, context)| *other == id || context == name) {
            return Err("a meta context or its id comes twice");
        }
        self.link.contexts.push((id, name.to_owned()));
        Ok(())
    }

    fn informed(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let mut cursor = Cursor::new(payload);
        let kind = InfoType(cursor.u16().ok_or("information without a type")?);
        match kind {
            InfoType::EXPORT => {
                let (Some(size), Some(flags), true) = (cursor.u64(), cursor.u16(), cursor.is_empty()) else {
                    return Err("NBD_INFO_EXPORT is not 12 bytes");
                };
                (self.link.size, self.link.flags) = (size, TransmissionFlags(flags));
                self.told_export = true;
            }
            InfoType::BLOCK_SIZE => {
                let sizes = (cursor.u32(), cursor.u32(), cursor.u32(), cursor.is_empty());
                let (Some(minimum), Some(preferred), Some(maximum), true) = sizes else {
                    return Err("NBD_INFO_BLOCK_SIZE is not 14 bytes");
                };
                self.link.block = Some(checked_sizes(BlockSizes { minimum, preferred, maximum })?);
            }
            InfoType::NAME => self.link.name = Some(text(cursor.rest())?),
            InfoType::DESCRIPTION => self.link.description = Some(text(cursor.rest())?),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn forget_info(&mut self) {
        self.told_export = false;
        self.link.block = None;
        self.link.name = None;
        self.link.description = None;
    }
}

/// Options that agree on how to talk, before any export is in question.
const fn negotiates(option: OptionCode) -> bool {
    matches!(option, OptionCode::STARTTLS | OptionCode::EXTENDED_HEADERS | OptionCode::STRUCTURED_REPLY)
}

fn checked_sizes(block: BlockSizes) -> Result<BlockSizes, &'static str> {
    if !block.minimum.is_power_of_two() || block.minimum > 1 << 16 {
        return Err("the minimum block size is not a power of two up to 65536");
    }
    if !block.preferred.is_power_of_two() || block.preferred < block.minimum {
        return Err("the preferred block size is not a power of two from the minimum up");
    }
    if block.maximum < block.minimum {
        return Err("the maximum payload is below the minimum block size");
    }
    Ok(block)
}

fn text(bytes: &[u8]) -> Result<String, &'static str> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a string that is not UTF-8")
}

pub(super) fn push_length(out: &mut Vec<u8>, length: usize) {
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

pub(super) fn push_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    push_length(out, bytes.len());
    out.extend_from_slice(bytes);
}
