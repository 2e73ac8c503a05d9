//! The transmission phase by hand, in all three dialects, with a strict eye: each rule of the specification about the
//! shape of a reply is asserted on every reply that any test receives.

use std::collections::HashMap;

use crate::wire::{Message, Wire, u16_at, u32_at, u64_at};

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;
pub(crate) const PAYLOAD_LEN: u16 = 32;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Simple,
    Structured,
    Extended,
}

pub(crate) const DIALECTS: [Dialect; 3] = [Dialect::Simple, Dialect::Structured, Dialect::Extended];

/// One request as it will be written.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) payload: Vec<u8>,
}

impl Request {
    pub(crate) fn new(command: u16, offset: u64, length: u64) -> Self {
        Self { command, flags: 0, offset, length, payload: Vec::new() }
    }

    pub(crate) fn write(offset: u64, payload: impl Into<Vec<u8>>) -> Self {
        let payload = payload.into();
        Self { command: WRITE, flags: 0, offset, length: payload.len() as u64, payload }
    }

    pub(crate) fn flags(mut self, flags: u16) -> Self {
        self.flags = flags;
        self
    }

    /// The bytes of this request. A payload in the extended dialect carries PAYLOAD_LEN, as it must.
    pub(crate) fn encode(&self, dialect: Dialect, cookie: u64) -> Vec<u8> {
        let mut message = match dialect {
            Dialect::Extended => {
                let payload = if self.payload.is_empty() { 0 } else { PAYLOAD_LEN };
                Message::default().u32(EXTENDED_REQUEST_MAGIC).u16(self.flags | payload)
            }
            _ => Message::default().u32(REQUEST_MAGIC).u16(self.flags),
        };
        message = message.u16(self.command).u64(cookie).u64(self.offset);
        message = match dialect {
            Dialect::Extended => message.u64(self.length),
            _ => message.u32(u32::try_from(self.length).expect("compact lengths have 32 bits")),
        };
        message.bytes(&self.payload).0
    }
}

/// A part of a reply that carried something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Data { offset: u64, bytes: Vec<u8> },
    Hole { offset: u64, length: u64 },
    Status { context: u32, extents: Vec<(u64, u64)> },
}

/// A complete reply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    pub(crate) errno: u32,
    pub(crate) text: String,
    pub(crate) error_at: Option<u64>,
    pub(crate) chunks: Vec<Chunk>,
    chatty: bool,
}

impl Reply {
    #[track_caller]
    pub(crate) fn ok(&self, symptom: &str) -> &Self {
        assert_eq!(self.errno, 0, "{symptom}: {}", self.text);
        self
    }

    /// Refused with `errno`, and with a sentence wherever the dialect can carry one.
    #[track_caller]
    pub(crate) fn refused(&self, errno: u32, symptom: &str) -> &Self {
        assert_eq!(self.errno, errno, "{symptom}: {:?}", self.text);
        assert!(!self.chatty || !self.text.is_empty(), "{symptom}: an error without a sentence");
        self
    }

    /// The bytes that a READ of `length` at `offset` brought.
    pub(crate) fn data(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0xee; length];
        for chunk in &self.chunks {
            match chunk {
                Chunk::Data { offset: at, bytes } => {
                    data[(at - offset) as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                Chunk::Hole { offset: at, length } => {
                    data[(at - offset) as usize..][..*length as usize].fill(0);
                }
                Chunk::Status { .. } => panic!("BLOCK_STATUS in a READ"),
            }
        }
        data
    }

    /// The extents of one context.
    pub(crate) fn extents(&self, context: u32) -> Vec<(u64, u64)> {
        let mut found = self.chunks.iter().filter_map(|chunk| match chunk {
            Chunk::Status { context: id, extents } if *id == context => Some(extents.clone()),
            _ => None,
        });
        let extents = found.next().unwrap_or_else(|| panic!("no chunk for context {context}"));
        assert!(found.next().is_none(), "two chunks for context {context}");
        extents
    }

    pub(crate) fn has_hole(&self) -> bool {
        self.chunks.iter().any(|chunk| matches!(chunk, Chunk::Hole { .. }))
    }
}

/// A connection in the transmission phase.
pub(crate) struct Client {
    pub(crate) wire: Wire,
    pub(crate) dialect: Dialect,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    /// Minimum, preferred, maximum payload.
    pub(crate) block: [u32; 3],
    pub(crate) contexts: Vec<(u32, String)>,
    cookie: u64,
    pending: HashMap<u64, (Request, Reply)>,
}

impl Client {
    pub(crate) fn new(wire: Wire, dialect: Dialect, contexts: Vec<(u32, String)>) -> Self {
        let cookie = 0x7269_6e67_6e62_6400;
        Self { wire, dialect, size: 0, flags: 0, block: [0; 3], contexts, cookie, pending: HashMap::new() }
    }

    /// Registers a request whose bytes the caller sends; its cookie and its bytes.
    pub(crate) fn prepare(&mut self, request: &Request) -> (u64, Vec<u8>) {
        self.cookie += 1;
        let reply =
            Reply { cookie: self.cookie, chatty: self.dialect != Dialect::Simple, ..Reply::default() };
        self.pending.insert(self.cookie, (request.clone(), reply));
        (self.cookie, request.encode(self.dialect, self.cookie))
    }

    #[track_caller]
    pub(crate) fn submit(&mut self, request: &Request) -> u64 {
        let (cookie, bytes) = self.prepare(request);
        self.wire.send(bytes);
        cookie
    }

    #[track_caller]
    pub(crate) fn call(&mut self, request: &Request) -> Reply {
        let cookie = self.submit(request);
        let reply = self.reply();
        assert_eq!(reply.cookie, cookie, "only one request was in flight");
        reply
    }

    #[track_caller]
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.call(&Request::write(offset, bytes)).ok("WRITE");
    }

    #[track_caller]
    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let reply = self.call(&Request::new(READ, offset, length as u64));
        reply.ok("READ").data(offset, length)
    }

    #[track_caller]
    pub(crate) fn flush(&mut self) {
        self.call(&Request::new(FLUSH, 0, 0)).ok("FLUSH");
    }

    /// The connection still works.
    #[track_caller]
    pub(crate) fn is_alive(&mut self, symptom: &str) {
        let reply = self.call(&Request::new(READ, 0, 512.min(self.size)));
        assert_eq!(reply.errno, 0, "{symptom}: the next request failed: {}", reply.text);
    }

    /// DISC has no reply: the server just closes.
    #[track_caller]
    pub(crate) fn disconnect(mut self) {
        let (_, bytes) = self.prepare(&Request::new(DISC, 0, 0));
        self.wire.send(bytes);
        self.wire.expect_close("DISC");
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The id of a selected context.
    pub(crate) fn context(&self, name: &str) -> u32 {
        let found = self.contexts.iter().find(|(_, context)| context == name);
        found.unwrap_or_else(|| panic!("{name} is not among {:?}", self.contexts)).0
    }

    /// The next reply that becomes complete, whichever request it belongs to.
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Reply {
        loop {
            let magic = u32_at(&self.wire.receive(4), 0);
            let done = match (magic, self.dialect) {
                (SIMPLE_REPLY_MAGIC, Dialect::Simple | Dialect::Structured) => self.simple(),
                (STRUCTURED_REPLY_MAGIC, Dialect::Structured) => {
                    let head = self.wire.receive(16);
                    let length = u64::from(u32_at(&head, 12));
                    self.chunk(u16_at(&head, 0), u16_at(&head, 2), u64_at(&head, 4), length)
                }
                (EXTENDED_REPLY_MAGIC, Dialect::Extended) => {
                    let head = self.wire.receive(28);
                    let cookie = u64_at(&head, 4);
                    let (request, _) = self.pending.get(&cookie).expect("a reply to a request of ours");
                    assert_eq!(u64_at(&head, 12), request.offset, "extended replies echo the offset");
                    self.chunk(u16_at(&head, 0), u16_at(&head, 2), cookie, u64_at(&head, 20))
                }
                (magic, dialect) => panic!("reply magic {magic:08x} in the {dialect:?} dialect"),
            };
            if let Some(cookie) = done {
                let (request, reply) = self.pending.remove(&cookie).expect("it was pending");
                self.check_complete(&request, &reply);
                return reply;
            }
        }
    }

    fn simple(&mut self) -> Option<u64> {
        let head = self.wire.receive(12);
        let (errno, cookie) = (u32_at(&head, 0), u64_at(&head, 4));
        let (request, reply) = self.pending.get_mut(&cookie).expect("a reply to a request of ours");
        reply.errno = errno;
        if self.dialect == Dialect::Structured {
            assert_ne!(request.command, READ, "READ is never answered simply under structured replies");
            assert!(reply.chunks.is_empty() && reply.text.is_empty(), "a simple reply after a chunk");
        } else if request.command == READ && errno == 0 && request.length > 0 {
            let bytes = self.wire.receive(request.length as usize);
            reply.chunks.push(Chunk::Data { offset: request.offset, bytes });
        }
        Some(cookie)
    }

    /// One chunk; the cookie if it was the last of its reply.
    fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, length: u64) -> Option<u64> {
        assert!(length <= (64 << 20) + 4096, "a chunk of {length} bytes");
        assert_eq!(flags & !1, 0, "unknown reply flags");
        let payload = self.wire.receive(length as usize);
        let (request, reply) = self.pending.get_mut(&cookie).expect("a reply to a request of ours");
        let wide = self.dialect == Dialect::Extended;
        match kind {
            0 => assert!(length == 0 && flags == 1, "NONE has no payload and is the last"),
            1 => {
                assert!(length >= 9, "OFFSET_DATA describes at least one byte");
                reply.chunks.push(Chunk::Data { offset: u64_at(&payload, 0), bytes: payload[8..].to_vec() });
            }
            2 => {
                assert_eq!(length, 12, "OFFSET_HOLE has 12 bytes");
                let length = u64::from(u32_at(&payload, 8));
                assert!(length > 0, "an empty hole");
                reply.chunks.push(Chunk::Hole { offset: u64_at(&payload, 0), length });
            }
            5 if !wide => {
                assert!(length >= 12 && (length - 4).is_multiple_of(8), "BLOCK_STATUS of {length} bytes");
                let pairs = payload[4..].chunks(8);
                let extents = pairs.map(|pair| (u32_at(pair, 0).into(), u32_at(pair, 4).into())).collect();
                reply.chunks.push(Chunk::Status { context: u32_at(&payload, 0), extents });
            }
            6 if wide => {
                assert!(
                    length >= 24 && (length - 8).is_multiple_of(16),
                    "BLOCK_STATUS_EXT of {length} bytes"
                );
                assert_eq!(u64::from(u32_at(&payload, 4)) * 16 + 8, length, "the count of descriptors");
                let pairs = payload[8..].chunks(16);
                let extents = pairs.map(|pair| (u64_at(pair, 0), u64_at(pair, 8))).collect();
                reply.chunks.push(Chunk::Status { context: u32_at(&payload, 0), extents });
            }
            0x8001 | 0x8002 => {
                let tail = if kind == 0x8002 { 8 } else { 0 };
                let text = u16_at(&payload, 4) as usize;
                assert_eq!(length as usize, 6 + text + tail, "an error chunk holds its text and no more");
                assert!(text <= 4096, "a string of {text} bytes");
                assert!(reply.errno == 0, "a second error chunk");
                reply.errno = u32_at(&payload, 0);
                assert_ne!(reply.errno, 0, "an error chunk without an error");
                reply.text = String::from_utf8(payload[6..6 + text].to_vec()).expect("the text is UTF-8");
                if tail == 8 {
                    let at = u64_at(&payload, 6 + text);
                    assert!(
                        at >= request.offset && at < request.offset + request.length,
                        "offset of an error"
                    );
                    reply.error_at = Some(at);
                }
            }
            other => panic!("chunk type {other:#x} in a {:?} reply", self.dialect),
        }
        (flags == 1).then_some(cookie)
    }

    /// What must hold of a reply once its last chunk is here.
    fn check_complete(&self, request: &Request, reply: &Reply) {
        match request.command {
            READ => check_read(request, reply),
            BLOCK_STATUS => {
                let mut seen = Vec::new();
                for chunk in &reply.chunks {
                    let Chunk::Status { context, extents } = chunk else { panic!("data in a BLOCK_STATUS") };
                    assert!(self.contexts.iter().any(|(id, _)| id == context), "context {context} unasked");
                    assert!(!seen.contains(context), "two chunks for context {context}");
                    seen.push(*context);
                    check_extents(request, extents);
                }
            }
            _ => assert!(reply.chunks.is_empty(), "content in a reply to command {}", request.command),
        }
    }
}

fn check_read(request: &Request, reply: &Reply) {
    let mut spans: Vec<(u64, u64)> = reply.chunks.iter().map(span).collect();
    spans.sort_unstable();
    let end = request.offset.saturating_add(request.length);
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "content chunks overlap: {spans:?}");
    assert!(spans.iter().all(|span| span.0 >= request.offset && span.1 <= end), "content outside: {spans:?}");
    assert!(request.flags & DF == 0 || spans.len() <= 1, "more than one content chunk with DF");
    if reply.errno == 0 {
        let covered: u64 = spans.iter().map(|span| span.1 - span.0).sum();
        assert_eq!(covered, request.length, "a successful READ covers the request");
    }
}

fn span(chunk: &Chunk) -> (u64, u64) {
    match chunk {
        Chunk::Data { offset, bytes } => (*offset, offset + bytes.len() as u64),
        Chunk::Hole { offset, length } => (*offset, offset + length),
        Chunk::Status { .. } => panic!("BLOCK_STATUS in a READ"),
    }
}

fn check_extents(request: &Request, extents: &[(u64, u64)]) {
    assert!(!extents.is_empty() && extents.len() <= 1 << 20, "{} extents", extents.len());
    assert!(extents.iter().all(|(length, _)| *length > 0), "an extent of no length");
    let before_last: u64 = extents[..extents.len() - 1].iter().map(|(length, _)| length).sum();
    if request.payload.is_empty() {
        assert!(before_last < request.length, "extents go on after the request is covered");
        if request.flags & REQ_ONE != 0 {
            assert!(extents.len() == 1 && extents[0].0 <= request.length, "REQ_ONE: {extents:?}");
        }
    }
}
