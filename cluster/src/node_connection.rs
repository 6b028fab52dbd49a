//! The connection of one node's daemon to another's: both ends prove themselves with certificates of the cluster, and the right node has
//! to answer in the right protocol.
//!
//! A node proves its *name*, not its address: who has moved is still who he was, and gets a certificate for the new address through such
//! a connection.

use std::io;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::documents::schema::values::{Host, HostPort, ValueError};
use crate::identity::{IdentityError, Peer, ReloadingIdentity};
use crate::tls;

/// Why a node could not be connected to; the address is the caller's to name.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection, or no certificate of this cluster for this node.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// This is no `host:port` to look for a node at.
    #[error("a node cannot be looked for there: {0}")]
    Address(String),
    /// This node's own identity cannot be used, or the other one's certificate not be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Somebody answered who speaks something else.
    #[error("it does not speak {0}")]
    OtherProtocol(String),
    /// The certificate is one of the cluster for this name, and yet another node's.
    #[error("it is {found}, not {wanted}")]
    OtherNode {
        /// Who that is.
        found: String,
        /// Who was meant.
        wanted: String,
    },
}

/// Connects to the daemon of `node` at `address` (`host:port`), which has to agree to `protocol` by ALPN (RFC 7301). Sets no time limit.
pub async fn connect(
    identity: &Arc<ReloadingIdentity>,
    node: &str,
    address: &str,
    protocol: &[u8],
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let name = server_name(node, address)?;
    let mut config = tls::client_config(identity.current().ca_pem(), Some(identity.clone()))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    let tcp = TcpStream::connect(address).await?;
    // Only delay would be lost with it.
    let _ = tcp.set_nodelay(true);
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let connection = stream.get_ref().1;
    if connection.alpn_protocol() != Some(protocol) {
        return Err(ConnectError::OtherProtocol(String::from_utf8_lossy(protocol).into_owned()));
    }
    let leaf = connection.peer_certificates().and_then(|all| all.first());
    let found = leaf.map(Peer::from_certificate).transpose()?.map(|peer| peer.node).unwrap_or_default();
    if found != node {
        return Err(ConnectError::OtherNode { found, wanted: node.into() });
    }
    Ok(stream)
}

/// What to look for in the certificate. Every certificate names its node; only where that can be no host's name (such as `7`) the address
/// is looked for.
fn server_name(node: &str, address: &str) -> Result<ServerName<'static>, ConnectError> {
    if let Ok(name) = ServerName::try_from(node.to_owned()) {
        return Ok(name);
    }
    let address: HostPort = address.parse().map_err(|error: ValueError| ConnectError::Address(error.to_string()))?;
    match address.host {
        Host::Ip(ip) => Ok(ServerName::from(ip)),
        Host::Name(name) => ServerName::try_from(name).map_err(|error| ConnectError::Address(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_node_is_looked_for_by_name_where_it_can_be() {
        let name = |node: &str, address: &str| server_name(node, address).map(|name| name.to_str().into_owned());
        assert_eq!(name("relay_1", "10.0.0.1:2027").unwrap(), "relay_1");
        assert_eq!(name("7", "10.0.0.1:2027").unwrap(), "10.0.0.1");
        assert_eq!(name("7", "seven.example:2027").unwrap(), "seven.example");
        assert!(name("7", "seven.example").is_err());
    }
}
