//! What goes wrong below: files that change size, storage that loses writes.

use std::fs::File;
use std::sync::Arc;

use ringnbd::backend::{Media, Zero};
use rustix::fs::{SeekFrom, seek};
use tempfile::TempDir;

use crate::model::{read, write};
use crate::stage::{Loop, Mount};
use crate::{on_shard, open};

#[test]
fn a_file_that_shrank_is_an_error_and_never_zeroes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    for options in ["", ",direct=on"] {
        for cut in [8192_u64, 10_000] {
            std::fs::write(&path, vec![7; 20_000]).unwrap();
            let media = open(&format!("{}{options}", path.display()));
            File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            on_shard(move || async move {
                let backend = media.attach().unwrap();
                assert_eq!(read(&backend, 0, 8192).await.unwrap(), [7; 8192]);
                for (offset, length) in [(0, 20_000), (8192, 4096), (cut, 1), (12_288, 512), (19_999, 1)] {
                    let failure = read(&backend, offset, length).await.unwrap_err();
                    assert_eq!(failure.errno, libc::EIO, "{failure:?}");
                    assert!(failure.text.contains("become shorter"), "{failure:?}");
                    assert_eq!(failure.at, Some(cut.max(offset)), "{options}");
                    backend.extents(offset, length, 10).await.unwrap_err();
                }
                let found = backend.extents(0, 4096, 10).await.unwrap();
                assert!(!found[0].hole && found[0].length == 4096);
            });
        }
    }
}

#[test]
fn a_file_that_grew_is_served_as_it_was() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 5000]).unwrap();
    let media = open(path.to_str().unwrap());
    File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(media.size(), 5000);
    on_shard(move || async move {
        let backend = media.attach().unwrap();
        assert_eq!(read(&backend, 0, 5000).await.unwrap(), [7; 5000]);
        let extents = backend.extents(0, 5000, 10).await.unwrap();
        assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), 5000);
    });
}

/// A device over a file whose file system is full takes writes into the page cache and loses them at writeback. The kernel
/// tells the first sync and forgets; every later flush on any shard has to hear of it all the same.
#[test]
fn lost_writes_fail_every_flush_until_the_export_is_reopened() {
    let mount = Mount::tmpfs(1);
    let image = mount.path().join("image");
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let device = Loop::new(&image, 512);
    let spec = device.path().to_str().unwrap().to_owned();

    let media = open(&spec);
    let attach = Arc::clone(&media);
    on_shard(move || async move {
        let backend = attach.attach().unwrap();
        backend.flush().await.unwrap();
        for piece in 0..4 {
            write(&backend, piece << 20, &vec![1; 1 << 20], false).await.unwrap();
        }
        backend.flush().await.unwrap_err();
        backend.flush().await.unwrap_err();
    });
    let attach = Arc::clone(&media);
    on_shard(move || async move {
        let backend = attach.attach().unwrap();
        let failure = backend.flush().await.unwrap_err();
        assert!(failure.text.contains("until the export is opened again"), "{failure:?}");
        assert!(
            write(&backend, 0, &[1; 512], true).await.is_err(),
            "a durable write cannot be promised any more"
        );
        assert!(backend.trim(0, 4096, true).await.is_err());
        write(&backend, 0, &[2; 512], false).await.unwrap();
        assert_eq!(read(&backend, 0, 512).await.unwrap(), [2; 512]);
    });
    drop(media);
    let media = open(&spec);
    on_shard(move || async move { media.attach().unwrap().flush().await.unwrap() });
}

/// The error of a FUA write must not use up what a flush would have told about other writes.
#[test]
fn a_failed_fua_write_leaves_nothing_for_a_flush_to_miss() {
    let mount = Mount::tmpfs(1);
    let image = mount.path().join("image");
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let device = Loop::new(&image, 512);
    let media = open(device.path().to_str().unwrap());
    on_shard(move || async move {
        let backend = media.attach().unwrap();
        write(&backend, 0, &vec![1; 3 << 20], true).await.unwrap_err();
        backend.flush().await.unwrap_err();
        media.attach().unwrap().flush().await.unwrap_err();
    });
}

#[test]
fn a_full_file_system_fails_the_write_and_not_the_flush() {
    let mount = Mount::tmpfs(1);
    let path = mount.path().join("file");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let media = open(path.to_str().unwrap());
    on_shard(move || async move {
        let backend = media.attach().unwrap();
        let failure = write(&backend, 0, &vec![1; 2 << 20], true).await.unwrap_err();
        assert_eq!(failure.errno, libc::ENOSPC);
        backend.flush().await.unwrap();
        backend.zero(0, 8 << 20, Zero { may_punch: true, fast_only: false }, true).await.unwrap();
        write(&backend, 0, &[1; 4096], true).await.unwrap();
    });
}

async fn is_known(media: &Arc<Media>) -> Vec<bool> {
    let backend = media.attach().unwrap();
    (0..16).map(|granule| backend.known_data(granule << 16, 1 << 16)).collect()
}

#[test]
fn a_full_file_is_asked_for_holes_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let media = open(path.to_str().unwrap());
    let file = File::open(&path).unwrap();
    on_shard(move || async move {
        let backend = media.attach().unwrap();
        assert!(!backend.known_data(0, 4096));
        let extents = backend.extents(500_000, 10, 1).await.unwrap();
        assert!(extents[0].length == 10 && !extents[0].hole);
        let (before, after) = (500_000 >> 16, 16);
        let known = is_known(&media).await;
        assert!(known[before..after].iter().all(|known| *known), "{known:?}");
        // A trim takes its granules out for every shard, and a write of whole granules puts them back.
        backend.trim(600_000, 100_000, false).await.unwrap();
        assert!(!backend.known_data(600_000, 1) && backend.known_data(720_896, 4096));
        assert_eq!(seek(&file, SeekFrom::Hole(600_000)).unwrap().next_multiple_of(4096), 602_112);
        write(&backend, 589_824, &vec![7; 131_072], false).await.unwrap();
        assert!(backend.known_data(600_000, 100_000));
        backend.zero(0, 1 << 20, Zero { may_punch: true, fast_only: true }, false).await.unwrap();
        assert!(is_known(&media).await.iter().all(|known| !known));
    });
}
