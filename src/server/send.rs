//! Replies out: one queue, one gathered send in flight.
//!
//! While a send is under way, replies queue; the next send takes all that are there (up to `replies_per_send` and
//! `bytes_per_send`). So the deeper the load, the fewer system calls per reply.

use std::rc::Rc;

use super::conn::{Body, Connection, Piece, Ticket};
use crate::rt;
use crate::rt::gather::Gather;

/// Sends until the connection is closing and its queue is empty. After a send failed, replies are dropped instead, so
/// that requests still end.
pub(super) async fn run(conn: Rc<Connection>) {
    let mut gather = Box::new(Gather::new());
    let mut tickets = Vec::with_capacity(conn.shard.limits.replies_per_send);
    let mut broken = false;
    loop {
        conn.replies.ready(|| conn.closing.get()).await;
        if conn.replies.is_empty() {
            return;
        }
        collect(&conn, &mut gather, &mut tickets);
        if !broken {
            conn.link.transfer_since.set(Some(rt::now_ns()));
            let (result, back) = conn.link.socket.send(gather).await;
            conn.link.transfer_since.set(None);
            gather = back;
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
    }
}

fn collect(conn: &Connection, gather: &mut Gather, tickets: &mut Vec<Ticket>) {
    let limits = &conn.shard.limits;
    while tickets.len() < limits.replies_per_send && gather.len() < limits.bytes_per_send {
        let Some(reply) = conn.replies.pop() else { return };
        tickets.push(reply.ticket);
        match reply.body {
            Body::Head(head) => gather.bytes(&head),
            Body::Buffer(buffer) => gather.buffer(buffer),
            Body::Bytes(bytes) => gather.blob(bytes),
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
}
