use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{Config, Server};
use crate::backend::ExportSpec;

const VICTIM: &str = "RINGNBD_TEST_SHARD_PANICS";

/// A shard that died alone would leave its clients waiting and the others serving: a zombie. The test runs itself in a
/// second process, which has to be gone by SIGABRT.
#[test]
fn a_panic_on_a_shard_ends_the_process() {
    if env::var_os(VICTIM).is_some() {
        return panic_on_a_shard();
    }
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "server::tests::a_panic_on_a_shard_ends_the_process"])
        .env(VICTIM, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
}

/// Returns when one shard has ended and the other, if nothing stops it, would go on.
fn panic_on_a_shard() {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    let exports = vec![ExportSpec::parse("null:1M").unwrap()];
    let server =
        Server::start(Config { shards: Some(2), pin: false, ..Config::new(exports, Vec::new()) }).unwrap();
    let posted = server.directory.shards[1].remote.get().unwrap().post(|| panic!("on purpose"));
    assert!(posted);
    let _ = server.join();
}
