//! The codec on the server's hot path: a request's bytes in, admitted, a reply's head out.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringnbd::proto::{
    Admission, BlockSizes, Command, CommandFlags, Dialect, ExportInfo, Reply, Request, Session,
    TransmissionFlags, reply,
};
use smallvec::SmallVec;

const READ: Request = Request {
    command: Command::READ,
    flags: CommandFlags::NONE,
    cookie: 7,
    offset: 8192,
    length: 4096,
    payload: 0,
};

fn export() -> ExportInfo {
    ExportInfo {
        id: 0,
        name: String::new(),
        description: None,
        size: 1 << 30,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA,
        block: BlockSizes { minimum: 1, preferred: 4096, maximum: 32 << 20 },
        contexts: Vec::new(),
        strict: false,
    }
}

fn server(c: &mut Criterion) {
    let mut group = c.benchmark_group("request decoded, admitted, reply head");
    group.throughput(Throughput::Elements(1));
    for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
        let session = Session::new(&export(), dialect, SmallVec::new());
        let bytes = READ.encode(dialect);
        group.bench_function(format!("{dialect:?}"), |bencher| {
            bencher.iter(|| {
                let decoded = session.decode(black_box(&bytes));
                let (request, _) = decoded.expect("it is well-formed").expect("it is whole");
                assert_eq!(session.admit(&request), Admission::Serve);
                reply::data(dialect, &request, request.offset, 4096, true)
            });
        });
    }
    group.finish();
}

fn client(c: &mut Criterion) {
    let mut group = c.benchmark_group("reply head decoded");
    for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
        let head = reply::data(dialect, &READ, READ.offset, 4096, true);
        group.bench_function(format!("{dialect:?}"), |bencher| {
            bencher.iter(|| Reply::decode(dialect, black_box(&head)));
        });
    }
    group.finish();
}

criterion_group!(benches, server, client);
criterion_main!(benches);
