//! A connection that comes back.
//!
//! ```text
//!                 .----------- connected again, export unchanged ----------.
//!                 v                                                        |
//!   open ---> Connected --lost--> Wait --reconnect_delay is over--> NoWait-'   attempts go on in both, at growing
//!                 |                 |                                  |       intervals
//!                 |                 '--- requests wait                 '--- requests fail
//!                 '--protocol broken, export changed, disconnect, abort--> Quit
//! ```
//!
//! One task per lane (`keep`) makes its connections and runs them. Without a `reconnect_delay` the state after a loss is
//! NoWait at once.
//!
//! A request that was in flight when its connection broke is sent again, so it may be carried out twice. The server of a
//! connection that we gave up by `request_timeout` may still carry out what it had received, later than what is sent on
//! the next connection: set that timeout where a late write does no harm, or where what serves the export is fenced.

use std::cell::{Cell, Ref, RefCell};
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use super::connection::Connection;
use super::error::{ConnectError, Error};
use super::options::Options;
use super::pipelined::{End, Pipelined};
use super::uri::Uri;
use crate::proto::{BlockSizes, DialError, Dialect, Link, TransmissionFlags};
use crate::rt::sync::{Either, Event, select};
use crate::rt::{self, timer};

/// The first pause between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Attempts become rarer up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A lane's first connection belongs to the client's beginning if it is made within so long: no server restarts faster
/// without ending the connections that it has.
const BEGINNING_MAX: Duration = Duration::from_secs(1);

/// What the lanes of one client share.
pub(super) struct Common {
    pub(super) uri: Uri,
    pub(super) options: Options,
    /// What was agreed on at first; later connections must not offer less.
    pub(super) link: Link,
    /// A lane changed its state.
    pub(super) changed: Event,
    pub(super) opened_ns: u64,
    /// Connections made since, beyond those of the beginning.
    pub(super) reconnects: Cell<u64>,
}

/// What a lane can do for a request.
#[derive(Clone)]
pub(super) enum State {
    /// Carry it.
    Connected(Rc<Pipelined>),
    /// Let it wait for the next connection.
    Wait,
    /// Nothing, for now; why.
    NoWait(String),
    /// Nothing ever again.
    Quit(Error),
}

/// One connection of a client and those that follow it.
pub(super) struct Lane {
    common: Rc<Common>,
    state: RefCell<State>,
    losses: Cell<u64>,
    over: Cell<bool>,
}

impl Lane {
    /// Starts with a connection, or with the attempt to make one.
    pub(super) fn start(common: &Rc<Common>, first: Option<Connection>) -> Rc<Self> {
        let state = RefCell::new(State::NoWait("it was never made".to_owned()));
        let lane =
            Rc::new(Self { common: Rc::clone(common), state, losses: Cell::new(0), over: Cell::new(false) });
        let kept = Rc::clone(&lane);
        rt::spawn(async move {
            keep(&kept, first).await;
            kept.over.set(true);
            kept.common.changed.notify();
        });
        lane
    }

    /// Whether the last connection has ended and no other follows.
    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    pub(super) fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// Ends politely: what is in flight is answered first.
    pub(super) fn leave(&self) {
        if self.has_quit() {
            return;
        }
        if let State::Connected(pipelined) = self.state.replace(State::Quit(Error::Closed)) {
            pipelined.leave();
        }
        self.common.changed.notify();
    }

    /// Ends at once, with `error` for all that comes later.
    pub(super) fn quit(&self, error: Error) {
        let before = self.state.replace(State::Quit(error));
        if let State::Connected(pipelined) = before {
            pipelined.cut(End::Left);
        }
        self.common.changed.notify();
    }

    fn enter(&self, state: State) {
        *self.state.borrow_mut() = state;
        self.common.changed.notify();
    }

    fn has_quit(&self) -> bool {
        matches!(*self.state.borrow(), State::Quit(_))
    }

    /// Resolves when the lane has quit.
    async fn quitting(&self) {
        loop {
            let changed = self.common.changed.wait();
            if self.has_quit() {
                return;
            }
            changed.await;
        }
    }

    /// The connection is gone: requests wait for the next one, for as long as they may.
    fn lose(self: &Rc<Self>, cause: String) {
        tracing::warn!("{}: the connection is lost: {cause}", self.common.address());
        let delay = self.common.options.reconnect_delay;
        let loss = self.losses.get() + 1;
        self.losses.set(loss);
        if delay.is_zero() {
            self.enter(State::NoWait(cause));
            return;
        }
        self.enter(State::Wait);
        let lane = Rc::clone(self);
        rt::spawn(async move {
            select(timer::sleep(delay), lane.quitting()).await;
            if lane.losses.get() == loss && matches!(*lane.state(), State::Wait) {
                lane.enter(State::NoWait(format!("{cause}; no other within {} ms", delay.as_millis())));
            }
        });
    }

    /// Tries until there is a connection; `None` when the lane has quit meanwhile.
    async fn reconnect(&self, mut pause: Duration) -> Option<Connection> {
        loop {
            if !pause.is_zero() {
                select(timer::sleep(pause), self.quitting()).await;
            }
            pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            let attempt = match select(self.common.connect(), self.quitting()).await {
                Either::First(attempt) => attempt,
                Either::Second(()) => return None,
            };
            match attempt {
                Ok(connection) => match changed(&self.common.link, &connection.link) {
                    None => return Some(connection),
                    Some(what) => {
                        connection.leave().await;
                        self.quit(Error::Changed { address: self.common.address(), what });
                        return None;
                    }
                },
                Err(ConnectError::Dial { error: DialError::Violation(violation), address }) => {
                    self.quit(Error::Violation { address, violation });
                    return None;
                }
                // Even a refusal may pass: a server that restarts gets its exports one after another.
                Err(error) => {
                    if let State::NoWait(cause) = &mut *self.state.borrow_mut() {
                        *cause = error.to_string();
                    }
                }
            }
        }
    }
}

async fn keep(lane: &Rc<Lane>, first: Option<Connection>) {
    let mut next = first;
    let mut is_first = true;
    let mut pause = Duration::ZERO;
    loop {
        let connection = match next.take() {
            Some(connection) => connection,
            None => match Box::pin(lane.reconnect(pause)).await {
                Some(connection) => connection,
                None => return,
            },
        };
        // Counted before anything is sent on it.
        if !mem::take(&mut is_first) || lane.common.is_past_beginning() {
            lane.common.reconnects.update(|count| count + 1);
        }
        if lane.has_quit() {
            connection.leave().await;
            return;
        }
        if lane.losses.get() > 0 {
            tracing::info!("{}: connected again", lane.common.address());
        }
        let options = &lane.common.options;
        let (pipelined, inbox) = Pipelined::new(connection, &options.contexts, options.window);
        lane.enter(State::Connected(Rc::clone(&pipelined)));
        let end = pipelined.run(inbox, options.request_timeout).await;
        if lane.has_quit() {
            return;
        }
        match end {
            End::Lost(cause) => lane.lose(cause),
            End::Left => lane.lose("it was left".to_owned()),
            End::Violation(violation) => {
                let address = lane.common.address();
                return lane.enter(State::Quit(Error::Violation { address, violation }));
            }
        }
        // A server that takes connections and drops them again is not asked in a tight loop.
        pause =
            if pipelined.has_answered() { Duration::ZERO } else { (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX) };
    }
}

impl Common {
    pub(super) fn address(&self) -> String {
        self.uri.address.to_string()
    }

    fn is_past_beginning(&self) -> bool {
        u128::from(rt::clock_ns().saturating_sub(self.opened_ns)) > BEGINNING_MAX.as_nanos()
    }

    /// One attempt.
    pub(super) async fn connect(&self) -> Result<Connection, ConnectError> {
        connect(&self.uri, &self.options).await
    }
}

/// One attempt to connect to an export.
pub(super) async fn connect(uri: &Uri, options: &Options) -> Result<Connection, ConnectError> {
    let dialer = options.dialer(&uri.export);
    let connection =
        Connection::open_within(uri, dialer, options.handshake_timeout, options.keepalive).await?;
    let has = |name: &&String| connection.link.contexts.iter().any(|(_, own)| own == *name);
    if let Some(context) = options.unwanted_contexts.iter().find(has).cloned() {
        connection.leave().await;
        return Err(ConnectError::Unwanted { address: uri.address.to_string(), context });
    }
    Ok(connection)
}

/// What an export no longer is or has, in words. Requests were made on the strength of what was agreed on at first, so
/// more is fine and less is not.
pub(crate) fn changed(before: &Link, now: &Link) -> Option<String> {
    if before.size != now.size {
        return Some(format!("it had {} bytes and now has {}", before.size, now.size));
    }
    if before.tls && !now.tls {
        return Some("it was reached by TLS, which it no longer offers".to_owned());
    }
    let only_told =
        TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY | TransmissionFlags::ROTATIONAL;
    let is_read_only = |link: &Link| link.flags.contains(TransmissionFlags::READ_ONLY);
    if is_read_only(now) && !is_read_only(before) {
        return Some("it has become read-only".to_owned());
    }
    let lost = before.flags.without(now.flags).without(only_told);
    if !lost.is_empty() {
        return Some(format!("it no longer offers {lost}"));
    }
    let lacks = |(_, name): &&(u32, String)| !now.contexts.iter().any(|(_, other)| other == name);
    if let Some((_, name)) = before.contexts.iter().find(lacks) {
        return Some(format!("it no longer has the meta context {name}"));
    }
    if rank(now.dialect) < rank(before.dialect) {
        return Some(format!("it spoke {:?} headers and now {:?} ones", before.dialect, now.dialect));
    }
    let sizes = |link: &Link| link.block.unwrap_or_default();
    let (BlockSizes { minimum, maximum, .. }, new) = (sizes(before), sizes(now));
    if new.minimum > minimum || new.maximum < maximum {
        return Some(format!(
            "its requests went from {minimum} to {maximum} bytes and now from {} to {}",
            new.minimum, new.maximum
        ));
    }
    None
}

const fn rank(dialect: Dialect) -> u8 {
    match dialect {
        Dialect::Simple => 0,
        Dialect::Structured => 1,
        Dialect::Extended => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            tls: false,
            dialect: Dialect::Structured,
            size: 1 << 20,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
            block: None,
            name: None,
            description: None,
            contexts: vec![(3, "base:allocation".to_owned())],
        }
    }

    #[test]
    fn less_than_before_is_a_change_and_more_is_none() {
        let more = Link {
            dialect: Dialect::Extended,
            flags: link().flags | TransmissionFlags::SEND_TRIM,
            contexts: vec![(9, "x:y".to_owned()), (0, "base:allocation".to_owned())],
            ..link()
        };
        assert_eq!(changed(&link(), &link()), None);
        assert_eq!(changed(&link(), &more), None);
        let block = Some(BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 25 });
        let cases = [
            (Link { size: 1 << 21, ..link() }, "1048576 bytes and now has 2097152"),
            (Link { flags: link().flags | TransmissionFlags::READ_ONLY, ..link() }, "read-only"),
            (Link { flags: TransmissionFlags::HAS_FLAGS, ..link() }, "SEND_FLUSH"),
            (Link { contexts: Vec::new(), ..link() }, "base:allocation"),
            (Link { dialect: Dialect::Simple, ..link() }, "Simple"),
            (Link { block, ..link() }, "from 512"),
        ];
        for (now, part) in cases {
            let what = changed(&link(), &now).expect("a change");
            assert!(what.contains(part), "{what}");
        }
        let secure = Link { tls: true, ..link() };
        assert!(changed(&secure, &link()).expect("a change").contains("TLS"));
        assert_eq!(changed(&link(), &secure), None, "safer than before");
        let read_only = Link { flags: link().flags | TransmissionFlags::READ_ONLY, ..link() };
        assert_eq!(changed(&read_only, &link()), None, "writable now, yet nobody here writes");
    }
}
