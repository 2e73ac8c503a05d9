//! Arbitrary bytes, options, requests and replies: no panic, no flood, nothing out of bounds.

use super::pair::{Server, exports};
use proptest::collection::vec;
use proptest::prelude::*;
use ringnbd::proto::consts::OPTION_MAGIC;
use ringnbd::proto::reply_decode::{Body, Pending, Reply};
use ringnbd::proto::{
    Admission, Command, CommandFlags, Dialect, Dialed, Dialer, DialerConfig, Errno, HandshakeConfig, Request,
    SelectedContext, Session, Tls, TransmissionFlags, reply,
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

fn tls_modes() -> impl Strategy<Value = Tls> {
    prop_oneof![
        Just(Tls::Off),
        any::<bool>().prop_map(|hides_unknown| Tls::On { hides_unknown }),
        Just(Tls::Required)
    ]
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
        options in vec(options(), 0..12), piece in 1..40usize, tls in tls_modes(),
    ) {
        let config = HandshakeConfig { tls, ..HandshakeConfig::default() };
        let bytes = [&3u32.to_be_bytes()[..], &options.concat()].concat();
        let mut whole = Server::new(config.clone());
        let verdict = whole.receive(&bytes);
        let mut cut = Server::new(config);
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

    /// Before TLS a server that requires it says nothing of its exports, whatever it is asked.
    #[test]
    fn a_server_that_requires_tls_says_nothing_without_it(options in vec(options(), 0..12)) {
        let config = HandshakeConfig { tls: Tls::Required, ..HandshakeConfig::default() };
        let mut server = Server::new(config);
        let greeting = server.out.len();
        let _ = server.receive(&3u32.to_be_bytes());
        for option in options {
            if option[8..12] == [0, 0, 0, 5] {
                break;
            }
            let _ = server.receive(&option);
        }
        prop_assert!(server.session.is_none());
        let mut said = &server.out[greeting..];
        while let Some((head, rest)) = said.split_first_chunk::<20>() {
            let kind = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
            let length = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
            let aborted = head[8..12] == [0, 0, 0, 2] && kind == 1;
            prop_assert!(aborted || kind == 0x8000_0005, "{head:02x?}");
            said = &rest[length as usize..];
        }
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
