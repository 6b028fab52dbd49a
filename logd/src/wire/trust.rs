//! Who is at the other end: TLS with the nodes' identities, or with the cluster key where there are none.
//!
//! With identities, each side proves the name of its node, and a client accepts only the node that it wanted. With the cluster key alone both sides
//! show a certificate over one key pair that is derived from it: whoever can, knows the key and is a member, and what name he gives is believed.
//! With neither nobody is talked to.

use std::sync::Arc;

use cluster::identity::{ClusterKey, Peer, ReloadingIdentity};
use cluster::tls;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What both ends agree on by ALPN.
const PROTOCOL: &[u8] = b"eccluster-log/1";
/// An Ed25519 private key before its 32 bytes, in PKCS #8.
const PKCS8_HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// How this node proves itself.
#[derive(Debug, Clone)]
pub enum Trust {
    /// By its certificate.
    Identity(Arc<ReloadingIdentity>),
    /// By knowing the cluster's key.
    Key(ClusterKey),
    /// Not at all.
    Nobody,
}

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Neither an identity nor a key.
    #[error("neither an identity nor a cluster key: other nodes are not talked to")]
    Nobody,
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] cluster::identity::IdentityError),
    /// The key cannot be used.
    #[error("the cluster key cannot be used for TLS: {0}")]
    Key(String),
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proved {
    /// The certificate of this node.
    Node {
        /// Its name.
        node: String,
        /// Trusted with the cluster's keys itself.
        voter: bool,
    },
    /// Somebody who knows the cluster's key.
    Member,
}

impl Trust {
    /// From what a daemon was started with; an identity is better than a key.
    pub fn new(identity: Option<Arc<ReloadingIdentity>>, key: Option<ClusterKey>) -> Self {
        match (identity, key) {
            (Some(identity), _) => Self::Identity(identity),
            (None, Some(key)) => Self::Key(key),
            (None, None) => Self::Nobody,
        }
    }

    /// For accepting connections.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TrustError> {
        let mut config = match self {
            Self::Identity(identity) => tls::server_config(identity.clone(), identity.current().ca_pem())?,
            Self::Key(key) => Shared::of(key)?.server()?,
            Self::Nobody => return Err(TrustError::Nobody),
        };
        config.alpn_protocols = vec![PROTOCOL.into()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// For connecting to a node, with the name to expect.
    pub fn connector(&self, node: &str) -> Result<(TlsConnector, ServerName<'static>), TrustError> {
        let mut config = match self {
            Self::Identity(identity) => tls::client_config(identity.current().ca_pem(), Some(identity.clone()))?,
            Self::Key(key) => Shared::of(key)?.client()?,
            Self::Nobody => return Err(TrustError::Nobody),
        };
        config.alpn_protocols = vec![PROTOCOL.into()];
        // Every node's certificate names the node beside its addresses.
        let name = ServerName::try_from(node.to_owned()).map_err(|error| TrustError::Key(error.to_string()))?;
        Ok((TlsConnector::from(Arc::new(config)), name))
    }

    /// Who connected; `None` for somebody without a certificate of the cluster.
    pub fn proved(&self, connection: &rustls::ServerConnection) -> Option<Proved> {
        match self {
            Self::Identity(_) => {
                let peer = Peer::from_connection(connection).ok().flatten()?;
                let voter = peer.role == cluster::identity::NodeRole::Voter;
                Some(Proved::Node { node: peer.node, voter })
            }
            Self::Key(_) => connection.peer_certificates().map(|_| Proved::Member),
            Self::Nobody => None,
        }
    }
}

/// The key pair that everybody makes of the cluster key.
#[derive(Debug)]
struct Shared {
    certificate: CertificateDer<'static>,
    private: PrivatePkcs8KeyDer<'static>,
    public: Vec<u8>,
}

fn unusable(error: impl ToString) -> TrustError {
    TrustError::Key(error.to_string())
}

impl Shared {
    fn of(key: &ClusterKey) -> Result<Self, TrustError> {
        let seed = Sha256::new().chain_update(b"eccluster logd tls 1").chain_update(key.as_bytes()).finalize();
        let private = PrivatePkcs8KeyDer::from([&PKCS8_HEAD[..], &seed[..]].concat());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&private, &PKCS_ED25519).map_err(unusable)?;
        let params = CertificateParams::new(vec!["member".into()]).map_err(unusable)?;
        let certificate = params.self_signed(&pair).map_err(unusable)?.der().clone();
        let public = public_key(&certificate).ok_or_else(|| unusable("its certificate cannot be read"))?;
        Ok(Self { certificate, private, public })
    }

    fn server(self) -> Result<ServerConfig, TrustError> {
        let (chain, key) = (vec![self.certificate], PrivateKeyDer::Pkcs8(self.private));
        ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(SamePublicKey(self.public)))
            .with_single_cert(chain, key)
            .map_err(unusable)
    }

    fn client(self) -> Result<ClientConfig, TrustError> {
        let (chain, key) = (vec![self.certificate], PrivateKeyDer::Pkcs8(self.private));
        ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(SamePublicKey(self.public)))
            .with_client_auth_cert(chain, key)
            .map_err(unusable)
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.public_key().raw.to_vec())
}

/// Accepts a certificate over exactly this public key, in either direction. That the other side has the private key is what the handshake's
/// signature proves.
#[derive(Debug)]
struct SamePublicKey(Vec<u8>);

impl SamePublicKey {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if public_key(certificate).is_some_and(|key| key == self.0) {
            return Ok(());
        }
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
    }
}

impl ServerCertVerifier for SamePublicKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &tls::provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &tls::provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for SamePublicKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
