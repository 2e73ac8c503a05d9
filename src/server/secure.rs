//! TLS on a real socket: the handshake after STARTTLS, and the last word of a session.

use std::rc::Rc;
use std::sync::Arc;

use super::conn::Link;
use super::peer::Certificate;
use super::receive::{Arrival, arrival};
use super::shard::{LINGER, ShardState};
use super::transport::Way;
use crate::metrics::Counter;
use crate::net::Inbox;
use crate::net::tls::{Certificates, Finished, Handshake};
use crate::rt::gather::Gather;
use crate::rt::timer;

/// Encryption, where a server has it.
#[derive(Clone, Debug)]
pub struct Encryption {
    /// Answer nothing without it (FORCEDTLS); else an export may ask for it, and any client (SELECTIVETLS).
    pub required: bool,
    /// What it proves itself by, and its clients.
    pub certificates: Arc<Certificates>,
}

/// Why TLS did not begin; all is said to the log.
pub(super) enum Unsecured {
    Failed,
    Drained,
}

/// Shakes hands with the client whose STARTTLS was just acknowledged; answers with its certificate, if it was asked for
/// one and it is good.
pub(super) async fn begin(
    shard: &Rc<ShardState>,
    link: &Rc<Link>,
    inbox: &mut Inbox,
    encryption: &Encryption,
) -> Result<Option<Certificate>, Unsecured> {
    let failed = |why: &dyn std::fmt::Display| {
        shard.count(Counter::TlsFailed);
        tracing::debug!("{}: no TLS: {why}", link.peer);
        Unsecured::Failed
    };
    let mut handshake =
        Handshake::server(encryption.certificates.current()).map_err(|fault| failed(&fault))?;
    let mut out = Vec::new();
    loop {
        let bytes = inbox.bytes();
        let count = bytes.len();
        let progress = handshake.advance(bytes, &mut out);
        inbox.consume(count);
        if !out.is_empty() {
            let mut gather = Box::new(Gather::new());
            gather.blob(std::mem::take(&mut out));
            let (sent, _) = link.socket.send(gather).await;
            sent.map_err(|error| failed(&error))?;
        }
        if progress.map_err(|fault| failed(&fault))? {
            break;
        }
        match arrival(shard, link, inbox, usize::MAX, || true).await {
            Arrival::Bytes => {}
            Arrival::End => return Err(failed(&"the client went away")),
            Arrival::Broken(error) => return Err(failed(&error)),
            Arrival::Drained => return Err(Unsecured::Drained),
        }
    }
    let finished = handshake.finish().map_err(|fault| failed(&fault))?;
    let certificate = certificate(&finished).map_err(|error| failed(&error))?;
    shard.count(Counter::TlsBegun);
    tracing::debug!("{}: {}", link.peer, finished.session.describe());
    link.encrypt(inbox.secure(finished));
    Ok(certificate)
}

fn certificate(finished: &Finished) -> Result<Option<Certificate>, super::peer::CertificateError> {
    finished.session.certificates().first().map(|der| Certificate::from_der(der)).transpose()
}

impl Link {
    /// Everything goes through `session` from here on; so nothing goes out as it lies in the page cache or in a buffer.
    fn encrypt(&self, session: super::conn::Secured) {
        self.way.set(Way::Buffer);
        self.lends.set(false);
        let is_first = self.tls.set(session).is_ok();
        debug_assert!(is_first, "STARTTLS is answered once");
    }
}

/// Says our last word, if there is TLS and the peer still listens: close_notify, or what was wrong.
pub(super) async fn farewell(link: &Link) {
    let Some(session) = link.tls.get() else { return };
    let mut out = Vec::new();
    session.borrow_mut().farewell(&mut out);
    if !out.is_empty() {
        let mut gather = Box::new(Gather::new());
        gather.blob(out);
        // A peer that takes nothing more need not hear it.
        let _ = timer::deadline(LINGER, link.socket.send(gather)).await;
    }
}
