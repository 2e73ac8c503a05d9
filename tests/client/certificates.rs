//! What a CA signs in these tests, and directories that trust it.

use std::fs;
use std::path::PathBuf;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SerialNumber, date_time_ymd};

pub(crate) use crate::authority::Authority;
use crate::authority::{client_params, server_params};

/// A CA with a certificate for a server on this machine and one for a client called `client`.
pub(crate) fn complete() -> Authority {
    let authority = Authority::new("a CA");
    authority.issue("server", server());
    authority.issue("client", client("client"));
    authority
}

/// A directory that trusts this CA and holds nothing else yet.
pub(crate) fn trusting(authority: &Authority, name: &str) -> PathBuf {
    let place = authority.path(name);
    fs::create_dir(&place).unwrap();
    fs::copy(authority.path("ca-cert.pem"), place.join("ca-cert.pem")).unwrap();
    place
}

/// A server that is called `localhost` and `127.0.0.1`, and may be nothing but a server.
pub(crate) fn server() -> CertificateParams {
    let mut params = server_params();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// A server of another name.
pub(crate) fn elsewhere() -> CertificateParams {
    let mut params = server();
    params.subject_alt_names = client_params("elsewhere").subject_alt_names;
    params
}

/// `CN=name,O=Example`, with the alternative name `name`.test, who may be nothing but a client.
pub(crate) fn client(name: &str) -> CertificateParams {
    let mut params = client_params(name);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A certificate that was good for a year, long ago.
pub(crate) fn expired(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(2002, 1, 1);
    params
}

/// A certificate with this serial number.
pub(crate) fn numbered(mut params: CertificateParams, serial: u64) -> CertificateParams {
    params.serial_number = Some(SerialNumber::from(serial));
    params
}
