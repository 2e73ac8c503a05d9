//! The client against other people's servers: fast, slow, failing, old, and picky about blocks.

use std::fs;
use std::net::TcpListener;

use ringnbd::client::{BelowMinimum, Client, Error, Options};
use ringnbd::proto::{CommandFlags, Dialect, Errno, TransmissionFlags};
use ringnbd::rt;

use crate::program::{Daemon, Process, Scratch};
use crate::script::with_client;
use crate::wait::until;

const SIZE: u64 = 4 << 20;

pub(crate) fn nbdkit(scratch: &Scratch, words: &[&str]) -> Process {
    let socket = scratch.socket();
    let mut all = vec!["-f".to_owned(), "-U".to_owned(), socket.display().to_string()];
    all.extend(words.iter().map(|word| (*word).to_owned()));
    Process::other(&socket, "nbdkit", &all)
}

pub(crate) fn qemu_nbd(scratch: &Scratch, words: &[&str]) -> Process {
    let (socket, image) = (scratch.socket(), scratch.image("disk", SIZE));
    let mut all: Vec<_> = ["-t", "-e", "8", "-f", "raw", "-k"].map(str::to_owned).into();
    all.push(socket.display().to_string());
    all.extend(words.iter().map(|word| (*word).to_owned()));
    all.push(image.display().to_string());
    Process::other(&socket, "qemu-nbd", &all)
}

pub(crate) fn qemu_storage_daemon(scratch: &Scratch) -> Process {
    let (socket, image) = (scratch.socket(), scratch.image("disk", SIZE));
    let blockdev = format!("driver=file,node-name=disk,filename={},discard=unmap", image.display());
    let server = format!("addr.type=unix,addr.path={},max-connections=8", socket.display());
    let words = [
        "--blockdev",
        &blockdev,
        "--nbd-server",
        &server,
        "--export",
        "nbd,id=e,node-name=disk,name=,writable=on",
    ];
    Process::other(&socket, "qemu-storage-daemon", &words.map(str::to_owned))
}

pub(crate) fn nbd_server(scratch: &Scratch) -> Daemon {
    let (socket, image) = (scratch.socket(), scratch.image("disk", SIZE));
    let [config, pid_file] = ["config", "pid"].map(|name| scratch.dir.path().join(name));
    // It listens on TCP whatever it is told; a port that is free now is the best that can be done.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[generic]\nunixsock = {}\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n\
         [disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
        socket.display(),
        image.display()
    );
    fs::write(&config, text).unwrap();
    let [config, pid] = [&config, &pid_file].map(|path| path.display().to_string());
    Daemon::start(&socket, &pid_file, "nbd-server", &["-C", &config, "-p", &pid])
}

/// Writes, zeroes, trims and reads in awkward places, at once, and compares with a model.
pub(crate) async fn exercise(client: Client) {
    exercise_with(client, true).await;
}

/// `honest`: what is offered is also done.
pub(crate) async fn exercise_with(client: Client, honest: bool) {
    let none = CommandFlags::NONE;
    assert_eq!(client.size(), SIZE);
    let mut model = vec![0u8; SIZE as usize];
    let writes: Vec<(u64, Vec<u8>)> = (0..24u64)
        .map(|number| {
            (
                number * 150_000 + number * 7,
                (0..100_000 + number * 13).map(|i| (i * (number + 3)) as u8).collect(),
            )
        })
        .collect();
    let flags = |number: usize| if number.is_multiple_of(3) && honest { CommandFlags::FUA } else { none };
    let client = &client;
    let all = writes.iter().enumerate().map(|(number, (offset, content))| async move {
        client.write_at(*offset, content, flags(number)).await.unwrap();
    });
    rt::join_all(all).await;
    for (offset, content) in &writes {
        model[*offset as usize..*offset as usize + content.len()].copy_from_slice(content);
    }
    if honest {
        match client.write_zeroes(300_001, 222_222, none).await {
            Ok(()) => model[300_001..522_223].fill(0),
            Err(error) => assert_eq!(error.errno(), Errno::ENOTSUP, "{error}"),
        }
        client.cache(0, 100_000).await.unwrap();
        client.flush().await.unwrap();
    }
    let reads = (0..40u64).map(|number| {
        let (offset, length) = (number * 101_111 % SIZE, 1 + number * 37_111 % 300_000);
        let length = length.min(SIZE - offset);
        let expected = model[offset as usize..(offset + length) as usize].to_vec();
        async move {
            let mut target = vec![0xee; length as usize];
            client.read_at(offset, &mut target).await.unwrap();
            assert!(target == expected, "{length} bytes at {offset}");
        }
    });
    rt::join_all(reads).await;
    // What is told to read as zeroes does.
    let extents = client.allocation(0, SIZE).await.unwrap();
    let mut at = 0;
    for extent in &extents {
        assert_eq!(extent.offset, at);
        at += extent.length;
        let content = &model[extent.offset as usize..at as usize];
        assert!(extent.status & 2 == 0 || content.iter().all(|byte| *byte == 0), "{extent:?}");
    }
    assert_eq!(at, SIZE);
    let odd = client.allocation(1001, 5001).await.unwrap();
    assert_eq!((odd[0].offset, odd.iter().map(|extent| extent.length).sum::<u64>()), (1001, 5001));
    if honest {
        client.trim(0, 100_000, none).await.unwrap();
    }
    client.disconnect().await;
}

pub(crate) fn several() -> Options {
    let mut options = Options::default();
    options.connections = 3;
    options
}

#[test]
fn nbdkit_in_every_dialect_it_has() {
    let cases: [(&[&str], Dialect, &str); 5] = [
        (&["memory", "4M"], Dialect::Structured, ""),
        (&["--no-sr", "memory", "4M"], Dialect::Simple, ""),
        (&["--mask-handshake=0", "memory", "4M"], Dialect::Simple, ""),
        (&["-o", "memory", "4M"], Dialect::Simple, ""),
        // Replies overtake each other.
        (&["memory", "4M", "--filter=delay", "rdelay=3ms", "wdelay=1ms"], Dialect::Structured, "anything"),
    ];
    for (words, dialect, export) in cases {
        let scratch = Scratch::new();
        let _server = nbdkit(&scratch, words);
        with_client(&scratch.uri(export), several(), move |client| async move {
            assert_eq!(client.link().dialect, dialect, "{words:?}");
            // Oldstyle, nbdkit offers FUA, WRITE_ZEROES and CACHE and then refuses them.
            exercise_with(client, words[0] != "-o").await;
        });
    }
}

#[test]
fn nbdkit_that_is_picky_about_blocks() {
    let words = [
        "memory",
        "4M",
        "--filter=blocksize-policy",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
        // Our answer to it comes after the policy: only what is in whole blocks is let pass.
    ];
    let scratch = Scratch::new();
    let _server = nbdkit(&scratch, &words);
    with_client(&scratch.uri(""), several(), |client| async move {
        assert_eq!((client.block_sizes().minimum, client.block_sizes().maximum), (4096, 65536));
        exercise(client).await;
    });
    let mut strict = Options::default();
    strict.below_minimum = BelowMinimum::Refuse;
    with_client(&scratch.uri(""), strict, |client| async move {
        let refused = client.read_at(1, &mut [0; 512]).await;
        assert!(matches!(refused, Err(Error::Unaligned { minimum: 4096, .. })), "{refused:?}");
        let refused = client.write_at(4096, &[0; 512], CommandFlags::NONE).await;
        assert!(matches!(refused, Err(Error::Unaligned { .. })), "{refused:?}");
        client.read_at(4096, &mut [0; 8192]).await.unwrap();
    });
}

#[test]
fn nbdkit_that_fails_now_and_then_is_told_of_and_nothing_is_lost() {
    let words =
        ["memory", "4M", "--filter=error", "error=EIO", "error-pread-rate=30%", "error-pwrite-rate=30%"];
    let scratch = Scratch::new();
    let _server = nbdkit(&scratch, &words);
    with_client(&scratch.uri(""), Options::default(), |client| async move {
        let client = &client;
        let tasks = (0..32u64).map(|number| async move {
            let (mut failures, content) = (0, vec![number as u8 + 1; 4096]);
            let mut is_io = |error: Error| {
                assert!(
                    matches!(&error, Error::Failed { error, .. } if error.errno == Errno::EIO),
                    "{error}"
                );
                failures += 1;
            };
            while let Err(error) = client.write_at(number * 4096, &content, CommandFlags::NONE).await {
                is_io(error);
            }
            let mut target = vec![0; 4096];
            while let Err(error) = client.read_at(number * 4096, &mut target).await {
                is_io(error);
            }
            assert!(target == content);
            failures
        });
        let failures: u32 = rt::join_all(tasks).await.into_iter().sum();
        assert!(failures > 0, "the filter fails nothing");
        client.disconnect().await;
    });
}

/// The retry filter reopens its plugin below us, in the middle of requests, until the read goes well.
#[test]
fn nbdkit_that_retries_underneath() {
    let words = [
        "memory",
        "4M",
        "--filter=retry",
        "--filter=error",
        "retries=40",
        "retry-delay=1",
        "retry-exponential=no",
        "error-pread-rate=1%",
    ];
    let scratch = Scratch::new();
    let _server = nbdkit(&scratch, &words);
    with_client(&scratch.uri(""), Options::default(), |client| async move {
        let client = &client;
        let reads = (0..64u64)
            .map(|number| async move { client.read_at(number * 4096, &mut [1; 4096]).await.unwrap() });
        rt::join_all(reads).await;
    });
}

#[test]
fn qemu_nbd_with_extended_headers() {
    let scratch = Scratch::new();
    let _server = qemu_nbd(&scratch, &["--allocation-depth"]);
    let mut options = several();
    options.contexts =
        vec!["base:allocation".to_owned(), "qemu:allocation-depth".to_owned(), "no:such".to_owned()];
    with_client(&scratch.uri(""), options, |client| async move {
        assert_eq!(client.link().dialect, Dialect::Extended);
        assert_eq!(client.contexts(), ["base:allocation", "qemu:allocation-depth"]);
        assert!(client.offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
        let all = client.block_status(0, SIZE, &[], false).await.unwrap();
        let names: Vec<_> = all.iter().map(|status| status.context.as_str()).collect();
        assert_eq!(names, ["base:allocation", "qemu:allocation-depth"]);
        let one = client.block_status(0, SIZE, &["qemu:allocation-depth"], true).await.unwrap();
        assert_eq!((one.len(), one[0].extents.len()), (1, 1));
        let none = client.block_status(0, SIZE, &["no:such"], true).await;
        assert_eq!(none, Err(Error::NoContext("no:such".to_owned())));
        exercise(client).await;
    });
}

#[test]
fn qemu_nbd_with_what_older_clients_speak() {
    for (extended, structured) in [(false, true), (false, false)] {
        let scratch = Scratch::new();
        let _server = qemu_nbd(&scratch, &[]);
        let mut options = several();
        (options.extended, options.structured) = (extended, structured);
        with_client(&scratch.uri(""), options, exercise);
    }
}

#[test]
fn qemu_storage_daemon_takes_everything() {
    let scratch = Scratch::new();
    let _server = qemu_storage_daemon(&scratch);
    with_client(&scratch.uri(""), several(), exercise);
}

#[test]
fn nbd_server_takes_everything() {
    let scratch = Scratch::new();
    let _server = nbd_server(&scratch);
    with_client(&scratch.uri("disk"), several(), exercise);
}

#[test]
fn our_own_server_takes_everything_in_every_dialect() {
    for (extended, structured) in [(true, true), (false, true), (false, false)] {
        let scratch = Scratch::new();
        let image = scratch.image("disk", SIZE).display().to_string();
        let _server = Process::ringnbd(&scratch.socket(), &[&image]);
        let mut options = several();
        (options.extended, options.structured) = (extended, structured);
        with_client(&scratch.uri(""), options, exercise);
    }
}

/// A name with several addresses, only one of which is listened on; and a peer that vanishes without a word is noticed.
#[test]
fn tcp_by_name_with_keepalive() {
    let scratch = Scratch::new();
    let image = scratch.image("disk", SIZE).display().to_string();
    let (_server, port) = Process::ringnbd_on_tcp(&[&image]);
    with_client(&format!("nbd://localhost:{port}/"), several(), move |client| async move {
        client.read_at(0, &mut [1; 4096]).await.unwrap();
        until("the timers run", || keepalive_timers(port) == client.connections());
        exercise(client).await;
    });
    let mut silent = Options::default();
    silent.keepalive = None;
    with_client(&format!("nbd://127.0.0.1:{port}/"), silent, move |client| async move {
        client.read_at(0, &mut [1; 4096]).await.unwrap();
        assert_eq!(keepalive_timers(port), 0);
        client.disconnect().await;
    });
}

/// This process's sockets to `port` whose next timer is that of keepalive (`tr` is 02, proc_net_tcp.txt of the kernel).
fn keepalive_timers(port: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(2).is_some_and(|peer| peer.ends_with(&remote)))
        .filter(|row| row.get(3) == Some(&"01") && row.get(5).is_some_and(|timer| timer.starts_with("02:")))
        .count()
}
