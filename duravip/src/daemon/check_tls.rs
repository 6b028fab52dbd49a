//! Whom checks over https believe: servers with a certificate from an authority that this machine trusts, as every other
//! program here does, or those that the check's own `ca` file names. In that file a certificate may also be the server's
//! own: then it is that server, whatever its name and dates are, as an operator who put it there said.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster::{files, tls};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Where systems keep the authorities they trust.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// All authorities of the world are a quarter of a megabyte.
const FILE_BYTES: u64 = 16 << 20;

/// A client that believes whom this file names; without one, whom the system trusts.
pub fn client(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let path = match ca {
        Some(path) => path.to_owned(),
        None => system().ok_or("this machine has no list of trusted authorities; give the check a ca file")?,
    };
    let words = |error: &dyn std::error::Error| format!("{}: {}", path.display(), cluster::error::Chain(error));
    let pem = files::read_limited(&path, FILE_BYTES).map_err(|error| words(&error))?;
    let pem = pem.ok_or_else(|| format!("{} is not there", path.display()))?;
    let listed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let listed: Vec<CertificateDer<'static>> = listed.map_err(|error| words(&error))?;
    let mut roots = RootCertStore::empty();
    // One that rustls cannot use is no reason to do without the rest.
    roots.add_parsable_certificates(listed.iter().cloned());
    if listed.is_empty() {
        return Err(format!("{} holds no certificate", path.display()));
    }
    let authorities = match roots.is_empty() {
        true => None,
        false => Some(
            WebPkiServerVerifier::builder_with_provider(roots.into(), tls::provider())
                .build()
                .map_err(|error| words(&error))?,
        ),
    };
    let own = if ca.is_some() { listed } else { Vec::new() };
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(|error| words(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believed { own, authorities }))
        .with_no_client_auth();
    // Every check proves anew who answers.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn system() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(SYSTEM.map(PathBuf::from)).find(|path| path.is_file())
}

#[derive(Debug)]
struct Believed {
    /// Servers' own certificates.
    own: Vec<CertificateDer<'static>>,
    authorities: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Believed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.own.iter().any(|own| own.as_ref() == end_entity.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.authorities {
            Some(verifier) => verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
