//! The calling end: connections to other members, made when they are needed and kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cluster::identity::ReloadingIdentity;
use cluster::node_connection;
use tokio::io::BufStream;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::addresses::Addresses;
use super::bulk::Bulk;
use super::frame::{self, Frame};
use super::hello::{self, Hello, Welcome};
use super::link::Link;
use super::{ALPN, Lane, Method, PeerError, VERSION};

/// How long connecting, TLS and the hello may take together.
const DIAL: Duration = Duration::from_secs(2);

/// A node to talk to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Its number in the Raft group.
    pub raft_id: u64,
    /// Its name, which its certificate must bear.
    pub node: String,
    /// Where it is reached, `host:port`.
    pub address: String,
}

/// Calls other members. Clones share the connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    dialer: Arc<Dialer>,
    /// One per member and lane; members are few, and those that changed are forgotten by [`Client::keep`].
    links: Mutex<HashMap<(Target, Lane), Arc<Link>>>,
}

/// Makes connections.
pub(super) struct Dialer {
    identity: Arc<ReloadingIdentity>,
    raft_id: u64,
    /// Where this node is reached.
    address: Option<String>,
    /// Where the others are.
    addresses: Addresses,
    version: u16,
}

impl Client {
    /// A client that calls as the node of this identity, which tells the others that it is reached at this address.
    /// `told` is where other nodes are to be looked for, by name, whatever the log says.
    pub fn new(identity: Arc<ReloadingIdentity>, raft_id: u64, address: &str, told: BTreeMap<String, String>) -> Self {
        Self::speaking(identity, raft_id, Some(address.to_owned()), told, VERSION)
    }

    /// The same for tests of other versions.
    pub(super) fn speaking(
        identity: Arc<ReloadingIdentity>,
        raft_id: u64,
        address: Option<String>,
        told: BTreeMap<String, String>,
        version: u16,
    ) -> Self {
        let dialer = Arc::new(Dialer { identity, raft_id, address, addresses: Addresses::new(told), version });
        Self { inner: Arc::new(Inner { dialer, links: Mutex::default() }) }
    }

    fn link(&self, target: &Target, lane: Lane) -> Arc<Link> {
        let target = self.found(target);
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Link::new(self.inner.dialer.clone(), target.clone(), lane));
        links.entry((target.clone(), lane)).or_insert_with(make).clone()
    }

    /// The member where it is to be looked for now.
    fn found(&self, target: &Target) -> Target {
        self.inner.dialer.addresses.found(target)
    }

    /// A member has said where it is.
    pub fn moved(&self, raft_id: u64, address: &str) {
        self.inner.dialer.addresses.said(raft_id, address);
    }

    /// Where members said that they are, by number.
    pub fn said(&self) -> BTreeMap<u64, String> {
        self.inner.dialer.addresses.all_said()
    }

    /// Another member says where they told it they are.
    pub fn passed_on(&self, places: BTreeMap<u64, String>) {
        self.inner.dialer.addresses.pass_on(places);
    }

    /// Closes connections to everybody who is not among these, and forgets where they are.
    pub fn keep(&self, targets: &[Target]) {
        self.inner.dialer.addresses.keep(targets);
        let targets: Vec<Target> = targets.iter().map(|target| self.found(target)).collect();
        let mut links = self.inner.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|(target, _), _| targets.contains(target));
    }

    /// Asks and waits for the answer.
    pub async fn call(
        &self,
        target: &Target,
        method: Method,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, PeerError> {
        let lane = match method {
            Method::VOTE | Method::PRE_VOTE | Method::TRANSFER_LEADER | Method::READ_INDEX => Lane::Urgent,
            Method::APPEND => Lane::Log,
            _ => Lane::Calls,
        };
        self.call_on(lane, target, method, body, within).await
    }

    /// The same over a lane of the caller's choice. Calls on one lane leave in the order in which they are first polled.
    pub async fn call_on(
        &self,
        lane: Lane,
        target: &Target,
        method: Method,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, PeerError> {
        self.link(target, lane).call(method, body, within).await
    }

    /// Opens a bulk stream: `head` is the question, the pieces follow in both directions.
    pub async fn open(&self, target: &Target, method: Method, head: Bytes) -> Result<Bulk, PeerError> {
        let mut io = self.inner.dialer.dial(&self.found(target), Lane::Bulk).await?;
        let lost = |error: std::io::Error| PeerError::Lost { peer: target.node.clone(), why: error.to_string() };
        let request = Frame::Request { id: 0, method, time_left_ms: u32::MAX, body: head };
        frame::write(&mut io, &request).await.map_err(lost)?;
        tokio::io::AsyncWriteExt::flush(&mut io).await.map_err(lost)?;
        Ok(Bulk::new(io, target.node.clone()))
    }
}

impl Dialer {
    /// Connects, proves both ends, and exchanges the hello.
    pub(super) async fn dial(&self, target: &Target, lane: Lane) -> Result<BufStream<TlsStream<TcpStream>>, PeerError> {
        let unreachable = |why: String| PeerError::Unreachable { peer: target.node.clone(), why };
        let done = match tokio::time::timeout(DIAL, self.connect(target, lane)).await {
            Ok(done) => done.map_err(unreachable),
            Err(_) => Err(unreachable(format!("{} did not answer within {} s", target.address, DIAL.as_secs()))),
        };
        self.addresses.tried(target, done.is_ok());
        done
    }

    async fn connect(&self, target: &Target, lane: Lane) -> Result<BufStream<TlsStream<TcpStream>>, String> {
        let address = &target.address;
        let stream = node_connection::connect(&self.identity, &target.node, address, ALPN).await;
        let stream = stream.map_err(|error| format!("{address}: {}", cluster::error::Chain(&error)))?;
        tune(stream.get_ref().0);
        let mut io = BufStream::with_capacity(64 << 10, 64 << 10, TlsStream::from(stream));
        let hello = Hello {
            from: self.raft_id,
            to: target.raft_id,
            lane,
            address: self.address.clone(),
            build: hello::build(),
        };
        let talk = async {
            hello::write(&mut io, self.version, &hello).await?;
            hello::read(&mut io).await
        };
        let (version, words) = talk.await.map_err(|error| format!("{address}: {error}"))?;
        // The words of a refusal are readable in every version.
        let welcome = serde_json::from_slice::<Welcome>(&words);
        match welcome {
            Ok(Welcome { refused: Some(why), .. }) => Err(format!("it refuses: {why}")),
            Ok(_) if version == self.version => Ok(io),
            _ => Err(hello::other_version(version)),
        }
    }
}

/// Small messages leave at once, and what a vanished node does not acknowledge ends the connection.
pub(super) fn tune(stream: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &10_000);
}
