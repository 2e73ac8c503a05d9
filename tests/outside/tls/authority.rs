//! A CA, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

/// A directory with a CA's certificate, and those that it signed.
pub(crate) struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a CA");
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("ca-cert.pem"), issuer.pem()).expect("write");
        Self { dir, issuer }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A server's and a client's certificate that are good.
    pub(crate) fn issue_pair(&self) {
        self.issue("server", server_params());
        self.issue("client", client_params("client"));
    }

    /// `kind`-cert.pem and `kind`-key.pem in the authority's own directory.
    pub(crate) fn issue(&self, kind: &str, params: CertificateParams) {
        self.issue_to(self.dir(), kind, params);
    }

    /// The same somewhere else.
    pub(crate) fn issue_to(&self, dir: &Path, kind: &str, params: CertificateParams) {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(dir.join(format!("{kind}-key.pem")), key.serialize_pem()).expect("write");
        fs::write(dir.join(format!("{kind}-cert.pem")), certificate.pem()).expect("write");
    }

    /// Lists the certificate with this serial number in ca-crl.pem.
    pub(crate) fn revoke(&self, serial: u64) {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2999, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("a list");
        fs::write(self.path("ca-crl.pem"), list.pem().expect("PEM")).expect("write");
    }
}

/// For localhost by name and address.
pub(crate) fn server_params() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params
}

pub(crate) fn client_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![format!("{name}.test")]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// What a client trusts and shows by the files of a directory, as rustls has it: not the code under test.
pub(crate) fn client_config(directory: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(directory.join("ca-cert.pem")).expect("a CA");
    roots.add(ca).expect("a CA");
    let builder = builder().with_root_certificates(roots);
    let config = match CertificateDer::from_pem_file(directory.join("client-cert.pem")) {
        Ok(certificate) => {
            let key = PrivateKeyDer::from_pem_file(directory.join("client-key.pem")).expect("a key");
            builder.with_client_auth_cert(vec![certificate], key).expect("a certificate and its key")
        }
        Err(_) => builder.with_no_client_auth(),
    };
    Arc::new(config)
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions")
}

pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}
