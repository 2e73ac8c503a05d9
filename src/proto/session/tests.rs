//! The admission table, row by row.

use smallvec::smallvec;

use super::*;

const ALL: TransmissionFlags = TransmissionFlags(0b1101_0110_1101);

fn export() -> ExportInfo {
    ExportInfo {
        id: 3,
        size: 10_000_000_000,
        flags: ALL,
        block: BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 26 },
        ..ExportInfo::default()
    }
}

fn session(dialect: Dialect) -> Session {
    let contexts = smallvec![SelectedContext { id: 0, number: 0 }, SelectedContext { id: 5, number: 1 }];
    Session::new(&export(), dialect, contexts)
}

fn simple() -> Session {
    Session::new(&export(), Dialect::Simple, SmallVec::new())
}

fn request(command: Command, offset: u64, length: u64) -> Request {
    let payload = if command == Command::WRITE { length } else { 0 };
    Request { command, flags: CommandFlags::NONE, cookie: 1, offset, length, payload }
}

fn refused(session: &Session, request: &Request) -> Errno {
    match session.admit(request) {
        Admission::Refuse(refusal) => {
            assert!(refusal.text.len() > 10, "{request:?} refused without a sentence");
            refusal.errno
        }
        other => panic!("{request:?}: {other:?}"),
    }
}

fn served(session: &Session, request: &Request) {
    assert_eq!(session.admit(request), Admission::Serve, "{request:?}");
}

const RANGED: [Command; 6] = [
    Command::READ,
    Command::WRITE,
    Command::TRIM,
    Command::CACHE,
    Command::WRITE_ZEROES,
    Command::BLOCK_STATUS,
];

#[test]
fn everything_advertised_is_served_to_the_last_byte() {
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let session = session(dialect);
        for command in RANGED {
            served(&session, &request(command, 0, 1));
            served(&session, &request(command, session.size - 4096, 4096));
        }
        served(&session, &request(Command::FLUSH, 0, 0));
    }
}

#[test]
fn past_the_end_is_enospc_for_writes_and_einval_for_the_rest() {
    let session = session(Dialect::Extended);
    for command in RANGED {
        let errno = match command {
            Command::WRITE | Command::WRITE_ZEROES => Errno::ENOSPC,
            _ => Errno::EINVAL,
        };
        let size = session.size;
        for (offset, length) in [(size, 1), (size - 1, 2), (u64::MAX, 1), (u64::MAX, 0), (1 << 63, 1 << 20)] {
            if command == Command::BLOCK_STATUS && length == 0 {
                continue;
            }
            assert_eq!(refused(&session, &request(command, offset, length)), errno, "{command}");
        }
    }
    let wrapping = request(Command::TRIM, u64::MAX - 10, u64::MAX);
    assert_eq!(refused(&session, &wrapping), Errno::EINVAL);
}

#[test]
fn a_read_only_export_answers_eperm_even_where_nothing_was_advertised() {
    let flags = TransmissionFlags::READ_ONLY | TransmissionFlags::SEND_FLUSH;
    let session = Session::new(&ExportInfo { flags, ..export() }, Dialect::Structured, SmallVec::new());
    for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
        assert_eq!(refused(&session, &request(command, 0, 512)), Errno::EPERM);
        assert_eq!(refused(&session, &request(command, u64::MAX, 512)), Errno::EPERM);
        let flags = CommandFlags::FAST_ZERO | CommandFlags(0x8000);
        assert_eq!(refused(&session, &Request { flags, ..request(command, 0, 512) }), Errno::EPERM);
    }
    served(&session, &request(Command::READ, 0, 512));
}

#[test]
fn what_was_not_advertised_is_einval() {
    let session = Session::new(
        &ExportInfo { flags: TransmissionFlags::NONE, ..export() },
        Dialect::Structured,
        SmallVec::new(),
    );
    for command in [Command::TRIM, Command::WRITE_ZEROES, Command::CACHE, Command::BLOCK_STATUS] {
        assert_eq!(refused(&session, &request(command, 0, 512)), Errno::EINVAL, "{command}");
    }
    assert_eq!(refused(&session, &request(Command::FLUSH, 0, 0)), Errno::EINVAL);
    let fua = Request { flags: CommandFlags::FUA, ..request(Command::WRITE, 0, 512) };
    assert_eq!(refused(&session, &fua), Errno::EINVAL);
    for command in [Command::RESIZE, Command(9), Command(u16::MAX)] {
        assert_eq!(refused(&session, &request(command, 0, 0)), Errno::EINVAL);
    }
}

#[test]
fn each_flag_belongs_to_its_commands_and_fua_to_all() {
    let session = session(Dialect::Structured);
    for command in RANGED {
        for bit in 0..16 {
            let flag = CommandFlags(1 << bit);
            let request = Request { flags: flag, ..request(command, 0, 4096) };
            let allowed = matches!(
                (flag, command),
                (CommandFlags::FUA, _)
                    | (CommandFlags::DF, Command::READ)
                    | (CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO, Command::WRITE_ZEROES)
                    | (CommandFlags::REQ_ONE, Command::BLOCK_STATUS)
            );
            if allowed {
                served(&session, &request)
            } else {
                assert_eq!(refused(&session, &request), Errno::EINVAL)
            }
        }
    }
    let df = Request { flags: CommandFlags::DF, ..request(Command::READ, 0, 512) };
    assert_eq!(refused(&simple(), &df), Errno::EINVAL);
}

#[test]
fn fast_zero_is_einval_unless_advertised() {
    let fast = Request { flags: CommandFlags::FAST_ZERO, ..request(Command::WRITE_ZEROES, 0, 512) };
    served(&simple(), &fast);
    let flags = ALL.without(TransmissionFlags::SEND_FAST_ZERO);
    let slow = Session::new(&ExportInfo { flags, ..export() }, Dialect::Simple, SmallVec::new());
    assert_eq!(refused(&slow, &fast), Errno::EINVAL);
    let flags = ALL.without(TransmissionFlags::SEND_WRITE_ZEROES);
    let none = Session::new(&ExportInfo { flags, ..export() }, Dialect::Simple, SmallVec::new());
    assert!(!none.flags.contains(TransmissionFlags::SEND_FAST_ZERO));
}

#[test]
fn too_long_is_eoverflow_for_reads_and_drained_for_writes() {
    let max = 1 << 26;
    served(&simple(), &request(Command::READ, 0, max));
    served(&simple(), &request(Command::WRITE, 0, max));
    assert_eq!(refused(&simple(), &request(Command::READ, 0, max + 1)), Errno::EOVERFLOW);
    assert_eq!(refused(&simple(), &request(Command::WRITE, 0, max + 1)), Errno::EINVAL);
    for command in [Command::TRIM, Command::WRITE_ZEROES, Command::CACHE] {
        served(&session(Dialect::Extended), &request(command, 0, 9_000_000_000));
    }
}

#[test]
fn an_extended_payload_beyond_measure_closes_and_a_stray_one_is_drained() {
    let session = session(Dialect::Extended);
    for command in RANGED.into_iter().chain([Command::FLUSH, Command(99)]) {
        for payload in [(1 << 26) + 1, u64::MAX] {
            let length = if command == Command::WRITE { payload } else { 0 };
            let flags = CommandFlags::PAYLOAD_LEN;
            let request = Request { flags, payload, ..request(command, 0, length) };
            assert!(matches!(session.admit(&request), Admission::Close(_)), "{request:?}");
        }
        if command != Command::WRITE {
            let flags = CommandFlags::PAYLOAD_LEN;
            let request = Request { flags, payload: 1 << 26, ..request(command, 0, 0) };
            assert_eq!(refused(&session, &request), Errno::EINVAL);
        }
    }
}

#[test]
fn a_small_maximum_still_tolerates_what_the_specification_protects() {
    let block = BlockSizes { maximum: 1 << 20, ..BlockSizes::default() };
    let session = Session::new(&ExportInfo { block, ..export() }, Dialect::Extended, SmallVec::new());
    assert_eq!(refused(&session, &request(Command::WRITE, 0, 1 << 25)), Errno::EINVAL);
    let beyond = session.admit(&request(Command::WRITE, 0, (1 << 25) + 1));
    assert!(matches!(beyond, Admission::Close(_)));
}

#[test]
fn disc_is_obeyed_whatever_else_it_says() {
    for session in [simple(), session(Dialect::Extended)] {
        let junk = Request {
            flags: CommandFlags(u16::MAX),
            payload: u64::MAX,
            ..request(Command::DISC, u64::MAX, u64::MAX)
        };
        assert_eq!(session.admit(&junk), Admission::Disconnect);
    }
}

#[test]
fn empty_ranges_are_served_where_nothing_can_go_wrong() {
    let session = session(Dialect::Structured);
    for command in RANGED {
        for offset in [0, session.size] {
            let request = request(command, offset, 0);
            if command == Command::BLOCK_STATUS {
                assert_eq!(refused(&session, &request), Errno::EINVAL);
            } else {
                served(&session, &request);
            }
        }
    }
}

#[test]
fn a_flush_has_no_range() {
    assert_eq!(refused(&simple(), &request(Command::FLUSH, 512, 0)), Errno::EINVAL);
    assert_eq!(refused(&simple(), &request(Command::FLUSH, 0, 512)), Errno::EINVAL);
}

#[test]
fn alignment_matters_only_to_a_strict_export() {
    let size = 10_000_000_003;
    let lenient = Session { size, ..simple() };
    let strict = Session { strict: true, ..lenient.clone() };
    for (offset, length) in [(1, 512), (512, 1), (0, 511), (size - 1, 1)] {
        served(&lenient, &request(Command::READ, offset, length));
        assert_eq!(refused(&strict, &request(Command::READ, offset, length)), Errno::EINVAL);
        assert_eq!(refused(&strict, &request(Command::TRIM, offset, length)), Errno::EINVAL);
    }
    served(&strict, &request(Command::WRITE, 512, 1024));
    let tail = size % 512;
    served(&strict, &request(Command::READ, size - tail, tail));
}

#[test]
fn block_status_needs_a_context() {
    assert_eq!(refused(&simple(), &request(Command::BLOCK_STATUS, 0, 512)), Errno::EINVAL);
    let none = Session::new(&export(), Dialect::Extended, SmallVec::new());
    assert_eq!(refused(&none, &request(Command::BLOCK_STATUS, 0, 512)), Errno::EINVAL);
}

#[test]
fn a_status_payload_names_selected_contexts_each_once() {
    let session = session(Dialect::Extended);
    let with = |payload| Request {
        flags: CommandFlags::PAYLOAD_LEN | CommandFlags::REQ_ONE,
        payload,
        ..request(Command::BLOCK_STATUS, 4096, 0)
    };
    for payload in [0, 4, 8, 11, 13, 20, 1 << 20] {
        assert_eq!(refused(&session, &with(payload)), Errno::EINVAL, "{payload}");
    }
    served(&session, &with(12));
    served(&session, &with(16));
    let payload = |length: u64, ids: &[u32]| {
        let ids = ids.iter().flat_map(|id| id.to_be_bytes());
        length.to_be_bytes().into_iter().chain(ids).collect::<Vec<u8>>()
    };
    let parse = |bytes: &[u8]| session.parse_status_payload(&with(0), bytes);
    assert_eq!(parse(&payload(8192, &[5])), Ok((8192, smallvec![5])));
    assert_eq!(parse(&payload(8192, &[5, 0])), Ok((8192, smallvec![5, 0])));
    let bad = [
        payload(8192, &[]),
        payload(8192, &[1]),
        payload(8192, &[0, 0]),
        payload(0, &[0]),
        payload(u64::MAX, &[0]),
    ];
    for bytes in bad {
        assert_eq!(parse(&bytes).map_err(|refusal| refusal.errno), Err(Errno::EINVAL), "{bytes:?}");
    }
    for cut in [0, 7, 8, 9, 11] {
        assert!(parse(&payload(8192, &[5])[..cut]).is_err());
    }
}

#[test]
fn df_and_the_payload_flag_are_advertised_when_true_and_only_then() {
    let lying = TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    let export = ExportInfo { flags: lying, ..export() };
    let flags =
        |dialect, selected| session_flags(&export, dialect, selected).without(TransmissionFlags::HAS_FLAGS);
    assert_eq!(flags(Dialect::Simple, true), TransmissionFlags::NONE);
    assert_eq!(flags(Dialect::Structured, true), TransmissionFlags::SEND_DF);
    assert_eq!(flags(Dialect::Extended, false), TransmissionFlags::SEND_DF);
    assert_eq!(flags(Dialect::Extended, true), lying);
}
