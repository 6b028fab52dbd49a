//! The records of the replicated state, as they lie in redb and in snapshots.
//!
//! Encoded with postcard, so the order of fields is the format: add a field only together with a new state version (docs/formats.md).
//! Times of the wall clock (`*_time_ms`) are for people; everything that expires does so by the cluster clock (`*_clock_ms`), which the
//! leader advances by its monotonic clock and which travels in log entries.

use std::collections::BTreeMap;

use repos::{Oid, RefName};
use serde::{Deserialize, Serialize};

use super::names::{NodeName, RepoName};

/// Where a repository's `main` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Head {
    /// How often `main` has moved.
    pub revision: u64,
    /// The commit; [`Oid::NULL`] before the first.
    pub commit: Oid,
}

impl From<Head> for cluster::api::Head {
    fn from(head: Head) -> Self {
        Self { revision: head.revision, commit: head.commit.to_string() }
    }
}

/// Who did something: the name of the account, and how git shall write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The account's or node's name; scopes idempotency keys.
    pub user: String,
    /// The name in commits.
    pub name: String,
    /// The mail address in commits.
    pub email: String,
}

impl std::fmt::Display for Author {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} <{}>", self.name, self.email)
    }
}

/// One repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoRecord {
    /// Where `main` stands.
    pub head: Head,
    /// The default branch.
    pub head_ref: RefName,
    /// When it was created.
    pub created_time_ms: u64,
    /// True while frozen by hand: no commits, no new revisions.
    pub frozen: bool,
}

/// `main` of a repository moved: the history that watchers follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// The repository.
    pub repo: RepoName,
    /// Its number in the repository, from 1 without gaps.
    pub revision: u64,
    /// The commit that `main` moved to.
    pub commit: Oid,
    /// Who moved it, as `Name <mail>`.
    pub author: String,
    /// The newest commit's message.
    pub message: String,
    /// The leader's wall clock.
    pub time_ms: u64,
    /// The changed paths in order, lossy where they are not UTF-8.
    pub paths: Vec<String>,
    /// True when there were more than the record carries; globs then match.
    pub paths_truncated: bool,
}

impl RevisionRecord {
    /// The event that watchers get.
    pub fn event(&self) -> cluster::api::WatchEvent {
        cluster::api::WatchEvent {
            repo: self.repo.to_string(),
            revision: self.revision,
            commit: self.commit.to_string(),
            author: self.author.clone(),
            message: self.message.clone(),
            time: rfc3339(self.time_ms),
            paths: self.paths.clone(),
            paths_truncated: self.paths_truncated,
        }
    }
}

/// What the nodes of a subcluster shall have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// Goes up by one whenever the target changes.
    pub serial: u64,
    /// The subcluster's repository and `global`.
    pub repos: BTreeMap<RepoName, Head>,
}

impl TargetRecord {
    /// The target as the API shows it.
    pub fn api(&self, frozen: &[RepoName]) -> cluster::api::Target {
        let repos = self.repos.iter().map(|(name, head)| (name.to_string(), (*head).into())).collect();
        cluster::api::Target { serial: self.serial, repos, frozen: frozen.iter().map(ToString::to_string).collect() }
    }
}

/// What an account may do. Finer rights come later and are a field of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Everything.
    Admin,
    /// Reads and commits.
    Committer,
    /// Reads.
    Reader,
}

/// An account.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// The login name.
    pub name: String,
    /// The password's argon2id hash in PHC form.
    pub password_hash: String,
    /// What it may do.
    pub role: Role,
    /// The name in commits; the login name when empty.
    pub full_name: String,
    /// The mail address in commits; `<login>@<cluster>` when empty.
    pub email: String,
    /// When it was made.
    pub created_time_ms: u64,
    /// Goes up with every password change, so that cached credentials end.
    pub generation: u64,
}

/// A bearer token of a user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public part: what it is looked up, listed and revoked by.
    pub id: String,
    /// SHA-256 of the secret part.
    pub secret_sha256: [u8; 32],
    /// Whose it is.
    pub user: String,
    /// What it is for.
    pub name: String,
    /// When it was made.
    pub created_time_ms: u64,
    /// When it ends, by the wall clock of the leader that made it; shown, never decided on.
    pub expires_time_ms: u64,
    /// When it ends by the cluster clock.
    pub expires_clock_ms: u64,
}

/// A one-time token for a join or enrol.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTokenRecord {
    /// Public part.
    pub id: String,
    /// SHA-256 of the secret part.
    pub secret_sha256: [u8; 32],
    /// The subcluster that the node will belong to.
    pub subcluster: RepoName,
    /// Who made it.
    pub created_by: String,
    /// When it ends by the cluster clock.
    pub expires_clock_ms: u64,
}

/// What a node is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// Runs ecconfigd.
    Server,
    /// Holds a working copy only.
    Client,
}

/// A node that joined or enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// The subcluster it belongs to.
    pub subcluster: RepoName,
    /// Server or client.
    pub kind: NodeKind,
    /// Its number in the Raft group, for a server.
    pub raft_id: Option<u64>,
    /// Where others reach its ecconfigd.
    pub address: Option<String>,
    /// When it joined.
    pub joined_time_ms: u64,
    /// The newest certificates issued to it, oldest first.
    pub certificates: Vec<CertificateRecord>,
}

/// A member of the Raft group, as it shall be. The leader changes the group until it is so.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The node.
    pub node: NodeName,
    /// Its number in the group. Never given twice: a node that lost its log is a new member.
    pub raft_id: u64,
    /// Where the others reach it.
    pub address: String,
    /// Whether it shall vote, once it has caught up.
    pub voter: bool,
    /// SHA-256 of the public key it joined with; zeros for the first node. Lets a join that was interrupted be repeated.
    pub key_sha256: [u8; 32],
    /// The public part of the token that it joined with.
    pub token: String,
    /// SHA-256 of that token's secret part.
    pub token_sha256: [u8; 32],
    /// The public part of a token that may take the name over, on a new machine.
    pub replaced_by: Option<String>,
}

/// A certificate that the CA issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// Its serial number in hex.
    pub serial: String,
    /// SHA-256 of the certificate in hex.
    pub fingerprint: String,
    /// When it was issued.
    pub issued_time_ms: u64,
    /// When it ends.
    pub not_after_time_ms: u64,
}

/// The newest report of a program on a node. The JSON of `cluster::api::NodeReport`, opaque to the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRecord {
    /// The node.
    pub node: NodeName,
    /// The program.
    pub program: String,
    /// The report with its time filled in.
    pub json: Vec<u8>,
}

/// The time as RFC 3339 in UTC with milliseconds.
pub fn rfc3339(time_ms: u64) -> String {
    use time::format_description::BorrowedFormatItem;
    use time::macros::format_description;
    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    i128::try_from(u128::from(time_ms) * 1_000_000)
        .ok()
        .and_then(|ns| time::OffsetDateTime::from_unix_timestamp_nanos(ns).ok())
        .and_then(|time| time.format(FORMAT).ok())
        .unwrap_or_default()
}

macro_rules! hide_secrets {
    ($($type:ident: $shown:ident),*) => {$(
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($type)).field(stringify!($shown), &self.$shown).finish_non_exhaustive()
            }
        }
    )*};
}
hide_secrets!(UserRecord: name, TokenRecord: id, NodeTokenRecord: id, MemberRecord: node);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_363_200_123), "2026-11-22T16:00:00.123Z");
    }

    #[test]
    fn hashes_stay_out_of_debug() {
        let token = TokenRecord {
            id: "t1".into(),
            secret_sha256: [7; 32],
            user: "u".into(),
            name: "n".into(),
            created_time_ms: 0,
            expires_time_ms: 0,
            expires_clock_ms: 0,
        };
        assert_eq!(format!("{token:?}"), "TokenRecord { id: \"t1\", .. }");
    }
}
