//! One shard: its connections, its view of the exports, its metrics, its end.
//!
//! ```text
//!   accept (shard 0) --least loaded--> adopt: handshake -> transmission -> closed
//!
//!   Serving --drain--> Draining --connections gone, or drain_timeout--> over
//!      '------stop---------'---> Stopping: sockets shut, a second for file operations --> over
//! ```
//!
//! Other threads post letters that run here and find this shard's state in a thread-local.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use super::Directory;
use super::config::{Limits, Sending};
use super::conn::{Connection, Link};
use super::export::{Export, Table};
use super::receive::End;
use super::secure::Encryption;
use super::transport::{self, Transport};
use super::{accept, negotiate, receive, secure, send};
use crate::metrics::{Counter, ShardMetrics};
use crate::net::Inbox;
use crate::net::listen::Listener;
use crate::rt::net::Socket;
use crate::rt::sync::Event;
use crate::rt::{self, timer};

/// How long a stop waits for what is in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a closed connection is read so that the peer can read our last words (a reset would destroy them).
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// Failures of requests that are logged per second; the rest are counted.
const FAILURES_LOGGED_PER_SECOND: u32 = 10;

/// Where a shard is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    Draining,
    Stopping,
}

/// What everything on a shard's thread shares.
pub(super) struct ShardState {
    pub(super) index: usize,
    pub(super) limits: Limits,
    pub(super) sending: Sending,
    pub(super) oldstyle: bool,
    pub(super) encryption: Option<Encryption>,
    pub(super) table: Arc<Table>,
    pub(super) directory: Arc<Directory>,
    pub(super) exports: Vec<Export>,
    pub(super) metrics: RefCell<ShardMetrics>,
    links: RefCell<Slab<Rc<Link>>>,
    phase: Cell<Phase>,
    changed: Event,
    failures: RefCell<RateLimit>,
}

thread_local! {
    static STATE: RefCell<Option<Rc<ShardState>>> = const { RefCell::new(None) };
}

/// Runs `letter` with this thread's shard, if it has not ended.
pub(super) fn with_state(letter: impl FnOnce(&Rc<ShardState>)) {
    let state = STATE.with(|state| state.borrow().clone());
    if let Some(state) = state {
        letter(&state);
    }
}

impl ShardState {
    pub(super) fn new(
        index: usize,
        limits: Limits,
        sending: Sending,
        oldstyle: bool,
        encryption: Option<Encryption>,
        table: Arc<Table>,
        directory: Arc<Directory>,
    ) -> std::io::Result<Rc<Self>> {
        let exports = table.attach()?;
        let state = Rc::new(Self {
            index,
            limits,
            sending,
            oldstyle,
            encryption,
            metrics: RefCell::new(ShardMetrics::new(exports.len())),
            exports,
            table,
            directory,
            links: RefCell::new(Slab::new()),
            phase: Cell::new(Phase::Serving),
            changed: Event::new(),
            failures: RefCell::new(RateLimit::default()),
        });
        STATE.with(|current| *current.borrow_mut() = Some(Rc::clone(&state)));
        Ok(state)
    }

    /// The shard's main future: accepts and serves until it has drained or was stopped.
    pub(super) async fn run(self: Rc<Self>, listeners: Vec<Listener>) {
        for listener in listeners {
            rt::spawn(accept::run(Rc::clone(&self), listener));
        }
        while self.is_serving() {
            self.changed.wait().await;
        }
        if timer::deadline(self.limits.drain_timeout, self.all_closed_or_stopping()).await.is_err() {
            tracing::warn!("shard {}: the drain timed out with connections still open", self.index);
        }
        self.enter(Phase::Stopping);
        self.shut_all();
        if timer::deadline(STOP_TIMEOUT, self.all_closed()).await.is_err() {
            tracing::warn!("shard {}: operations are stuck in the kernel; ending without them", self.index);
        }
        let closing = self.exports.iter().map(|export| export.backend.close());
        // Whoever does not hear the goodbye sees the end of the stream.
        let _ = timer::deadline(STOP_TIMEOUT, rt::join_all(closing)).await;
        STATE.with(|current| current.borrow_mut().take());
    }

    async fn all_closed(&self) {
        while !self.links.borrow().is_empty() {
            self.changed.wait().await;
        }
    }

    async fn all_closed_or_stopping(&self) {
        while !self.links.borrow().is_empty() && self.phase.get() != Phase::Stopping {
            self.changed.wait().await;
        }
    }

    /// Moves on to a later phase.
    pub(super) fn enter(&self, phase: Phase) {
        if self.phase.get() >= phase {
            return;
        }
        self.phase.set(phase);
        self.changed.notify();
        for (_, link) in self.links.borrow().iter() {
            link.phase_changed.notify();
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase.get() == Phase::Serving
    }

    /// Whether there is one connection and no other that could be waiting for its turn.
    pub(super) fn serves_one(&self) -> bool {
        self.links.borrow().len() == 1
    }

    pub(super) fn is_ending(&self) -> bool {
        self.phase.get() == Phase::Stopping
    }

    /// Resolves when the shard leaves the phase `Serving`.
    pub(super) async fn no_longer_serving(&self) {
        while self.is_serving() {
            self.changed.wait().await;
        }
    }

    fn shut_all(&self) {
        for (_, link) in self.links.borrow().iter() {
            if !link.evicted.replace(true) {
                self.count(Counter::Evicted);
                tracing::info!("{}: closed by the server's end", link.peer);
            }
            link.socket.shutdown();
        }
    }

    /// Closes every connection but `own` whose transfer has not moved for `patience`.
    pub(super) fn evict_stuck(&self, own: &Rc<Link>, patience: Duration) {
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let latest = rt::now_ns().saturating_sub(patience_ns);
        let is_stuck = |link: &Rc<Link>| {
            let moved = link.transfer_since.get().map(|since| since.max(link.socket.moved_ns()));
            moved.is_some_and(|moved| moved <= latest) && !Rc::ptr_eq(link, own) && !link.evicted.get()
        };
        for (_, link) in self.links.borrow().iter().filter(|(_, link)| is_stuck(link)) {
            link.evicted.set(true);
            self.count(Counter::Evicted);
            tracing::warn!(
                "{}: closed: its transfer did not move for {patience:?} while others waited for payload memory",
                link.peer
            );
            link.socket.shutdown();
        }
    }

    pub(super) fn count(&self, counter: Counter) {
        self.metrics.borrow_mut().count(counter);
    }

    /// Logs the real cause of a failed request, at most [`FAILURES_LOGGED_PER_SECOND`] times a second.
    pub(super) fn warn_of_failure(&self, cause: fmt::Arguments<'_>) {
        let suppressed = self.failures.borrow_mut().admit(rt::now_ns());
        match suppressed {
            Some(0) => tracing::warn!("{cause}"),
            Some(suppressed) => tracing::warn!("{cause} ({suppressed} more were not logged)"),
            None => {}
        }
    }

    /// Takes over an accepted connection, which the directory has counted for this shard already.
    pub(super) fn adopt(self: &Rc<Self>, fd: OwnedFd) {
        self.count(Counter::ConnectionsOpened);
        rt::spawn(serve_connection(Rc::clone(self), fd));
    }
}

/// A connection from the first byte to the last.
async fn serve_connection(shard: Rc<ShardState>, fd: OwnedFd) {
    let Transport { peer, way, lends } = transport::prepare(&fd, &shard.limits, shard.sending);
    let link = Rc::new(Link {
        socket: Rc::new(Socket::new(fd)),
        peer,
        way: Cell::new(way),
        lends: Cell::new(lends),
        tls: OnceCell::new(),
        transfer_since: Cell::new(None),
        phase_changed: Event::new(),
        evicted: Cell::new(false),
    });
    tracing::debug!("{}: connected, on shard {}", link.peer, shard.index);
    let key = shard.links.borrow_mut().insert(Rc::clone(&link));
    converse(&shard, &link).await;
    shard.links.borrow_mut().remove(key);
    shard.directory.left(shard.index);
    shard.count(Counter::ConnectionsClosed);
    tracing::debug!("{}: closed", link.peer);
    shard.changed.notify();
}

async fn converse(shard: &Rc<ShardState>, link: &Rc<Link>) {
    let mut inbox = Inbox::new(Rc::clone(&link.socket));
    let negotiation =
        timer::deadline(shard.limits.handshake_timeout, negotiate::run(shard, link, &mut inbox));
    let outcome = match negotiation.await {
        Ok(outcome) => outcome,
        Err(timer::Elapsed) => {
            shard.count(Counter::HandshakesTimedOut);
            tracing::info!("{}: no handshake within {:?}", link.peer, shard.limits.handshake_timeout);
            negotiate::Outcome::Failed
        }
    };
    match outcome {
        negotiate::Outcome::Transmit(session) => transmit(shard, link, inbox, session).await,
        negotiate::Outcome::Closed => linger(link, inbox).await,
        negotiate::Outcome::Failed => {
            shard.count(Counter::HandshakesFailed);
            linger(link, inbox).await;
        }
    }
}

async fn transmit(shard: &Rc<ShardState>, link: &Rc<Link>, mut inbox: Inbox, session: crate::proto::Session) {
    tracing::debug!("{}: export {}, {:?} replies", link.peer, session.export, session.dialect);
    let conn = Connection::new(Rc::clone(shard), Rc::clone(link), session);
    let sent_all = Rc::new(Event::new());
    let sending = Rc::new(Cell::new(true));
    let (notify, flag, sender) = (Rc::clone(&sent_all), Rc::clone(&sending), Rc::clone(&conn));
    rt::spawn(async move {
        send::run(sender).await;
        flag.set(false);
        notify.notify();
    });
    let end = receive::run(&conn, &mut inbox).await;
    conn.drained().await;
    conn.closing.set(true);
    conn.replies.notify();
    while sending.get() {
        sent_all.wait().await;
    }
    match end {
        End::Disconnect | End::Drained => secure::farewell(link).await,
        End::Gone { between_requests } => {
            shard.count(Counter::DisconnectsWithoutDisc);
            let place = if between_requests { "" } else { " in the middle of a request" };
            let cut_off = if inbox.was_cut_off() {
                shard.count(Counter::TlsCutOff);
                ", cut off: without close_notify"
            } else {
                ""
            };
            tracing::debug!("{}: went away without DISC{place}{cut_off}", link.peer);
            secure::farewell(link).await;
        }
        End::Close => linger(link, inbox).await,
    }
}

/// Ends our direction, then reads what the peer still sends for a moment: closing a TCP socket with unread bytes resets
/// it, and the peer would lose what we said last.
async fn linger(link: &Link, mut inbox: Inbox) {
    secure::farewell(link).await;
    if socket2::SockRef::from(link.socket.fd()).shutdown(std::net::Shutdown::Write).is_err() {
        return;
    }
    // Whether the peer ends, breaks or just goes on: after this moment it is closed.
    let _ = timer::deadline(LINGER, inbox.run_out(1 << 20)).await;
}

/// Admits a few events per second.
#[derive(Default)]
struct RateLimit {
    second: u64,
    admitted: u32,
    suppressed: u32,
}

impl RateLimit {
    /// `Some(n)`: log this one, `n` were held back before it.
    fn admit(&mut self, now_ns: u64) -> Option<u32> {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.admitted = 0;
        }
        if self.admitted >= FAILURES_LOGGED_PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.admitted += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_is_logged_ten_times_a_second() {
        let mut limit = RateLimit::default();
        let logged = (0..100).filter(|_| limit.admit(5).is_some()).count();
        assert_eq!(logged, 10);
        assert_eq!(limit.admit(1_000_000_000), Some(90));
        assert_eq!(limit.admit(1_000_000_001), Some(0));
    }
}
