//! `--tls` and what belongs to it: certificates, when they end, and when they are loaded again.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::net::tls::Certificates;
use crate::server::Encryption;

const DAY_S: u64 = 24 * 3600;

/// Whether connections are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Off,
    On,
    Require,
}

/// Encryption.
#[derive(Debug, Args)]
#[command(next_help_heading = "Encryption")]
pub(super) struct Tls {
    /// Encrypt: clients that ask for it and exports with tls=require (on), or every connection (require)
    ///
    /// TLS 1.2 and 1.3 with X.509 certificates; there are no pre-shared keys.
    #[arg(long, value_name = "WHEN", value_enum, default_value = "off")]
    tls: Mode,

    /// Directory with server-cert.pem and server-key.pem; to verify clients also ca-cert.pem and, if there is one, ca-crl.pem
    #[arg(long, value_name = "DIR")]
    tls_certificates: Option<PathBuf>,

    /// Refuse clients without a certificate that a CA of ca-cert.pem signed
    #[arg(long)]
    tls_verify_peer: bool,
}

impl Tls {
    /// Loads what the options name.
    pub(super) fn encryption(&self) -> anyhow::Result<Option<Encryption>> {
        let Some(directory) = &self.tls_certificates else {
            if self.tls != Mode::Off || self.tls_verify_peer {
                bail!("TLS needs certificates: name their directory with --tls-certificates");
            }
            return Ok(None);
        };
        if self.tls == Mode::Off {
            bail!("--tls-certificates is for TLS: add --tls on or --tls require");
        }
        let certificates = Certificates::load(directory, self.tls_verify_peer)?;
        warn_of_expiry(&certificates);
        Ok(Some(Encryption { required: self.tls == Mode::Require, certificates: Arc::new(certificates) }))
    }

    /// Where a client of this machine finds what it verifies us by, if it has to come by TLS.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        let directory = self.tls_certificates.as_ref()?;
        Some(std::path::absolute(directory).unwrap_or_else(|_| directory.clone()))
    }

    /// Whether the server answers nothing without TLS.
    pub(super) fn is_required(&self) -> bool {
        self.tls == Mode::Require
    }
}

/// Takes the files as they are now; after an error the certificates stay that were loaded before.
pub(super) fn reload(encryption: Option<&Encryption>) {
    let Some(Encryption { certificates, .. }) = encryption else {
        return tracing::info!("SIGHUP: there are no certificates to load again");
    };
    match certificates.reload() {
        Ok(()) => {
            tracing::info!("certificates loaded again, for connections from now on");
            warn_of_expiry(certificates);
        }
        Err(error) => tracing::error!("{error}; the certificates from before stay in use"),
    }
}

fn warn_of_expiry(certificates: &Certificates) {
    for expiry in certificates.expire_soon() {
        let (path, days) = (expiry.path.display(), expiry.left.as_secs() / DAY_S);
        if expiry.left.is_zero() {
            tracing::warn!("{path} has expired: clients refuse it");
        } else {
            tracing::warn!("{path} expires in {days} days: replace it, then send SIGHUP");
        }
    }
}
