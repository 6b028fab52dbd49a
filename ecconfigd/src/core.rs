//! The handle on the replicated core, which is all that `http/` sees of it.
//!
//! What always holds: every write goes through the log and is answered after it was applied here; reads of refs, heads and targets come from
//! one immutable picture that is exchanged as a whole after each applied entry, so nobody sees half of an update.

mod ca_key;
mod catchup;
mod certify;
mod contact;
mod disk;
pub(crate) mod forward;
#[cfg(test)]
pub(crate) mod group;
pub(crate) mod health;
mod life;
mod members;
mod metrics;
mod once;
mod options;
mod peers;
mod pin;
mod reports;
mod steward;
mod subclusters;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::api::RevisionSpec;
use openraft::async_runtime::watch::WatchReceiver as _;
use repos::{Oid, RefMap, Store};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::certify::Certifier;
pub(crate) use self::disk::has_room;
use self::forward::{ForwardedPush, Write};
pub use self::life::FIRST_RAFT_ID;
pub use self::members::JoinMember;
pub use self::once::Once;
pub use self::options::{
    Bootstrap, CoreFigures, CoreLimits, CoreOptions, Group, Member, Readiness, RegisterNode, Resolved, TemplateFile,
};
use self::reports::Reporter;
use crate::commit::{
    Builder, CommitAnswer, CommitRequest, CommitterStats, Job, NewRepo, Propose as _, Proposer, PushJob, PushOutcome,
    PushPack, PushRequest, Queue, large_pack,
};
use crate::error::{Error, Result};
use crate::peer;
use crate::raft::command::{Op, Outcome};
use crate::raft::log::LogStore;
use crate::state::{
    Author, CertificateRecord, Head, NodeName, NodeRecord, NodeTokenRecord, RepoName, RepoRecord, RepoView,
    ReportRecord, RevisionRecord, StateError, TokenRecord, UserRecord, View,
};
use crate::watch::{Globs, TargetEvent, TargetWatch, Watch};

/// The handle. Clones share the core.
#[derive(Clone)]
pub struct Core {
    inner: Arc<Inner>,
}

struct Inner {
    options: CoreOptions,
    raft_id: u64,
    proposer: Proposer,
    log: LogStore,
    committer_stats: Arc<CommitterStats>,
    /// Gone once the core stops.
    queue: Mutex<Option<Queue>>,
    /// Gone once the core stops.
    reporter: Mutex<Option<Reporter>>,
    readiness: watch::Sender<Readiness>,
    stopping: CancellationToken,
    /// Calls other members; absent without an identity.
    client: Option<peer::Client>,
    /// Answers them.
    peers: peer::Server,
    /// Why nothing is written, where that is so.
    full: watch::Sender<Option<String>>,
    /// Issues certificates for others, where there is one.
    certifier: std::sync::OnceLock<std::sync::Weak<dyn Certifier>>,
    /// Whether what this node holds is right.
    health: Arc<health::Health>,
    /// When it last heard from who leads.
    heard: Arc<contact::Heard>,
    /// Whether it is cut off from the others, or no member any more.
    standing: contact::Standing,
    tasks: tokio::sync::Mutex<Option<life::Tasks>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a request may wait for this node to catch up with the others.
const CATCH_UP: Duration = Duration::from_secs(5);

fn stopping() -> Error {
    Error::Unavailable("the server is stopping".into())
}

/// An operation whose only answers are done, not found and refused.
fn done(outcome: Outcome, kind: &'static str, name: &str) -> Result<()> {
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::NotFound => Err(Error::NotFound { kind: kind.into(), name: name.to_owned() }),
        Outcome::Exists => Err(Error::Exists { kind: kind.into(), name: name.to_owned() }),
        Outcome::Refused(why) => Err(Error::NotPossible(why)),
        other => Err(Error::Internal(format!("{kind} {name} was answered {other:?}"))),
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Error::internal(error)
    }
}

impl Core {
    // ── life (bootstrap, open and shutdown are in core/life.rs) ─────────────────────────────────────────────────────────────────

    /// Whether this node may answer.
    pub fn readiness(&self) -> Readiness {
        self.inner.readiness.borrow().clone()
    }

    /// Follows [`Core::readiness`]; a server should stop when it becomes `Failed`.
    pub fn watch_readiness(&self) -> watch::Receiver<Readiness> {
        self.inner.readiness.subscribe()
    }

    /// Waits until the core is ready, or fails with why it will not be in time.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let mut readiness = self.watch_readiness();
        let over = |now: &Readiness| !matches!(now, Readiness::Starting(_));
        let _ = tokio::time::timeout(timeout, readiness.wait_for(over)).await;
        match self.readiness() {
            Readiness::Ready => Ok(()),
            Readiness::Starting(why)
            | Readiness::ReadOnly(why)
            | Readiness::OutOfRoom(why)
            | Readiness::Out(why)
            | Readiness::Failed(why) => Err(Error::Unavailable(why)),
            Readiness::Stopping => Err(stopping()),
        }
    }

    /// The Raft group.
    pub fn group(&self) -> Group {
        let metrics = self.inner.proposer.raft.metrics().borrow_watched().clone();
        let view = self.view();
        let membership = metrics.membership_config.membership();
        let name = |id: u64| membership.get_node(&id).map(|node| node.name.clone());
        let voters: Vec<u64> = membership.voter_ids().collect();
        let matched = |id: u64| {
            if id == self.inner.raft_id {
                return metrics.last_log_index;
            }
            metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten()).map(|log_id| log_id.index)
        };
        let mut out = self.health().others_out();
        out.extend(self.health().outage().map(|outage| (self.inner.raft_id, outage.why)));
        let members = membership.nodes().map(|(id, node)| Member {
            raft_id: *id,
            node: node.name.clone(),
            address: node.address.clone(),
            voter: voters.contains(id),
            matched: matched(*id),
            out: out.get(id).cloned(),
        });
        Group {
            cluster: view.cluster.clone(),
            leader: metrics.current_leader.and_then(name),
            term: metrics.current_term,
            pinned: view.pin.as_ref().map(ToString::to_string),
            applied: view.applied_index(),
            state_hash: hex::encode(view.hash),
            members: members.collect(),
        }
    }

    /// Figures for metrics.
    pub fn figures(&self) -> CoreFigures {
        use std::sync::atomic::Ordering::Relaxed;
        let (stats, log) = (&self.inner.committer_stats, self.inner.log.stats());
        let (log_syncs, log_sync_time) = log.syncs();
        let (durable, _) = self.inner.proposer.state.durable();
        let (applied_entries, apply_time) = self.inner.proposer.state.apply_figures();
        CoreFigures {
            requests: stats.requests.load(Relaxed),
            entries: stats.entries.load(Relaxed),
            queued: stats.queued.load(Relaxed),
            build_time: Duration::from_nanos(stats.build_ns.load(Relaxed)),
            propose_time: Duration::from_nanos(stats.propose_ns.load(Relaxed)),
            applied_entries,
            apply_time,
            log_syncs,
            log_sync_time,
            log_sync_p99: log.sync_quantile(0.99),
            log_bytes: log.bytes(),
            watchers: self.inner.proposer.state.hub().watchers(),
            applied: self.view().applied_index(),
            durable: durable.map_or(0, |id| id.index),
        }
    }

    /// This node's name.
    pub fn node_name(&self) -> &NodeName {
        &self.inner.options.node
    }

    /// The cluster clock: milliseconds that the cluster has been running, the same on every node up to message delay. Everything that
    /// expires is compared with this, never with the wall clock.
    pub fn clock_ms(&self) -> u64 {
        self.view().clock_now_ms()
    }

    #[cfg(test)]
    pub(crate) fn proposer(&self) -> Proposer {
        self.inner.proposer.clone()
    }

    fn view(&self) -> Arc<View> {
        self.inner.proposer.state.view()
    }

    // ── commits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Commits, on whichever node leads. The answer comes after the commit is applied here and visible to every read. The call may be dropped;
    /// the commit may still happen.
    pub async fn commit(&self, request: CommitRequest) -> Result<CommitAnswer> {
        let limit_bytes = self.inner.options.limits.max_commit_bytes;
        if request.content_bytes() > limit_bytes {
            return Err(Error::TooLarge { what: "the commit".into(), limit_bytes });
        }
        self.write(Write::Commit(Box::new(request))).await?.committed()
    }

    /// Takes a push whose pack was received. Refusals of refs are in the outcome, not errors.
    pub async fn push(&self, request: PushRequest) -> Result<PushOutcome> {
        let file =
            request.quarantine.as_ref().and_then(|quarantine| quarantine.pack_file()).map(|path| path.to_owned());
        let (mut request, mut upload) = (request, None);
        let pack = match file {
            None => PushPack::None,
            Some(path) => {
                let length = tokio::fs::metadata(&path).await.map_err(Error::internal)?.len();
                if large_pack(length) {
                    // Judged before it is sent around, so that what is refused anyway costs the cluster nothing.
                    request = match self.judge_early(request).await? {
                        Ok(request) => request,
                        Err(refused) => return Ok(refused),
                    };
                    let file = tokio::fs::File::open(&path).await.map_err(Error::internal)?;
                    let id = self.upload(file).await?;
                    upload = Some(id);
                    PushPack::Upload(id)
                } else {
                    PushPack::Inline(tokio::fs::read(&path).await.map_err(Error::internal)?.into())
                }
            }
        };
        let result = self.push_with(request, pack).await;
        if let Some(id) = upload
            && !result.as_ref().is_ok_and(|outcome| outcome.refs.iter().any(|(_, result)| result.is_ok()))
        {
            self.drop_upload(id).await;
        }
        result
    }

    async fn push_with(&self, request: PushRequest, pack: PushPack) -> Result<PushOutcome> {
        if self.inner.proposer.raft.is_leader() {
            // Judged over the quarantine that it was received in.
            return self.ask(|answer| Job::Push(Box::new(PushJob { request, pack }), answer)).await;
        }
        self.write(Write::Push(Box::new(ForwardedPush::new(request, pack)))).await?.pushed()
    }

    /// The request back, or the outcome if nothing of it can pass.
    async fn judge_early(&self, request: PushRequest) -> Result<std::result::Result<PushRequest, PushOutcome>> {
        let (state, gate) = (self.inner.proposer.state.clone(), self.inner.options.limits.gate);
        let time_ms = self.inner.proposer.wall_ms();
        let judged = tokio::task::spawn_blocking(move || {
            let judged = Builder::new(state, gate, time_ms).judge_push(&request)?;
            Ok(if judged.moves() { Ok(request) } else { Err(judged.outcome) })
        });
        judged.await.map_err(Error::internal)?
    }

    /// Creates a repository whose first commit has these files; it starts at revision 1. Under a key it is created once, however often it is
    /// asked for.
    pub async fn create_repo(
        &self,
        repo: &RepoName,
        author: &Author,
        files: Vec<TemplateFile>,
        key: Option<Once>,
    ) -> Result<Head> {
        self.once(repo, author, key, async |key| self.create_under(repo, author, files, key).await.map(Ok)).await
    }

    async fn create_under(
        &self,
        repo: &RepoName,
        author: &Author,
        files: Vec<TemplateFile>,
        key: Option<String>,
    ) -> Result<Head> {
        let new = NewRepo { repo: repo.clone(), author: author.clone(), files, key: None };
        let write = match key {
            None => Write::Create(Box::new(new)),
            Some(key) => Write::CreateOnce { new: Box::new(new), key },
        };
        let answer = self.write(write).await?.committed()?;
        let head = answer.repos.get(repo).map(|committed| committed.head);
        head.ok_or_else(|| Error::Internal(format!("the answer does not name {repo}")))
    }

    /// Puts those limits in force that may change while the core runs: the [`Adjustable`](options::Adjustable) ones.
    pub fn adjust(&self, fresh: &CoreLimits) {
        self.inner.options.limits.adjust(fresh);
    }

    /// Why this node writes nothing, where that is so: its disk is full.
    pub fn read_only(&self) -> Option<String> {
        match &*self.inner.readiness.borrow() {
            Readiness::OutOfRoom(why) => Some(why.clone()),
            _ => self.inner.full.borrow().clone(),
        }
    }

    /// A node that serves nothing, or whose disk is full, takes no writes.
    pub(crate) fn refuse_read_only(&self) -> Result<()> {
        self.out().or_else(|| self.read_only()).map_or(Ok(()), |why| Err(Error::NotDone(why)))
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        self.refuse_read_only()?;
        let queue = locked(&self.inner.queue).clone().ok_or_else(stopping)?;
        let (answer, answered) = oneshot::channel();
        queue.put(job(answer))?;
        drop(queue);
        match tokio::time::timeout(self.inner.options.limits.commit_timeout, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Internal("the Committer gave no answer".into())),
            Err(_) => Err(Error::Unavailable("the commit takes too long; it may still happen".into())),
        }
    }

    /// Takes connections of other members, once TLS has chosen their protocol.
    pub fn peers(&self) -> &peer::Server {
        &self.inner.peers
    }

    // ── repositories ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Waits until this node has applied everything that was committed when the call began (a read-index, asked of the leader). For
    /// linearizable reads without `min_revision`, such as git's ref advertisement.
    pub async fn linearize(&self) -> Result<()> {
        peers::linearize(&self.inner.proposer, self.inner.raft_id, self.inner.client.as_ref()).await
    }

    /// The same where somebody waits for it: nothing was done if it cannot be had soon.
    pub(crate) async fn catch_up(&self) -> Result<()> {
        match tokio::time::timeout(CATCH_UP, self.linearize()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Error::Unavailable(why))) => Err(Error::NotDone(why)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::NotDone("this server cannot catch up with the others at the moment".into())),
        }
    }

    /// All repositories by name.
    pub fn repos(&self) -> Vec<(RepoName, Arc<RepoRecord>)> {
        self.view().repos.iter().map(|(name, repo)| (name.clone(), repo.record.clone())).collect()
    }

    fn repo_view(&self, repo: &RepoName) -> Result<RepoView> {
        self.view().repos.get(repo).cloned().ok_or_else(|| Error::no_repo(repo))
    }

    /// One repository.
    pub fn repo(&self, repo: &RepoName) -> Result<Arc<RepoRecord>> {
        Ok(self.repo_view(repo)?.record)
    }

    /// Where `main` stands.
    pub fn head(&self, repo: &RepoName) -> Result<Head> {
        Ok(self.repo_view(repo)?.record.head)
    }

    /// Where several repositories stand at one and the same moment.
    pub fn heads(&self, repos: &[&RepoName]) -> Result<Vec<Head>> {
        let view = self.view();
        repos.iter().map(|name| view.head(name).ok_or_else(|| Error::no_repo(name))).collect()
    }

    /// All refs. Call [`Core::linearize`] before, where a push elsewhere must be seen.
    pub fn refs(&self, repo: &RepoName) -> Result<Arc<RefMap>> {
        Ok(self.repo_view(repo)?.refs)
    }

    /// The objects.
    pub fn store(&self, repo: &RepoName) -> Result<Store> {
        Ok(self.repo_view(repo)?.store)
    }

    /// One revision.
    pub async fn revision(&self, repo: &RepoName, revision: u64) -> Result<RevisionRecord> {
        self.repo_view(repo)?;
        let found = self.inner.proposer.state.revision(repo, revision)?;
        found.ok_or_else(|| Error::NotFound { kind: "revision".into(), name: format!("r{revision} of {repo}") })
    }

    /// The revision at which `main` stood at this commit, if it ever did.
    pub fn revision_of(&self, repo: &RepoName, commit: Oid) -> Result<Option<u64>> {
        Ok(self.inner.proposer.state.revision_of(repo, commit)?)
    }

    /// What `47`, `r47` or (a prefix of) a commit id names. Commits that no ref reaches may be named by their full id.
    pub async fn resolve(&self, repo: &RepoName, spec: &RevisionSpec) -> Result<Resolved> {
        let view = self.repo_view(repo)?;
        let hex = match spec {
            RevisionSpec::Number(number) if *number == view.record.head.revision && *number > 0 => {
                return Ok(Resolved { commit: view.record.head.commit, revision: Some(*number) });
            }
            RevisionSpec::Number(number) => match self.revision(repo, *number).await {
                Ok(record) => return Ok(Resolved { commit: record.commit, revision: Some(*number) }),
                // One abbreviated commit id in a hundred has no letter.
                Err(Error::NotFound { .. }) if *number >= 1_000_000 => number.to_string(),
                Err(error) => return Err(error),
            },
            RevisionSpec::Commit(hex) => hex.clone(),
        };
        let missing = || Error::NotFound { kind: "commit".into(), name: format!("{spec} in {repo}") };
        let found = tokio::task::spawn_blocking(move || {
            let reader = view.store.reader()?;
            match hex.parse::<Oid>() {
                Ok(id) => Ok(matches!(reader.header(id)?, Some((repos::ObjectKind::Commit, _))).then_some(id)),
                Err(_) => reader.commit_by_prefix(&hex),
            }
        });
        let found: repos::Result<Option<Oid>> = found.await.map_err(Error::internal)?;
        let commit = found.map_err(Error::internal)?.ok_or_else(missing)?;
        Ok(Resolved { commit, revision: self.revision_of(repo, commit)? })
    }

    /// Waits until this node has at least this revision (`min_revision`).
    pub async fn wait_revision(&self, repo: &RepoName, min_revision: u64, timeout: Duration) -> Result<()> {
        if self.head(repo)?.revision >= min_revision {
            return Ok(());
        }
        let mut progress = self.inner.proposer.state.hub().progress();
        let reached = async {
            loop {
                progress.borrow_and_update();
                if self.head(repo)?.revision >= min_revision {
                    return Ok(());
                }
                progress.changed().await.map_err(|_| stopping())?;
            }
        };
        tokio::select! {
            reached = tokio::time::timeout(timeout, reached) => match reached {
                Ok(result) => result,
                Err(_) => Err(Error::Unavailable(format!("{repo} is not at r{min_revision} here yet"))),
            },
            () = self.inner.stopping.cancelled() => Err(stopping()),
        }
    }

    // ── watch and target ────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Follows a repository from the first revision after `after` (`None`: from now on) whose paths match one of the globs (none: all).
    /// `**` crosses directories, `*` and `?` do not; a directory's name means all in it. For a long poll take the first event only.
    pub fn watch(&self, repo: &RepoName, after: Option<u64>, globs: &[String]) -> Result<Watch> {
        self.repo_view(repo)?;
        let globs = Globs::new(globs).map_err(|error| Error::Invalid(error.to_string()))?;
        let state = self.inner.proposer.state.clone();
        Watch::new(state, repo.clone(), after, globs)
            .map_err(|_| Error::Overloaded { queue: "the list of watchers".into() })
    }

    /// The repository, for somebody who may know more than this node has applied: it is asked for again once this node has caught up.
    pub async fn known_repo(&self, repo: &RepoName) -> Result<Arc<RepoRecord>> {
        if let Ok(known) = self.repo(repo) {
            return Ok(known);
        }
        self.catch_up().await?;
        self.repo(repo)
    }

    /// Checks that a revision exists, which somebody has seen. One that this node does not have it catches up with; if there is none then, it
    /// was seen elsewhere, and waiting for the numbers to meet would pass over all that comes until then.
    pub async fn known_revision(&self, repo: &RepoName, revision: u64) -> Result<()> {
        if self.head(repo)?.revision >= revision {
            return Ok(());
        }
        self.catch_up().await?;
        match self.head(repo)?.revision {
            newest if newest >= revision => Ok(()),
            newest => Err(Error::NotFound {
                kind: "revision".into(),
                name: format!("r{revision} of {repo}, which is at r{newest}"),
            }),
        }
    }

    /// What the node shall have now, for somebody who knows the target with this serial. A node that has only older ones is behind, and
    /// catches up first: nobody goes back to an older target because it asks another server.
    pub async fn target_from(&self, node: &NodeName, known: Option<u64>) -> Result<Arc<TargetEvent>> {
        let target = self.target(node)?;
        if known.is_none_or(|known| known <= target.record.serial) {
            return Ok(target);
        }
        self.catch_up().await?;
        self.target(node)
    }

    /// What the node shall have now.
    pub fn target(&self, node: &NodeName) -> Result<Arc<TargetEvent>> {
        let subcluster = self.node(node)?.subcluster.clone();
        self.subcluster_target(&subcluster)
    }

    /// What the nodes of a subcluster shall have now.
    pub fn subcluster_target(&self, subcluster: &RepoName) -> Result<Arc<TargetEvent>> {
        self.view().targets.get(subcluster).cloned().ok_or_else(|| Error::no_repo(subcluster))
    }

    /// Follows a node's target: the current one at once if its serial is not `after`, then every newer one.
    pub fn watch_target(&self, node: &NodeName, after: u64) -> Result<TargetWatch> {
        let subcluster = self.node(node)?.subcluster.clone();
        let watch = TargetWatch::new(self.inner.proposer.state.hub(), &subcluster, after);
        watch
            .map_err(|_| Error::Overloaded { queue: "the list of watchers".into() })?
            .ok_or_else(|| Error::no_repo(&subcluster))
    }

    // ── accounts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// An account.
    pub fn user(&self, name: &str) -> Result<Option<UserRecord>> {
        Ok(self.inner.proposer.state.user(name)?)
    }

    /// All accounts by name.
    pub fn users(&self) -> Result<Vec<UserRecord>> {
        Ok(self.inner.proposer.state.users()?)
    }

    /// Proposes one operation whose only answers are done, not found and refused.
    async fn simple(&self, op: Op, kind: &'static str, name: &str) -> Result<()> {
        done(self.one(op).await?, kind, name)
    }

    /// Creates or replaces an account; the stored `generation` becomes one more than the old account's.
    pub async fn put_user(&self, user: UserRecord) -> Result<()> {
        let name = user.name.clone();
        self.simple(Op::PutUser(user), "user", &name).await
    }

    /// Removes an account and its tokens.
    pub async fn delete_user(&self, name: &str) -> Result<()> {
        self.simple(Op::DeleteUser { name: name.to_owned() }, "user", name).await
    }

    /// A token by its public part; expired ones are not found.
    pub fn token(&self, id: &str) -> Result<Option<TokenRecord>> {
        let now = self.clock_ms();
        Ok(self.inner.proposer.state.token(id)?.filter(|token| token.expires_clock_ms > now))
    }

    /// The tokens of a user, or of all.
    pub fn tokens(&self, user: Option<&str>) -> Result<Vec<TokenRecord>> {
        let now = self.clock_ms();
        let mut tokens = self.inner.proposer.state.tokens()?;
        tokens.retain(|token| token.expires_clock_ms > now && user.is_none_or(|user| token.user == user));
        Ok(tokens)
    }

    /// Creates a token; its user must exist.
    pub async fn put_token(&self, token: TokenRecord) -> Result<()> {
        let user = token.user.clone();
        self.simple(Op::PutToken(token), "user", &user).await
    }

    /// Revokes a token.
    pub async fn delete_token(&self, id: &str) -> Result<()> {
        self.simple(Op::DeleteToken { id: id.to_owned() }, "token", id).await
    }

    /// Goes up whenever an account or token changes: cached credentials of an older value are looked up again.
    pub fn accounts_version(&self) -> u64 {
        self.view().accounts
    }

    // ── nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// A one-time token by its public part; expired and used ones are not found.
    pub fn node_token(&self, id: &str) -> Result<Option<NodeTokenRecord>> {
        let now = self.clock_ms();
        Ok(self.inner.proposer.state.node_token(id)?.filter(|token| token.expires_clock_ms > now))
    }

    /// Creates a one-time token; its subcluster must exist.
    pub async fn put_node_token(&self, token: NodeTokenRecord) -> Result<()> {
        let subcluster = token.subcluster.to_string();
        self.simple(Op::PutNodeToken(token), "subcluster", &subcluster).await
    }

    /// Registers a node and uses up its token, both or neither.
    pub async fn register_node(&self, node: RegisterNode) -> Result<NodeRecord> {
        let name = node.record.name.clone();
        self.simple(Op::RegisterNode { record: node.record, token: node.token }, "node", name.as_str()).await?;
        Ok(self.node(&name)?.as_ref().clone())
    }

    /// Records a certificate; the newest four per node are kept.
    pub async fn certificate_issued(&self, node: &NodeName, certificate: CertificateRecord) -> Result<()> {
        self.simple(Op::Certificate { node: node.clone(), certificate }, "node", node.as_str()).await
    }

    /// One node.
    pub fn node(&self, node: &NodeName) -> Result<Arc<NodeRecord>> {
        self.view().nodes.get(node).cloned().ok_or_else(|| Error::no_node(node))
    }

    /// All nodes by name.
    pub fn nodes(&self) -> Vec<Arc<NodeRecord>> {
        self.view().nodes.values().cloned().collect()
    }

    /// Stores a program's newest report. Reports that wait are written as one log entry; the answer comes when it is applied.
    pub async fn report(&self, report: ReportRecord) -> Result<()> {
        let limit = reports::MAX_REPORT_BYTES;
        if report.json.len() > limit {
            return Err(Error::TooLarge { what: "the report".into(), limit_bytes: limit as u64 });
        }
        self.refuse_read_only()?;
        let reporter = locked(&self.inner.reporter).clone().ok_or_else(stopping)?;
        let answered = reporter.put(report)?;
        drop(reporter);
        answered.await.map_err(|_| stopping())?
    }

    /// The newest report of each program on the node.
    pub fn reports(&self, node: &NodeName) -> Result<Vec<ReportRecord>> {
        Ok(self.inner.proposer.state.reports(node)?)
    }
}
