//! Where bytes go out: a socket, with or without TLS before it.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use super::tls::{Outbox, Session};
use crate::rt::gather::Gather;
use crate::rt::net::Socket;

/// Bytes that are sealed before they are sent; more of a message follow in the next send.
const STEP: usize = 256 << 10;
/// Plaintext taken at a time.
const PART: usize = 16 << 10;

/// The sending half of a connection, for whoever keeps what it sends: with TLS it is copied and sealed there, so that the
/// caller's buffers stay as they are.
pub struct Line {
    socket: Rc<Socket>,
    session: Option<Rc<RefCell<Session>>>,
    /// Where records are made, used again and again.
    sealed: Cell<Option<Box<Gather>>>,
}

impl Line {
    /// Sends into `socket` as it is.
    pub fn new(socket: Rc<Socket>) -> Self {
        Self { socket, session: None, sealed: Cell::new(None) }
    }

    /// From here on everything goes out as records of `session`.
    pub fn secure(&mut self, session: Rc<RefCell<Session>>) {
        self.session = Some(session);
    }

    /// Whether TLS is in use.
    pub fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    /// The socket underneath.
    pub fn socket(&self) -> &Rc<Socket> {
        &self.socket
    }

    /// Ends both directions at once.
    pub fn shutdown(&self) {
        self.socket.shutdown();
    }

    /// Sends everything gathered; the gather comes back with what it held. One send at a time: records have an order.
    ///
    /// # Errors
    /// The errno of `sendmsg(2)`, or `InvalidData` with a [`Fault`](super::tls::Fault) of TLS; then some of it may have been
    /// sent, and nothing more can be.
    pub async fn send(&self, gather: Box<Gather>) -> (io::Result<()>, Box<Gather>) {
        match &self.session {
            None => self.socket.send(gather).await,
            Some(session) => (Box::pin(self.send_sealed(session, &gather)).await, gather),
        }
    }

    async fn send_sealed(&self, session: &RefCell<Session>, gather: &Gather) -> io::Result<()> {
        let mut sealed = self.sealed.take().unwrap_or_default();
        let mut slices = gather.slices();
        let mut rest: &[u8] = &[];
        loop {
            let mut outbox = Outbox::new(session.borrow_mut(), &mut sealed);
            while outbox.len() < STEP {
                if rest.is_empty() {
                    let Some(slice) = slices.next() else { break };
                    rest = slice;
                }
                let (part, more) = rest.split_at(rest.len().min(PART));
                outbox.bytes(part);
                rest = more;
            }
            outbox.finish()?;
            if sealed.is_empty() {
                break;
            }
            let (result, back) = self.socket.send(sealed).await;
            result?;
            sealed = back;
            sealed.clear();
        }
        sealed.rest();
        self.sealed.set(Some(sealed));
        Ok(())
    }

    /// Says that nothing follows, where TLS wants that said.
    pub async fn farewell(&self) {
        let Some(session) = &self.session else { return };
        let mut words = Vec::new();
        session.borrow_mut().farewell(&mut words);
        if !words.is_empty() {
            let mut gather = Box::new(Gather::new());
            gather.blob(words);
            // Who has left already needs no goodbye.
            let _ = self.socket.send(gather).await;
        }
    }
}
