//! What a certificate says about a node, and the fingerprint by which a CA is recognised.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate, X509Name};

use super::IdentityError;
use crate::api::NodeRole;

/// The SHA-256 of a certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// The fingerprints of all certificates in a PEM text; what is no certificate there counts for nothing.
    pub fn all_in(pem: &str) -> Vec<Self> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().map(|certificate| Self::of(&certificate)).collect()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = IdentityError;

    /// Hex, with or without colons, in either case: what `openssl x509 -fingerprint -sha256` prints works too.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let mut bytes = [0; 32];
        hex::decode_to_slice(&digits, &mut bytes)
            .map_err(|_| IdentityError::invalid("fingerprint", "64 hex digits are expected"))?;
        Ok(Self(bytes))
    }
}

/// A node, as its certificate names it. Only worth something for a certificate that was verified against the cluster's CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The id of the cluster that issued the certificate.
    pub cluster_id: String,
    /// The node's name.
    pub node: String,
    /// The subcluster it belongs to.
    pub subcluster: String,
    /// Its role when the certificate was issued; the replicated state has the present one.
    pub role: NodeRole,
    /// The certificate's own fingerprint.
    pub fingerprint: Fingerprint,
    /// From when the certificate is valid.
    pub not_before: OffsetDateTime,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
}

impl Peer {
    /// Reads a certificate, which the caller (rustls) has verified.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let bad = |why: &str| IdentityError::invalid("certificate", why);
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| bad("it cannot be parsed"))?;
        let (cluster_id, subcluster, node) = node_uri(&certificate).ok_or_else(|| bad("it names no eccluster node"))?;
        let subject = certificate.subject();
        let unit = attribute(subject.iter_organizational_unit().next());
        let role = role_from(&unit).ok_or_else(|| bad("its role is unknown"))?;
        if attribute(subject.iter_common_name().next()) != node || organization(subject) != subcluster {
            return Err(bad("its subject and its URI name different nodes"));
        }
        let validity = certificate.validity();
        Ok(Self {
            cluster_id,
            node,
            subcluster,
            role,
            fingerprint: Fingerprint::of(der),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
        })
    }

    /// The node behind a TLS connection: the first certificate that rustls verified, where the client showed one.
    pub fn from_connection(connection: &rustls::ServerConnection) -> Result<Option<Self>, IdentityError> {
        match connection.peer_certificates() {
            Some([leaf, ..]) => Self::from_certificate(leaf).map(Some),
            _ => Ok(None),
        }
    }

    /// When renewal is due: at two thirds of the certificate's life, which leaves a third for servers that are away.
    pub fn renewal_due(&self) -> OffsetDateTime {
        self.not_before + (self.not_after - self.not_before) * 2 / 3
    }
}

/// The URI that names a node in its certificate.
pub(super) fn uri_of(cluster_id: &str, subcluster: &str, node: &str) -> String {
    format!("eccluster://{cluster_id}/{subcluster}/{node}")
}

/// The URI that names the cluster in its CA certificate.
pub(super) fn uri_of_cluster(cluster_id: &str) -> String {
    format!("eccluster://{cluster_id}")
}

/// The cluster id inside a CA certificate.
pub(super) fn cluster_id_of(ca: &CertificateDer<'_>) -> Result<String, IdentityError> {
    let bad = |why: &str| IdentityError::invalid("CA certificate", why);
    let (_, certificate) = X509Certificate::from_der(ca).map_err(|_| bad("it cannot be parsed"))?;
    if !certificate.is_ca() {
        return Err(bad("it is not the certificate of a CA"));
    }
    uris(&certificate)
        .find_map(|uri| uri.strip_prefix("eccluster://").map(str::to_owned))
        .ok_or_else(|| bad("it names no cluster"))
}

/// The cluster's name inside a CA certificate.
pub(super) fn cluster_name_of(ca: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(ca).map(|(_, certificate)| organization(certificate.subject())).unwrap_or_default()
}

/// The host names (in lower case) and IP addresses that a certificate is good for.
pub(super) fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let named = alternative_names(&certificate).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
        _ => None,
    });
    named.collect()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn node_uri(certificate: &X509Certificate<'_>) -> Option<(String, String, String)> {
    uris(certificate).find_map(|uri| {
        let mut parts = uri.strip_prefix("eccluster://")?.split('/').map(str::to_owned);
        let found = (parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then_some(found)
    })
}

fn uris<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    alternative_names(certificate).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    })
}

fn alternative_names<'a>(certificate: &'a X509Certificate<'a>) -> impl Iterator<Item = &'a GeneralName<'a>> {
    certificate.extensions().iter().flat_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => names.general_names.as_slice(),
        _ => &[],
    })
}

fn organization(subject: &X509Name<'_>) -> String {
    attribute(subject.iter_organization().next())
}

fn attribute(value: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>) -> String {
    value.and_then(|value| value.as_str().ok()).unwrap_or_default().to_owned()
}

fn role_from(text: &str) -> Option<NodeRole> {
    [NodeRole::Voter, NodeRole::Learner, NodeRole::Client].into_iter().find(|role| role.to_string() == text)
}
