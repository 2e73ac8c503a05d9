//! A node in front of another server: the client talks to ringnbd, which talks to the server that is meant.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ringnbd::client::{Client, Errno, Error, Options};
use ringnbd::proto::{CommandFlags, TransmissionFlags};
use ringnbd::rt;
use rustix::process::Signal;

use crate::others::{exercise, exercise_with, nbd_server, nbdkit, qemu_nbd, qemu_storage_daemon, several};
use crate::program::{Process, Scratch, program};
use crate::reconnect::{progress, under_load};
use crate::script::with_client;

/// A node before what listens in `behind`, with `words` after the URI.
fn node(behind: &Scratch, words: &str) -> (Scratch, Process) {
    let front = Scratch::new();
    let process = Process::ringnbd(&front.socket(), &[&format!("front={}{words}", behind.uri(""))]);
    (front, process)
}

/// What a client learns of an export.
struct Seen {
    size: u64,
    flags: TransmissionFlags,
    minimum: u32,
    /// Meta contexts with what they say of the whole export.
    statuses: Vec<(String, Vec<(u64, u64)>)>,
    content: Vec<u8>,
}

fn see(uri: &str, contexts: &[&str]) -> Seen {
    let mut options = Options::default();
    options.contexts = contexts.iter().map(|name| (*name).to_owned()).collect();
    with_client(uri, options, |client| async move {
        let mut statuses = Vec::new();
        for name in client.contexts() {
            let extents = client.extents(name, 0, client.size()).await.unwrap();
            statuses
                .push((name.clone(), extents.iter().map(|extent| (extent.length, extent.status)).collect()));
        }
        let mut content = vec![0xee; client.size() as usize];
        client.read_at(0, &mut content).await.unwrap();
        let (flags, minimum) = (client.link().flags, client.block_sizes().minimum);
        client.disconnect().await;
        Seen { size: content.len() as u64, flags, minimum, statuses, content }
    })
}

/// Looks at the server and at the node before it, and finds no difference.
#[track_caller]
fn is_passed_on(behind: &Scratch, contexts: &[&str]) {
    let (front, _node) = node(behind, "");
    let (there, here) = (see(&behind.uri(""), contexts), see(&front.uri("front"), contexts));
    // What is a matter of the headers that each connection agreed on, and FUA, which a flush stands in for.
    let own =
        TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD | TransmissionFlags::SEND_FUA;
    assert_eq!((here.size, here.flags.without(own)), (there.size, there.flags.without(own)));
    assert_eq!(here.minimum, there.minimum);
    assert_eq!(here.statuses.len(), contexts.len());
    assert_eq!(here.statuses, there.statuses);
    assert!(here.content == there.content);
}

#[test]
fn size_flags_block_sizes_and_all_contexts_are_passed_on() {
    let scratch = Scratch::new();
    let image = scratch.dir.path().join("disk.qcow2").display().to_string();
    let run = |program: &str, words: &[&str]| {
        let status =
            std::process::Command::new(program).args(words).stdout(std::process::Stdio::null()).status();
        assert!(
            status
                .unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs the peers)"))
                .success()
        );
    };
    run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "4M"]);
    run("qemu-img", &["bitmap", "--add", &image, "changes"]);
    run("qemu-io", &["-c", "write -P 7 1M 1M", "-c", "write -z 2M 1M", &image]);
    let socket = scratch.socket().display().to_string();
    let words = ["-t", "-r", "-e", "8", "-f", "qcow2", "-A", "-B", "changes", "-k", &socket, &image];
    let _server = Process::other(&scratch.socket(), "qemu-nbd", &words.map(str::to_owned));
    is_passed_on(&scratch, &["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:changes"]);
}

#[test]
fn what_a_server_does_not_offer_the_node_does_not_either() {
    for words in [
        &["memory", "4M", "--filter=nozero", "--filter=noextents"][..],
        &["memory", "4M", "--filter=nocache", "cachemode=none"],
        &["pattern", "4M"],
        &["memory", "4M", "--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-maximum=65536"],
    ] {
        let scratch = Scratch::new();
        let _server = nbdkit(&scratch, words);
        is_passed_on(&scratch, &["base:allocation"]);
    }
}

#[test]
fn every_command_arrives_whatever_server_is_behind() {
    let through = |behind: &Scratch, honest| {
        let (front, _node) = node(behind, ",connections=3");
        with_client(&front.uri("front"), several(), move |client| exercise_with(client, honest));
    };
    for words in [
        &["memory", "4M"][..],
        &["--no-sr", "memory", "4M"],
        &["--mask-handshake=0", "memory", "4M"],
        &["memory", "4M", "--filter=delay", "rdelay=3ms", "wdelay=1ms"],
        &[
            "memory",
            "4M",
            "--filter=blocksize-policy",
            "blocksize-minimum=4096",
            "blocksize-maximum=65536",
            "blocksize-error-policy=error",
        ],
    ] {
        let scratch = Scratch::new();
        let _server = nbdkit(&scratch, words);
        through(&scratch, true);
    }
    let scratch = Scratch::new();
    let _server = nbdkit(&scratch, &["-o", "memory", "4M"]);
    // Oldstyle, nbdkit offers FUA, WRITE_ZEROES and CACHE and then refuses them.
    through(&scratch, false);
    let scratch = Scratch::new();
    let _server = qemu_nbd(&scratch, &["--discard=unmap"]);
    through(&scratch, true);
    let scratch = Scratch::new();
    let _server = qemu_storage_daemon(&scratch);
    through(&scratch, true);
    let scratch = Scratch::new();
    let _server = nbd_server(&scratch);
    let front = Scratch::new();
    let _node = Process::ringnbd(&front.socket(), &[&format!("front={}", scratch.uri("disk"))]);
    with_client(&front.uri("front"), several(), exercise);
}

#[test]
fn a_window_of_another_servers_export_begins_at_its_offset() {
    let scratch = Scratch::new();
    let _server = nbdkit(&scratch, &["pattern", "4M"]);
    let (front, _node) = node(&scratch, ",offset=1M,size=64K");
    with_client(&front.uri("front"), Options::default(), |client| async move {
        assert_eq!(client.size(), 64 << 10);
        let mut word = [0; 8];
        client.read_at(4096, &mut word).await.unwrap();
        assert_eq!(u64::from_be_bytes(word), (1 << 20) + 4096, "the pattern is each word's own offset");
    });
}

#[test]
fn holes_come_back_as_holes_without_a_question_before() {
    let behind = Scratch::new();
    let image = behind.image("disk", 4 << 20);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[b'x'; 65536], 1 << 20).unwrap();
    let _server = Process::ringnbd(&behind.socket(), &[&image.display().to_string()]);
    let (front, _node) = node(&behind, "");
    with_client(&front.uri("front"), Options::default(), |client| async move {
        let buffer = rt::Buffer::acquire(2 << 20).await;
        let (holes, buffer) = client.read_sparse(512 << 10, buffer, CommandFlags::NONE).await;
        let (start, data, end) = (512 << 10, 1 << 20, (512 << 10) + (2 << 20));
        assert_eq!(holes.unwrap(), [start..data, data + 65536..end]);
        let inside = (data - start) as usize;
        assert!(buffer[inside..inside + 65536].iter().all(|byte| *byte == b'x'));
        assert!(buffer[..inside].iter().chain(&buffer[inside + 65536..]).all(|byte| *byte == 0));
    });
}

#[test]
fn an_errno_and_its_sentence_come_from_where_the_storage_is() {
    for (name, errno) in [("ENOSPC", Errno::ENOSPC), ("EPERM", Errno::EPERM), ("EIO", Errno::EIO)] {
        let scratch = Scratch::new();
        let error = format!("error-pwrite={name}");
        let _server = nbdkit(&scratch, &["memory", "4M", "--filter=error", &error, "error-pwrite-rate=100%"]);
        let (front, _node) = node(&scratch, "");
        with_client(&front.uri("front"), Options::default(), move |client| async move {
            let error = client.write_at(0, &[1; 512], CommandFlags::NONE).await.unwrap_err();
            assert_eq!(error.errno(), errno, "{error}");
            assert!(error.to_string().contains("upstream"), "{error}");
            client.read_at(0, &mut [0; 512]).await.unwrap();
        });
    }
}

/// Through a node whose server is killed, paused and restarted, a client's own connection never breaks.
#[test]
fn clients_wait_while_the_server_behind_comes_back() {
    let behind = Scratch::new();
    let image = behind.image("disk", crate::reconnect::SIZE).display().to_string();
    let start = || Process::ringnbd(&behind.socket(), &[&image]);
    let mut server = Some(start());
    let (front, node) = node(&behind, ",connections=2");
    under_load(&front.uri("front"), 1, |shared| {
        for round in 0..4 {
            progress(shared);
            if let Some(running) = server.take() {
                running.end(if round % 2 == 0 { Signal::KILL } else { Signal::TERM });
            }
            server = Some(start());
        }
        progress(shared);
        node
    });
}

#[test]
fn an_export_that_came_back_different_is_refused_until_it_is_itself_again() {
    let behind = Scratch::new();
    let image = behind.image("disk", 1 << 20).display().to_string();
    let other = behind.image("other", 2 << 20).display().to_string();
    let server = Process::ringnbd(&behind.socket(), &[&image]);
    let (front, _node) = node(&behind, "");
    with_client(&front.uri("front"), Options::default(), move |client| async move {
        client.write_at(0, &[7; 512], CommandFlags::FUA).await.unwrap();
        server.end(Signal::TERM);
        let server = Process::ringnbd(&behind.socket(), &[&other]);
        let error = client.read_at(0, &mut [0; 512]).await.unwrap_err();
        assert_eq!(error.errno(), Errno::EIO, "{error}");
        assert!(error.to_string().contains("changed"), "{error}");
        server.end(Signal::TERM);
        let _server = Process::ringnbd(&behind.socket(), &[&image]);
        let mut read = [0; 512];
        let again = async {
            while client.read_at(0, &mut read).await.is_err() {
                rt::timer::sleep(Duration::from_millis(20)).await;
            }
        };
        rt::timer::deadline(Duration::from_secs(30), again).await.expect("it is itself again");
        assert_eq!(read, [7; 512]);
    });
}

fn refusal(listen: &Scratch, words: &[String]) -> String {
    let socket = format!("unix:{}", listen.socket().display());
    let output = std::process::Command::new(program())
        .args(["serve", "--no-pin", "--shards", "1", "--listen", &socket])
        .args(words)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_node_that_is_to_serve_itself_does_not_start() {
    let scratch = Scratch::new();
    let told = refusal(&scratch, &[format!("a={}", scratch.uri("a"))]);
    assert!(told.contains("where this server itself listens"), "{told}");
    let told = refusal(&scratch, &["a=nbd://127.0.0.1:1/x".to_owned()]);
    assert!(told.contains("open-timeout=SECONDS"), "{told}");
    let behind = Scratch::new();
    let _server = nbdkit(&behind, &["memory", "1M"]);
    let told = refusal(&scratch, &[format!("a={},offset=2M", behind.uri(""))]);
    assert!(told.contains("beyond the end of nbd+unix"), "{told}");
}

/// Two nodes that end up behind each other, since one of them was restarted in front of the other.
#[test]
fn requests_do_not_go_round_between_nodes() {
    let (one, two) = (Scratch::new(), Scratch::new());
    let image = one.image("disk", 1 << 20).display().to_string();
    let first = Process::ringnbd(&one.socket(), &[&format!("x={image}")]);
    let upstream = |of: &Scratch| format!("x={},reconnect-delay=1", of.uri("x"));
    let _second = Process::ringnbd(&two.socket(), &[&upstream(&one)]);
    first.end(Signal::TERM);
    let _first = Process::ringnbd(&one.socket(), &[&upstream(&two)]);
    with_client(&two.uri("x"), Options::default(), |client| async move {
        let read = async { client.read_at(0, &mut [0; 512]).await };
        let answer = rt::timer::deadline(Duration::from_secs(30), read).await.expect("an answer");
        assert!(
            matches!(&answer, Err(Error::Failed { error, .. }) if error.errno == Errno::EIO),
            "{answer:?}"
        );
    });
}

/// Changes to parts of one block, from several connections, all last.
#[test]
fn parts_of_blocks_are_changed_one_after_another() {
    let scratch = Scratch::new();
    let policy = ["--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error"];
    let words = [&["memory", "64K", "--filter=delay", "rdelay=1ms"][..], &policy].concat();
    let _server = nbdkit(&scratch, &words);
    // A window that begins inside a block: clients are told of none, and it is the node that widens.
    let (front, _node) = node(&scratch, ",offset=1000,size=20000");
    with_client(&front.uri("front"), several(), |client: Client| async move {
        assert_eq!(client.block_sizes().minimum, 1);
        let writes = (0..128u64).map(|number| {
            let client = client.clone();
            async move {
                let content = vec![number as u8 + 1; 100];
                client.write_at(number * 100, &content, CommandFlags::NONE).await.unwrap();
            }
        });
        rt::join_all(writes).await;
        let mut all = vec![0; 12_800];
        client.read_at(0, &mut all).await.unwrap();
        let wrong = all.iter().enumerate().find(|(at, byte)| **byte as usize != at / 100 + 1);
        assert_eq!(wrong, None);
    });
}
