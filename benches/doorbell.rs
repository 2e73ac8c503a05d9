//! Waking a shard from elsewhere, by each doorbell: why `rt::Doorbell::choose` prefers what it prefers.
//!
//! * a question: a shard asks the helper pool for nothing, sleeps, and is woken by the answer;
//! * letters to and fro: two shards wake each other, both asleep in between.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ringnbd::rt::sync::Event;
use ringnbd::rt::{self, Doorbell, Remote, caps};

const DOORBELLS: [(&str, Doorbell); 2] =
    [("MSG_RING", Doorbell::Message { sync: true }), ("eventfd", Doorbell::Eventfd)];

fn shard<T: 'static, F: Future<Output = T> + 'static>(doorbell: Doorbell, work: impl FnOnce() -> F) -> T {
    let config = rt::Config { doorbell, ..rt::Config::default() };
    rt::run(&config, work).expect("this kernel runs a shard")
}

fn question(c: &mut Criterion) {
    for (name, doorbell) in DOORBELLS {
        c.bench_function(&format!("a question to a helper/{name}"), |bencher| {
            bencher.iter_custom(|count| {
                shard(doorbell, || async move {
                    let start = Instant::now();
                    for _ in 0..count {
                        rt::blocking(|| ()).await;
                    }
                    start.elapsed()
                })
            });
        });
    }
}

thread_local! {
    /// Letters that reached this thread's shard.
    static ARRIVED: (Cell<u64>, Rc<Event>) = (Cell::new(0), Rc::new(Event::new()));
}

fn arrive() {
    ARRIVED.with(|(count, event)| {
        count.set(count.get() + 1);
        event.notify();
    });
}

/// Answers each letter with one, `count` times; who `begins` writes first.
async fn correspond(to: Remote, count: u64, begins: bool) -> Duration {
    let event = ARRIVED.with(|(arrived, event)| {
        arrived.set(0);
        Rc::clone(event)
    });
    let start = Instant::now();
    for turn in 1..=count {
        if begins {
            to.post(arrive);
        }
        while ARRIVED.with(|(arrived, _)| arrived.get()) < turn {
            event.wait().await;
        }
        if !begins {
            to.post(arrive);
        }
    }
    start.elapsed()
}

fn letters(c: &mut Criterion) {
    for (name, doorbell) in DOORBELLS {
        c.bench_function(&format!("a letter to another shard and back/{name}"), |bencher| {
            bencher.iter_custom(|count| {
                let (left_says, right_hears) = mpsc::channel();
                let (right_says, left_hears) = mpsc::channel();
                let other = thread::spawn(move || {
                    shard(doorbell, || async move {
                        right_says.send(rt::remote()).expect("the other shard lives");
                        let to = right_hears.recv().expect("the other shard lives");
                        correspond(to, count, false).await;
                    });
                });
                let took = shard(doorbell, || async move {
                    left_says.send(rt::remote()).expect("the other shard lives");
                    let to = left_hears.recv().expect("the other shard lives");
                    correspond(to, count, true).await
                });
                other.join().expect("the other shard ends");
                took
            });
        });
    }
}

fn doorbells(c: &mut Criterion) {
    let capabilities = caps::probe().expect("this kernel runs a shard");
    let sync = Doorbell::choose(&capabilities);
    assert_eq!(sync, DOORBELLS[0].1, "this kernel lacks a doorbell that is to be compared");
    question(c);
    letters(c);
}

criterion_group!(benches, doorbells);
criterion_main!(benches);
