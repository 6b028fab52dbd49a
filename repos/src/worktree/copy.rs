//! The public face of a working copy.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::create::{check_url, discover};
use super::error::{At, Result, WorktreeError};
use super::fsx;
use super::gitdir;
use super::inner::Inner;
use super::settle::Displaced;
use super::stage::{GitLocks, Kind, Prepared};
use super::survey::Look;
use super::types::{
    Base, ConflictState, CreateOptions, Durability, LocalChange, Mount, OnOverlap, ResolveTo, SavedEdit, Scan, Settled,
    StageOptions, Status, Target, Targets,
};
use super::watch::Watch;
use crate::{Oid, Patch, PatchOptions, RepoPath, Store, TreeChange};

/// An opened working copy. Cheap to clone, `Send + Sync`; a resident program keeps one, because it remembers what the trees hold.
///
/// Operations that change something take the lock of the state directory for as long as they last (a [`Staged`] and
/// its [`Exchanged`] hold it until they are settled or dropped). Reading takes no lock.
#[derive(Clone)]
pub struct WorkingCopy {
    inner: Arc<Inner>,
}

impl WorkingCopy {
    /// Makes an empty working copy at `root` (absent, or an empty directory): repositories, remotes, no commit yet.
    /// The first [`stage`](Self::stage) fills it. Refuses a place where the exchange would not work. What a working copy whose tree was
    /// removed had put aside goes over to the new one.
    pub fn create(root: &Path, options: CreateOptions) -> Result<WorkingCopy> {
        Ok(WorkingCopy { inner: Arc::new(Inner::create(root, options)?) })
    }

    /// Opens the working copy at `root`. Finishes or takes back what an interrupted run left, unless another process
    /// is at work.
    pub fn open(root: &Path) -> Result<WorkingCopy> {
        let inner = Inner::open(root)?;
        if let Some(_lock) = inner.try_lock().unwrap_or(None) {
            inner.recover()?;
        }
        Ok(WorkingCopy { inner: Arc::new(inner) })
    }

    /// Opens the working copy that `start` lies in, at any depth, also inside a nested repository.
    pub fn discover(start: &Path) -> Result<WorkingCopy> {
        WorkingCopy::open(&discover(start)?)
    }

    /// The absolute path of the root.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The directory beside the root that holds the spare tree, the stores and what was saved.
    pub fn state_dir(&self) -> &Path {
        &self.inner.state_dir
    }

    /// The repositories, the outer one first.
    pub fn mounts(&self) -> &[Mount] {
        self.inner.mounts()
    }

    /// Changes the remote (and CA) that plain `git` sees in a mount.
    pub fn set_remote(&self, mount: &str, remote_url: &str, ca: Option<&Path>) -> Result<()> {
        check_url(remote_url)?;
        let i = self.inner.mount_index(mount)?;
        let _lock = self.inner.lock(StageOptions::default().lock_wait)?;
        let tree = self.inner.live()?;
        let new = Mount { remote_url: remote_url.into(), ca: ca.map(Path::to_owned), ..self.mounts()[i].clone() };
        let path = tree.mounts[i].path.join(".git/config");
        let config = fsx::read_at(&tree.mounts[i].git, b"config").at("read", &path)?;
        let config = gitdir::with_remote(&String::from_utf8_lossy(&config), &new);
        gitdir::put(&tree.mounts[i].git, b"config", config.as_bytes(), &self.inner.settings.ownership)
            .at("write", &path)
    }

    /// A path that the user typed in the directory `cwd`, relative to the root. `None` for the root itself.
    pub fn relative(&self, cwd: &Path, path: &Path) -> Result<Option<RepoPath>> {
        let joined = std::path::absolute(cwd.join(path)).at("find", path)?;
        // `..` is taken by name, links above the root are resolved, links inside are not: they are what is versioned.
        let mut plain = PathBuf::new();
        for component in joined.components() {
            match component {
                Component::ParentDir => {
                    plain.pop();
                }
                other => plain.push(other),
            }
        }
        let outside = || WorktreeError::BadPath {
            path: path.display().to_string(),
            reason: "is outside the working copy".into(),
        };
        let spare = self.inner.spare_path();
        let inside =
            |p: &Path| p.strip_prefix(self.root()).or_else(|_| p.strip_prefix(&spare)).map(Path::to_owned).ok();
        let relative = inside(&plain).or_else(|| {
            let above = plain.ancestors().find_map(|a| a.canonicalize().ok().map(|real| (a.to_owned(), real)))?;
            inside(&above.1.join(plain.strip_prefix(&above.0).ok()?))
        });
        let relative = relative.ok_or_else(outside)?;
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(relative.as_os_str());
        if bytes.is_empty() {
            return Ok(None);
        }
        RepoPath::new(bytes).map(Some).map_err(|err| WorktreeError::BadPath { path: err.path, reason: err.reason })
    }

    /// The mount that a path of the working copy belongs to, and the path inside that repository.
    pub fn split(&self, path: &RepoPath) -> Result<(&Mount, RepoPath)> {
        for mount in self.mounts().iter().filter(|m| !m.at.is_empty()) {
            let at = RepoPath::from_tree(mount.at.clone().into_bytes());
            if let Some(inside) = path.strip_prefix(&at) {
                return Ok((mount, inside));
            }
            if *path == at {
                return Err(WorktreeError::BadPath { path: path.to_string(), reason: "is a whole repository".into() });
            }
        }
        Ok((&self.mounts()[0], path.clone()))
    }

    /// Where fetched packs of this mount are to be installed, and where its commits are read. Objects that plain
    /// `git` made in the tree get here with the next update or status of a writer.
    pub fn objects(&self, mount: &str) -> Result<Store> {
        Ok(self.inner.stores[self.inner.mount_index(mount)?].clone())
    }

    /// The upstream base of a mount; `None` before the first update.
    pub fn base(&self, mount: &str) -> Result<Option<Base>> {
        let i = self.inner.mount_index(mount)?;
        Ok(self.inner.live()?.mounts[i].state()?.base)
    }

    /// Everything local. Looks at every file.
    pub fn status(&self) -> Result<Status> {
        self.inner.status()
    }

    /// What `commit` sends: the changes of a mount against its base, for those local changes that `wanted` accepts.
    /// Paths of the changes are relative to the mount's repository. Refuses while there are conflicts.
    pub fn local_changes(
        &self,
        mount: &str,
        wanted: &mut dyn FnMut(&LocalChange) -> bool,
    ) -> Result<(Base, Vec<TreeChange>)> {
        self.inner.local_changes(mount, wanted)
    }

    /// Prepares the tree as it shall be after moving the mounts to `targets`: an older commit is a target like any
    /// other. Changes nothing in the live tree. Conflicts under [`OnOverlap::Refuse`] are
    /// [`WorktreeError::Overlap`](super::WorktreeError::Overlap).
    pub fn stage(&self, targets: &Targets, options: &StageOptions) -> Result<Staged> {
        Ok(Staged { prepared: Some(self.inner.stage(targets, options)?) })
    }

    /// Tells the working copy that its local changes are now the upstream `commit`: the base moves, files that are
    /// equal stay as they are (and the directory is not even exchanged if all are); what others changed at the same
    /// time is merged in.
    pub fn committed(&self, mount: &str, revision: u64, commit: Oid) -> Result<Settled> {
        let targets = Targets::from([(mount.to_owned(), Target { revision, commit })]);
        self.committed_all(
            &targets,
            &StageOptions { on_overlap: OnOverlap::Mine, reason: "commit".into(), ..StageOptions::default() },
        )
    }

    /// [`committed`](Self::committed) for several mounts at once.
    pub fn committed_all(&self, targets: &Targets, options: &StageOptions) -> Result<Settled> {
        self.stage(targets, options)?.exchange()?.settle()
    }

    /// Undoes local edits, additions that `git` knows, and deletions at or below `paths` (everywhere, if there is none);
    /// the upstream base comes back. Untracked files stay. Returns what was brought back.
    pub fn revert(&self, paths: &[RepoPath]) -> Result<Vec<RepoPath>> {
        self.inner.revert(paths)
    }

    /// Schedules files, or everything tracked below directories, for deletion at the next commit, as `git rm` does:
    /// they leave the tree and the index now, the repository at commit. A file with local edits is refused unless
    /// `force`. Returns the files.
    pub fn schedule_delete(&self, paths: &[RepoPath], force: bool) -> Result<Vec<RepoPath>> {
        self.inner.schedule_delete(paths, force)
    }

    /// Ends the conflict of files at or below `paths` (of all, if there is none). Returns those that were in conflict.
    pub fn resolve(&self, paths: &[RepoPath], to: ResolveTo) -> Result<Vec<RepoPath>> {
        self.inner.resolve(paths, to)
    }

    /// The local changes at or below `paths` (all, if there is none) as a patch against the base. Paths in the patch
    /// are relative to the root of the working copy.
    pub fn diff(&self, paths: &[RepoPath], options: &PatchOptions) -> Result<Patch> {
        self.inner.diff(paths, options)
    }

    /// Looks for writes that reached the displaced tree after it was settled, and carries them over. For the idle
    /// moments of a resident program.
    pub fn sweep(&self) -> Result<Settled> {
        let _lock = self.inner.lock(StageOptions::default().lock_wait)?;
        self.inner.recover()?;
        self.inner.sweep_spare(Look::Write)
    }

    /// Has the kernel tell from now on which files are touched, so that [`Scan::Watched`](super::Scan::Watched) and
    /// [`tend`](Self::tend) need not look at every file. For a resident program, which then calls `tend` in its idle moments. Where
    /// watching is not possible, every file is looked at as before, and [`watch_trouble`](Self::watch_trouble) says why.
    pub fn watch(&self) -> Result<()> {
        if self.inner.watch.get().is_none() {
            let watch = Watch::new().at("watch", &self.inner.root)?;
            // Two at once: one of them wins, the other ends.
            let _ = self.inner.watch.set(watch);
        }
        Ok(())
    }

    /// Why the working copy is not watched, if it is not.
    pub fn watch_trouble(&self) -> Option<String> {
        self.inner.watch.get().and_then(Watch::trouble)
    }

    /// Does in an idle moment what the next update need not do then: looks at what was touched, carries writes over that reached the
    /// displaced tree late ([`sweep`](Self::sweep)), and sees to it that all directories are watched. With
    /// [`Scan::Full`](super::Scan::Full), which a resident program should ask for now and then, it looks at every file, and finds what
    /// the kernel does not tell: writes through mappings and through hard links from elsewhere.
    ///
    /// Does nothing while somebody else is at work.
    pub fn tend(&self, scan: Scan) -> Result<Settled> {
        let Some(_lock) = self.inner.try_lock()? else { return Ok(Settled::default()) };
        self.inner.recover()?;
        self.inner.tend(scan.into())
    }

    /// Brings the spare tree up to what the live tree holds, so that the next update has only its own difference to
    /// write. For the idle moments of a resident program; after the first checkout, `settle` does it.
    pub fn prepare(&self) -> Result<()> {
        let lock = self.inner.lock(StageOptions::default().lock_wait)?;
        self.inner.prepare(lock, Durability::BeforeExchange)
    }

    /// Refuses a working copy in which somebody works on another branch than `main`, as every update does.
    pub fn require_main(&self) -> Result<()> {
        self.inner.live()?.mounts.iter().try_for_each(|mount| mount.require_main())
    }

    /// True if nothing of an interrupted update is left to be done.
    pub fn is_settled(&self) -> Result<bool> {
        Ok(self.inner.read_journal()?.is_none())
    }

    /// What was put aside and not forgotten yet.
    pub fn saved(&self) -> Result<Vec<SavedEdit>> {
        self.inner.with_saved(|s| s.list())
    }

    /// Drops a saved edit.
    pub fn forget_saved(&self, id: u64) -> Result<()> {
        self.inner.with_saved(|s| s.forget(id))
    }

    /// True if the current directory of this process lies in a tree that is no longer the live one.
    pub fn cwd_was_replaced(&self) -> bool {
        std::env::current_dir().is_ok_and(|dir| dir.starts_with(self.inner.spare_path()))
    }
}

/// A tree that is ready beside the live one. Dropping it discards it.
pub struct Staged {
    /// Taken by whichever method ends it.
    prepared: Option<Prepared>,
}

impl Staged {
    fn get(&self) -> &Prepared {
        self.prepared.as_ref().expect("only the methods that consume self take it")
    }

    /// The whole tree as it will be, for a checker to bind-mount over the root of the working copy. (Plain `git` works
    /// in it only there: its objects are found by a relative path.)
    pub fn path(&self) -> &Path {
        match &self.get().kind {
            Kind::Swap(swap) => &swap.path,
            Kind::Noop | Kind::Flip => &self.get().inner.root,
        }
    }

    /// Files that differ from the live tree, with the mount's directory in front, sorted.
    pub fn changed(&self) -> &[RepoPath] {
        &self.get().changed
    }

    /// Conflicts that this update writes into the tree ([`OnOverlap::Manual`] only).
    pub fn conflicts(&self) -> &[ConflictState] {
        &self.get().conflicts
    }

    /// True if no file differs: the exchange will only move the base, in place.
    pub fn is_metadata_only(&self) -> bool {
        !matches!(self.get().kind, Kind::Swap(_))
    }

    /// True if there is nothing to do at all.
    pub fn is_noop(&self) -> bool {
        matches!(self.get().kind, Kind::Noop)
    }

    /// Puts the staged tree in place, in one instant. The tree that it displaced still has to be settled.
    ///
    /// Fails with [`WorktreeError::ChangedMeanwhile`] if plain git committed or staged something since.
    pub fn exchange(mut self) -> Result<Exchanged> {
        let mut prepared = self.prepared.take().expect("only the methods that consume self take it");
        let result = match prepared.kind {
            Kind::Noop => Ok(None),
            Kind::Flip => prepared.flip().map(|()| None),
            Kind::Swap(_) => prepared.swap().map(Some),
        };
        match result {
            Ok(locks) => Exchanged::new(prepared, locks),
            Err(err) => {
                // Still staged; let `discard` note what the spare holds.
                self.prepared = Some(prepared);
                Err(err)
            }
        }
    }

    /// Gives the staged tree up. The live tree has not been touched.
    pub fn discard(mut self) -> Result<()> {
        self.give_up()
    }

    fn give_up(&mut self) -> Result<()> {
        let Some(prepared) = self.prepared.take() else { return Ok(()) };
        if let Kind::Swap(swap) = &prepared.kind {
            prepared.inner.remember_spare(&swap.id, &swap.manifests)?;
            prepared.inner.empty_trash()?;
            prepared.inner.clear_journal(false)?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(err) = self.give_up() {
            tracing::warn!(%err, "cannot give up a staged tree; the next run will");
        }
    }
}

/// The new tree is live. [`settle`](Self::settle) finishes; if the process dies before, the next `open` does.
pub struct Exchanged {
    prepared: Prepared,
    /// Plain git is kept out of the displaced tree until it is settled.
    locks: Option<GitLocks>,
    saved: Vec<SavedEdit>,
}

impl Exchanged {
    fn new(prepared: Prepared, locks: Option<GitLocks>) -> Result<Exchanged> {
        let saved = prepared.save_lost()?;
        Ok(Exchanged { prepared, locks, saved })
    }

    /// Files that changed, with the mount's directory in front, sorted.
    pub fn changed(&self) -> &[RepoPath] {
        &self.prepared.changed
    }

    /// Conflicts that were written into the tree.
    pub fn conflicts(&self) -> &[ConflictState] {
        &self.prepared.conflicts
    }

    /// Local edits that the caller told us to give up ([`OnOverlap::Theirs`]) and that were put aside.
    pub fn saved(&self) -> &[SavedEdit] {
        &self.saved
    }

    /// False if all files were equal and the directory stayed where it was.
    pub fn directory_replaced(&self) -> bool {
        matches!(self.prepared.kind, Kind::Swap(_))
    }

    /// Rescans the displaced tree for edits of the last moment, carries them over, and makes the displaced tree the
    /// next spare.
    pub fn settle(self) -> Result<Settled> {
        let Exchanged { prepared, locks, .. } = self;
        let Prepared { inner, lock, options, survey, plans, kind, .. } = prepared;
        let Kind::Swap(swap) = kind else { return Ok(Settled::default()) };
        if options.durability == Durability::AfterExchange {
            rustix::fs::syncfs(&inner.state_fd).at("sync", &inner.root)?;
        }
        let displaced = Displaced {
            tree: survey.tree,
            id: survey.id,
            seen: survey.manifests,
            git_seen: swap.git_seen,
            git_staged: swap.git_staged,
            mains: plans.iter().map(|p| p.old_main).collect(),
            lost: plans.into_iter().map(|p| p.lost).collect(),
            lost_is_saved: true,
            sync: options.durability != Durability::Never,
        };
        let settled = inner.settle(displaced, swap.id, swap.manifests)?;
        drop(locks);
        for store in &inner.stores {
            store.consolidate(&Default::default(), &[])?;
        }
        if inner.spare_is_far_behind()
            && let Err(err) = inner.prepare(lock, options.durability)
        {
            tracing::warn!(%err, "cannot prepare the second tree now; the next update will");
        }
        Ok(settled)
    }
}

impl std::fmt::Debug for WorkingCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkingCopy").field("root", &self.inner.root).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged")
            .field("changed", &self.prepared.as_ref().map(|p| p.changed.len()))
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Exchanged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchanged").field("changed", &self.prepared.changed.len()).finish_non_exhaustive()
    }
}
