//! Replies out: one queue, one gathered send in flight.
//!
//! While a send is under way, replies queue; the next send takes all that are there (up to `replies_per_send` and
//! `bytes_per_send`). So the deeper the load, the fewer system calls per reply.
//!
//! A large payload that the page cache holds goes into the gather as it is mapped, or follows it by `sendfile`
//! (`transport::Way`). With TLS payload is encrypted in its buffer and small replies in the gather (`net::tls::Outbox`). A large gather may be lent to the kernel instead of copied; then the next one is sent while that is out.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::conn::{Body, Connection, Piece, Ticket};
use super::transport::Way;
use crate::net::tls::{Fault, Outbox};
use crate::rt::gather::Gather;
use crate::rt::{self, Cached};

/// Gathers that came back from the kernel. A few, since few are out at a time.
type Spares = Rc<RefCell<Vec<Box<Gather>>>>;

/// Sends until the connection is closing and its queue is empty. After a send failed, replies are dropped instead, so
/// that requests still end.
pub(super) async fn run(conn: Rc<Connection>) {
    let spares = Spares::default();
    let mut gather = Box::new(Gather::new());
    let mut tickets = Vec::with_capacity(conn.shard.limits.replies_per_send);
    let mut broken = false;
    loop {
        conn.replies.ready(|| conn.closing.get()).await;
        if conn.replies.is_empty() {
            return;
        }
        let collected = collect(&conn, &mut gather, &mut tickets);
        if !broken {
            conn.link.transfer_since.set(Some(rt::now_ns()));
            let (result, next) = match collected {
                Ok(file) => send(&conn, gather, file, &spares).await,
                Err(fault) => (Err(fault.into()), gather),
            };
            conn.link.transfer_since.set(None);
            gather = next;
            if let Err(error) = result {
                tracing::debug!("{}: cannot send: {error}", conn.link.peer);
                broken = true;
                // The receiving side now sees the end of the stream.
                conn.link.socket.shutdown();
            }
        }
        gather.clear();
        for ticket in tickets.drain(..) {
            conn.settle(&ticket, !broken);
        }
        if conn.in_flight.get() == 0 {
            conn.replies.rest();
            gather.rest();
        }
    }
}

/// Sends what was gathered and the file's range after it; answers with a gather for what comes next.
async fn send(
    conn: &Connection,
    gather: Box<Gather>,
    file: Option<Cached>,
    spares: &Spares,
) -> (io::Result<()>, Box<Gather>) {
    let lends = conn.link.lends.get() && gather.len() >= conn.shard.limits.send_zc_min;
    let (mut result, gather) = if lends && gather.is_one_message() {
        Box::pin(lend(conn, gather, spares)).await
    } else {
        conn.link.socket.send(gather).await
    };
    if let (Ok(()), Some(file)) = (&result, &file) {
        result = Box::pin(conn.link.socket.send_file(file)).await;
    }
    (result, gather)
}

/// The same without a copy. If that is not to be had, the connection is not asked again.
async fn lend(conn: &Connection, gather: Box<Gather>, spares: &Spares) -> (io::Result<()>, Box<Gather>) {
    let (result, lent) = conn.link.socket.send_lent(gather).await;
    match &result {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOMEM)) =>
        {
            tracing::debug!("{}: sends are copied from now on: {error}", conn.link.peer);
            conn.link.lends.set(false);
            let (gather, _) = lent.back().await;
            conn.link.socket.send(gather).await
        }
        _ => {
            let (link, spares) = (Rc::clone(&conn.link), Rc::clone(spares));
            let next = spares.borrow_mut().pop().unwrap_or_default();
            rt::spawn(async move {
                let (mut gather, copied) = lent.back().await;
                gather.clear();
                spares.borrow_mut().push(gather);
                if copied && link.lends.replace(false) {
                    tracing::debug!("{}: the kernel copied what was lent; no more of that", link.peer);
                }
            });
            (result, next)
        }
    }
}

/// Gathers replies; answers with what is to be sent by `sendfile` after them.
fn collect(
    conn: &Connection,
    gather: &mut Gather,
    tickets: &mut Vec<Ticket>,
) -> Result<Option<Cached>, Fault> {
    match conn.link.tls.get() {
        None => Ok(collect_plain(conn, gather, tickets)),
        Some(session) => {
            let outbox = Outbox::new(session.borrow_mut(), gather);
            collect_sealed(conn, outbox, tickets).map(|()| None)
        }
    }
}

/// The same, encrypted.
fn collect_sealed(conn: &Connection, mut outbox: Outbox<'_>, tickets: &mut Vec<Ticket>) -> Result<(), Fault> {
    let limits = &conn.shard.limits;
    while tickets.len() < limits.replies_per_send
        && outbox.len() < limits.bytes_per_send
        && let Some(reply) = conn.replies.pop()
    {
        tickets.push(reply.ticket);
        match reply.body {
            Body::Head(head) => outbox.bytes(&head),
            Body::Buffer(buffer) => outbox.buffer(buffer),
            Body::Bytes(bytes) => outbox.bytes(&bytes),
            Body::Parts(buffer, parts) => {
                for (head, part) in parts {
                    outbox.bytes(&head);
                    outbox.bytes(&buffer[part]);
                }
            }
            Body::Pieces(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Head(head) => outbox.bytes(&head),
                        Piece::Buffer(buffer) => outbox.buffer(buffer),
                    }
                }
            }
            // `Way::Buffer` is the only way through TLS.
            Body::Cached(..) => return Err(Fault::unsealable()),
        }
    }
    outbox.finish()
}

fn collect_plain(conn: &Connection, gather: &mut Gather, tickets: &mut Vec<Ticket>) -> Option<Cached> {
    let limits = &conn.shard.limits;
    while tickets.len() < limits.replies_per_send && gather.len() < limits.bytes_per_send {
        let reply = conn.replies.pop()?;
        tickets.push(reply.ticket);
        match reply.body {
            Body::Head(head) => gather.bytes(&head),
            Body::Buffer(buffer) => gather.buffer(buffer),
            Body::Bytes(bytes) => gather.blob(bytes),
            Body::Cached(head, cached) => {
                gather.bytes(&head);
                if conn.link.way.get() == Way::SendFile {
                    gather.more_follows();
                    return Some(cached);
                }
                gather.cached(cached);
            }
            Body::Parts(buffer, parts) => {
                gather.hold(buffer);
                for (head, part) in parts {
                    gather.bytes(&head);
                    if !part.is_empty() {
                        gather.part(part);
                    }
                }
            }
            Body::Pieces(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Head(head) => gather.bytes(&head),
                        Piece::Buffer(buffer) => gather.buffer(buffer),
                    }
                }
            }
        }
    }
    None
}
