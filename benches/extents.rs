//! What an export remembers of its ranges: which are known to be data, asked before every large read, and which are being
//! written past the page cache, asked before every direct write. With 1, 1,000 and 100,000 ranges in it.

use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringnbd::backend::bench::{Held, Hold, KnownData, Ranges};

const COUNTS: [u64; 3] = [1, 1000, 100_000];
/// The finest granule of [`KnownData`], so that each range has a bit of its own.
const LENGTH: u64 = 64 << 10;

/// Where range `index` begins: a range's length is left out after each.
const fn place(index: u64) -> u64 {
    index * 2 * LENGTH
}

/// Indices below `count` in no order that a prefetcher knows.
fn wander(state: &mut u64, count: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % count
}

fn known(c: &mut Criterion) {
    let mut group = c.benchmark_group("known data");
    for count in COUNTS {
        let known = KnownData::new(place(count));
        assert_eq!(known.granule(), LENGTH, "ranges would share bits");
        for index in 0..count {
            known.insert(place(index), LENGTH);
        }
        let mut state = 1;
        for (what, shift, expected) in [("lookup, data", 0, true), ("lookup, unknown", LENGTH, false)] {
            group.bench_function(BenchmarkId::new(what, count), |bencher| {
                bencher.iter(|| {
                    let found = known.covers(place(wander(&mut state, count)) + shift, black_box(LENGTH));
                    assert_eq!(found, expected);
                });
            });
        }
        group.bench_function(BenchmarkId::new("insert what is known", count), |bencher| {
            bencher.iter(|| known.insert(place(wander(&mut state, count)), black_box(LENGTH)));
        });
        group.bench_function(BenchmarkId::new("forget and insert", count), |bencher| {
            bencher.iter(|| {
                let offset = place(wander(&mut state, count));
                known.remove(offset, black_box(LENGTH));
                known.insert(offset, black_box(LENGTH));
            });
        });
        // A read of 32 MiB looks at 512 granules.
        if place(count) >= 32 << 20 {
            let all = KnownData::new(place(count));
            all.insert(0, place(count));
            group.bench_function(BenchmarkId::new("lookup of 32 MiB, data", count), |bencher| {
                bencher.iter(|| assert!(all.covers(black_box(0), 32 << 20)));
            });
        }
    }
    group.finish();
}

/// A range that nobody is in the way of.
fn hold(ranges: &Arc<Ranges>, index: u64, hold: Hold) -> Held {
    let held = pin!(ranges.hold(place(index)..place(index) + LENGTH, hold));
    match held.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(held) => held.expect("no eventfd is needed"),
        Poll::Pending => panic!("somebody is in the way"),
    }
}

fn ranges(c: &mut Criterion) {
    let mut group = c.benchmark_group("ranges being written");
    for count in COUNTS {
        let ranges = Arc::new(Ranges::default());
        let under_way: Vec<_> = (0..count).map(|index| hold(&ranges, index, Hold::Shared)).collect();
        group.bench_function(BenchmarkId::new("hold shared, all share", count), |bencher| {
            bencher.iter(|| hold(&ranges, count, Hold::Shared));
        });
        group.bench_function(BenchmarkId::new("hold alone, all share", count), |bencher| {
            bencher.iter(|| hold(&ranges, count, Hold::Alone));
        });
        let _alone = hold(&ranges, count + 1, Hold::Alone);
        group.bench_function(BenchmarkId::new("hold shared, one is alone", count), |bencher| {
            bencher.iter(|| hold(&ranges, count, Hold::Shared));
        });
        drop(under_way);
    }
    group.finish();
}

criterion_group!(benches, known, ranges);
criterion_main!(benches);
