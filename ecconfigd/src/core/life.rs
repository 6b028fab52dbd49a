//! Starting, keeping and ending the core.
//!
//! A new cluster is made under a marker file that is removed last: a directory with the marker was never a cluster and may be started over.
//! What runs beside the requests is here, too: checkpoints, compaction of the log, merging of packs, and the clock's tick.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cluster::identity::ReloadingIdentity;
use openraft::async_runtime::watch::WatchReceiver as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::contact;
use super::health;
use super::options::{Bootstrap, CoreOptions, Readiness};
use super::peers::PeerService;
use super::reports::Reporter;
use super::steward;
use super::{Core, Inner};
use crate::commit::{Builder, NewRepo, Propose as _, Proposer, Queue, Verdict};
use crate::error::{Error, Result};
use crate::peer;
use crate::raft::command::{Op, Outcome};
use crate::raft::log::LogStore;
use crate::raft::machine::Machine;
use crate::raft::network::Network;
use crate::raft::{Raft, RaftNode, config};
use crate::state::{Author, NodeKind, NodeRecord, State, has_state};

const MARKER: &str = "bootstrap.unfinished";
const IDENTITY: &str = "node.json";
/// The first voter's number.
pub const FIRST_RAFT_ID: u64 = 1;
/// How often maintenance looks whether something is due.
const LOOK: Duration = Duration::from_millis(200);
/// Packs are counted after so many entries.
const CONSOLIDATE_LOOK: u64 = 16;
/// The cluster clock is written down at least this often, so that a restart loses no more of it.
const TICK: Duration = Duration::from_secs(60);
/// How long a stopping node waits for the writes that are in flight, …
const LAST_WRITES: Duration = Duration::from_secs(5);
/// … and then for everything else that runs beside them.
const LAST_TASKS: Duration = Duration::from_secs(10);
/// How long a stopping leader waits for its successor.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Who this node is in the Raft group. Written once, beside the log it belongs to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) version: u32,
    pub(super) raft_id: u64,
    pub(super) node: String,
}

/// What runs beside the requests, to be ended in order.
pub(super) struct Tasks {
    pub(super) committer: JoinHandle<()>,
    pub(super) reporter: JoinHandle<()>,
    pub(super) pin: JoinHandle<()>,
    pub(super) maintenance: JoinHandle<()>,
    pub(super) readiness: JoinHandle<()>,
    pub(super) steward: JoinHandle<()>,
    pub(super) disk: JoinHandle<()>,
    pub(super) health: JoinHandle<()>,
    pub(super) objects: JoinHandle<()>,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

impl Core {
    /// Makes a new cluster of this one node in an empty data directory and starts it. Answers when the first state is applied and durable.
    /// A directory with a half-made cluster (killed in the middle) is started over; one with a whole cluster is [`Error::Exists`].
    pub async fn bootstrap(options: CoreOptions, first: Bootstrap) -> Result<Core> {
        if !first.repos.iter().any(|(name, _)| *name == first.subcluster) {
            return Err(Error::Invalid(format!("the first node's subcluster {} has no repository", first.subcluster)));
        }
        let data = options.data.clone();
        let identity = Identity { version: 1, raft_id: FIRST_RAFT_ID, node: options.node.to_string() };
        blocking(move || prepare_directory(&data, &identity)).await?;
        let core = Core::start(options.clone(), FIRST_RAFT_ID, None).await?;
        match core.first_state(&options, first).await {
            Ok(()) => {}
            Err(error) => {
                core.shutdown().await;
                return Err(error);
            }
        }
        let marker = options.data.join(MARKER);
        blocking(move || remove_durably(&marker)).await?;
        Ok(core)
    }

    async fn first_state(&self, options: &CoreOptions, first: Bootstrap) -> Result<()> {
        let raft = &self.inner.proposer.raft;
        let member = RaftNode { name: options.node.to_string(), address: options.address.clone() };
        let members = std::collections::BTreeMap::from([(FIRST_RAFT_ID, member)]);
        raft.initialize(members).await.map_err(Error::internal)?;
        self.wait_ready(Duration::from_secs(30)).await?;
        let state = self.inner.proposer.state.clone();
        let (options, time_ms) = (options.clone(), self.inner.proposer.wall_ms());
        let batch = blocking(move || {
            let mut builder = Builder::new(state, options.limits.gate, time_ms);
            builder.prepend(Op::Found { cluster: first.cluster.clone() });
            let author = author_of(&first);
            for (repo, files) in first.repos {
                let new = NewRepo { repo, author: author.clone(), files, key: None };
                if let Verdict::Answered(Err(error)) = builder.create(&new, false) {
                    return Err(error);
                }
            }
            let mut batch = builder.finish()?;
            batch.ops.push(Op::PutUser(first.admin));
            let member = steward::first_member(&options, FIRST_RAFT_ID);
            let record = NodeRecord {
                name: options.node,
                subcluster: first.subcluster,
                kind: NodeKind::Server,
                raft_id: Some(FIRST_RAFT_ID),
                address: Some(options.address),
                joined_time_ms: time_ms,
                certificates: Vec::new(),
            };
            batch.ops.push(Op::RegisterNode { record, token: None });
            batch.ops.push(Op::PutMember(member));
            Ok(batch)
        })
        .await?;
        if !batch.large.is_empty() {
            return Err(Error::TooLarge {
                what: "the packaged templates".into(),
                limit_bytes: crate::commit::INLINE_PACK_BYTES,
            });
        }
        let outcomes = self.inner.proposer.propose_at(batch.time_ms, batch.ops, batch.attachments).await?;
        let done = |outcome: &&Outcome| matches!(outcome, Outcome::Done | Outcome::Changed(_));
        if let Some(bad) = outcomes.iter().find(|outcome| !done(outcome)) {
            return Err(Error::Internal(format!("the first state was answered {bad:?}")));
        }
        self.checkpoint().await
    }

    /// Starts the core of an existing data directory, alone: without an identity it reaches no other member.
    pub async fn open(options: CoreOptions) -> Result<Core> {
        Self::open_as(options, None).await
    }

    /// Starts the core of an existing data directory as the node of this identity. Answers as soon as it runs; it may not be ready yet.
    pub async fn open_with(options: CoreOptions, identity: Arc<ReloadingIdentity>) -> Result<Core> {
        Self::open_as(options, Some(identity)).await
    }

    async fn open_as(options: CoreOptions, tls: Option<Arc<ReloadingIdentity>>) -> Result<Core> {
        let data = options.data.clone();
        let identity = blocking(move || read_identity(&data)).await?;
        if identity.node != options.node.as_str() {
            let text = format!("{} belongs to node {}, not {}", options.data.display(), identity.node, options.node);
            return Err(Error::Invalid(text));
        }
        Core::start(options, identity.raft_id, tls).await
    }

    async fn start(options: CoreOptions, raft_id: u64, tls: Option<Arc<ReloadingIdentity>>) -> Result<Core> {
        let limits = options.limits.clone();
        let data = options.data.clone();
        let (state, log) = blocking(move || {
            let state = State::open(&data, limits.max_watchers).map_err(Error::internal)?;
            let log = LogStore::open(&data.join("raft"), limits.segment_bytes).map_err(Error::internal)?;
            let view = state.view();
            let others_vote = view.membership.membership().voter_ids().any(|id| id != raft_id);
            log.covers(view.applied_index(), others_vote).map_err(Error::Internal)?;
            log.continues(view.applied_index()).map_err(Error::Internal)?;
            Ok((state, log))
        })
        .await?;
        let limits = options.limits.clone();
        let config = config("eccluster", limits.compact_entries / 2).map_err(Error::internal)?;
        let client = tls.map(|identity| peer::Client::new(identity, raft_id, &options.address, options.peers.clone()));
        let (network, machine) = (Network::new(client.clone()), Machine::new(state.clone()));
        let raft = Raft::new(raft_id, config, network, log.clone(), machine).await.map_err(Error::internal)?;
        let full = watch::Sender::new(None);
        let health = Arc::new(health::Health::new(options.data.clone()));
        let heard = Arc::<contact::Heard>::default();
        let (data, its_full) = (options.data.clone(), full.subscribe());
        let service = PeerService::new(raft.clone(), raft_id, state.clone(), data, its_full, heard.clone());
        let proposer = Proposer { raft, state };
        let (queue, committer) = Queue::start(proposer.clone(), limits.gate, limits.commit_queue);
        let (reporter, reports) = Reporter::new(limits.report_queue);
        let (readiness, _) = watch::channel(Readiness::Starting("reading the log".into()));
        let stopping = CancellationToken::new();
        let inner = Arc::new(Inner {
            options,
            raft_id,
            proposer: proposer.clone(),
            log,
            committer_stats: queue.stats.clone(),
            queue: std::sync::Mutex::new(Some(queue)),
            reporter: std::sync::Mutex::new(Some(reporter)),
            readiness: readiness.clone(),
            stopping: stopping.clone(),
            client,
            peers: peer::Server::new(service.clone()),
            full: full.clone(),
            certifier: std::sync::OnceLock::new(),
            health: health.clone(),
            heard,
            standing: contact::Standing::default(),
            tasks: tokio::sync::Mutex::new(None),
        });
        let _ = service.core.set(Arc::downgrade(&inner));
        let core = Core { inner: inner.clone() };
        let suspects: Vec<String> = core.inner.proposer.state.suspects().iter().map(ToString::to_string).collect();
        if !suspects.is_empty() {
            // The log may bring again what they lack; until that is known nothing of them is served.
            core.go_out(health::Part::Objects, format!("packs of {} were damaged", suspects.join(", "))).await;
        }
        super::disk::look(&proposer, &inner.options.data, &inner.options.limits, &full).await;
        let tasks = Tasks {
            committer,
            reporter: tokio::spawn(super::reports::run(Core { inner: inner.clone() }, reports)),
            pin: tokio::spawn(super::pin::keep(proposer.clone(), raft_id, inner.client.clone(), stopping.clone())),
            maintenance: tokio::spawn(maintain(Core { inner: inner.clone() }, stopping.clone())),
            disk: tokio::spawn(super::disk::keep(
                proposer.clone(),
                inner.options.data.clone(),
                inner.options.limits.clone(),
                full,
                stopping.clone(),
            )),
            readiness: tokio::spawn(follow_readiness(Core { inner: inner.clone() }, readiness, stopping.clone())),
            steward: tokio::spawn(steward::run(Core { inner: inner.clone() }, stopping)),
            health: tokio::spawn(health::keep(core.clone())),
            objects: tokio::spawn(health::objects::keep(core)),
        };
        *inner.tasks.lock().await = Some(tasks);
        Ok(Core { inner })
    }

    /// Refuses new work, finishes what is in flight, makes everything durable, ends watches. Again is harmless.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        let mut tasks = inner.tasks.lock().await;
        let Some(tasks) = tasks.take() else { return };
        inner.readiness.send_if_modified(|now| {
            let stops = !matches!(now, Readiness::Failed(_));
            if stops {
                *now = Readiness::Stopping;
            }
            stops
        });
        inner.proposer.state.hub().close();
        // The Committer and the reporter end when nobody can put work in; what waits is finished first.
        drop(super::locked(&inner.queue).take());
        drop(super::locked(&inner.reporter).take());
        end_within(LAST_WRITES, [("the Committer", tasks.committer), ("the reporter", tasks.reporter)]).await;
        inner.stopping.cancel();
        // Aborting maintenance could cut a checkpoint, which is safe; waiting for it is nicer.
        let others = [
            ("maintenance", tasks.maintenance),
            ("pin", tasks.pin),
            ("readiness", tasks.readiness),
            ("steward", tasks.steward),
            ("disk", tasks.disk),
            ("health", tasks.health),
            ("objects", tasks.objects),
        ];
        end_within(LAST_TASKS, others).await;
        self.hand_over().await;
        if let Err(error) = inner.proposer.raft.shutdown().await {
            tracing::error!("raft ended badly: {error}");
        }
        inner.peers.close().await;
        if let Err(error) = self.checkpoint().await {
            tracing::error!("the last checkpoint failed, the next start reads more of the log: {error}");
        }
        if let Err(error) = inner.log.close().await {
            tracing::error!("the log could not be closed: {error}");
        }
    }

    /// Ends as a kill would, as far as that is possible within a process.
    #[cfg(test)]
    pub(crate) async fn kill(&self) {
        let inner = &self.inner;
        let Some(tasks) = inner.tasks.lock().await.take() else { return };
        inner.peers.close().await;
        inner.stopping.cancel();
        let _ = inner.proposer.raft.shutdown().await;
        inner.proposer.state.hub().close();
        drop(super::locked(&inner.queue).take());
        drop(super::locked(&inner.reporter).take());
        for task in [tasks.committer, tasks.reporter, tasks.maintenance, tasks.readiness, tasks.steward, tasks.disk] {
            let _ = task.await;
        }
        let _ = (tasks.health.await, tasks.objects.await);
        let _ = inner.log.close().await;
    }

    /// A leader that stops names its successor, the voter that has most of the log: the others then wait milliseconds, not an election.
    async fn hand_over(&self) {
        let raft = &self.inner.proposer.raft;
        let mut metrics = raft.metrics();
        let now = metrics.borrow_watched().clone();
        let own = self.inner.raft_id;
        let voters: BTreeSet<u64> = now.membership_config.voter_ids().filter(|id| *id != own).collect();
        let matched = now.replication.iter().flatten().filter(|(id, _)| voters.contains(id));
        let Some((next, _)) = matched.max_by_key(|(_, matched)| **matched) else { return };
        if now.current_leader != Some(own) || raft.trigger().transfer_leader(*next).await.is_err() {
            return;
        }
        let handed = async {
            while metrics.borrow_and_update().current_leader == Some(own) && metrics.changed().await.is_ok() {}
        };
        match tokio::time::timeout(HAND_OVER, handed).await {
            Ok(()) => tracing::info!(successor = next, "handed the leadership over"),
            Err(_) => tracing::warn!(successor = next, "nobody took the leadership over; the others will elect"),
        }
    }

    /// Makes everything applied so far durable.
    pub async fn checkpoint(&self) -> Result<()> {
        let state = self.inner.proposer.state.clone();
        blocking(move || state.checkpoint().map(drop).map_err(Error::internal)).await
    }
}

/// Waits for tasks to end, and ends those that do not. A write of a leader that lost its majority, or whose successor cannot reach it any more,
/// stays open for ever: its client is told that it may have happened, and a start finds out.
async fn end_within(limit: Duration, tasks: impl IntoIterator<Item = (&'static str, JoinHandle<()>)>) {
    let deadline = Instant::now() + limit;
    for (name, mut task) in tasks {
        match tokio::time::timeout_at(deadline, &mut task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("{name} ended badly: {error}"),
            Err(_) => {
                tracing::warn!("{name} does not come to an end, and is given up");
                task.abort();
                let _ = task.await;
            }
        }
    }
}

fn author_of(first: &Bootstrap) -> Author {
    let admin = &first.admin;
    let name = if admin.full_name.is_empty() { &admin.name } else { &admin.full_name };
    let email = if admin.email.is_empty() { format!("{}@{}", admin.name, first.cluster) } else { admin.email.clone() };
    Author { user: admin.name.clone(), name: name.clone(), email }
}

fn io(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let text = format!("could not {action} {}", path.display());
    move |error| Error::Internal(format!("{text}: {error}"))
}

/// Clears what a killed bootstrap left and writes who this node is.
fn prepare_directory(data: &Path, identity: &Identity) -> Result<()> {
    let marker = data.join(MARKER);
    let raft = data.join("raft");
    if marker.exists() {
        for dir in ["raft", "repos", "uploads"] {
            remove(std::fs::remove_dir_all(data.join(dir))).map_err(io("clear", &data.join(dir)))?;
        }
        for file in ["state.redb", "snapshot"] {
            remove(std::fs::remove_file(data.join(file))).map_err(io("clear", &data.join(file)))?;
        }
    } else if has_state(data) || raft.exists() {
        return Err(Error::Exists { kind: "cluster".into(), name: data.display().to_string() });
    }
    std::fs::create_dir_all(data).map_err(io("create", data))?;
    cluster::files::write_atomic(&marker, b"removed when the cluster is made\n", 0o600).map_err(Error::internal)?;
    put_identity(&raft, identity)
}

fn put_identity(raft: &Path, identity: &Identity) -> Result<()> {
    std::fs::create_dir_all(raft).map_err(io("create", raft))?;
    let json = serde_json::to_vec_pretty(identity).map_err(Error::internal)?;
    cluster::files::write_atomic(&raft.join(IDENTITY), &json, 0o600).map_err(Error::internal)
}

/// Writes who a node that joins is, unless the directory is another member's.
pub(super) fn write_identity(data: &Path, identity: &Identity) -> Result<()> {
    let raft = data.join("raft");
    if raft.join(IDENTITY).exists() || has_state(data) {
        let present = read_identity(data)?;
        if present.raft_id == identity.raft_id && present.node == identity.node {
            return Ok(());
        }
        let name = format!("{} belongs to member {} ({})", data.display(), present.raft_id, present.node);
        return Err(Error::Exists { kind: "log".into(), name });
    }
    put_identity(&raft, identity)
}

fn remove(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_durably(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(io("remove", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync", dir))
}

fn read_identity(data: &Path) -> Result<Identity> {
    let path = data.join("raft").join(IDENTITY);
    if data.join(MARKER).exists() {
        let text = format!("{} holds a cluster that was never finished: run init again", data.display());
        return Err(Error::Invalid(text));
    }
    let json = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("{} holds no cluster: run init or join first", data.display());
            return Err(Error::Invalid(text));
        }
        other => other.map_err(io("read", &path))?,
    };
    let damaged = |error| Error::Internal(format!("{} is damaged: {error}", path.display()));
    // The version first: a later one may have other fields.
    match serde_json::from_slice(&json).map_err(damaged)? {
        Version { version: 1 } => serde_json::from_slice(&json).map_err(damaged),
        Version { version } => {
            let text = format!("{} has version {version}, this build knows 1: run a newer ecconfigd", path.display());
            Err(Error::Invalid(text))
        }
    }
}

/// What all versions of `node.json` have.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Ready once everything that was committed before the start is applied, and while this node hears from the group's leader; failed when raft
/// stops by itself.
async fn follow_readiness(core: Core, readiness: watch::Sender<Readiness>, stopping: CancellationToken) {
    let group = Group::from(core.inner.clone());
    let Group { proposer, raft_id, .. } = &group;
    let (mut full, mut out) = (group.full.clone(), group.out.clone());
    let metrics = proposer.raft.metrics();
    // The whole metrics change several times with every entry, the server's only with its role, its leader and the members.
    let mut server = proposer.raft.server_metrics();
    let mut caught_up = false;
    let mut asked = false;
    loop {
        server.borrow_and_update();
        let now = metrics.borrow_watched().clone();
        if let Err(fatal) = &now.running_state {
            if !stopping.is_cancelled() && !matches!(*readiness.borrow(), Readiness::Stopping) {
                readiness.send_replace(group.end(fatal.to_string()).await);
            }
            return;
        }
        let only_voter = now.membership_config.voter_ids().eq([*raft_id]);
        if only_voter && now.current_leader.is_none() && !asked {
            // Alone there is nobody to wait for.
            asked = true;
            if let Err(error) = proposer.raft.trigger().elect(false).await {
                tracing::warn!("an election could not be started: {error}");
            }
        }
        if !caught_up && now.current_leader.is_some() {
            caught_up = group.catch_up().await;
        }
        let why_full = full.borrow_and_update().clone();
        let lost = core.lost(&now);
        core.look_where_it_stands(&now, lost.clone());
        let why_out = out.borrow_and_update().as_ref().map(health::Outage::words).or_else(|| core.removed());
        let next = match (caught_up, lost) {
            _ if why_out.is_some() => Readiness::Out(why_out.unwrap_or_default()),
            _ if why_full.is_some() => Readiness::ReadOnly(why_full.unwrap_or_default()),
            (true, None) => Readiness::Ready,
            (true, Some(why)) => Readiness::Starting(why),
            (false, _) => Readiness::Starting("catching up with the log".into()),
        };
        readiness.send_if_modified(|now| {
            let ended = matches!(now, Readiness::Stopping | Readiness::Failed(_) | Readiness::OutOfRoom(_));
            let changed = *now != next && !ended;
            if changed {
                *now = next;
            }
            changed
        });
        tokio::select! {
            // Gone with raft, whose last words are in the whole metrics.
            changed = server.changed() => if changed.is_err() && metrics.borrow_watched().running_state.is_ok() { return },
            changed = full.changed() => if changed.is_err() { return },
            changed = out.changed() => if changed.is_err() { return },
            // A leader that could not be asked is asked again although nothing changes here; and only the whole metrics say that raft ended.
            () = tokio::time::sleep(LOOK) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// What following the group needs.
struct Group {
    proposer: Proposer,
    raft_id: u64,
    client: Option<peer::Client>,
    full: watch::Receiver<Option<String>>,
    data: PathBuf,
    limits: super::options::CoreLimits,
    out: watch::Receiver<Option<health::Outage>>,
}

impl From<Arc<Inner>> for Group {
    fn from(inner: Arc<Inner>) -> Self {
        let (proposer, client) = (inner.proposer.clone(), inner.client.clone());
        let (data, limits) = (inner.options.data.clone(), inner.options.limits.clone());
        let (full, out) = (inner.full.subscribe(), inner.health.subscribe());
        Self { proposer, raft_id: inner.raft_id, client, full, out, data, limits }
    }
}

impl Group {
    /// What it means that Raft has stopped by itself.
    async fn end(&self, why: String) -> Readiness {
        match super::disk::no_room(&self.data, &self.limits, &why).await {
            Some(words) => out_of_room(words),
            None => Readiness::Failed(why),
        }
    }

    /// Whether this node has what was committed when it was asked, and the objects to it.
    async fn catch_up(&self) -> bool {
        let missing = self.proposer.state.missing_objects();
        // What is missing because it was damaged is fetched by whoever took it away.
        if !missing.is_empty() && self.proposer.state.suspects().is_empty() {
            let names: Vec<_> = missing.iter().map(|(name, tips)| format!("{name} ({} refs)", tips.len())).collect();
            tracing::error!("objects are missing in {}", names.join(", "));
            let Some(client) = &self.client else { return false };
            let membership = self.proposer.state.view().membership.clone();
            let others = membership.membership().nodes().filter(|(id, _)| **id != self.raft_id);
            let from: Vec<_> = others.map(|(id, node)| super::peers::target(*id, node)).collect();
            if let Err(error) = super::catchup::bring_missing(&self.proposer.state, client, &from).await {
                tracing::error!("{error}");
                return false;
            }
        }
        let done = super::peers::linearize(&self.proposer, self.raft_id, self.client.as_ref()).await;
        done.inspect_err(|error| tracing::debug!("not caught up yet: {error}")).is_ok()
    }
}

/// A write failed because the disk filled up faster than the reserve could tell.
fn out_of_room(words: String) -> Readiness {
    tracing::error!("{words}; a write failed: this node answers from what it has, and starts again when there is room");
    Readiness::OutOfRoom(words)
}

/// Checkpoints, compaction, consolidation, ticks.
async fn maintain(core: Core, stopping: CancellationToken) {
    let (proposer, options) = (core.inner.proposer.clone(), core.inner.options.clone());
    let limits = &options.limits;
    let mut dirty_since: Option<Instant> = None;
    let mut ticked = Instant::now();
    let mut snapshot_index = 0;
    let mut consolidated = 0;
    let (consolidate, consolidator) = start_consolidator(proposer.state.clone(), limits.consolidate_packs);
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stopping.cancelled() => break,
        }
        let (durable, entries) = proposer.state.durable();
        if entries == 0 {
            dirty_since = None;
        } else {
            let since = *dirty_since.get_or_insert_with(Instant::now);
            if entries >= limits.checkpoint_entries || since.elapsed() >= limits.checkpoint_interval {
                dirty_since = None;
                let state = proposer.state.clone();
                let done = tokio::task::spawn_blocking(move || state.checkpoint().map(drop)).await;
                match done {
                    Ok(Ok(())) => {}
                    // The state refuses to apply from now on, which stops raft and so the node.
                    Ok(Err(error)) => {
                        tracing::error!("a checkpoint failed: {error}");
                        if let Some(words) = super::disk::no_room(&options.data, limits, &error.to_string()).await {
                            core.inner.readiness.send_replace(out_of_room(words));
                        }
                    }
                    Err(error) => tracing::error!("a checkpoint panicked: {error}"),
                }
            }
        }
        let applied = proposer.state.view().applied_index();
        if applied >= consolidated + CONSOLIDATE_LOOK {
            consolidated = applied;
            // A full queue means that it is busy with the same repositories anyway.
            let _ = consolidate.try_send(());
        }
        let durable = durable.map_or(0, |id| id.index);
        if durable >= snapshot_index + limits.compact_entries {
            snapshot_index = durable;
            if let Err(error) = proposer.raft.trigger().snapshot().await {
                tracing::warn!("the log could not be compacted: {error}");
            }
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            if proposer.raft.is_leader()
                && let Err(error) = proposer.one(Op::Tick).await
            {
                tracing::debug!("the clock could not be written down: {error}");
            }
        }
    }
    drop(consolidate);
    let _ = consolidator.await;
}

/// Merges packs, one repository after the other, whenever it is poked.
fn start_consolidator(state: Arc<State>, min_packs: usize) -> (mpsc::Sender<()>, JoinHandle<()>) {
    // One poke may wait: more would say the same.
    let (poke, mut poked) = mpsc::channel(1);
    let task = tokio::task::spawn_blocking(move || {
        while poked.blocking_recv().is_some() {
            let view = state.view();
            for (name, repo) in view.repos.iter() {
                if repo.store.packs().map_or(0, |packs| packs.len()) < min_packs {
                    continue;
                }
                let tips: BTreeSet<repos::Oid> = repo.refs.values().copied().collect();
                let tips: Vec<_> = tips.into_iter().collect();
                let options = repos::ConsolidateOptions { min_packs, ..Default::default() };
                match repo.store.consolidate(&options, &tips) {
                    Ok(done) => tracing::debug!(repo = %name, ?done, "merged packs"),
                    Err(error) => tracing::error!(repo = %name, "packs could not be merged: {error}"),
                }
            }
        }
    });
    (poke, task)
}
