//! An identity that is replaced while connections live: every new handshake, as server and as client, uses the newest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Identity, IdentityError};
use crate::watch_dir::DirWatch;

/// The identity of this node, reloaded from its directory when the files there change.
pub struct ReloadingIdentity {
    dir: PathBuf,
    current: ArcSwap<Identity>,
    changed: watch::Sender<u64>,
}

impl ReloadingIdentity {
    /// Reads the identity of a directory.
    pub fn load(dir: impl Into<PathBuf>) -> Result<Arc<Self>, IdentityError> {
        let dir = dir.into();
        let identity = Identity::load(&dir)?;
        Ok(Arc::new(Self { dir, current: ArcSwap::from_pointee(identity), changed: watch::Sender::new(0) }))
    }

    /// The identity as of now.
    pub fn current(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    /// The directory it was read from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Counts replacements; lets tests and renewers wait for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Reads the directory again. On any error the present identity stays in use. True when it changed.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let fresh = Identity::load(&self.dir)?;
        let current = self.current();
        if fresh.peer() == current.peer() && fresh.ca() == current.ca() {
            return Ok(false);
        }
        if fresh.peer().cluster_id != current.peer().cluster_id || fresh.node() != current.node() {
            let what = self.dir.display().to_string();
            return Err(IdentityError::invalid(what, "it now holds the identity of another node or cluster"));
        }
        self.current.store(Arc::new(fresh));
        self.changed.send_modify(|count| *count += 1);
        Ok(true)
    }

    /// Writes a renewed identity and uses it at once.
    pub fn replace(&self, identity: &Identity) -> Result<(), IdentityError> {
        identity.store(&self.dir)?;
        self.reload().map(drop)
    }

    /// Reloads whenever the directory changes, until `stop`. Errors are logged: the identity in use stays.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = match DirWatch::new(&self.dir) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot watch the identity; a renewed certificate needs a restart");
                return;
            }
        };
        while stop.run_until_cancelled(changes.changed()).await.is_some() {
            match self.reload() {
                Ok(true) => {
                    let until = self.current().peer().not_after;
                    tracing::info!(dir = %self.dir.display(), %until, "certificate reloaded");
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(dir = %self.dir.display(), error = %crate::error::Chain(&error), "identity not reloaded");
                }
            }
        }
    }
}

impl std::fmt::Debug for ReloadingIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReloadingIdentity").field("dir", &self.dir).field("peer", self.current().peer()).finish()
    }
}

impl ResolvesServerCert for ReloadingIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certified_key())
    }
}

impl ResolvesClientCert for ReloadingIdentity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certified_key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
