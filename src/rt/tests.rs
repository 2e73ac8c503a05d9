//! The runtime against the kernel: real files, real sockets, real threads.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::gather::Gather;
use super::net::{Receiver, Socket};
use super::sync::{Either, Event, Semaphore, select};
use super::*;

fn on_shard<T: 'static, F: Future<Output = T> + 'static>(main: impl FnOnce() -> F) -> T {
    run(&Config::default(), main).unwrap()
}

fn temporary_file() -> Arc<OwnedFd> {
    Arc::new(tempfile::tempfile().unwrap().into())
}

#[test]
fn what_was_written_is_read_back() {
    on_shard(|| async {
        let file = File::register(temporary_file(), Writes::Ring).unwrap();
        let mut buffer = Buffer::acquire(10_000).await;
        buffer.fill(7);
        let (written, mut buffer) = file.write_all(buffer, 0..10_000, 123, true).await;
        written.unwrap();
        buffer.fill(0);
        let (read, buffer) = file.read_exact(buffer, 0..10_000, 123).await;
        read.unwrap();
        assert!(buffer.iter().all(|byte| *byte == 7));
        file.fdatasync().await.unwrap();
    });
}

#[test]
fn writes_answer_the_same_whoever_carries_them_out() {
    for writes in [Writes::Ring, Writes::Thread, Writes::Inline, Writes::Adaptive] {
        on_shard(move || async move {
            let file = File::register(temporary_file(), writes).unwrap();
            let ended = Rc::new(Event::new());
            let left = Rc::new(Cell::new(200_u64));
            for index in 0..200_u8 {
                let (file, ended, left) = (file.clone(), Rc::clone(&ended), Rc::clone(&left));
                spawn(async move {
                    let mut buffer = Buffer::acquire(3000).await;
                    buffer.fill(index);
                    let (written, _) = file.write_all(buffer, 0..3000, u64::from(index) * 3000, false).await;
                    written.unwrap();
                    left.set(left.get() - 1);
                    ended.notify();
                });
            }
            while left.get() > 0 {
                ended.wait().await;
            }
            file.fdatasync().await.unwrap();
            let (read, buffer) = file.read_exact(Buffer::acquire(600_000).await, 0..600_000, 0).await;
            read.unwrap();
            assert!(buffer.chunks(3000).zip(0..).all(|(part, index)| part.iter().all(|byte| *byte == index)));
            let unwritable = std::fs::File::open("/proc/self/exe").unwrap();
            let file = File::register(Arc::new(unwritable.into()), writes).unwrap();
            let (refused, _) = file.write_all(Buffer::acquire(512).await, 0..512, 0, false).await;
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBADF), "{writes:?}");
        });
    }
}

#[test]
fn a_write_is_handed_over_though_something_else_is_waited_for() {
    on_shard(|| async {
        let file = File::register(temporary_file(), Writes::Thread).unwrap();
        let buffer = Buffer::acquire(512).await;
        let minute = Duration::from_secs(60);
        let written = timer::deadline(minute, file.write_all(buffer, 0..512, 0, false)).await;
        written.expect("a write takes less than a minute").0.unwrap();
    });
}

#[test]
fn a_shard_that_ends_waits_for_writes_on_its_threads() {
    let file = temporary_file();
    let theirs = Arc::clone(&file);
    on_shard(|| async move {
        let file = File::register(theirs, Writes::Thread).unwrap();
        for index in 0..32_u64 {
            let file = file.clone();
            spawn(async move {
                let mut buffer = Buffer::acquire(64 << 10).await;
                buffer.fill(5);
                let _ = file.write_all(buffer, 0..64 << 10, index * (64 << 10), false).await;
            });
        }
        // Ends with all of them under way.
    });
    let mut bytes = vec![0; 32 * (64 << 10)];
    assert_eq!(rustix::io::pread(&file, &mut bytes, 0).unwrap(), bytes.len());
    assert!(bytes.iter().all(|byte| *byte == 5));
}

#[test]
fn a_read_past_the_end_is_an_error_and_gives_the_buffer_back() {
    on_shard(|| async {
        let file = File::register(temporary_file(), Writes::Ring).unwrap();
        let (read, buffer) = file.read_exact(Buffer::acquire(512).await, 0..512, 0).await;
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(buffer.len(), 512);
    });
}

#[test]
fn registered_memory_carries_the_same_bytes() {
    let config = Config { registered_memory: 1 << 20, ..Config::default() };
    run(&config, || async {
        let file = File::register(temporary_file(), Writes::Ring).unwrap();
        let mut buffer = Buffer::acquire(4096).await;
        assert!(buffer.is_registered());
        buffer.fill(3);
        let (written, mut buffer) = file.write_all(buffer, 0..4096, 0, false).await;
        written.unwrap();
        buffer.fill(0);
        let (read, buffer) = file.read_exact(buffer, 0..4096, 0).await;
        read.unwrap();
        assert!(buffer.iter().all(|byte| *byte == 3));
    })
    .unwrap();
}

#[test]
fn faults_shorten_and_interrupt_but_whole_transfers_stay_whole() {
    for seed in 0..20 {
        let plan = fault::Plan { seed, short: 400, interrupted: 200, late: 100, ..fault::Plan::default() };
        let config = Config { faults: Some(plan), ..Config::default() };
        run(&config, move || async move {
            let file = File::register(temporary_file(), Writes::Ring).unwrap();
            let mut buffer = Buffer::acquire(50_000).await;
            for (index, byte) in buffer.iter_mut().enumerate() {
                *byte = u8::try_from(index % 251).unwrap();
            }
            let (written, mut buffer) = file.write_all(buffer, 0..50_000, 0, false).await;
            written.unwrap();
            buffer.fill(0);
            let (read, buffer) = file.read_exact(buffer, 0..50_000, 0).await;
            read.unwrap();
            assert!(buffer.iter().enumerate().all(|(i, byte)| usize::from(*byte) == i % 251), "seed {seed}");
        })
        .unwrap();
    }
}

#[test]
fn a_failing_disk_is_reported_from_the_seed() {
    let plan = fault::Plan { seed: 1, failed: 1000, ..fault::Plan::default() };
    let config = Config { faults: Some(plan), ..Config::default() };
    run(&config, || async {
        let file = File::register(temporary_file(), Writes::Ring).unwrap();
        let (read, buffer) = file.read_exact(Buffer::acquire(512).await, 0..512, 0).await;
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
        let (written, _) = file.write_all(buffer, 0..512, 0, false).await;
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(file.fdatasync().await.unwrap_err().raw_os_error(), Some(libc::EIO));
    })
    .unwrap();
}

#[test]
fn a_gathered_message_larger_than_the_socket_buffer_arrives_whole() {
    let (near, far) = UnixStream::pair().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        (&far).read_to_end(&mut bytes).unwrap();
        bytes
    });
    on_shard(move || async move {
        let socket = Rc::new(Socket::new(near.into()));
        let mut gather = Box::new(Gather::new());
        for number in 0..1500_u32 {
            gather.bytes(&number.to_be_bytes());
            let mut buffer = Buffer::scratch(4000);
            buffer.fill(1);
            buffer.set_head(b"head");
            gather.buffer(buffer);
        }
        let length = gather.len();
        let (sent, mut gather) = socket.send(gather).await;
        sent.unwrap();
        gather.clear();
        assert!(gather.is_empty() && length == 1500 * 4008);
        socket.shutdown();
    });
    let bytes = reader.join().unwrap();
    assert_eq!(bytes.len(), 1500 * 4008);
    for (number, part) in bytes.chunks(4008).enumerate() {
        assert_eq!(part[..4], u32::try_from(number).unwrap().to_be_bytes());
        assert_eq!(&part[4..8], b"head");
        assert!(part[8..].iter().all(|byte| *byte == 1));
    }
}

#[test]
fn a_flood_that_nobody_reads_stops_in_the_socket_and_loses_nothing() {
    let (near, far) = UnixStream::pair().unwrap();
    let total = 8 << 20;
    let writer = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..total).map(|index| u8::try_from(index % 253).unwrap()).collect();
        (&far).write_all(&bytes).unwrap();
    });
    on_shard(move || async move {
        let mut receiver = Receiver::new(Rc::new(Socket::new(near.into())));
        let mut at = 0;
        // The first look arms the receive; then the flood is left alone until its backlog is full.
        let mut held = vec![receiver.next(None).await.unwrap().unwrap()];
        timer::sleep(Duration::from_millis(20)).await;
        while at < total {
            let bytes = match held.pop() {
                Some(bytes) => bytes,
                None => receiver.next(None).await.unwrap().unwrap(),
            };
            assert!(bytes.iter().enumerate().all(|(i, byte)| usize::from(*byte) == (at + i) % 253));
            at += bytes.len();
        }
        assert!(receiver.next(None).await.unwrap().is_none());
    });
    writer.join().unwrap();
}

#[test]
fn disarming_keeps_the_order_of_bytes() {
    let (near, mut far) = UnixStream::pair().unwrap();
    on_shard(move || async move {
        let socket = Rc::new(Socket::new(near.into()));
        let mut receiver = Receiver::new(Rc::clone(&socket));
        far.write_all(b"first").unwrap();
        assert_eq!(&*receiver.next(None).await.unwrap().unwrap(), b"first");
        far.write_all(b"second").unwrap();
        let mut arrived = Vec::new();
        receiver.disarm(&mut arrived).await.unwrap();
        far.write_all(b"third").unwrap();
        let early: Vec<u8> = arrived.iter().flat_map(|bytes| bytes.to_vec()).collect();
        let missing = b"secondthird".len() - early.len();
        let (count, buffer) = socket.receive_into(Buffer::acquire(64).await, 0..missing).await;
        assert_eq!(count.unwrap(), missing);
        assert_eq!([&early[..], &buffer[..missing]].concat(), b"secondthird");
        far.write_all(b"fourth").unwrap();
        assert_eq!(&*receiver.next(None).await.unwrap().unwrap(), b"fourth");
    });
}

#[test]
fn a_dropped_receive_lets_the_shard_end_and_the_peer_see_it() {
    let (near, mut far) = UnixStream::pair().unwrap();
    on_shard(move || async move {
        let mut receiver = Receiver::new(Rc::new(Socket::new(near.into())));
        assert!(timer::deadline(Duration::from_millis(5), receiver.next(None)).await.is_err());
    });
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn the_budget_serves_in_order_of_arrival() {
    let config = Config { payload_memory_max: 8 << 20, ..Config::default() };
    run(&config, || async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let all = Buffer::acquire(4 << 20).await;
        for (name, length) in [("large", 4 << 20), ("middle", 1 << 20)] {
            let order = Rc::clone(&order);
            spawn(async move {
                let _buffer = Buffer::acquire(length).await;
                order.borrow_mut().push(name);
            });
        }
        assert!(Buffer::try_acquire(1 << 20).is_none(), "nobody overtakes");
        assert!(Buffer::try_acquire(4096).is_some(), "small ones have a reserve");
        drop(all);
        let last = Buffer::acquire(4 << 20).await;
        assert_eq!(*order.borrow(), ["large", "middle"]);
        drop(last);
        assert_eq!(payload_memory_free(), 8 << 20);
    })
    .unwrap();
}

#[test]
fn leaving_the_line_lets_the_next_one_through() {
    on_shard(|| async {
        let semaphore = Rc::new(Semaphore::new(2));
        semaphore.acquire(1).await;
        let impatient = select(semaphore.acquire(2), timer::sleep(Duration::from_millis(1))).await;
        assert!(matches!(impatient, Either::Second(())));
        semaphore.acquire(1).await;
        assert_eq!(semaphore.free(), 0);
    });
}

#[test]
fn helpers_answer_on_the_asking_shard() {
    for doorbell in [Doorbell::Eventfd, Doorbell::Message { sync: true }, Doorbell::Message { sync: false }] {
        let config = Config { doorbell, ..Config::default() };
        let answers = run(&config, || async {
            let here = std::thread::current().id();
            let elsewhere = blocking(|| std::thread::current().id()).await;
            assert_ne!(here, elsewhere);
            let total = Rc::new(Cell::new(0));
            let done = Rc::new(Event::new());
            for number in 0..200_u32 {
                let (total, done) = (Rc::clone(&total), Rc::clone(&done));
                spawn(async move {
                    let answer = blocking(move || number).await;
                    total.set(total.get() + answer);
                    done.notify();
                });
            }
            while total.get() < 199 * 200 / 2 {
                done.wait().await;
            }
            total.get()
        });
        assert_eq!(answers.unwrap(), 19_900);
    }
}

#[test]
fn letters_between_shards_arrive() {
    for doorbell in [Doorbell::Eventfd, Doorbell::Message { sync: true }] {
        let (send, receive) = std::sync::mpsc::channel();
        let config = Config { doorbell, ..Config::default() };
        let theirs = config.clone();
        let other = std::thread::spawn(move || {
            run(&theirs, || async move {
                let arrived = Rc::new(Cell::new(0));
                let (woken, here) = (Arc::new(std::sync::atomic::AtomicU32::new(0)), remote());
                send.send((here, Arc::clone(&woken))).unwrap();
                while woken.load(Ordering::Acquire) < 3 {
                    timer::sleep(Duration::from_millis(1)).await;
                }
                arrived.set(woken.load(Ordering::Acquire));
                arrived.get()
            })
        });
        let (there, count) = receive.recv().unwrap();
        run(&config, || async move {
            for _ in 0..3 {
                let count = Arc::clone(&count);
                assert!(there.post(move || {
                    count.fetch_add(1, Ordering::AcqRel);
                }));
            }
            // This shard ends here; what it posted last is on its way nevertheless.
        })
        .unwrap();
        assert_eq!(other.join().unwrap().unwrap(), 3);
    }
}

#[test]
fn a_future_too_large_for_a_slot_runs_all_the_same() {
    on_shard(|| async {
        let done = Rc::new(Cell::new(0));
        let put = Rc::clone(&done);
        let large = [1_u8; 2 * BLOCK_BYTES];
        spawn(async move {
            timer::sleep(Duration::from_millis(1)).await;
            put.set(large.iter().map(|byte| usize::from(*byte)).sum());
        });
        while done.get() == 0 {
            timer::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(done.get(), 2 * BLOCK_BYTES);
    });
}
