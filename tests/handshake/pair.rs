//! A server and a client, and the wires between them.

use ringnbd::proto::{
    BlockSizes, DialError, Dialed, Dialer, DialerConfig, ExportInfo, Found, Handshake, HandshakeConfig, Link,
    Listing, Session, Step, SurveyConfig, TransmissionFlags, Violation,
};

/// The exports of every server in this file.
pub(crate) fn exports() -> Vec<ExportInfo> {
    let flags = TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_FAST_ZERO
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::CAN_MULTI_CONN;
    let disk = ExportInfo {
        id: 0,
        name: "disk".to_owned(),
        description: Some("the disk of the tests".to_owned()),
        size: 1 << 30,
        flags,
        block: BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 26 },
        strict: false,
        contexts: vec!["base:allocation".to_owned(), "qemu:allocation-depth".to_owned()],
    };
    let default = ExportInfo { id: 1, name: String::new(), description: None, ..disk.clone() };
    vec![disk, default]
}

/// A server with its table of exports, and what the socket would hold for it.
pub(crate) struct Server {
    pub(crate) handshake: Handshake,
    pub(crate) held: Vec<u8>,
    pub(crate) out: Vec<u8>,
    pub(crate) session: Option<Session>,
    pub(crate) closed: bool,
}

impl Server {
    pub(crate) fn new(config: HandshakeConfig) -> Self {
        let mut out = Vec::new();
        let handshake = Handshake::new(config, &mut out);
        Self { handshake, held: Vec::new(), out, session: None, closed: false }
    }

    pub(crate) fn over(&self) -> bool {
        self.closed || self.session.is_some()
    }

    pub(crate) fn receive(&mut self, input: &[u8]) -> Result<(), Violation> {
        self.held.extend_from_slice(input);
        let outcome = self.advance();
        self.closed |= outcome.is_err();
        outcome
    }

    fn advance(&mut self) -> Result<(), Violation> {
        while !self.over() {
            let (consumed, mut step) = self.handshake.advance(&self.held, &mut self.out)?;
            assert!(consumed <= self.held.len());
            self.held.drain(..consumed);
            if step == Step::Receive {
                return Ok(());
            }
            if let Step::Find { name } = &step {
                let exports = exports();
                let export = exports.iter().find(|export| export.name == *name);
                step = self.handshake.found(export, &mut self.out)?;
            } else if step == Step::List {
                step = self.handshake.listed(&listings(), &mut self.out);
            }
            match step {
                // TLS itself is left out: what follows is as if it had come through.
                Step::StartTls => self.handshake.secured(),
                Step::Transmit(session) => self.session = Some(session),
                Step::Close => self.closed = true,
                _ => {}
            }
        }
        Ok(())
    }
}

fn listings() -> Vec<Listing> {
    let listing = |export: ExportInfo| Listing { name: export.name, description: export.description };
    exports().into_iter().map(listing).collect()
}

/// How a stream fares on its way: no delivery crosses `cut`, none is longer than `most`, and the
/// byte at `flip.0` arrives with the bits of `flip.1` changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    cut: usize,
    most: usize,
    flip: (usize, u8),
}

impl Wire {
    pub(crate) const WHOLE: Self = Self { cut: usize::MAX, most: usize::MAX, flip: (usize::MAX, 0) };
    pub(crate) const BYTES: Self = Self { most: 1, ..Self::WHOLE };

    pub(crate) fn cut(cut: usize) -> Self {
        Self { cut, ..Self::WHOLE }
    }

    pub(crate) fn flip(at: usize, bits: u8) -> Self {
        Self { flip: (at, bits), ..Self::WHOLE }
    }

    /// Takes what is delivered now.
    fn carry(self, sent: &mut usize, waiting: &mut Vec<u8>) -> Vec<u8> {
        let portion = self.portion(*sent, waiting.len());
        let mut bytes: Vec<u8> = waiting.drain(..portion).collect();
        if let Some(byte) = self.flip.0.checked_sub(*sent).and_then(|at| bytes.get_mut(at)) {
            *byte ^= self.flip.1;
        }
        *sent += portion;
        bytes
    }

    /// Bytes to deliver now, when `sent` went before and `waiting` are there.
    fn portion(self, sent: usize, waiting: usize) -> usize {
        let until_cut = if sent < self.cut { self.cut - sent } else { usize::MAX };
        waiting.min(self.most).min(until_cut)
    }
}

/// What both ends came to, and how many bytes each sent. A client that still waits has no link.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) link: Option<Result<Link, DialError>>,
    pub(crate) session: Option<Session>,
    pub(crate) violation: Option<Violation>,
    pub(crate) sent: [usize; 2],
}

/// Lets both talk until neither has anything to say.
pub(crate) fn meet(server: HandshakeConfig, client: DialerConfig, wires: [Wire; 2]) -> Outcome {
    let mut server = Server::new(server);
    server.receive(&[]).expect("a server can begin");
    let mut dialer = Dialer::new(client);
    let (mut held, mut to_server, mut link, mut violation) = (Vec::new(), Vec::new(), None, None);
    let [mut server_sent, mut client_sent] = [0, 0];
    loop {
        let forth = wires[0].carry(&mut server_sent, &mut server.out);
        held.extend_from_slice(&forth);
        if link.is_none() {
            match dialer.advance(&held, &mut to_server) {
                Ok((consumed, Dialed::Receive)) => drop(held.drain(..consumed)),
                Ok((consumed, Dialed::Linked(linked))) => {
                    held.drain(..consumed);
                    link = Some(Ok(*linked));
                }
                Ok((_, other)) => panic!("{other:?}"),
                Err(error) => link = Some(Err(error)),
            }
        }
        let back = wires[1].carry(&mut client_sent, &mut to_server);
        if let Err(found) = server.receive(&back) {
            violation.get_or_insert(found);
        }
        if forth.is_empty() && back.is_empty() && server.out.is_empty() {
            break;
        }
    }
    Outcome { link, session: server.session, violation, sent: [server_sent, client_sent] }
}

/// Lets a client look around, with the server's bytes cut once; what it found, and how many bytes the server sent.
pub(crate) fn survey(server: HandshakeConfig, client: SurveyConfig, cut: usize) -> (Vec<Found>, usize) {
    let mut server = Server::new(server);
    server.receive(&[]).expect("a server can begin");
    let mut dialer = Dialer::survey(client);
    let wire = Wire::cut(cut);
    let (mut held, mut sent) = (Vec::new(), 0);
    loop {
        let portion = wire.carry(&mut sent, &mut server.out);
        assert!(!portion.is_empty(), "both wait, after {sent} bytes");
        held.extend_from_slice(&portion);
        let mut out = Vec::new();
        match dialer.advance(&held, &mut out).expect("a survey of a good server") {
            (consumed, Dialed::Receive) => drop(held.drain(..consumed)),
            (_, Dialed::Surveyed(found)) => return (found, sent),
            (_, other) => panic!("{other:?}"),
        }
        server.receive(&out).expect("good questions");
    }
}
