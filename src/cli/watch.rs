//! The main thread while the server runs: waits for what can happen, and does what follows from it.
//!
//! ```text
//!   SIGTERM, SIGINT ---> drain ----(again)----> stop
//!   SIGUSR1 -----------> print the table
//!   SIGHUP ------------> load the certificates again
//!   --stats-socket ----> a snapshot for its reader
//!   the --run child ends, or fails to: drain, keep its code
//!   the interval ends -> a line in the log
//!   the server is done-> report, exit
//! ```
//!
//! Each source has a thread that blocks on it and sends an event; the main thread has one queue to wait on.

use std::process::{Child, ExitCode, ExitStatus};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::pid_file::PidFile;
use super::report::Report;
use super::{run, tls};
use crate::metrics::Snapshot;
use crate::net::listen::PathGuard;
use crate::server::{Encryption, Server};

/// What the main thread waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// One of the signals that we take.
    Signal(i32),
    /// The command of `--run` ended.
    ChildEnded(ExitStatus),
    /// A reader of `--stats-socket` waits for this.
    StatsWanted(Sender<Snapshot>),
    /// Every shard has ended.
    ServerEnded,
}

/// The queue of events.
pub(super) struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

impl Events {
    /// Takes the signals from here on, and the death of the parent for one more SIGTERM if it matters.
    pub(super) fn listen(exit_with_parent: bool) -> anyhow::Result<Self> {
        let (sender, receiver) = channel();
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP]).context("cannot take signals")?;
        let to_main = sender.clone();
        spawn("signals", move || {
            for signal in signals.forever() {
                if to_main.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
        if exit_with_parent {
            let parent = getppid();
            set_parent_process_death_signal(Some(Signal::TERM)).context("--exit-with-parent")?;
            // It may have ended before the kernel was told to say so; orphans get another parent.
            if getppid() != parent {
                bail!("--exit-with-parent: the parent has ended already");
            }
        }
        Ok(Self { sender, receiver })
    }

    /// A place to send events to.
    pub(super) fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// Waits for the child's end from here on, and says whom to signal.
    pub(super) fn child(&self, mut child: Child) -> anyhow::Result<Option<Pid>> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let to_main = self.sender();
        spawn("run", move || {
            if let Ok(status) = child.wait() {
                let _ = to_main.send(Event::ChildEnded(status));
            }
        })?;
        Ok(pid)
    }

    /// The next event; `None` when `due` comes first.
    fn next(&self, due: Option<Instant>) -> Option<Event> {
        match due {
            Some(due) => self.receiver.recv_timeout(due.saturating_duration_since(Instant::now())).ok(),
            None => self.receiver.recv().ok(),
        }
    }
}

/// Starts a thread that waits for one thing.
pub(super) fn spawn(name: &str, wait: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// A server that is ready, with what must outlive it.
pub(super) struct Running {
    pub(super) server: Server,
    pub(super) pid_file: Option<PidFile>,
    pub(super) stats_socket: Option<PathGuard>,
    pub(super) encryption: Option<Encryption>,
    /// The command of `--run`, until it ended.
    pub(super) child: Option<Pid>,
}

impl Running {
    /// Serves until there is a reason to end; then the exit code.
    pub(super) fn watch(mut self, events: Events, mut report: Report) -> anyhow::Result<ExitCode> {
        let mut code = 0;
        let mut draining = false;
        let mut serving = true;
        while serving || self.child.is_some() {
            match events.next(report.due()) {
                None => report.interval(self.server.snapshot()),
                Some(Event::Signal(SIGUSR1)) => report.print_table(&self.server.snapshot()),
                Some(Event::Signal(SIGHUP)) => tls::reload(self.encryption.as_ref()),
                Some(Event::Signal(_)) if draining => {
                    tracing::warn!("second signal: ending at once");
                    self.server.stop();
                    self.signal_child(Signal::KILL);
                }
                Some(Event::Signal(_)) => {
                    tracing::info!("draining: connections may finish what they began");
                    draining = true;
                    self.drain();
                    self.signal_child(Signal::TERM);
                }
                Some(Event::ChildEnded(status)) => {
                    code = run::exit_code(status);
                    self.child = None;
                    self.drain();
                }
                Some(Event::StatsWanted(reader)) => {
                    // It may have gone.
                    let _ = reader.send(self.server.snapshot());
                }
                Some(Event::ServerEnded) => serving = false,
            }
        }
        let last = self.server.snapshot();
        self.server.join()?;
        report.end(last)?;
        drop((self.pid_file, self.stats_socket));
        Ok(ExitCode::from(code))
    }

    fn signal_child(&self, signal: Signal) {
        if let Some(child) = self.child {
            // It may have ended this moment; then its event is on the way.
            let _ = kill_process(child, signal);
        }
    }

    fn drain(&self) {
        // Only systemd listens to this; without it there is nobody to tell.
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        self.server.drain();
    }
}
