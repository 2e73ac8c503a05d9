//! Any interleaving of requests, any order of replies and chunks, any block sizes: the same bytes as in a model.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::rc::Rc;
use std::thread;

use proptest::prelude::*;
use ringnbd::client::{Buffer, Options};
use ringnbd::proto::CommandFlags;
use ringnbd::rt;

use crate::script::{ALL, Asked, Dialect, Export, Peer, Script, chunk, data, hole, simple, with_client};

/// Each task has a stripe of the export for itself; neighbours share a block.
const STRIPE: u64 = (16 << 10) + 300;

#[derive(Clone, Debug)]
enum Step {
    Read { at: u64, length: u64 },
    Write { at: u64, length: u64, seed: u8 },
    Zero { at: u64, length: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..STRIPE).prop_flat_map(|at| (Just(at), 0..=(STRIPE - at)));
    prop_oneof![
        3 => range.clone().prop_map(|(at, length)| Step::Read { at, length }),
        3 => (range.clone(), any::<u8>()).prop_map(|((at, length), seed)| Step::Write { at, length, seed }),
        1 => range.prop_map(|(at, length)| Step::Zero { at, length }),
    ]
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

/// A server that lets requests pile up, and answers them in an order and in chunks of its own liking.
fn unruly(peer: &mut Peer, size: u64, minimum: u64, seed: u64) -> io::Result<()> {
    let mut random = Random(seed | 1);
    let mut disk = vec![0u8; size as usize];
    let mut pending: Vec<VecDeque<Vec<u8>>> = Vec::new();
    loop {
        // Wait only when there is nothing else to do.
        peer.stream.set_nonblocking(!pending.is_empty())?;
        let mut first = [0; 1];
        let more = match peek(peer, &mut first) {
            Ok(0) => return Ok(()),
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => return Err(error),
        };
        peer.stream.set_nonblocking(false)?;
        if more && random.below(4) > 0 {
            let asked = peer.request()?;
            if asked.command == 2 {
                return Ok(());
            }
            let end = asked.offset + asked.length;
            assert!(
                asked.offset % minimum == 0 && (end % minimum == 0 || end == size),
                "unaligned: {asked:?}"
            );
            pending.push(answer(peer.dialect, &asked, &mut disk, &mut random));
            continue;
        }
        if pending.is_empty() {
            continue;
        }
        let chosen = random.below(pending.len());
        if let Some(part) = pending[chosen].pop_front() {
            peer.send(&part)?;
        }
        if pending[chosen].is_empty() {
            pending.swap_remove(chosen);
        }
    }
}

fn peek(peer: &Peer, first: &mut [u8; 1]) -> io::Result<usize> {
    rustix::net::recv(&peer.stream, &mut first[..], rustix::net::RecvFlags::PEEK)
        .map(|(count, _)| count)
        .map_err(io::Error::from)
}

fn answer(dialect: Dialect, asked: &Asked, disk: &mut [u8], random: &mut Random) -> VecDeque<Vec<u8>> {
    let range = asked.offset as usize..(asked.offset + asked.length) as usize;
    match asked.command {
        1 => disk[range].copy_from_slice(&asked.payload),
        6 => disk[range].fill(0),
        _ => {}
    }
    let done = |asked: &Asked| match dialect {
        Dialect::Extended => chunk(dialect, asked, 0, true, &[]),
        _ => simple(asked.cookie, 0),
    };
    if asked.command != 0 {
        return [done(asked)].into();
    }
    let content = &disk[asked.offset as usize..(asked.offset + asked.length) as usize];
    if dialect == Dialect::Simple {
        return [[simple(asked.cookie, 0), content.to_vec()].concat()].into();
    }
    let mut cuts: Vec<usize> = (0..random.below(5)).map(|_| random.below(content.len())).collect();
    cuts.extend([0, content.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut parts: Vec<_> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
    for at in (1..parts.len()).rev() {
        parts.swap(at, random.below(at + 1));
    }
    let mut chunks: VecDeque<_> = parts
        .iter()
        .map(|&(from, to)| {
            let offset = asked.offset + from as u64;
            if content[from..to].iter().all(|byte| *byte == 0) {
                hole(dialect, asked, offset, (to - from) as u32, false)
            } else {
                data(dialect, asked, offset, &content[from..to], false)
            }
        })
        .collect();
    chunks.push_back(chunk(dialect, asked, 0, true, &[]));
    chunks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_gives_the_bytes_of_the_model(
        tasks in prop::collection::vec(prop::collection::vec(step(), 1..12), 1..12),
        dialect in prop::sample::select(&ALL[..]),
        (minimum, maximum) in prop::sample::select(&[(1, 1 << 20), (512, 1 << 20), (512, 4096), (4096, 4096)][..]),
        tail in prop::sample::select(&[0u64, 1, 511, 700][..]),
        window in 1..20usize,
        seed: u64,
    ) {
        let size = STRIPE * tasks.len() as u64 + tail;
        let export = Export { size, block: (minimum, 4096, maximum), ..Export::new(dialect) };
        let script = Script::serve(export, 1, move |_, peer| unruly(peer, size, u64::from(minimum), seed));
        let mut options = Options::default();
        options.window = window;
        let uri = script.uri.clone();
        // In a thread of its own, so that a case that fails leaves none of its shard to the next.
        let case = thread::spawn(move || with_client(&uri, options, move |client| async move {
            let client = Rc::new(client);
            let running = tasks.into_iter().enumerate().map(|(number, steps)| {
                let client = Rc::clone(&client);
                async move {
                    let start = number as u64 * STRIPE;
                    let mut model = vec![0u8; STRIPE as usize];
                    for (count, step) in steps.into_iter().enumerate() {
                        match step {
                            Step::Read { at, length } => {
                                let buffer = Buffer::acquire(length as usize).await;
                                let (result, buffer) = client.read(start + at, buffer).await;
                                result.unwrap();
                                let expected = &model[at as usize..(at + length) as usize];
                                assert!(buffer[..] == *expected, "task {number}, step {count}: {at}+{length}");
                            }
                            Step::Write { at, length, seed } => {
                                let content: Vec<u8> = (0..length).map(|i| seed.wrapping_add(i as u8)).collect();
                                client.write_at(start + at, &content, CommandFlags::NONE).await.unwrap();
                                model[at as usize..(at + length) as usize].copy_from_slice(&content);
                            }
                            Step::Zero { at, length } => {
                                client.write_zeroes(start + at, length, CommandFlags::NONE).await.unwrap();
                                model[at as usize..(at + length) as usize].fill(0);
                            }
                        }
                    }
                    // All of it, in one read of the caller's own memory.
                    let mut all = vec![0xee; STRIPE as usize];
                    client.read_at(start, &mut all).await.unwrap();
                    assert!(all == model, "task {number} at the end");
                }
            });
            rt::join_all(running).await;
            // The odd end of the export.
            let mut end = vec![0xee; tail as usize];
            client.read_at(size - tail, &mut end).await.unwrap();
            assert!(end.iter().all(|byte| *byte == 0));
            client.disconnect().await;
        }));
        prop_assert!(case.join().is_ok(), "the case failed");
        script.end();
    }
}

#[test]
fn holes_are_told_apart_from_data() {
    let export = Export::new(Dialect::Structured);
    let script = Script::serve(export, 1, |_, peer| {
        let asked = peer.request()?;
        let d = peer.dialect;
        let parts = [
            hole(d, &asked, 8192, 4096, false),
            data(d, &asked, 4096, &[5; 4096], false),
            hole(d, &asked, 0, 4096, false),
            hole(d, &asked, 12288, 4096, true),
        ];
        peer.send(&parts.concat())?;
        peer.stream.read(&mut [0; 32]).map(drop)
    });
    with_client(&script.uri, Options::default(), |client| async move {
        let mut buffer = Buffer::acquire(16384).await;
        buffer.fill(0xee);
        let (holes, buffer) = client.read_sparse(0, buffer, CommandFlags::NONE).await;
        assert_eq!(holes.unwrap(), [0..4096, 8192..16384]);
        assert!(buffer[..4096].iter().chain(&buffer[8192..]).all(|byte| *byte == 0));
        assert!(buffer[4096..8192].iter().all(|byte| *byte == 5));
    });
    script.end();
}
