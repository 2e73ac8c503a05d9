//! What the server answers to each option, once it is known to be well-formed.

use bytes::BufMut;

use super::{Handshake, Question, State, Step, Tls};
use crate::proto::consts::{INIT_MAGIC, InfoType, OLDSTYLE_MAGIC, OptionCode, OptionReply, RESERVED_ZEROES};
use crate::proto::context::MetaRequest;
use crate::proto::export::Lookup;
use crate::proto::option::{self, InfoRequest, quoted};
use crate::proto::session::session_flags;

impl Handshake {
    pub(super) fn start_tls(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let option = OptionCode::STARTTLS;
        if self.encrypted {
            option::refuse(out, option, OptionReply::ERR_INVALID, "TLS is in use already");
            return None;
        }
        if self.config.tls == Tls::Off {
            let text = "this server offers no TLS; go on without it or disconnect";
            option::refuse(out, option, OptionReply::ERR_POLICY, text);
            return None;
        }
        option::ack(out, option);
        Some(self.ask(Question::Tls))
    }

    pub(super) fn structured_reply(&mut self, out: &mut Vec<u8>) {
        let option = OptionCode::STRUCTURED_REPLY;
        if self.extended {
            let text = "extended headers are in use and take precedence";
            option::refuse(out, option, OptionReply::ERR_EXT_HEADER_REQD, text);
        } else if self.structured {
            option::refuse(
                out,
                option,
                OptionReply::ERR_INVALID,
                "structured replies are negotiated already",
            );
        } else {
            self.structured = true;
            option::ack(out, option);
        }
    }

    pub(super) fn extended_headers(&mut self, out: &mut Vec<u8>) {
        let option = OptionCode::EXTENDED_HEADERS;
        if self.extended {
            option::refuse(out, option, OptionReply::ERR_INVALID, "extended headers are negotiated already");
        } else {
            self.extended = true;
            option::ack(out, option);
        }
    }

    pub(super) fn greet_oldstyle(&mut self, export: Lookup<'_>, out: &mut Vec<u8>) -> Step {
        self.state = State::Over;
        let Lookup::Found(export) = export else {
            return Step::Close;
        };
        let session = self.session(export, false);
        out.put_u64(INIT_MAGIC);
        out.put_u64(OLDSTYLE_MAGIC);
        out.put_u64(session.size);
        out.put_u32(u32::from(session.flags.0));
        out.extend_from_slice(&[0; RESERVED_ZEROES]);
        Step::Transmit(session)
    }

    pub(super) fn enter_by_name(&mut self, export: Lookup<'_>, out: &mut Vec<u8>) -> Step {
        self.state = State::Over;
        let Lookup::Found(export) = export else {
            return Step::Close;
        };
        let session = self.session(export, false);
        out.put_u64(session.size);
        out.put_u16(session.flags.0);
        if !self.no_zeroes {
            out.extend_from_slice(&[0; RESERVED_ZEROES]);
        }
        Step::Transmit(session)
    }

    pub(super) fn inform(
        &mut self,
        go: bool,
        request: &InfoRequest,
        export: Lookup<'_>,
        out: &mut Vec<u8>,
    ) -> Step {
        let option = if go { OptionCode::GO } else { OptionCode::INFO };
        let Lookup::Found(export) = export else {
            let hides_unknown = self.config.tls == Tls::On { hides_unknown: true };
            let behind_tls = match export {
                Lookup::TlsRequired => true,
                Lookup::Unknown => hides_unknown,
                _ => false,
            };
            if behind_tls && !self.encrypted {
                let text = "the export needs TLS, or is not here; begin with STARTTLS to know";
                option::refuse(out, option, OptionReply::ERR_TLS_REQD, text);
            } else {
                refuse_lookup(option, &request.name, export, out);
            }
            return Step::Receive;
        };
        if request.wants_name {
            option::info_string(out, option, InfoType::NAME, &export.name);
        }
        if let Some(description) = &export.description {
            option::info_string(out, option, InfoType::DESCRIPTION, description);
        }
        // A client that enters without asking promised nothing. It is told what it can rely on: every
        // byte is addressable, unless the export is strict.
        let mut block = export.block;
        if go && !request.wants_block_size && !export.strict {
            block.minimum = 1;
        }
        option::info_block_size(out, option, block);
        let flags = session_flags(export, self.dialect(), self.selected(export).is_some());
        option::info_export(out, option, export.size, flags.0);
        if go {
            option::ack(out, option);
            self.state = State::Over;
            return Step::Transmit(self.session(export, request.wants_block_size));
        }
        if !request.wants_block_size && export.block.minimum > 1 {
            let text =
                format!("the block size is {}; ask for NBD_INFO_BLOCK_SIZE and keep to it", block.minimum);
            option::refuse(out, option, OptionReply::ERR_BLOCK_SIZE_REQD, &text);
        } else {
            option::ack(out, option);
        }
        Step::Receive
    }

    pub(super) fn answer_meta(&mut self, request: &MetaRequest, export: Lookup<'_>, out: &mut Vec<u8>) {
        let Lookup::Found(export) = export else {
            return refuse_lookup(request.option, &request.name, export, out);
        };
        let selection = request.answer(export, out);
        if request.option == OptionCode::SET_META_CONTEXT {
            self.selection = Some(selection);
        }
    }
}

/// Says why `name` is not to be had. What the client must not know of gets the very words of what is not there.
fn refuse_lookup(option: OptionCode, name: &str, lookup: Lookup<'_>, out: &mut Vec<u8>) {
    let (kind, text) = match lookup {
        Lookup::Forbidden if name.is_empty() => {
            (OptionReply::ERR_POLICY, "you are not allowed to open the default export".to_owned())
        }
        Lookup::Forbidden => {
            (OptionReply::ERR_POLICY, format!("you are not allowed to open the export {}", quoted(name)))
        }
        _ if name.is_empty() => {
            (OptionReply::ERR_UNKNOWN, "this server has no default export; name one".to_owned())
        }
        _ => (OptionReply::ERR_UNKNOWN, format!("this server has no export named {}", quoted(name))),
    };
    option::refuse(out, option, kind, &text);
}
