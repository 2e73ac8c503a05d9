//! fio's nbd engine, the main driver of this server: verified writes, trims, many jobs.

use crate::program::run;
use crate::scratch::{MIB, Mount, Scratch};
use crate::server::Server;

/// Runs fio to its end; total errors of all jobs must be none.
#[track_caller]
pub(crate) fn fio(server: &Server, words: &[&str]) -> String {
    let uri = format!("--uri={}", server.uri(""));
    let common = [
        "--name=test",
        "--ioengine=nbd",
        "--verify_state_save=0",
        "--output-format=json",
        "--group_reporting",
        &uri,
    ];
    let report = run("fio", common.iter().chain(words)).ok();
    let scratch = Scratch::new();
    let path = scratch.path("report.json");
    // fio puts its notes before the JSON.
    std::fs::write(&path, &report[report.find('{').expect("a JSON report")..]).expect("write the report");
    let errors = run("jq", ["[.jobs[].error] | add".as_ref(), path.as_os_str()]).ok();
    assert_eq!(errors.trim(), "0", "{report}");
    report
}

#[test]
fn random_writes_verify_with_crc32c() {
    for server in [Server::start(["memory:64M"]), Server::tcp(["memory:64M"])] {
        fio(
            &server,
            &["--rw=randwrite", "--bs=4k", "--size=64M", "--iodepth=32", "--verify=crc32c", "--randseed=7"],
        );
    }
}

#[test]
fn mixed_sizes_verify_deep_and_unaligned() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 64 * MIB);
    let server = Server::start([&path]);
    fio(
        &server,
        &[
            "--rw=randwrite",
            "--bsrange=512-256k",
            "--blockalign=512",
            "--size=48M",
            "--iodepth=128",
            "--verify=crc32c",
            "--fsync=64",
            "--serialize_overlap=1",
        ],
    );
}

#[test]
fn trims_are_served_and_verified() {
    let scratch = Scratch::new();
    let path = scratch.full("disk", 32 * MIB);
    let server = Server::start([&path]);
    fio(&server, &["--rw=randtrim", "--bs=64k", "--size=32M", "--iodepth=16"]);
    assert!(crate::scratch::allocated(&path) < 4 * MIB, "every block was trimmed once");
    fio(&server, &["--rw=trimwrite", "--bs=16k", "--size=16M", "--iodepth=8"]);
    fio(&server, &["--rw=randwrite", "--bs=16k", "--size=16M", "--iodepth=8", "--verify=crc32c"]);
}

#[test]
fn several_jobs_on_several_shards_verify() {
    let server = Server::tcp(["--shards", "2", "memory:64M"]);
    fio(
        &server,
        &[
            "--rw=randrw",
            "--bs=4k",
            "--size=8M",
            "--offset_increment=8M",
            "--numjobs=8",
            "--iodepth=16",
            "--verify=crc32c",
            "--thread",
        ],
    );
}

#[test]
fn direct_export_verifies() {
    let scratch = Scratch::new();
    let path = scratch.sparse("disk", 32 * MIB);
    let server = Server::start([format!("{},direct=on", path.display())]);
    fio(&server, &["--rw=randwrite", "--bs=4k", "--size=16M", "--iodepth=32", "--verify=crc32c"]);
    fio(
        &server,
        &[
            "--rw=randwrite",
            "--bsrange=1k-9k",
            "--blockalign=1k",
            "--size=4M",
            "--iodepth=16",
            "--verify=crc32c",
            "--serialize_overlap=1",
        ],
    );
}

#[test]
fn files_on_ext4_and_xfs_verify() {
    for kind in ["ext4", "xfs"] {
        let mount = Mount::new(kind);
        let path = mount.sparse("disk", 128 * MIB);
        let server = Server::start([&path]);
        fio(
            &server,
            &["--rw=randwrite", "--bs=4k", "--size=64M", "--iodepth=32", "--verify=crc32c", "--fsync=256"],
        );
        fio(&server, &["--rw=randtrim", "--bs=64k", "--size=64M", "--iodepth=16"]);
        assert!(crate::scratch::allocated(&path) < 8 * MIB, "{kind}: trims punch holes");
        fio(&server, &["--rw=write", "--bs=1M", "--size=64M", "--iodepth=8", "--verify=crc32c"]);
    }
}
