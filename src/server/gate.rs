//! What one peer gets to see of the exports: every question of its handshake about them passes here.
//!
//! A name that is not here and one that the peer must not know of take the same way, are answered with the same words
//! and logged alike.

use super::authorise::{Decision, Right};
use super::export::Table;
use super::peer::{Address, Certificate, Channel, Peer};
use super::shard::ShardState;
use crate::metrics::Counter;
use crate::proto::{Listing, Lookup};

/// Refusals of one connection that are logged for the operator; one that tries more names is only counted.
const REFUSALS_LOGGED_MAX: u32 = 16;

/// The rules of the server, applied to one connection.
pub(super) struct Gate<'a> {
    shard: &'a ShardState,
    peer: Peer,
    /// Whether the decision about an export was logged and counted, by its number.
    told: Vec<bool>,
    refusals: u32,
}

impl<'a> Gate<'a> {
    /// For a peer that has not spoken yet.
    pub(super) fn new(shard: &'a ShardState, address: &Address) -> Self {
        let peer = Peer { address: address.clone(), channel: Channel::Plain };
        Self { shard, peer, told: Vec::new(), refusals: 0 }
    }

    /// TLS has begun; with the client's certificate, if it showed one that was verified. What was decided before is
    /// decided anew.
    pub(super) fn secured(&mut self, certificate: Option<Certificate>) {
        self.peer.channel = Channel::Tls(certificate);
        self.told.clear();
    }

    /// The export that a client asks for.
    pub(super) fn find(&mut self, name: &str) -> Lookup<'a> {
        let table: &'a Table = &self.shard.table;
        let decision = table.rules.decide(&self.peer, name);
        let id = table.find(name);
        self.tell(name, id, &decision, true);
        let Some(id) = id else { return Lookup::Unknown };
        match decision.right {
            None => Lookup::Unknown,
            _ if self.needs_tls(id) => Lookup::TlsRequired,
            Some(Right::List) => Lookup::Forbidden,
            Some(Right::Read) => Lookup::Found(table.read_only(id)),
            Some(Right::Write) => Lookup::Found(table.info(id)),
        }
    }

    /// The only export of an oldstyle server: its greeting has no names, so whatever it is called, it is meant.
    pub(super) fn only(&mut self) -> Lookup<'a> {
        let table: &'a Table = &self.shard.table;
        self.find(table.only())
    }

    /// Whether the export is for encrypted connections, and this is not one.
    fn needs_tls(&self, id: usize) -> bool {
        self.peer.channel == Channel::Plain && self.shard.table.needs_tls(id)
    }

    /// What a client is told that asks for all.
    pub(super) fn list(&mut self) -> Vec<Listing> {
        let table: &'a Table = &self.shard.table;
        let listed = table.listed().filter(|info| {
            let decision = table.rules.decide(&self.peer, &info.name);
            self.tell(&info.name, Some(info.id), &decision, false);
            decision.right.is_some() && !self.needs_tls(info.id)
        });
        listed
            .map(|info| Listing { name: info.name.clone(), description: info.description.clone() })
            .collect()
    }

    /// Counts a decision and logs it, once for a connection and an export; and what was refused to who asked for it.
    fn tell(&mut self, name: &str, id: Option<usize>, decision: &Decision<'_>, wanted: bool) {
        let peer = &self.peer;
        if self.shard.table.rules.is_empty() {
            if id.is_none() {
                // The only trace of a client that asks by EXPORT_NAME, which has no error reply.
                tracing::debug!("{peer}: asked for an export that is not here, {:?}", head(name));
            }
            return;
        }
        let why = || match decision.by {
            Some((number, rule)) => format!("by rule {number}: {rule}"),
            None => "no rule allows it".to_owned(),
        };
        if let Some(id) = id {
            self.told.resize(self.told.len().max(id + 1), false);
            if !std::mem::replace(&mut self.told[id], true) {
                self.shard.count(match decision.right {
                    None => Counter::AccessDenied,
                    Some(Right::List) => Counter::AccessToList,
                    Some(Right::Read) => Counter::AccessToRead,
                    Some(Right::Write) => Counter::AccessToWrite,
                });
                let right = decision.right.map_or("nothing", Right::name);
                tracing::debug!("{peer}: access to {:?}: {right}, {}", head(name), why());
            }
        }
        if wanted && (id.is_none() || decision.right < Some(Right::Read)) {
            self.refusals = self.refusals.saturating_add(1);
            if self.refusals <= REFUSALS_LOGGED_MAX {
                let why = if id.is_some() { why() } else { "there is none".to_owned() };
                tracing::info!("{peer}: the export {:?} is refused, {why}", head(name));
            }
        }
    }
}

/// Enough of a name for the log: the protocol allows 4,096 bytes.
fn head(name: &str) -> &str {
    name.char_indices().nth(80).map_or(name, |(end, _)| &name[..end])
}
