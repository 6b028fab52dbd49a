//! Other nodes' daemons: one connection each, made when needed, over TLS 1.3 with certificates on both sides.
//!
//! HTTP/2 lets live questions overtake a batch of windows on the same connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cidr_engine::{Address, Block};
use cluster::documents::schema::values::HostPort;
use cluster::error::Chain;
use cluster::http_client::escape;
use cluster::identity::ReloadingIdentity;
use cluster::node_connection;
use futures::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

/// A peer that accepts no connection within this time is away.
const CONNECT: Duration = Duration::from_secs(3);
/// A live question: whoever waits for it holds up a mail.
const ASK: Duration = Duration::from_secs(1);
/// A batch of windows: the server writes files and syncs them.
const DELIVER: Duration = Duration::from_secs(60);
/// An answer is a line or two of JSON.
const ANSWER_BYTES: usize = 64 << 10;

/// Why a peer did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Neither an identity nor a cluster key.
    #[error("this node has no identity and no cluster key, and so talks to no other")]
    Nobody,
    /// Not in `cluster.toml`, or without an address there.
    #[error("cluster.toml has no address for {0}")]
    Unknown(String),
    /// Nobody there, or not within the time.
    #[error("cannot reach {node} at {address}: {why}")]
    Away {
        /// The node.
        node: String,
        /// Where it was looked for.
        address: String,
        /// What happened.
        why: String,
    },
    /// It answered with a refusal.
    #[error("{node} refused: {status} {words}")]
    Refused {
        /// The node.
        node: String,
        /// The status.
        status: StatusCode,
        /// What it said.
        words: String,
    },
}

/// All peers.
pub struct Peers {
    identity: Option<Arc<ReloadingIdentity>>,
    known: Mutex<BTreeMap<String, Arc<Link>>>,
}

/// The way to one peer.
struct Link {
    node: String,
    address: HostPort,
    identity: Arc<ReloadingIdentity>,
    open: tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl Peers {
    /// Peers that are talked to as this identity.
    pub fn new(identity: Option<Arc<ReloadingIdentity>>) -> Self {
        Self { identity, known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Link>>> {
        // Every change is a single assignment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the others are now.
    pub fn set(&self, addresses: &BTreeMap<String, HostPort>) {
        let Some(identity) = &self.identity else { return };
        let mut known = self.known();
        let fresh = addresses.iter().map(|(node, address)| {
            let kept = known.get(node).filter(|link| link.address == *address).cloned();
            let open = tokio::sync::Mutex::default();
            let link = kept.unwrap_or_else(|| {
                Arc::new(Link { node: node.clone(), address: address.clone(), identity: identity.clone(), open })
            });
            (node.clone(), link)
        });
        *known = fresh.collect();
    }

    fn link(&self, node: &str) -> Result<Arc<Link>, PeerError> {
        if self.identity.is_none() {
            return Err(PeerError::Nobody);
        }
        self.known().get(node).cloned().ok_or_else(|| PeerError::Unknown(node.into()))
    }

    /// Hands windows to a server, as [`crate::hand_in::HandIn::encode`] made them; it has them durably when this returns.
    pub async fn deliver(&self, server: &str, windows: Bytes) -> Result<(), PeerError> {
        self.link(server)?.send(Method::POST, "/cluster/windows".into(), windows, DELIVER).await.map(drop)
    }

    /// What the others counted, and who did not answer.
    pub async fn count(
        &self,
        series: &str,
        block: &Block,
        last_s: u64,
    ) -> (BTreeMap<String, i64>, BTreeMap<String, String>) {
        let path =
            format!("/cluster/count?series={}&block={}&last={last_s}s", escape(series), escape(&block.to_string()));
        let (mut nodes, mut missing) = (BTreeMap::new(), BTreeMap::new());
        for (node, answer) in self.ask_all(Method::GET, &path).await {
            let count = answer.map_err(|error| error.to_string()).and_then(|body| {
                std::str::from_utf8(&body)
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .ok_or("it answered no number".into())
            });
            match count {
                Ok(count) => drop(nodes.insert(node, count)),
                Err(why) => drop(missing.insert(node, why)),
            }
        }
        (nodes, missing)
    }

    /// Tells the others to forget an address; who could not be told.
    pub async fn remove(&self, series: &str, address: Address) -> BTreeMap<String, String> {
        let path = format!("/cluster/remove?series={}&address={}", escape(series), escape(&address.to_string()));
        let answers = self.ask_all(Method::POST, &path).await;
        answers.into_iter().filter_map(|(node, answer)| Some((node, answer.err()?.to_string()))).collect()
    }

    async fn ask_all(&self, method: Method, path: &str) -> Vec<(String, Result<Bytes, PeerError>)> {
        let links: Vec<Arc<Link>> = self.known().values().cloned().collect();
        join_all(links.into_iter().map(|link| {
            let (method, path) = (method.clone(), path.to_owned());
            async move { (link.node.clone(), link.send(method, path, Bytes::new(), ASK).await) }
        }))
        .await
    }
}

impl Link {
    async fn send(&self, method: Method, path: String, body: Bytes, limit: Duration) -> Result<Bytes, PeerError> {
        let sent = tokio::time::timeout(limit, self.exchange(method, path, body)).await;
        sent.unwrap_or_else(|_| Err(self.away(format!("no answer within {} s", limit.as_secs()))))
    }

    async fn exchange(&self, method: Method, path: String, body: Bytes) -> Result<Bytes, PeerError> {
        let mut connection = self.connection().await?;
        let request =
            Request::builder().method(method).uri(format!("https://{}{path}", self.node)).body(Full::new(body));
        let request = request.map_err(|error| self.away(error))?;
        let answer = connection.send_request(request).await.map_err(|error| self.away(error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| self.away(error))?.to_bytes();
        if !status.is_success() {
            let words = String::from_utf8_lossy(&body).trim().chars().take(300).collect();
            return Err(PeerError::Refused { node: self.node.clone(), status, words });
        }
        Ok(body)
    }

    fn away(&self, why: impl ToString) -> PeerError {
        PeerError::Away { node: self.node.clone(), address: self.address.to_string(), why: why.to_string() }
    }

    /// The open connection, or a new one. Several callers wait for the same one.
    async fn connection(&self) -> Result<http2::SendRequest<Full<Bytes>>, PeerError> {
        let mut open = self.open.lock().await;
        if let Some(connection) = open.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        *open = None;
        let fresh = tokio::time::timeout(CONNECT, self.connect()).await;
        let fresh = fresh.unwrap_or_else(|_| Err(self.away("it does not accept connections")))?;
        *open = Some(fresh.clone());
        Ok(fresh)
    }

    async fn connect(&self) -> Result<http2::SendRequest<Full<Bytes>>, PeerError> {
        let stream = node_connection::connect(&self.identity, &self.node, &self.address.to_string(), b"h2").await;
        let stream = stream.map_err(|error| self.away(Chain(&error)))?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.away(error))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
