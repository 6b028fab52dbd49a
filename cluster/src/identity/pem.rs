//! PEM in and out. Reading is rustls-pki-types; it does not write, and six lines do not deserve a dependency.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::IdentityError;

/// Every certificate of a PEM text, at least one.
pub(crate) fn certificates(what: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| IdentityError::invalid(what, error))?;
    if found.is_empty() { Err(IdentityError::invalid(what, "holds no certificate")) } else { Ok(found) }
}

/// The first private key of a PEM text.
pub(crate) fn private_key(what: &str, text: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| IdentityError::invalid(what, error))
}

/// One certificate as PEM.
pub(crate) fn encode_certificate(der: &CertificateDer<'_>) -> String {
    let body = STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
