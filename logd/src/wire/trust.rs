//! Who is at the other end: TLS with the nodes' identities, or with those that the cluster key makes where there are none.
//!
//! Each side proves the name of its node, and a client accepts only the node that it wanted. With the cluster key alone that says no more than
//! that the other side has the key: it is a member, and what name it gives is believed. With neither nobody is talked to.

use std::path::Path;
use std::sync::Arc;

use cluster::identity::{ClusterKey, IdentityError, Peer, ReloadingIdentity};
use cluster::node_connection::{self, ConnectError};
use cluster::tls;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;

/// What both ends agree on by ALPN.
const PROTOCOL: &[u8] = b"eccluster-log/1";

/// How this node proves itself.
#[derive(Debug, Clone)]
pub enum Trust {
    /// By its certificate.
    Identity(Arc<ReloadingIdentity>),
    /// By a certificate that the cluster's key made.
    Key(Arc<ReloadingIdentity>),
    /// Not at all.
    Nobody,
}

/// No other node can be talked to.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Neither an identity nor a key.
    #[error("neither an identity nor a cluster key: other nodes are not talked to")]
    Nobody,
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The other end could not be reached, or is somebody else.
    #[error(transparent)]
    Connect(#[from] ConnectError),
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
    /// Of `node`, from what a daemon was started with; an identity is better than a key. What a key makes is kept in `dir`.
    pub fn new(
        identity: Option<Arc<ReloadingIdentity>>,
        key: Option<&ClusterKey>,
        node: &str,
        dir: &Path,
    ) -> Result<Self, IdentityError> {
        Ok(match (identity, key) {
            (Some(identity), _) => Self::Identity(identity),
            // Nobody asks a certificate that the key made for its subcluster: cluster.toml knows it.
            (None, Some(key)) => Self::Key(key.identity(node, "default", dir)?),
            (None, None) => Self::Nobody,
        })
    }

    fn identity(&self) -> Result<&Arc<ReloadingIdentity>, TrustError> {
        match self {
            Self::Identity(identity) | Self::Key(identity) => Ok(identity),
            Self::Nobody => Err(TrustError::Nobody),
        }
    }

    /// For accepting connections.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TrustError> {
        let identity = self.identity()?;
        let mut config = tls::server_config(identity.clone(), identity.current().ca_pem())?;
        config.alpn_protocols = vec![PROTOCOL.into(), crate::http::PROTOCOL.into()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Connects to `node` at `address` (`host:port`).
    pub async fn connect(&self, node: &str, address: &str) -> Result<TlsStream<TcpStream>, TrustError> {
        Ok(node_connection::connect(self.identity()?, node, address, PROTOCOL).await?)
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
