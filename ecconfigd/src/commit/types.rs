//! What goes into the Committer and what comes back.

use std::collections::BTreeMap;

use cluster::api::RevisionSpec;
use repos::{Content, Oid, Quarantine, RefName, TreeChange};
use serde::{Deserialize, Serialize};

use crate::state::{Author, Head, RepoName};

/// A commit to one or several repositories, all or nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommitRequest {
    /// Author and committer. The time is the leader's.
    pub author: Author,
    /// The message, the same in every repository.
    pub message: String,
    /// The same key by the same user answers what the first request was answered, without committing again. Another request under a known
    /// key is [`Error::Invalid`](crate::error::Error::Invalid). At most 256 bytes.
    pub idempotency_key: Option<String>,
    /// What to change where. Not empty.
    pub repos: BTreeMap<RepoName, RepoChange>,
}

impl CommitRequest {
    /// What the contents weigh.
    pub(crate) fn content_bytes(&self) -> u64 {
        let changes = self.repos.values().flat_map(|change| &change.changes);
        let bytes = changes.map(|change| match change {
            TreeChange::Put { content: Content::Bytes(bytes), .. } => bytes.len() as u64,
            _ => 0,
        });
        bytes.sum()
    }
}

/// One repository's part of a [`CommitRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepoChange {
    /// The revision the changes were made against. A commit id must be on the history of `main`.
    #[serde(with = "as_text")]
    pub base: RevisionSpec,
    /// What to change, applied in order to the base's tree.
    pub changes: Vec<TreeChange>,
}

/// The answer to a [`CommitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitAnswer {
    /// Where each named repository stands with this commit.
    pub repos: BTreeMap<RepoName, Committed>,
    /// True when this is the answer to an earlier request with the same key.
    pub replayed: bool,
}

/// One repository's part of a [`CommitAnswer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The revision and commit; the current ones when nothing changed.
    pub head: Head,
    /// False when the changes made no difference: no revision was made.
    pub changed: bool,
}

/// A git push whose pack waits in a quarantine.
pub struct PushRequest {
    /// The repository.
    pub repo: RepoName,
    /// Who pushes: recorded as the author of the revision. Commits keep their own authors.
    pub author: Author,
    /// What the client wants, in its order.
    pub commands: Vec<PushCommand>,
    /// All or nothing. Without it, each command is judged alone; those accepted are still one log entry.
    pub atomic: bool,
    /// The received pack; `None` when the push brought none (deletions, refs to objects that are here).
    pub quarantine: Option<Quarantine>,
}

/// One ref of a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushCommand {
    /// The full name.
    pub name: RefName,
    /// What the client believes; [`Oid::NULL`] to create.
    pub old: Oid,
    /// What it shall be; [`Oid::NULL`] to delete.
    pub new: Oid,
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushOutcome {
    /// For every command, in order: done, or git's short reason in the `ng` line.
    pub refs: Vec<(RefName, Result<(), String>)>,
    /// Lines for the client's terminal (`remote:`), without newline: findings of the gate, the new revision, hints.
    pub lines: Vec<String>,
    /// Where `main` stands now, if this push moved it.
    pub head: Option<Head>,
}

/// A revision's JSON form is a number or a text, which a format without types of its own cannot tell apart; the text alone is enough.
mod as_text {
    use cluster::api::RevisionSpec;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(spec: &RevisionSpec, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(spec)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RevisionSpec, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
