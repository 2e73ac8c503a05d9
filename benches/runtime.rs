//! What the runtime costs where nothing is done: a task, a wake-up, an operation, a buffer.
//!
//! Every measurement is one run of a shard, timed inside; `/N` says how many are under way at a time.

use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ringnbd::rt::sync::{Event, Queue};
use ringnbd::rt::{self, Buffer, timer};

/// Runs `work` on a shard of its own; answers the time it took.
fn on_shard<F: Future<Output = ()> + 'static>(work: impl FnOnce() -> F + 'static) -> Duration {
    let timed = || async {
        let start = Instant::now();
        work().await;
        start.elapsed()
    };
    rt::run(&rt::Config::default(), timed).expect("this kernel runs a shard")
}

fn spawn(c: &mut Criterion) {
    c.bench_function("spawn a task that ends at once", |bencher| {
        bencher.iter_custom(|count| {
            on_shard(move || async move {
                for index in 0..count {
                    rt::spawn(async move {
                        black_box(index);
                    });
                }
            })
        });
    });
}

fn wake(c: &mut Criterion) {
    c.bench_function("wake a task and run it", |bencher| {
        bencher.iter_custom(|count| {
            on_shard(move || async move {
                let (there, back) = (Rc::new(Queue::new()), Rc::new(Queue::new()));
                let (inbox, outbox) = (Rc::clone(&there), Rc::clone(&back));
                rt::spawn(async move {
                    for _ in 0..count.div_ceil(2) {
                        inbox.ready(|| false).await;
                        outbox.push(inbox.pop());
                    }
                });
                // There and back are two wake-ups.
                for _ in 0..count.div_ceil(2) {
                    there.push(());
                    back.ready(|| false).await;
                    back.pop();
                }
            })
        });
    });
}

fn operation(c: &mut Criterion) {
    for depth in [1, 32] {
        c.bench_function(&format!("a no-op through the ring/{depth}"), |bencher| {
            bencher.iter_custom(|count| {
                on_shard(move || async move {
                    let ended = Rc::new(Event::new());
                    let alive = Rc::new(std::cell::Cell::new(depth));
                    for _ in 0..depth {
                        let (ended, alive) = (Rc::clone(&ended), Rc::clone(&alive));
                        rt::spawn(async move {
                            for _ in 0..count.div_ceil(depth) {
                                timer::nop().await;
                            }
                            alive.set(alive.get() - 1);
                            ended.notify();
                        });
                    }
                    while alive.get() > 0 {
                        ended.wait().await;
                    }
                })
            });
        });
    }
}

fn buffers(c: &mut Criterion) {
    for length in [4 << 10, 128 << 10] {
        c.bench_function(&format!("take and return a buffer/{length}"), |bencher| {
            bencher.iter_custom(|count| {
                on_shard(move || async move {
                    for _ in 0..count {
                        black_box(Buffer::try_acquire(length));
                    }
                })
            });
        });
    }
}

criterion_group!(benches, spawn, wake, operation, buffers);
criterion_main!(benches);
