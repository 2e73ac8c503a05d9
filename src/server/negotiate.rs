//! The handshake on a real socket: moves bytes between [`Handshake`] and the connection and answers its questions from
//! the table of exports, as far as the peer may look into it.

use std::io;
use std::rc::Rc;

use super::conn::Link;
use super::gate::Gate;
use super::receive::{Arrival, arrival};
use super::secure::{self, Unsecured};
use super::shard::ShardState;
use crate::metrics::Counter;
use crate::net::Inbox;
use crate::net::tls::Outbox;
use crate::proto::{Handshake, HandshakeConfig, Session, Step, Style, Tls};
use crate::rt::gather::Gather;

/// Bytes of replies after which they are sent before the next option is read.
const OUT_MAX: usize = 64 << 10;

/// How a handshake ended.
pub(super) enum Outcome {
    /// The client chose an export.
    Transmit(Session),
    /// It said goodbye or was told so.
    Closed,
    /// It broke the protocol, or the connection broke.
    Failed,
}

/// Negotiates with one client.
pub(super) async fn run(shard: &Rc<ShardState>, link: &Rc<Link>, inbox: &mut Inbox) -> Outcome {
    let mut out = Vec::new();
    let config = HandshakeConfig {
        style: if shard.oldstyle { Style::Oldstyle } else { Style::Fixed },
        tls: match &shard.encryption {
            None => Tls::Off,
            Some(encryption) if encryption.required => Tls::Required,
            Some(_) => Tls::On { hides_unknown: shard.table.hides_some_from_plain() },
        },
        options_max: shard.limits.options_max,
        ..HandshakeConfig::default()
    };
    let mut handshake = Handshake::new(config, &mut out);
    let mut gate = Gate::new(shard, &link.peer);
    loop {
        if !shard.is_serving() {
            handshake.drain();
        }
        let step = match advance(shard, &mut gate, &mut handshake, inbox, &mut out) {
            Ok(step) => step,
            Err(violation) => {
                shard.count(Counter::ProtocolViolations);
                tracing::debug!("{}: closing: {violation}", link.peer);
                flush(link, &mut out).await;
                return Outcome::Failed;
            }
        };
        match step {
            Next::Session(session) => {
                return if flush(link, &mut out).await {
                    Outcome::Transmit(session)
                } else {
                    Outcome::Failed
                };
            }
            Next::StartTls => {
                let Some(encryption) = &shard.encryption else { return Outcome::Failed };
                if !flush(link, &mut out).await {
                    return Outcome::Failed;
                }
                match secure::begin(shard, link, inbox, encryption).await {
                    Ok(certificate) => gate.secured(certificate),
                    Err(Unsecured::Drained) => return Outcome::Closed,
                    Err(Unsecured::Failed) => return Outcome::Failed,
                }
                handshake.secured();
            }
            Next::Close => {
                flush(link, &mut out).await;
                return Outcome::Closed;
            }
            Next::Send => {
                if !flush(link, &mut out).await {
                    return Outcome::Failed;
                }
            }
            Next::Receive => {
                if !flush(link, &mut out).await {
                    return Outcome::Failed;
                }
                match arrival(shard, link, inbox, usize::MAX, || true).await {
                    Arrival::Bytes => {}
                    Arrival::End => return Outcome::Failed,
                    Arrival::Drained => return Outcome::Closed,
                    Arrival::Broken(error) => {
                        log_broken(link, &error);
                        return Outcome::Failed;
                    }
                }
            }
        }
    }
}

enum Next {
    Receive,
    Send,
    Session(Session),
    StartTls,
    Close,
}

/// Runs the machine until it wants bytes, or has said enough to be sent.
fn advance(
    shard: &ShardState,
    gate: &mut Gate<'_>,
    handshake: &mut Handshake,
    inbox: &mut Inbox,
    out: &mut Vec<u8>,
) -> Result<Next, crate::proto::Violation> {
    loop {
        let (consumed, mut step) = handshake.advance(inbox.bytes(), out)?;
        inbox.consume(consumed);
        if step == Step::Receive {
            return Ok(Next::Receive);
        }
        while step != Step::Receive {
            step = match step {
                Step::Receive => break,
                Step::Find { .. } if shard.oldstyle => handshake.found(gate.only(), out)?,
                Step::Find { name } => handshake.found(gate.find(&name), out)?,
                Step::List => handshake.listed(&gate.list(), out),
                Step::StartTls => return Ok(Next::StartTls),
                Step::Transmit(session) => return Ok(Next::Session(session)),
                Step::Close => return Ok(Next::Close),
            };
        }
        if out.len() >= OUT_MAX {
            return Ok(Next::Send);
        }
    }
}

/// Sends what the machine said. False when the client does not take it.
async fn flush(link: &Rc<Link>, out: &mut Vec<u8>) -> bool {
    if out.is_empty() {
        return true;
    }
    let mut gather = Box::new(Gather::new());
    match link.tls.get() {
        None => gather.blob(std::mem::take(out)),
        Some(session) => {
            let mut outbox = Outbox::new(session.borrow_mut(), &mut gather);
            outbox.bytes(&std::mem::take(out));
            if let Err(fault) = outbox.finish() {
                log_broken(link, &fault.into());
                return false;
            }
        }
    }
    let (result, _) = link.socket.send(gather).await;
    result.inspect_err(|error| log_broken(link, error)).is_ok()
}

fn log_broken(link: &Link, error: &io::Error) {
    tracing::debug!("{}: the connection broke during the handshake: {error}", link.peer);
}
