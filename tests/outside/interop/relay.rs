//! Other servers as our clients: nbdkit's nbd plugin under all kinds of filters, QEMU's storage daemon. Somebody else's
//! client speaks to them.
//!
//! ```text
//!   nbdcopy, nbdsh, qemu-io --unix--> nbdkit or qemu-storage-daemon --unix--> ringnbd
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::client::Dialect;
use crate::program::{nbdsh, run};
use crate::scratch::{MIB, Scratch, allocated, on_disk, pattern};
use crate::server::Server;
use crate::wait::until;
use crate::wire::{Address, Wire};

/// Another server in front of ours, killed when dropped.
struct Relay {
    child: Child,
    socket: PathBuf,
    _scratch: Scratch,
}

impl Relay {
    /// `words` with `SOCKET` replaced by the path of the socket to listen on.
    fn start(program: &str, words: &[String]) -> Self {
        let scratch = Scratch::new();
        let socket = scratch.path("relay");
        let place = |word: &String| word.replace("SOCKET", socket.to_str().expect("UTF-8"));
        let child = Command::new(program)
            .args(words.iter().map(place))
            .stdin(Stdio::null())
            // It complains when the look whether it listens goes away again.
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs the peers)"));
        until("the relay listens", || Wire::try_connect(&Address::Unix(socket.clone())).is_ok());
        Self { child, socket, _scratch: scratch }
    }

    fn nbdkit(server: &Server, filters: &[&str], parameters: &[&str]) -> Self {
        let mut words = vec!["--foreground".to_owned(), "--unix=SOCKET".to_owned()];
        words.extend(filters.iter().map(|filter| format!("--filter={filter}")));
        words.extend(["nbd".to_owned(), format!("uri={}", server.uri("")), "shared=true".to_owned()]);
        words.extend(parameters.iter().map(|&word| word.to_owned()));
        Self::start("nbdkit", &words)
    }

    fn qemu(server: &Server) -> Self {
        let Address::Unix(path) = &server.address else { panic!("a unix socket") };
        let disk = format!(
            "driver=nbd,node-name=disk,discard=unmap,server.type=unix,server.path={}",
            path.display()
        );
        let words = [
            "--blockdev",
            &disk,
            "--nbd-server",
            "addr.type=unix,addr.path=SOCKET,max-connections=8",
            "--export",
            "type=nbd,id=relay,node-name=disk,name=,writable=on",
        ];
        Self::start("qemu-storage-daemon", &words.map(str::to_owned))
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three MiB of data in 32.
fn islands(scratch: &Scratch) -> PathBuf {
    let path = scratch.sparse("source", 32 * MIB);
    let file = File::options().write(true).open(&path).expect("open");
    for place in [0, 9, 20] {
        file.write_all_at(&pattern(place, 1 << 20), place * MIB).expect("write");
    }
    path
}

#[test]
fn an_image_travels_through_other_servers_and_keeps_its_holes() {
    let scratch = Scratch::new();
    let source = islands(&scratch);
    let whole = on_disk(&source, 0, 32 << 20);
    let relays: [fn(&Server) -> Relay; 2] = [|server| Relay::nbdkit(server, &[], &[]), Relay::qemu];
    for (index, relay) in relays.into_iter().enumerate() {
        let disk = scratch.sparse(&format!("disk-{index}"), 32 * MIB);
        let server = Server::start([&disk]);
        let relay = relay(&server);
        run("nbdcopy", ["--flush".as_ref(), source.as_os_str(), relay.uri().as_ref()]).ok();
        assert!(on_disk(&disk, 0, 32 << 20) == whole, "{index}");
        assert!(allocated(&disk) <= 3 * MIB + 65536, "{index}: holes stay holes: {}", allocated(&disk));
        let back = scratch.path(&format!("back-{index}"));
        run("nbdcopy", [relay.uri().as_ref(), back.as_os_str()]).ok();
        assert!(on_disk(&back, 0, 32 << 20) == whole, "{index}");
        let totals = run("nbdinfo", ["--map".to_owned(), "--totals".to_owned(), relay.uri()]).ok();
        let data = totals.lines().find(|line| line.ends_with("data"));
        assert_eq!(
            data.and_then(|line| line.split_whitespace().next()),
            Some("3145728"),
            "{index}: {totals}"
        );
    }
}

/// Each filter asks in its own way: FUA as flushes, zeroes as writes, blocks of one size, reads ahead, reads first.
#[test]
fn nbdkits_filters_on_top_change_nothing() {
    let chains: &[(&[&str], &[&str])] = &[
        (&["fua"], &["fuamode=force"]),
        (&["nozero"], &["zeromode=emulate"]),
        (&["blocksize"], &["minblock=4096", "maxdata=65536"]),
        (&["cow"], &[]),
        (&["cache", "readahead"], &["cache=writeback"]),
        (&["retry", "stats", "noextents"], &["statsfile=/dev/null"]),
        (&["truncate", "fua"], &["round-up=1M", "fuamode=emulate"]),
    ];
    let scratch = Scratch::new();
    for (filters, parameters) in chains {
        let disk = scratch.full("disk", 4 * MIB);
        let server = Server::start([&disk]);
        let relay = Relay::nbdkit(&server, filters, parameters);
        nbdsh(&relay.uri(), WRITE_AND_READ_BACK);
        drop(relay);
        // What copy on write changes it keeps to itself.
        let is_written = on_disk(&disk, 4096, 4096) == [b'1'; 4096];
        assert_eq!(is_written, !filters.contains(&"cow"), "{filters:?}");
        server.client(Dialect::Simple).is_alive("after the relay was killed");
    }
}

const WRITE_AND_READ_BACK: &str = r#"
h.connect_uri(uri)
size = h.get_size()
one, two = b"1" * 70000, b"2" * 5000
expected = bytearray(h.pread(size, 0))
h.pwrite(one, 4096, nbd.CMD_FLAG_FUA if h.can_fua() else 0)
h.pwrite(two, 100001)
if h.can_zero():
    h.zero(8192, 65536)
else:
    h.pwrite(bytes(8192), 65536)
if h.can_trim():
    h.trim(65536, 524288)
h.flush()
expected[4096:4096 + len(one)] = one
expected[100001:100001 + len(two)] = two
expected[65536:65536 + 8192] = bytes(8192)
trimmed = slice(524288, 524288 + 65536)
found = bytearray(h.pread(size, 0))
expected[trimmed] = found[trimmed] = bytes(65536)
assert found == expected
h.shutdown()
"#;

/// The checkwrite filter compares all that is written with what is there, and fails the write where it differs.
#[test]
fn nbdkit_compares_a_copy_with_what_we_serve() {
    let scratch = Scratch::new();
    let source = islands(&scratch);
    let server = Server::start([format!("{},readonly=on", source.display())]);
    let relay = Relay::nbdkit(&server, &["checkwrite"], &[]);
    run("nbdcopy", [source.as_os_str(), relay.uri().as_ref()]).ok();
    let other = scratch.full("other", 32 * MIB);
    assert!(!run("nbdcopy", [other.as_os_str(), relay.uri().as_ref()]).success, "it does compare");
}

#[test]
fn qemus_storage_daemon_relays_every_command() {
    let scratch = Scratch::new();
    let disk = scratch.sparse("disk", 16 * MIB);
    let server = Server::start([&disk]);
    let relay = Relay::qemu(&server);
    nbdsh(&relay.uri(), WRITE_AND_READ_BACK);
    let commands =
        ["write -f -P 7 1M 1M", "write -z -u 1M 64k", "discard 12M 1M", "flush", "read -P 0 1M 64k"];
    let words = ["-f", "raw"].into_iter().chain(commands.iter().flat_map(|command| ["-c", command]));
    let out = run("qemu-io", words.chain([relay.uri().as_str()])).ok();
    assert!(!out.contains("failed"), "{out}");
    assert!(on_disk(&disk, MIB + 65536, 4096) == [7; 4096] && on_disk(&disk, MIB, 65536) == [0; 65536]);
}
