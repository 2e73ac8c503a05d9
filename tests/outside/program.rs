//! Other people's programs. One that is missing is a failure: a test that did not run proves nothing.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process_group};

use crate::wait::{exit_within, pid_of};

/// No peer program in these tests works longer than this.
const LIMIT: Duration = Duration::from_secs(120);

/// What a program did.
pub(crate) struct Outcome {
    pub(crate) success: bool,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.success, "exit {:?}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs `program` to its end. Output goes through files, so a child that outlives it cannot hold us up.
#[track_caller]
pub(crate) fn run<W: AsRef<OsStr>>(program: &str, words: impl IntoIterator<Item = W>) -> Outcome {
    let mut command = Command::new(program);
    command.args(words);
    outcome(command)
}

#[track_caller]
pub(crate) fn outcome(mut command: Command) -> Outcome {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| dir.path().join(name));
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).expect("create a file"))
        .stderr(File::create(&stderr).expect("create a file"))
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs the peers)"));
    let status = exit_within(&mut child, LIMIT);
    if status.is_none() {
        let _ = kill_process_group(pid_of(&child), Signal::KILL);
        let _ = child.wait();
    }
    let [stdout, stderr] = [stdout, stderr].map(|path| {
        let bytes = std::fs::read(path).expect("read a program's output");
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let Some(status) = status else { panic!("{program} hung for {LIMIT:?}\n{stdout}\n{stderr}") };
    Outcome { success: status.success(), code: status.code(), stdout, stderr }
}

/// A Python script in libnbd's shell: `h` is a handle not yet connected, `uri` is set.
#[track_caller]
pub(crate) fn nbdsh(uri: &str, script: &str) -> String {
    let mut command = Command::new("nbdsh");
    // Debian's bindings belong to Debian's Python, whatever else is first in the path.
    command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command.args(["-c", &format!("uri = {uri:?}"), "-c", script]);
    outcome(command).ok()
}
