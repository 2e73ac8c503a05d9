//! The servers that are measured, one row each.
//!
//! To add a server, add a row to [`SERVERS`] and its words for a command line below it. A server that does not
//! start is reported as failed; what it can not do at all is said in its row and printed in the report.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use crate::address::Address;
use crate::workloads::Workload;

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What it is, for the report.
    pub(crate) what: &'static str,
    /// The words that print its version; none for what is built here.
    pub(crate) version: &'static [&'static str],
    /// The words that serve `place.file` at `place.address`; none where fio reads the file without a server.
    pub(crate) words: Option<Words>,
    /// The name of the export that it then has.
    pub(crate) export: &'static str,
    /// Why it can not take part in a workload.
    pub(crate) cannot: fn(&Workload) -> Option<&'static str>,
}

/// The words of a command line.
pub(crate) type Words = fn(&Place<'_>) -> anyhow::Result<Vec<String>>;

/// What a server is to the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// ringnbd: what the ratios are about.
    Subject,
    /// ringnbd with other settings, for one target.
    Variant,
    /// Another project's server: the best of these is what a cell is won or lost against.
    Peer,
    /// The same idea on a ready-made runtime.
    Baseline,
    /// Not a server: the least that this machine needs.
    Floor,
}

/// Where and what a server serves.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) file: &'a str,
    pub(crate) address: &'a Address,
    /// Around the page cache.
    pub(crate) direct: bool,
    /// Where certificates are, if TLS is required.
    pub(crate) certificates: Option<&'a Path>,
    /// A directory that is gone afterwards.
    pub(crate) scratch: &'a Path,
}

/// What is built here.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) ringnbd: String,
    pub(crate) baseline: String,
    pub(crate) rig: String,
}

/// Words of a command line, from anything that prints.
macro_rules! words {
    ($($word:expr),* $(,)?) => { Vec::from([$($word.to_string()),*]) };
}

pub(crate) const SERVERS: &[Server] = &[
    Server {
        name: "ringnbd",
        kind: Kind::Subject,
        what: "this project, one shard",
        version: &[],
        words: Some(ringnbd),
        export: "",
        cannot: nothing,
    },
    Server {
        name: "ringnbd-poll",
        kind: Kind::Variant,
        what: "this project, one shard, --poll always",
        version: &[],
        words: Some(|place| Ok([ringnbd(place)?, words!["--poll", "always"]].concat())),
        export: "",
        cannot: deep,
    },
    Server {
        name: "ringnbd-sleep",
        kind: Kind::Variant,
        what: "this project, one shard, --poll never",
        version: &[],
        words: Some(|place| Ok([ringnbd(place)?, words!["--poll", "never"]].concat())),
        export: "",
        cannot: deep,
    },
    Server {
        name: "nbdkit",
        kind: Kind::Peer,
        what: "nbdkit's file plugin, its default of 16 threads for each connection",
        version: &["nbdkit", "--version"],
        words: Some(|place| nbdkit(place, &[])),
        export: "",
        cannot: direct,
    },
    Server {
        name: "nbdkit-t1",
        kind: Kind::Peer,
        what: "nbdkit's file plugin, one thread for each connection (-t 1)",
        version: &["nbdkit", "--version"],
        words: Some(|place| nbdkit(place, &["-t", "1"])),
        export: "",
        cannot: direct,
    },
    Server {
        name: "qemu-nbd",
        kind: Kind::Peer,
        what: "qemu-nbd, cache=writeback, aio=threads (cache=none where the workload is direct)",
        version: &["qemu-nbd", "--version"],
        words: Some(|place| qemu_nbd(place, cache(place), "threads")),
        export: "",
        cannot: nothing,
    },
    Server {
        name: "qemu-nbd-native",
        kind: Kind::Peer,
        what: "qemu-nbd, cache=none, aio=native: always around the page cache",
        version: &["qemu-nbd", "--version"],
        words: Some(|place| qemu_nbd(place, "none", "native")),
        export: "",
        cannot: nothing,
    },
    Server {
        name: "qemu-nbd-uring",
        kind: Kind::Peer,
        what: "qemu-nbd, cache=writeback, aio=io_uring (cache=none where the workload is direct)",
        version: &["qemu-nbd", "--version"],
        words: Some(|place| qemu_nbd(place, cache(place), "io_uring")),
        export: "",
        cannot: nothing,
    },
    Server {
        name: "qemu-storage-daemon",
        kind: Kind::Peer,
        what: "qemu-storage-daemon, an iothread, aio=io_uring (cache.direct=on where the workload is direct)",
        version: &["qemu-storage-daemon", "--version"],
        words: Some(qemu_storage_daemon),
        export: "disk",
        cannot: nothing,
    },
    Server {
        name: "nbd-server",
        kind: Kind::Peer,
        what: "nbd-server, a process for each connection, flush and fua on",
        version: &["nbd-server", "-V"],
        words: Some(nbd_server),
        export: "disk",
        cannot: direct_and_tls,
    },
    Server {
        name: "tokio-uring",
        kind: Kind::Baseline,
        what: "perf/tokio-uring-baseline: the same idea on a ready-made runtime, replies coalesced",
        version: &[],
        words: Some(tokio_uring),
        export: "",
        cannot: direct_and_tls,
    },
    Server {
        name: "floor",
        kind: Kind::Floor,
        what: "no server: cached pread or pwrite of the blocks and one send for what has arrived",
        version: &[],
        words: Some(floor),
        export: "",
        cannot: |workload| {
            workload.direct.then_some("reads one block after the other").or_else(|| tls(workload))
        },
    },
    Server {
        name: "fio-on-file",
        kind: Kind::Floor,
        what: "no server: fio's io_uring engine on the file itself, from the server's processor",
        version: &["fio", "--version"],
        words: None,
        export: "",
        cannot: |workload| (!workload.direct).then_some("is the floor of what goes around the page cache"),
    },
];

fn nothing(_: &Workload) -> Option<&'static str> {
    None
}

fn deep(workload: &Workload) -> Option<&'static str> {
    (workload.iodepth > 1).then_some("is about one request in flight")
}

fn direct(workload: &Workload) -> Option<&'static str> {
    workload.direct.then_some("has no O_DIRECT")
}

fn direct_and_tls(workload: &Workload) -> Option<&'static str> {
    direct(workload).or_else(|| tls(workload))
}

fn tls(workload: &Workload) -> Option<&'static str> {
    workload.tls.then_some("has no TLS here")
}

fn ringnbd(place: &Place<'_>) -> anyhow::Result<Vec<String>> {
    let listen = match place.address {
        Address::Unix(path) => format!("unix:{path}"),
        Address::Tcp(port) => format!("tcp:127.0.0.1:{port}"),
    };
    let keys = if place.direct { ",direct=on" } else { "" };
    // A comma in a path is written twice.
    let export = format!("file:{}{keys}", place.file.replace(',', ",,"));
    let mut words = words![place.programs.ringnbd, "serve", "--quiet", "--shards", 1, "--listen", listen];
    if let Some(directory) = place.certificates {
        words.extend(words!["--tls", "require", "--tls-certificates", directory.display()]);
    }
    words.push(export);
    Ok(words)
}

fn nbdkit(place: &Place<'_>, more: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut words = words!["nbdkit", "--foreground", "--exit-with-parent"];
    words.extend(more.iter().map(ToString::to_string));
    match place.address {
        Address::Unix(path) => words.extend(words!["--unix", path]),
        Address::Tcp(port) => words.extend(words!["--ipaddr", "127.0.0.1", "--port", port]),
    }
    if let Some(directory) = place.certificates {
        words.extend(words!["--tls=require", format!("--tls-certificates={}", directory.display())]);
    }
    words.extend(words!["file", format!("file={}", place.file)]);
    Ok(words)
}

fn cache(place: &Place<'_>) -> &'static str {
    if place.direct { "none" } else { "writeback" }
}

fn qemu_nbd(place: &Place<'_>, cache: &str, aio: &str) -> anyhow::Result<Vec<String>> {
    let (cache, aio) = (format!("--cache={cache}"), format!("--aio={aio}"));
    let mut words = words!["qemu-nbd", "--format=raw", "--persistent", "--shared=16", cache, aio];
    match place.address {
        Address::Unix(path) => words.extend(words!["--socket", path]),
        Address::Tcp(port) => words.extend(words!["--bind=127.0.0.1", format!("--port={port}")]),
    }
    if let Some(credentials) = credentials(place) {
        words.extend(words!["--object", credentials, "--tls-creds", "tls"]);
    }
    words.extend(words![place.file]);
    Ok(words)
}

/// QEMU's object that holds certificates.
fn credentials(place: &Place<'_>) -> Option<String> {
    let directory = place.certificates?.display();
    Some(format!("tls-creds-x509,id=tls,endpoint=server,verify-peer=no,dir={directory}"))
}

fn qemu_storage_daemon(place: &Place<'_>) -> anyhow::Result<Vec<String>> {
    let at = match place.address {
        Address::Unix(path) => format!("addr.type=unix,addr.path={path}"),
        Address::Tcp(port) => format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}"),
    };
    let direct = if place.direct { ",cache.direct=on" } else { "" };
    let file = place.file.replace(',', ",,");
    let (mut words, tls) = match credentials(place) {
        Some(credentials) => (words!["qemu-storage-daemon", "--object", credentials], ",tls-creds=tls"),
        None => (words!["qemu-storage-daemon"], ""),
    };
    words.extend(words![
        "--object",
        "iothread,id=thread",
        "--blockdev",
        format!("driver=file,node-name=disk,aio=io_uring,discard=unmap,filename={file}{direct}"),
        "--nbd-server",
        format!("{at},max-connections=16{tls}"),
        "--export",
        "type=nbd,id=export,node-name=disk,name=disk,writable=on,iothread=thread",
    ]);
    Ok(words)
}

/// nbd-server always listens on TCP; beside a unix socket that goes to a port that nobody asks for.
fn nbd_server(place: &Place<'_>) -> anyhow::Result<Vec<String>> {
    let mut config = String::from("[generic]\n");
    let port = match place.address {
        Address::Unix(path) => {
            let _ = writeln!(config, "unixsock = {path}");
            Address::free_port()?
        }
        Address::Tcp(port) => *port,
    };
    let _ = writeln!(config, "listenaddr = 127.0.0.1\nport = {port}\n");
    let _ = writeln!(config, "[disk]\nexportname = {}\nflush = true\nfua = true", place.file);
    let path = place.scratch.join("nbd-server.conf");
    std::fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
    let pid_file = place.scratch.join("nbd-server.pid");
    Ok(words!["nbd-server", "-C", path.display(), "-p", pid_file.display()])
}

fn tokio_uring(place: &Place<'_>) -> anyhow::Result<Vec<String>> {
    Ok(words![place.programs.baseline, place.address, place.file])
}

fn floor(place: &Place<'_>) -> anyhow::Result<Vec<String>> {
    Ok(words![place.programs.rig, "floor", place.address, place.file])
}
