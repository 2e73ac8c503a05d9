//! A process that the rig started: pinned, waited for under a deadline, and ended with all that it started.
//!
//! ```text
//! rig --spawn--> rig launch CORES --exec--> server or client
//!                   |-- pins itself to the cores
//!                   '-- asks to be killed when the rig dies, however it dies
//! ```
//!
//! A server that puts itself into the background (nbd-server) comes back as a child, because the rig is the
//! reaper of its descendants; [`Child::adopt`] takes it over.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, set_child_subreaper,
    set_parent_process_death_signal, waitpid,
};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::interrupt::Interrupt;
use crate::procfs;

const TERM_PATIENCE: Duration = Duration::from_secs(5);

/// A child of this process; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// Readable when it has ended, until it is waited for; the process id can not be another's before.
    pidfd: OwnedFd,
    status: Option<WaitStatus>,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    With(WaitStatus),
    /// The time was up; it still runs.
    NotYet,
}

impl Child {
    /// Starts `words` on `cores` in the directory `home`, which gets its standard output and error as files.
    pub(crate) fn start(words: &[String], cores: &[usize], rig: &str, home: &Path) -> anyhow::Result<Self> {
        let create = |name: &str| File::create(home.join(name));
        let parent = std::process::id().to_string();
        let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
        let child = Command::new(rig)
            .args(["launch", "--cores", &cores.join(","), "--parent", &parent, "--"])
            .args(words)
            // A group of its own: ctrl-C on the terminal is the rig's to pass on, in order.
            .process_group(0)
            .current_dir(home)
            // What a program says last is quoted; it shall not be a frame of a stack.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(create("stdout")?)
            .stderr(create("stderr")?)
            .spawn()
            .with_context(|| format!("cannot start {rig}"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        Self::of(pid)
    }

    fn of(pid: Pid) -> anyhow::Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch a child")?;
        Ok(Self { pid, pidfd, status: None })
    }

    /// The descendant that was handed to us when the child which started it ended, if there is one.
    pub(crate) fn adopt() -> anyhow::Result<Option<Self>> {
        let orphan = procfs::children(std::process::id()).first().copied();
        let pid = orphan.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        pid.map(Self::of).transpose()
    }

    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until the child ends or `deadline`. Fails only when the rig is interrupted.
    pub(crate) fn wait(&mut self, deadline: Instant, interrupt: &Interrupt) -> anyhow::Result<Ended> {
        loop {
            interrupt.check()?;
            if let Some(status) = self.reap()? {
                return Ok(Ended::With(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Ended::NotYet);
            }
            let mut both = [
                PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(interrupt.as_fd(), PollFlags::IN),
            ];
            poll_for(&mut both, left)?;
        }
    }

    fn reap(&mut self) -> anyhow::Result<Option<WaitStatus>> {
        if self.status.is_none() {
            self.status = waitpid(Some(self.pid), WaitOptions::NOHANG)?.map(|(_, status)| status);
        }
        Ok(self.status)
    }

    /// Asks the child to end, and kills it when it does not. Whether it ended when asked.
    pub(crate) fn stop(&mut self) -> bool {
        if self.has_ended() {
            return true;
        }
        let _ = kill_process(self.pid, Signal::TERM);
        let deadline = Instant::now() + TERM_PATIENCE;
        while !self.has_ended() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.kill();
                return false;
            }
            let _ = poll_for(&mut [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)], left);
        }
        true
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.reap(), Ok(None))
    }

    fn kill(&mut self) {
        if !self.has_ended() {
            let _ = kill_process(self.pid, Signal::KILL);
            if let Ok(Some((_, status))) = waitpid(Some(self.pid), WaitOptions::empty()) {
                self.status = Some(status);
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn poll_for(fds: &mut [PollFd<'_>], time: Duration) -> anyhow::Result<()> {
    let timeout = Timespec::try_from(time).context("a wait too long")?;
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait"),
    }
}

/// From now on orphans among this process' descendants become its children.
pub(crate) fn reap_descendants() -> anyhow::Result<()> {
    set_child_subreaper(Some(rustix::process::getpid())).context("cannot become a reaper")
}

/// Kills children that nobody holds: what a server left behind, as nbd-server leaves its connections' processes.
pub(crate) fn sweep() {
    // What a child leaves behind becomes a child in turn.
    for _ in 0..100 {
        let left = procfs::children(std::process::id());
        if left.is_empty() {
            break;
        }
        for pid in left {
            drop(i32::try_from(pid).ok().and_then(Pid::from_raw).map(Child::of));
        }
    }
}

/// `rig launch`: becomes the program that `words` name, on `cores`, for as long as `parent` lives.
pub(crate) fn launch(cores: &[usize], parent: u32, words: &[String]) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now != parent {
        bail!("the rig is gone");
    }
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on processors {cores:?}"))?;
    let (program, arguments) = words.split_first().context("nothing to launch")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("cannot start {program}"))
}
