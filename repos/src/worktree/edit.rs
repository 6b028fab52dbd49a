//! Operations that change files of the live tree in place, one file at a time: `revert`, `delete`, `resolve`.
//!
//! Each file is replaced by a rename, so a reader sees the old or the new one; the index is written under git's own
//! `index.lock`, held throughout.

use std::collections::BTreeMap;

use rustix::fs::{self, AtFlags};

use super::error::{At, Result, WorktreeError};
use super::fsx::{self, Kind};
use super::gitdir::{self, ConflictRecord};
use super::inner::{Held as CachedTree, Inner};
use super::manifest::{Entry, Held, Leaf, PathKey, Staged};
use super::plan::{MAX_FILE_BYTES, new_dir, new_file};
use super::stage::GitLocks;
use super::survey::{Look, Survey};
use super::types::ResolveTo;
use crate::RepoPath;

/// Files that `--wait` of nobody names: editing in place waits this long for git and for other writers.
const WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// A survey under all locks, whose changes are written back by `finish`.
struct Edit<'a> {
    inner: &'a Inner,
    survey: Survey,
    _git: GitLocks,
    _lock: super::lock::Lock,
}

impl Inner {
    fn edit(&self) -> Result<Edit<'_>> {
        let lock = self.lock(WAIT)?;
        self.recover()?;
        let git = GitLocks::take(&self.live()?, WAIT)?;
        let survey = self.survey(Look::Write)?;
        Ok(Edit { inner: self, survey, _git: git, _lock: lock })
    }

    pub(crate) fn revert(&self, paths: &[RepoPath]) -> Result<Vec<RepoPath>> {
        let mut edit = self.edit()?;
        let mut done = Vec::new();
        for mount in 0..self.mounts().len() {
            let chosen: Vec<_> = edit.chosen(mount, paths, |e, in_index| e.base.is_some() || in_index);
            for path in chosen {
                let base = edit.survey.manifests[mount].base(&path);
                if let Some(leaf) = base {
                    edit.put_blob(mount, &path, leaf)?;
                }
                // A new file that git was told about becomes an unknown one; its content stays.
                edit.unstage(mount, &path, base);
                done.push(self.full_path(mount, &path));
            }
            edit.forget_conflicts(mount, paths)?;
        }
        edit.finish()?;
        Ok(done)
    }

    pub(crate) fn schedule_delete(&self, paths: &[RepoPath], force: bool) -> Result<Vec<RepoPath>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let mut edit = self.edit()?;
        let mut chosen = Vec::new();
        for (mount, line) in edit.survey.lines.iter().enumerate() {
            let manifest = &edit.survey.manifests[mount];
            for entry in manifest.entries.iter().filter(|e| is_chosen(&self.full_path(mount, &e.path), paths)) {
                let staged = manifest.staged.iter().find(|s| s.path == entry.path);
                let in_index = staged.map_or_else(|| line.head(manifest, &entry.path), |s| s.leaf).is_some();
                if in_index || (entry.base.is_some() && entry.held.is_some()) {
                    let dirty = entry.is_dirty() && entry.held.is_some();
                    chosen.push((mount, PathKey::clone(&entry.path), dirty));
                }
            }
        }
        for path in paths {
            if !chosen.iter().any(|(mount, p, _)| self.full_path(*mount, p).starts_with(path)) {
                return Err(WorktreeError::BadPath {
                    path: path.to_string(),
                    reason: "is not under version control".into(),
                });
            }
        }
        if let (Some((mount, path, _)), false) = (chosen.iter().find(|(_, _, dirty)| *dirty), force) {
            let path = self.full_path(*mount, path).to_string();
            return Err(WorktreeError::BadPath {
                path,
                reason: "has local edits; revert it first, or force the deletion".into(),
            });
        }
        let mut done = Vec::new();
        for (mount, path, _) in chosen {
            edit.remove(mount, &path)?;
            edit.stage(mount, &path, None);
            done.push(self.full_path(mount, &path));
        }
        edit.finish()?;
        Ok(done)
    }

    pub(crate) fn resolve(&self, paths: &[RepoPath], to: ResolveTo) -> Result<Vec<RepoPath>> {
        let mut edit = self.edit()?;
        let mut done = Vec::new();
        for mount in 0..self.mounts().len() {
            let unmerged = edit.survey.unmerged[mount].clone();
            let records: Vec<ConflictRecord> = edit.survey.states[mount].conflicts.clone();
            for path in unmerged.iter().filter(|p| is_chosen(&self.full_path(mount, p), paths)) {
                let record = records.iter().find(|c| c.path_bytes() == *path);
                let key: PathKey = path.as_slice().into();
                match (to, record) {
                    (ResolveTo::Mine, Some(record)) => edit.take(mount, &key, record.side(1))?,
                    (ResolveTo::Upstream, Some(record)) => edit.take(mount, &key, record.side(2))?,
                    // A conflict of plain git's own making has no record; HEAD is upstream then.
                    (ResolveTo::Upstream, None) => edit.take(mount, &key, edit.survey.manifests[mount].base(&key))?,
                    (ResolveTo::Edited, _) | (ResolveTo::Mine, None) => {}
                }
                done.push(self.full_path(mount, path));
            }
            edit.forget_conflicts(mount, paths)?;
        }
        edit.finish()?;
        Ok(done)
    }
}

/// No path at all stands for the whole working copy.
fn is_chosen(path: &RepoPath, paths: &[RepoPath]) -> bool {
    paths.is_empty() || paths.iter().any(|p| path.starts_with(p))
}

impl Edit<'_> {
    /// Paths at or below `paths` that differ from upstream, or whose index entry does.
    fn chosen(&self, mount: usize, paths: &[RepoPath], wanted: impl Fn(&Entry, bool) -> bool) -> Vec<PathKey> {
        let manifest = &self.survey.manifests[mount];
        let staged =
            |path: &PathKey| manifest.staged.binary_search_by(|s| s.path.cmp(path)).ok().map(|i| &manifest.staged[i]);
        let mut chosen: Vec<PathKey> = manifest
            .entries
            .iter()
            .filter(|e| is_chosen(&self.inner.full_path(mount, &e.path), paths))
            .filter(|e| {
                let staged = staged(&e.path);
                let in_index = staged.is_some_and(|s| s.leaf.is_some());
                (e.is_dirty() || staged.is_some()) && wanted(e, in_index)
            })
            .map(|e| PathKey::clone(&e.path))
            .collect();
        // In the index only: added, then removed from the disk.
        let lost = manifest
            .staged
            .iter()
            .filter(|s| manifest.get(&s.path).is_none() && is_chosen(&self.inner.full_path(mount, &s.path), paths));
        chosen.extend(lost.map(|s| PathKey::clone(&s.path)));
        chosen
    }

    fn at(&self, mount: usize, path: &[u8]) -> std::path::PathBuf {
        self.survey.tree.mounts[mount].path.join(RepoPath::from_tree(path.to_vec()).as_path())
    }

    fn set_held(&mut self, mount: usize, path: &PathKey, held: Option<Held>) {
        let base = self.survey.manifests[mount].base(path);
        self.survey.manifests[mount].patch(vec![Entry { path: PathKey::clone(path), base, held }]);
    }

    fn put_blob(&mut self, mount: usize, path: &PathKey, leaf: Leaf) -> Result<()> {
        let at = self.at(mount, path);
        let before = self.survey.manifests[mount].get(path).and_then(|e| e.held);
        if before.and_then(|h| h.leaf()) == Some(leaf) {
            return Ok(());
        }
        let data = self.survey.readers[mount].blob(leaf.oid, MAX_FILE_BYTES)?;
        let own = self.inner.settings.ownership;
        let mut cursor = self.survey.tree.mounts[mount].cursor();
        let (dir_path, name) = fsx::split(path);
        let in_the_way =
            |reason| WorktreeError::BadPath { path: self.inner.full_path(mount, path).to_string(), reason };
        let dir = match cursor.dir_with(dir_path, |parent, name, _| {
            fsx::ensure_dir_at(parent, name, new_dir(&own).mode)?;
            gitdir::give(parent, name, &own)
        }) {
            Err(err) if fsx::absent(&err) => {
                return Err(in_the_way("a local file is where its directory was; move it away first".into()));
            }
            other => other.at("open", &at)?,
        };
        let there = fsx::try_lstat_at(dir, name).at("examine", &at)?;
        if there.is_some_and(|sig| sig.kind() == Kind::Dir) {
            match fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) => {}
                Err(_) => return Err(in_the_way("a local directory is in its place; move it away first".into())),
            }
        }
        let exec = leaf.mode == crate::Mode::Exec;
        let perm = match there.filter(|sig| sig.kind().is_file() && (sig.kind() == Kind::Exec) == exec) {
            Some(sig) => sig.perm(),
            None => new_file(&own, exec).mode,
        };
        let temp = fsx::temp_name();
        if leaf.mode == crate::Mode::Symlink {
            fs::symlinkat(data.as_slice(), dir, temp.as_slice()).at("write", &at)?;
        } else {
            drop(fsx::create_at(dir, &temp, &data, perm).at("write", &at)?);
        }
        match there {
            Some(sig) => drop(gitdir::chown(dir, &temp, Some(sig.uid), Some(sig.gid))),
            None => gitdir::give(dir, &temp, &own).at("set the owner of", &at)?,
        }
        fs::renameat(dir, temp.as_slice(), dir, name).at("replace", &at)?;
        let sig = fsx::lstat_at(dir, name).at("examine", &at)?;
        self.set_held(mount, path, Some(Held { sig, oid: Some(leaf.oid), shared: false }));
        Ok(())
    }

    /// Removes a file, and directories that held nothing else.
    fn remove(&mut self, mount: usize, path: &PathKey) -> Result<()> {
        let at = self.at(mount, path);
        let mut cursor = self.survey.tree.mounts[mount].cursor();
        if let Ok((dir, name)) = cursor.parent(path) {
            match fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(err) => return Err(err).at("remove", &at),
            }
        }
        let mut dir = fsx::split(path).0;
        while !dir.is_empty() {
            cursor.reset();
            let removed =
                cursor.parent(dir).is_ok_and(|(parent, name)| fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok());
            if !removed {
                break;
            }
            dir = fsx::split(dir).0;
        }
        self.set_held(mount, path, None);
        Ok(())
    }

    /// Gives one side of a conflict back.
    fn take(&mut self, mount: usize, path: &PathKey, side: Option<Leaf>) -> Result<()> {
        match side {
            Some(leaf) => self.put_blob(mount, path, leaf),
            None => self.remove(mount, path),
        }
    }

    fn stage(&mut self, mount: usize, path: &PathKey, leaf: Option<Leaf>) {
        let head = self.survey.lines[mount].head(&self.survey.manifests[mount], path);
        let staged = &mut self.survey.manifests[mount].staged;
        staged.retain(|s| s.path != *path);
        if head != leaf {
            staged.push(Staged { path: PathKey::clone(path), leaf, intent_to_add: false });
            staged.sort_by(|a, b| a.path.cmp(&b.path));
        }
    }

    /// The index has what upstream has, where a local commit does not say otherwise.
    fn unstage(&mut self, mount: usize, path: &PathKey, base: Option<Leaf>) {
        let head = self.survey.lines[mount].head(&self.survey.manifests[mount], path);
        self.stage(mount, path, if self.survey.lines[mount].unchanged { head } else { base });
    }

    fn forget_conflicts(&mut self, mount: usize, paths: &[RepoPath]) -> Result<()> {
        let inner = self.inner;
        self.survey.unmerged[mount].retain(|p| !is_chosen(&inner.full_path(mount, p), paths));
        let unmerged = self.survey.unmerged[mount].clone();
        let state = &mut self.survey.states[mount];
        let before = state.conflicts.len();
        state.conflicts.retain(|c| unmerged.contains(&c.path_bytes()));
        if state.conflicts.len() != before {
            let git = &self.survey.tree.mounts[mount].git;
            let at = self.survey.tree.mounts[mount].path.join(".git/eccfg/state");
            gitdir::put(git, b"eccfg/state", &gitdir::encode_state(state), &inner.settings.ownership)
                .at("write", &at)?;
        }
        Ok(())
    }

    /// Writes the indexes, and notes what the tree holds now.
    fn finish(mut self) -> Result<()> {
        for mount in 0..self.survey.manifests.len() {
            let conflicts = self.conflict_stages(mount)?;
            let manifest = &self.survey.manifests[mount];
            let bytes = Inner::plain_index(manifest, &self.survey.lines[mount], &conflicts);
            let tree = &self.survey.tree.mounts[mount];
            let at = tree.path.join(".git/index");
            gitdir::put(&tree.git, b"index", &bytes, &self.inner.settings.ownership).at("write", &at)?;
            let sig = fsx::try_lstat_at(&tree.git, b"index").at("examine", &at)?;
            self.survey.manifests[mount].index_sig = sig.filter(|_| conflicts.is_empty());
        }
        let live = CachedTree { id: self.survey.id.clone(), manifests: std::mem::take(&mut self.survey.manifests) };
        self.inner.store_manifests(&live)?;
        self.inner.cache().live = Some(live);
        Ok(())
    }

    /// The stages that stay in the index, as they are there.
    #[allow(clippy::type_complexity)]
    fn conflict_stages(&self, mount: usize) -> Result<Vec<(Vec<u8>, [Option<Leaf>; 3])>> {
        let unmerged = &self.survey.unmerged[mount];
        if unmerged.is_empty() {
            return Ok(Vec::new());
        }
        let tree = &self.survey.tree.mounts[mount];
        let index = super::gitindex::GitIndex::read(&tree.git, &tree.path.join(".git"))?;
        let mut stages: BTreeMap<Vec<u8>, [Option<Leaf>; 3]> = BTreeMap::new();
        for entry in index.entries().filter(|e| e.stage != 0 && unmerged.iter().any(|p| p == e.path)) {
            stages.entry(entry.path.to_vec()).or_default()[usize::from(entry.stage) - 1] = Some(entry.leaf);
        }
        Ok(stages.into_iter().collect())
    }
}
