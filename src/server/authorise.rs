//! Who may see and touch what: a list of rules, in order, and the first that speaks decides.
//!
//! ```text
//!   rule = verdict  x  peer (certificate, address, TLS)  x  export  x  right
//!
//!   right        nothing -> list -> read -> write      each holds those before it
//!   allow R                 '------------' up to R
//!   deny R                          '------------' from R on
//! ```
//!
//! A rule that fits peer and export speaks about some of the rights: an `allow` about its own and those below, a `deny`
//! about its own and those above. Each right goes by the first rule that speaks about it, and is denied if none does. What
//! comes of it is always a level: whoever may write may read, whoever may read may list. Without any rule everybody may
//! do everything.

#[cfg(test)]
mod tests;
mod words;

use std::fmt;

use ipnet::IpNet;
use wildmatch::WildMatch;

use super::peer::{Address, Certificate, Channel, Peer};
pub use words::RuleError;

/// What a peer may do with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Know that it is there: by lists and by its name. Without this it is as if it were not.
    List,
    /// Open it and read.
    Read,
    /// Change it.
    Write,
}

impl Right {
    const fn below(self) -> Option<Self> {
        match self {
            Self::List => None,
            Self::Read => Some(Self::List),
            Self::Write => Some(Self::Read),
        }
    }

    /// As it is written in rules.
    pub const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// What a rule does with its right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Gives it, and those below.
    Allow,
    /// Refuses it, and those above.
    Deny,
}

/// One rule; see [`Rule::parse`] for its words.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    verdict: Verdict,
    peer: PeerPattern,
    export: Option<WildMatch>,
    right: Right,
    /// As the operator wrote it, for the log.
    words: String,
}

/// What must hold of a peer, all of it; what is `None` holds of everybody.
#[derive(Clone, Debug, PartialEq, Default)]
struct PeerPattern {
    subject: Option<WildMatch>,
    common_name: Option<WildMatch>,
    name: Option<WildMatch>,
    issuer: Option<WildMatch>,
    ip: Option<IpNet>,
    uid: Option<u32>,
    gid: Option<u32>,
    cid: Option<u32>,
    tls: Option<bool>,
}

impl PeerPattern {
    fn fits(&self, peer: &Peer) -> bool {
        let certificate = match &peer.channel {
            Channel::Tls(certificate) => certificate.as_ref(),
            Channel::Plain => None,
        };
        let says = |pattern: &Option<WildMatch>, get: fn(&Certificate) -> &[String]| {
            pattern.as_ref().is_none_or(|pattern| {
                certificate
                    .is_some_and(|certificate| get(certificate).iter().any(|text| pattern.matches(text)))
            })
        };
        let (uid, gid) = match &peer.address {
            Address::Unix(credentials) => (Some(credentials.uid), Some(credentials.gid)),
            _ => (None, None),
        };
        let cid = match peer.address {
            Address::Vsock { cid, .. } => Some(cid),
            _ => None,
        };
        let is = |wanted: Option<u32>, found| wanted.is_none() || wanted == found;
        says(&self.subject, |certificate| std::slice::from_ref(&certificate.subject))
            && says(&self.common_name, |certificate| &certificate.common_names)
            && says(&self.name, |certificate| &certificate.names)
            && says(&self.issuer, |certificate| std::slice::from_ref(&certificate.issuer))
            && self.ip.is_none_or(|net| peer.address.ip().is_some_and(|ip| net.contains(&ip)))
            && is(self.uid, uid)
            && is(self.gid, gid)
            && is(self.cid, cid)
            && self.tls.is_none_or(|tls| tls == (peer.channel != Channel::Plain))
    }
}

/// As in the command line: `allow dn=...`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        };
        write!(f, "{verdict} {}", self.words)
    }
}

/// All rules of a server, in order. Empty: everybody may do everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules(Vec<Rule>);

impl From<Vec<Rule>> for Rules {
    fn from(rules: Vec<Rule>) -> Self {
        Self(rules)
    }
}

/// What rules say of one peer and one export.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision<'a> {
    /// The highest right that the peer has; `None`: nothing at all.
    pub right: Option<Right>,
    /// The number, from 1, and the rule that gave the highest right, or refused the one above; `None` if no rule spoke.
    pub by: Option<(usize, &'a Rule)>,
}

impl Rules {
    /// Whether anything is asked at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Decides what `peer` may do with the export called `name`, whether there is one or not.
    pub fn decide(&self, peer: &Peer, name: &str) -> Decision<'_> {
        if self.is_empty() {
            return Decision { right: Some(Right::Write), by: None };
        }
        if peer.address == Address::Unknown {
            return Decision { right: None, by: None };
        }
        // Rights up to `granted` were given, those above `bound` refused; between them nobody has spoken yet.
        let mut granted: Option<Right> = None;
        let mut bound = Some(Right::Write);
        let mut by = None;
        for (index, rule) in self.0.iter().enumerate() {
            let fits = rule.export.as_ref().is_none_or(|export| export.matches(name)) && rule.peer.fits(peer);
            if !fits {
                continue;
            }
            match rule.verdict {
                Verdict::Allow if granted < Some(rule.right) => {
                    granted = Some(rule.right).min(bound);
                    if granted == Some(rule.right) {
                        by = Some((index + 1, rule));
                    }
                }
                Verdict::Deny if bound >= Some(rule.right) => {
                    bound = rule.right.below().max(granted);
                    by = Some((index + 1, rule));
                }
                _ => {}
            }
            if granted == bound {
                break;
            }
        }
        Decision { right: granted, by }
    }
}
