//! Servers that die, stall, restart and come back different, under load.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringnbd::client::{Buffer, Client, ConnectError, Error, Options, Uri};
use ringnbd::proto::CommandFlags;
use ringnbd::rt;
use rustix::process::Signal;

use crate::program::{Process, Scratch};
use crate::script::{Dialect, Export, Script, simple, with_client};
use crate::wait::until;

const BLOCK: usize = 4096;
const BLOCKS_PER_TASK: u64 = 8;
const TASKS: u64 = 24;
pub(crate) const SIZE: u64 = BLOCK as u64 * BLOCKS_PER_TASK * TASKS;

/// What the load and the tormentor share.
#[derive(Default)]
pub(crate) struct Shared {
    rounds: AtomicU64,
    over: AtomicBool,
}

/// Writes blocks that say which they are and how often they were written, and reads them back.
async fn task(client: Client, number: u64, shared: Arc<Shared>) {
    let mut written = [0u64; BLOCKS_PER_TASK as usize];
    let mut buffer = Buffer::acquire(BLOCK).await;
    for turn in 0u64.. {
        let over = shared.over.load(Ordering::Relaxed);
        let own = turn.wrapping_mul(0x9e37_79b9) % BLOCKS_PER_TASK;
        let block = number * BLOCKS_PER_TASK + own;
        written[own as usize] += 1;
        let word = (block << 32 | written[own as usize]).to_be_bytes();
        buffer.chunks_exact_mut(8).for_each(|place| place.copy_from_slice(&word));
        let result;
        (result, buffer) = client.write(block * BLOCK as u64, buffer).await;
        result.unwrap();
        let checked = if over { 0..BLOCKS_PER_TASK } else { own..own + 1 };
        for own in checked {
            let block = number * BLOCKS_PER_TASK + own;
            let result;
            (result, buffer) = client.read(block * BLOCK as u64, buffer).await;
            result.unwrap();
            let count = written[own as usize];
            let word = if count == 0 { [0; 8] } else { (block << 32 | count).to_be_bytes() };
            let torn = buffer.chunks_exact(8).position(|place| place != word);
            assert!(torn.is_none(), "block {block}, write {count}: word {torn:?} of {:02x?}", &buffer[..16]);
        }
        shared.rounds.fetch_add(1, Ordering::Relaxed);
        if over {
            return;
        }
    }
}

/// Runs the load in a thread of its own, while `torment` does what it wants; the server that it leaves serves the end.
pub(crate) fn under_load(uri: &str, connections: usize, torment: impl FnOnce(&Shared) -> Process) {
    let shared = Arc::new(Shared::default());
    let (uri, told) = (Uri::parse(uri).unwrap(), Arc::clone(&shared));
    let load = thread::spawn(move || {
        let mut options = Options::default();
        options.connections = connections;
        options.reconnect_delay = Duration::from_secs(60);
        rt::block_on(async move {
            let client = Client::open(&uri, options).await.unwrap();
            rt::join_all((0..TASKS).map(|number| task(client.clone(), number, Arc::clone(&told)))).await;
            client.flush().await.unwrap();
            client.disconnect().await;
        })
        .unwrap();
    });
    let _server = torment(&shared);
    shared.over.store(true, Ordering::Relaxed);
    load.join().unwrap();
}

#[track_caller]
pub(crate) fn progress(shared: &Shared) {
    let before = shared.rounds.load(Ordering::Relaxed);
    until("the load goes on", || shared.rounds.load(Ordering::Relaxed) > before + 3 * TASKS);
}

#[test]
fn a_server_that_is_killed_paused_and_restarted_loses_nothing() {
    for connections in [1, 4] {
        let scratch = Scratch::new();
        let image = scratch.image("disk", SIZE).display().to_string();
        let socket = scratch.socket();
        let start = || Process::ringnbd(&socket, &[&image]);
        let mut server = start();
        under_load(&scratch.uri(""), connections, |shared| {
            for round in 0..6 {
                progress(shared);
                if round % 3 == 1 {
                    server.pause();
                    // What was answered already still counts; then nothing moves, and nothing fails.
                    let mut before = u64::MAX;
                    until("the load waits", || {
                        let now = shared.rounds.load(Ordering::Relaxed);
                        std::mem::replace(&mut before, now) == now
                    });
                    server.signal(Signal::CONT);
                    continue;
                }
                // In the middle of things, or politely: what is in flight is answered, what comes later is told to go.
                server.end(if round % 3 == 0 { Signal::KILL } else { Signal::TERM });
                server = start();
            }
            progress(shared);
            server
        });
    }
}

/// A client with a request behind it, on a server that can be ended and started again.
fn tormented(
    options: Options,
    body: impl AsyncFnOnce(Client, Rc<Cell<Option<Process>>>, Rc<Scratch>) + 'static,
) {
    let scratch = Rc::new(Scratch::new());
    let image = scratch.image("disk", SIZE).display().to_string();
    let server = Rc::new(Cell::new(Some(Process::ringnbd(&scratch.socket(), &[&image]))));
    let uri = scratch.uri("");
    with_client(&uri, options, move |client| async move {
        client.read_at(0, &mut [0; 512]).await.unwrap();
        body(client, server, scratch).await;
    });
}

fn delay(delay: Duration) -> Options {
    let mut options = Options::default();
    options.reconnect_delay = delay;
    options
}

async fn comes_back(client: &Client) {
    let again = async {
        while client.read_at(0, &mut [0; 512]).await.is_err() {
            rt::timer::sleep(Duration::from_millis(5)).await;
        }
    };
    rt::timer::deadline(Duration::from_secs(30), again).await.expect("it comes back");
}

#[test]
fn requests_wait_for_the_delay_and_no_longer_and_the_client_still_comes_back() {
    tormented(delay(Duration::from_millis(300)), async |client, server, scratch| {
        server.take().unwrap().end(Signal::KILL);
        let start = Instant::now();
        let error = client.read_at(0, &mut [0; 512]).await.unwrap_err();
        let waited = start.elapsed();
        assert!(matches!(error, Error::Lost { .. }), "{error}");
        assert!(waited > Duration::from_millis(250) && waited < Duration::from_secs(20), "{waited:?}");
        // Past the delay nobody waits.
        let start = Instant::now();
        client.flush().await.unwrap_err();
        assert!(start.elapsed() < Duration::from_millis(250));
        let image = scratch.dir.path().join("disk").display().to_string();
        assert_eq!(client.reconnects(), 0);
        server.set(Some(Process::ringnbd(&scratch.socket(), &[&image])));
        comes_back(&client).await;
        assert_eq!(client.reconnects(), 1);
    });
}

/// "For ever" is a delay like others: it must not end at once.
#[test]
fn requests_wait_for_ever_if_they_are_told_to() {
    tormented(delay(Duration::MAX), async |client, server, scratch| {
        server.take().unwrap().end(Signal::KILL);
        let mut target = [1; 512];
        let waits = rt::timer::deadline(Duration::from_millis(200), client.read_at(0, &mut target)).await;
        waits.expect_err("there is nobody to answer");
        let image = scratch.dir.path().join("disk").display().to_string();
        server.set(Some(Process::ringnbd(&scratch.socket(), &[&image])));
        client.read_at(0, &mut target).await.unwrap();
    });
}

#[test]
fn without_a_delay_a_loss_fails_at_once() {
    tormented(delay(Duration::ZERO), async |client, server, _| {
        server.take().unwrap().end(Signal::KILL);
        let error = client.read_at(0, &mut [0; 512]).await.unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{error}");
        assert!(client.connections() == 0);
    });
}

#[test]
fn an_export_that_comes_back_different_is_refused() {
    let cases: [(&str, u64, &str); 2] =
        [("", SIZE * 2, "bytes and now has"), (",readonly=on", SIZE, "read-only")];
    for (words, size, part) in cases {
        tormented(delay(Duration::from_secs(60)), async move |client, server, scratch| {
            server.take().unwrap().end(Signal::KILL);
            let image = scratch.image("other", size).display().to_string();
            server.set(Some(Process::ringnbd(&scratch.socket(), &[&format!("{image}{words}")])));
            let error = client.read_at(0, &mut [0; 512]).await.unwrap_err();
            assert!(matches!(&error, Error::Changed { what, .. } if what.contains(part)), "{error}");
            assert_eq!(client.flush().await.unwrap_err(), error, "for good");
        });
    }
}

#[test]
fn opening_waits_for_a_server_that_is_about_to_start() {
    let scratch = Scratch::new();
    let image = scratch.image("disk", SIZE).display().to_string();
    let (socket, uri) = (scratch.socket(), Uri::parse(&scratch.uri("")).unwrap());
    let open = |timeout: Duration| {
        let (uri, mut options) = (uri.clone(), Options::default());
        options.open_timeout = timeout;
        thread::spawn(move || {
            rt::block_on(async move { Client::open(&uri, options).await.map(|c| c.size()) }).unwrap()
        })
    };
    let refused = open(Duration::ZERO).join().unwrap();
    assert!(matches!(refused, Err(ConnectError::Connect { .. })), "{refused:?}");
    let start = Instant::now();
    let late = open(Duration::from_millis(300)).join().unwrap();
    assert!(matches!(late, Err(ConnectError::Connect { .. })), "{late:?}");
    assert!(start.elapsed() > Duration::from_millis(200));
    let patient = open(Duration::from_secs(60));
    let _server = Process::ringnbd(&socket, &[&image]);
    assert_eq!(patient.join().unwrap().unwrap(), SIZE);
}

#[test]
fn a_silent_server_counts_as_gone_after_the_request_timeout() {
    let script = Script::serve(Export::new(Dialect::Simple), 2, |number, peer| {
        let asked = peer.request()?;
        if number == 0 {
            // Nothing, until the client has had enough.
            return peer.request().map(drop);
        }
        peer.send(&[simple(asked.cookie, 0), vec![9; 512]].concat())?;
        peer.request().map(drop)
    });
    let mut options = delay(Duration::from_secs(60));
    options.request_timeout = Some(Duration::from_millis(100));
    with_client(&script.uri, options, |client| async move {
        let mut target = [0; 512];
        client.read_at(0, &mut target).await.unwrap();
        assert_eq!(target, [9; 512], "answered by the second connection");
        client.disconnect().await;
    });
    script.end();
}

#[test]
fn a_client_can_be_aborted_at_any_time() {
    let script = Script::serve(Export::new(Dialect::Simple), 1, |_, peer| {
        loop {
            peer.request()?;
        }
    });
    with_client(&script.uri, delay(Duration::from_secs(60)), |client| async move {
        let handle = client.clone();
        let reads = rt::join_all((0..100).map(|_| async { client.read(0, Buffer::scratch(512)).await.0 }));
        let abort = async {
            rt::timer::sleep(Duration::from_millis(20)).await;
            handle.abort();
        };
        let (mut outcomes, start) = (Vec::new(), Instant::now());
        let both = async {
            let (reads, ()) = both(reads, abort).await;
            outcomes = reads;
        };
        rt::timer::deadline(Duration::from_secs(20), both).await.expect("all of them end");
        assert!(outcomes.iter().all(|outcome| *outcome == Err(Error::Closed)), "{outcomes:?}");
        assert!(start.elapsed() < Duration::from_secs(10));
    });
    script.end();
}

async fn both<A: Future, B: Future>(one: A, two: B) -> (A::Output, B::Output) {
    let (a, b) = (Rc::new(Cell::new(None)), Rc::new(Cell::new(None)));
    let (put_a, put_b) = (Rc::clone(&a), Rc::clone(&b));
    let futures: [std::pin::Pin<Box<dyn Future<Output = ()>>>; 2] = [
        Box::pin(async move { put_a.set(Some(one.await)) }),
        Box::pin(async move { put_b.set(Some(two.await)) }),
    ];
    rt::join_all(futures).await;
    (a.take().unwrap(), b.take().unwrap())
}

#[test]
fn a_caller_that_stops_waiting_disturbs_nobody() {
    let script = Script::serve(Export::new(Dialect::Simple), 1, |_, peer| {
        // The first is answered only when the second is there.
        let first = peer.request()?;
        let second = peer.request()?;
        peer.send(&[simple(first.cookie, 0), vec![1; 100_000]].concat())?;
        peer.send(&[simple(second.cookie, 0), vec![2; 512]].concat())?;
        let third = peer.request()?;
        peer.send(&simple(third.cookie, 0))?;
        assert_eq!(peer.request()?.command, 2);
        Ok(())
    });
    let mut options = Options::default();
    options.window = 2;
    with_client(&script.uri, options, |client| async move {
        let abandoned = client.read(0, Buffer::scratch(100_000));
        rt::timer::deadline(Duration::from_millis(20), abandoned).await.expect_err("nobody answers");
        let mut target = [0; 512];
        client.read_at(0, &mut target).await.unwrap();
        assert_eq!(target, [2; 512]);
        client.write_at(0, &[3; 512], CommandFlags::NONE).await.unwrap();
        client.disconnect().await;
    });
    script.end();
}
