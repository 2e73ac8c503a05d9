//! Opening: what is refused, in which words, and who is kept out.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use ringnbd::backend::{ExportSpec, Media, OpenError};
use ringnbd::sys::lock;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

use crate::open;
use crate::stage::{Loop, Mount, run};

fn refused(spec: &str) -> OpenError {
    match Media::open(&ExportSpec::parse(spec).unwrap()) {
        Ok(_) => panic!("{spec} was opened"),
        Err(error) => error,
    }
}

fn sized(dir: &TempDir, name: &str, size: u64) -> String {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Another process with a lock on the whole file; the kernel treats its kind (POSIX) and ours alike.
struct Locker(Child);

impl Locker {
    fn new(path: &str, kind: &str) -> Self {
        let script = format!(
            "import fcntl, sys\nf = open({path:?}, 'r+b')\nfcntl.lockf(f, fcntl.{kind})\nprint('held', flush=True)\n\
             sys.stdin.read()"
        );
        let mut python = Command::new("python3");
        python.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().expect("python3 is needed for this test");
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "held\n");
        Self(child)
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn each_wrong_path_is_an_error_of_its_own() {
    let dir = TempDir::new().unwrap();
    let inside = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = sized(&dir, "file", 10_000);
    let empty = sized(&dir, "empty", 0);
    run("mkfifo", &[&inside("fifo")]);
    let _socket = UnixListener::bind(inside("socket")).unwrap();
    symlink("loop", inside("loop")).unwrap();
    for (spec, words) in [
        (inside("nothing"), "there is no such file"),
        (inside("file/below"), "cannot look at"),
        (inside("loop"), "cannot look at"),
        (inside(""), "is a directory"),
        (inside("fifo"), "is a FIFO, not a regular file or block device"),
        (inside("socket"), "is a socket"),
        ("/dev/null".to_owned(), "is a character device"),
        (format!("block:{file}"), "is a regular file, not a block device"),
        (empty, "has a size of 0"),
        (format!("{file},offset=10000"), "offset=10000 is beyond the end"),
        (format!("{file},offset=9999,size=2"), "offset=9999,size=2 reaches beyond the end"),
        (format!("{file},offset=1,direct=on"), "offset=1 is not a multiple of"),
        (format!("{file},size=1001,direct=on"), "size=1001 is not a multiple of"),
        (format!("{file},direct=on,strict=on"), "add size="),
        ("memroy:1G".to_owned(), "there are file:PATH"),
        (format!("{file},ofset=1"), "`ofset` is not an option"),
    ] {
        let said = refused(&spec).to_string();
        assert!(said.contains(words), "{spec}: {said}");
    }
}

#[test]
fn a_window_reaches_to_the_end_unless_told_otherwise() {
    let dir = TempDir::new().unwrap();
    let file = sized(&dir, "file", 10_001);
    assert_eq!(open(&file).size(), 10_001);
    assert_eq!(open(&format!("{file},offset=10000")).size(), 1);
    assert_eq!(open(&format!("{file},offset=1,size=10000")).size(), 10_000);
}

#[test]
fn what_may_not_be_written_names_the_way_out() {
    let mount = Mount::tmpfs(1);
    let path = mount.path().join("file");
    File::create(&path).unwrap().set_len(4096).unwrap();
    run("mount", &["-o", "remount,ro", mount.path().to_str().unwrap()]);
    let spec = path.to_str().unwrap();
    let error = refused(spec);
    assert!(matches!(error, OpenError::Write { .. }), "{error}");
    assert!(error.to_string().contains("add readonly=on"), "{error}");
    let media = open(&format!("{spec},readonly=on"));
    let traits = media.traits();
    assert!(
        traits.readonly
            && !traits.can.trim
            && !traits.can.zero
            && !traits.can.fast_zero
            && traits.can.extents
    );
}

#[test]
fn a_write_protected_device_names_the_way_out() {
    let dir = TempDir::new().unwrap();
    let device = Loop::readonly(Path::new(&sized(&dir, "image", 1 << 20)));
    let path = device.path().to_str().unwrap();
    assert!(matches!(refused(path), OpenError::Write { .. }), "{}", refused(path));
    assert_eq!(open(&format!("{path},readonly=on")).size(), 1 << 20);
}

#[test]
fn a_second_writer_is_kept_out_and_told_by_whom() {
    let dir = TempDir::new().unwrap();
    let file = sized(&dir, "file", 10_000);
    let reading = format!("{file},readonly=on");
    let writer = open(&file);
    for spec in [&file, &reading] {
        let error = refused(spec);
        assert!(matches!(error, OpenError::Locked { holder: Some(_), .. }), "{error}");
        assert!(error.to_string().contains("another export of this server"), "{error}");
    }
    open(&format!("{file},lock=off"));
    drop(writer);
    let readers = [open(&reading), open(&reading)];
    assert!(matches!(refused(&file), OpenError::Locked { .. }));
    drop(readers);
    let halves = [open(&format!("{file},size=5000")), open(&format!("{file},offset=5000"))];
    assert!(matches!(refused(&format!("{file},offset=4999,size=2")), OpenError::Locked { .. }));
    drop(halves);
    open(&file);
}

#[test]
fn another_process_is_named() {
    let dir = TempDir::new().unwrap();
    let file = sized(&dir, "file", 10_000);
    let writer = Locker::new(&file, "LOCK_EX");
    let words = format!("python3 (process {})", writer.0.id());
    for spec in [file.clone(), format!("{file},readonly=on")] {
        let said = refused(&spec).to_string();
        assert!(said.contains(&words) && said.contains("lock=off"), "{said}");
    }
    drop(writer);
    open(&file);
}

/// An open file that is in no process's table, as those of a killed server are until its ring is gone: it travels through
/// a socket and never arrives.
fn lock_without_a_holder(path: &str) -> (UnixStream, UnixStream) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    assert!(lock::try_lock(&file, lock::Kind::Write, 0..100).unwrap());
    let (from, to) = UnixStream::pair().unwrap();
    let fds = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&from, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    (from, to)
}

#[test]
fn the_lock_of_a_dead_server_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let file = sized(&dir, "file", 10_000);
    let stuck = lock_without_a_holder(&file);
    let error = refused(&file);
    assert!(matches!(error, OpenError::Locked { holder: None, .. }), "{error}");
    let opening = thread::spawn(move || open(&file).size());
    drop(stuck);
    assert_eq!(opening.join().unwrap(), 10_000);
}

/// QEMU reads with shared locks on bytes 100 and 201; a reader of ours must not pass for a writer there.
#[test]
fn a_reader_leaves_qemus_lock_bytes_alone() {
    let dir = TempDir::new().unwrap();
    let file = sized(&dir, "file", 1 << 20);
    let _reader = open(&format!("{file},readonly=on"));
    let read = ["-r", "-f", "raw", "-c", "read 0 1M", &file];
    let said = run("qemu-io", &read);
    assert!(said.contains("read 1048576/1048576"), "{said}");
}

#[test]
fn a_mounted_device_is_not_written_to() {
    let dir = TempDir::new().unwrap();
    let image = sized(&dir, "image", 16 << 20);
    run("mkfs.ext4", &["-q", &image]);
    let device = Loop::new(Path::new(&image), 512);
    let path = device.path().to_str().unwrap();
    let mount = Mount::device(device.path());
    let error = refused(path);
    assert!(matches!(error, OpenError::Busy { .. }), "{error}");
    assert!(error.to_string().contains(mount.path().to_str().unwrap()), "{error}");
    open(&format!("{path},readonly=on"));
    drop(mount);
    let whole = open(path);
    let said = refused(path).to_string();
    assert!(said.contains("another export of this server"), "{said}");
    drop(whole);
    let _halves = [open(&format!("{path},size=8M")), open(&format!("{path},offset=8M"))];
    assert!(refused(&format!("{path},size=1M")).to_string().contains("another export of this server"));
}

#[test]
fn traits_tell_what_was_asked_for_and_what_was_found() {
    let dir = TempDir::new().unwrap();
    let file = sized(&dir, "file", 1 << 20);
    let media = open(&format!("{file},hidden=on,writethrough=on,strict=on,description=a,,b,rotational=on"));
    let traits = media.traits();
    assert!(traits.hidden && traits.writethrough && traits.strict && traits.rotational && !traits.readonly);
    assert_eq!(traits.description.as_deref(), Some("a,b"));
    assert_eq!((traits.minimum, traits.preferred), (1, 4096));
    let can = traits.can;
    assert!(can.flush && can.fua && can.trim && can.zero && can.fast_zero && can.cache && can.extents);
    drop(media);
    let direct = open(&format!("{file},direct=on,rotational=off"));
    assert!(direct.traits().minimum >= 512 && !direct.traits().rotational && !direct.traits().can.cache);
    drop(direct);
    fs::write(&file, vec![0; 1001]).unwrap();
    assert_eq!(open(&format!("{file},direct=on")).traits().minimum, 1);
}
