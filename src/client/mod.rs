//! The other end: an NBD client on the ring runtime, for programs of any kind.
//!
//! ```text
//!   Client (cheap to clone) --bounds: split, widen--> lanes, by load --> reconnect: a connection that comes back
//!                                                                            |
//!             uri, connection: socket and proto::Dialer ---------------> pipelined: many requests in flight
//!                                                                            |
//!                                                                        session (sans-io): which reply is whose
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `uri` | addresses, in every form that is in use |
//! | `options`, `error` | what can be set; what can go wrong |
//! | `security` | TLS: whether, whom to trust, under which name |
//! | `connection` | a socket and a handshake on it; looking at what a server exports |
//! | `session` | requests in flight by cookie, without I/O |
//! | `pipelined` | one connection with many requests in flight |
//! | `reconnect` | a connection that comes back, and its states |
//! | `bounds`, `extents` | block sizes and block status, without I/O |
//! | `commands`, `status` | every command |
//!
//! May be imported by `load`, `copy`, `attach`, `backend`, `cli`; imports `net`, `proto`, `rt`, `sys`. `load` stands on
//! [`Connection`] and [`Session`] alone: a generator needs neither a task nor a buffer nor a repetition for each request,
//! and it measures servers with as little of a client as will do.
//!
//! A client lives on the thread whose ring it was opened on. Clone it into as many tasks as there is to do at a time:
//! requests are pipelined, answers come in any order, buffers are handed in and come back.
//!
//! # Examples
//! ```
//! use ringnbd::client::{Buffer, Client};
//! use ringnbd::proto::CommandFlags;
//! use ringnbd::rt;
//! # use ringnbd::{backend::ExportSpec, net::listen::Listen, server::{Config, Server}};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let socket = dir.path().join("socket");
//! # let exports = vec![ExportSpec::parse("disk=memory:1M")?];
//! # let listeners = Listen::parse(&format!("unix:{}", socket.display()))?.bind(16)?;
//! # let config = Config { shards: Some(1), pin: false, ..Config::new(exports, listeners) };
//! # let server = Server::start(config)?;
//! let uri = format!("nbd+unix:///disk?socket={}", socket.display());
//!
//! rt::block_on(async move {
//!     let client = Client::connect(&uri).await?;
//!     assert_eq!(client.size(), 1 << 20);
//!
//!     client.write_at(4096, b"hello", CommandFlags::FUA).await?;
//!
//!     // Two requests at once, into buffers of the runtime's.
//!     let (one, two) = (Buffer::acquire(512).await, Buffer::acquire(512).await);
//!     let reads = [(4096, one), (8192, two)].map(|(offset, buffer)| client.read(offset, buffer));
//!     let mut contents = Vec::new();
//!     for (result, buffer) in rt::join_all(reads).await {
//!         result?;
//!         contents.push(buffer);
//!     }
//!     assert_eq!(&contents[0][..5], b"hello");
//!     assert!(contents[1].iter().all(|byte| *byte == 0));
//!
//!     client.disconnect().await;
//!     Ok::<_, Box<dyn std::error::Error>>(())
//! })??;
//! # server.stop();
//! # server.join()?;
//! # Ok(())
//! # }
//! ```
//!
//! By TLS, with whatever the URI says about certificates; see [`Security`]:
//! ```no_run
//! use ringnbd::client::{Client, ConnectError};
//!
//! # async fn open() -> Result<(), ConnectError> {
//! let uri = "nbds://storage.example/disk?tls-certificates=/etc/pki/nbd";
//! match Client::connect(uri).await {
//!     Ok(client) => assert!(client.link().tls),
//!     // "storage.example:10809: TLS: server certificate signed by unknown CA", "... revoked", ...
//!     Err(error @ (ConnectError::Tls { .. } | ConnectError::Certificates(_))) => eprintln!("{error}"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A client that outlives restarts of its server, with several connections if the server says that they are safe:
//! ```no_run
//! use std::time::Duration;
//! use ringnbd::client::{Client, Options, Uri};
//!
//! # async fn open() -> Result<Client, ringnbd::client::ConnectError> {
//! let mut options = Options::default();
//! options.connections = 4;
//! options.open_timeout = Duration::from_secs(10);
//! options.reconnect_delay = Duration::from_secs(60);
//! Client::open(&Uri::parse("nbd://storage/disk")?, options).await
//! # }
//! ```

mod bounds;
mod commands;
mod connection;
mod error;
mod extents;
mod options;
mod pipelined;
mod reconnect;
mod security;
mod session;
mod status;
mod uri;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

pub use connection::{Connection, survey};
pub use error::{ConnectError, Error};
pub use extents::{Extent, Status};
pub use options::{BelowMinimum, Options};
pub(crate) use reconnect::changed;
pub use security::Security;
pub use session::Session;
pub use uri::{Address, Uri, UriError};

pub use crate::net::{Inbox, Line};
pub use crate::proto::reply_decode::ReplyError;
pub use crate::proto::{
    AllocationFlags, CommandFlags, Errno, Found, Link, SurveyConfig, TransmissionFlags, Which,
};
pub use crate::rt::{Buffer, block_on};

use crate::proto::BlockSizes;
use crate::rt::sync::{Event, Semaphore};
use crate::rt::{self, timer};
use bounds::Bounds;
use pipelined::{Ask, End, Fault, Pipelined, Told};
use reconnect::{Common, Lane, State};

/// How often one request is sent again after its connection broke. A request that breaks every server is given up.
const REPEATS_MAX: u32 = 16;
/// Between attempts to open.
const OPEN_PAUSE: Duration = Duration::from_millis(50);

/// An export, open. Cloning gives another handle to the same connections; with the last handle they end.
#[derive(Clone)]
pub struct Client {
    inner: Rc<Inner>,
}

struct Inner {
    common: Rc<Common>,
    lanes: Vec<Rc<Lane>>,
    bounds: Bounds,
    contexts: Vec<String>,
    /// Whose turn it is to change a part of a block.
    widening: Semaphore,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.leave());
    }
}

impl Client {
    /// Opens the export that a URI names, as [`Options::default`] says.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(uri: &str) -> Result<Self, ConnectError> {
        Self::open(&Uri::parse(uri)?, Options::default()).await
    }

    /// Opens an export.
    ///
    /// # Errors
    /// [`ConnectError`]: of the last attempt, where there is an `open_timeout`.
    pub async fn open(uri: &Uri, options: Options) -> Result<Self, ConnectError> {
        let first = Box::pin(open_first(uri, &options)).await?;
        let link = first.link.clone();
        Ok(Self::start(uri, options, link, first))
    }

    /// Opens an export again, on this thread or with other options: requests are made on the strength of what was agreed
    /// on `before`, so it must not offer less.
    ///
    /// # Errors
    /// [`ConnectError::Changed`] where it does; else as [`Client::open`].
    pub async fn open_again(uri: &Uri, options: Options, before: &Link) -> Result<Self, ConnectError> {
        let first = Box::pin(open_first(uri, &options)).await?;
        if let Some(what) = changed(before, &first.link) {
            first.leave().await;
            return Err(ConnectError::Changed { address: uri.address.to_string(), what });
        }
        Ok(Self::start(uri, options, before.clone(), first))
    }

    fn start(uri: &Uri, options: Options, link: Link, first: Connection) -> Self {
        let several = link.flags.contains(TransmissionFlags::CAN_MULTI_CONN);
        let count = if several { options.connections.max(1) } else { 1 };
        let contexts = link.contexts.iter().map(|(_, name)| name.clone()).collect();
        let bounds = Bounds::of(&link);
        let common = Rc::new(Common {
            uri: uri.clone(),
            options,
            link,
            changed: Event::new(),
            opened_ns: rt::clock_ns(),
            reconnects: Cell::new(0),
        });
        let mut lanes = vec![Lane::start(&common, Some(first))];
        // The others connect meanwhile; a server that does not let them is still served by the first.
        lanes.extend((1..count).map(|_| Lane::start(&common, None)));
        let inner = Inner { common, lanes, bounds, contexts, widening: Semaphore::new(1) };
        Self { inner: Rc::new(inner) }
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.inner.bounds.size
    }

    /// What was agreed on when the client was opened.
    pub fn link(&self) -> &Link {
        &self.inner.common.link
    }

    /// Block sizes, where the server told none those that the protocol says to assume.
    pub fn block_sizes(&self) -> BlockSizes {
        self.link().block.unwrap_or_default()
    }

    /// Requests are made of blocks of this many bytes, a power of two; others cost reading what they leave of a block.
    pub fn minimum_block(&self) -> u64 {
        self.bounds().minimum
    }

    /// Whether the server offers all of `flags`.
    pub fn offers(&self, flags: TransmissionFlags) -> bool {
        self.link().flags.contains(flags)
    }

    /// Where the server is.
    pub fn address(&self) -> &Address {
        &self.inner.common.uri.address
    }

    /// Names of the meta contexts that were agreed on.
    pub fn contexts(&self) -> &[String] {
        &self.inner.contexts
    }

    /// Connections that are up.
    pub fn connections(&self) -> usize {
        self.inner.lanes.iter().filter(|lane| matches!(*lane.state(), State::Connected(_))).count()
    }

    /// Whether it is of no use any more: closed, or given up because of what the server did or became.
    pub fn is_over(&self) -> bool {
        self.inner.lanes.iter().any(|lane| matches!(*lane.state(), State::Quit(_)))
    }

    /// Connections made since the client was opened, beyond its first ones.
    ///
    /// When this grows the server may have restarted, and may then have lost what it had answered and not flushed. Whoever
    /// has to be sure writes that again: what was written before this had the value that it still has after a flush.
    pub fn reconnects(&self) -> u64 {
        self.inner.common.reconnects.get()
    }

    /// Waits until what is in flight is answered, then says goodbye on all connections. Later requests fail with
    /// [`Error::Closed`].
    pub async fn disconnect(&self) {
        let inner = &self.inner;
        inner.lanes.iter().for_each(|lane| lane.leave());
        loop {
            let changed = inner.common.changed.wait();
            if inner.lanes.iter().all(|lane| lane.is_over()) {
                return;
            }
            changed.await;
        }
    }

    /// Ends everything now: requests in flight, those that wait, attempts to reconnect. All of them fail with
    /// [`Error::Closed`].
    pub fn abort(&self) {
        self.inner.lanes.iter().for_each(|lane| lane.quit(Error::Closed));
    }

    fn options(&self) -> &Options {
        &self.inner.common.options
    }

    fn bounds(&self) -> Bounds {
        self.inner.bounds
    }

    async fn turn_to_widen(&self) -> Turn<'_> {
        self.inner.widening.acquire(1).await;
        Turn(&self.inner.widening)
    }

    /// Has a request answered: on the connection with the least to do, and if that breaks, on another or the next.
    async fn exchange(
        &self,
        ask: &Ask<'_>,
        mut buffer: Option<Buffer>,
    ) -> (Result<Told, Error>, Option<Buffer>) {
        let length = buffer.as_ref().map(|buffer| buffer.len());
        let repeats = !self.options().reconnect_delay.is_zero();
        let mut left = if repeats { REPEATS_MAX } else { 0 };
        loop {
            let pipelined = match self.choose().await {
                Ok(pipelined) => pipelined,
                Err(error) => return (Err(error), buffer),
            };
            let (result, back) = pipelined.call(ask, buffer).await;
            buffer = back;
            let error = match result {
                Ok(told) => return (Ok(told), buffer),
                Err(Fault::Refused(error)) if error.errno == Errno::ESHUTDOWN && left > 0 => {
                    // The server is going; what is in flight there is still answered.
                    pipelined.leave();
                    failed(ask, error)
                }
                Err(Fault::Refused(error)) => return (Err(failed(ask, error)), buffer),
                Err(Fault::NoContext) => return (Err(Error::NoContext(String::new())), buffer),
                Err(Fault::Lost) => match self.lost(&pipelined) {
                    error @ Error::Lost { .. } => error,
                    fatal => return (Err(fatal), buffer),
                },
            };
            if left == 0 || buffer.as_ref().map(|buffer| buffer.len()) != length {
                return (Err(error), buffer);
            }
            left -= 1;
        }
    }

    /// The connection with the least to do; waits for one where the rules of reconnecting say so.
    async fn choose(&self) -> Result<Rc<Pipelined>, Error> {
        let inner = &self.inner;
        loop {
            let changed = inner.common.changed.wait();
            let (mut best, mut waits, mut cause) = (None::<(usize, Rc<Pipelined>)>, false, None);
            for lane in &inner.lanes {
                match &*lane.state() {
                    State::Connected(pipelined) if pipelined.takes_calls() => {
                        let load = pipelined.load();
                        if best.as_ref().is_none_or(|(least, _)| load < *least) {
                            best = Some((load, Rc::clone(pipelined)));
                        }
                    }
                    State::Connected(_) | State::Wait => waits = true,
                    State::NoWait(why) => cause = Some(why.clone()),
                    State::Quit(error) => return Err(error.clone()),
                }
            }
            if let Some((_, pipelined)) = best {
                return Ok(pipelined);
            }
            if !waits {
                let address = inner.common.address();
                return Err(Error::Lost { address, cause: cause.unwrap_or_default() });
            }
            changed.await;
        }
    }

    /// Why a connection lost a request.
    fn lost(&self, pipelined: &Pipelined) -> Error {
        let address = self.inner.common.address();
        for lane in &self.inner.lanes {
            if let State::Quit(error) = &*lane.state() {
                return error.clone();
            }
        }
        match pipelined.end() {
            Some(End::Violation(violation)) => Error::Violation { address, violation },
            Some(End::Lost(cause)) => Error::Lost { address, cause },
            Some(End::Left) | None => Error::Lost { address, cause: "it was left".to_owned() },
        }
    }
}

/// Held while a part of a block is changed.
struct Turn<'a>(&'a Semaphore);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.release(1);
    }
}

fn failed(ask: &Ask<'_>, error: ReplyError) -> Error {
    Error::Failed { command: ask.command, offset: ask.offset, length: ask.length, error }
}

/// The first connection, in as many attempts as `open_timeout` allows.
async fn open_first(uri: &Uri, options: &Options) -> Result<Connection, ConnectError> {
    let limit_ns = u64::try_from(options.open_timeout.as_nanos()).unwrap_or(u64::MAX);
    let end_ns = rt::clock_ns().saturating_add(limit_ns);
    loop {
        let left = Duration::from_nanos(end_ns.saturating_sub(rt::clock_ns()));
        let limit =
            if limit_ns == 0 { options.handshake_timeout } else { left.min(options.handshake_timeout) };
        let attempt = Options { handshake_timeout: limit, ..options.clone() };
        match reconnect::connect(uri, &attempt).await {
            Err(error) if error.may_pass() && left > OPEN_PAUSE => timer::sleep(OPEN_PAUSE).await,
            outcome => return outcome,
        }
    }
}
