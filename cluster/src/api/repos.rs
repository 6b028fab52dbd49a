//! Repositories: their list, their trees, their history, and what differs between two points of it.

use serde::{Deserialize, Serialize};

/// One repository of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RepoInfo {
    /// Its name; also the subcluster's name, or `global`.
    pub name: String,
    /// How often `main` has moved.
    pub revision: u64,
    /// The commit `main` points to.
    pub commit: String,
    /// True while the repository is frozen by hand (no commits, no new revisions).
    #[serde(default)]
    pub frozen: bool,
}

/// Creates a repository from the packaged templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateRepo {
    /// A single lower-case word.
    pub name: String,
}

/// Copies a repository onto the one that the request names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CopyRepo {
    /// The repository that is copied.
    pub from: String,
    /// True creates a new repository with the whole history; else the newest tree becomes one new revision of a new or existing one.
    #[serde(default)]
    pub with_history: bool,
}

/// Pins the leadership to a node, or unpins it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// The node: one that runs ecconfigd.
    pub node: String,
}

/// One ref of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RefInfo {
    /// The full name, such as `refs/heads/main`.
    pub name: String,
    /// The object it points to, in hex.
    pub id: String,
}

/// What a tree entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file, executable or not (see `mode`).
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A commit of another repository; the gate refuses new ones.
    Submodule,
}

/// One entry of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TreeEntry {
    /// The path from the repository's root.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// git's mode in octal, such as `100644`.
    pub mode: String,
    /// The object id in hex.
    pub id: String,
    /// The size of a file or link target in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// One commit of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogEntry {
    /// The revision at which `main` moved to this commit; absent for commits that came along with a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The commit id in hex.
    pub commit: String,
    /// The parents' ids.
    pub parents: Vec<String>,
    /// `Name <mail>` of who wrote it.
    pub author: String,
    /// `Name <mail>` of who committed it.
    pub committer: String,
    /// When it was committed.
    pub time: String,
    /// The whole message.
    pub message: String,
}

/// How a path differs between two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ChangeStatus {
    /// Only in the newer tree.
    Added,
    /// In both, with another content or mode.
    Modified,
    /// Only in the older tree.
    Deleted,
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiffEntry {
    /// The path from the repository's root.
    pub path: String,
    /// What happened to it.
    pub status: ChangeStatus,
    /// Mode and object before, where it existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<DiffSide>,
    /// Mode and object after, where it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<DiffSide>,
}

/// One side of a changed path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiffSide {
    /// git's mode in octal.
    pub mode: String,
    /// The object id in hex.
    pub id: String,
}

/// The difference between two revisions. `Accept: text/x-diff` answers with the patch alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Diff {
    /// The older commit in hex; absent when comparing with nothing (the first commit).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The newer commit in hex.
    pub to: String,
    /// The changed paths in order.
    pub changes: Vec<DiffEntry>,
    /// The unified diff as git prints it.
    pub patch: String,
    /// True when the patch was cut at the server's limit.
    #[serde(default)]
    pub truncated: bool,
}

/// One commit with what it changed against its first parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CommitDetail {
    /// The commit.
    #[serde(flatten)]
    pub commit: LogEntry,
    /// What it changed.
    pub diff: Diff,
}
