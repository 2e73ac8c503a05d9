//! `ringnbd copy` between files, pipes and servers, ours and other people's: the same bytes, as many holes, and nothing
//! written where it is refused.

#[path = "copy/images.rs"]
mod images;
#[path = "copy/losses.rs"]
mod losses;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use images::{CONTENTS, Content, allocated, as_sparse_as_can_be, image, needed, noise, same};

use crate::others::{nbd_server, nbdkit, qemu_nbd, qemu_storage_daemon};
use crate::program::{Process, Scratch, program};

/// No multiple of anything.
const ODD: u64 = (5 << 20) + 1235;

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("copy").args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn spawn(words: &[&str]) -> Child {
    command(words).stdin(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn succeeds(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn copy(words: &[&str]) {
    let output = command(words).output().unwrap();
    succeeds(&output);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn fails(words: &[&str], parts: &[&str]) {
    let output = command(words).output().unwrap();
    told(&output, parts);
}

#[track_caller]
fn told(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(parts.iter().all(|part| text.contains(part)) && text.lines().count() == 1, "{parts:?}: {text}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_goes_to_a_server_and_back_is_the_same_and_as_sparse() {
    for content in CONTENTS {
        let scratch = Scratch::new();
        let source = image(&scratch, "source", content, ODD);
        let [target, over_tcp] = ["target", "over-tcp"].map(|name| scratch.image(name, ODD));
        let back = scratch.dir.path().join("back");
        let _server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
        let (_other, port) = Process::ringnbd_on_tcp(&[text(&over_tcp)]);
        let (unix, tcp) = (scratch.uri(""), format!("nbd://127.0.0.1:{port}"));
        copy(&["--flush", "--verify", text(&source), &unix]);
        copy(&[&unix, &tcp]);
        copy(&["--verify", &tcp, text(&back)]);
        for path in [&target, &over_tcp, &back] {
            same(&source, path);
            as_sparse_as_can_be(path);
        }
    }
}

#[test]
fn a_file_is_copied_to_a_file_that_had_something_else() {
    let scratch = Scratch::new();
    for (number, size) in [0, 1, 511, 4097, ODD].into_iter().enumerate() {
        let source = image(&scratch, &format!("source{number}"), Content::Random, size);
        let target = image(&scratch, "target", Content::Random, 3 << 20);
        copy(&["--verify", text(&source), text(&target)]);
        same(&source, &target);
    }
}

#[test]
fn allocated_leaves_no_holes() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Sparse, ODD);
    let target = scratch.image("target", ODD);
    let file = scratch.dir.path().join("file");
    {
        let _server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
        copy(&["--allocated", text(&source), &scratch.uri("")]);
        copy(&["--allocated", &scratch.uri(""), text(&file)]);
    }
    for path in [&target, &file] {
        same(&source, path);
        assert!(allocated(path) >= ODD, "{} of {ODD}", allocated(path));
    }
}

#[test]
fn zeroes_are_written_unless_the_target_is_zero() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Sparse, ODD);
    let target = image(&scratch, "target", Content::Random, ODD);
    let before = fs::read(&target).unwrap();
    let _server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
    copy(&["--destination-is-zero", text(&source), &scratch.uri("")]);
    let after = fs::read(&target).unwrap();
    let hole = 2_500_000..2_900_000;
    assert!(after[hole.clone()] == before[hole], "it was taken at its word");
    copy(&["--verify", text(&source), &scratch.uri("")]);
    same(&source, &target);
}

#[test]
fn zeroes_in_data_are_looked_for_in_blocks_of_the_size_that_is_wanted() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Mixed, ODD);
    let target = scratch.dir.path().join("target");
    copy(&["-S", "0", text(&source), text(&target)]);
    same(&source, &target);
    assert!(allocated(&target) >= ODD);
    copy(&["--no-extents", "--synchronous", text(&source), text(&target)]);
    same(&source, &target);
    as_sparse_as_can_be(&target);
    // No run of zeroes holds a whole block of that size.
    copy(&["--sparse=32k", text(&source), text(&target)]);
    assert!(allocated(&target) >= ODD);
}

#[test]
fn requests_of_every_size_and_number_come_to_the_same() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Mixed, ODD);
    let target = scratch.image("target", ODD);
    let _server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
    let words: [&[&str]; 4] = [
        &["--request-size=4k", "--requests=200", "-C", "1"],
        &["--request-size=4M", "--queue-size=8M"],
        &["--request-size=32M", "-S", "512", "-T", "2"],
        &["--queue-size=1", "-C8"],
    ];
    for words in words {
        File::create(&target).unwrap().set_len(ODD).unwrap();
        copy(&[words, &[text(&source), &scratch.uri("")]].concat());
        same(&source, &target);
    }
}

#[test]
fn a_larger_destination_keeps_what_lies_behind() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Sparse, ODD);
    let target = image(&scratch, "target", Content::Random, ODD + 5000);
    let before = fs::read(&target).unwrap();
    let _server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
    copy(&["--verify", text(&source), &scratch.uri("")]);
    let after = fs::read(&target).unwrap();
    let size = usize::try_from(ODD).unwrap();
    assert!(after[..size] == fs::read(&source).unwrap() && after[size..] == before[size..]);
}

#[test]
fn pipes_are_copied_in_order() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Mixed, ODD);
    let content = fs::read(&source).unwrap();
    let (target, file) = (scratch.image("target", ODD), scratch.dir.path().join("file"));
    let _server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
    let uri = scratch.uri("");
    for destination in [&uri, text(&file)] {
        let mut child = spawn(&["-", destination]);
        child.stdin.take().unwrap().write_all(&content).unwrap();
        succeeds(&child.wait_with_output().unwrap());
    }
    for path in [&target, &file] {
        same(&source, path);
        as_sparse_as_can_be(path);
    }
    for from in [&uri, text(&file)] {
        let output = command(&[from, "-"]).output().unwrap();
        succeeds(&output);
        assert!(output.stdout == content, "{from}");
    }
    let mut through = spawn(&["-", "-"]);
    let mut stdin = through.stdin.take().unwrap();
    let written = content.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&written).unwrap());
    let output = through.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.stdout == content);
}

#[test]
fn a_pipe_that_ends_in_zeroes_makes_a_file_of_its_length() {
    let scratch = Scratch::new();
    let target = scratch.dir.path().join("target");
    for length in [0, 1, 100_000, 1 << 20] {
        let mut child = spawn(&["-", text(&target)]);
        child.stdin.take().unwrap().write_all(&vec![0; length]).unwrap();
        succeeds(&child.wait_with_output().unwrap());
        assert!(fs::read(&target).unwrap() == vec![0; length], "{length}");
        as_sparse_as_can_be(&target);
    }
}

#[test]
fn standard_input_and_output_that_are_files_are_left_where_others_go_on() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Sparse, ODD);
    let target = scratch.dir.path().join("target");
    let mut output = File::create(&target).unwrap();
    for round in 0..2 {
        let mut input = File::open(&source).unwrap();
        let mut skipped = vec![0; round * 100_000];
        input.read_exact(&mut skipped).unwrap();
        let mut command = command(&["-", "-"]);
        command.stdin(input).stdout(output.try_clone().unwrap());
        succeeds(&command.output().unwrap());
        if round == 0 {
            as_sparse_as_can_be(&target);
        }
    }
    output.write_all(b"end").unwrap();
    let content = fs::read(&source).unwrap();
    assert!(fs::read(&target).unwrap() == [&content, &content[100_000..], b"end"].concat());
}

#[test]
fn more_than_there_is_room_for_is_told_when_it_comes() {
    let scratch = Scratch::new();
    let target = scratch.image("target", ODD);
    let _server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
    let content = noise(1, usize::try_from(ODD).unwrap() + 1);
    let mut child = spawn(&["-", &scratch.uri("")]);
    let _ = child.stdin.take().unwrap().write_all(&content);
    told(&child.wait_with_output().unwrap(), &["standard input goes on", &ODD.to_string()]);
    assert!(fs::read(&target).unwrap() == content[..content.len() - 1]);
}

#[test]
fn a_server_that_keeps_nothing_is_found_out() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Sparse, 5 << 20);
    let _server = nbdkit(&scratch, &["null", "5M"]);
    let uri = scratch.uri("");
    copy(&[text(&source), &uri]);
    fails(&["--verify", text(&source), &uri], &["differs", "at byte", "0x00", "writes were lost"]);
}

/// Data where the source has a hole: only a look at what the destination says of itself can find it.
#[test]
fn what_was_there_before_is_found_where_zeroes_belong() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Sparse, ODD);
    let target = scratch.image("target", ODD);
    let file = File::options().write(true).open(&target).unwrap();
    file.write_all_at(&[0xaa], 2_700_123).unwrap();
    let _server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
    let words = ["--target-is-zero", "--verify", text(&source), &scratch.uri("")];
    fails(&words, &["at byte 2700123", "0xaa where 0x00", "1 of the"]);
}

#[test]
fn what_cannot_be_copied_is_refused_before_anything_is_written() {
    let scratch = Scratch::new();
    let dir = scratch.dir.path();
    let source = image(&scratch, "source", Content::Random, ODD);
    let [small, locked] = ["small", "locked"].map(|name| image(&scratch, name, Content::Random, ODD - 1));
    let before = fs::read(&small).unwrap();
    let small_words = format!("small={}", small.display());
    let read_only = format!("read-only={},readonly=on", source.display());
    let locked_words = format!("locked={}", locked.display());
    let _server = Process::ringnbd(&scratch.socket(), &[&small_words, &read_only, &locked_words]);
    let uri = |export: &str| scratch.uri(export);
    let nobody = dir.join("nobody/here");
    let cases: [(&[&str], &[&str]); 12] = [
        (&[text(&source), &uri("small")], &["1 fewer than", "nothing was written"]),
        (&[text(&source), &uri("read-only")], &["socket is read-only", "nothing was written"]),
        (&[text(&source), text(&locked)], &["in use by ringnbd", "nothing was written"]),
        (&[text(&source), text(&source)], &["the same", "nothing was written"]),
        (&[text(&source), &uri("missing")], &["missing"]),
        (&[text(&source), text(&nobody)], &["cannot write to", "nobody/here", "No such file"]),
        (&[text(&nobody), text(&locked)], &["cannot read", "nobody/here", "No such file"]),
        (&[text(dir), text(&small)], &["a directory"]),
        (&[text(&source), text(dir)], &["a directory"]),
        (&["null:", text(&small)], &["destination only"]),
        (&["--verify", text(&source), "-"], &["--verify", "standard output"]),
        (&["--json", text(&source), "-"], &["--json"]),
    ];
    for (words, parts) in cases {
        fails(words, parts);
    }
    assert!(fs::read(&small).unwrap() == before && fs::read(&locked).unwrap() == before);
    for words in [&["a"][..], &["a", "http://b/"], &["-S", "5", "a", "b"], &["--connections=0", "a", "b"]] {
        assert_eq!(command(words).output().unwrap().status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn other_servers_are_copied_to_and_from() {
    const SIZE: u64 = 4 << 20;
    let there_and_back = |scratch: &Scratch, export: &str| {
        let source = image(scratch, "source", Content::Mixed, SIZE - 1000);
        let back = scratch.dir.path().join("back");
        let uri = scratch.uri(export);
        copy(&["--flush", "--verify", text(&source), &uri]);
        copy(&["--verify", &uri, text(&back)]);
        let (source, back) = (fs::read(&source).unwrap(), fs::read(&back).unwrap());
        assert_eq!(back.len() as u64, SIZE);
        assert!(back.starts_with(&source) && back[source.len()..].iter().all(|byte| *byte == 0));
    };
    let words: [&[&str]; 6] = [
        &["memory", "4M"],
        &["--no-sr", "memory", "4M"],
        &["-o", "memory", "4M"],
        // Replies overtake each other.
        &["--filter=delay", "memory", "4M", "rdelay=3ms", "wdelay=1ms"],
        &[
            "--filter=retry",
            "--filter=error",
            "memory",
            "4M",
            "retries=40",
            "retry-delay=1",
            "retry-exponential=no",
            "error-pread-rate=3%",
        ],
        &[
            "--filter=blocksize-policy",
            "memory",
            "4M",
            "blocksize-minimum=4096",
            "blocksize-preferred=64k",
            "blocksize-maximum=128k",
            "blocksize-error-policy=error",
        ],
    ];
    for words in words {
        let scratch = Scratch::new();
        let _server = nbdkit(&scratch, words);
        there_and_back(&scratch, "");
    }
    let scratch = Scratch::new();
    let _server = qemu_nbd(&scratch, &["-x", "disk", "--discard=unmap"]);
    there_and_back(&scratch, "disk");
    let scratch = Scratch::new();
    let _server = qemu_storage_daemon(&scratch);
    there_and_back(&scratch, "");
    let scratch = Scratch::new();
    let _server = nbd_server(&scratch);
    there_and_back(&scratch, "disk");
    // From one of them to another.
    let (one, two) = (Scratch::new(), Scratch::new());
    let _servers = (nbdkit(&one, &["pattern", "4M"]), qemu_nbd(&two, &["--discard=unmap"]));
    copy(&["--verify", &one.uri(""), &two.uri("")]);
}

#[test]
fn a_source_that_fails_now_and_then_is_told() {
    let scratch = Scratch::new();
    let words = ["--filter=error", "memory", "64M", "error=EIO", "error-pread-rate=10%"];
    let _server = nbdkit(&scratch, &words);
    let target = scratch.dir.path().join("target");
    fails(&["--no-extents", &scratch.uri(""), text(&target)], &["socket=", "READ of", "EIO"]);
}

#[test]
fn a_failing_server_is_told_with_place_and_reason() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Random, 4 << 20);
    let _server = nbdkit(
        &scratch,
        &["--filter=error", "memory", "4M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"],
    );
    fails(&[text(&source), &scratch.uri("")], &["socket=", "WRITE of", "ENOSPC"]);
}

#[test]
fn programs_are_told_how_far_it_is_and_what_it_came_to() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Sparse, ODD);
    let target = scratch.dir.path().join("target");
    let output =
        command(&["--json", "--verify", "--progress", text(&source), text(&target)]).output().unwrap();
    succeeds(&output);
    let progress = String::from_utf8(output.stderr).unwrap();
    assert!(progress.ends_with("100/100\n"), "{progress}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |key: &str| told[key].as_u64().unwrap_or_else(|| panic!("{key} in {told}"));
    assert_eq!(told["source"], text(&source));
    assert_eq!((number("bytes"), number("verified_bytes")), (ODD, ODD));
    assert_eq!(number("data_bytes") + number("skipped_bytes") + number("zeroed_bytes"), ODD);
    assert!(number("data_bytes") >= 1_000_000 && number("data_bytes") <= needed(&source), "{told}");
    assert!(told["seconds"].as_f64().unwrap() > 0.0);
    let nowhere = command(&["--json", text(&source), "null:"]).output().unwrap();
    let told: Value = serde_json::from_slice(&nowhere.stdout).unwrap();
    assert_eq!(told["bytes"], ODD);
}
