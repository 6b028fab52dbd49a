//! A cluster's trust and a TLS server on a free loopback port, for the tests in this directory.
#![allow(dead_code, reason = "every test file uses its own part")]
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::http_client::ServerUrl;
use cluster::identity::{Ca, DEFAULT_VALIDITY, Identity, KeyRequest, NodeCert, NodeRole, Peer, ReloadingIdentity};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Nothing here takes longer; a test that waits for it has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A CA and a place for identities.
pub struct Trust {
    pub ca: Ca,
    pub dir: tempfile::TempDir,
}

impl Trust {
    pub fn new() -> Self {
        Self { ca: Ca::create("test").unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    pub fn issue(&self, node: &str, validity: Duration, now: OffsetDateTime) -> Identity {
        let key = KeyRequest::generate(node).unwrap();
        let cert = NodeCert::new(node, "default", NodeRole::Voter);
        let chain = self.ca.issue_at(key.csr_pem(), &cert, validity, now).unwrap();
        key.certified(&chain.pem, &chain.ca_pem).unwrap()
    }

    pub fn dir_of(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    /// A fresh identity on disk.
    pub fn identity(&self, node: &str) -> Arc<ReloadingIdentity> {
        self.issue(node, DEFAULT_VALIDITY, OffsetDateTime::now_utc()).store(&self.dir_of(node)).unwrap();
        ReloadingIdentity::load(self.dir_of(node)).unwrap()
    }

    /// Serves a router as `node`.
    pub async fn serve(&self, node: &str, router: axum::Router) -> Served {
        let identity = self.identity(node);
        let tls = cluster::tls::server_config(identity.clone(), self.ca.certificate_pem()).unwrap();
        Served::start(identity, tls, router).await
    }
}

/// A running server; it ends with the test's runtime.
pub struct Served {
    pub address: SocketAddr,
    pub identity: Arc<ReloadingIdentity>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start(identity: Arc<ReloadingIdentity>, tls: ServerConfig, router: axum::Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, router) = (acceptor.clone(), router.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let peer = Peer::from_connection(stream.get_ref().1).unwrap();
                    let service = TowerToHyperService::new(router.layer(axum::Extension(peer)));
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, identity, task }
    }

    pub fn url(&self) -> ServerUrl {
        format!("https://{}", self.address).parse().unwrap()
    }

    /// Ends the server with all its connections, as kill -9 does.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// An address where nobody listens.
pub async fn dead_server() -> ServerUrl {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("https://{}", listener.local_addr().unwrap()).parse().unwrap()
}

/// Waits, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}
