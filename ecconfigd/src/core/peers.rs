//! What this node answers to the others: Raft's messages, read-indexes, snapshots.
//!
//! Who may ask: members of the group, by the name in their certificate and their number. A node that has not heard from a member for a while
//! may be the one that missed the changes (it was away while others joined, or it is new itself), so it also listens to Raft's messages of
//! any server that the cluster's CA certified; terms and logs decide then, as Raft has it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use cluster::api::MemberState;
use cluster::identity::NodeRole;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::Snapshot;
use serde::{Deserialize, Serialize};

use super::contact::Heard;
use super::{Core, Inner, Readiness};
use crate::commit::Proposer;
use crate::error::{Error, Result};
use crate::peer::{Bulk, Caller, Client, Method, PeerError, Refusal, RefusalCode, Service, Target};
use crate::raft::{Raft, RaftNode, wire};
use crate::state::{Manifest, State};

/// So long without a message of a member, and this node may be the one that is out of date.
const OUT_OF_TOUCH: Duration = Duration::from_secs(2);
/// How often the sender of a snapshot is told that it is still being installed.
const STILL_AT_IT: Duration = Duration::from_secs(1);

/// Answers the others.
pub(super) struct PeerService {
    pub(super) raft: Raft,
    pub(super) raft_id: u64,
    pub(super) state: Arc<State>,
    pub(super) data: PathBuf,
    /// The core, for what is more than Raft; gone while it is being made and after it ended.
    pub(super) core: std::sync::OnceLock<Weak<Inner>>,
    /// Why nothing is written, where that is so.
    full: tokio::sync::watch::Receiver<Option<String>>,
    /// When a member last sent entries or a heartbeat.
    heard: Arc<Heard>,
}

/// How long a member may take to say how it is.
const STATUS_WITHIN: Duration = Duration::from_millis(800);

/// How a node is, in the words of [`Method::STATUS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    /// Why it does not do all that a member does, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trouble: Option<String>,
    /// Where members told it that they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) said: Places,
}

/// Addresses of members by number. Only what they said themselves is passed on, so that nothing goes round for ever.
pub(super) type Places = BTreeMap<u64, String>;

/// The question of [`Method::STATUS`]; a build that does not know of places asks with nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
struct AskStatus {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    said: Places,
}

impl From<Readiness> for Status {
    fn from(readiness: Readiness) -> Self {
        let trouble = match readiness {
            Readiness::Ready => None,
            Readiness::Starting(why) => Some(format!("starting: {why}")),
            Readiness::ReadOnly(why) | Readiness::OutOfRoom(why) => Some(format!("read-only: {why}")),
            Readiness::Out(why) => Some(why),
            Readiness::Failed(why) => Some(format!("failed: {why}")),
            Readiness::Stopping => Some("stopping".into()),
        };
        Self { trouble, said: Places::new() }
    }
}

impl Core {
    /// How every member is: this node knows itself and asks the others, at the same time.
    pub async fn member_states(&self) -> Vec<MemberState> {
        let metrics = self.inner.proposer.raft.metrics().borrow_watched().clone();
        let members = metrics.membership_config.membership();
        let asked = members.nodes().map(|(id, node)| async {
            let (id, node) = (*id, node.clone());
            let trouble = match &self.inner.client {
                _ if id == self.inner.raft_id => Status::from(self.readiness()).trouble,
                Some(client) => match status(client, &target(id, &node), Places::new(), STATUS_WITHIN).await {
                    Ok(status) => status.trouble,
                    Err(error) => Some(format!("does not answer: {error}")),
                },
                None => None,
            };
            MemberState { node: node.name, leads: metrics.current_leader == Some(id), trouble }
        });
        futures::future::join_all(asked).await
    }
}

/// Asks a member how it is. One of a build that cannot say is well.
pub(super) async fn status(
    client: &Client,
    target: &Target,
    said: Places,
    within: Duration,
) -> Result<Status, PeerError> {
    let body = serde_json::to_vec(&AskStatus { said }).map(Bytes::from).unwrap_or_default();
    match client.call(target, Method::STATUS, body, within).await {
        Ok(answer) => serde_json::from_slice(&answer)
            .map_err(|error| PeerError::Lost { peer: target.node.clone(), why: error.to_string() }),
        Err(PeerError::Refused { refusal, .. }) if refusal.code == RefusalCode::UnknownMethod => {
            Ok(Status { trouble: None, said: Places::new() })
        }
        Err(error) => Err(error),
    }
}

/// A member as the transport addresses it.
pub(super) fn target(raft_id: u64, node: &RaftNode) -> Target {
    Target { raft_id, node: node.name.clone(), address: node.address.clone() }
}

/// How long a follower waits for the leader's answer about a read, and then for its own log to get there.
const READ_INDEX_WITHIN: Duration = Duration::from_secs(2);
pub(super) const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// Waits until this node has applied what was committed when the call began.
pub(super) async fn linearize(proposer: &Proposer, raft_id: u64, client: Option<&Client>) -> Result<()> {
    let unavailable = |why: String| Error::Unavailable(why);
    let metrics = proposer.raft.metrics().borrow_watched().clone();
    let leader = metrics.current_leader.ok_or_else(|| unavailable("there is no leader at the moment".into()))?;
    if leader == raft_id {
        return confirmed(proposer, APPLIED_WITHIN).await;
    }
    let node = metrics.membership_config.membership().get_node(&leader).cloned();
    let (Some(node), Some(client)) = (node, client) else {
        return Err(unavailable("the leader is not known here".into()));
    };
    let answer = client.call(&target(leader, &node), Method::READ_INDEX, Bytes::new(), READ_INDEX_WITHIN).await;
    let read = wire::read_index(answer.map_err(|error| unavailable(error.to_string()))?).map_err(Error::internal)?;
    wait_applied(proposer, read.index, APPLIED_WITHIN).await
}

/// A leader's own read-index: a majority still follows it, and what was committed before is applied here. One that is deposed meanwhile could
/// wait for ever.
pub(super) async fn confirmed(proposer: &Proposer, within: Duration) -> Result<()> {
    let asked = proposer.raft.ensure_linearizable(ReadPolicy::ReadIndex);
    match tokio::time::timeout(within, asked).await {
        Ok(done) => done.map(drop).map_err(|error| Error::Unavailable(error.to_string())),
        Err(_) => Err(Error::Unavailable("no majority of the servers has answered".into())),
    }
}

/// Waits until readers here see this entry.
pub(super) async fn wait_applied(proposer: &Proposer, index: u64, within: Duration) -> Result<()> {
    let mut progress = proposer.state.hub().progress();
    let reached = async {
        while proposer.state.view().applied_index() < index {
            if progress.changed().await.is_err() {
                return Err(super::stopping());
            }
        }
        Ok(())
    };
    let late = |_| Error::Unavailable(format!("this node has not applied entry {index} yet"));
    tokio::time::timeout(within, reached).await.map_err(late)?
}

fn fatal(error: impl std::fmt::Display) -> Refusal {
    Refusal::failed(format!("this node's Raft has stopped: {error}"))
}

impl PeerService {
    pub(super) fn new(
        raft: Raft,
        raft_id: u64,
        state: Arc<State>,
        data: PathBuf,
        full: tokio::sync::watch::Receiver<Option<String>>,
        heard: Arc<Heard>,
    ) -> Arc<Self> {
        let core = std::sync::OnceLock::new();
        Arc::new(Self { raft, raft_id, state, data, core, full, heard })
    }

    /// The core, while there is one.
    fn core(&self) -> Result<Core, Refusal> {
        let inner = self.core.get().and_then(Weak::upgrade);
        inner.map(|inner| Core { inner }).ok_or_else(|| Refusal::new(RefusalCode::NotNow, "it is stopping"))
    }

    /// Whether the state is about to be replaced by a snapshot, which has to be newer than the log.
    fn renews_state(&self) -> bool {
        let core = self.core.get().and_then(Weak::upgrade);
        core.is_some_and(|core| core.health.is_out_for(super::health::Part::State))
    }

    /// Refuses what only a node may do that holds what is right.
    fn refuse_out(&self) -> Result<(), Refusal> {
        self.core()?.out().map_or(Ok(()), |why| Err(Refusal::new(RefusalCode::NotNow, why)))
    }

    fn out_of_touch(&self) -> bool {
        !self.raft.is_leader() && (!self.heard.ever() || self.heard.silence() > OUT_OF_TOUCH)
    }

    fn is_member(&self, raft_id: u64, node: &str) -> bool {
        let named = |found: Option<&RaftNode>| found.is_some_and(|found| found.name == node);
        // Openraft's membership is ahead of the applied one: the newest entry counts as soon as it is in the log.
        named(self.raft.metrics().borrow_watched().membership_config.membership().get_node(&raft_id))
            || named(self.state.view().membership.membership().get_node(&raft_id))
    }

    async fn append(self: Arc<Self>, body: Bytes, member: bool) -> Result<Bytes, Refusal> {
        if member {
            self.heard.note();
        }
        let request = wire::read_append(body).map_err(Refusal::bad)?;
        // Heartbeats go on: this node knows who leads and waits for room.
        if let Some(why) = self.full.borrow().clone().filter(|_| !request.entries.is_empty()) {
            return Err(Refusal::new(RefusalCode::NotNow, why));
        }
        if !request.entries.is_empty() && self.renews_state() {
            return Err(Refusal::new(RefusalCode::NotNow, "its state is being replaced"));
        }
        let response = self.raft.append_entries(request).await.map_err(fatal)?;
        Ok(wire::appended(&response))
    }

    /// What somebody who would hand the leadership over wants to know, and where others are, in exchange for the same.
    fn status(&self, body: &[u8]) -> Result<Bytes, Refusal> {
        let core = self.core()?;
        let mut status = Status::from(core.readiness());
        if let Some(client) = &core.inner.client {
            status.said = client.said();
            client.passed_on(serde_json::from_slice::<AskStatus>(body).unwrap_or_default().said);
        }
        serde_json::to_vec(&status).map(Bytes::from).map_err(Refusal::failed)
    }

    async fn vote(self: Arc<Self>, body: Bytes, pre: bool) -> Result<Bytes, Refusal> {
        let request = wire::read_vote(body).map_err(Refusal::bad)?;
        let response = if pre { self.raft.pre_vote(request).await } else { self.raft.vote(request).await };
        Ok(wire::voted(&response.map_err(fatal)?))
    }

    async fn transfer_leader(self: Arc<Self>, body: Bytes) -> Result<Bytes, Refusal> {
        let request = wire::read_transfer(body).map_err(Refusal::bad)?;
        if let Some(why) = self.full.borrow().clone().filter(|_| *request.to_node_id() == self.raft_id) {
            return Err(Refusal::new(RefusalCode::NotNow, why));
        }
        if *request.to_node_id() == self.raft_id {
            self.refuse_out()?;
        }
        let response = self.raft.handle_transfer_leader(request).await.map_err(fatal)?;
        serde_json::to_vec(&response).map(Bytes::from).map_err(Refusal::failed)
    }

    /// Only a leader that a majority still follows can say it.
    async fn read_index(self: Arc<Self>) -> Result<Bytes, Refusal> {
        let found = self.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
        let (read, _) = found.map_err(|error| Refusal::new(RefusalCode::NotNow, error))?;
        Ok(wire::index(read.log_id()))
    }

    async fn snapshot(self: Arc<Self>, caller: u64, head: Bytes, stream: &mut Bulk) -> Result<(), Refusal> {
        let (vote, meta) = wire::read_snapshot_head(head).map_err(Refusal::bad)?;
        let received = self.while_there_is_room(self.receive_file(stream)).await?;
        let install = async {
            let file = received.try_clone().map_err(Refusal::failed)?;
            let (client, from) = self.sources(caller, meta.last_membership.membership())?;
            let bring = super::catchup::bring_objects(&self.state, &client, &from, file);
            self.while_there_is_room(async { bring.await.map_err(Refusal::failed) }).await?;
            let snapshot = Snapshot { meta, snapshot: Manifest { file: received } };
            self.raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)
        };
        let response = while_telling(stream, install).await?;
        let broken = |error: crate::peer::PeerError| Refusal::failed(error);
        stream.send(wire::only_vote(&response.vote)).await.map_err(broken)?;
        stream.finish().await.map_err(broken)
    }

    /// Gives up what fills the disk when it is full: what is in reserve is for the log.
    async fn while_there_is_room<T>(&self, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let mut full = self.full.clone();
        tokio::select! {
            biased;
            Ok(why) = full.wait_for(Option::is_some) => {
                Err(Refusal::new(RefusalCode::NotNow, why.clone().unwrap_or_default()))
            }
            done = work => done,
        }
    }

    /// Whom to ask for objects: the leader last, it has enough to do.
    fn sources(
        &self,
        leader: u64,
        members: &openraft::Membership<u64, RaftNode>,
    ) -> Result<(Client, Vec<Target>), Refusal> {
        let core = self.core.get().and_then(Weak::upgrade);
        let client = core.and_then(|core| core.client.clone());
        let client = client.ok_or_else(|| Refusal::new(RefusalCode::NotNow, "this node is starting or stopping"))?;
        let others = members.nodes().filter(|(id, _)| **id != self.raft_id);
        let (last, mut first): (Vec<_>, Vec<_>) = others.partition(|(id, _)| **id == leader);
        first.extend(last);
        Ok((client, first.into_iter().map(|(id, node)| target(*id, node)).collect()))
    }

    async fn objects(self: Arc<Self>, head: Bytes, stream: &mut Bulk) -> Result<(), Refusal> {
        if self.renews_state() {
            self.refuse_out()?;
        }
        let core = self.core.get().and_then(Weak::upgrade);
        let rate = core.map(|core| core.options.limits.catch_up_bytes_per_s.get());
        let rate = rate.ok_or_else(|| Refusal::new(RefusalCode::NotNow, "this node is starting or stopping"))?;
        super::catchup::serve_objects(&self.state, head, stream, rate).await
    }

    /// Into a file without a name: whatever happens, nothing is left of it.
    async fn receive_file(&self, stream: &mut Bulk) -> Result<std::fs::File, Refusal> {
        use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
        let mut file = tokio::fs::File::from_std(tempfile::tempfile_in(&self.data).map_err(Refusal::failed)?);
        while let Some(piece) = stream.next().await.map_err(Refusal::failed)? {
            file.write_all(&piece).await.map_err(Refusal::failed)?;
        }
        file.flush().await.map_err(Refusal::failed)?;
        file.rewind().await.map_err(Refusal::failed)?;
        Ok(file.into_std().await)
    }
}

/// Works, and tells the other end once a second that it still does. Ends with an error when nobody listens any more.
async fn while_telling<T>(stream: &mut Bulk, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(STILL_AT_IT, &mut work).await {
            Ok(done) => return done,
            Err(_) => {
                stream.send(Bytes::from_static(b".")).await.map_err(Refusal::failed)?;
                stream.flush().await.map_err(Refusal::failed)?;
            }
        }
    }
}

impl Service for PeerService {
    fn raft_id(&self) -> u64 {
        self.raft_id
    }

    fn admit(&self, caller: &Caller, method: Option<Method>) -> Result<(), String> {
        let node = &caller.peer.node;
        let server = caller.peer.role != NodeRole::Client;
        // At the hello every server of the CA is let in, so that it is told what it may not, and a removed one can give the CA's key back.
        if self.is_member(caller.raft_id, node) || (server && matches!(method, None | Some(Method::CA_KEY))) {
            return Ok(());
        }
        let of_raft = method.is_none_or(|method| {
            matches!(
                method,
                Method::APPEND | Method::VOTE | Method::PRE_VOTE | Method::SNAPSHOT | Method::TRANSFER_LEADER
            )
        });
        if caller.peer.role != NodeRole::Client && of_raft && self.out_of_touch() {
            return Ok(());
        }
        Err(format!("node {node} is not member {} of this cluster", caller.raft_id))
    }

    fn reached_at(&self, caller: &Caller, address: &str) {
        if self.is_member(caller.raft_id, &caller.peer.node)
            && let Some(client) = self.core.get().and_then(Weak::upgrade).and_then(|core| core.client.clone())
        {
            client.moved(caller.raft_id, address);
        }
    }

    fn call(
        self: Arc<Self>,
        caller: Arc<Caller>,
        method: Method,
        body: Bytes,
        _within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        match method {
            Method::APPEND => {
                let member = self.is_member(caller.raft_id, &caller.peer.node);
                self.append(body, member).boxed()
            }
            Method::VOTE => self.vote(body, false).boxed(),
            Method::PRE_VOTE => self.vote(body, true).boxed(),
            Method::TRANSFER_LEADER => self.transfer_leader(body).boxed(),
            Method::READ_INDEX => self.read_index().boxed(),
            Method::HASHES => async move { self.core()?.tell_hashes(&body) }.boxed(),
            Method::FORWARD => async move { self.core()?.forwarded(body).await }.boxed(),
            Method::STATUS => futures::future::ready(self.status(&body)).boxed(),
            Method::CERTIFY => async move { self.core()?.certify(&caller, body).await }.boxed(),
            Method::CA_KEY => {
                let caller = self.is_member(caller.raft_id, &caller.peer.node).then_some(caller.raft_id);
                let voters = self.raft.voter_ids().collect();
                async move { super::ca_key::answer(&self.data, &body, caller, &voters).await }.boxed()
            }
            other => {
                let words = format!("this build does not know {other}");
                futures::future::ready(Err(Refusal::new(RefusalCode::UnknownMethod, words))).boxed()
            }
        }
    }

    fn bulk<'a>(
        self: Arc<Self>,
        caller: Arc<Caller>,
        method: Method,
        head: Bytes,
        stream: &'a mut Bulk,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        match method {
            Method::SNAPSHOT => self.snapshot(caller.raft_id, head, stream).boxed(),
            Method::OBJECTS => self.objects(head, stream).boxed(),
            Method::EXAMINE => async move { self.core()?.serve_examination(head, stream).await }.boxed(),
            Method::FRESH_SNAPSHOT => {
                async move { super::health::renewal::serve(&self.core()?, head, stream).await }.boxed()
            }
            Method::FORWARD_PUSH => async move { self.core()?.forwarded_in_pieces(stream).await }.boxed(),
            other => {
                let words = format!("this build does not know {other}");
                futures::future::ready(Err(Refusal::new(RefusalCode::UnknownMethod, words))).boxed()
            }
        }
    }
}
