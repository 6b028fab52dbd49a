//! The handle on the replicated core, which is all that `http/` sees of it.
//!
//! What always holds: every write goes through the log and is answered after it was applied here; reads of refs, heads and targets come from
//! one immutable picture that is exchanged as a whole after each applied entry, so nobody sees half of an update.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::api::RevisionSpec;
use repos::{Oid, RefMap, Store};
use tokio::sync::watch;

use crate::commit::{CommitAnswer, CommitRequest, PushOutcome, PushRequest};
use crate::error::{Error, Result};
use crate::state::{
    Author, CertificateRecord, Head, NodeName, NodeRecord, NodeTokenRecord, RepoName, RepoRecord, ReportRecord,
    RevisionRecord, TokenRecord, UserRecord,
};
use crate::watch::{TargetEvent, TargetWatch, Watch};

/// Where the core lives, and its bounds.
#[derive(Debug, Clone)]
pub struct CoreOptions {
    /// The data directory. The core owns `raft/`, `repos/`, `uploads/` and `state.redb` in it; the caller holds the directory's lock.
    pub data: PathBuf,
    /// This node.
    pub node: NodeName,
    /// Where the other nodes reach it, `host:port`.
    pub address: String,
    /// The sizes and times; the defaults suit.
    pub limits: CoreLimits,
}

/// Sizes and times of the core.
#[derive(Debug, Clone)]
pub struct CoreLimits {
    /// The largest sum of contents of one commit over the API.
    pub max_commit_bytes: u64,
    /// Commits and pushes that wait for the Committer.
    pub commit_queue: usize,
    /// How long a commit may wait for its answer before it is [`Error::Unavailable`] (it may still happen).
    pub commit_timeout: Duration,
    /// A segment of the log.
    pub segment_bytes: u64,
    /// A durable checkpoint after so many entries …
    pub checkpoint_entries: u64,
    /// … or so long after the first entry since the last one.
    pub checkpoint_interval: Duration,
    /// The log is compacted when it has so many entries below the checkpoint.
    pub compact_entries: u64,
    /// Idempotency keys that are remembered.
    pub idempotency_keys: u64,
    /// Watchers of all kinds; more are [`Error::Overloaded`].
    pub max_watchers: usize,
}

impl Default for CoreLimits {
    fn default() -> Self {
        Self {
            max_commit_bytes: 64 << 20,
            commit_queue: 1024,
            commit_timeout: Duration::from_secs(30),
            segment_bytes: 64 << 20,
            checkpoint_entries: 1000,
            checkpoint_interval: Duration::from_secs(5),
            compact_entries: 10_000,
            idempotency_keys: 10_000,
            max_watchers: 20_000,
        }
    }
}

/// The first state of a new cluster.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// The cluster's name.
    pub cluster: String,
    /// The first account.
    pub admin: UserRecord,
    /// The first node's subcluster; a repository of this name must be among `repos`.
    pub subcluster: RepoName,
    /// The repositories and their first files.
    pub repos: Vec<(RepoName, Vec<TemplateFile>)>,
}

/// A file of a packaged template.
#[derive(Debug, Clone)]
pub struct TemplateFile {
    /// The path from the repository's root.
    pub path: String,
    /// What is in it.
    pub content: bytes::Bytes,
    /// Whether it can be executed.
    pub executable: bool,
}

/// Whether this node may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Caught up with the log that was committed when it started.
    Ready,
    /// Not yet, and why.
    Starting(String),
    /// Never again: a failure of this node. The process should end.
    Failed(String),
    /// On the way out.
    Stopping,
}

/// What a node brings to be registered.
#[derive(Debug, Clone)]
pub struct RegisterNode {
    /// The node. Its subcluster must exist; an existing node keeps its subcluster or the call is refused.
    pub record: NodeRecord,
    /// The one-time token to use up, by its public part. It must exist, be alive and name the node's subcluster.
    pub token: Option<String>,
}

/// One member of the Raft group, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number in the group.
    pub raft_id: u64,
    /// Its name.
    pub node: String,
    /// Where others reach it.
    pub address: String,
    /// Voter or learner.
    pub voter: bool,
    /// The log index it is known to have, where this node leads.
    pub matched: Option<u64>,
}

/// The Raft group as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The cluster's name.
    pub cluster: String,
    /// The node that leads, if one is known.
    pub leader: Option<String>,
    /// The term.
    pub term: u64,
    /// The last index applied here.
    pub applied: u64,
    /// The hash of the state at that index, in hex.
    pub state_hash: String,
    /// The members in order of their numbers.
    pub members: Vec<Member>,
}

/// What a revision specification names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// The commit.
    pub commit: Oid,
    /// The revision, if `main` ever stood at this commit.
    pub revision: Option<u64>,
}

/// The handle. Clones share the core.
#[derive(Clone)]
pub struct Core {
    inner: Arc<Inner>,
}

struct Inner {}

#[allow(clippy::todo, unused_variables, missing_docs)]
impl Core {
    // ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Makes a new cluster of this one node in an empty data directory and starts it. Answers when the first state is applied and durable.
    /// A directory with a half-made cluster (killed in the middle) is started over; one with a whole cluster is [`Error::Exists`].
    pub async fn bootstrap(options: CoreOptions, first: Bootstrap) -> Result<Core> {
        todo!()
    }

    /// Starts the core of an existing data directory. Answers as soon as it runs; it may not be ready yet.
    pub async fn open(options: CoreOptions) -> Result<Core> {
        todo!()
    }

    /// Refuses new work, finishes what is in flight, makes everything durable, ends watches. Again is harmless.
    pub async fn shutdown(&self) {
        todo!()
    }

    /// Whether this node may answer.
    pub fn readiness(&self) -> Readiness {
        todo!()
    }

    /// Follows [`Core::readiness`]; a server should stop when it becomes `Failed`.
    pub fn watch_readiness(&self) -> watch::Receiver<Readiness> {
        todo!()
    }

    /// Waits until the core is ready, or fails with why it will not be in time.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        todo!()
    }

    /// The Raft group.
    pub fn group(&self) -> Group {
        todo!()
    }

    /// This node's name.
    pub fn node_name(&self) -> &NodeName {
        todo!()
    }

    /// The cluster clock: milliseconds that the cluster has been running, the same on every node up to message delay. Everything that
    /// expires is compared with this, never with the wall clock.
    pub fn clock_ms(&self) -> u64 {
        todo!()
    }

    // ── commits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Commits. The answer comes after the commit is applied here and visible to every read. The call may be dropped; the commit may still happen.
    pub async fn commit(&self, request: CommitRequest) -> Result<CommitAnswer> {
        todo!()
    }

    /// Takes a push whose pack was received. Refusals of refs are in the outcome, not errors.
    pub async fn push(&self, request: PushRequest) -> Result<PushOutcome> {
        todo!()
    }

    /// Creates a repository whose first commit has these files; it starts at revision 1.
    pub async fn create_repo(&self, repo: &RepoName, author: &Author, files: Vec<TemplateFile>) -> Result<Head> {
        todo!()
    }

    // ── repositories ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Waits until this node has applied everything that was committed when the call began (a read-index). For `min_revision`-less
    /// linearizable reads such as git's ref advertisement.
    pub async fn linearize(&self) -> Result<()> {
        todo!()
    }

    /// All repositories by name.
    pub fn repos(&self) -> Vec<(RepoName, Arc<RepoRecord>)> {
        todo!()
    }

    /// One repository.
    pub fn repo(&self, repo: &RepoName) -> Result<Arc<RepoRecord>> {
        todo!()
    }

    /// Where `main` stands.
    pub fn head(&self, repo: &RepoName) -> Result<Head> {
        todo!()
    }

    /// Where several repositories stand at one and the same moment.
    pub fn heads(&self, repos: &[&RepoName]) -> Result<Vec<Head>> {
        todo!()
    }

    /// All refs. Call [`Core::linearize`] before, where a push elsewhere must be seen.
    pub fn refs(&self, repo: &RepoName) -> Result<Arc<RefMap>> {
        todo!()
    }

    /// The objects.
    pub fn store(&self, repo: &RepoName) -> Result<Store> {
        todo!()
    }

    /// One revision.
    pub async fn revision(&self, repo: &RepoName, revision: u64) -> Result<RevisionRecord> {
        todo!()
    }

    /// The revision at which `main` stood at this commit, if it ever did.
    pub fn revision_of(&self, repo: &RepoName, commit: Oid) -> Result<Option<u64>> {
        todo!()
    }

    /// What `47`, `r47` or (a prefix of) a commit id names. Commits that no ref reaches may be named by their full id.
    pub async fn resolve(&self, repo: &RepoName, spec: &RevisionSpec) -> Result<Resolved> {
        todo!()
    }

    /// Waits until this node has at least this revision (`min_revision`).
    pub async fn wait_revision(&self, repo: &RepoName, min_revision: u64, timeout: Duration) -> Result<()> {
        todo!()
    }

    // ── watch and target ────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Follows a repository from the first revision after `after` (`None`: from now on) whose paths match one of the globs (none: all).
    /// `**` crosses directories, `*` and `?` do not. For a long poll take the first event only.
    pub fn watch(&self, repo: &RepoName, after: Option<u64>, globs: &[String]) -> Result<Watch> {
        todo!()
    }

    /// What the node shall have now.
    pub fn target(&self, node: &NodeName) -> Result<Arc<TargetEvent>> {
        todo!()
    }

    /// What the nodes of a subcluster shall have now.
    pub fn subcluster_target(&self, subcluster: &RepoName) -> Result<Arc<TargetEvent>> {
        todo!()
    }

    /// Follows a node's target: the current one at once if its serial is not `after`, then every newer one.
    pub fn watch_target(&self, node: &NodeName, after: u64) -> Result<TargetWatch> {
        todo!()
    }

    // ── accounts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    pub fn user(&self, name: &str) -> Result<Option<UserRecord>> {
        todo!()
    }

    pub fn users(&self) -> Result<Vec<UserRecord>> {
        todo!()
    }

    /// Creates or replaces an account; the stored `generation` becomes one more than the old account's.
    pub async fn put_user(&self, user: UserRecord) -> Result<()> {
        todo!()
    }

    /// Removes an account and its tokens.
    pub async fn delete_user(&self, name: &str) -> Result<()> {
        todo!()
    }

    /// A token by its public part; expired ones are not found.
    pub fn token(&self, id: &str) -> Result<Option<TokenRecord>> {
        todo!()
    }

    /// The tokens of a user, or of all.
    pub fn tokens(&self, user: Option<&str>) -> Result<Vec<TokenRecord>> {
        todo!()
    }

    pub async fn put_token(&self, token: TokenRecord) -> Result<()> {
        todo!()
    }

    pub async fn delete_token(&self, id: &str) -> Result<()> {
        todo!()
    }

    /// Goes up whenever an account or token changes: cached credentials of an older value are looked up again.
    pub fn accounts_version(&self) -> u64 {
        todo!()
    }

    // ── nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// A one-time token by its public part; expired and used ones are not found.
    pub fn node_token(&self, id: &str) -> Result<Option<NodeTokenRecord>> {
        todo!()
    }

    pub async fn put_node_token(&self, token: NodeTokenRecord) -> Result<()> {
        todo!()
    }

    /// Registers a node and uses up its token, both or neither.
    pub async fn register_node(&self, node: RegisterNode) -> Result<NodeRecord> {
        todo!()
    }

    /// Records a certificate; the newest four per node are kept.
    pub async fn certificate_issued(&self, node: &NodeName, certificate: CertificateRecord) -> Result<()> {
        todo!()
    }

    pub fn node(&self, node: &NodeName) -> Result<Arc<NodeRecord>> {
        todo!()
    }

    /// All nodes by name.
    pub fn nodes(&self) -> Vec<Arc<NodeRecord>> {
        todo!()
    }

    /// Stores a program's newest report. Reports that wait are written as one log entry; the answer comes when it is applied.
    pub async fn report(&self, report: ReportRecord) -> Result<()> {
        todo!()
    }

    /// The newest report of each program on the node.
    pub fn reports(&self, node: &NodeName) -> Result<Vec<ReportRecord>> {
        todo!()
    }
}
