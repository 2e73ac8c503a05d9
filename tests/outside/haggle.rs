//! The handshake by hand: greeting, client flags, options and their replies.

use crate::client::{Client, Dialect};
use crate::wire::{Address, Message, Wire, u16_at, u32_at, u64_at};

pub(crate) const NBDMAGIC: &[u8; 8] = b"NBDMAGIC";
pub(crate) const IHAVEOPT: &[u8; 8] = b"IHAVEOPT";
pub(crate) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

pub(crate) const FIXED: u32 = 1;
pub(crate) const NO_ZEROES: u32 = 2;

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const ABORT: u32 = 2;
pub(crate) const LIST: u32 = 3;
pub(crate) const STARTTLS: u32 = 5;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED_REPLY: u32 = 8;
pub(crate) const LIST_META: u32 = 9;
pub(crate) const SET_META: u32 = 10;
pub(crate) const EXTENDED_HEADERS: u32 = 11;

pub(crate) const ACK: u32 = 1;
pub(crate) const SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const META_CONTEXT: u32 = 4;
pub(crate) const UNSUP: u32 = 0x8000_0001;
pub(crate) const POLICY: u32 = 0x8000_0002;
pub(crate) const INVALID: u32 = 0x8000_0003;
pub(crate) const TLS_REQD: u32 = 0x8000_0005;
pub(crate) const UNKNOWN: u32 = 0x8000_0006;
pub(crate) const SHUTDOWN: u32 = 0x8000_0007;
pub(crate) const EXT_HEADER_REQD: u32 = 0x8000_000a;

pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_NAME: u16 = 1;
pub(crate) const INFO_DESCRIPTION: u16 = 2;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// One reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) payload: Vec<u8>,
}

impl OptionReply {
    pub(crate) fn is_final(&self) -> bool {
        self.kind == ACK || self.is_error()
    }

    pub(crate) fn is_error(&self) -> bool {
        self.kind & 0x8000_0000 != 0
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).expect("the text of an error is UTF-8")
    }

    /// The type of an INFO item.
    pub(crate) fn info(&self) -> u16 {
        assert_eq!(self.kind, REP_INFO);
        u16_at(&self.payload, 0)
    }
}

/// The bytes of one option.
pub(crate) fn option(code: u32, payload: &[u8]) -> Vec<u8> {
    Message::default().bytes(IHAVEOPT).u32(code).u32(payload.len() as u32).bytes(payload).0
}

/// The payload of INFO and GO.
pub(crate) fn export_query(name: &str, items: &[u16]) -> Vec<u8> {
    items.iter().fold(Message::default().string(name).u16(items.len() as u16), |m, item| m.u16(*item)).0
}

/// The payload of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let start = Message::default().string(name).u32(queries.len() as u32);
    queries.iter().fold(start, |message, query| message.string(query)).0
}

/// A connection that is still haggling.
pub(crate) struct Haggle {
    pub(crate) wire: Wire,
    structured: bool,
    extended: bool,
    contexts: Vec<(u32, String)>,
}

impl Haggle {
    /// Reads the greeting, checks it, and sends `flags`.
    pub(crate) fn with_flags(address: &Address, flags: u32) -> Self {
        Self::over(Wire::connect(address), flags)
    }

    /// The same on a connection that is made already.
    pub(crate) fn over(mut wire: Wire, flags: u32) -> Self {
        let greeting = wire.receive(18);
        assert_eq!(&greeting[..8], NBDMAGIC);
        assert_eq!(&greeting[8..16], IHAVEOPT);
        assert_eq!(u16_at(&greeting, 16), 3, "FIXED_NEWSTYLE and NO_ZEROES, nothing else");
        wire.send(flags.to_be_bytes());
        Self { wire, structured: false, extended: false, contexts: Vec::new() }
    }

    pub(crate) fn new(address: &Address) -> Self {
        Self::with_flags(address, FIXED | NO_ZEROES)
    }

    /// One reply; it must carry the right magic and name the option it answers.
    #[track_caller]
    pub(crate) fn reply(&mut self, code: u32) -> OptionReply {
        let head = self.wire.receive(20);
        assert_eq!(u64_at(&head, 0), REPLY_MAGIC, "magic of an option reply: {head:02x?}");
        assert_eq!(u32_at(&head, 8), code, "the option that is answered");
        let kind = u32_at(&head, 12);
        let length = u32_at(&head, 16);
        assert!(length <= 16 << 20, "an option reply of {length} bytes");
        let reply = OptionReply { kind, payload: self.wire.receive(length as usize) };
        if kind == ACK {
            assert!(reply.payload.is_empty(), "ACK has no data");
        }
        if reply.is_error() {
            assert!(reply.payload.len() <= 4096, "a string of {} bytes", reply.payload.len());
            reply.text();
        }
        reply
    }

    /// Sends an option and collects its replies; the last one is final.
    #[track_caller]
    pub(crate) fn ask(&mut self, code: u32, payload: &[u8]) -> Vec<OptionReply> {
        self.wire.send(option(code, payload));
        self.replies(code)
    }

    #[track_caller]
    pub(crate) fn replies(&mut self, code: u32) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            let reply = self.reply(code);
            let is_final = reply.is_final();
            replies.push(reply);
            if is_final {
                return replies;
            }
        }
    }

    /// The final reply only.
    #[track_caller]
    pub(crate) fn outcome(&mut self, code: u32, payload: &[u8]) -> OptionReply {
        self.ask(code, payload).pop().expect("there is a final reply")
    }

    /// The option must be refused with `kind` and a sentence.
    #[track_caller]
    pub(crate) fn refused(&mut self, code: u32, payload: &[u8], kind: u32, symptom: &str) -> String {
        let replies = self.ask(code, payload);
        assert_eq!(replies.len(), 1, "{symptom}: {replies:02x?}");
        assert_eq!(replies[0].kind, kind, "{symptom}: {:08x} {:?}", replies[0].kind, replies[0].text());
        assert!(!replies[0].payload.is_empty(), "{symptom}: an error without a sentence");
        replies[0].text()
    }

    /// Framing is intact: a harmless option is understood.
    #[track_caller]
    pub(crate) fn is_framed(&mut self, symptom: &str) {
        let replies = self.ask(LIST, &[]);
        assert_eq!(replies.last().map(|reply| reply.kind), Some(ACK), "{symptom}: framing was lost");
    }

    #[track_caller]
    pub(crate) fn structured(mut self) -> Self {
        assert_eq!(self.outcome(STRUCTURED_REPLY, &[]).kind, ACK, "STRUCTURED_REPLY");
        self.structured = true;
        self
    }

    #[track_caller]
    pub(crate) fn extended(mut self) -> Self {
        assert_eq!(self.outcome(EXTENDED_HEADERS, &[]).kind, ACK, "EXTENDED_HEADERS");
        self.extended = true;
        self
    }

    pub(crate) fn dialect(self, dialect: Dialect) -> Self {
        match dialect {
            Dialect::Simple => self,
            Dialect::Structured => self.structured(),
            Dialect::Extended => self.extended(),
        }
    }

    /// Selects meta contexts for export `name`.
    #[track_caller]
    pub(crate) fn contexts(mut self, name: &str, queries: &[&str]) -> Self {
        let mut replies = self.ask(SET_META, &meta_query(name, queries));
        assert_eq!(replies.pop().map(|reply| reply.kind), Some(ACK), "SET_META_CONTEXT");
        self.contexts = replies.iter().map(meta_context).collect();
        self
    }

    /// GO with a BLOCK_SIZE request, into the transmission phase.
    #[track_caller]
    pub(crate) fn go(mut self, name: &str) -> Client {
        let mut replies = self.ask(GO, &export_query(name, &[INFO_BLOCK_SIZE]));
        let last = replies.pop().expect("a final reply");
        assert_eq!(last.kind, ACK, "GO {name:?}: {:08x} {}", last.kind, last.text());
        let dialect = self.current_dialect();
        let mut client = Client::new(self.wire, dialect, self.contexts);
        for info in replies {
            match info.info() {
                INFO_EXPORT => {
                    assert_eq!(info.payload.len(), 12);
                    client.size = u64_at(&info.payload, 2);
                    client.flags = u16_at(&info.payload, 10);
                }
                INFO_BLOCK_SIZE => {
                    assert_eq!(info.payload.len(), 14);
                    client.block = [2, 6, 10].map(|at| u32_at(&info.payload, at));
                }
                _ => {}
            }
        }
        assert!(client.flags & 1 == 1, "HAS_FLAGS is always set");
        client
    }

    fn current_dialect(&self) -> Dialect {
        match (self.extended, self.structured) {
            (true, _) => Dialect::Extended,
            (_, true) => Dialect::Structured,
            _ => Dialect::Simple,
        }
    }
}

/// Id and name in a META_CONTEXT reply.
pub(crate) fn meta_context(reply: &OptionReply) -> (u32, String) {
    assert_eq!(reply.kind, META_CONTEXT);
    (u32_at(&reply.payload, 0), String::from_utf8(reply.payload[4..].to_vec()).expect("a context is UTF-8"))
}

/// A client in transmission on the export `name`, in `dialect`.
#[track_caller]
pub(crate) fn enter(address: &Address, name: &str, dialect: Dialect) -> Client {
    Haggle::new(address).dialect(dialect).go(name)
}
