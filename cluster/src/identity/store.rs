//! A node's identity on disk.
//!
//! ```text
//! DIR/current        -> g-<random>            one rename flips key and certificate together
//! DIR/g-<random>/    key.pem (0600)  cert.pem (node, CA)  ca.pem
//! DIR/key.pem        -> current/key.pem       the names that people and other programs use
//! DIR/cert.pem       -> current/cert.pem
//! DIR/ca.pem         -> current/ca.pem
//! ```
//! A directory that somebody filled by hand, with three plain files and no `current`, is read as well.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::ca::random;
use super::{Fingerprint, IdentityError, Peer, check_node_name, pem};
use crate::{files, tls};

const CURRENT: &str = "current";
const GENERATION_PREFIX: &str = "g-";
const KEY: &str = "key.pem";
const CERT: &str = "cert.pem";
const CA: &str = "ca.pem";
/// A chain of a few certificates is a few kilobytes; more is not an identity.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// A node's key, certificate and CA, checked to belong together.
#[derive(Clone)]
pub struct Identity {
    key_pem: Arc<Zeroizing<String>>,
    cert_pem: Arc<str>,
    ca_pem: Arc<str>,
    certified: Arc<CertifiedKey>,
    ca: CertificateDer<'static>,
    peer: Peer,
}

/// A fresh key and the request to sign it. The key stays here; only [`KeyRequest::csr_pem`] travels.
pub struct KeyRequest {
    key_pem: Zeroizing<String>,
    csr_pem: String,
}

impl KeyRequest {
    /// Makes an ECDSA P-256 key for a node.
    pub fn generate(node: &str) -> Result<Self, IdentityError> {
        check_node_name(node)?;
        let key = KeyPair::generate().map_err(IdentityError::crypto("make a key"))?;
        Self::for_key(&key, node)
    }

    fn for_key(key: &KeyPair, node: &str) -> Result<Self, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node);
        let request = params.serialize_request(key).map_err(IdentityError::crypto("make a certificate request"))?;
        let csr_pem = request.pem().map_err(IdentityError::crypto("write a certificate request"))?;
        Ok(Self { key_pem: Zeroizing::new(key.serialize_pem()), csr_pem })
    }

    /// The key that was kept in this file by an earlier, interrupted attempt, or a fresh one that is kept there now.
    pub fn kept(path: &Path, node: &str) -> Result<Self, IdentityError> {
        check_node_name(node)?;
        let key_pem = match files::read_limited(path, FILE_LIMIT_BYTES)? {
            Some(bytes) => Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()),
            None => {
                let fresh = Self::generate(node)?;
                files::write_atomic(path, fresh.key_pem.as_bytes(), 0o600)?;
                return Ok(fresh);
            }
        };
        let key = KeyPair::from_pem(&key_pem).map_err(IdentityError::crypto("read the kept key"))?;
        Self::for_key(&key, node)
    }

    /// The certificate request.
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// Joins the key with the certificate that the CA issued for it.
    pub fn certified(self, cert_pem: &str, ca_pem: &str) -> Result<Identity, IdentityError> {
        Identity::from_pem("the issued certificate", self.key_pem, cert_pem, ca_pem)
    }
}

impl Identity {
    /// Reads the identity of a directory.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let from = match fs::read_link(dir.join(CURRENT)) {
            Ok(generation) => dir.join(generation),
            Err(_) => dir.to_path_buf(),
        };
        match Self::load_plain(dir, &from) {
            // Replaced and cleaned away between the two steps: read the new one.
            Err(IdentityError::Missing { .. }) if from != dir && !from.exists() => {
                let generation = fs::read_link(dir.join(CURRENT)).unwrap_or_default();
                Self::load_plain(dir, &dir.join(generation))
            }
            result => result,
        }
    }

    fn load_plain(dir: &Path, from: &Path) -> Result<Self, IdentityError> {
        let read = |name: &str| {
            let path = from.join(name);
            let bytes = files::read_limited(&path, FILE_LIMIT_BYTES)?;
            let bytes = bytes.ok_or_else(|| IdentityError::Missing { dir: dir.into() })?;
            String::from_utf8(bytes)
                .map_err(|_| IdentityError::invalid(path.display().to_string(), "it is not a PEM file"))
        };
        let key = Zeroizing::new(read(KEY)?);
        Self::from_pem(&dir.display().to_string(), key, &read(CERT)?, &read(CA)?)
    }

    /// Puts an identity together and checks that key, certificate and CA belong to each other.
    pub fn from_pem(
        what: &str,
        key_pem: Zeroizing<String>,
        cert_pem: &str,
        ca_pem: &str,
    ) -> Result<Self, IdentityError> {
        let chain = pem::certificates(what, cert_pem.as_bytes())?;
        let ca = pem::certificates(what, ca_pem.as_bytes())?.swap_remove(0);
        let key = pem::private_key(what, key_pem.as_bytes())?;
        let peer = Peer::from_certificate(&chain[0])?;
        tls::verify_issued_by(&chain[0], &ca).map_err(|source| IdentityError::Tls { what: what.into(), source })?;
        let certified = CertifiedKey::from_der(chain, key, &tls::provider())
            .map_err(|source| IdentityError::Tls { what: what.into(), source })?;
        Ok(Self {
            key_pem: Arc::new(key_pem),
            cert_pem: cert_pem.into(),
            ca_pem: ca_pem.into(),
            certified: Arc::new(certified),
            ca,
            peer,
        })
    }

    /// Writes the identity; a reader sees the old one or this one, key and certificate always together.
    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        files::create_dirs(dir, 0o755)?;
        let name = format!("{GENERATION_PREFIX}{}", hex::encode(random::<8>()));
        let generation = dir.join(&name);
        files::create_dirs(&generation, 0o755)?;
        files::write_new(&generation.join(KEY), self.key_pem.as_bytes(), 0o600)?;
        files::write_new(&generation.join(CERT), self.cert_pem.as_bytes(), 0o644)?;
        files::write_new(&generation.join(CA), self.ca_pem.as_bytes(), 0o644)?;
        files::sync_dir(&generation)?;
        let before = fs::read_link(dir.join(CURRENT)).ok();
        files::symlink_atomic(Path::new(&name), &dir.join(CURRENT))?;
        for file in [KEY, CERT, CA] {
            let target = Path::new(CURRENT).join(file);
            if fs::read_link(dir.join(file)).ok().as_ref() != Some(&target) {
                files::symlink_atomic(&target, &dir.join(file))?;
            }
        }
        remove_generations(dir, &[Some(PathBuf::from(name)), before]);
        Ok(())
    }

    /// The name of the cluster that issued it.
    pub fn cluster_name(&self) -> String {
        super::peer::cluster_name_of(&self.ca)
    }

    /// Who this is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.peer.node
    }

    /// The CA's certificate, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The node's certificate and its CA, as PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The CA's fingerprint.
    pub fn ca_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.ca)
    }

    /// Whether the certificate is good for all these names and addresses, written as for [`super::NodeCert::reached_at`].
    pub fn covers(&self, names: &[String]) -> bool {
        let normal = |host: &str| host.parse().map_or_else(|_| host.to_ascii_lowercase(), |ip: IpAddr| ip.to_string());
        let mut wanted = names.iter().filter_map(|name| super::ca::reached_at(name)).map(normal);
        let named = self.certified.cert.first().map(super::peer::names_of).unwrap_or_default();
        wanted.all(|name| named.contains(&name))
    }

    /// Key and chain for rustls.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

/// Old generations go, except the one just replaced: a reader may be inside it. Failing to clean is harmless.
fn remove_generations(dir: &Path, keep: &[Option<PathBuf>]) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = PathBuf::from(entry.file_name());
        let ours = name.to_str().is_some_and(|name| name.starts_with(GENERATION_PREFIX));
        if ours && !keep.contains(&Some(name)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
