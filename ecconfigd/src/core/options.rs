//! What the core is given and what it tells about itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster::gate::GateLimits;
use repos::Oid;

use crate::state::{NodeName, NodeRecord, RepoName, UserRecord};

/// Where the core lives, and its bounds.
#[derive(Debug, Clone)]
pub struct CoreOptions {
    /// The data directory. The core owns `raft/`, `repos/`, `uploads/`, `snapshot` and `state.redb` in it; the caller holds the directory's lock.
    pub data: PathBuf,
    /// This node.
    pub node: NodeName,
    /// Where the other nodes reach it, `host:port`.
    pub address: String,
    /// Where other nodes are to be looked for, by name, until they say so themselves: whatever the log says may be out of date.
    pub peers: BTreeMap<String, String>,
    /// The sizes and times; the defaults suit.
    pub limits: CoreLimits,
}

/// A number that may change while the core runs. Clones share it.
#[derive(Debug, Clone)]
pub struct Adjustable(Arc<AtomicU64>);

impl Adjustable {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts from now on.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }
}

impl From<u64> for Adjustable {
    fn from(number: u64) -> Self {
        Self(Arc::new(number.into()))
    }
}

/// Sizes and times of the core.
#[derive(Debug, Clone)]
pub struct CoreLimits {
    /// The largest sum of contents of one commit over the API.
    pub max_commit_bytes: u64,
    /// What the gate allows.
    pub gate: GateLimits,
    /// Commits and pushes that wait for the Committer.
    pub commit_queue: usize,
    /// How long a commit may wait for its answer before it is [`Error::Unavailable`](crate::error::Error::Unavailable) (it may still happen).
    pub commit_timeout: Duration,
    /// Node reports that wait to be written together.
    pub report_queue: usize,
    /// A segment of the log.
    pub segment_bytes: u64,
    /// A durable checkpoint after so many entries …
    pub checkpoint_entries: u64,
    /// … or so long after the first entry since the last one.
    pub checkpoint_interval: Duration,
    /// The log is compacted when the checkpoint has so many entries that the last snapshot has not.
    pub compact_entries: u64,
    /// The room on the disk below which this node is read-only; default: a log segment and 32 MiB.
    pub min_free_bytes: Option<Adjustable>,
    /// How often this node reads all of its objects and compares them with their names.
    pub scrub_interval_ms: Adjustable,
    /// How fast it does so.
    pub scrub_bytes_per_s: Adjustable,
    /// How fast this node sends objects to a member that catches up without the log.
    pub catch_up_bytes_per_s: Adjustable,
    /// A repository's packs are merged in the background when it has so many: every commit lets the object database look at all of them.
    pub consolidate_packs: usize,
    /// Watchers of all kinds; more are [`Error::Overloaded`](crate::error::Error::Overloaded).
    pub max_watchers: usize,
}

impl CoreLimits {
    /// Puts those numbers of `fresh` in force that may change while the core runs.
    pub(super) fn adjust(&self, fresh: &CoreLimits) {
        if let (Some(setting), Some(fresh)) = (&self.min_free_bytes, &fresh.min_free_bytes) {
            setting.set(fresh.get());
        }
        self.catch_up_bytes_per_s.set(fresh.catch_up_bytes_per_s.get());
        self.scrub_interval_ms.set(fresh.scrub_interval_ms.get());
        self.scrub_bytes_per_s.set(fresh.scrub_bytes_per_s.get());
    }
}

impl Default for CoreLimits {
    fn default() -> Self {
        Self {
            max_commit_bytes: 64 << 20,
            gate: GateLimits::default(),
            commit_queue: 1024,
            commit_timeout: Duration::from_secs(30),
            report_queue: 4096,
            segment_bytes: 64 << 20,
            checkpoint_entries: 1000,
            checkpoint_interval: Duration::from_secs(5),
            compact_entries: 10_000,
            min_free_bytes: None,
            catch_up_bytes_per_s: (64 << 20).into(),
            scrub_interval_ms: (6 * 3600 * 1000).into(),
            scrub_bytes_per_s: (64 << 20).into(),
            consolidate_packs: 40,
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

/// A file that a new repository begins with.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct TemplateFile {
    /// The path from the repository's root.
    pub path: repos::RepoPath,
    /// `File`, `Exec` or `Symlink`.
    pub mode: repos::Mode,
    /// What is in it; for a symbolic link, its target.
    pub content: bytes::Bytes,
}

/// Whether this node may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Caught up with the log that was committed when it started.
    Ready,
    /// Not yet, and why.
    Starting(String),
    /// It reads and does not write: its disk is full.
    ReadOnly(String),
    /// The disk filled up so fast that a write failed: it answers from what it has, and the core has to be opened again when there is room.
    OutOfRoom(String),
    /// It has taken itself out, because what it holds is wrong or damaged, and why. It comes back by itself once it is right again.
    Out(String),
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
    /// Why it has taken itself out, if it said so.
    pub out: Option<String>,
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
    /// The node that the leadership is pinned to.
    pub pinned: Option<String>,
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

/// Figures for metrics. Counters only go up.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CoreFigures {
    /// Commits, pushes and creations that were answered.
    pub requests: u64,
    /// Log entries that the Committer proposed for them.
    pub entries: u64,
    /// Requests that wait for the Committer.
    pub queued: u64,
    /// Time spent on judging and building commits.
    pub build_time: Duration,
    /// Time from proposing those entries until they were applied.
    pub propose_time: Duration,
    /// Entries that were applied since the start, and how long that took.
    pub applied_entries: u64,
    /// See `applied_entries`.
    pub apply_time: Duration,
    /// Syncs of the log.
    pub log_syncs: u64,
    /// How long they took together.
    pub log_sync_time: Duration,
    /// The 99th percentile of the newest.
    pub log_sync_p99: Duration,
    /// Bytes written to the log.
    pub log_bytes: u64,
    /// Watchers of all kinds.
    pub watchers: usize,
    /// The last index applied.
    pub applied: u64,
    /// The last index that is in a durable checkpoint.
    pub durable: u64,
}
