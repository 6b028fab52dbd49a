//! Keys from node identities: every pair of members agrees on one over mutual TLS (TCP, the same port as the datagrams), and
//! authenticates its datagrams with it. The certificates have to name the two nodes.
//!
//! Of two members the one with the smaller number connects, and keeps the connection: it breaks when the other side's run
//! ends, and connecting again agrees on a new key. Nothing but TLS and a sign of life travels on it. The key is what RFC 5705
//! exports, so it never travels at all. A member that is cut off for a while keeps its key, and needs no TCP to go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::identity::{Peer, ReloadingIdentity};
use cluster::{node_connection, tls};
use duravip_core::MemberId;
use duravip_core::envelope::Key;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::inbox::{Inbox, Input};
use super::plan::Plan;

/// What the exported key is for; other uses of the same connection would export others.
const LABEL: &[u8] = b"EXPORTER-eccluster-duravip-1";
/// What a connection speaks, so that no other service of the node can be taken for this one.
const ALPN: &[u8] = b"eccluster-duravip/1";
/// A handshake that takes longer is not going to end.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Before a member that cannot be reached is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// Between two signs of life: a machine that lost its power answers the next one with a reset once it is back.
const ALIVE: Duration = Duration::from_secs(1);
/// Connections at once: all members twice over. Others wait for a place.
const CONNECTIONS: usize = 128;

/// Agrees on keys with the other members, and goes on as they come and go and the configuration changes.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Who this node is.
    pub identity: Arc<ReloadingIdentity>,
    /// Who the members are.
    pub plan: watch::Receiver<Arc<Plan>>,
    /// Where keys go.
    pub inbox: Inbox,
}

impl Keys {
    /// Runs until it is stopped.
    pub async fn run(mut self, listener: TcpListener, stop: CancellationToken) {
        let accepting = tokio::spawn(self.clone().accept(listener, stop.clone()));
        while !stop.is_cancelled() {
            let plan = self.plan.borrow_and_update().clone();
            let mut dialing = JoinSet::new();
            for (member, place) in plan.peers.iter().filter(|(member, _)| plan.me < **member) {
                dialing.spawn(self.clone().keep(*member, plan.names[member].clone(), place.to_string()));
            }
            // Other members or places: the connections are made anew, and the keys in use stay until then. What else a
            // configuration changes is no reason for another key, which one side has a moment before the other.
            tokio::select! {
                () = stop.cancelled() => break,
                ended = async { self.plan.wait_for(|next| next.peers != plan.peers).await.is_err() } => if ended { break },
            }
        }
        let _ = accepting.await;
    }

    /// Keeps a connection to a member.
    async fn keep(self, member: MemberId, name: String, place: String) {
        let mut complaint = String::new();
        loop {
            match self.connect(member, &name, &place).await {
                Ok(()) => complaint.clear(),
                Err(why) if why != complaint => {
                    tracing::warn!(member = name, why, "no key with this member");
                    complaint = why;
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Agrees on a key, and stays until the connection breaks.
    async fn connect(&self, member: MemberId, name: &str, place: &str) -> Result<(), String> {
        let words = |error: &dyn std::error::Error| cluster::error::Chain(error).to_string();
        let connecting = node_connection::connect(&self.identity, name, place, ALPN);
        let stream = tokio::time::timeout(HANDSHAKE, connecting).await;
        let stream = stream.map_err(|_| format!("{place} does not answer"))?;
        let mut stream = stream.map_err(|error| words(&error))?;
        let connection = stream.get_ref().1;
        let key = self.agree(connection.peer_certificates(), |key| {
            connection.export_keying_material(key, LABEL, None).map(drop)
        })?;
        if key.0 != member {
            return Err(format!("{place} is another node"));
        }
        self.inbox.send(Input::Key(key.0, key.1));
        let mut byte = [0];
        loop {
            tokio::select! {
                read = stream.read(&mut byte) => if !matches!(read, Ok(1)) { return Ok(()) },
                () = tokio::time::sleep(ALIVE) => if stream.write_all(&[0]).await.is_err() { return Ok(()) },
            }
        }
    }

    async fn accept(self, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let keys = self.clone();
            match accepted {
                Ok((tcp, from)) => drop(connections.spawn(async move {
                    if let Err(why) = keys.serve(tcp).await {
                        tracing::warn!(%from, why, "no key with who came from there");
                    }
                    drop(place);
                })),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(AGAIN).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }

    async fn serve(&self, tcp: TcpStream) -> Result<(), String> {
        let words = |error: &dyn std::error::Error| cluster::error::Chain(error).to_string();
        let ca = self.identity.current().ca_pem().to_owned();
        let mut config = tls::server_config(self.identity.clone(), &ca).map_err(|error| words(&error))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        let handshake = TlsAcceptor::from(Arc::new(config)).accept(tcp);
        let stream = tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| "it says nothing".to_owned())?;
        let mut stream = stream.map_err(|error| words(&error))?;
        let connection = stream.get_ref().1;
        let (member, key) = self.agree(connection.peer_certificates(), |key| {
            connection.export_keying_material(key, LABEL, None).map(drop)
        })?;
        self.inbox.send(Input::Key(member, key));
        let mut byte = [0];
        // The other side says something every second; three of them missing are a machine that is gone.
        while let Ok(Ok(1)) = tokio::time::timeout(ALIVE * 3, stream.read(&mut byte)).await {}
        Ok(())
    }

    /// Who is on the other side, if it is a member, and the key with it.
    fn agree(
        &self,
        certificates: Option<&[CertificateDer<'static>]>,
        export: impl FnOnce(&mut [u8; 32]) -> Result<(), rustls::Error>,
    ) -> Result<(MemberId, Key), String> {
        let leaf = certificates.and_then(<[_]>::first).ok_or("it shows no certificate")?;
        let peer = Peer::from_certificate(leaf).map_err(|error| error.to_string())?;
        let member = MemberId::of_name(&peer.node);
        if !self.plan.borrow().peers.contains_key(&member) {
            return Err(format!("{} is no member", peer.node));
        }
        let mut key = [0; 32];
        export(&mut key).map_err(|error| error.to_string())?;
        Ok((member, Key::new(key)))
    }
}

/// Listens where the datagrams come in.
pub async fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(at).await
}
