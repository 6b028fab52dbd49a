//! Who a node is, and how others know: one CA per cluster, one certificate per node.
//!
//! What always holds: a private key never leaves the machine it was made on; of a certificate request only the public key is taken, the
//! names are the cluster's choice; a one-time token is sent only to a server that has proved itself against the CA fingerprint inside
//! that token; key and certificate on disk are replaced together.
//!
//! How a node is written into its certificate (the contract between everything that issues and everything that reads):
//!
//! | field | content |
//! |---|---|
//! | subject CN | the node's name |
//! | subject O | the subcluster |
//! | subject OU | `voter`, `learner` or `client` |
//! | SAN URI | `eccluster://<cluster id>/<subcluster>/<node>` |
//! | SAN DNS, IP | the names under which the node is reached |
//! | extended key usage | server and client authentication |
//!
//! Left out on purpose: revocation lists. Membership is replicated state; the server refuses a removed node by name, whatever its
//! certificate says.

mod ca;
mod cluster_key;
mod enroll;
mod peer;
pub(crate) mod pem;
mod reload;
mod store;
mod token;

use std::path::PathBuf;

pub use ca::{Ca, CertChain, DEFAULT_VALIDITY, NodeCert};
pub use cluster_key::ClusterKey;
pub use enroll::{Renewer, enroll, renew};
pub use peer::{Fingerprint, Peer};
pub use reload::ReloadingIdentity;
pub use store::{Identity, KeyRequest};
pub use token::{JoinToken, TokenSecret};

pub use crate::api::NodeRole;
use crate::documents::schema::names;

/// Where a node's identity is when nobody says otherwise.
pub const DEFAULT_DIR: &str = "/etc/eccluster/identity";

/// Why an identity could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    /// There is no identity in this directory.
    #[error("no identity in {}", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// A file holds something else than it should.
    #[error("{what}: {why}")]
    Invalid {
        /// The file or value.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A node or subcluster name that the cluster does not allow.
    #[error("{name:?} cannot be a {what}: {why}")]
    Name {
        /// `node name` or `subcluster name`.
        what: &'static str,
        /// The name.
        name: String,
        /// The rule it breaks.
        why: String,
    },
    /// A certificate or request could not be made.
    #[error("cannot {action}")]
    Crypto {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
    /// TLS could not be set up with this key and certificate.
    #[error("cannot use {what} for TLS")]
    Tls {
        /// The identity or CA.
        what: String,
        /// Why not.
        source: rustls::Error,
    },
    /// The text is not a join token.
    #[error("this is not a join token: {0}")]
    Token(&'static str),
    /// The cluster refused, or could not be reached.
    #[error("cannot {action}")]
    Request {
        /// `enroll` or `renew the certificate`.
        action: &'static str,
        /// Why not.
        source: Box<crate::http_client::ClientError>,
    },
}

impl IdentityError {
    pub(crate) fn invalid(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Invalid { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn crypto(action: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Crypto { action, source }
    }
}

/// Refuses what cannot be a node's name, by the same rule as `cluster.toml`.
pub fn check_node_name(name: &str) -> Result<(), IdentityError> {
    check("node name", name, names::refuse_node_name(name))
}

/// Refuses what cannot be a subcluster's name, by the same rule as `cluster.toml`.
pub fn check_subcluster_name(name: &str) -> Result<(), IdentityError> {
    check("subcluster name", name, names::refuse_subcluster_name(name))
}

fn check(what: &'static str, name: &str, refusal: Option<String>) -> Result<(), IdentityError> {
    match refusal {
        None => Ok(()),
        Some(why) => Err(IdentityError::Name { what, name: name.chars().take(80).collect(), why }),
    }
}
