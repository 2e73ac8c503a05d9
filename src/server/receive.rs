//! Requests in: bytes to [`Request`], admitted, given a slot of the window and a buffer, started.
//!
//! Back-pressure is to stop reading: with the window full, or no payload memory, the client's bytes stay in its socket.

use std::io;
use std::rc::Rc;

use super::command;
use super::conn::{Connection, Link, Pending};
use super::shard::ShardState;
use crate::metrics::Counter;
use crate::net::Inbox;
use crate::proto::{Admission, Command, CommandFlags, Dialect, Errno, Refusal, Request};
use crate::rt::sync::{Either, select};
use crate::rt::{self, Buffer, timer};

/// Why no further request is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client said DISC.
    Disconnect,
    /// The client went away: at a boundary of requests or in the middle of one.
    Gone {
        /// Nothing was cut off.
        between_requests: bool,
    },
    /// We end it, after the replies that are queued; the client may still be sending.
    Close,
    /// The server drains and the connection is at rest.
    Drained,
}

/// Reads requests until there is a reason to stop.
pub(super) async fn run(conn: &Rc<Connection>, inbox: &mut Inbox) -> End {
    let header_length = if conn.session.dialect == Dialect::Extended { 32 } else { 28 };
    let (mut started, mut bytes) = (0, 0_u64);
    loop {
        let (request, length) = match conn.session.decode(inbox.bytes()) {
            Ok(Some(decoded)) => decoded,
            Ok(None) => match more(conn, inbox, header_length).await {
                Ok(()) => {
                    (started, bytes) = (0, 0);
                    continue;
                }
                Err(end) => return end,
            },
            Err(violation) => {
                conn.shard.count(Counter::ProtocolViolations);
                tracing::debug!("{}: closing: {violation}", conn.link.peer);
                return End::Close;
            }
        };
        inbox.consume(length);
        let per_turn = requests_per_turn(conn, &request);
        if let Err(end) = take(conn, inbox, request).await {
            return end;
        }
        started += 1;
        bytes = bytes.saturating_add(request.length); // any number at all, where it was refused
        if bytes >= conn.shard.limits.bytes_per_turn {
            (started, bytes) = (0, 0);
            rt::line_empty().await;
        } else if started >= per_turn {
            (started, bytes) = (0, 0);
            rt::next_turn().await;
        }
    }
}

/// How many requests a turn has if it ends with this one.
fn requests_per_turn(conn: &Connection, request: &Request) -> usize {
    let limits = &conn.shard.limits;
    if request.command == Command::WRITE && conn.shard.serves_one() {
        limits.writes_per_turn
    } else {
        limits.requests_per_turn
    }
}

/// Waits for bytes of a request.
async fn more(conn: &Rc<Connection>, inbox: &mut Inbox, want: usize) -> Result<(), End> {
    let between_requests = inbox.bytes().is_empty();
    let arrived = arrival(&conn.shard, &conn.link, inbox, want, || conn.in_flight.get() == 0).await;
    match arrived {
        Arrival::Bytes => Ok(()),
        Arrival::End => Err(End::Gone { between_requests }),
        Arrival::Broken(error) => Err(gone(conn, &error, between_requests)),
        Arrival::Drained => Err(End::Drained),
    }
}

/// What came of waiting for bytes.
pub(super) enum Arrival {
    Bytes,
    /// The end of the stream.
    End,
    Broken(io::Error),
    /// The server drains, the connection is at rest, and nothing came for `drain_idle`.
    Drained,
}

/// Waits for bytes: for ever while the shard serves, then for `drain_idle` at a time.
pub(super) async fn arrival(
    shard: &ShardState,
    link: &Link,
    inbox: &mut Inbox,
    want: usize,
    at_rest: impl Fn() -> bool,
) -> Arrival {
    loop {
        let filled = if shard.is_serving() {
            match select(inbox.fill(want), link.phase_changed.wait()).await {
                Either::First(filled) => filled,
                Either::Second(()) => continue,
            }
        } else {
            match timer::deadline(shard.limits.drain_idle, inbox.fill(want)).await {
                Ok(filled) => filled,
                Err(timer::Elapsed) if at_rest() => return Arrival::Drained,
                Err(timer::Elapsed) => continue,
            }
        };
        return match filled {
            Ok(true) => Arrival::Bytes,
            Ok(false) => Arrival::End,
            Err(error) => Arrival::Broken(error),
        };
    }
}

/// Admits one request and starts it.
async fn take(conn: &Rc<Connection>, inbox: &mut Inbox, request: Request) -> Result<(), End> {
    let admission = conn.session.admit(&request);
    if admission == Admission::Disconnect {
        return Err(End::Disconnect);
    }
    let queued_ns = slot(conn).await;
    let pending = Pending::begin(conn, request, queued_ns);
    match admission {
        Admission::Serve if !conn.shard.is_serving() => {
            let refusal = Refusal { errno: Errno::ESHUTDOWN, text: "the server is shutting down".into() };
            refuse(pending, inbox, &refusal).await
        }
        Admission::Serve if request.payload > 0 => with_payload(pending, inbox).await,
        Admission::Serve => {
            inbox.expect_small();
            command::start(pending, None);
            Ok(())
        }
        Admission::Refuse(refusal) => refuse(pending, inbox, &refusal).await,
        Admission::Close(refusal) => {
            pending.conn.shard.count(Counter::ProtocolViolations);
            pending.refuse(refusal.errno, &refusal.text, None);
            Err(End::Close)
        }
        Admission::Disconnect => Err(End::Disconnect),
    }
}

/// Waits for a slot of the window; answers how long that took.
async fn slot(conn: &Connection) -> u64 {
    if conn.window.try_acquire(1) {
        return 0;
    }
    conn.shard.count(Counter::WindowWaits);
    let start = rt::now_ns();
    conn.window.acquire(1).await;
    rt::now_ns().saturating_sub(start)
}

async fn with_payload(mut pending: Pending, inbox: &mut Inbox) -> Result<(), End> {
    let conn = Rc::clone(&pending.conn);
    let length = usize::try_from(pending.request.payload).unwrap_or(usize::MAX);
    let buffer = conn.payload(length).await;
    let (result, buffer) = payload(&conn, inbox, buffer, length).await;
    if let Err(error) = result {
        // Cut off: what came of it is not written. Nobody is left to be told, yet the obligation ends with a reply.
        pending.refuse(Errno::EIO, "the payload was cut off", None);
        return Err(gone(&conn, &error, false));
    }
    if pending.request.command == Command::BLOCK_STATUS {
        return filtered_status(pending, &buffer);
    }
    pending.request.flags = pending.request.flags.without(CommandFlags::PAYLOAD_LEN);
    command::start(pending, Some(buffer));
    Ok(())
}

/// Receives a payload in steps, so that one that moves is told from one that is stuck.
async fn payload(
    conn: &Connection,
    inbox: &mut Inbox,
    mut buffer: Buffer,
    length: usize,
) -> (io::Result<()>, Buffer) {
    const STEP: usize = 1 << 20;
    let mut at = 0;
    while at < length {
        conn.link.transfer_since.set(Some(rt::now_ns()));
        let end = length.min(at + STEP);
        let (result, back) = inbox.read_exact(buffer, at..end).await;
        conn.link.transfer_since.set(None);
        buffer = back;
        if result.is_err() {
            return (result, buffer);
        }
        at = end;
    }
    (Ok(()), buffer)
}

/// A block status that names its contexts in a payload.
fn filtered_status(mut pending: Pending, payload: &Buffer) -> Result<(), End> {
    match pending.conn.session.parse_status_payload(&pending.request, payload) {
        Ok((length, ids)) => {
            pending.request.length = length;
            pending.filter = ids;
            command::start(pending, None);
        }
        Err(refusal) => {
            pending.conn.shard.count(Counter::RequestsRefused);
            pending.refuse(refusal.errno, &refusal.text, None);
        }
    }
    Ok(())
}

/// Answers with an error and drops the payload, if it is not too long to be read for nothing.
async fn refuse(pending: Pending, inbox: &mut Inbox, refusal: &Refusal) -> Result<(), End> {
    let conn = Rc::clone(&pending.conn);
    let limits = &conn.shard.limits;
    let drained_max = u64::from(limits.payload_length_max) * u64::from(limits.drain_payloads_max);
    let payload = pending.request.payload;
    conn.shard.count(Counter::RequestsRefused);
    if payload > drained_max {
        pending.refuse(refusal.errno, &refusal.text, None);
        tracing::debug!("{}: closing: a refused payload of {payload} bytes", conn.link.peer);
        return Err(End::Close);
    }
    let skipped = inbox.skip(payload).await;
    pending.refuse(refusal.errno, &refusal.text, None);
    skipped.map_err(|error| gone(&conn, &error, false))
}

fn gone(conn: &Connection, error: &io::Error, between_requests: bool) -> End {
    if error.kind() != io::ErrorKind::UnexpectedEof {
        tracing::debug!("{}: cannot receive: {error}", conn.link.peer);
    }
    End::Gone { between_requests }
}
