//! The server: the only place that knows protocol and storage.
//!
//! ```text
//!   Server (any thread)                     shard 0                    shard 1 ..
//!   start, snapshot, drain, stop  letters   accept --descriptor----->  adopt
//!        '------------------------------->  adopt
//!                                            |
//!   per connection:   negotiate -> receive ---> command ---> backend
//!                                   ^  slot        |
//!                                   '---- send <---' reply queue
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `config` | what can be set, every limit |
//! | `export` | the table of exports |
//! | `shard`, `accept`, `transport` | a shard's life, where connections come from, what their sockets are |
//! | `peer`, `authorise`, `gate` | who is at the other end, the rules about it, and what it gets to see by them |
//! | `negotiate`, `secure` | the handshake on a socket, and TLS |
//! | `receive` | bytes to requests, admission, back-pressure |
//! | `command` | every command |
//! | `send` | replies out |
//! | `conn` | what these share for one connection |
//!
//! May be imported by `cli`, `control`; imports `net`, `backend`, `proto`, `rt`, `metrics`, `sys`.
//!
//! Invariants: a connection never leaves its shard; every admitted request is answered exactly once; what a client can
//! make us hold is in [`Limits`].

mod accept;
mod authorise;
mod command;
mod config;
mod conn;
mod export;
mod gate;
mod negotiate;
mod peer;
mod receive;
mod secure;
mod send;
mod shard;
#[cfg(test)]
mod tests;
mod transport;

use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;

pub use crate::rt::Poll;
pub use authorise::{Decision, Right, Rule, RuleError, Rules, Verdict};
pub use config::{Config, Limits, Sending, ZeroCopy};
pub use peer::{Address, Certificate, CertificateError, Channel, Peer};
pub use secure::Encryption;

use crate::backend::OpenError;
use crate::metrics::Snapshot;
use crate::net::listen::Listener;
use crate::rt::caps::{self, Capabilities, Unsupported};
use crate::rt::{self, Doorbell, Remote};
use export::Table;
use shard::{Phase, ShardState, with_state};

/// Payload memory that is registered with the ring where an export uses direct I/O.
const REGISTERED_MEMORY: usize = 16 << 20;

/// The least RLIMIT_NOFILE with which a server starts: the kernel holds a shard's table of files to it.
pub const DESCRIPTORS_MIN: u32 = rt::FILES_MAX;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// This kernel, or this process's limits, do not allow a ring.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// An export cannot be opened.
    #[error(transparent)]
    Export(#[from] OpenError),
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// A thread cannot be started or set up.
    #[error("cannot start shard {shard}: {error}")]
    Shard {
        /// Which.
        shard: usize,
        /// Why.
        error: io::Error,
    },
}

/// A running server.
pub struct Server {
    directory: Arc<Directory>,
    threads: Vec<JoinHandle<()>>,
    names: Vec<String>,
    capabilities: Capabilities,
    shards_described: String,
    ended: Ended,
}

/// What shards know of each other: addresses, and how many connections each has.
struct Directory {
    shards: Vec<Place>,
    open: AtomicUsize,
}

#[derive(Default)]
struct Place {
    remote: OnceLock<Remote>,
    connections: AtomicUsize,
    /// The metrics a shard left when it ended.
    last: Mutex<Option<Snapshot>>,
}

/// Tells when all shards have ended.
#[derive(Clone)]
pub struct Ended {
    running: Arc<(Mutex<usize>, Condvar)>,
}

impl Ended {
    /// Blocks until every shard has ended.
    pub fn wait(&self) {
        let (running, changed) = &*self.running;
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        while *running > 0 {
            running = changed.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn one_less(&self) {
        let (running, changed) = &*self.running;
        *running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        changed.notify_all();
    }
}

impl Server {
    /// Opens the exports and starts the shards; when it returns, connections are accepted.
    ///
    /// # Errors
    /// [`StartError`]: nothing runs then.
    pub fn start(config: Config) -> Result<Self, StartError> {
        check(&config)?;
        let capabilities = caps::probe()?;
        let table = Arc::new(Table::open(&config.exports, config.limits.payload_length_max, config.rules)?);
        let cpus = crate::sys::affinity::allowed().map_err(|error| StartError::Shard { shard: 0, error })?;
        let count = config.shards.unwrap_or(cpus.len()).max(1);
        let directory = Arc::new(Directory {
            shards: std::iter::repeat_with(Place::default).take(count).collect(),
            open: AtomicUsize::new(0),
        });
        let names = table.names();
        let direct = config.exports.iter().any(|spec| spec.options.direct);
        let ended = Ended { running: Arc::new((Mutex::new(count), Condvar::new())) };
        let mut server = Self {
            directory,
            threads: Vec::with_capacity(count),
            names,
            shards_described: String::new(),
            capabilities,
            ended,
        };
        let mut listeners = config.listeners;
        // The last shard to start is the first, which accepts: by then all others can take connections.
        for index in (0..count).rev() {
            let cpu = if config.pin { Some(cpus[index % cpus.len()]) } else { None };
            let runtime = rt::Config {
                cpu,
                payload_memory_max: config.limits.payload_memory_max,
                registered_memory: if direct { REGISTERED_MEMORY } else { 0 },
                doorbell: Doorbell::choose(&server.capabilities),
                poll: config.poll,
                sqpoll: config.sqpoll,
                busy_poll: config.busy_poll,
                ..rt::Config::default()
            };
            let seed = Seed {
                index,
                runtime,
                limits: config.limits.clone(),
                sending: config.sending,
                oldstyle: config.oldstyle,
                encryption: config.encryption.clone(),
                table: Arc::clone(&table),
                directory: Arc::clone(&server.directory),
                listeners: if index == 0 { std::mem::take(&mut listeners) } else { Vec::new() },
                ended: server.ended.clone(),
            };
            match seed.start() {
                Ok(thread) => server.threads.push(thread),
                Err(error) => {
                    server.stop();
                    return Err(error);
                }
            }
        }
        let pinned = if config.pin { format!(", pinned to CPUs {cpus:?} in turn") } else { String::new() };
        let submit = config.sqpoll.map_or("", |_| ", a kernel thread submits for each (SQPOLL)");
        server.shards_described = format!("shards                  {count}{pinned}{submit}");
        Ok(server)
    }

    /// What the kernel can do and how the shards are laid out, a line each.
    pub fn capabilities(&self) -> String {
        format!("{}\n{}", self.capabilities, self.shards_described)
    }

    /// Names of the exports; the index is their number in a [`Snapshot`].
    pub fn export_names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// Counters and histograms of all shards, merged. Shards go on meanwhile; each copies its own when it gets to it.
    pub fn snapshot(&self) -> Snapshot {
        let mut merged = Snapshot::new(self.names.len());
        let answers: Vec<_> = self.directory.shards.iter().map(Place::ask_for_snapshot).collect();
        for (place, answer) in self.directory.shards.iter().zip(answers) {
            let snapshot = answer
                .and_then(|answer| answer.recv().ok())
                .or_else(|| place.last.lock().unwrap_or_else(PoisonError::into_inner).clone());
            if let Some(snapshot) = snapshot {
                merged.merge(&snapshot);
            }
        }
        merged
    }

    /// Begins to drain: no new connections; requests in flight are answered, later ones refused with ESHUTDOWN;
    /// connections at rest are closed, all of them after `drain_timeout`.
    pub fn drain(&self) {
        self.enter(Phase::Draining);
    }

    /// Closes everything now.
    pub fn stop(&self) {
        self.enter(Phase::Stopping);
    }

    /// Something to wait for the end with, from any thread.
    pub fn ended(&self) -> Ended {
        self.ended.clone()
    }

    /// Waits for all shards to end.
    ///
    /// # Errors
    /// When a shard panicked, which is our error.
    pub fn join(self) -> io::Result<()> {
        for thread in self.threads {
            thread.join().map_err(|_| io::Error::other("a shard ended by a panic"))?;
        }
        Ok(())
    }

    fn enter(&self, phase: Phase) {
        for place in &self.directory.shards {
            if let Some(remote) = place.remote.get() {
                remote.post(move || with_state(|shard| shard.enter(phase)));
            }
        }
    }
}

fn check(config: &Config) -> Result<(), StartError> {
    let refuse = |text: String| Err(StartError::Config(text));
    let limits = &config.limits;
    crate::backend::check_names(&config.exports).map_err(|error| StartError::Config(error.to_string()))?;
    if config.oldstyle && config.exports.len() != 1 {
        let count = config.exports.len();
        return refuse(format!("--oldstyle serves exactly one export, and {count} were given"));
    }
    for spec in &config.exports {
        let Some(upstream) = spec.source.upstream() else { continue };
        if let Some(own) = config.listeners.iter().find(|own| upstream.address.leads_to(&own.bound)) {
            let (name, own) = (&spec.name, &own.bound);
            return refuse(format!(
                "export `{name}` is to be had from {upstream}, where this server itself listens ({own})"
            ));
        }
    }
    if config.oldstyle && config.encryption.is_some() {
        return refuse(
            "--oldstyle has no TLS: its handshake cannot begin it; choose one of the two".to_owned(),
        );
    }
    if config.encryption.is_none()
        && let Some(spec) = config.exports.iter().find(|spec| spec.options.tls)
    {
        return refuse(format!(
            "the export `{}` has tls=require, and the server has no TLS: add --tls on and --tls-certificates",
            spec.name
        ));
    }
    let least = 4 * limits.payload_length_max as usize;
    if limits.payload_memory_max < least || limits.payload_length_max as usize > rt::CAPACITY_MAX {
        return refuse(format!(
            "payload memory of {} bytes is below the {least} that four requests of the maximum payload take",
            limits.payload_memory_max
        ));
    }
    Ok(())
}

impl Directory {
    fn remote(&self, index: usize) -> &Remote {
        self.shards[index].remote.get().expect("shards that accept start last")
    }

    /// Counts one more connection on the shard with the fewest; `None` when there are `max` already.
    fn choose(&self, max: u32) -> Option<usize> {
        if self.open.load(Ordering::Relaxed) >= max as usize {
            return None;
        }
        let loads = self.shards.iter().map(|place| place.connections.load(Ordering::Relaxed));
        let (index, _) = loads.enumerate().min_by_key(|(_, load)| *load)?;
        self.open.fetch_add(1, Ordering::Relaxed);
        self.shards[index].connections.fetch_add(1, Ordering::Relaxed);
        Some(index)
    }

    /// Counts one less on a shard.
    fn left(&self, index: usize) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.shards[index].connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    fn ask_for_snapshot(&self) -> Option<mpsc::Receiver<Snapshot>> {
        let (send, receive) = mpsc::channel();
        let posted = self.remote.get()?.post(move || {
            with_state(|shard| {
                // The asker may have gone.
                let _ = send.send(shard.metrics.borrow().snapshot());
            });
        });
        posted.then_some(receive)
    }
}

/// A shard that panicked takes the process with it: its clients would wait for ever, and nothing it owned is in a
/// state to go on from.
struct Fuse;

impl Drop for Fuse {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// What a shard's thread starts from.
struct Seed {
    index: usize,
    runtime: rt::Config,
    limits: Limits,
    sending: Sending,
    oldstyle: bool,
    encryption: Option<Encryption>,
    table: Arc<Table>,
    directory: Arc<Directory>,
    listeners: Vec<Listener>,
    ended: Ended,
}

impl Seed {
    /// Starts the thread and waits until its shard serves.
    fn start(self) -> Result<JoinHandle<()>, StartError> {
        let index = self.index;
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(move || self.run(&ready))
            .map_err(|error| StartError::Shard { shard: index, error })?;
        match is_ready.recv() {
            Ok(Ok(())) => Ok(thread),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StartError::Shard { shard: index, error: io::Error::other("its thread died") }),
        }
    }

    fn run(self, ready: &mpsc::Sender<Result<(), StartError>>) {
        let Self {
            index,
            runtime,
            limits,
            sending,
            oldstyle,
            encryption,
            table,
            directory,
            listeners,
            ended,
        } = self;
        let _fuse = Fuse;
        if let Some(cpu) = runtime.cpu
            && let Err(error) = crate::sys::affinity::pin(cpu)
        {
            tracing::warn!("shard {index} cannot be pinned to CPU {cpu}: {error}");
        }
        let tell = ready.clone();
        let ran = rt::run(&runtime, move || async move {
            let state = match ShardState::new(
                index,
                limits,
                sending,
                oldstyle,
                encryption,
                table,
                Arc::clone(&directory),
            ) {
                Ok(state) => state,
                Err(error) => {
                    let _ = tell.send(Err(StartError::Shard { shard: index, error }));
                    return;
                }
            };
            // First of all letters can arrive, then others are told so.
            let place = &directory.shards[index];
            let _ = place.remote.set(rt::remote());
            let _ = tell.send(Ok(()));
            let metrics = Rc::clone(&state);
            state.run(listeners).await;
            let last = metrics.metrics.borrow().snapshot();
            *place.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        });
        if let Err(error) = ran {
            let _ = ready.send(Err(error.into()));
        }
        ended.one_less();
    }
}
