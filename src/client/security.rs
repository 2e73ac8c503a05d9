//! TLS of a connection: whether, whom to trust, under which name.

use std::path::PathBuf;

use super::error::ConnectError;
use super::uri::{Address, Uri};
use crate::net::tls::{ClientCertificates, ServerName};
use crate::proto::TlsMode;
use crate::rt;

/// What a URI says about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// Whether: `nbds` requires it, `nbd` goes without, unless `tls=` says otherwise.
    pub tls: TlsMode,
    /// `tls-certificates=DIR`: where `ca-cert.pem` is, and `client-cert.pem` with `client-key.pem` if the server wants to know
    /// us. Without it the system's CAs are trusted, and we show no certificate.
    pub certificates: Option<PathBuf>,
    /// `tls-hostname=NAME`: whom the server's certificate has to name, if not the URI's host. Where the URI has no host it is
    /// `localhost`.
    pub hostname: Option<String>,
    /// `tls-verify-peer=0`: take any certificate. Whoever sits on the line can then be the server.
    pub verify_peer: bool,
}

impl Default for Security {
    fn default() -> Self {
        Self { tls: TlsMode::Disable, certificates: None, hostname: None, verify_peer: true }
    }
}

/// What a handshake needs, read anew for each connection: certificates are renewed while a client reconnects.
pub(super) struct Credentials {
    pub(super) certificates: ClientCertificates,
    pub(super) name: ServerName<'static>,
}

impl Credentials {
    /// `None` where TLS is not asked for.
    pub(super) async fn load(uri: &Uri) -> Result<Option<Self>, ConnectError> {
        let security = uri.security.clone();
        if security.tls == TlsMode::Disable {
            return Ok(None);
        }
        let name = uri.server_name();
        let name = ServerName::try_from(name.clone()).map_err(|_| ConnectError::ServerName { name })?;
        let load = move || ClientCertificates::load(security.certificates.as_deref(), security.verify_peer);
        let certificates = rt::blocking(load).await?;
        Ok(Some(Self { certificates, name }))
    }
}

impl Uri {
    /// Whom the server's certificate has to name.
    fn server_name(&self) -> String {
        match (&self.security.hostname, &self.address) {
            (Some(name), _) => name.clone(),
            // A zone is ours alone; no certificate names it.
            (None, Address::Tcp { host, .. }) => host.split('%').next().unwrap_or_default().to_owned(),
            (None, Address::Unix(_) | Address::Vsock { .. }) => "localhost".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_called_as_the_uri_says() {
        for (uri, name) in [
            ("nbds://storage.example:1/", "storage.example"),
            ("nbds://[fe80::1%25eth0]/", "fe80::1"),
            ("nbds://10.0.0.1/?tls-hostname=storage.example", "storage.example"),
            ("nbds+unix:///?socket=/s", "localhost"),
            ("nbds+unix:///?socket=/s&tls-hostname=x", "x"),
            ("nbds+vsock://2/", "localhost"),
        ] {
            let uri = Uri::parse(uri).unwrap();
            assert_eq!(uri.server_name(), name, "{uri}");
            ServerName::try_from(uri.server_name()).unwrap();
        }
    }
}
