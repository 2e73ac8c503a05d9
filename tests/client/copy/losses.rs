//! Servers that go away in the middle of a copy, and come back or do not, with what they had or without.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::Value;

use super::images::{Content, image, noise, same};
use super::{command, copy, spawn, succeeds, text, told};
use crate::others::nbdkit;
use crate::program::{Process, Scratch};
use crate::script::{Dialect, Export, Script, simple};
use crate::wait::until;

#[test]
fn a_server_that_is_killed_and_comes_back_is_written_to_the_end() {
    let scratch = Scratch::new();
    let size = 64 << 20;
    let content = noise(3, size);
    let target = scratch.image("target", size as u64);
    let start = || Process::ringnbd(&scratch.socket(), &[text(&target)]);
    let server = start();
    let mut child = spawn(&["--flush", "-", &scratch.uri("")]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&content[..size / 2]).unwrap();
    server.end(Signal::KILL);
    let rest = content[size / 2..].to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&rest).unwrap());
    let _server = start();
    succeeds(&child.wait_with_output().unwrap());
    writer.join().unwrap();
    assert!(fs::read(&target).unwrap() == content);
}

#[test]
fn a_server_that_is_killed_and_comes_back_is_read_to_the_end() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Random, 64 << 20);
    let start = || Process::ringnbd(&scratch.socket(), &[text(&source)]);
    let server = start();
    let mut child = spawn(&[&scratch.uri(""), "-"]);
    let (mut stdout, mut content) = (child.stdout.take().unwrap(), vec![0; 16 << 20]);
    stdout.read_exact(&mut content).unwrap();
    server.end(Signal::KILL);
    let _server = start();
    stdout.read_to_end(&mut content).unwrap();
    succeeds(&child.wait_with_output().unwrap());
    assert!(content == fs::read(&source).unwrap());
}

#[test]
fn a_server_that_does_not_come_back_ends_the_copy_though_the_pipe_is_silent() {
    let scratch = Scratch::new();
    let target = scratch.image("target", 64 << 20);
    let server = Process::ringnbd(&scratch.socket(), &[text(&target)]);
    let mut child = spawn(&["--reconnect-delay=200ms", "-", &scratch.uri("")]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&noise(1, 1 << 20)).unwrap();
    until("something is written", || fs::read(&target).unwrap().iter().any(|byte| *byte != 0));
    server.end(Signal::KILL);
    stdin.write_all(&noise(2, 1 << 20)).unwrap();
    let output = child.wait_with_output().unwrap();
    told(&output, &["the connection is lost", "socket="]);
    drop(stdin);
}

/// nbdkit's memory is gone with its process. The socket stays, and it takes none that is there.
fn killed_and_started_again(scratch: &Scratch, server: Process, size: &str) -> Process {
    server.end(Signal::KILL);
    fs::remove_file(scratch.socket()).unwrap();
    nbdkit(scratch, &["memory", size])
}

#[test]
fn what_a_killed_server_forgot_is_written_again() {
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Random, 16 << 20);
    let server = nbdkit(&scratch, &["--filter=delay", "memory", "16M", "delay-write=10ms"]);
    let words = ["--json", "--progress", "-C1", "-R2", text(&source), &scratch.uri("")];
    let mut child = command(&words).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let is_far = |line: &String| line.split_once('/').unwrap().0.parse::<u32>().unwrap() >= 30;
    lines.find(is_far).expect("it gets so far");
    let _server = killed_and_started_again(&scratch, server, "16M");
    assert_eq!(lines.last().unwrap(), "100/100");
    let output = child.wait_with_output().unwrap();
    succeeds(&output);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |key: &str| told[key].as_u64().unwrap();
    assert_eq!(number("data_bytes"), 16 << 20);
    assert!(number("repeated_bytes") >= 4 << 20, "{told}");
    let back = scratch.dir.path().join("back");
    copy(&[&scratch.uri(""), text(&back)]);
    same(&source, &back);
}

#[test]
fn what_a_killed_server_forgot_of_a_pipe_is_told() {
    let scratch = Scratch::new();
    let server = nbdkit(&scratch, &["memory", "64M"]);
    let content = noise(5, 64 << 20);
    let mut child = spawn(&["-", &scratch.uri("")]);
    let mut stdin = child.stdin.take().unwrap();
    let (first, rest) = content.split_at(32 << 20);
    stdin.write_all(first).unwrap();
    let _server = killed_and_started_again(&scratch, server, "64M");
    stdin.write_all(rest).unwrap();
    drop(stdin);
    let parts = ["came back without", "standard input cannot be read again"];
    told(&child.wait_with_output().unwrap(), &parts);
}

/// A flush that another process answers says nothing of what the first one had.
#[test]
fn what_was_not_flushed_by_the_server_that_took_it_is_written_again() {
    const FLUSH: u16 = 3;
    let scratch = Scratch::new();
    let source = image(&scratch, "source", Content::Random, 1 << 20);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let script = Script::serve(Export::new(Dialect::Simple), 2, move |number, peer| {
        loop {
            let asked = peer.request()?;
            noted.lock().unwrap().push((number, asked.command, asked.length));
            if number == 0 && asked.command == FLUSH {
                return Ok(());
            }
            peer.send(&simple(asked.cookie, 0))?;
        }
    });
    copy(&["--flush", "--connections=1", "--request-size=512K", text(&source), &script.uri]);
    script.end();
    let (half, disconnect) = ((1, 512 << 10), (2, 0));
    let of = |wanted| {
        let seen = seen.lock().unwrap();
        let of = seen.iter().filter(|(number, ..)| *number == wanted);
        of.map(|(_, command, length)| (*command, *length)).collect::<Vec<_>>()
    };
    let flush = (FLUSH, 0);
    assert_eq!(of(0), [half, half, flush]);
    // The flush that was in flight is repeated first, to no avail.
    assert_eq!(of(1), [flush, half, half, flush, disconnect]);
}
