//! Every fuzz body for a moment, on stable Rust: valid input from a corpus, mutated from a seed.
//!
//! The seed differs from run to run and is printed with a failure; `RINGNBD_FUZZ_SEED` repeats it and
//! `RINGNBD_FUZZ_SECONDS` makes the moment longer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[path = "fuzz/bodies.rs"]
mod bodies;

/// Numbers that decoders tend to get wrong.
const INTERESTING: [u64; 12] =
    [0, 1, 2, 3, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x0200_0001, u64::MAX >> 1, u64::MAX];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound as u64).max(1)).expect("it is below a usize")
    }
}

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len());
        match random.below(8) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = random.next().to_be_bytes()[0],
            2..=4 => {
                let width = [1, 2, 4, 8][random.below(4)];
                let bytes = INTERESTING[random.below(INTERESTING.len())].to_be_bytes();
                for (byte, new) in input.iter_mut().skip(at).zip(&bytes[8 - width..]) {
                    *byte = *new;
                }
            }
            5 => input.truncate(at),
            6 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                input.splice(at..at, other[from..].iter().copied());
            }
            _ => {
                let end = at + random.below(input.len() - at);
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
        }
        input.truncate(1 << 16);
    }
    input
}

/// Drives `body` until the moment is over.
fn drive(name: &str, body: fn(&[u8]), corpus: &[Vec<u8>]) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| u64::from(time.subsec_nanos()) | 1);
    let seed = variable("RINGNBD_FUZZ_SEED").unwrap_or_else(now);
    let deadline = Instant::now() + Duration::from_secs(variable("RINGNBD_FUZZ_SECONDS").unwrap_or(3));
    let mut random = Random(seed);
    let mut count = 0_u64;
    for input in corpus {
        body(input);
    }
    while Instant::now() < deadline {
        for _ in 0..100 {
            let input = mutate(&mut random, corpus);
            let outcome = catch_unwind(AssertUnwindSafe(|| body(&input)));
            assert!(outcome.is_ok(), "{name}: seed {seed}, input {count}: {input:02x?}");
            count += 1;
        }
    }
    assert!(count >= 100, "{name}: nothing was tried");
}

fn option(code: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    [b"IHAVEOPT".as_slice(), &code.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("short").to_be_bytes(), text.as_bytes()].concat()
}

/// Client flags, then options that lead into transmission in each dialect, then requests.
fn sessions() -> Vec<Vec<u8>> {
    let info = [string("disk"), vec![0, 2, 0, 3, 0, 1]].concat();
    let meta = [string("disk"), vec![0, 0, 0, 2], string("base:allocation"), string("qemu:")].concat();
    let flags = vec![0, 0, 0, 3];
    let cut = |piece: u8, parts: &[Vec<u8>]| [vec![piece], parts.concat()].concat();
    vec![
        cut(0x7f, &[flags.clone(), option(3, &[]), option(6, &info), option(7, &info), compact()]),
        cut(
            0x1f,
            &[
                flags.clone(),
                option(8, &[]),
                option(9, &meta),
                option(10, &meta),
                option(7, &info),
                compact(),
            ],
        ),
        cut(0x07, &[flags.clone(), option(11, &[]), option(10, &meta), option(7, &info), extended()]),
        cut(0x01, &[vec![0; 4], option(1, b"disk"), compact()]),
        cut(0x3f, &[flags.clone(), option(99, &[1; 300]), option(5, &[]), option(2, &[])]),
        cut(0xff, &[compact()]),
        cut(0x7f, &[flags, option(3, b"data"), option(8, b"x"), option(10, &[0; 3]), option(6, &[0; 5])]),
    ]
}

fn compact() -> Vec<u8> {
    let request = |flags: u16, command: u16, offset: u64, length: u32| {
        let head =
            [&0x2560_9513_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes(), &[7; 8]]
                .concat();
        [head, offset.to_be_bytes().to_vec(), length.to_be_bytes().to_vec()].concat()
    };
    (0..9)
        .flat_map(|command| {
            request(0, command, 4096, 512).into_iter().chain(vec![0; if command == 1 { 512 } else { 0 }])
        })
        .collect()
}

fn extended() -> Vec<u8> {
    let request = |flags: u16, command: u16, offset: u64, length: u64, payload: &[u8]| {
        let head =
            [&0x21e4_1c71_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes(), &[7; 8]]
                .concat();
        [head, offset.to_be_bytes().to_vec(), length.to_be_bytes().to_vec(), payload.to_vec()].concat()
    };
    let filter = [&[0, 0, 0, 0, 0, 0, 16, 0][..], &[0, 0, 0, 7], &[0, 0, 0, 6]].concat();
    let mut all: Vec<u8> =
        [0, 3, 4, 5, 6, 7].iter().flat_map(|c| request(0, *c, 4096, 1 << 33, &[])).collect();
    all.extend(request(32, 1, 4096, 512, &[1; 512]));
    all.extend(request(32, 7, 4096, 16, &filter));
    all
}

#[test]
fn tls_opens_what_was_sealed_and_nothing_else() {
    let hello = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03";
    let corpus = vec![
        [&[0x40][..], hello, &[7; 40]].concat(),
        [&[0x02][..], hello, &[0; 40]].concat(),
        vec![1, 0, 0, 10, 1, 0, 63, 255, 2, 5, 0, 9, 1, 0, 0, 1, 3],
        vec![1, 4, 0, 1, 0, 0, 0, 10, 1, 0, 0, 20, 2, 6, 0, 40, 3, 0, 1, 0, 0],
        vec![1, 0, 16, 0, 1, 0, 1, 1, 2, 7, 0, 5, 200, 0, 0, 9, 1],
    ];
    drive("tls", bodies::tls, &corpus);
}

#[test]
fn handshake_survives_anything() {
    drive("handshake", bodies::handshake, &sessions());
}

#[test]
fn requests_survive_anything() {
    let corpus: Vec<_> = [(0, compact()), (1, compact()), (2, extended()), (0x82, extended())]
        .map(|(first, rest)| [vec![first], rest].concat())
        .into();
    drive("requests", bodies::requests, &corpus);
}

/// A server's side of the handshake, as our own machine writes it, and an oldstyle one.
fn greetings() -> Vec<Vec<u8>> {
    let reply = |option: u32, kind: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [
            &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
            &option.to_be_bytes(),
            &kind.to_be_bytes(),
            &length,
            payload,
        ]
        .concat()
    };
    let error = 0x8000_0001;
    let export = [&[0, 0][..], &(1_u64 << 30).to_be_bytes(), &[0x0d, 0x7f]].concat();
    let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 4, 0, 0, 0];
    let go =
        || [reply(7, 3, &[0, 1, b'd']), reply(7, 3, &sizes), reply(7, 3, &export), reply(7, 1, &[])].concat();
    let context =
        || [reply(10, 4, &[&[0, 0, 0, 5][..], b"base:allocation"].concat()), reply(10, 1, &[])].concat();
    let greeting = b"NBDMAGICIHAVEOPT\x00\x03".to_vec();
    let list = || {
        let entry = |text: &[u8]| reply(3, 2, text);
        [entry(b"\0\0\0\x04diska disk"), entry(b"\0\0\0\0"), reply(3, 1, &[])].concat()
    };
    let surveyed = || {
        let context = [&[0, 0, 0, 0][..], b"base:allocation"].concat();
        [reply(6, 3, &sizes), reply(6, 3, &export), reply(6, 1, &[]), reply(9, 4, &context), reply(9, 1, &[])]
            .concat()
    };
    let cut = |wants: u8, piece: u8, parts: &[Vec<u8>]| [vec![wants, piece], parts.concat()].concat();
    let oldstyle =
        [&b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"[..], &[0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 5], &[0; 124]]
            .concat();
    vec![
        cut(1, 255, &[greeting.clone(), reply(11, 1, &[]), context(), go()]),
        cut(0, 16, &[greeting.clone(), reply(11, error, b"no"), reply(8, 1, &[]), context(), go()]),
        cut(6, 3, &[greeting.clone(), go()]),
        cut(
            7,
            255,
            &[
                greeting.clone(),
                reply(7, error, &[]),
                reply(3, 2, b"\0\0\0\x04disk"),
                reply(3, 1, &[]),
                vec![0; 10],
            ],
        ),
        cut(6, 255, std::slice::from_ref(&oldstyle)),
        cut(16, 255, &[oldstyle]),
        cut(9, 31, &[greeting.clone(), reply(5, 1, &[]), reply(11, 1, &[]), context(), go()]),
        cut(17, 255, &[greeting.clone(), reply(11, 1, &[]), surveyed(), surveyed()]),
        cut(
            18,
            7,
            &[greeting, reply(8, 1, &[]), list(), surveyed(), reply(9, 1, &[]), reply(6, error, b"no")],
        ),
        cut(6, 0, &[b"NBDMAGICIHAVEOPT\x00\x00".to_vec(), vec![0; 134]]),
    ]
}

/// A reply of each kind, and all kinds after one another, in a dialect.
fn chunks(dialect: u8) -> Vec<Vec<u8>> {
    let chunk = |kind: u16, done: u16, payload: &[u8]| match dialect {
        0 => [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &[7; 8]].concat(),
        1 => [
            &0x668e_33ef_u32.to_be_bytes()[..],
            &done.to_be_bytes(),
            &kind.to_be_bytes(),
            &[7; 8],
            &length(payload)[4..],
            payload,
        ]
        .concat(),
        _ => [
            &0x6e8a_278c_u32.to_be_bytes()[..],
            &done.to_be_bytes(),
            &kind.to_be_bytes(),
            &[7; 8],
            &[0; 8],
            &length(payload),
            payload,
        ]
        .concat(),
    };
    fn length(payload: &[u8]) -> [u8; 8] {
        (payload.len() as u64).to_be_bytes()
    }
    let (kind, status) = match dialect {
        1 => (5, [&[0, 0, 0, 7][..], &[0, 0, 2, 0, 0, 0, 0, 3]].concat()),
        _ => (6, [&[0, 0, 0, 7, 0, 0, 0, 1][..], &512_u64.to_be_bytes(), &3_u64.to_be_bytes()].concat()),
    };
    let parts = [
        chunk(1, 0, &[0; 520]),
        chunk(2, 1, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0]),
        chunk(kind, 0, &status),
        chunk(0x8001, 0, b"\0\0\0\x05\0\x02no"),
        chunk(0x8002, 1, b"\0\0\0\x05\0\x02no\0\0\0\0\0\0\x02\0"),
        chunk(0, 1, &[]),
    ];
    let read = [vec![dialect], parts[..2].concat()].concat();
    let status = [vec![0x80 | dialect], parts[2].clone(), parts[5].clone()].concat();
    vec![read, status, [vec![dialect], parts.concat()].concat()]
}

#[test]
fn dialer_survives_any_server() {
    drive("dialer", bodies::dialer, &greetings());
}

#[test]
fn reply_decoder_survives_any_server() {
    let corpus: Vec<_> = [0, 1, 2].into_iter().flat_map(chunks).collect();
    drive("replies", bodies::replies, &corpus);
}

#[test]
fn session_survives_any_server() {
    let reply = |dialect: u8, slot: u8, kind: u16, payload: &[u8]| {
        let cookie = [&[0, 0, 0, 1][..], &[0, 0, 0, slot]].concat();
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        match dialect {
            0 => [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &cookie, payload].concat(),
            1 => {
                [&[0x66, 0x8e, 0x33, 0xef, 0, 1][..], &kind.to_be_bytes(), &cookie, &length, payload].concat()
            }
            _ => {
                let head = [&[0x6e, 0x8a, 0x27, 0x8c, 0, 1][..], &kind.to_be_bytes(), &cookie].concat();
                [head, vec![0; 12], length.to_vec(), payload.to_vec()].concat()
            }
        }
    };
    let corpus: Vec<_> = (0..3)
        .map(|dialect| {
            let data = if dialect == 0 { vec![0; 1024] } else { vec![0; 1032] };
            let mut replies = vec![reply(dialect, 0, 1, &data)];
            replies.extend([1, 4, 3, 2, 5].map(|slot| reply(dialect, slot, 0, &[])));
            replies.push(reply(dialect, 6, 0x8001, &[0, 0, 0, 5, 0, 0]));
            [vec![dialect], replies.concat()].concat()
        })
        .collect();
    drive("session", bodies::session, &corpus);
}

#[test]
fn words_of_the_command_line_survive_anything() {
    let corpus: Vec<_> = [
        "data=block:/dev/sdb,offset=1M,size=2G,direct=on",
        "disk.img,readonly=on,description=a,,b",
        "=memory:18446744073709551615",
        "faulty:1:null:8P",
        "a://b=c",
        "tcp:[::1]:10809",
        "unix:/run/nbd.sock",
        "vsock:4294967295:10809",
        "ü=null:1K,hidden=off",
        "nbd+unix:///a%20b?socket=/run/s",
        "nbd://[::1]:10809//x",
        "nbd:unix:/run/s:exportname=a",
        "nbd+vsock://2:3/",
    ]
    .map(|word| word.as_bytes().to_vec())
    .into();
    drive("words", bodies::words, &corpus);
}
