//! As whom this daemon talks to others of its kind: the node's identity, or one made from the shared cluster key.
//!
//! With `--cluster-key` there is no CA. So every member derives the same one from the key and issues its own certificate: whoever has the
//! key is a member, under any name, which is what a shared key means. Encryption and the code around it are the same as with identities.

use std::path::Path;
use std::sync::Arc;

use cluster::identity::{Ca, ClusterKey, IdentityError, KeyRequest, NodeCert, NodeRole, ReloadingIdentity};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber};
use sha2::{Digest as _, Sha256};

/// Members issue their certificates to themselves at every start.
const VALIDITY: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 86_400);
/// What comes before the seed in the private key's DER (RFC 8410).
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// The identity that all holders of the key recognise. Kept in `dir`.
pub fn identity_from_key(
    key: &ClusterKey,
    node: &str,
    subcluster: &str,
    dir: &Path,
) -> Result<Arc<ReloadingIdentity>, IdentityError> {
    let ca = ca_from_key(key)?;
    let request = KeyRequest::generate(node)?;
    let certificate = NodeCert::new(node, subcluster, NodeRole::Client);
    let chain = ca.issue(request.csr_pem(), &certificate, VALIDITY)?;
    request.certified(&chain.pem, &chain.ca_pem)?.store(dir)?;
    ReloadingIdentity::load(dir)
}

/// Every byte of it follows from the key: Ed25519 signs without randomness.
fn ca_from_key(key: &ClusterKey) -> Result<Ca, IdentityError> {
    let crypto = |action: &'static str| move |source: rcgen::Error| IdentityError::Crypto { action, source };
    let seed = Sha256::new().chain_update(b"eccluster cidr CA").chain_update(key.as_bytes()).finalize();
    let id = Sha256::new().chain_update(b"eccluster cidr id").chain_update(key.as_bytes()).finalize();
    let mut der = ED25519_PKCS8.to_vec();
    der.extend_from_slice(&seed);
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der);
    let key =
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).map_err(crypto("derive the members' CA"))?;
    let uri = format!("eccluster://{}", hex::encode(&id[..8]));
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&[1]));
    params.distinguished_name.push(DnType::CommonName, "eccluster members");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(crypto("name the members' CA"))?)];
    let certificate = params.self_signed(&key).map_err(crypto("sign the members' CA"))?;
    Ca::from_pem(&certificate.pem(), &key.serialize_pem())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn holders_of_a_key_have_one_ca_and_others_have_another() {
        let dir = tempfile::tempdir().unwrap();
        let key = |name: &str, byte: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, byte.repeat(32)).unwrap();
            ClusterKey::load(&path).unwrap()
        };
        let (first, second) = (key("a", "0b"), key("b", "0c"));
        let identity = |key: &ClusterKey, node: &str| {
            identity_from_key(key, node, "default", &dir.path().join(node)).unwrap().current()
        };
        let (n1, n2, n3) = (identity(&first, "n1"), identity(&first, "n2"), identity(&second, "n3"));
        assert_eq!(n1.ca_fingerprint(), n2.ca_fingerprint());
        assert_ne!(n1.ca_fingerprint(), n3.ca_fingerprint());
        assert_eq!((n1.node(), n2.node()), ("n1", "n2"));
    }
}
