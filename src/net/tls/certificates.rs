//! Certificates and keys: a directory with the names that every NBD peer uses (those of GnuTLS and libvirt).
//!
//! | file | holds | needed |
//! |---|---|---|
//! | `ca-cert.pem` | CAs that the peer's certificate may come from | to verify the peer |
//! | `ca-crl.pem` | certificates that are revoked | no |
//! | `server-cert.pem`, `server-key.pem` | a server's certificate (with its chain) and key | by a server |
//! | `client-cert.pem`, `client-key.pem` | the same of a client | if the server wants one |

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::unverified::Unverified;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use x509_cert::der::Decode;

/// How the system's CAs are called where a file would be named.
const SYSTEM: &str = "the system's CA certificates";
/// How early the end of a certificate is warned of.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why certificates are no use, for the operator.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the message of each variant is its documentation
pub enum CertificateError {
    #[error("cannot read {}: {source}{}", .path.display(), advice(.source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a PEM file: {why}", .path.display())]
    NotPem { path: PathBuf, why: String },
    #[error("{} holds no {what}", .path.display())]
    Empty { path: PathBuf, what: &'static str },
    #[error("{} cannot be used: {why}", .path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("the system has no CA certificates to verify servers by: install some, or name a directory")]
    NoAuthorities,
    #[error("{} does not belong to {}", .key.display(), .certificate.display())]
    Pair { certificate: PathBuf, key: PathBuf },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; is it the right directory?",
        io::ErrorKind::PermissionDenied => "; may this user read it?",
        _ => "",
    }
}

/// When a certificate ends, if that is soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Its file.
    pub path: PathBuf,
    /// How long it is still good for; zero when it has ended.
    pub left: Duration,
}

/// A server's certificates, as they were last loaded.
#[derive(Debug)]
pub struct Certificates {
    directory: PathBuf,
    verify_peer: bool,
    current: RwLock<Arc<ServerConfig>>,
}

impl Certificates {
    /// Loads a server's certificate and key and, to verify its clients, the CAs and what they revoked.
    ///
    /// # Errors
    /// [`CertificateError`]: which file, and why.
    pub fn load(directory: &Path, verify_peer: bool) -> Result<Self, CertificateError> {
        let current = server_config(directory, verify_peer, provider())?;
        Ok(Self { directory: directory.to_path_buf(), verify_peer, current: RwLock::new(current) })
    }

    /// Loads them again, for sessions from now on; after an error those from before stay.
    ///
    /// # Errors
    /// As [`Certificates::load`].
    pub fn reload(&self) -> Result<(), CertificateError> {
        let fresh = server_config(&self.directory, self.verify_peer, provider())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// What a handshake needs.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether clients must show a certificate.
    pub fn verify_peer(&self) -> bool {
        self.verify_peer
    }

    /// Whether the server's certificate, or a CA that it verifies clients by, ends within 30 days.
    pub fn expire_soon(&self) -> Vec<Expiry> {
        let mut files = vec!["server-cert.pem"];
        if self.verify_peer {
            files.push("ca-cert.pem");
        }
        expire_soon(&self.directory, &files)
    }
}

/// What a client verifies servers by, and its own certificate if it has one.
#[derive(Clone, Debug)]
pub struct ClientCertificates {
    config: Arc<ClientConfig>,
}

impl ClientCertificates {
    /// Loads the CAs, what they revoked, and the client's certificate and key if they are there. Without a directory the
    /// system's CAs are trusted and there is no certificate of ours. Without `verify_peer` any server is taken, whoever it
    /// is, and CAs are not needed.
    ///
    /// # Errors
    /// [`CertificateError`]: which file, and why.
    pub fn load(directory: Option<&Path>, verify_peer: bool) -> Result<Self, CertificateError> {
        Ok(Self { config: client_config(directory, verify_peer, provider())? })
    }

    /// What a handshake needs.
    pub fn current(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(super) fn server_config(
    directory: &Path,
    verify_peer: bool,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, CertificateError> {
    let (certificate_path, key_path) = (directory.join("server-cert.pem"), directory.join("server-key.pem"));
    let (chain, key) = (certificates(&certificate_path)?, key(&key_path)?);
    let verifier = if verify_peer {
        let (roots, path) = roots(directory)?;
        WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(revoked(directory)?)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| unverifiable(directory, path, &error))?
    } else {
        WebPkiClientVerifier::no_client_auth()
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| unusable(certificate_path.clone(), &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| mismatch(&error, certificate_path, key_path))?;
    // A connection lives for hours: nobody resumes a session, and nothing of one has to be kept.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

pub(super) fn client_config(
    directory: Option<&Path>,
    verify_peer: bool,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, CertificateError> {
    let ca = directory.map_or_else(|| PathBuf::from(SYSTEM), |directory| directory.join("ca-cert.pem"));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| unusable(ca.clone(), &error))?;
    let builder = if verify_peer {
        let (roots, revoked) = match directory {
            Some(directory) => (roots(directory)?.0, revoked(directory)?),
            None => (system_roots()?, Vec::new()),
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .with_crls(revoked)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| unverifiable(directory.unwrap_or_else(|| Path::new("")), ca, &error))?;
        builder.with_webpki_verifier(verifier)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    };
    let pair =
        directory.map(|directory| (directory.join("client-cert.pem"), directory.join("client-key.pem")));
    let mut config = match pair.filter(|(certificate, key)| certificate.exists() || key.exists()) {
        Some((certificate_path, key_path)) => {
            let (chain, key) = (certificates(&certificate_path)?, key(&key_path)?);
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| mismatch(&error, certificate_path, key_path))?
        }
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

fn roots(directory: &Path) -> Result<(Arc<RootCertStore>, PathBuf), CertificateError> {
    let path = directory.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots.add(certificate).map_err(|error| unusable(path.clone(), &error))?;
    }
    Ok((Arc::new(roots), path))
}

/// What the system trusts. Single ones that cannot be used are common and no reason to refuse the others.
fn system_roots() -> Result<Arc<RootCertStore>, CertificateError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(CertificateError::NoAuthorities);
    }
    Ok(Arc::new(roots))
}

fn revoked(directory: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, CertificateError> {
    let path = directory.join("ca-crl.pem");
    if path.exists() { items(&path, "certificate revocation list") } else { Ok(Vec::new()) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    items(path, "certificate")
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, "private key", error))
}

/// Everything of one kind in a file, at least one.
fn items<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, CertificateError> {
    let items: Result<Vec<T>, _> = T::pem_file_iter(path).and_then(Iterator::collect);
    match items {
        Ok(items) if items.is_empty() => Err(CertificateError::Empty { path: path.to_path_buf(), what }),
        Ok(items) => Ok(items),
        Err(error) => Err(unreadable(path, what, error)),
    }
}

fn unreadable(path: &Path, what: &'static str, error: pem::Error) -> CertificateError {
    let path = path.to_path_buf();
    match error {
        pem::Error::Io(source) => CertificateError::Read { path, source },
        pem::Error::NoItemsFound => CertificateError::Empty { path, what },
        other => CertificateError::NotPem { path, why: other.to_string() },
    }
}

fn unusable(path: PathBuf, error: &rustls::Error) -> CertificateError {
    CertificateError::Unusable { path, why: error.to_string() }
}

fn unverifiable(directory: &Path, ca: PathBuf, error: &VerifierBuilderError) -> CertificateError {
    let path = match error {
        VerifierBuilderError::InvalidCrl(_) => directory.join("ca-crl.pem"),
        _ => ca,
    };
    CertificateError::Unusable { path, why: error.to_string() }
}

/// rustls looks at a certificate and its key together.
fn mismatch(error: &rustls::Error, certificate: PathBuf, key: PathBuf) -> CertificateError {
    match error {
        rustls::Error::InconsistentKeys(_) => CertificateError::Pair { certificate, key },
        rustls::Error::General(_) => unusable(key, error),
        _ => unusable(certificate, error),
    }
}

fn expire_soon(directory: &Path, files: &[&str]) -> Vec<Expiry> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut soon = Vec::new();
    for file in files {
        let path = directory.join(file);
        for certificate in certificates(&path).unwrap_or_default() {
            let Ok(parsed) = x509_cert::Certificate::from_der(&certificate) else { continue };
            let end = parsed.tbs_certificate().validity().not_after.to_unix_duration();
            let left = end.saturating_sub(now);
            if left < EXPIRES_SOON {
                soon.push(Expiry { path: path.clone(), left });
            }
        }
    }
    soon
}
