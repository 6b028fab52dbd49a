//! The key that members without certificates share, and the identities that it makes for them.
//!
//! There is no CA then. So every member derives the same one from the key and issues its own certificate: whoever has the key is a member,
//! under any name, which is what a shared key means. Encryption and the code around it are the same as with identities.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber};
use rustls_pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::ca::ia5;
use super::peer::uri_of_cluster;
use super::{Ca, IdentityError, KeyRequest, NodeCert, NodeRole, ReloadingIdentity};
use crate::files;

/// Members issue their certificates to themselves at every start, so an end would protect nothing, and dates would only keep out members
/// whose clocks are wrong: from 1970 on, for five centuries.
const VALIDITY: Duration = Duration::from_secs(500 * 365 * 86_400);
/// What comes before the seed in the private key's DER (RFC 8410).
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// 32 bytes, the same on all members; kept in a file as 64 hex digits. Shown by nothing.
#[derive(Clone)]
pub struct ClusterKey(Zeroizing<[u8; 32]>);

impl ClusterKey {
    /// Reads the key file.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let bad = || IdentityError::invalid(path.display().to_string(), "a cluster key is 64 hex digits");
        let text = files::read_limited(path, 1024)?
            .map(Zeroizing::new)
            .ok_or_else(|| IdentityError::invalid(path.display().to_string(), "there is no such cluster key"))?;
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim_ascii(), key.as_mut_slice()).map_err(|_| bad())?;
        if key.iter().all(|byte| *byte == 0) {
            return Err(IdentityError::invalid(path.display().to_string(), "a key of zeros protects nothing"));
        }
        Ok(Self(key))
    }

    /// The bytes, for a cipher or a MAC.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The identity of a member that all holders of the key recognise. Kept in `dir`.
    pub fn identity(&self, node: &str, subcluster: &str, dir: &Path) -> Result<Arc<ReloadingIdentity>, IdentityError> {
        let request = KeyRequest::generate(node)?;
        let certificate = NodeCert::new(node, subcluster, NodeRole::Client);
        // A day later, because what is issued is valid from a day before.
        let start = OffsetDateTime::UNIX_EPOCH + time::Duration::days(1);
        let chain = self.ca()?.issue_at(request.csr_pem(), &certificate, VALIDITY, start)?;
        request.certified(&chain.pem, &chain.ca_pem)?.store(dir)?;
        ReloadingIdentity::load(dir)
    }

    /// Every byte of it follows from the key: Ed25519 signs without randomness.
    fn ca(&self) -> Result<Ca, IdentityError> {
        let derived = |what: &str| Sha256::new().chain_update(what).chain_update(self.as_bytes()).finalize();
        let der = Zeroizing::new([&ED25519_PKCS8[..], &derived("eccluster members' CA")].concat());
        let key =
            KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der.as_slice()), &rcgen::PKCS_ED25519)
                .map_err(IdentityError::crypto("derive the members' CA"))?;
        let cluster_id = hex::encode(&derived("eccluster members' id")[..8]);
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&[1]));
        params.distinguished_name.push(DnType::CommonName, "eccluster members");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![SanType::URI(ia5(&uri_of_cluster(&cluster_id))?)];
        let certificate = params.self_signed(&key).map_err(IdentityError::crypto("sign the members' CA"))?;
        Ca::from_pem(&certificate.pem(), &Zeroizing::new(key.serialize_pem()))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn holders_of_a_key_have_one_ca_and_others_have_another() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (ClusterKey(Zeroizing::new([11; 32])), ClusterKey(Zeroizing::new([12; 32])));
        let identity = |key: &ClusterKey, node: &str| key.identity(node, "default", &dir.path().join(node)).unwrap();
        let (n1, n2, n3) = (identity(&first, "n1"), identity(&first, "n2"), identity(&second, "n3"));
        let (n1, n2, n3) = (n1.current(), n2.current(), n3.current());
        assert_eq!(n1.ca_fingerprint(), n2.ca_fingerprint());
        assert_ne!(n1.ca_fingerprint(), n3.ca_fingerprint());
        assert_eq!((n1.node(), n2.node()), ("n1", "n2"));
    }

    #[test]
    fn no_clock_keeps_a_member_out() {
        let dir = tempfile::tempdir().unwrap();
        let key = ClusterKey(Zeroizing::new([11; 32]));
        let identity = key.identity("n1", "default", dir.path()).unwrap().current();
        let own = identity.peer();
        let (start, year) = (OffsetDateTime::UNIX_EPOCH, time::Duration::days(365));
        assert!(own.not_before <= start && own.not_after > start + year * 499, "{own:?}");
    }

    #[test]
    fn exactly_32_bytes_in_hex() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ClusterKey::load(&path)
        };
        let key = load(&format!("{}\n", "0b".repeat(32))).unwrap();
        assert_eq!(key.as_bytes(), &[11; 32]);
        assert!(!format!("{key:?}").contains("11"));
        for bad in ["", "0b", &"0b".repeat(33), &"zz".repeat(32), &"00".repeat(32)] {
            assert!(load(bad).is_err(), "{bad:?}");
        }
    }
}
