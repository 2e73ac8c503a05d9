//! The price of measuring one request: `begin` and `end`, the clock readings not included.
//!
//! The budget is 2 % of the server's CPU per request on `null`, which `benches/null.rs` holds it to.

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use ringnbd::metrics::{CommandKind, Sample, ShardMetrics};

fn begin_and_end(c: &mut Criterion) {
    let mut metrics = ShardMetrics::new(4);
    // Durations wander over three decades, as they do under load, so that the buckets are not all hot.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    c.bench_function("metrics/begin+end", |bencher| {
        bencher.iter(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let service_ns = 2_000 + (state >> (44 + (state & 7)));
            let sample =
                Sample { service_ns, backend_ns: service_ns / 2, queued_ns: 0, bytes: 4096, errno: 0 };
            metrics.begin(black_box(1), CommandKind::Read);
            metrics.end(black_box(1), CommandKind::Read, black_box(&sample));
        });
    });
    c.bench_function("metrics/begin+end, 32 that took equally long", |bencher| {
        let mut turn = 0_u64;
        bencher.iter(|| {
            turn += 1;
            let service_ns = 2_000 + (turn & 0xffff);
            let sample = Sample { service_ns, backend_ns: 0, queued_ns: 0, bytes: 4096, errno: 0 };
            for _ in 0..32 {
                metrics.begin(black_box(1), CommandKind::Read);
                metrics.end(black_box(1), CommandKind::Read, black_box(&sample));
            }
        });
    });
    c.bench_function("metrics/one reading of the clock", |bencher| bencher.iter(Instant::now));
    c.bench_function("metrics/snapshot of one command", |bencher| bencher.iter(|| metrics.snapshot()));
}

criterion_group!(benches, begin_and_end);
criterion_main!(benches);
