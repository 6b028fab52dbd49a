//! Moving the base where no file differs.
//!
//! After `eccfg commit` the files already are what upstream has, and exchanging the directory under the user's feet
//! would be for nothing. The new index, references and state are written beside the tree, a journal entry names
//! them, and then they are renamed into place: after a crash the rest of the renames is done.

use super::error::{At, Result};
use super::fault;
use super::fsx;
use super::gitdir;
use super::inner::{Held as CachedTree, Inner};
use super::journal::Journal;
use super::manifest::{Entry, Manifest, PathKey};
use super::stage::{GitLocks, Prepared, encode_index, index_bytes, new_state, require_unchanged};
use super::sync::Written;
use crate::Oid;

pub(crate) const REDO: &str = "redo";

impl Prepared {
    /// Moves the metadata. The directory stays.
    pub(crate) fn flip(&mut self) -> Result<()> {
        let inner = std::sync::Arc::clone(&self.inner);
        let locks = GitLocks::take(&self.survey.tree, self.options.git_lock_wait)?;
        require_unchanged(self)?;
        let mut redo = Redo::new(&inner)?;
        let mut manifests = Vec::new();
        for (i, plan) in self.plans.iter().enumerate() {
            let manifest = rebase(&self.survey.manifests[i], plan);
            let prefix = mount_prefix(&inner, i);
            redo.add(format!("{prefix}.git/index"), &index_bytes(&manifest, plan))?;
            for (name, value) in [(gitdir::MAIN, plan.line.main), (gitdir::ORIGIN_MAIN, plan.commit())] {
                if let Some(value) = value {
                    redo.add(format!("{prefix}.git/{name}"), format!("{value}\n").as_bytes())?;
                }
            }
            redo.add(
                format!("{prefix}.git/eccfg/state"),
                &gitdir::encode_state(&new_state(plan, &self.survey.states[i])),
            )?;
            manifests.push(manifest);
        }
        let id = fsx::unique();
        redo.add(".git/eccfg/tree".into(), id.as_bytes())?;
        redo.commit()?;
        for (i, plan) in self.plans.iter().enumerate() {
            if plan.line.main.is_some() && plan.line.main != plan.old_main {
                let (old, new) = (plan.old_main.unwrap_or(Oid::NULL), plan.line.main.unwrap_or(Oid::NULL));
                let git = &self.survey.tree.mounts[i].git;
                gitdir::append_reflog(
                    git,
                    old,
                    new,
                    &self.options.reason,
                    &inner.settings.ownership,
                    &mut Written::default(),
                )
                .at("write", &inner.root.join(".git/logs"))?;
            }
        }
        drop(locks);
        if let Some(watch) = inner.watch.get() {
            watch.renamed(&self.survey.tree, &self.survey.id, &id);
        }
        let conflicts: Vec<bool> = self.plans.iter().map(|plan| !plan.conflicts.is_empty()).collect();
        inner.remember_live(id, manifests, &conflicts)
    }
}

/// The same files on another base.
fn rebase(live: &Manifest, plan: &super::plan::MountPlan) -> Manifest {
    let mut manifest =
        Manifest { commit: plan.commit(), taken_ns: live.taken_ns, dirs: live.dirs.clone(), ..Manifest::default() };
    manifest.staged.clone_from(&plan.staged);
    let entries = plan
        .files
        .iter()
        .map(|file| {
            let mut held = live.get(&file.path).and_then(|e| e.held);
            if let (Some(held), true) = (&mut held, file.base.is_some()) {
                held.shared = false;
            }
            Entry { path: PathKey::clone(&file.path), base: file.base, held }
        })
        .filter(|e| e.base.is_some() || e.held.is_some())
        .collect();
    manifest.entries = std::sync::Arc::new(entries);
    manifest
}

pub(crate) fn mount_prefix(inner: &Inner, mount: usize) -> String {
    match inner.mounts()[mount].at.as_str() {
        "" => String::new(),
        at => format!("{at}/"),
    }
}

/// Files that change together: written aside, named in the journal, renamed.
pub(crate) struct Redo<'a> {
    inner: &'a Inner,
    dir: std::os::fd::OwnedFd,
    files: Vec<String>,
}

impl<'a> Redo<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Result<Redo<'a>> {
        let path = inner.state_dir.join(REDO);
        fsx::remove_all_at(&inner.state_fd, REDO.as_bytes()).at("remove", &path)?;
        fsx::ensure_dir_at(&inner.state_fd, REDO.as_bytes(), 0o700).at("create", &path)?;
        let dir = fsx::open_dir_at(&inner.state_fd, REDO.as_bytes()).at("open", &path)?;
        Ok(Redo { inner, dir, files: Vec::new() })
    }

    /// `path` is relative to the root.
    pub(crate) fn add(&mut self, path: String, data: &[u8]) -> Result<()> {
        let name = self.files.len().to_string();
        let own = &self.inner.settings.ownership;
        let at = self.inner.state_dir.join(REDO).join(&name);
        fsx::write_atomic_at(&self.dir, name.as_bytes(), data, 0o666 & !own.umask, true).at("write", &at)?;
        gitdir::give(&self.dir, name.as_bytes(), own).at("set the owner of", &at)?;
        self.files.push(path);
        Ok(())
    }

    pub(crate) fn commit(self) -> Result<()> {
        fault::point("flip.prepared");
        let path = self.inner.state_dir.join("journal");
        let journal = self.inner.write_journal(&Journal::Flip { files: self.files.clone() })?;
        rustix::fs::fdatasync(journal).at("sync", &path)?;
        fault::point("flip.journal");
        self.inner.redo(&self.files)
    }
}

impl Inner {
    /// Renames what is still in `redo/` to where it belongs. Doing it twice is harmless.
    pub(crate) fn redo(&self, files: &[String]) -> Result<()> {
        for (i, target) in files.iter().enumerate() {
            let from = format!("{REDO}/{i}");
            let at = self.root.join(target);
            if fsx::try_lstat_at(&self.state_fd, from.as_bytes()).at("examine", &at)?.is_none() {
                continue;
            }
            if let Some(parent) = at.parent() {
                std::fs::create_dir_all(parent).at("create", parent)?;
            }
            std::fs::rename(self.state_dir.join(&from), &at).at("replace", &at)?;
            fault::point("flip.renamed");
        }
        self.clear_journal(false)?;
        fault::point("flip.journal-cleared");
        fsx::remove_all_at(&self.state_fd, REDO.as_bytes()).at("remove", &self.state_dir.join(REDO))
    }

    /// Notes what the live tree holds under its new id. The index signature is taken from the file as it is now; an index with
    /// `conflicts` is read every time.
    pub(crate) fn remember_live(&self, id: String, mut manifests: Vec<Manifest>, conflicts: &[bool]) -> Result<()> {
        for (i, manifest) in manifests.iter_mut().enumerate().filter(|(i, _)| !conflicts[*i]) {
            let path = self.root.join(&self.mounts()[i].at).join(".git/index");
            manifest.index_sig =
                fsx::try_lstat_at(&self.parent_fd, std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
                    .at("examine", &path)?;
        }
        let live = CachedTree { id, manifests };
        self.store_manifests(&live)?;
        let spare = Tree::open_id(self);
        self.prune_manifests(&[&live.id, spare.as_deref().unwrap_or("none")])?;
        self.cache().live = Some(live);
        Ok(())
    }

    /// The index of the live tree without conflicts, for operations that change it in place.
    pub(crate) fn plain_index(
        manifest: &Manifest,
        line: &super::tree::Line,
        conflicts: &[(Vec<u8>, [Option<super::manifest::Leaf>; 3])],
    ) -> Vec<u8> {
        let mut overlay: std::collections::BTreeMap<PathKey, (Option<super::manifest::Leaf>, bool)> =
            line.diff.iter().map(|(p, leaf)| (PathKey::clone(p), (*leaf, false))).collect();
        overlay.extend(manifest.staged.iter().map(|s| (PathKey::clone(&s.path), (s.leaf, s.intent_to_add))));
        encode_index(manifest, &overlay, conflicts)
    }
}

use super::tree::Tree;

impl Tree {
    /// The id of the spare tree, if there is one.
    fn open_id(inner: &Inner) -> Option<String> {
        Tree::open(&inner.spare_path(), inner.mounts()).ok()?.id().ok().flatten()
    }
}
