//! `--stats-socket`: whoever connects gets all histograms so far (see [`write_totals`]) and the end of the stream.
//!
//! ```text
//!   reader --connect--> "stats" thread --Event::StatsWanted--> main thread: a snapshot
//!          <-- a log ---'            <-------------------------'
//! ```
//!
//! Nothing is read from a reader, and one that does not read is given up: it holds up the next reader, but never the
//! main thread or a shard.

use std::io::{self, BufWriter, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::watch::{self, Event};
use crate::metrics::{Snapshot, write_totals};
use crate::net::listen::{Listen, Listener, PathGuard};

/// Readers that the kernel keeps until it is their turn.
const BACKLOG: i32 = 16;
/// How long a reader may leave the socket full.
const PATIENCE: Duration = Duration::from_secs(2);

/// A socket that listens and is not yet answered.
pub(super) struct StatsSocket {
    listener: Listener,
}

impl StatsSocket {
    pub(super) fn bind(path: &Path) -> anyhow::Result<Self> {
        let listeners = Listen::Unix(path.to_path_buf()).bind(BACKLOG).context("--stats-socket")?;
        let listener = listeners.into_iter().next().context("--stats-socket: there is no socket")?;
        Ok(Self { listener })
    }

    /// Answers readers from here on. The socket's place in the file system goes with what this returns.
    pub(super) fn answer(
        self,
        export_names: Vec<String>,
        to_main: Sender<Event>,
    ) -> anyhow::Result<Option<PathGuard>> {
        let Listener { fd, guard, .. } = self.listener;
        let listener = UnixListener::from(fd);
        let started = Instant::now();
        watch::spawn("stats", move || {
            for stream in listener.incoming() {
                let Some(snapshot) = ask(&to_main) else { return };
                let answered = stream.and_then(|stream| {
                    stream.set_write_timeout(Some(PATIENCE))?;
                    let mut out = BufWriter::new(stream);
                    write_totals(&mut out, &snapshot, &export_names, started.elapsed())?;
                    out.flush()
                });
                if let Err(error) = answered {
                    tracing::debug!("a reader of --stats-socket went without its answer: {error}");
                }
            }
        })?;
        Ok(guard)
    }
}

/// A snapshot by the main thread; `None` when it has ended.
fn ask(to_main: &Sender<Event>) -> Option<Snapshot> {
    let (sender, receiver): (_, Receiver<Snapshot>) = channel();
    to_main.send(Event::StatsWanted(sender)).ok()?;
    receiver.recv().ok()
}

/// What the server behind `path` says.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    let mut text = String::new();
    io::Read::read_to_string(&mut stream, &mut text)?;
    Ok(text)
}
