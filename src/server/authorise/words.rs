//! The words of a rule: `cn=backup*,export=disk-*,right=read`.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;
use wildmatch::WildMatch;

use super::{PeerPattern, Right, Rule, Verdict};
use crate::backend::split_commas;

const KEYS: &str = "dn, cn, san, issuer, ip, uid, gid, cid, tls, export, right";

/// Why a rule makes no sense; each says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // the message of each variant is its documentation
pub enum RuleError {
    #[error("a rule without words: write right=write to speak of everybody and everything")]
    Empty,
    #[error("`{part}` is not key=value: the keys are {KEYS}; a comma in a value is written twice")]
    Shape { part: String },
    #[error("unknown key `{key}`: the keys are {KEYS}; a comma in a value is written twice")]
    Unknown { key: String },
    #[error("key `{key}` is given twice: write a rule for each value, or a pattern with * and ?")]
    Twice { key: String },
    #[error("`{key}=` lacks a value: write {key}={example}, or leave it out to mean everybody")]
    Bare { key: String, example: &'static str },
    #[error("`{key}` cannot be `{value}`: write {key}={example}")]
    Value { key: String, value: String, example: &'static str },
    #[error(
        "`san` cannot be `{value}`: write dns:NAME, ip:ADDRESS, email:ADDRESS or uri:URI, such as san=dns:*.example.org"
    )]
    AlternativeName { value: String },
    #[error("`{one}` and `{other}` never hold of the same peer: write a rule for each")]
    Never { one: &'static str, other: &'static str },
}

impl Rule {
    /// Reads a rule: keys with values, separated by commas; a comma in a value is written twice. In patterns `*` stands
    /// for any characters and `?` for one.
    ///
    /// | key | holds of |
    /// |---|---|
    /// | `dn`, `issuer` | a certificate whose subject, or issuer, has a distinguished name (RFC 4514) like the pattern |
    /// | `cn` | a certificate with a common name like the pattern |
    /// | `san` | a certificate with an alternative name like the pattern: `dns:`, `ip:`, `email:`, `uri:` |
    /// | `ip` | TCP from this address or network, `10.0.0.0/8` |
    /// | `uid`, `gid` | a unix socket, of a process with this number |
    /// | `cid` | vsock, from this context |
    /// | `tls` | `on`: a peer that came by TLS, `off`: one that did not |
    /// | `export` | an export with a name like the pattern |
    /// | `right` | `list`, `read`, `write`: how far an `allow` goes (left out: `write`), where a `deny` begins (`list`) |
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn parse(verdict: Verdict, text: &str) -> Result<Self, RuleError> {
        if text.is_empty() {
            return Err(RuleError::Empty);
        }
        let mut rule = Self {
            verdict,
            peer: PeerPattern::default(),
            export: None,
            right: if verdict == Verdict::Allow { Right::Write } else { Right::List },
            words: text.to_owned(),
        };
        let mut seen: Vec<String> = Vec::new();
        for part in split_commas(text) {
            let Some((key, value)) = part.split_once('=') else { return Err(RuleError::Shape { part }) };
            rule.set(key, value)?;
            if seen.iter().any(|known| known == key) {
                return Err(RuleError::Twice { key: key.to_owned() });
            }
            seen.push(key.to_owned());
        }
        rule.peer.check()?;
        Ok(rule)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), RuleError> {
        let example = match key {
            "dn" | "issuer" => "CN=backup*,,O=Example",
            "cn" => "backup*",
            "san" => "dns:*.example.org",
            "ip" => "192.0.2.0/24",
            "uid" | "gid" => "1000",
            "cid" => "3",
            "tls" => "on",
            "export" => "disk-*",
            "right" => "read",
            _ => return Err(RuleError::Unknown { key: key.to_owned() }),
        };
        let bad = || RuleError::Value { key: key.to_owned(), value: value.to_owned(), example };
        // The default export has no name.
        if value.is_empty() && key != "export" {
            return Err(RuleError::Bare { key: key.to_owned(), example });
        }
        let number = || u32::from_str(value).map_err(|_| bad());
        let peer = &mut self.peer;
        match key {
            "dn" => peer.subject = Some(WildMatch::new(value)),
            "cn" => peer.common_name = Some(WildMatch::new(value)),
            "san" => peer.name = Some(alternative_name(value)?),
            "issuer" => peer.issuer = Some(WildMatch::new(value)),
            "ip" => peer.ip = Some(network(value).ok_or_else(bad)?),
            "uid" => peer.uid = Some(number()?),
            "gid" => peer.gid = Some(number()?),
            "cid" => peer.cid = Some(number()?),
            "tls" => peer.tls = Some(switch(value).ok_or_else(bad)?),
            "export" => self.export = Some(WildMatch::new(value)),
            _ => {
                self.right = match value {
                    "list" => Right::List,
                    "read" => Right::Read,
                    "write" => Right::Write,
                    _ => return Err(bad()),
                }
            }
        }
        Ok(())
    }
}

impl PeerPattern {
    /// A rule that can hold of nobody is a mistake.
    fn check(&self) -> Result<(), RuleError> {
        let transports = [
            ("ip", self.ip.is_some()),
            ("uid", self.uid.is_some()),
            ("gid", self.gid.is_some()),
            ("cid", self.cid.is_some()),
        ];
        let mut given = transports.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
        if let (Some(one), Some(other)) = (given.next(), given.next_back())
            && (one, other) != ("uid", "gid")
        {
            return Err(RuleError::Never { one, other });
        }
        let of_certificate =
            [("dn", &self.subject), ("cn", &self.common_name), ("san", &self.name), ("issuer", &self.issuer)];
        match of_certificate.iter().find(|(_, pattern)| pattern.is_some()) {
            Some((one, _)) if self.tls == Some(false) => Err(RuleError::Never { one, other: "tls=off" }),
            _ => Ok(()),
        }
    }
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// One address or a network of them. IPv4 written as IPv6 is IPv4, as with peers.
fn network(value: &str) -> Option<IpNet> {
    let net = match value.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => value.parse().ok()?,
    };
    Some(match net {
        IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
            (Some(v4), Some(prefix)) => Ipv4Net::new(v4, prefix).map_or(net, IpNet::V4),
            _ => net,
        },
        IpNet::V4(_) => net,
    })
}

/// DNS names know no case.
fn alternative_name(value: &str) -> Result<WildMatch, RuleError> {
    match value.split_once(':') {
        Some(("dns", name)) => Ok(WildMatch::new(&format!("dns:{}", name.to_ascii_lowercase()))),
        Some(("ip" | "email" | "uri", _)) => Ok(WildMatch::new(value)),
        _ => Err(RuleError::AlternativeName { value: value.to_owned() }),
    }
}
