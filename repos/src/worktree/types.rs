//! The words in which callers talk to a working copy.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Oid, RepoPath};

/// A repository and where it appears in the working copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The repository's name, by which every other call names the mount: `default`, `global`.
    pub name: String,
    /// `""` for the outer repository (exactly one has it), else one directory name below the root: `global`.
    pub at: String,
    /// What `origin` points to. Never with a credential in it (that is refused).
    pub remote_url: String,
    /// The CA that plain `git` shall trust for this remote (`http.sslCAInfo`).
    pub ca: Option<PathBuf>,
}

/// Who owns what an update writes, and with which permissions. What exists already keeps its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Owner of new files and directories; `None`: the calling process.
    pub uid: Option<u32>,
    /// Group of new files and directories; `None`: the calling process.
    pub gid: Option<u32>,
    /// Taken away from 0666 for files, 0777 for executable files and directories. The process's own umask does not matter.
    pub umask: u32,
}

impl Default for Ownership {
    fn default() -> Self {
        Ownership { uid: None, gid: None, umask: 0o022 }
    }
}

/// What [`WorkingCopy::create`](super::WorkingCopy::create) needs to know.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// The repositories; one of them at `""`.
    pub mounts: Vec<Mount>,
    /// Who owns what updates write.
    pub ownership: Ownership,
}

/// The upstream commit that a mount's files are based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The repository's name.
    pub repo: String,
    /// Its revision.
    pub revision: u64,
    /// The commit of that revision.
    pub commit: Oid,
    /// The server it came from (whatever the caller said; informational).
    pub server: String,
}

/// Where a mount shall go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The revision.
    pub revision: u64,
    /// Its commit, which must be in the mount's store already.
    pub commit: Oid,
}

/// Mount name → where it shall go. A mount that is not named stays at its base.
pub type Targets = BTreeMap<String, Target>;

/// What to do where a local edit and the update touch the same lines (or the same file, where lines do not exist).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOverlap {
    /// Change nothing and report the paths.
    #[default]
    Refuse,
    /// The local side wins where both touch.
    Mine,
    /// The upstream side wins where both touch; a local file that loses as a whole is saved.
    Theirs,
    /// Conflict markers in the file, unmerged stages in the index, resolved later with `resolve`.
    Manual,
}

/// How [`WorkingCopy::stage`](super::WorkingCopy::stage) learns about local edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scan {
    /// Look at every file.
    #[default]
    Full,
    /// Look at what the kernel says was touched since this `WorkingCopy` last looked, if it is
    /// [watched](super::WorkingCopy::watch) and somebody [tends](super::WorkingCopy::tend) it; else at every file. What the kernel does
    /// not tell is found by the rescan after the exchange, which is always at every file.
    Watched,
}

/// When content is forced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Everything written is synced before the exchange, the exchange itself by `settle`: power loss leaves the old or the
    /// new tree, whole.
    #[default]
    BeforeExchange,
    /// Synced in `settle`: the exchange is quicker; power loss in between may leave empty new files.
    AfterExchange,
    /// Left to the kernel.
    Never,
}

/// How an update is made.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// What to do on overlap.
    pub on_overlap: OnOverlap,
    /// How to learn about local edits.
    pub scan: Scan,
    /// When to sync.
    pub durability: Durability,
    /// How long to wait for another writer's lock.
    pub lock_wait: Duration,
    /// How long to wait for a plain `git` that holds `index.lock`.
    pub git_lock_wait: Duration,
    /// Recorded in the base as its server.
    pub server: String,
    /// Appended to the reflog: `eccfg: <reason>`.
    pub reason: String,
}

impl Default for StageOptions {
    fn default() -> Self {
        StageOptions {
            on_overlap: OnOverlap::Refuse,
            scan: Scan::Full,
            durability: Durability::BeforeExchange,
            lock_wait: Duration::from_secs(10),
            git_lock_wait: Duration::from_secs(2),
            server: String::new(),
            reason: "update".into(),
        }
    }
}

/// What kind of local change a path has, against the upstream base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// The content, or the type, differs.
    Modified,
    /// Only the executable bit differs.
    Mode,
    /// New here and known to git (`git add`, or in a local commit).
    Added,
    /// New here, unknown to git and not ignored. A directory without any known file is one entry, its path being
    /// that of the file inside: every file is listed.
    Untracked,
    /// Gone, and scheduled for deletion (`eccfg delete`, `git rm`, or in a local commit).
    Deleted,
    /// Gone, but nobody said so.
    Missing,
}

/// A path that differs from the upstream base.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LocalChange {
    /// Relative to the root of the working copy, with the mount's directory in front.
    pub path: RepoPath,
    /// What happened.
    pub kind: ChangeKind,
    /// `git add` was told about exactly this content.
    pub staged: bool,
}

/// A file in conflict after an update with [`OnOverlap::Manual`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictState {
    /// Relative to the root of the working copy.
    pub path: RepoPath,
    /// What happened on both sides, for people: `both modified`, `deleted upstream`, …
    pub what: String,
}

/// A local edit that could not be carried over and was put aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEdit {
    /// Names the edit, for [`WorkingCopy::forget_saved`](super::WorkingCopy::forget_saved).
    pub id: u64,
    /// Where it was, relative to the root of the working copy.
    pub path: RepoPath,
    /// Where its content is now; `None` if the edit was a deletion.
    pub file: Option<PathBuf>,
    /// Why it could not be carried.
    pub reason: String,
}

/// One mount's part of [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// The mount.
    pub name: String,
    /// Its directory below the root.
    pub at: String,
    /// Its upstream base; `None` before the first update.
    pub base: Option<Base>,
    /// Local changes, sorted by path.
    pub changes: Vec<LocalChange>,
    /// Ignored files are not local changes; how many there are.
    pub ignored: usize,
    /// Unresolved conflicts.
    pub conflicts: Vec<ConflictState>,
    /// Local commits on `main` that upstream does not have, newest first.
    pub local_commits: Vec<Oid>,
}

/// What differs from upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Per mount, the outer one first.
    pub mounts: Vec<MountStatus>,
    /// Edits that were put aside and that nobody has looked at yet.
    pub saved: Vec<SavedEdit>,
}

impl Status {
    /// True if there is nothing local at all: no edits, conflicts or local commits.
    pub fn is_clean(&self) -> bool {
        self.mounts.iter().all(|m| m.changes.is_empty() && m.conflicts.is_empty() && m.local_commits.is_empty())
    }
}

/// How `resolve` leaves the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResolveTo {
    /// As it is now: somebody has edited the markers away.
    #[default]
    Edited,
    /// What it was here before the update; gives the upstream side up.
    Mine,
    /// What upstream has; gives the upstream side back.
    Upstream,
}

/// What [`Exchanged::settle`](super::Exchanged::settle) found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Edits of the last moment that are now in the live tree.
    pub carried: Vec<RepoPath>,
    /// Edits of the last moment that were put aside.
    pub saved: Vec<SavedEdit>,
}

impl Settled {
    /// True if nobody wrote during the update.
    pub fn is_empty(&self) -> bool {
        self.carried.is_empty() && self.saved.is_empty()
    }
}
