//! Connections to sinks: TCP, and TLS where it is wanted.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::documents::schema::values::{Host, HostPort};
use cluster::identity::ReloadingIdentity;
use nix::sys::socket::{setsockopt, sockopt};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::SinkError;

/// A sink that does not answer by then is away.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A stream of bytes to a sink and back.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a connection is made with.
pub(super) struct Way<'a> {
    /// The sink's name.
    pub(super) sink: &'a str,
    /// See [`super::Context::secrets`].
    pub(super) secrets: &'a Path,
    /// See [`super::Context::identity`].
    pub(super) identity: Option<&'a Arc<ReloadingIdentity>>,
}

impl Way<'_> {
    /// Connects without TLS.
    pub(super) async fn plain(&self, address: &HostPort) -> Result<TcpStream, SinkError> {
        let connecting = tokio::time::timeout(PATIENCE, TcpStream::connect(address.to_string()));
        let connected = connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|source| SinkError::Connect { address: address.to_string(), source })?;
        let _ = stream.set_nodelay(true);
        // A sink whose machine vanished is noticed while there is nothing to send.
        let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
        let _ = setsockopt(&stream, sockopt::TcpKeepIdle, &30);
        Ok(stream)
    }

    /// Makes a connection a TLS one. The sink has to prove the name that it is addressed by, to its own CA where one is given, else to the
    /// cluster's.
    pub(super) async fn secure(&self, stream: TcpStream, address: &HostPort) -> Result<Box<dyn Stream>, SinkError> {
        let own = self.secrets.join(format!("{}.ca.pem", self.sink));
        let ca = match (self.read(&own).await?, self.identity) {
            (Some(ca), _) => ca,
            (None, Some(identity)) => identity.current().ca_pem().to_owned(),
            (None, None) => return Err(SinkError::Tls(format!("there is neither {} nor an identity", own.display()))),
        };
        let mut config = cluster::tls::client_config(&ca, self.identity.cloned())
            .map_err(|error| SinkError::Tls(cluster::error::Chain(&error).to_string()))?;
        // Sinks speak no HTTP.
        config.alpn_protocols.clear();
        let name = match &address.host {
            Host::Ip(ip) => ServerName::from(*ip),
            Host::Name(name) => {
                ServerName::try_from(name.to_string()).map_err(|error| SinkError::Tls(error.to_string()))?
            }
        };
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let secured = tokio::time::timeout(PATIENCE, handshake).await.map_err(|_| SinkError::Silent)?;
        let stream = secured.map_err(|source| SinkError::Connect { address: address.to_string(), source })?;
        Ok(Box::new(stream))
    }

    /// The sink's credentials, where there are some.
    pub(super) async fn credentials(&self) -> Result<Option<String>, SinkError> {
        let text = self.read(&self.secrets.join(self.sink)).await?;
        Ok(text.map(|text| text.trim().to_owned()))
    }

    /// A file that may not be there.
    async fn read(&self, path: &Path) -> Result<Option<String>, SinkError> {
        match tokio::fs::read_to_string(path).await {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SinkError::Secret { path: path.into(), source }),
        }
    }
}
