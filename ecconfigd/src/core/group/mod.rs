//! Real cores over real sockets on the loopback, in one process: the group as it will be, without HTTP.
#![allow(clippy::unwrap_used)]

mod healing;
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::identity::{Ca, DEFAULT_VALIDITY, JoinToken, KeyRequest, NodeCert, NodeRole, ReloadingIdentity};
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::tests::{first, name, put, request};
use super::{Core, CoreLimits, CoreOptions, FIRST_RAFT_ID, JoinMember};
use crate::state::{NodeKind, NodeRecord, NodeTokenRecord};

/// The longest that any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A member: its directory and port stay, its core comes and goes.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) raft_id: u64,
    dir: tempfile::TempDir,
    address: SocketAddr,
    identity: Arc<ReloadingIdentity>,
    pub(crate) limits: CoreLimits,
    running: Option<(Core, tokio::task::JoinHandle<()>)>,
}

/// A group and its CA.
pub(crate) struct Group {
    pub(crate) ca: Ca,
    pub(crate) members: Vec<Member>,
    pub(crate) limits: CoreLimits,
}

/// A port that is free now. It is bound again in a moment; nobody else here asks for a given one.
fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An identity of this CA in a fresh directory.
pub(crate) fn identity(ca: &Ca, node: &str, role: NodeRole, dir: &std::path::Path) -> Arc<ReloadingIdentity> {
    let key = KeyRequest::generate(node).unwrap();
    let wanted = NodeCert::new(node, "default", role).reached_at("127.0.0.1");
    let chain = ca.issue(key.csr_pem(), &wanted, DEFAULT_VALIDITY).unwrap();
    let dir = dir.join("identity");
    key.certified(&chain.pem, &chain.ca_pem).unwrap().store(&dir).unwrap();
    ReloadingIdentity::load(dir).unwrap()
}

async fn listen(address: SocketAddr) -> TcpListener {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        match socket.bind(address).and_then(|()| socket.listen(64)) {
            Ok(listener) => return listener,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("{address}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Accepts for a core, as the server does for peers.
async fn accept(listener: TcpListener, identity: Arc<ReloadingIdentity>, core: Core) {
    let tls = TlsAcceptor::from(Arc::new(crate::server::tls(&identity).unwrap()));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (tls, core) = (tls.clone(), core.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let peer = cluster::identity::Peer::from_connection(stream.get_ref().1).unwrap_or_default();
            core.peers().take(stream.into(), peer);
        });
    }
}

impl Member {
    fn options(&self) -> CoreOptions {
        CoreOptions {
            data: self.dir.path().to_owned(),
            node: self.name.parse().unwrap(),
            address: self.address.to_string(),
            peers: Default::default(),
            limits: self.limits.clone(),
        }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.running.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).0
    }

    pub(crate) fn data(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn holds_ca_key(&self) -> bool {
        Ca::key_file(self.dir.path()).exists()
    }

    /// The last log index that was taken out of its log.
    pub(crate) fn purged(&self) -> u64 {
        self.core().inner.proposer.raft.metrics().borrow_watched().purged.map_or(0, |id| id.index)
    }

    pub(crate) fn target(&self) -> crate::peer::Target {
        let address = self.address.to_string();
        crate::peer::Target { raft_id: self.raft_id, node: self.name.clone(), address }
    }

    pub(crate) async fn start(&mut self) {
        let listener = listen(self.address).await;
        let core = self.open().await;
        let accepting = tokio::spawn(accept(listener, self.identity.clone(), core.clone()));
        self.running = Some((core, accepting));
    }

    /// What was under way when it stopped may hold the database for a moment longer; as a process it would have ended.
    async fn open(&self) -> Core {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match Core::open_with(self.options(), self.identity.clone()).await {
                Ok(core) => return core,
                Err(error) if error.to_string().contains("already open") && tokio::time::Instant::now() < deadline => {}
                Err(error) => panic!("{} does not start: {error}", self.name),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn stop(&mut self) {
        if let Some((core, accepting)) = self.running.take() {
            core.shutdown().await;
            accepting.abort();
            let _ = accepting.await;
        }
    }

    /// Ends it without a word to anybody: no transfer of leadership, no last checkpoint.
    pub(crate) async fn kill(&mut self) {
        if let Some((core, accepting)) = self.running.take() {
            accepting.abort();
            let _ = accepting.await;
            core.kill().await;
        }
    }
}

impl Group {
    /// A group of so many voters, all ready.
    pub(crate) async fn start(voters: usize) -> Group {
        let limits = CoreLimits { segment_bytes: 1 << 20, ..CoreLimits::default() };
        Self::with(voters, limits).await
    }

    pub(crate) async fn with(voters: usize, limits: CoreLimits) -> Group {
        if std::env::var_os("ECCLUSTER_LOG").is_some() {
            let _ = cluster::telemetry::init(&cluster::telemetry::TelemetryOptions::from_env());
        }
        let mut group = Group { ca: Ca::create("test").unwrap(), members: Vec::new(), limits };
        let mut one = group.blank("n1", FIRST_RAFT_ID, NodeRole::Voter);
        group.ca.store(one.dir.path()).unwrap();
        let core = Core::bootstrap(one.options(), first()).await.unwrap();
        core.shutdown().await;
        drop(core);
        one.start().await;
        one.core().wait_ready(PATIENCE).await.unwrap();
        group.members.push(one);
        for number in 2..=voters {
            group.join(&format!("n{number}"), true).await;
        }
        group.wait("all vote", |group| group.leader_core().is_some_and(|core| settled_voters(core) == voters)).await;
        group
    }

    fn blank(&self, node: &str, raft_id: u64, role: NodeRole) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity(&self.ca, node, role, dir.path());
        std::fs::write(dir.path().join("ca.pem"), self.ca.certificate_pem()).unwrap();
        let (address, limits) = (free_port(), self.limits.clone());
        Member { name: node.into(), raft_id, dir, address, identity, limits, running: None }
    }

    /// A new member, started.
    pub(crate) async fn join(&mut self, node: &str, voter: bool) {
        let member = self.prepare(node, voter).await;
        self.members.push(member);
        let member = self.members.last_mut().unwrap();
        member.start().await;
        member.core().wait_ready(PATIENCE).await.unwrap();
    }

    /// A member that is known to the group and has not run yet.
    pub(crate) async fn prepare(&mut self, node: &str, voter: bool) -> Member {
        let mut member = self.blank(node, 0, if voter { NodeRole::Voter } else { NodeRole::Learner });
        let token = JoinToken::generate(self.ca.fingerprint());
        let leader = self.leader().await.core().clone();
        let record = NodeTokenRecord {
            id: token.id(),
            secret_sha256: token.secret().sha256(),
            subcluster: name("default"),
            created_by: "admin".into(),
            expires_clock_ms: u64::MAX,
        };
        leader.put_node_token(record).await.unwrap();
        let record = NodeRecord {
            name: node.parse().unwrap(),
            subcluster: name("default"),
            kind: NodeKind::Server,
            raft_id: None,
            address: Some(member.address.to_string()),
            joined_time_ms: 0,
            certificates: Vec::new(),
        };
        let key_sha256 = rand_key(node);
        let joined = leader.join_member(JoinMember { record, voter, key_sha256, token: token.id() }).await.unwrap();
        member.raft_id = joined.raft_id;
        Core::prepare_joined(member.dir.path(), &joined.node, joined.raft_id).unwrap();
        member
    }

    /// Commits a file through whoever leads, as often as a machine under load makes the leadership move.
    pub(crate) async fn commit(&self, path: &str, text: &str) -> u64 {
        let key = format!("{path} {text}");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let core = self.leader().await.core();
            let base = core.head(&name("default")).unwrap().revision;
            let mut wanted = request(base, vec![put(path, text)]);
            wanted.idempotency_key = Some(key.clone());
            match core.commit(wanted).await {
                Ok(answer) => return answer.repos[&name("default")].head.revision,
                Err(crate::error::Error::Unavailable(why) | crate::error::Error::NotDone(why))
                    if tokio::time::Instant::now() < deadline =>
                {
                    tracing::info!("{path} is committed again: {why}");
                }
                Err(error) => panic!("{path}: {error}"),
            }
        }
    }

    pub(crate) fn leader_core(&self) -> Option<&Core> {
        let running = self.members.iter().filter(|member| member.running.is_some());
        running.map(Member::core).find(|core| core.inner.proposer.raft.is_leader())
    }

    /// The member that leads, once one does and is known to do so by all that run.
    pub(crate) async fn leader(&self) -> &Member {
        self.wait("a leader that all agree on", |group| group.agreed_leader().is_some()).await;
        self.agreed_leader().unwrap_or_else(|| self.members.iter().find(|m| m.running.is_some()).unwrap())
    }

    fn agreed_leader(&self) -> Option<&Member> {
        let running: Vec<_> = self.members.iter().filter(|member| member.running.is_some()).collect();
        let leader = running.iter().find(|member| member.core().inner.proposer.raft.is_leader())?;
        running.iter().all(|member| member.core().group().leader.as_ref() == Some(&leader.name)).then_some(*leader)
    }

    /// The names of all members but this one.
    pub(crate) fn others(&self, node: &str) -> Vec<String> {
        self.members.iter().map(|member| member.name.clone()).filter(|name| name != node).collect()
    }

    pub(crate) fn member(&self, node: &str) -> &Member {
        self.members.iter().find(|member| member.name == node).unwrap()
    }

    pub(crate) fn member_mut(&mut self, node: &str) -> &mut Member {
        self.members.iter_mut().find(|member| member.name == node).unwrap()
    }

    /// Waits for a condition.
    pub(crate) async fn wait(&self, what: &str, mut condition: impl FnMut(&Group) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !condition(self) {
            if tokio::time::Instant::now() > deadline {
                let groups: Vec<_> =
                    self.members.iter().filter(|m| m.running.is_some()).map(|m| m.core().group()).collect();
                panic!("waited too long for: {what}\n{groups:#?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until all that run have the same state at the same index.
    pub(crate) async fn converge(&self) {
        self.wait("equal states", |group| {
            let running = group.members.iter().filter(|member| member.running.is_some());
            let states: std::collections::BTreeSet<_> =
                running.map(|member| member.core().group()).map(|found| (found.applied, found.state_hash)).collect();
            states.len() == 1
        })
        .await;
    }

    pub(crate) async fn stop(mut self) {
        for member in &mut self.members {
            member.stop().await;
        }
    }
}

/// Stands for the hash of a node's key.
fn rand_key(node: &str) -> [u8; 32] {
    let mut key = [0; 32];
    getrandom::fill(&mut key).unwrap();
    key[..node.len()].copy_from_slice(node.as_bytes());
    key
}

/// The voters, once no change of them is under way.
fn settled_voters(core: &Core) -> usize {
    let metrics = core.inner.proposer.raft.metrics().borrow_watched().clone();
    let joint = metrics.membership_config.membership().get_joint_config().len() > 1;
    if joint { 0 } else { metrics.membership_config.voter_ids().count() }
}
