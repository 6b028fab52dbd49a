//! TLS as the cluster uses it: rustls with ring, versions 1.2 and 1.3, the cluster's own CA and nothing else.
//!
//! Sessions are never resumed: a resumed session carries the certificate of its first handshake, so a renewed certificate would not be
//! seen and a removed or expired one would live on. Connections here are few and long, a full handshake costs them nothing.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{Fingerprint, IdentityError, ReloadingIdentity};

/// The protocols that servers and clients agree on.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The one cryptography provider; no process-wide default is needed or installed.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// A server that shows the newest certificate of `identity` and verifies client certificates against `ca_pem` where a client shows one.
///
/// Who showed none is still let in, to log in by password or token. [`crate::identity::Peer::from_connection`] says who came.
pub fn server_config(identity: Arc<ReloadingIdentity>, ca_pem: &str) -> Result<ServerConfig, IdentityError> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| IdentityError::invalid("client CA", error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(tls_error("the server's settings"))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(identity);
    config.alpn_protocols = ALPN.map(Vec::from).into();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client that trusts the CA in `ca_pem` alone and shows the newest certificate of `identity` where there is one.
pub fn client_config(ca_pem: &str, identity: Option<Arc<ReloadingIdentity>>) -> Result<ClientConfig, IdentityError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca_pem)?, provider())
        .build()
        .map_err(|error| IdentityError::invalid("CA", error))?;
    client_with(verifier, identity)
}

/// A client that accepts exactly the CA with this fingerprint, which the server has to send along with its certificate.
///
/// The returned [`PinnedCa`] gives the CA's certificate once a handshake has succeeded.
pub fn pinned_by_fingerprint(ca: Fingerprint) -> Result<(ClientConfig, Arc<PinnedCa>), IdentityError> {
    let pinned = Arc::new(PinnedCa { fingerprint: ca, seen: OnceLock::new(), provider: provider() });
    Ok((client_with(pinned.clone(), None)?, pinned))
}

fn client_with(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<Arc<ReloadingIdentity>>,
) -> Result<ClientConfig, IdentityError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(tls_error("the client's settings"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = ALPN.map(Vec::from).into();
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn tls_error(what: &'static str) -> impl FnOnce(rustls::Error) -> IdentityError {
    move |source| IdentityError::Tls { what: what.into(), source }
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in crate::identity::pem::certificates("CA", ca_pem.as_bytes())? {
        roots.add(certificate).map_err(tls_error("the CA"))?;
    }
    Ok(Arc::new(roots))
}

/// Checks the signature of `leaf` against `ca`, without looking at names or dates: an expired identity can still be read and named.
pub(crate) fn verify_issued_by(leaf: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let bad = |_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(bad)?;
    let (_, ca) = X509Certificate::from_der(ca).map_err(bad)?;
    leaf.verify_signature(Some(ca.public_key()))
        .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
}

/// Verifies a server against the fingerprint of its CA, and remembers that CA.
#[derive(Debug)]
pub struct PinnedCa {
    fingerprint: Fingerprint,
    seen: OnceLock<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    /// The CA's certificate as PEM, once a server has proved itself.
    pub fn ca_pem(&self) -> Option<String> {
        self.seen.get().map(crate::identity::pem::encode_certificate)
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.fingerprint)
            .ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        let _ = self.seen.set(pinned.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
