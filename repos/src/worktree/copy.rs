//! The public face of a working copy.
#![allow(clippy::todo, unused_variables, missing_debug_implementations)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Result;
use super::types::*;
use crate::{Oid, Patch, PatchOptions, RepoPath, Store, TreeChange};

/// An opened working copy. Cheap to clone, `Send + Sync`; a resident program keeps one, because it remembers what the trees hold.
///
/// Operations that change something take the lock of the state directory for as long as they last (a [`Staged`] and
/// its [`Exchanged`] hold it until they are settled or dropped). Reading takes no lock.
#[derive(Clone)]
pub struct WorkingCopy {
    root: Arc<PathBuf>,
}

impl WorkingCopy {
    /// Makes an empty working copy at `root` (absent, or an empty directory): repositories, remotes, no commit yet.
    /// The first [`stage`](Self::stage) fills it. Refuses a place where the exchange would not work.
    pub fn create(root: &Path, options: CreateOptions) -> Result<WorkingCopy> {
        todo!()
    }

    /// Opens the working copy at `root`. Finishes or takes back what an interrupted run left, unless another process
    /// is at work.
    pub fn open(root: &Path) -> Result<WorkingCopy> {
        todo!()
    }

    /// Opens the working copy that `start` lies in, at any depth, also inside a nested repository.
    pub fn discover(start: &Path) -> Result<WorkingCopy> {
        todo!()
    }

    /// The absolute path of the root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory beside the root that holds the spare tree, the stores and what was saved.
    pub fn state_dir(&self) -> &Path {
        todo!()
    }

    /// The repositories, the outer one first.
    pub fn mounts(&self) -> &[Mount] {
        todo!()
    }

    /// Changes the remote (and CA) that plain `git` sees in a mount.
    pub fn set_remote(&self, mount: &str, remote_url: &str, ca: Option<&Path>) -> Result<()> {
        todo!()
    }

    /// A path that the user typed in the directory `cwd`, relative to the root. `None` for the root itself.
    pub fn relative(&self, cwd: &Path, path: &Path) -> Result<Option<RepoPath>> {
        todo!()
    }

    /// The mount that a path of the working copy belongs to, and the path inside that repository.
    pub fn split(&self, path: &RepoPath) -> Result<(&Mount, RepoPath)> {
        todo!()
    }

    /// Where fetched packs of this mount are to be installed, and where its commits are read. Sees the objects that
    /// plain `git` made in the tree as well.
    pub fn objects(&self, mount: &str) -> Result<Store> {
        todo!()
    }

    /// The upstream base of a mount; `None` before the first update.
    pub fn base(&self, mount: &str) -> Result<Option<Base>> {
        todo!()
    }

    /// Everything local. Looks at every file.
    pub fn status(&self) -> Result<Status> {
        todo!()
    }

    /// What `commit` sends: the changes of a mount against its base, for those local changes that `wanted` accepts.
    /// Paths of the changes are relative to the mount's repository. Refuses while there are conflicts.
    pub fn local_changes(
        &self,
        mount: &str,
        wanted: &mut dyn FnMut(&LocalChange) -> bool,
    ) -> Result<(Base, Vec<TreeChange>)> {
        todo!()
    }

    /// Prepares the tree as it shall be after moving the mounts to `targets`: an older commit is a target like any
    /// other. Changes nothing in the live tree. Conflicts under [`OnOverlap::Refuse`] are
    /// [`WorktreeError::Overlap`](super::WorktreeError::Overlap).
    pub fn stage(&self, targets: &Targets, options: &StageOptions) -> Result<Staged> {
        todo!()
    }

    /// Tells the working copy that its local changes are now the upstream `commit`: the base moves, files that are
    /// equal stay as they are (and the directory is not even exchanged if all are); what others changed at the same
    /// time is merged in.
    pub fn committed(&self, mount: &str, revision: u64, commit: Oid) -> Result<Settled> {
        todo!()
    }

    /// [`committed`](Self::committed) for several mounts at once.
    pub fn committed_all(&self, targets: &Targets, options: &StageOptions) -> Result<Settled> {
        todo!()
    }

    /// Undoes local edits, additions that `git` knows, and deletions at or below `paths`; the upstream base comes
    /// back. Untracked files stay. Returns what was brought back.
    pub fn revert(&self, paths: &[RepoPath]) -> Result<Vec<RepoPath>> {
        todo!()
    }

    /// Schedules files, or everything tracked below directories, for deletion at the next commit, as `git rm` does:
    /// they leave the tree and the index now, the repository at commit. A file with local edits is refused unless
    /// `force`. Returns the files.
    pub fn schedule_delete(&self, paths: &[RepoPath], force: bool) -> Result<Vec<RepoPath>> {
        todo!()
    }

    /// Ends the conflict of files at or below `paths`. Returns those that were in conflict.
    pub fn resolve(&self, paths: &[RepoPath], to: ResolveTo) -> Result<Vec<RepoPath>> {
        todo!()
    }

    /// The local changes at or below `paths` (all, if there is none) as a patch against the base. Paths in the patch
    /// are relative to the root of the working copy.
    pub fn diff(&self, paths: &[RepoPath], options: &PatchOptions) -> Result<Patch> {
        todo!()
    }

    /// Looks for writes that reached the displaced tree after it was settled, and carries them over. For the idle
    /// moments of a resident program.
    pub fn sweep(&self) -> Result<Settled> {
        todo!()
    }

    /// What was put aside and not forgotten yet.
    pub fn saved(&self) -> Result<Vec<SavedEdit>> {
        todo!()
    }

    /// Drops a saved edit.
    pub fn forget_saved(&self, id: u64) -> Result<()> {
        todo!()
    }

    /// True if the current directory of this process lies in a tree that is no longer the live one.
    pub fn cwd_was_replaced(&self) -> bool {
        todo!()
    }
}

/// A tree that is ready beside the live one. Dropping it discards it.
pub struct Staged {
    wc: WorkingCopy,
}

impl Staged {
    /// The whole tree as it will be, for a checker to bind-mount over the root of the working copy.
    pub fn path(&self) -> &Path {
        todo!()
    }

    /// Files that differ from the live tree, with the mount's directory in front, sorted.
    pub fn changed(&self) -> &[RepoPath] {
        todo!()
    }

    /// Conflicts that this update writes into the tree ([`OnOverlap::Manual`] only).
    pub fn conflicts(&self) -> &[ConflictState] {
        todo!()
    }

    /// True if no file differs: the exchange will only move the base, in place.
    pub fn is_metadata_only(&self) -> bool {
        todo!()
    }

    /// True if there is nothing to do at all.
    pub fn is_noop(&self) -> bool {
        todo!()
    }

    /// Puts the staged tree in place, in one instant. The tree that it displaced still has to be settled.
    pub fn exchange(self) -> Result<Exchanged> {
        todo!()
    }

    /// Gives the staged tree up. The live tree has not been touched.
    pub fn discard(self) -> Result<()> {
        todo!()
    }
}

/// The new tree is live. [`settle`](Self::settle) finishes; if the process dies before, the next `open` does.
pub struct Exchanged {
    wc: WorkingCopy,
}

impl Exchanged {
    /// Files that changed, with the mount's directory in front, sorted.
    pub fn changed(&self) -> &[RepoPath] {
        todo!()
    }

    /// Conflicts that were written into the tree.
    pub fn conflicts(&self) -> &[ConflictState] {
        todo!()
    }

    /// Local edits that the caller told us to give up and that were put aside.
    pub fn saved(&self) -> &[SavedEdit] {
        todo!()
    }

    /// False if all files were equal and the directory stayed where it was.
    pub fn directory_replaced(&self) -> bool {
        todo!()
    }

    /// Rescans the displaced tree for edits of the last moment, carries them over, and makes the displaced tree the
    /// next spare.
    pub fn settle(self) -> Result<Settled> {
        todo!()
    }
}
