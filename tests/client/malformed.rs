//! Servers that answer nonsense. Each of these is a clean protocol error, for the request and for all that come later; no
//! byte of it ends up in a caller's hands as if it were data.

use ringnbd::client::{Buffer, Client, Error, Options};
use ringnbd::proto::{CommandFlags, Errno};

use crate::script::{
    ALL, Asked, CHUNKED, CONTEXT, Dialect, Export, Script, chunk, data, error, hole, simple, status,
    with_client,
};

/// The request that the nonsense answers: 8 KiB at 4096.
#[derive(Clone, Copy, Debug)]
enum What {
    Read,
    Write,
    Status,
}

const OFFSET: u64 = 4096;
const LENGTH: usize = 8192;

async fn ask(client: &Client, what: What) -> Result<(), Error> {
    match what {
        What::Read => client.read(OFFSET, Buffer::acquire(LENGTH).await).await.0,
        What::Write => client.write(OFFSET, Buffer::acquire(LENGTH).await).await.0,
        What::Status => client.block_status(OFFSET, LENGTH as u64, &[], false).await.map(drop),
    }
}

/// What the client makes of `answer`, and of a request after it.
fn outcome(
    dialect: Dialect,
    what: What,
    answer: impl Fn(Dialect, &Asked) -> Vec<u8> + Send + 'static,
) -> [Result<(), Error>; 2] {
    let script = Script::serve(Export::new(dialect), 1, move |_, peer| {
        let asked = peer.request()?;
        peer.send(&answer(dialect, &asked))?;
        // Another is answered with the same nonsense; then the client is waited for.
        while let Ok(asked) = peer.request() {
            if asked.command == 2 {
                break;
            }
            peer.send(&answer(dialect, &asked))?;
        }
        Ok(())
    });
    let outcomes = with_client(&script.uri, Options::default(), move |client| async move {
        [ask(&client, what).await, ask(&client, What::Write).await]
    });
    script.end();
    outcomes
}

#[track_caller]
fn violates(
    dialect: Dialect,
    what: What,
    name: &str,
    answer: impl Fn(Dialect, &Asked) -> Vec<u8> + Send + 'static,
) {
    let [first, second] = outcome(dialect, what, answer);
    assert!(matches!(first, Err(Error::Violation { .. })), "{name}, {dialect:?}, {what:?}: {first:?}");
    assert_eq!(first, second, "{name}, {dialect:?}: the client goes on");
}

type Answer = fn(Dialect, &Asked) -> Vec<u8>;

#[test]
fn a_reply_to_nobody_ends_the_client() {
    let none: Answer = |dialect, asked| match dialect {
        Dialect::Simple => simple(asked.cookie ^ 1, 0),
        _ => chunk(dialect, &Asked { cookie: asked.cookie ^ 1, ..asked.clone() }, 0, true, &[]),
    };
    let reused: Answer = |dialect, asked| match dialect {
        Dialect::Simple => simple(asked.cookie ^ 1 << 32, 0),
        _ => chunk(dialect, &Asked { cookie: asked.cookie ^ 1 << 32, ..asked.clone() }, 0, true, &[]),
    };
    let twice: Answer = |dialect, asked| match dialect {
        Dialect::Simple => [simple(asked.cookie, 0), simple(asked.cookie, 0)].concat(),
        _ => [chunk(dialect, asked, 0, true, &[]), chunk(dialect, asked, 0, true, &[])].concat(),
    };
    for dialect in ALL {
        violates(dialect, What::Write, "an unknown cookie", none);
        violates(dialect, What::Write, "a cookie of another time", reused);
        // The first of the two is a good answer; what follows it is not.
        let [first, second] = outcome(dialect, What::Write, twice);
        assert!(matches!(
            (&first, &second),
            (Ok(()) | Err(Error::Violation { .. }), Err(Error::Violation { .. }))
        ));
    }
}

#[test]
fn headers_that_were_not_agreed_on_end_the_client() {
    let magic: Answer = |_, _| vec![0x67; 64];
    let structured: Answer = |_, asked| chunk(Dialect::Structured, asked, 0, true, &[]);
    let extended: Answer = |_, asked| chunk(Dialect::Extended, asked, 0, true, &[]);
    let plain: Answer = |_, asked| simple(asked.cookie, 0);
    let plain_data: Answer = |_, asked| [simple(asked.cookie, 0), vec![1; LENGTH]].concat();
    for dialect in ALL {
        violates(dialect, What::Write, "no magic at all", magic);
    }
    violates(Dialect::Simple, What::Write, "structured without negotiation", structured);
    violates(Dialect::Simple, What::Write, "extended without negotiation", extended);
    violates(Dialect::Structured, What::Write, "extended under structured", extended);
    violates(Dialect::Extended, What::Write, "structured under extended", structured);
    violates(Dialect::Extended, What::Write, "simple under extended", plain);
    violates(Dialect::Structured, What::Read, "a simple reply to a read", plain_data);
    violates(Dialect::Structured, What::Status, "a simple reply to a block status", plain);
}

#[test]
fn malformed_chunks_end_the_client() {
    let cases: [(&str, Answer); 14] = [
        ("NONE that is not the last", |d, a| chunk(d, a, 0, false, &[])),
        ("NONE with a payload", |d, a| chunk(d, a, 0, true, &[0; 4])),
        ("data of 8 bytes", |d, a| chunk(d, a, 1, true, &OFFSET.to_be_bytes())),
        ("data of 3 bytes", |d, a| chunk(d, a, 1, true, &[0; 3])),
        ("a hole of 11 bytes", |d, a| chunk(d, a, 2, true, &[0; 11])),
        ("a hole of 13 bytes", |d, a| chunk(d, a, 2, true, &[0; 13])),
        ("a hole of nothing", |d, a| hole(d, a, OFFSET, 0, true)),
        ("an unknown type", |d, a| chunk(d, a, 77, true, &[0; 16])),
        ("an error without a number", |d, a| error(d, a, 0, "fine")),
        ("an error of 5 bytes", |d, a| chunk(d, a, 0x8001, true, &[0, 0, 0, 5, 0])),
        ("a text longer than its chunk", |d, a| chunk(d, a, 0x8001, true, &[0, 0, 0, 5, 0, 9, b'x'])),
        ("an error at no offset", |d, a| chunk(d, a, 0x8002, true, &[0, 0, 0, 5, 0, 0])),
        ("an error at another offset", |d, a| {
            chunk(d, a, 0x8002, true, &[&[0, 0, 0, 5, 0, 0][..], &(1u64 << 40).to_be_bytes()].concat())
        }),
        ("a text without end", |d, a| {
            let mut bytes = chunk(d, a, 0x8001, true, &[]);
            let length = bytes.len();
            bytes[length - 4..].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes());
            bytes
        }),
    ];
    for dialect in CHUNKED {
        for (name, answer) in cases {
            violates(dialect, What::Read, name, answer);
        }
    }
}

#[test]
fn content_that_was_not_asked_for_ends_the_client() {
    const END: u64 = OFFSET + LENGTH as u64;
    let cases: [(&str, What, Answer); 12] = [
        ("data before the range", What::Read, |d, a| data(d, a, OFFSET - 1, &[1; 9], true)),
        ("data after the range", What::Read, |d, a| data(d, a, END - 1, &[1; 9], true)),
        ("data at the end of all numbers", What::Read, |d, a| data(d, a, u64::MAX, &[1; 9], true)),
        ("a hole before the range", What::Read, |d, a| hole(d, a, OFFSET - 1, 2, true)),
        ("a hole after the range", What::Read, |d, a| hole(d, a, END - 1, 2, true)),
        ("a hole beyond all", What::Read, |d, a| hole(d, a, OFFSET, u32::MAX, true)),
        ("data twice", What::Read, |d, a| {
            [data(d, a, OFFSET, &[1; LENGTH], false), data(d, a, OFFSET + 9, &[1; 9], true)].concat()
        }),
        ("data over a hole", What::Read, |d, a| {
            [hole(d, a, OFFSET, LENGTH as u32, false), data(d, a, END - 1, &[1; 1], true)].concat()
        }),
        ("success without data", What::Read, |d, a| chunk(d, a, 0, true, &[])),
        ("success with a gap", What::Read, |d, a| data(d, a, OFFSET, &[1; LENGTH - 1], true)),
        ("data for a write", What::Write, |d, a| data(d, a, OFFSET, &[1; LENGTH], true)),
        ("status for a read", What::Read, |d, a| status(d, a, CONTEXT, &[(LENGTH as u64, 0)], true)),
    ];
    for dialect in CHUNKED {
        for (name, what, answer) in cases {
            violates(dialect, what, name, answer);
        }
    }
}

#[test]
fn a_simple_reply_after_a_chunk_ends_the_client() {
    violates(Dialect::Structured, What::Read, "simple after a chunk", |dialect, asked| {
        [data(dialect, asked, OFFSET, &[1; 512], false), simple(asked.cookie, 0)].concat()
    });
}

#[test]
fn block_status_that_makes_no_sense_ends_the_client() {
    let one = |d, a: &Asked| status(d, a, CONTEXT, &[(LENGTH as u64, 0)], false);
    let cases: [(&str, Answer); 6] = [
        ("another context", |d, a| status(d, a, CONTEXT + 1, &[(LENGTH as u64, 0)], true)),
        ("an extent of nothing", |d, a| status(d, a, CONTEXT, &[(0, 0)], true)),
        ("no extents", |d, a| status(d, a, CONTEXT, &[], true)),
        ("no context", |d, a| chunk(d, a, 0, true, &[])),
        ("half an extent", |d, a| chunk(d, a, if d == Dialect::Extended { 6 } else { 5 }, true, &[0; 13])),
        ("the other width", |d, a| chunk(d, a, if d == Dialect::Extended { 5 } else { 6 }, true, &[0; 24])),
    ];
    for dialect in CHUNKED {
        for (name, answer) in cases {
            violates(dialect, What::Status, name, answer);
        }
        violates(dialect, What::Status, "a context twice", move |d, a| [one(d, a), one(d, a)].concat());
    }
    violates(Dialect::Extended, What::Status, "a miscount", |d, a| {
        chunk(d, a, 6, true, &[&[0, 0, 0, 7, 0, 0, 0, 2][..], &[1; 16]].concat())
    });
    violates(Dialect::Extended, What::Status, "another offset", |d, a| {
        status(d, &Asked { offset: 0, ..a.clone() }, CONTEXT, &[(LENGTH as u64, 0)], true)
    });
}

#[test]
fn an_error_of_an_unknown_type_is_an_error_and_nothing_worse() {
    for dialect in CHUNKED {
        let [first, second] = outcome(dialect, What::Write, |d, a| {
            chunk(d, a, 0x8abc, true, &[&[0, 0, 0, 28, 0, 4][..], b"full and more"].concat())
        });
        let error = first.unwrap_err();
        assert_eq!(
            (error.errno(), error.to_string().ends_with("ENOSPC: full")),
            (Errno::ENOSPC, true),
            "{error}"
        );
        assert!(matches!(second, Err(Error::Failed { .. })), "the connection lives on: {second:?}");
    }
}

#[test]
fn a_server_that_leaves_in_the_middle_is_a_lost_connection() {
    for dialect in CHUNKED {
        for part in [0, 3, 20, 40, 4000] {
            let script = Script::serve(Export::new(dialect), 2, move |number, peer| {
                let asked = peer.request()?;
                let whole = data(dialect, &asked, OFFSET, &[1; LENGTH], true);
                let end = if number == 0 { part } else { whole.len() };
                peer.send(&whole[..end])
            });
            let (outcome, buffer) = with_client(&script.uri, Options::default(), move |client| async move {
                let (outcome, buffer) = client.read(OFFSET, Buffer::acquire(LENGTH).await).await;
                // It reconnects behind the scenes; the second connection is for that.
                let deadline = std::time::Duration::from_secs(20);
                let again = async {
                    while client.read(OFFSET, Buffer::acquire(LENGTH).await).await.0.is_err() {
                        ringnbd::rt::timer::sleep(std::time::Duration::from_millis(5)).await;
                    }
                };
                ringnbd::rt::timer::deadline(deadline, again).await.expect("it comes back");
                (outcome, buffer.len())
            });
            assert!(matches!(outcome, Err(Error::Lost { .. })), "{dialect:?} {part}: {outcome:?}");
            assert_eq!(buffer, LENGTH, "the buffer comes back");
            script.end();
        }
    }
}

#[test]
fn status_that_says_too_much_or_between_blocks_is_repaired() {
    for dialect in CHUNKED {
        let export = Export { block: (512, 4096, 1 << 20), ..Export::new(dialect) };
        let script = Script::serve(export, 1, move |number, peer| {
            let told: [&[(u64, u64)]; 3] =
                [&[(1 << 31, 3), (5, 0)], &[(4096, 2), (100, 3), (3996, 0)], &[(100, 3), (412, 3)]];
            assert_eq!(number, 0);
            for extents in told {
                let asked = peer.request()?;
                peer.send(&status(dialect, &asked, CONTEXT, extents, true))?;
            }
            peer.request().map(drop)
        });
        let extents = with_client(&script.uri, Options::default(), |client| async move {
            let mut all = Vec::new();
            for one in [true, false, false] {
                let told =
                    client.block_status(OFFSET, LENGTH as u64, &["base:allocation"], one).await.unwrap();
                assert_eq!((told.len(), told[0].context.as_str()), (1, "base:allocation"));
                all.push(told[0].extents.iter().map(|e| (e.offset, e.length, e.status)).collect::<Vec<_>>());
            }
            client.disconnect().await;
            all
        });
        let expected = [vec![(4096, 8192, 3)], vec![(4096, 4096, 2)], vec![(4096, 512, 0)]];
        assert_eq!(extents, expected, "{dialect:?}");
        script.end();
    }
}

/// A caller who rounds the size up to sectors gets zeroes for what is not there, and nothing more.
#[test]
fn the_last_sector_is_padded_for_those_who_count_in_sectors() {
    let export = Export { size: 1000, ..Export::new(Dialect::Simple) };
    let script = Script::serve(export, 1, |_, peer| {
        for length in [488, 1000] {
            let asked = peer.request()?;
            assert_eq!((asked.offset + asked.length, asked.length), (1000, length));
            peer.send(&[simple(asked.cookie, 0), vec![7; length as usize]].concat())?;
        }
        assert_eq!(peer.request()?.command, 2);
        Ok(())
    });
    with_client(&script.uri, Options::default(), |client| async move {
        for (offset, length, there) in [(512, 512, 488), (0, 1024, 1000)] {
            let mut buffer = Buffer::acquire(length).await;
            buffer.fill(0xee);
            let (result, buffer) = client.read_sectors(offset, buffer).await;
            result.unwrap();
            assert!(
                buffer[..there].iter().all(|byte| *byte == 7)
                    && buffer[there..].iter().all(|byte| *byte == 0)
            );
            assert_eq!(buffer.len(), length);
        }
        let beyond = client.read_sectors(512, Buffer::acquire(1024).await).await.0;
        assert!(matches!(beyond, Err(Error::PastEnd { .. })), "{beyond:?}");
        client.disconnect().await;
    });
    script.end();
}

#[test]
fn what_a_server_does_not_offer_is_not_asked_of_it() {
    // HAS_FLAGS and nothing else.
    let export = Export { flags: 1, ..Export::new(Dialect::Structured) };
    let script = Script::serve(export, 1, |_, peer| {
        let mut commands = Vec::new();
        loop {
            let asked = peer.request()?;
            commands.push((asked.command, asked.flags));
            match asked.command {
                2 => break,
                _ => peer.send(&simple(asked.cookie, 0))?,
            }
        }
        assert_eq!(commands, [(1, 0), (2, 0)], "a write without FUA, and the goodbye");
        Ok(())
    });
    with_client(&script.uri, Options::default(), |client| async move {
        let none = CommandFlags::NONE;
        client.flush().await.unwrap();
        client.trim(0, 4096, none).await.unwrap();
        client.cache(0, 4096).await.unwrap();
        let refused = client.write_zeroes(0, 4096, none).await.unwrap_err();
        assert_eq!((refused.errno(), refused), (Errno::ENOTSUP, Error::NotOffered("WRITE_ZEROES")));
        client.write_at(0, &[1; 512], CommandFlags::FUA).await.unwrap();
        let past = client.write_at(1 << 20, &[1], none).await.unwrap_err();
        assert_eq!(past.errno(), Errno::ENOSPC);
        assert_eq!(client.read_at(u64::MAX, &mut [0]).await.unwrap_err().errno(), Errno::EINVAL);
        // Nothing to do is done.
        client.write_at(1 << 20, &[], none).await.unwrap();
        client.read_at(1 << 20, &mut []).await.unwrap();
        client.disconnect().await;
        assert_eq!(client.read_at(0, &mut [0]).await, Err(Error::Closed));
    });
    script.end();
}
