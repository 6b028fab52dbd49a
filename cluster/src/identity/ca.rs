//! The cluster's certificate authority: made once at `init`, issues a certificate for every node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::peer::{cluster_id_of, cluster_name_of, uri_of, uri_of_cluster};
use super::{Fingerprint, IdentityError, NodeRole, check_node_name, check_subcluster_name, pem};
use crate::files;

/// How long a node's certificate is good for when nobody says otherwise.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);

/// A new certificate is valid from this long ago, so that a node whose clock runs behind accepts it, and everybody accepts what a node issues
/// whose clock is ahead; one with a shorter life from as long ago as it has left, so that two thirds of its life are not over when it begins.
/// The CA's own begins as early.
const BACKDATE: time::Duration = time::Duration::days(1);
/// The CA outlives every machine that trusts it: replacing it means enrolling every node again.
const CA_VALIDITY: time::Duration = time::Duration::days(30 * 365);

const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca-key.pem";

/// The cluster's certificate authority with its private key.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    cluster_id: String,
}

/// What a node's certificate shall say.
#[derive(Debug, Clone)]
pub struct NodeCert {
    /// The node's name.
    pub node: String,
    /// The subcluster it belongs to.
    pub subcluster: String,
    /// Its role.
    pub role: NodeRole,
    /// Host names and IP addresses under which others reach it, without ports; duplicates do no harm.
    pub names: Vec<String>,
}

impl NodeCert {
    /// A certificate that also names the node itself, `localhost` and both loopback addresses.
    pub fn new(node: &str, subcluster: &str, role: NodeRole) -> Self {
        let names = [node, "localhost", "127.0.0.1", "::1"].map(String::from).into();
        Self { node: node.into(), subcluster: subcluster.into(), role, names }
    }

    /// Adds a name or address; of `host:port`, `[v6]:port` and `[v6]` only the host is taken. Wildcards such as `0.0.0.0` are skipped,
    /// because nobody connects to them.
    pub fn reached_at(mut self, address: &str) -> Self {
        self.names.extend(reached_at(address).map(str::to_owned));
        self
    }
}

/// The host of an address that others can connect to.
pub(super) fn reached_at(address: &str) -> Option<&str> {
    let host = host_of(address);
    let wildcard = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    (!host.is_empty() && !wildcard).then_some(host)
}

/// A certificate and the CA that issued it.
#[derive(Debug, Clone)]
pub struct CertChain {
    /// The node's certificate followed by the CA's, as a TLS server sends them.
    pub pem: String,
    /// The CA's certificate alone.
    pub ca_pem: String,
    /// Until when the node's certificate is valid.
    pub not_after: OffsetDateTime,
}

impl Ca {
    /// Makes a CA for a new cluster: a fresh ECDSA P-256 key and a random cluster id.
    pub fn create(cluster_name: &str) -> Result<Self, IdentityError> {
        let cluster_id = hex::encode(random::<8>());
        let key = KeyPair::generate().map_err(IdentityError::crypto("make a CA key"))?;
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.not_before = now - BACKDATE;
        params.not_after = now + CA_VALIDITY;
        params.serial_number = Some(serial());
        params.distinguished_name = names([
            (DnType::CommonName, "eccluster CA"),
            (DnType::OrganizationName, cluster_name),
            (DnType::OrganizationalUnitName, &cluster_id),
        ]);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(ia5(&uri_of_cluster(&cluster_id))?)];
        let certificate = params.self_signed(&key).map_err(IdentityError::crypto("sign the CA's certificate"))?;
        Self::from_pem(&certificate.pem(), &Zeroizing::new(key.serialize_pem()))
    }

    /// Puts a CA together from its certificate and key, wherever they were kept.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let mut certificates = pem::certificates("CA certificate", certificate_pem.as_bytes())?;
        let certificate = certificates.swap_remove(0);
        let cluster_id = cluster_id_of(&certificate)?;
        let key = KeyPair::from_pem(key_pem).map_err(IdentityError::crypto("read the CA's key"))?;
        check_key_belongs(&certificate, &key)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(IdentityError::crypto("read the CA"))?;
        let certificate_pem = pem::encode_certificate(&certificate);
        Ok(Self { issuer, certificate, certificate_pem, cluster_id })
    }

    /// Reads `ca.pem` and `ca-key.pem` of a directory.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let read = |name| {
            files::read_limited(&dir.join(name), 1 << 20)?.ok_or_else(|| IdentityError::Missing { dir: dir.into() })
        };
        let key = Zeroizing::new(read(CA_KEY_FILE)?);
        let text = |name: &str, bytes: &[u8]| {
            let path = dir.join(name).display().to_string();
            String::from_utf8(bytes.into()).map_err(|error| IdentityError::invalid(path, error.utf8_error()))
        };
        Self::from_pem(&text(CA_FILE, &read(CA_FILE)?)?, &Zeroizing::new(text(CA_KEY_FILE, &key)?))
    }

    /// Where the key is in a directory.
    pub fn key_file(dir: &Path) -> PathBuf {
        dir.join(CA_KEY_FILE)
    }

    /// Writes `ca-key.pem` (0600) and then `ca.pem`, each atomically.
    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        files::create_dirs(dir, 0o755)?;
        files::write_atomic(&dir.join(CA_KEY_FILE), self.key_pem().as_bytes(), 0o600)?;
        Ok(files::write_atomic(&dir.join(CA_FILE), self.certificate_pem.as_bytes(), 0o644)?)
    }

    /// The CA's certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's private key; wiped from memory when dropped.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// The fingerprint by which a joining node recognises this CA.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// The cluster's random id.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The cluster's name.
    pub fn cluster_name(&self) -> String {
        cluster_name_of(&self.certificate)
    }

    /// Issues a certificate, valid from a day ago (or less, see `BACKDATE`) until `validity` from now.
    pub fn issue(&self, csr_pem: &str, node: &NodeCert, validity: Duration) -> Result<CertChain, IdentityError> {
        self.issue_at(csr_pem, node, validity, OffsetDateTime::now_utc())
    }

    /// [`Ca::issue`] at a moment of the caller's choice.
    pub fn issue_at(
        &self,
        csr_pem: &str,
        node: &NodeCert,
        validity: Duration,
        now: OffsetDateTime,
    ) -> Result<CertChain, IdentityError> {
        let params = self.node_params(node, now, validity)?;
        // The request's signature is checked here; its names are dropped with everything else but the key.
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(IdentityError::crypto("read the certificate request"))?;
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(IdentityError::crypto("sign the node's certificate"))?;
        let pem = format!("{}{}", pem::encode_certificate(certificate.der()), self.certificate_pem);
        Ok(CertChain { pem, ca_pem: self.certificate_pem.clone(), not_after: params.not_after })
    }

    fn node_params(
        &self,
        node: &NodeCert,
        now: OffsetDateTime,
        validity: Duration,
    ) -> Result<CertificateParams, IdentityError> {
        check_node_name(&node.node)?;
        check_subcluster_name(&node.subcluster)?;
        let mut params = CertificateParams::default();
        params.not_before = now - BACKDATE.min(time::Duration::try_from(validity).unwrap_or(BACKDATE));
        params.not_after = now + validity;
        params.serial_number = Some(serial());
        params.distinguished_name = names([
            (DnType::CommonName, &node.node),
            (DnType::OrganizationName, &node.subcluster),
            (DnType::OrganizationalUnitName, &node.role.to_string()),
        ]);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = alternative_names(&self.cluster_id, node)?;
        Ok(params)
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

fn alternative_names(cluster_id: &str, node: &NodeCert) -> Result<Vec<SanType>, IdentityError> {
    let mut found = vec![SanType::URI(ia5(&uri_of(cluster_id, &node.subcluster, &node.node))?)];
    for name in &node.names {
        let entry = match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(ia5(&dns_name(name)?)?),
        };
        if !found.contains(&entry) {
            found.push(entry);
        }
    }
    Ok(found)
}

/// Refuses what would make the certificate say more than the caller meant: wildcards, spaces, empty labels.
fn dns_name(name: &str) -> Result<String, IdentityError> {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() <= 253 && name.split('.').all(label_ok) {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(IdentityError::invalid(format!("{name:?}"), "neither a host name nor an IP address"))
    }
}

/// The host of `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
fn host_of(address: &str) -> &str {
    if let Some(rest) = address.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    if address.parse::<IpAddr>().is_ok() {
        return address;
    }
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn check_key_belongs(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), IdentityError> {
    use rcgen::PublicKeyData as _;
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| IdentityError::invalid("CA certificate", error))?;
    if parsed.public_key().raw == key.subject_public_key_info() {
        Ok(())
    } else {
        Err(IdentityError::invalid("CA key", "it does not belong to the CA's certificate"))
    }
}

fn names<const N: usize>(entries: [(DnType, &str); N]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in entries {
        name.push(kind, value);
    }
    name
}

pub(super) fn ia5(text: &str) -> Result<rcgen::string::Ia5String, IdentityError> {
    text.try_into().map_err(IdentityError::crypto("write a name into a certificate"))
}

/// A positive 16-byte serial number; random, so that two voters never issue the same.
fn serial() -> SerialNumber {
    let mut bytes = random::<16>();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source works once the machine is up");
    bytes
}
