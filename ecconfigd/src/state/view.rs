//! The picture that readers see.
//!
//! One immutable value, exchanged as a whole after a batch of entries is applied and committed: a reader that holds it sees every repository,
//! ref and target at one and the same log index. Applying changes a copy; the parts that did not change are shared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use repos::{RefMap, Store};

use super::model::{Head, MemberRecord, NodeRecord, RepoRecord};
use super::names::{NodeName, RepoName};
use crate::outside::Outside;
use crate::raft::{LogId, StoredMembership};
#[cfg(test)]
use crate::sim::mutants::{self, Mutant};
use crate::watch::TargetEvent;

/// One repository in the picture.
#[derive(Clone)]
pub struct RepoView {
    /// Its record.
    pub record: Arc<RepoRecord>,
    /// All its refs.
    pub refs: Arc<RefMap>,
    /// Its objects.
    pub store: Store,
}

/// Everything that is read often, at one log index.
#[derive(Clone)]
pub struct View {
    /// The last applied entry.
    pub applied: Option<LogId>,
    /// The last membership.
    pub membership: StoredMembership,
    /// The hash of all writes so far.
    pub hash: [u8; 32],
    /// The cluster clock at `at`.
    pub clock_ms: u64,
    /// When this picture was made, by this node's monotonic clock. Not replicated: it lets the clock run between entries.
    pub at: Duration,
    pub(super) outside: Arc<dyn Outside>,
    /// The cluster's name; empty before it is founded.
    pub cluster: String,
    /// Goes up with every change of an account or token.
    pub accounts: u64,
    /// The node that the leadership is pinned to.
    pub pin: Option<NodeName>,
    /// The repositories.
    pub repos: Arc<BTreeMap<RepoName, RepoView>>,
    /// The nodes.
    pub nodes: Arc<BTreeMap<NodeName, Arc<NodeRecord>>>,
    /// The members of the Raft group, as they shall be.
    pub members: Arc<BTreeMap<NodeName, Arc<MemberRecord>>>,
    /// The targets by subcluster.
    pub targets: Arc<BTreeMap<RepoName, Arc<TargetEvent>>>,
}

/// What the cluster's clock goes by between two entries.
pub(super) fn instant(outside: &dyn Outside) -> Duration {
    #[cfg(test)]
    if mutants::is_on(Mutant::WallClock) {
        return Duration::from_millis(outside.wall_ms());
    }
    outside.monotonic()
}

impl View {
    pub(super) fn empty(outside: Arc<dyn Outside>) -> View {
        View {
            applied: None,
            membership: StoredMembership::default(),
            hash: [0; 32],
            clock_ms: 0,
            at: instant(&*outside),
            outside,
            cluster: String::new(),
            accounts: 0,
            pin: None,
            repos: Arc::default(),
            nodes: Arc::default(),
            members: Arc::default(),
            targets: Arc::default(),
        }
    }

    /// The cluster clock now.
    pub fn clock_now_ms(&self) -> u64 {
        let since = instant(&*self.outside).saturating_sub(self.at);
        self.clock_ms.saturating_add(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Where `main` of a repository stands.
    pub fn head(&self, repo: &RepoName) -> Option<Head> {
        self.repos.get(repo).map(|repo| repo.record.head)
    }

    /// The repositories of a subcluster's target that are frozen: its own, `global`, or both.
    pub fn frozen(&self, subcluster: &RepoName) -> Vec<RepoName> {
        let frozen = |name: &&RepoName| self.repos.get(*name).is_some_and(|repo| repo.record.frozen);
        [subcluster, &RepoName::global()].into_iter().filter(frozen).cloned().collect()
    }

    /// The number in the Raft group of a node that is in it.
    pub fn raft_id(&self, node: &NodeName) -> Option<u64> {
        self.membership.membership().nodes().find(|(_, member)| member.name == node.as_str()).map(|(id, _)| *id)
    }

    /// The last applied index.
    pub fn applied_index(&self) -> u64 {
        self.applied.map_or(0, |id| id.index)
    }
}
