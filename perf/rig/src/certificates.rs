//! Certificates for the cells with TLS: the same for every server, made for each run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};
use tempfile::TempDir;

/// A directory with a CA's certificate and a server's, ECDSA on P-256, under the names that every server takes.
#[derive(Debug)]
pub(crate) struct Certificates {
    dir: TempDir,
}

impl Certificates {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a directory for certificates")?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let write = |name: &str, text: String| fs::write(dir.path().join(name), text);
        write("ca-cert.pem", issuer.pem())?;
        write("server-cert.pem", certificate.pem())?;
        write("server-key.pem", key.serialize_pem())?;
        // fio cannot tell libnbd where certificates are; libnbd looks here by itself.
        let home = dir.path().join("home/.pki");
        fs::create_dir_all(&home)?;
        symlink(dir.path(), home.join("libnbd"))?;
        Ok(Self { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The home of a program that trusts the CA.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }
}
