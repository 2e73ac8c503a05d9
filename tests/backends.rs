//! Every backend against a `Vec<u8>`, on a real ring.
//!
//! A seed is printed with each test; `RINGNBD_SEED=N cargo test --test backends NAME` repeats a run. Loop devices and mounts
//! need root.

#![allow(clippy::unwrap_used)] // in a test a panic is the report

#[path = "backends/damage.rs"]
mod damage;
#[path = "backends/model.rs"]
mod model;
#[path = "backends/opening.rs"]
mod opening;
#[path = "backends/stage.rs"]
mod stage;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use model::{Pair, Random, assert_same, at, read, write};
use ringnbd::backend::{ExportSpec, Media, Zero};
use ringnbd::rt::{self, fault, sync::Semaphore};
use stage::{Loop, Mount};
use tempfile::TempDir;

const STEPS: u32 = 600;
/// A size that is no multiple of anything.
const ODD: u64 = (3 << 20) + 1237;

fn on_shard<T, F>(main: impl FnOnce() -> F) -> T
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    // Buffers that the ring knows are used where there is room, others beside them.
    rt::run(&rt::Config { registered_memory: 1 << 20, ..rt::Config::default() }, main).unwrap()
}

fn open(spec: &str) -> Arc<Media> {
    Media::open(&ExportSpec::parse(spec).unwrap()).unwrap_or_else(|error| panic!("{spec}: {error}"))
}

/// A file of random bytes with holes in it.
fn seeded(path: &Path, size: u64, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; at(0, size).end];
    let file = File::options().create(true).write(true).truncate(false).open(path).unwrap();
    if file.metadata().unwrap().is_file() {
        file.set_len(0).unwrap();
        file.set_len(size).unwrap();
    } else {
        file.write_all_at(&bytes, 0).unwrap();
    }
    for _ in 0..12 {
        let (offset, length) = random.range(size);
        random.fill(&mut bytes[at(offset, length)]);
        file.write_all_at(&bytes[at(offset, length)], offset).unwrap();
    }
    file.sync_all().unwrap();
    bytes
}

/// Random requests one after the other; answers with what the export must hold.
fn exercise(spec: &str, bytes: Vec<u8>, file: Option<(File, u64)>, seed: u64) -> Vec<u8> {
    let media = open(spec);
    assert_eq!(media.size(), bytes.len() as u64, "{spec}");
    let bytes = on_shard(move || async move {
        let mut random = Random::new(seed);
        let mut pair = Pair { backend: media.attach().unwrap(), bytes, file, faulty: false, failures: 0 };
        pair.check_all().await;
        for _ in 0..STEPS {
            pair.step(&mut random).await;
        }
        pair.check_all().await;
        pair.backend.flush().await.unwrap();
        pair.bytes
    });
    println!("{spec}: agrees");
    bytes
}

/// `exercise` on a window of a file or device, which afterwards must hold the same, and outside of it what it held before.
fn exercise_stored(path: &Path, options: &str, window: std::ops::Range<u64>, size: u64, random: &mut Random) {
    let mut whole = seeded(path, size, random);
    let inside = whole[at(window.start, window.end - window.start)].to_vec();
    let file = path.is_file().then(|| (File::open(path).unwrap(), window.start));
    let after = exercise(&format!("{}{options}", path.display()), inside, file, random.next());
    whole[at(window.start, window.end - window.start)].copy_from_slice(&after);
    assert_same(&fs::read(path).unwrap(), &whole, 0, "stored");
    if path.is_file() {
        assert_eq!(fs::metadata(path).unwrap().len(), size, "the size changed");
    }
}

#[test]
fn memory_agrees_with_the_model() {
    let (seed, _) = Random::announced("memory");
    exercise("memory:3M", vec![0; 3 << 20], None, seed);
    exercise("memory:1000001", vec![0; 1_000_001], None, seed);
    exercise("memory:1,writethrough=on", vec![0; 1], None, seed);
}

#[test]
fn files_agree_with_the_model() {
    let (_, mut random) = Random::announced("files");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    exercise_stored(&path, "", 0..ODD, ODD, &mut random);
    for writes in ["ring", "thread", "inline", "adaptive"] {
        exercise_stored(&path, &format!(",writes={writes}"), 0..ODD, ODD, &mut random);
    }
    exercise_stored(&path, ",writethrough=on", 0..4096, 4096, &mut random);
    exercise_stored(&path, ",offset=1001,size=1M", 1001..1001 + (1 << 20), ODD, &mut random);
    exercise_stored(&path, ",offset=70000", 70_000..ODD, ODD, &mut random);
}

#[test]
fn files_agree_with_the_model_past_the_page_cache() {
    let (_, mut random) = Random::announced("direct files");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    exercise_stored(&path, ",direct=on", 0..ODD, ODD, &mut random);
    exercise_stored(&path, ",direct=on", 0..2 << 20, 2 << 20, &mut random);
    exercise_stored(&path, ",direct=on", 0..1000, 1000, &mut random);
    exercise_stored(&path, ",direct=on,offset=4K,size=1M", 4096..4096 + (1 << 20), ODD, &mut random);
}

#[test]
fn xfs_files_agree_with_the_model() {
    let (_, mut random) = Random::announced("xfs");
    let mount = Mount::new("mkfs.xfs", 400);
    let path = mount.path().join("file");
    exercise_stored(&path, "", 0..ODD, ODD, &mut random);
    exercise_stored(&path, ",direct=on", 0..ODD, ODD, &mut random);
}

#[test]
fn the_ring_keeps_buffered_writes_where_the_file_system_can_write_without_waiting() {
    for (mkfs, waits) in [("mkfs.ext4", true), ("mkfs.xfs", false)] {
        let mount = Mount::new(mkfs, 400);
        let scratch = File::create(mount.path().join("scratch")).unwrap();
        assert_eq!(rt::buffered_writes_wait(&scratch.into()), waits, "{mkfs}");
    }
}

#[test]
fn loop_devices_agree_with_the_model() {
    let (_, mut random) = Random::announced("loop");
    for sector in [512, 4096] {
        let dir = TempDir::new().unwrap();
        let image = dir.path().join("image");
        let size = 4 << 20;
        File::create(&image).unwrap().set_len(size).unwrap();
        let device = Loop::new(&image, sector);
        exercise_stored(device.path(), "", 0..size, size, &mut random);
        exercise_stored(device.path(), ",direct=on", 0..size, size, &mut random);
        exercise_stored(device.path(), ",offset=4K,size=1M", 4096..4096 + (1 << 20), size, &mut random);
        exercise_stored(device.path(), ",offset=1001,size=1M", 1001..1001 + (1 << 20), size, &mut random);
        let traits = open(&format!("block:{}", device.path().display())).traits().clone();
        assert_eq!(traits.minimum, sector);
        assert!(traits.can.trim && traits.can.zero && traits.can.fast_zero && !traits.can.extents);
    }
}

/// What a client gives back is free again, and what it wants to keep stays taken.
#[test]
fn trims_free_space_and_zeroes_free_it_only_if_they_may() {
    const MIB: u64 = 1 << 20;
    let dir = TempDir::new().unwrap();
    let (plain, behind) = (dir.path().join("plain"), dir.path().join("behind"));
    for path in [&plain, &behind] {
        fs::write(path, vec![1; 8 << 20]).unwrap();
        File::open(path).unwrap().sync_all().unwrap();
    }
    let device = Loop::new(&behind, 512);
    for (served, stored) in [(plain.as_path(), &plain), (device.path(), &behind)] {
        for options in ["", ",direct=on"] {
            let media = open(&format!("{}{options}", served.display()));
            let stored = stored.clone();
            let taken = move || fs::metadata(&stored).unwrap().blocks() * 512;
            on_shard(move || async move {
                let backend = media.attach().unwrap();
                // A few blocks of the file system's own come and go with the number of extents.
                let full = vec![1; 8 << 20];
                write(&backend, 0, &full, true).await.unwrap();
                let before = taken();
                backend.trim(MIB - 1, 2 * MIB, true).await.unwrap();
                assert!(taken() <= before - 2 * MIB + 16_384, "{options}: {} of {before}", taken());
                let keep = Zero { may_punch: false, fast_only: false };
                let before = taken();
                backend.zero(4 * MIB, MIB, keep, true).await.unwrap();
                assert!(taken().abs_diff(before) <= 16_384, "{options}: {} of {before}", taken());
                let punch = Zero { may_punch: true, fast_only: true };
                backend.zero(6 * MIB, MIB, punch, true).await.unwrap();
                assert!(taken() <= before - MIB + 16_384, "{options}: {} of {before}", taken());
                for zeroed in [4 * MIB, 6 * MIB] {
                    assert!(read(&backend, zeroed, MIB).await.unwrap().iter().all(|byte| *byte == 0));
                }
            });
        }
    }
}

/// ext2 and tmpfs have PUNCH_HOLE but no ZERO_RANGE.
#[test]
fn files_agree_with_the_model_where_zeroes_have_to_be_written() {
    let (_, mut random) = Random::announced("ext2, tmpfs");
    for mount in [Mount::new("mkfs.ext2", 32), Mount::tmpfs(32)] {
        let path = mount.path().join("file");
        exercise_stored(&path, "", 0..ODD, ODD, &mut random);
        let media = open(path.to_str().unwrap());
        on_shard(move || async move {
            let backend = media.attach().unwrap();
            let how = Zero { may_punch: false, fast_only: true };
            let refusal = backend.zero(0, 4096, how, false).await.unwrap_err();
            assert_eq!(refusal.errno, libc::EOPNOTSUPP);
        });
    }
}

/// For devices that this machine happens to have; everything on them is lost.
#[test]
#[ignore = "names its device in RINGNBD_DEVICE and overwrites it"]
fn a_given_device_agrees_with_the_model() {
    let (_, mut random) = Random::announced("device");
    let path = std::env::var("RINGNBD_DEVICE").expect("RINGNBD_DEVICE names a block device");
    let size = open(&format!("block:{path},readonly=on")).size();
    for options in ["", ",direct=on"] {
        exercise_stored(Path::new(&path), options, 0..size, size, &mut random);
    }
    println!("{:?}", open(&path).traits());
}

#[test]
fn null_swallows_everything() {
    let media = open("null:8P");
    on_shard(move || async move {
        let backend = media.attach().unwrap();
        write(&backend, 5, &[1; 100], true).await.unwrap();
        assert_eq!(read(&backend, 0, 200).await.unwrap(), [0; 200]);
        backend.flush().await.unwrap();
        backend.trim(0, 1 << 40, true).await.unwrap();
        backend.zero(0, 1 << 40, Zero { may_punch: false, fast_only: true }, false).await.unwrap();
        let extents = backend.extents(7, 1 << 50, 1).await.unwrap();
        assert!(extents.len() == 1 && extents[0].length == 1 << 50 && extents[0].zero);
        assert!(backend.known_data(0, 1 << 20), "large reads are to carry data");
    });
}

#[test]
fn faults_fail_requests_and_nothing_else() {
    let (seed, _) = Random::announced("faulty");
    let media = open(&format!("faulty:{seed}:memory:1M"));
    on_shard(move || async move {
        let mut random = Random::new(seed);
        let bytes = vec![0; 1 << 20];
        let mut pair =
            Pair { backend: media.attach().unwrap(), bytes, file: None, faulty: true, failures: 0 };
        for _ in 0..STEPS {
            pair.step(&mut random).await;
        }
        assert!(pair.failures > STEPS / 64, "only {} failures", pair.failures);
    });
}

/// Short transfers, EINTR, EAGAIN, errors and lateness of single operations, below the backend.
#[test]
fn a_ring_that_falters_fails_requests_and_nothing_else() {
    let (seed, mut random) = Random::announced("ring faults");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    let bytes = seeded(&path, ODD, &mut random);
    let media = open(path.to_str().unwrap());
    let plan = fault::Plan { seed, short: 200, interrupted: 100, failed: 20, late: 50 };
    let config = rt::Config { faults: Some(plan), ..rt::Config::default() };
    let attempt = rt::run(&config, move || async move {
        let mut pair =
            Pair { backend: media.attach().unwrap(), bytes, file: None, faulty: true, failures: 0 };
        for _ in 0..STEPS {
            pair.step(&mut random).await;
        }
        // A sync that failed is never forgotten, however many succeed after it.
        let mut last = pair.backend.flush().await;
        while last.is_ok() {
            last = pair.backend.flush().await;
        }
        for _ in 0..20 {
            pair.backend.flush().await.unwrap_err();
        }
        media.attach().unwrap().flush().await.unwrap_err();
    });
    attempt.unwrap();
    let media = open(path.to_str().unwrap());
    on_shard(move || async move { media.attach().unwrap().flush().await.unwrap() });
}

/// Eight lanes on two shards own interleaved stripes, narrower than a block: read-modify-write cycles of neighbours must
/// not undo each other.
#[test]
fn neighbours_in_one_block_do_not_undo_each_other() {
    const LANES: u64 = 8;
    const STRIPE: u64 = 700;
    let (seed, mut random) = Random::announced("neighbours");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    let size = 40_000 + 123;
    seeded(&path, size, &mut random);
    for options in [",direct=on", ""] {
        let media = open(&format!("{}{options}", path.display()));
        let lane = move |media: Arc<Media>, number: u64| async move {
            let backend = media.attach().unwrap();
            let mut random = Random::new(seed ^ number);
            let mut kept: Vec<(u64, Vec<u8>)> = Vec::new();
            for turn in 0..150_u64 {
                let stripe = number * STRIPE + random.below(size / (LANES * STRIPE)) * LANES * STRIPE;
                let offset = stripe + random.below(STRIPE / 2);
                let mut bytes = vec![0; 300];
                if turn % 4 == 3 {
                    let how = Zero { may_punch: random.chance(), fast_only: false };
                    backend.zero(offset, 300, how, false).await.unwrap();
                } else {
                    random.fill(&mut bytes);
                    write(&backend, offset, &bytes, turn % 7 == 0).await.unwrap();
                }
                kept.retain(|(other, _)| other.abs_diff(offset) >= 300);
                kept.push((offset, bytes));
                let (offset, bytes) = &kept[random.index(kept.len())];
                let found = read(&backend, *offset, 300).await.unwrap();
                assert_same(&found, bytes, *offset, "a neighbour undid a write");
            }
        };
        thread::scope(|scope| {
            for shard in 0..2 {
                let media = Arc::clone(&media);
                scope.spawn(move || {
                    on_shard(move || async move {
                        let lanes = (0..LANES / 2).map(|lane_of| {
                            let media = Arc::clone(&media);
                            lane(media, shard + 2 * lane_of)
                        });
                        all(lanes).await;
                    });
                });
            }
        });
        drop(media);
        assert_eq!(fs::metadata(&path).unwrap().len(), size);
    }
}

/// A write of whole blocks and one inside of them, at once: whichever comes last, the bytes that only the large one wrote
/// are the large one's.
#[test]
fn a_small_write_brings_back_nothing_that_a_large_one_replaced() {
    let (seed, mut random) = Random::announced("overlap");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    seeded(&path, 1 << 20, &mut random);
    let media = open(&format!("{},direct=on", path.display()));
    let writer = |media: Arc<Media>, inner: bool| async move {
        let backend = Rc::new(media.attach().unwrap());
        let writes = (0..64_u64).map(|block| {
            let (backend, inner) = (Rc::clone(&backend), inner);
            async move {
                let range = if inner { (block * 4096 + 100, 200) } else { (block * 4096, 4096) };
                let bytes = vec![if inner { 2 } else { 1 }; at(0, range.1).end];
                write(&backend, range.0, &bytes, false).await.unwrap();
            }
        });
        all(writes).await;
    };
    for _ in 0..20 {
        thread::scope(|scope| {
            for inner in [true, false] {
                let media = Arc::clone(&media);
                scope.spawn(move || on_shard(move || writer(media, inner)));
            }
        });
        let found = fs::read(&path).unwrap();
        for block in 0..64 {
            let block = &found[at(block * 4096, 4096)];
            assert!(block[..100].iter().chain(&block[300..]).all(|byte| *byte == 1), "RINGNBD_SEED={seed}");
            assert!(block[100..300].iter().all(|byte| *byte == 1 || *byte == 2));
        }
        fs::write(&path, vec![7; 1 << 20]).unwrap();
    }
}

/// Runs futures on this shard side by side.
async fn all<F: Future<Output = ()> + 'static>(futures: impl Iterator<Item = F>) {
    let running = Rc::new(Semaphore::new(1000));
    for future in futures {
        running.acquire(1).await;
        let running = Rc::clone(&running);
        rt::spawn(async move {
            future.await;
            running.release(1);
        });
    }
    running.acquire(1000).await;
}
