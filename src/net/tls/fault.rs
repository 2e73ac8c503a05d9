//! Why a TLS connection cannot go on, in words that help, and what the peer is told.

use std::borrow::Cow;
use std::fmt;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};

use super::Side;

/// The end of a TLS connection, other than a close that both agreed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    reason: Cow<'static, str>,
    alert: Option<AlertDescription>,
}

impl Fault {
    /// A fault of the peer's, and the alert that tells it so.
    pub(super) fn of_peer(reason: impl Into<Cow<'static, str>>, alert: AlertDescription) -> Self {
        Self { reason: reason.into(), alert: Some(alert) }
    }

    /// One that the peer is not told about.
    pub(super) fn silent(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), alert: None }
    }

    /// What is not ours to change cannot be encrypted.
    pub fn unsealable() -> Self {
        Self::silent("pages of the cache cannot be encrypted")
    }

    /// The peer ended it with an alert.
    pub(super) fn told(alert: AlertDescription, side: Side) -> Self {
        Self::silent(format!("the {} ended it: {}", peer(side), meaning(alert)))
    }

    /// What rustls found. It has queued its alert already.
    pub(super) fn of_handshake(error: &Error, side: Side) -> Self {
        match error {
            Error::AlertReceived(alert) => Self::told(*alert, side),
            error => Self::silent(explain(error, side)),
        }
    }

    /// What the peer has to be told.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        self.alert
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, fault)
    }
}

fn peer(side: Side) -> &'static str {
    match side {
        Side::Server => "client",
        Side::Client => "server",
    }
}

/// An alert of the peer's.
fn meaning(alert: AlertDescription) -> Cow<'static, str> {
    match alert {
        AlertDescription::UnknownCA => "it does not know the CA of our certificate".into(),
        AlertDescription::BadCertificate => "it finds our certificate bad".into(),
        AlertDescription::CertificateExpired => "our certificate has expired".into(),
        AlertDescription::CertificateRevoked => "our certificate is revoked".into(),
        AlertDescription::CertificateUnknown => "it does not accept our certificate".into(),
        AlertDescription::UnsupportedCertificate => "it cannot use our kind of certificate".into(),
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "it wants a certificate of ours".into()
        }
        AlertDescription::AccessDenied => "our certificate is valid but not allowed there".into(),
        AlertDescription::HandshakeFailure => "nothing that both ends support (handshake_failure)".into(),
        AlertDescription::ProtocolVersion => "no TLS version that both ends support".into(),
        other => format!("alert {other:?}").into(),
    }
}

fn explain(error: &Error, side: Side) -> Cow<'static, str> {
    let who = peer(side);
    match error {
        Error::InvalidCertificate(error) => invalid_certificate(error, side),
        Error::NoCertificatesPresented => format!("the {who} shows no certificate").into(),
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => format!("the {who} speaks neither TLS 1.2 nor 1.3").into(),
        // They came with TLS 1.2; who says that it speaks 1.2 without them is not answered either.
        Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired) => {
            format!("the {who} speaks neither TLS 1.2 nor 1.3: it names no signature algorithms").into()
        }
        Error::PeerIncompatible(why) => {
            format!("the {who} has nothing that both ends support: {why:?}").into()
        }
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => format!("what the {who} sends is not TLS").into(),
        Error::InvalidMessage(why) => format!("the {who} sends what TLS does not have: {why:?}").into(),
        Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme) => {
            format!("the {who} signs in a way that it did not announce").into()
        }
        Error::DecryptError => format!("what the {who} sends cannot be decrypted").into(),
        other => other.to_string().into(),
    }
}

fn invalid_certificate(error: &CertificateError, side: Side) -> Cow<'static, str> {
    let certificate = match side {
        Side::Server => "client certificate",
        Side::Client => "server certificate",
    };
    match error {
        CertificateError::UnknownIssuer => format!("{certificate} signed by unknown CA").into(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("{certificate} expired: {error}").into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("{certificate} not valid yet: {error}").into()
        }
        CertificateError::Revoked => format!("{certificate} revoked").into(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("{certificate} for another name: {error}").into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("{certificate} not made for this purpose: {error}").into()
        }
        CertificateError::BadSignature => {
            format!("{certificate} signed by another CA of that name, or changed").into()
        }
        CertificateError::ApplicationVerificationFailure => format!("{certificate} refused").into(),
        other => format!("{certificate} not accepted: {other}").into(),
    }
}
