//! One function per decoder: bytes of any kind in, no panic, and nothing that grows without a limit.
//!
//! `cargo fuzz run handshake` and the like drive them for hours; `tests/fuzz_brief.rs` for a moment on every run of
//! the tests.
#![allow(dead_code)] // each fuzz target uses one of them

#[path = "records.rs"]
mod records;

#[allow(unused_imports)] // each target is about one body
pub(crate) use records::tls;
use ringnbd::proto::reply_decode::{Pending, Reply};
use ringnbd::proto::{
    Admission, BlockSizes, Command, CommandFlags, Dialect, Dialed, Dialer, DialerConfig, ExportInfo,
    Handshake, HandshakeConfig, Listing, Request, SelectedContext, Session, Step, Style, SurveyConfig,
    TlsMode, TransmissionFlags, Violation, Which, reply,
};
use smallvec::SmallVec;

/// An export with something of everything.
fn export() -> ExportInfo {
    ExportInfo {
        id: 0,
        name: "disk".to_owned(),
        description: Some("a disk".to_owned()),
        size: 1 << 40,
        flags: TransmissionFlags(0x0d7d),
        block: BlockSizes { minimum: 512, preferred: 4096, maximum: 64 << 20 },
        strict: true,
        contexts: vec!["base:allocation".to_owned(), "qemu:allocation-depth".to_owned()],
    }
}

/// The server's handshake, and after it the requests. The first byte chooses the style and how the rest is cut.
pub(crate) fn handshake(input: &[u8]) {
    let Some((&first, input)) = input.split_first() else { return };
    let style = if first & 0x80 == 0 { Style::Fixed } else { Style::Oldstyle };
    let piece = usize::from(first & 0x7f) + 1;
    let mut out = Vec::new();
    let config = HandshakeConfig { style, ..HandshakeConfig::default() };
    let mut handshake = Handshake::new(config, &mut out);
    let mut held = Vec::new();
    let mut parts = input.chunks(piece);
    while let Some(part) = parts.next() {
        held.extend_from_slice(part);
        match serve(&mut handshake, &mut held, &mut out) {
            Ok(None) => {}
            Ok(Some(session)) => {
                held.extend(parts.flatten());
                return transmission(&session, &held);
            }
            Err(_) => return,
        }
        assert!(out.len() <= 8192, "one step wrote {} bytes", out.len());
        assert!(held.len() <= (64 << 10) + 128, "{} bytes are held back", held.len());
        out.clear();
    }
}

/// Runs the handshake as far as `held` allows; the session if it came to one.
fn serve(
    handshake: &mut Handshake,
    held: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Option<Session>, Violation> {
    let export = export();
    let listing = [Listing { name: export.name.clone(), description: export.description.clone() }];
    loop {
        let (consumed, mut step) = handshake.advance(held, out)?;
        held.drain(..consumed);
        step = match step {
            Step::Find { name } => {
                let known = name.is_empty() || name == export.name;
                handshake.found(known.then_some(&export), out)?
            }
            Step::List => handshake.listed(&listing, out),
            Step::Receive => return Ok(None),
            other => other,
        };
        match step {
            Step::Transmit(session) => return Ok(Some(session)),
            Step::Close => return Err(Violation::RequestMagic(0)),
            _ => {}
        }
    }
}

/// Request headers in the dialect that the first byte names, each followed by its payload if that is there.
pub(crate) fn requests(input: &[u8]) {
    let Some((&first, input)) = input.split_first() else { return };
    let dialect = [Dialect::Simple, Dialect::Structured, Dialect::Extended][usize::from(first % 3)];
    let selected = [(7, 0), (6, 1)].map(|(id, number)| SelectedContext { id, number });
    let contexts = if dialect == Dialect::Simple { SmallVec::new() } else { SmallVec::from(selected) };
    let mut session = Session::new(&export(), dialect, contexts);
    session.strict = first & 0x80 == 0;
    transmission(&session, input);
}

fn transmission(session: &Session, mut input: &[u8]) {
    while let Ok(Some((request, consumed))) = session.decode(input) {
        assert!(consumed > 0 && consumed <= input.len());
        input = &input[consumed..];
        let payload = usize::try_from(request.payload).unwrap_or(usize::MAX).min(input.len());
        let (payload, rest) = input.split_at(payload);
        input = rest;
        let mut out = Vec::new();
        match session.admit(&request) {
            Admission::Serve => {
                let end = request.offset.checked_add(request.length);
                assert!(
                    end.is_some_and(|end| end <= session.size) || request.length == 0 || is_flush(&request)
                );
                let _ = reply::done(session.dialect, &request);
                if request.payload > 0 {
                    let _ = session.parse_status_payload(&request, payload);
                }
            }
            Admission::Refuse(refusal) | Admission::Close(refusal) => {
                assert!(refusal.errno.0 != 0 && !refusal.text.is_empty());
                reply::error(&mut out, session.dialect, &request, refusal.errno, &refusal.text, None);
                assert!(out.len() <= 4096 + 64);
            }
            Admission::Disconnect => return,
        }
    }
}

fn is_flush(request: &Request) -> bool {
    request.command == Command::FLUSH
}

/// The client's handshake against a server that sends anything. The first two bytes choose what is wanted and how the
/// rest is cut.
pub(crate) fn dialer(input: &[u8]) {
    let [wants, piece, input @ ..] = input else { return };
    let config = DialerConfig {
        export: if wants & 1 == 0 { String::new() } else { "disk".to_owned() },
        extended: wants & 2 == 0,
        structured: wants & 4 == 0,
        contexts: vec!["base:allocation".to_owned()],
        tls: if wants & 8 != 0 { TlsMode::Require } else { TlsMode::Disable },
    };
    let survey = SurveyConfig {
        which: if wants & 1 == 0 { Which::All } else { Which::One("disk".to_owned()) },
        extended: config.extended,
        structured: config.structured,
        tls: config.tls,
        ..SurveyConfig::default()
    };
    let mut dialer = if wants & 16 == 0 { Dialer::new(config) } else { Dialer::survey(survey) };
    let (mut held, mut out) = (Vec::new(), Vec::new());
    for part in input.chunks(usize::from(*piece) + 1) {
        held.extend_from_slice(part);
        let consumed = match dialer.advance(&held, &mut out) {
            Ok((consumed, Dialed::Receive)) => consumed,
            Ok((consumed, Dialed::Secure)) => {
                assert!(consumed == held.len(), "bytes in the clear are taken for secret ones");
                dialer.secured(&mut out);
                consumed
            }
            _ => return,
        };
        held.drain(..consumed);
        assert!(held.len() <= (64 << 10) + 300, "{} bytes are held back", held.len());
        assert!(out.len() <= 16384, "one step wrote {} bytes", out.len());
        out.clear();
    }
}

/// Replies of a server that sends anything, to a client that waits for a READ or a BLOCK_STATUS of 1 KiB.
pub(crate) fn replies(input: &[u8]) {
    let Some((&first, mut input)) = input.split_first() else { return };
    let dialect = [Dialect::Simple, Dialect::Structured, Dialect::Extended][usize::from(first & 0x7f) % 3];
    let command = if first & 0x80 == 0 { Command::READ } else { Command::BLOCK_STATUS };
    let cookie = u64::from_be_bytes([7; 8]);
    let request = Request { command, flags: CommandFlags(0), cookie, offset: 0, length: 1024, payload: 0 };
    let mut pending = Pending::new(dialect, request, &[7]);
    let mut received = 0;
    while let Ok(Some((reply, consumed))) = Reply::decode(dialect, input) {
        assert!(consumed > 0 && consumed <= input.len());
        input = &input[consumed..];
        let Ok(progress) = pending.accept(&reply) else { return };
        if let Some((offset, length)) = progress.data {
            assert!(offset.checked_add(length).is_some_and(|end| end <= 1024), "data outside the request");
            received += length;
            assert!(received <= 1024, "more data than was asked for");
            input = input.get(usize::try_from(length).unwrap_or(usize::MAX)..).unwrap_or_default();
        }
        if progress.ended.is_some() {
            assert!(pending.accept(&reply).is_err(), "a reply after the last");
            return;
        }
    }
}

/// Replies of a server that sends anything, to a client with requests of every command in flight. What the session lets
/// pass fits the request that it belongs to.
pub(crate) fn session(input: &[u8]) {
    let Some((&first, mut input)) = input.split_first() else { return };
    let dialect = [Dialect::Simple, Dialect::Structured, Dialect::Extended][usize::from(first) % 3];
    let mut session = ringnbd::client::Session::new(dialect, 8);
    for command in [0, 1, 3, 4, 5, 6, 7].map(Command) {
        let payload = if command == Command::WRITE { 1024 } else { 0 };
        let request =
            Request { command, flags: CommandFlags(0), cookie: 0, offset: 0, length: 1024, payload };
        session.begin(request, &[7], 0_u64).expect("there is a slot");
    }
    while let Ok(Some((reply, consumed))) = Reply::decode(dialect, input) {
        assert!(consumed > 0 && consumed <= input.len());
        input = &input[consumed..];
        let Ok(progress) = session.accept(&reply) else { return };
        if let Some((offset, length)) = progress.data {
            assert!(offset.checked_add(length).is_some_and(|end| end <= 1024), "data outside the request");
            let received = session.note(reply.cookie).expect("it was accepted");
            *received += length;
            assert!(*received <= 1024, "more data than was asked for");
            input = input.get(usize::try_from(length).unwrap_or(usize::MAX)..).unwrap_or_default();
        }
        if progress.ended.is_some() {
            assert!(session.end(reply.cookie).is_some() && session.end(reply.cookie).is_none());
            assert!(session.accept(&reply).is_err(), "a reply after the last");
        }
    }
}

/// The operator's words.
pub(crate) fn words(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = ringnbd::backend::ExportSpec::parse(text);
    let _ = ringnbd::net::listen::Listen::parse(text);
    if let Ok(uri) = ringnbd::client::Uri::parse(text) {
        let printed = uri.to_string();
        // A relative path is printed as an absolute one.
        assert!(
            ringnbd::client::Uri::parse(&printed).is_ok_and(|again| again.export == uri.export),
            "{printed}"
        );
    }
}
