//! `ringnbd info` beside nbdinfo, on the same servers: the same bytes and the same exit codes.

use std::process::{Command, Output};

use crate::others::{nbd_server, nbdkit, qemu_nbd};
use crate::program::{Process, Scratch, program};

fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// What ours prints, with what nbdinfo of old does not know of: extended headers.
fn ours(words: &[&str]) -> (Option<i32>, String) {
    let output = run(&program(), &[&["info"], words].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text
        .replace("using extended packets", "using structured packets")
        .replace("\"extended\": true,\n", "");
    (output.status.code(), text)
}

fn theirs(words: &[&str]) -> (Option<i32>, String) {
    let output = run("nbdinfo", words);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[track_caller]
fn same(words: &[&str]) -> String {
    let (ours, theirs) = (ours(words), theirs(words));
    assert_eq!(ours, theirs, "{words:?}");
    ours.1
}

const FLAGS: [&str; 16] = [
    "cache",
    "connect",
    "df",
    "fast-zero",
    "flush",
    "fua",
    "multi-conn",
    "read",
    "structured-reply",
    "trim",
    "write",
    "zero",
    "read-only",
    "rotational",
    "tls",
    "structured reply",
];

fn compare(scratch: &Scratch, export: &str) {
    let uri = scratch.uri(export);
    for words in [&[][..], &["--json"], &["--no-content"], &["--no-content", "--json"], &["--size"]] {
        assert!(!same(&[words, &[&uri]].concat()).is_empty(), "{words:?}");
    }
    let maps: [&[&str]; 4] =
        [&["--map"], &["--map", "--json"], &["--map", "--totals"], &["--map", "--totals", "--json"]];
    for words in maps {
        same(&[words, &[&uri]].concat());
    }
    for flag in FLAGS {
        let code = |outcome: (Option<i32>, String)| outcome.0;
        assert_eq!(code(ours(&["--can", flag, &uri])), code(theirs(&["--can", flag, &uri])), "{flag}");
    }
}

fn compare_lists(scratch: &Scratch) {
    for words in
        [&["--list"][..], &["--list", "--json"], &["--list", "--content"], &["--list", "--json", "--content"]]
    {
        assert!(same(&[words, &[&scratch.uri("")]].concat()).contains("export"));
    }
}

#[test]
fn our_own_server_is_described_as_by_nbdinfo() {
    let scratch = Scratch::new();
    let image = scratch.image("disk", 10 << 20);
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&image).unwrap(),
        b"x",
        1 << 20,
    )
    .unwrap();
    let a = format!("a={},description=\"the\\ttab\"", image.display());
    let _server = Process::ringnbd(&scratch.socket(), &[&a, "b ü=null:1000,readonly=on"]);
    compare(&scratch, "a");
    compare(&scratch, "b%20%C3%BC");
    compare_lists(&scratch);
}

#[test]
fn content_is_told_in_the_words_of_file() {
    let heads: [(&[u8], &str); 3] =
        [(b"QFI\xfb\0\0\0\x03", "QCOW"), (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"), (b"#!/bin/sh\n", "")];
    for (head, words) in heads {
        let scratch = Scratch::new();
        let image = scratch.image("disk", 1 << 20);
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, head, 0).unwrap();
        let _server = Process::ringnbd(&scratch.socket(), &[&image.display().to_string()]);
        let told = same(&[&scratch.uri("")]);
        assert!(told.contains("\tcontent: ") && told.contains(words), "{told}");
        assert!(!same(&["--no-content", &scratch.uri("")]).contains("content:"));
    }
}

#[test]
fn nbdkit_is_described_as_by_nbdinfo() {
    let words: [&[&str]; 4] = [
        &["memory", "1000000"],
        &["--no-sr", "-r", "memory", "3M"],
        &["-o", "memory", "1M"],
        &["data", "data=@1048576 1 @9000000 2", "size=10M"],
    ];
    for words in words {
        let scratch = Scratch::new();
        let _server = nbdkit(&scratch, words);
        if words.contains(&"-o") || words.contains(&"--no-sr") {
            // There is no map to compare; nbdinfo fails on it, and so do we.
            let (ours, theirs) = (ours(&["--map", &scratch.uri("")]), theirs(&["--map", &scratch.uri("")]));
            assert_eq!((ours.0, theirs.0), (Some(1), Some(1)));
            same(&["--no-content", &scratch.uri("")]);
            same(&["--no-content", "--json", &scratch.uri("")]);
            same(&["--size", &scratch.uri("")]);
        } else {
            compare(&scratch, "");
        }
        if !words.contains(&"-o") {
            compare_lists(&scratch);
        }
    }
}

#[test]
fn qemu_nbd_is_described_as_by_nbdinfo() {
    let scratch = Scratch::new();
    let _server = qemu_nbd(&scratch, &["-x", "disk", "-D", "a disk", "--allocation-depth"]);
    compare(&scratch, "disk");
    compare_lists(&scratch);
    same(&["--map=qemu:allocation-depth", &scratch.uri("disk")]);
}

/// It tells a size of 0 to whoever asks without opening (INFO); only opening (GO) tells the truth, which is what we print.
#[test]
fn nbd_server_is_described_better_than_by_nbdinfo() {
    let scratch = Scratch::new();
    let _server = nbd_server(&scratch);
    let uri = scratch.uri("disk");
    let (ours, theirs) = (ours(&["--no-content", &uri]), theirs(&["--no-content", &uri]));
    assert!(ours.1.contains("export-size: 4194304 (4M)"), "{}", ours.1);
    assert_eq!(ours.1.replace("4194304 (4M)", "0"), theirs.1);
    same(&["--size", &uri]);
    for words in [&["--list"][..], &["--list", "--json"]] {
        same(&[words, &[&scratch.uri("")]].concat());
    }
}

#[test]
fn what_cannot_be_told_is_an_error_and_no_answer() {
    let scratch = Scratch::new();
    let _server = Process::ringnbd(&scratch.socket(), &["a=null:1M"]);
    let output = |words: &[&str]| {
        let output = run(&program(), &[&["info"], words].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (uri, missing) = (scratch.uri("a"), scratch.uri("nothing"));
    let cases: [(&[&str], &str); 5] = [
        (&["--can", "fly", &uri], "unknown"),
        (&["--is", "read-only", &missing], "nothing"),
        (&["--size", &missing], "nothing"),
        (&["--map=x:y", &uri], "x:y"),
        (&["nbd+unix:///?socket=/nobody/here"], "cannot connect"),
    ];
    for (words, part) in cases {
        let (code, text) = output(words);
        assert!(code == Some(1) && text.contains(part), "{words:?}: {code:?} {text}");
    }
}
