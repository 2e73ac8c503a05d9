//! Both handshakes face to face, cut at every byte; then anything at all in place of either.

mod common {
    use ringnbd::proto::{
        BlockSizes, DialError, Dialed, Dialer, DialerConfig, ExportInfo, Handshake, HandshakeConfig, Link,
        Listing, Session, Step, TransmissionFlags, Violation,
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

    /// How a stream is cut on its way: no delivery crosses `cut`, none is longer than `most`.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Wire {
        pub(crate) cut: usize,
        pub(crate) most: usize,
    }

    impl Wire {
        pub(crate) const WHOLE: Self = Self { cut: usize::MAX, most: usize::MAX };
        pub(crate) const BYTES: Self = Self { cut: usize::MAX, most: 1 };

        pub(crate) fn cut(cut: usize) -> Self {
            Self { cut, most: usize::MAX }
        }

        /// Bytes to deliver now, when `sent` went before and `waiting` are there.
        fn portion(self, sent: usize, waiting: usize) -> usize {
            let until_cut = if sent < self.cut { self.cut - sent } else { usize::MAX };
            waiting.min(self.most).min(until_cut)
        }
    }

    /// What both ends came to, and how many bytes each sent.
    #[derive(Debug, PartialEq)]
    pub(crate) struct Outcome {
        pub(crate) link: Result<Link, DialError>,
        pub(crate) session: Option<Session>,
        pub(crate) sent: [usize; 2],
    }

    /// Lets both talk until neither has anything to say.
    pub(crate) fn meet(server: HandshakeConfig, client: DialerConfig, wires: [Wire; 2]) -> Outcome {
        let mut server = Server::new(server);
        server.receive(&[]).expect("a server can begin");
        let mut dialer = Dialer::new(client);
        let (mut held, mut to_server, mut link) = (Vec::new(), Vec::new(), None);
        let [mut server_sent, mut client_sent] = [0, 0];
        loop {
            let portion = wires[0].portion(server_sent, server.out.len());
            held.extend(server.out.drain(..portion));
            server_sent += portion;
            if link.is_none() {
                match dialer.advance(&held, &mut to_server) {
                    Ok((consumed, Dialed::Receive)) => drop(held.drain(..consumed)),
                    Ok((consumed, Dialed::Linked(linked))) => {
                        held.drain(..consumed);
                        link = Some(Ok(*linked));
                    }
                    Err(error) => link = Some(Err(error)),
                }
            }
            let back = wires[1].portion(client_sent, to_server.len());
            let bytes: Vec<u8> = to_server.drain(..back).collect();
            client_sent += back;
            server.receive(&bytes).expect("this client keeps to the protocol");
            if portion == 0 && back == 0 && server.out.is_empty() {
                break;
            }
        }
        let link = link.expect("the client came to an end");
        assert!(link.is_err() || held.is_empty(), "bytes left over: {held:?}");
        Outcome { link, session: server.session, sent: [server_sent, client_sent] }
    }
}

mod face_to_face {
    use super::common::{Outcome, Wire, meet};
    use ringnbd::proto::{Dialect, DialerConfig, HandshakeConfig, Style, TransmissionFlags};

    fn contexts() -> Vec<String> {
        ["base:allocation", "x-none:such", "qemu:allocation-depth"].map(str::to_owned).to_vec()
    }

    /// Every way for the two to agree or part.
    fn pairs() -> Vec<(HandshakeConfig, DialerConfig)> {
        let fixed = HandshakeConfig::default();
        let oldstyle = HandshakeConfig { style: Style::Oldstyle, ..HandshakeConfig::default() };
        let mut pairs = vec![(oldstyle, DialerConfig::default())];
        for export in ["disk", "", "nobody"] {
            for (extended, structured) in [(true, true), (false, true), (false, false)] {
                let contexts = contexts();
                let export = export.to_owned();
                pairs.push((fixed.clone(), DialerConfig { export, extended, structured, contexts }));
            }
        }
        pairs
    }

    fn agrees(outcome: &Outcome) {
        let (Ok(link), Some(session)) = (&outcome.link, &outcome.session) else {
            assert!(outcome.link.is_err() && outcome.session.is_none(), "{outcome:?}");
            return;
        };
        assert_eq!((link.dialect, link.size, link.flags), (session.dialect, session.size, session.flags));
        let ids = |ids: &mut dyn Iterator<Item = u32>| ids.collect::<Vec<_>>();
        let ours = ids(&mut session.contexts.iter().map(|context| context.id));
        assert_eq!(ours, ids(&mut link.contexts.iter().map(|(id, _)| *id)));
    }

    #[test]
    fn a_cut_anywhere_changes_nothing() {
        for (server, client) in pairs() {
            let meet = |wires| meet(server.clone(), client.clone(), wires);
            let whole = meet([Wire::WHOLE; 2]);
            agrees(&whole);
            assert_eq!(meet([Wire::BYTES; 2]), whole, "{client:?}");
            for cut in 0..whole.sent[0] {
                assert_eq!(meet([Wire::cut(cut), Wire::WHOLE]), whole, "{client:?} server's byte {cut}");
            }
            for cut in 0..whole.sent[1] {
                assert_eq!(meet([Wire::WHOLE, Wire::cut(cut)]), whole, "{client:?} client's byte {cut}");
            }
        }
    }

    #[test]
    fn the_best_dialect_both_know_is_agreed_on() {
        let dialects = pairs().into_iter().map(|(server, client)| {
            let outcome = meet(server, client, [Wire::WHOLE; 2]);
            outcome.link.ok().map(|link| (link.dialect, link.contexts.len()))
        });
        let per_export =
            [Some((Dialect::Extended, 2)), Some((Dialect::Structured, 2)), Some((Dialect::Simple, 0))];
        let mut expected = vec![Some((Dialect::Simple, 0))];
        expected.extend(per_export.iter().chain(&per_export));
        expected.extend([None; 3]);
        assert_eq!(dialects.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn extended_headers_with_contexts_offer_filtered_block_status() {
        let client =
            DialerConfig { export: "disk".to_owned(), contexts: contexts(), ..DialerConfig::default() };
        let outcome = meet(HandshakeConfig::default(), client, [Wire::WHOLE; 2]);
        let link = outcome.link.unwrap();
        assert!(link.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD | TransmissionFlags::SEND_DF));
        assert_eq!(link.description.as_deref(), Some("the disk of the tests"));
        assert_eq!(link.block.unwrap().minimum, 512);
        assert!(outcome.session.unwrap().alignment_agreed);
    }
}

mod anything {
    use super::common::{Server, exports};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use ringnbd::proto::consts::OPTION_MAGIC;
    use ringnbd::proto::reply_decode::{Body, Pending, Reply};
    use ringnbd::proto::{
        Admission, Command, CommandFlags, Dialect, Dialed, Dialer, DialerConfig, Errno, HandshakeConfig,
        Request, SelectedContext, Session, TransmissionFlags, reply,
    };

    /// More than any one option, well-formed or not, may make the server say to these exports.
    const SAID_PER_OPTION_MAX: usize = 1024;

    fn dialects() -> impl Strategy<Value = Dialect> {
        prop_oneof![Just(Dialect::Simple), Just(Dialect::Structured), Just(Dialect::Extended)]
    }

    fn session(dialect: Dialect, read_only: bool, strict: bool) -> Session {
        let mut export = exports().swap_remove(0);
        export.strict = strict;
        if read_only {
            export.flags |= TransmissionFlags::READ_ONLY;
        }
        let context = |number| SelectedContext { id: number, number: 0 };
        Session::new(&export, dialect, [context(0), context(9)].into_iter().collect())
    }

    /// Numbers that lie at the edges of things, more often than not.
    fn edges() -> impl Strategy<Value = u64> {
        let edge = prop_oneof![
            Just(0),
            Just(512),
            Just(1 << 25),
            Just(1 << 26),
            Just(1 << 30),
            Just(1 << 32),
            Just(u64::MAX)
        ];
        prop_oneof![
            any::<u64>(),
            0..2048u64,
            (edge, 0..3u64).prop_map(|(at, by)| at.wrapping_sub(1).wrapping_add(by))
        ]
    }

    fn requests() -> impl Strategy<Value = Request> {
        let flags = prop_oneof![Just(0u16), (0..8u16).prop_map(|bit| 1 << bit), any::<u16>()];
        (0..10u16, flags, any::<u64>(), edges(), edges(), edges()).prop_map(
            |(command, flags, cookie, offset, length, payload)| Request {
                command: Command(command),
                flags: CommandFlags(flags),
                cookie,
                offset,
                length,
                payload,
            },
        )
    }

    /// Options with a known code or another, and a payload that is mostly nearly right.
    fn options() -> impl Strategy<Value = Vec<u8>> {
        let name = prop_oneof![Just(b"disk".to_vec()), Just(Vec::new()), vec(any::<u8>(), 0..100)];
        let tail = prop_oneof![
            Just(vec![0, 0]),
            Just(vec![0, 1, 0, 3]),
            Just(vec![0, 0, 0, 0]),
            Just([&[0, 0, 0, 1, 0, 0, 0, 15][..], b"base:allocation"].concat()),
            vec(any::<u8>(), 0..64)
        ];
        let counted = (name, tail).prop_map(|(name, tail)| {
            let length = u32::try_from(name.len()).unwrap_or_default();
            [&length.to_be_bytes()[..], &name, &tail].concat()
        });
        let payload = prop_oneof![Just(Vec::new()), counted, vec(any::<u8>(), 0..200)];
        (prop_oneof![0..14u32, any::<u32>()], payload).prop_map(|(code, payload)| {
            let length = u32::try_from(payload.len()).unwrap_or_default();
            let header = [code.to_be_bytes(), length.to_be_bytes()].concat();
            [&OPTION_MAGIC.to_be_bytes()[..], &header, &payload].concat()
        })
    }

    proptest! {
        #[test]
        fn a_server_survives_any_bytes(bytes in vec(any::<u8>(), 0..400), flags in 0..5u32) {
            let mut server = Server::new(HandshakeConfig::default());
            let _ = server.receive(&flags.to_be_bytes());
            let _ = server.receive(&bytes);
            prop_assert!(server.out.len() <= SAID_PER_OPTION_MAX);
        }

        #[test]
        fn a_server_answers_any_options_the_same_however_they_are_cut(
            options in vec(options(), 0..12), piece in 1..40usize,
        ) {
            let bytes = [&3u32.to_be_bytes()[..], &options.concat()].concat();
            let mut whole = Server::new(HandshakeConfig::default());
            let verdict = whole.receive(&bytes);
            let mut cut = Server::new(HandshakeConfig::default());
            let mut broken = false;
            for piece in bytes.chunks(piece) {
                broken |= cut.receive(piece).is_err();
                prop_assert!(cut.over() || cut.held.len() < cut.handshake.needs());
            }
            prop_assert_eq!(broken, verdict.is_err());
            prop_assert_eq!(&whole.out, &cut.out);
            prop_assert_eq!(whole.session, cut.session);
            prop_assert!(whole.out.len() <= SAID_PER_OPTION_MAX * (options.len() + 1));
        }

        #[test]
        fn a_client_survives_any_bytes(bytes in vec(any::<u8>(), 0..400), fixed in 0..4u16, old in any::<bool>()) {
            let hello = ringnbd::proto::consts::INIT_MAGIC.to_be_bytes();
            let second = if old { ringnbd::proto::consts::OLDSTYLE_MAGIC } else { OPTION_MAGIC };
            let input = [&hello[..], &second.to_be_bytes(), &fixed.to_be_bytes(), &bytes].concat();
            for start in [0, 16, 18] {
                let mut dialer = Dialer::new(DialerConfig::default());
                let mut out = Vec::new();
                if start > 0 {
                    let _ = dialer.advance(&input[..18], &mut out);
                }
                if let Ok((consumed, Dialed::Receive)) = dialer.advance(&input[start..], &mut out) {
                    prop_assert!(consumed <= input.len());
                }
                prop_assert!(out.len() <= SAID_PER_OPTION_MAX);
            }
        }

        #[test]
        fn what_is_served_lies_within_every_bound(
            request in requests(), dialect in dialects(), read_only in any::<bool>(), strict in any::<bool>(),
        ) {
            let session = session(dialect, read_only, strict);
            // What the wire can say is what decode makes of it.
            let decoded = session.decode(&request.encode(dialect)).unwrap().unwrap().0;
            for request in [request, decoded] {
                match session.admit(&request) {
                    Admission::Serve => {
                        prop_assert!(request.command.name().is_some() && request.command != Command::DISC);
                        prop_assert!(request.end().is_some_and(|end| end <= session.size));
                        if matches!(request.command, Command::READ | Command::WRITE) {
                            prop_assert!(request.length <= u64::from(session.block.maximum));
                        }
                        if read_only {
                            let changes = [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES];
                            prop_assert!(!changes.contains(&request.command));
                        }
                    }
                    Admission::Disconnect => prop_assert_eq!(request.command, Command::DISC),
                    Admission::Refuse(refusal) => {
                        prop_assert!(refusal.errno != Errno::OK && !refusal.text.is_empty());
                        if dialect == Dialect::Extended {
                            prop_assert!(request.payload <= u64::from(session.block.maximum));
                        }
                    }
                    Admission::Close(_) => {
                        prop_assert!(request.payload > u64::from(session.block.maximum));
                    }
                }
            }
        }

        #[test]
        fn requests_decode_from_any_bytes(bytes in vec(any::<u8>(), 0..40), dialect in dialects()) {
            if let Ok(Some((_, consumed))) = session(dialect, false, false).decode(&bytes) {
                prop_assert!(consumed <= bytes.len());
            }
        }

        #[test]
        fn status_payloads_parse_from_any_bytes(
            request in requests(), bytes in vec(any::<u8>(), 0..24), near in any::<bool>(),
        ) {
            let session = session(Dialect::Extended, false, true);
            let near_right = [&4096u64.to_be_bytes()[..], &[0, 0, 0, 9]].concat();
            let payload = if near { near_right } else { bytes };
            if let Ok((length, ids)) = session.parse_status_payload(&request, &payload) {
                prop_assert!(length > 0 && request.offset.checked_add(length).unwrap() <= session.size);
                prop_assert!(!ids.is_empty() && ids.len() <= session.contexts.len());
            }
        }

        #[test]
        fn replies_decode_from_any_bytes(
            bytes in vec(any::<u8>(), 0..80), dialect in dialects(), request in requests(), kind in 0..8u16,
        ) {
            let mut near = reply::hole(Dialect::Extended, &request, request.offset, 1, true).to_vec();
            if dialect != Dialect::Extended {
                near = reply::hole(Dialect::Structured, &request, request.offset, 1, true).to_vec();
            }
            near[6..8].copy_from_slice(&kind.to_be_bytes());
            near.extend_from_slice(&bytes);
            for input in [bytes, near] {
                if let Ok(Some((reply, consumed))) = Reply::decode(dialect, &input) {
                    prop_assert!(consumed <= input.len());
                    let mut pending = Pending::new(dialect, request, &[0]);
                    let _ = pending.accept(&reply);
                    let _ = pending.accept(&reply);
                }
            }
        }

        #[test]
        fn any_extents_become_a_block_status_that_a_client_accepts(
            extents in vec((edges(), 0..4u64), 0..20), length in 1..100_000u64, one in any::<bool>(),
            extended in any::<bool>(),
        ) {
            let flags = if one { CommandFlags::REQ_ONE } else { CommandFlags::NONE };
            let command = Command::BLOCK_STATUS;
            let request = Request { command, flags, cookie: 1, offset: 512, length, payload: 0 };
            let dialect = if extended { Dialect::Extended } else { Dialect::Structured };
            let mut out = Vec::new();
            reply::block_status(&mut out, dialect, &request, 3, &extents, true);
            let (reply, consumed) = Reply::decode(dialect, &out).unwrap().unwrap();
            prop_assert_eq!(consumed, out.len());
            let Body::Status { extents: told, .. } = &reply.body else { panic!() };
            prop_assert!(told.windows(2).all(|pair| pair[0].1 != pair[1].1), "equal neighbours: {told:?}");
            prop_assert!(Pending::new(dialect, request, &[3]).accept(&reply).is_ok());
        }

        #[test]
        fn any_error_is_understood_as_itself(
            request in requests(), dialect in dialects(), text in ".{0,200}", at in proptest::option::of(edges()),
        ) {
            let mut out = Vec::new();
            reply::error(&mut out, dialect, &request, Errno::EIO, &text, at);
            let (reply, _) = Reply::decode(dialect, &out).unwrap().unwrap();
            let mut pending = Pending::new(dialect, request, &[]);
            match pending.accept(&reply) {
                Ok(progress) => {
                    let error = progress.ended.unwrap().unwrap_err();
                    prop_assert_eq!(error.errno, Errno::EIO);
                    prop_assert!(dialect == Dialect::Simple || error.text == text);
                }
                // A range that wraps holds no offset at all, so none may be told within it.
                Err(_) => prop_assert!(request.end().is_none()),
            }
        }
    }
}
