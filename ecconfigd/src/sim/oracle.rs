//! What the log says, worked out a second time and differently: a few maps, one entry after the other.
//!
//! Every entry that any node applied is learned here. Two nodes that applied different entries at one index are found at once; what a node
//! shows at an index is compared with the maps at that index.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::EntryPayload;
use repos::{Oid, RefName};

use super::invariants::{key_applied_once, one_history};
use crate::raft::command::{ChangeSet, Op};
use crate::raft::{Entry, LogId};
use crate::state::{Head, RepoName, State};

/// A repository as the log leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repo {
    pub(super) refs: BTreeMap<RefName, Oid>,
    pub(super) head: Head,
    pub(super) main: RefName,
}

/// The repositories after an entry.
pub(super) type Repos = BTreeMap<RepoName, Repo>;

/// A revision that an entry made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Revision {
    pub(super) repo: RepoName,
    pub(super) head: Head,
    pub(super) message: String,
    pub(super) paths: Vec<String>,
}

/// An entry and the world after it.
pub(super) struct Moment {
    pub(super) id: LogId,
    pub(super) payload: Vec<u8>,
    pub(super) repos: Arc<Repos>,
    pub(super) revisions: Vec<Revision>,
    /// The running hash that nodes have here, as the first of them said.
    pub(super) hash: std::sync::OnceLock<(u64, [u8; 32])>,
}

/// Everything learned so far.
#[derive(Default)]
pub(super) struct Oracle {
    moments: Vec<Moment>,
    keys: BTreeMap<(String, String), [u8; 16]>,
}

impl Oracle {
    /// The world after an index.
    pub(super) fn at(&self, index: u64) -> Option<&Moment> {
        self.moments.get(usize::try_from(index).ok()?)
    }

    /// The world after every index.
    pub(super) fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// All revisions in the order of the log.
    pub(super) fn revisions(&self) -> impl Iterator<Item = &Revision> {
        self.moments.iter().flat_map(|moment| &moment.revisions)
    }

    /// The newest state.
    pub(super) fn newest(&self) -> Option<&Moment> {
        self.moments.last()
    }

    /// A node has applied this entry.
    pub(super) fn learn(&mut self, node: u64, entry: &Entry) -> Result<(), String> {
        let payload = match &entry.payload {
            EntryPayload::Blank => Vec::new(),
            EntryPayload::Normal(command) => command.0.to_vec(),
            EntryPayload::Membership(members) => format!("{members:?}").into_bytes(),
        };
        if let Some(known) = self.at(entry.log_id.index) {
            return one_history::same_entry(node, entry.log_id, &payload, known);
        }
        if entry.log_id.index != self.moments.len() as u64 {
            let (index, expected) = (entry.log_id.index, self.moments.len());
            return Err(format!("n{node} applied index {index} before anybody applied index {expected}"));
        }
        let mut repos = self.newest().map(|moment| moment.repos.clone()).unwrap_or_default();
        let mut revisions = Vec::new();
        if let EntryPayload::Normal(command) = &entry.payload {
            let proposal = command.decode().map_err(|error| format!("n{node} applied what is no command: {error}"))?;
            for op in &proposal.ops {
                self.op(op, Arc::make_mut(&mut repos), &mut revisions);
            }
        }
        key_applied_once::check(self.revisions(), &revisions)?;
        let hash = std::sync::OnceLock::new();
        self.moments.push(Moment { id: entry.log_id, payload, repos, revisions, hash });
        Ok(())
    }

    fn op(&mut self, op: &Op, repos: &mut Repos, revisions: &mut Vec<Revision>) {
        match op {
            Op::CreateRepo { repo, head_ref } => {
                let head = Head { revision: 0, commit: Oid::NULL };
                repos.entry(repo.clone()).or_insert(Repo { refs: BTreeMap::new(), head, main: head_ref.clone() });
            }
            Op::Change(change) => self.change(change, repos, revisions),
            // Packs are good here, and nothing else moves a ref.
            _ => {}
        }
    }

    fn change(&mut self, change: &ChangeSet, repos: &mut Repos, revisions: &mut Vec<Revision>) {
        let key = change.idempotency.as_ref().map(|key| (key.user.clone(), key.key.clone()));
        if key.as_ref().is_some_and(|key| self.keys.contains_key(key)) {
            return;
        }
        let holds = change.updates.iter().all(|update| {
            let Some(repo) = repos.get(&update.repo) else { return false };
            update.refs.iter().all(|one| *repo.refs.get(&one.name).unwrap_or(&Oid::NULL) == one.old)
        });
        if !holds {
            return;
        }
        for update in &change.updates {
            let Some(repo) = repos.get_mut(&update.repo) else { continue };
            for one in &update.refs {
                if one.new.is_null() {
                    repo.refs.remove(&one.name);
                } else {
                    repo.refs.insert(one.name.clone(), one.new);
                }
            }
            let Some(new) = &update.revision else { continue };
            let commit = repo.refs.get(&repo.main).copied().unwrap_or(Oid::NULL);
            repo.head = Head { revision: repo.head.revision + 1, commit };
            revisions.push(Revision {
                repo: update.repo.clone(),
                head: repo.head,
                message: new.message.clone(),
                paths: new.paths.clone(),
            });
        }
        if let Some(key) = key {
            let fingerprint = change.idempotency.as_ref().map(|key| key.fingerprint).unwrap_or_default();
            self.keys.insert(key, fingerprint);
        }
    }

    /// The records of the revisions that a node made from `after` to `upto` are those of the log.
    pub(super) fn check_records(&self, node: u64, state: &State, after: Option<u64>, upto: u64) -> Result<(), String> {
        let from = after.map_or(0, |after| after + 1);
        for index in from..=upto {
            for revision in self.at(index).into_iter().flat_map(|moment| &moment.revisions) {
                one_history::check_record(node, state, revision)?;
            }
        }
        Ok(())
    }
}
