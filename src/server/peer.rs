//! Who is at the other end: what the kernel vouches for, and what a certificate does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::SockRef;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

use crate::sys::socket::Credentials;

/// One client as rules see it. What it is may change once: when TLS begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from.
    pub address: Address,
    /// How its bytes come.
    pub channel: Channel,
}

/// Where a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A process of this machine, or of a container on it.
    Unix(Credentials),
    /// A guest or its host.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// The kernel does not say any more: the peer has gone. What it sent before may still be here to be read, so this is
    /// nobody, not somebody.
    Unknown,
}

/// How bytes come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// As they are.
    Plain,
    /// Through TLS; with the certificate, if the client was asked for one and it was verified.
    Tls(Option<Certificate>),
}

/// What a verified certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Distinguished name as in RFC 4514, the most specific part first: `CN=backup,O=Example`.
    pub subject: String,
    /// The common names in it, without their escapes.
    pub common_names: Vec<String>,
    /// Subject alternative names: `dns:` in lower case, `ip:`, `email:`, `uri:`; other kinds are left out.
    pub names: Vec<String>,
    /// Distinguished name of who signed it.
    pub issuer: String,
}

impl Address {
    /// Asks the kernel who connected.
    pub fn of(connection: &OwnedFd) -> Self {
        let socket = SockRef::from(connection);
        let Ok(remote) = socket.peer_addr() else { return Self::Unknown };
        if let Some(address) = remote.as_socket() {
            return Self::Tcp(address);
        }
        if let Some((cid, port)) = remote.as_vsock_address() {
            return Self::Vsock { cid, port };
        }
        if !remote.is_unix() {
            return Self::Unknown;
        }
        crate::sys::socket::peer_credentials(connection).map_or(Self::Unknown, Self::Unix)
    }

    /// The IP address of a TCP peer. IPv4 may arrive as IPv6 on a socket for both families; it is IPv4 here.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip().to_canonical()),
            _ => None,
        }
    }
}

/// How the log calls the peer.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(Credentials { pid: Some(pid), .. }) => write!(f, "unix:pid={pid}"),
            Self::Unix(Credentials { pid: None, uid, .. }) => write!(f, "unix:uid={uid}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Unknown => f.write_str("a peer that has gone"),
        }
    }
}

/// With what its certificate says, if it has one.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.channel {
            Channel::Plain => self.address.fmt(f),
            Channel::Tls(None) => write!(f, "{} (TLS)", self.address),
            Channel::Tls(Some(certificate)) => write!(f, "{} (TLS, {})", self.address, certificate.subject),
        }
    }
}

/// Why nothing can be said of a certificate's holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate's names cannot be read: {0}")]
pub struct CertificateError(x509_cert::der::Error);

impl Certificate {
    /// Reads a certificate that was verified already.
    ///
    /// # Errors
    /// What cannot be read must not be taken for a peer without a certificate: close the connection.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = x509_cert::Certificate::from_der(der).map_err(CertificateError)?;
        let tbs = certificate.tbs_certificate();
        let alternatives = tbs.get_extension::<SubjectAltName>().map_err(CertificateError)?;
        let alternatives = alternatives.map(|(_, names)| names.0).unwrap_or_default();
        Ok(Self {
            subject: tbs.subject().to_string(),
            common_names: common_names(tbs.subject()),
            names: alternatives.iter().filter_map(alternative).collect(),
            issuer: tbs.issuer().to_string(),
        })
    }
}

fn common_names(subject: &Name) -> Vec<String> {
    let attributes = subject.iter().filter(|attribute| attribute.oid == COMMON_NAME);
    attributes
        .filter_map(|attribute| {
            let value = &attribute.value;
            Some(match value.tag() {
                Tag::Utf8String => Utf8StringRef::try_from(value).ok()?.as_str().to_owned(),
                Tag::PrintableString => PrintableStringRef::try_from(value).ok()?.as_str().to_owned(),
                Tag::Ia5String => Ia5StringRef::try_from(value).ok()?.as_str().to_owned(),
                Tag::TeletexString => TeletexStringRef::try_from(value).ok()?.as_str().to_owned(),
                _ => return None,
            })
        })
        .collect()
}

/// X.520, 6.2.2.
const COMMON_NAME: x509_cert::der::oid::ObjectIdentifier =
    x509_cert::der::oid::ObjectIdentifier::new_unwrap("2.5.4.3");

fn alternative(name: &GeneralName) -> Option<String> {
    Some(match name {
        GeneralName::DnsName(name) => format!("dns:{}", name.as_str().to_ascii_lowercase()),
        GeneralName::Rfc822Name(address) => format!("email:{}", address.as_str()),
        GeneralName::UniformResourceIdentifier(uri) => format!("uri:{}", uri.as_str()),
        GeneralName::IpAddress(octets) => {
            let octets = octets.as_bytes();
            let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()?;
            format!("ip:{address}")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    /// A name cannot pretend to be made of more parts than it is, and DNS names know no case.
    #[test]
    fn names_in_certificates_are_told_apart_from_their_parts() {
        let mut params = CertificateParams::new(vec!["Host.Example".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 1].into()));
        params.subject_alt_names.push(SanType::IpAddress("2001:db8::1".parse().unwrap()));
        params.subject_alt_names.push(SanType::Rfc822Name("Me@Example".try_into().unwrap()));
        params.subject_alt_names.push(SanType::URI("urn:X".try_into().unwrap()));
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, "admin,O=Other+\"");
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let read = Certificate::from_der(der.der()).unwrap();
        assert_eq!(read.subject, "CN=admin\\,O=Other\\+\\\",O=Example");
        assert_eq!(read.issuer, read.subject);
        assert_eq!(read.common_names, ["admin,O=Other+\""]);
        let names = ["dns:host.example", "ip:192.0.2.1", "ip:2001:db8::1", "email:Me@Example", "uri:urn:X"];
        assert_eq!(read.names, names);
        Certificate::from_der(&der.der()[..100]).unwrap_err();
    }
}
