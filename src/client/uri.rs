//! NBD URIs (`doc/uri.md` of the NBD project): `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`,
//! `nbd+vsock://CID[:PORT]/EXPORT`, each with `nbds` for TLS and the parameters of [`Security`]; and the forms from before there were any: `nbd:HOST:PORT[:exportname=NAME]`,
//! `nbd:unix:PATH[:exportname=NAME]`, in which nothing is decoded.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::security::Security;
use crate::net::listen::{Listen, PORT, percent_encoded};
use crate::proto::TlsMode;

/// The context id that means this machine (`VMADDR_CID_LOCAL`, vsock(7)).
const VSOCK_LOCAL: u32 = 1;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`.
    Tcp {
        /// A name or address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
    /// A virtual machine's socket.
    Vsock {
        /// Context id.
        cid: u32,
        /// The port.
        port: u32,
    },
}

/// An export on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// The server.
    pub address: Address,
    /// The export's name: what follows exactly one slash, decoded.
    pub export: String,
    /// Whether TLS, and how.
    pub security: Security,
}

/// Why a text is no URI of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri}: {fault}")]
pub struct UriError {
    uri: String,
    fault: String,
}

impl Address {
    /// Whether the server is on this machine, by what is written: a unix socket, or the loopback. Nothing is looked up.
    pub fn is_near(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Vsock { cid, .. } => *cid == VSOCK_LOCAL,
            Self::Tcp { host, .. } => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
            }
        }
    }

    /// Whether a connection to here ends at a socket of this machine that is bound to `bound`, as far as can be told
    /// without making one. Resolves names.
    pub fn leads_to(&self, bound: &Listen) -> bool {
        match (self, bound) {
            (Self::Unix(path), Listen::Unix(other)) => {
                path == other || path.canonicalize().is_ok_and(|path| Some(path) == other.canonicalize().ok())
            }
            (Self::Vsock { cid, port }, Listen::Vsock { cid: other, port: taken }) => {
                port == taken && (cid == other || *cid == VSOCK_LOCAL)
            }
            (Self::Tcp { host, port }, Listen::Tcp { host: other, port: taken }) if port == taken => {
                let Ok(other) = other.parse::<IpAddr>() else { return false };
                let mut found = (host.as_str(), *port).to_socket_addrs().into_iter().flatten();
                // Only an address of this machine can be bound.
                let is_ours = |ip| UdpSocket::bind((ip, 0)).is_ok();
                found.any(|found| {
                    let ip = found.ip();
                    ip.to_canonical() == other.to_canonical() || (other.is_unspecified() && is_ours(ip))
                })
            }
            _ => false,
        }
    }

    /// The URI of an export here.
    pub fn uri(&self, export: &str) -> String {
        let place = match self.clone() {
            // The zone of an address: its % is written as such.
            Self::Tcp { host, port } => match host.split_once('%') {
                Some((ip, zone)) => {
                    let whole = Listen::Tcp { host: ip.to_owned(), port }.uri(export);
                    return whole.replacen(']', &format!("%25{zone}]"), 1);
                }
                None => Listen::Tcp { host, port },
            },
            Self::Unix(path) => Listen::Unix(path),
            Self::Vsock { cid, port } => Listen::Vsock { cid, port },
        };
        place.uri(export)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Security { tls, certificates, hostname, verify_peer } = &self.security;
        let plain = self.address.uri(&self.export);
        match (tls, plain.strip_prefix("nbd")) {
            (TlsMode::Require, Some(rest)) => write!(f, "nbds{rest}")?,
            _ => f.write_str(&plain)?,
        }
        let mut parameters = Vec::new();
        if *tls == TlsMode::Allow {
            parameters.push("tls=allow".to_owned());
        }
        if let Some(directory) = certificates {
            let directory = percent_encoded(directory.as_os_str().as_encoded_bytes());
            parameters.push(format!("tls-certificates={directory}"));
        }
        if let Some(name) = hostname {
            parameters.push(format!("tls-hostname={}", percent_encoded(name.as_bytes())));
        }
        if !verify_peer {
            parameters.push("tls-verify-peer=0".to_owned());
        }
        let mut separator = if plain.contains('?') { '&' } else { '?' };
        for parameter in parameters {
            write!(f, "{separator}{parameter}")?;
            separator = '&';
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl Uri {
    /// Reads a URI.
    ///
    /// # Errors
    /// [`UriError`] says which part is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let fail = |fault: String| UriError { uri: text.to_owned(), fault };
        if let Some(rest) = text.strip_prefix("nbd:").filter(|rest| !rest.starts_with("//")) {
            return legacy(rest).map_err(fail);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(fail("write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH".to_owned()));
        };
        let scheme = scheme.to_ascii_lowercase();
        if rest.contains('#') {
            return Err(fail("NBD URIs have no fragment; write # itself as %23".to_owned()));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = String::from_utf8(decode(path).map_err(fail)?)
            .map_err(|_| fail("the export's name is not UTF-8".to_owned()))?;
        let is_secure = scheme.starts_with("nbds");
        let Query { socket, security } = Query::parse(query, is_secure).map_err(fail)?;
        if authority.contains('@') {
            return Err(fail(
                "a user name belongs to TLS with a shared key, and only X.509 is known".to_owned(),
            ));
        }
        let plain = if is_secure { scheme.replacen("nbds", "nbd", 1) } else { scheme.clone() };
        let address = match (plain.as_str(), socket) {
            ("nbd+unix", Some(path)) if authority.is_empty() => Address::Unix(path),
            ("nbd+unix", Some(_)) => {
                return Err(fail(format!("{scheme} has no host, yet here is {authority}")));
            }
            ("nbd+unix", None) => return Err(fail(format!("{scheme} needs ?socket=PATH"))),
            ("nbd" | "nbd+tcp" | "nbd+vsock", Some(_)) => {
                return Err(fail(format!("socket= goes with nbd+unix, not with {scheme}")));
            }
            ("nbd" | "nbd+tcp", None) => tcp(authority).map_err(fail)?,
            ("nbd+vsock", None) => vsock(authority).map_err(fail)?,
            _ => {
                return Err(fail(format!(
                    "{scheme} is not one of nbd, nbd+tcp, nbd+unix, nbd+vsock, or these with nbds"
                )));
            }
        };
        Ok(Self { address, export, security })
    }
}

fn tcp(authority: &str) -> Result<Address, String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("an IPv6 address ends with ]")?;
            if !port.is_empty() && !port.starts_with(':') {
                return Err(format!("{port} follows the address; write [{host}]:PORT"));
            }
            (host, port.strip_prefix(':').filter(|port| !port.is_empty()))
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port).filter(|port| !port.is_empty())),
            None => (authority, None),
        },
    };
    if !authority.starts_with('[') && host.contains(':') {
        return Err(format!("an IPv6 address stands in brackets: [{authority}]"));
    }
    let host = String::from_utf8(decode(host)?).map_err(|_| "the host is not UTF-8")?;
    if authority.starts_with('[') {
        let (ip, zone) = host.split_once('%').unwrap_or((&host, "0"));
        let is_zone =
            !zone.is_empty() && zone.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if ip.parse::<Ipv6Addr>().is_err() || !is_zone {
            return Err(format!("[{host}] is not an IPv6 address"));
        }
    } else if host.contains(|c: char| c.is_control() || c.is_whitespace() || "%/?#@[]".contains(c)) {
        return Err(format!("{host:?} is not the name of a host"));
    }
    let host = if host.is_empty() { "localhost".to_owned() } else { host };
    let port =
        port.map_or(Ok(PORT), str::parse).map_err(|_| "the port is a number up to 65535".to_owned())?;
    Ok(Address::Tcp { host, port })
}

/// What follows `nbd:` in the forms of old. A name may hold anything, colons too.
fn legacy(text: &str) -> Result<Uri, String> {
    let (place, export) = text.split_once(":exportname=").unwrap_or((text, ""));
    let address = match place.strip_prefix("unix:") {
        Some("") => return Err("nbd:unix: needs the path of a socket".to_owned()),
        Some(path) => Address::Unix(path.into()),
        None => {
            let has_port = place
                .rsplit_once(':')
                .is_some_and(|(host, port)| !port.is_empty() && (!host.contains(':') || host.ends_with(']')));
            if !has_port {
                return Err(
                    "write nbd:HOST:PORT, nbd:[IPV6]:PORT, nbd:unix:PATH or, better, nbd://HOST/".to_owned()
                );
            }
            tcp(place)?
        }
    };
    Ok(Uri { address, export: export.to_owned(), security: Security::default() })
}

fn vsock(authority: &str) -> Result<Address, String> {
    const LOCAL: u32 = 1;
    let (cid, port) = authority.split_once(':').unwrap_or((authority, ""));
    let number = |text: &str, default: u32| {
        if text.is_empty() {
            Ok(default)
        } else {
            text.parse().map_err(|_| format!("{text} is not a number"))
        }
    };
    Ok(Address::Vsock { cid: number(cid, LOCAL)?, port: number(port, PORT.into())? })
}

/// The parameters of a URI.
struct Query {
    socket: Option<PathBuf>,
    security: Security,
}

impl Query {
    /// Each at most once; what is not known is a mistake.
    fn parse(query: &str, is_secure: bool) -> Result<Self, String> {
        let tls = if is_secure { TlsMode::Require } else { TlsMode::Disable };
        let mut parsed = Self { socket: None, security: Security { tls, ..Security::default() } };
        let mut seen = Vec::new();
        for item in query.split('&').filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            if seen.contains(&key) {
                return Err(format!("{key}= is given twice"));
            }
            seen.push(key);
            let value = decode(value)?;
            let path = || PathBuf::from(OsString::from_vec(value.clone()));
            let text = || String::from_utf8(value.clone()).map_err(|_| format!("{key}= is not UTF-8"));
            match key {
                "socket" if value.is_empty() => return Err("socket= needs a path".to_owned()),
                "socket" => parsed.socket = Some(path()),
                _ if key.starts_with("tls") => parsed.security.set(key, &text()?, path(), is_secure)?,
                _ => {
                    return Err(format!(
                        "{key}= is not a parameter of NBD URIs that we know (socket=, {TLS_PARAMETERS})"
                    ));
                }
            }
        }
        let of_tls = seen.iter().find(|key| key.starts_with("tls-"));
        match of_tls {
            Some(key) if parsed.security.tls == TlsMode::Disable => {
                Err(format!("{key}= is for TLS: write nbds instead of nbd, or add tls=allow"))
            }
            _ => Ok(parsed),
        }
    }
}

const TLS_PARAMETERS: &str = "tls=, tls-certificates=, tls-hostname=, tls-verify-peer=";

impl Security {
    fn set(&mut self, key: &str, value: &str, path: PathBuf, is_secure: bool) -> Result<(), String> {
        match (key, value) {
            ("tls", "require") => self.tls = TlsMode::Require,
            ("tls", "allow" | "disable") if is_secure => {
                return Err(format!("nbds is TLS or nothing: for tls={value} write nbd"));
            }
            ("tls", "allow") => self.tls = TlsMode::Allow,
            ("tls", "disable") => self.tls = TlsMode::Disable,
            ("tls", _) => return Err(format!("tls={value} is not one of require, allow, disable")),
            ("tls-certificates" | "tls-hostname", "") => return Err(format!("{key}= needs a value")),
            ("tls-certificates", _) => self.certificates = Some(path),
            ("tls-hostname", _) => self.hostname = Some(value.to_owned()),
            ("tls-verify-peer", "1" | "on" | "true" | "yes") => self.verify_peer = true,
            ("tls-verify-peer", "0" | "off" | "false" | "no") => self.verify_peer = false,
            ("tls-verify-peer", _) => return Err(format!("tls-verify-peer={value} is neither 0 nor 1")),
            ("tls-type", "x509") => {}
            ("tls-type" | "tls-psk-file" | "tls-username", _) => {
                return Err(format!(
                    "{key}= asks for TLS with a shared key or without any; only X.509 is known"
                ));
            }
            _ => return Err(format!("{key}= is not a parameter of TLS that we know ({TLS_PARAMETERS})")),
        }
        Ok(())
    }
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.ok_or("% is followed by two hexadecimal digits; write % itself as %25")?);
        rest = &tail[2..];
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String) {
        let uri = Uri::parse(text).unwrap();
        (uri.address.to_string(), uri.export)
    }

    #[test]
    fn this_machine_is_known_by_its_addresses() {
        let is_near = |text: &str| Uri::parse(text).unwrap().address.is_near();
        for near in ["nbd://", "nbd://127.1.2.3/", "nbd://[::1]/", "nbd+unix:///?socket=/s", "nbd+vsock://1/"]
        {
            assert!(is_near(near), "{near}");
        }
        for far in ["nbd://localhost.org/", "nbd://10.0.0.1/", "nbd://[fe80::1]/", "nbd+vsock://2/"] {
            assert!(!is_near(far), "{far}");
        }
    }

    #[test]
    fn addresses_and_names_come_out_as_written() {
        let cases = [
            ("nbd://localhost", "localhost:10809", ""),
            ("nbd://", "localhost:10809", ""),
            ("nbd://h:1/a", "h:1", "a"),
            ("nbd://[::1]:2//a", "[::1]:2", "/a"),
            ("nbd+unix:///a%20b?socket=/tmp/s%25", "/tmp/s%", "a b"),
            ("nbd+vsock://2:3/x", "vsock:2:3", "x"),
            ("NBD+TCP://h/%2Fa", "h:10809", "/a"),
            ("nbd://[fe80::1%25eth0]/", "[fe80::1%eth0]:10809", ""),
            ("nbd://h/ü", "h:10809", "ü"),
            ("nbd:h:1", "h:1", ""),
            ("nbd:[::1]:2:exportname=a:b%20", "[::1]:2", "a:b%20"),
            ("nbd:unix:/run/s:exportname=x", "/run/s", "x"),
            ("nbd:unix:/run/s:exportname=", "/run/s", ""),
        ];
        for (text, address, export) in cases {
            assert_eq!(parsed(text), (address.to_owned(), export.to_owned()), "{text}");
        }
    }

    #[test]
    fn security_is_as_the_scheme_and_the_parameters_say() {
        let all = Security {
            tls: TlsMode::Require,
            certificates: Some("/d e".into()),
            hostname: Some("x".to_owned()),
            verify_peer: false,
        };
        let cases = [
            ("nbd://h/", Security::default()),
            ("nbd://h/?tls=disable", Security::default()),
            ("nbds://h/", Security { tls: TlsMode::Require, ..Security::default() }),
            ("nbd://h/?tls=require&tls-type=x509", Security { tls: TlsMode::Require, ..Security::default() }),
            ("NBDS+TCP://h/?tls-verify-peer=1", Security { tls: TlsMode::Require, ..Security::default() }),
            ("nbds+vsock://2/", Security { tls: TlsMode::Require, ..Security::default() }),
            ("nbd+unix:///?tls=allow&socket=/s", Security { tls: TlsMode::Allow, ..Security::default() }),
            ("nbds://h/?tls-certificates=/d%20e&tls-hostname=x&tls-verify-peer=0", all),
            ("nbd:h:1", Security::default()),
        ];
        for (text, security) in cases {
            assert_eq!(Uri::parse(text).unwrap().security, security, "{text}");
        }
    }

    #[test]
    fn what_is_printed_is_read_again_as_the_same() {
        for text in [
            "nbd://h:1/a%20%2Fb",
            "nbd+unix:///x%3Fy?socket=/run/a%20b",
            "nbd+vsock://2:3/",
            "nbd://[::1]:2/ü",
            "nbds://h/a?tls-certificates=/d%26e&tls-hostname=x%3D&tls-verify-peer=0",
            "nbds+unix:///?socket=/s&tls-certificates=/d",
            "nbd+vsock://2:3/?tls=allow",
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!(Uri::parse(&uri.to_string()), Ok(uri.clone()), "{text}: {uri}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("disk.img", "write nbd://"),
            ("nbd+unix:///", "socket=PATH"),
            ("nbd+unix://host/?socket=/s", "no host"),
            ("nbd://h?socket=/s", "goes with nbd+unix"),
            ("nbd+unix:///?socket=/a&socket=/b", "twice"),
            ("nbd://h/?colour=red", "colour="),
            ("nbd://h:99999/", "65535"),
            ("nbd://[::1/", "]"),
            ("nbd://h/%zz", "%25"),
            ("nbds+unix:///", "nbds+unix needs ?socket=PATH"),
            ("nbdss://h/", "nbds"),
            ("nbd://me@h/", "only X.509"),
            ("nbds://me@h/", "only X.509"),
            ("nbds://h/?tls-psk-file=/k", "only X.509"),
            ("nbds://h/?tls-type=anon", "only X.509"),
            ("nbd://h/?tls-certificates=/d", "write nbds instead of nbd"),
            ("nbds://h/?tls=allow", "write nbd"),
            ("nbd://h/?tls=maybe", "require, allow, disable"),
            ("nbds://h/?tls-verify-peer=2", "neither 0 nor 1"),
            ("nbds://h/?tls-certificates=", "needs a value"),
            ("nbds://h/?tls-hostname=a&tls-hostname=b", "twice"),
            ("nbds://h/?tls-colour=red", "tls-hostname="),
            ("nbd://h/#a", "%23"),
            ("nbd://::1/", "brackets"),
            ("nbd://[::1]2/", "[::1]:PORT"),
            ("nbd://[::q]/", "not an IPv6 address"),
            ("nbd://a%20b/", "name of a host"),
            ("nbd:h", "nbd:HOST:PORT"),
            ("nbd:h:", "nbd:HOST:PORT"),
            ("nbd:::1", "nbd:HOST:PORT"),
            ("nbd:h:x", "65535"),
            ("nbd:unix:", "path"),
            ("http://h/", "http"),
        ];
        for (text, part) in cases {
            let said = Uri::parse(text).unwrap_err().to_string();
            assert!(said.contains(part) && said.starts_with(text), "{text}: {said}");
        }
    }
}
