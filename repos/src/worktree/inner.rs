//! What an opened working copy knows and remembers.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{At, Result, WorktreeError};
use super::fsx;
use super::gitdir::{self, MountState};
use super::lock::Lock;
use super::manifest::Manifest;
use super::saved::Saved;
use super::tree::{Tree, TreeMount, leaf_of};
use super::twins::Twin;
use super::types::{Mount, Ownership};
use super::watch::Watch;
use crate::{RepoPath, Store};

pub(crate) struct Inner {
    pub root: PathBuf,
    pub parent_fd: OwnedFd,
    /// The last component of `root`.
    pub name: Vec<u8>,
    pub state_dir: PathBuf,
    pub state_fd: OwnedFd,
    pub settings: Settings,
    pub stores: Vec<Store>,
    pub cache: Mutex<Cache>,
    /// For programs that stay.
    pub watch: OnceLock<Watch>,
}

/// `copy.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub version: u32,
    /// The outer one first.
    pub mounts: Vec<Mount>,
    pub ownership: Ownership,
}

/// The version of `copy.json` and of the layout that it stands for.
pub(crate) const VERSION: u32 = 1;

/// Refuses what a newer build wrote, before anything else in it is looked at.
fn read_settings(file: &Path, bytes: &[u8]) -> Result<Settings> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let damaged = |err: serde_json::Error| WorktreeError::Damaged { path: file.to_owned(), reason: err.to_string() };
    match serde_json::from_slice(bytes).map_err(damaged)? {
        Version { version: VERSION } => serde_json::from_slice(bytes).map_err(damaged),
        Version { version } => Err(WorktreeError::Version { path: file.to_owned(), version }),
    }
}

/// What the trees held when they were last looked at, by their ids.
#[derive(Default)]
pub(crate) struct Cache {
    pub live: Option<Held>,
    pub spare: Option<Held>,
    /// What the two have in common, mount by mount; `None` if nobody compared them, or they differ too much.
    pub twins: Option<Vec<Twin>>,
}

#[derive(Clone)]
pub(crate) struct Held {
    pub id: String,
    /// Per mount.
    pub manifests: Vec<Manifest>,
}

pub(crate) const SPARE: &str = "spare";
/// Outlives the tree: a working copy that is made anew in its place takes it over.
pub(crate) const SAVED: &str = "saved";

/// `.<name>.eccfg`.
pub(crate) fn state_name(name: &[u8]) -> Vec<u8> {
    [b".", name, b".eccfg"].concat()
}

/// The parent directory, without links, and the name of a root.
pub(crate) fn locate(root: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let absolute = std::path::absolute(root).at("find", root)?;
    // `..` and `.` at the end have no name; what they lead to has.
    let absolute = match absolute.components().next_back() {
        Some(std::path::Component::Normal(_)) => absolute,
        _ => absolute.canonicalize().at("find", root)?,
    };
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(WorktreeError::CannotExchange {
            path: root.to_owned(),
            reason: "it is the root directory".into(),
            hint: "choose a directory below another one".into(),
        });
    };
    Ok((parent.canonicalize().at("find", parent)?, name.as_bytes().to_vec()))
}

pub(crate) fn path_of(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(std::ffi::OsString::from_vec(name.to_vec()))
}

/// True if there is no such directory, or nothing in it.
pub(crate) fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

impl Inner {
    /// Opens what is there, without repairing anything.
    pub(crate) fn open(root: &Path) -> Result<Inner> {
        let (parent, name) = locate(root)?;
        let root = path_of(&parent, &name);
        let state_dir = path_of(&parent, &state_name(&name));
        let file = state_dir.join("copy.json");
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(err) if fsx::absent(&err) => return Err(WorktreeError::NotAWorkingCopy(root)),
            Err(err) => return Err(err).at("read", &file),
        };
        if !gitdir::exists(&root.join(".git")) {
            // Its making was interrupted before the tree was in place, or somebody has removed the tree.
            return Err(WorktreeError::NotAWorkingCopy(root));
        }
        let settings = read_settings(&file, &bytes)?;
        let stores = settings
            .mounts
            .iter()
            .map(|m| Ok(Store::open(&store_path(&state_dir, &m.name))?))
            .collect::<Result<_>>()?;
        Ok(Inner {
            parent_fd: fsx::open_dir(&parent).at("open", &parent)?,
            state_fd: fsx::open_dir(&state_dir).at("open", &state_dir)?,
            root,
            name,
            state_dir,
            settings,
            stores,
            cache: Mutex::default(),
            watch: OnceLock::new(),
        })
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock(&self, wait: Duration) -> Result<Lock> {
        Lock::acquire(&self.state_dir.join("lock"), &self.root, wait)
    }

    pub(crate) fn try_lock(&self) -> Result<Option<Lock>> {
        Lock::try_acquire(&self.state_dir.join("lock"))
    }

    pub(crate) fn mounts(&self) -> &[Mount] {
        &self.settings.mounts
    }

    pub(crate) fn mount_index(&self, name: &str) -> Result<usize> {
        self.mounts().iter().position(|m| m.name == name).ok_or_else(|| WorktreeError::NoSuchMount(name.into()))
    }

    pub(crate) fn live(&self) -> Result<Tree> {
        Tree::open(&self.root, self.mounts())
    }

    pub(crate) fn spare_path(&self) -> PathBuf {
        self.state_dir.join(SPARE)
    }

    pub(crate) fn saved_dir(&self) -> PathBuf {
        self.state_dir.join(SAVED)
    }

    pub(crate) fn with_saved<T>(&self, work: impl FnOnce(Saved<'_>) -> T) -> T {
        work(Saved { dir: &self.saved_dir() })
    }

    /// A path inside a mount, relative to the root.
    pub(crate) fn full_path(&self, mount: usize, path: &[u8]) -> RepoPath {
        let at = self.mounts()[mount].at.as_bytes();
        RepoPath::from_tree(crate::path::join_bytes(at, path))
    }

    fn manifest_name(id: &str, mount: usize) -> String {
        format!("manifest-{id}-{mount}")
    }

    /// What `tree` held when it was last looked at: from memory, from the cache file, or, if neither fits, nothing
    /// but the base, so that the next look reads every file.
    pub(crate) fn remembered(
        &self,
        tree: &Tree,
        states: &[MountState],
        cached: Option<&Held>,
    ) -> Result<Vec<Manifest>> {
        let id = tree.id()?.unwrap_or_default();
        let mut manifests = Vec::with_capacity(tree.mounts.len());
        for (i, state) in states.iter().enumerate() {
            let commit = state.base.as_ref().map(|b| b.commit);
            let fits = |m: &Manifest| m.commit == commit;
            let known = match cached.filter(|c| c.id == id).and_then(|c| c.manifests.get(i)).filter(|m| fits(m)) {
                Some(manifest) => Some(manifest.clone()),
                None => self.load_manifest(&id, i)?.filter(fits),
            };
            manifests.push(match known {
                Some(manifest) => manifest,
                None => self.blank(i, commit)?,
            });
        }
        Ok(manifests)
    }

    pub(crate) fn load_manifest(&self, id: &str, mount: usize) -> Result<Option<Manifest>> {
        Ok(self.manifest_bytes(id, mount)?.and_then(|bytes| Manifest::from_bytes(&bytes)))
    }

    /// The cache files of a tree, from this run of the machine or an earlier one; `None` unless all are whole.
    pub(crate) fn old_manifests(&self, id: &str) -> Result<Option<Vec<Manifest>>> {
        let mut manifests = Vec::new();
        for i in 0..self.mounts().len() {
            manifests.push(self.manifest_bytes(id, i)?.and_then(|bytes| Manifest::decode(&bytes)).map(|(_, m)| m));
        }
        Ok(manifests.into_iter().collect())
    }

    fn manifest_bytes(&self, id: &str, mount: usize) -> Result<Option<Vec<u8>>> {
        if id.is_empty() {
            return Ok(None);
        }
        let name = Self::manifest_name(id, mount);
        match fsx::try_read_at(&self.state_fd, name.as_bytes()) {
            // Somebody else's working copy can be looked at as well, only more slowly.
            Err(err) if err.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
            other => other.at("read", &self.state_dir.join(&name)),
        }
    }

    fn blank(&self, mount: usize, commit: Option<crate::Oid>) -> Result<Manifest> {
        let mut manifest = Manifest { commit, ..Manifest::default() };
        if let Some(commit) = commit {
            let reader = self.stores[mount].reader()?;
            let changes = reader.changes(None, reader.tree_of(commit)?)?;
            let mut entries: Vec<_> = changes
                .into_iter()
                .map(|c| super::manifest::Entry { path: c.path.as_bytes().into(), base: leaf_of(c.new), held: None })
                .collect();
            entries.sort_by(|a, b| a.path.cmp(&b.path));
            manifest.entries = std::sync::Arc::new(entries);
        }
        Ok(manifest)
    }

    /// Writes the cache files of a tree. Not synced: a damaged one is noticed and rebuilt.
    pub(crate) fn store_manifests(&self, held: &Held) -> Result<()> {
        for (i, manifest) in held.manifests.iter().enumerate() {
            let name = Self::manifest_name(&held.id, i);
            let path = self.state_dir.join(&name);
            fsx::write_atomic_at(&self.state_fd, name.as_bytes(), &manifest.to_bytes(), 0o600, false)
                .at("write", &path)?;
        }
        Ok(())
    }

    /// Removes cache files of trees that do not exist any more, and temporary files of dead processes.
    pub(crate) fn prune_manifests(&self, keep: &[&str]) -> Result<()> {
        for (name, _) in fsx::list(&self.state_fd).at("list", &self.state_dir)? {
            let stale = name.starts_with(b"manifest-")
                && !keep.iter().any(|id| name.starts_with(format!("manifest-{id}-").as_bytes()));
            if stale || name.starts_with(b".eccfg-tmp-") {
                fsx::remove_all_at(&self.state_fd, &name).at("remove", &self.state_dir)?;
            }
        }
        Ok(())
    }

    pub(crate) fn states(&self, tree: &Tree) -> Result<Vec<MountState>> {
        tree.mounts.iter().map(TreeMount::state).collect()
    }
}

pub(crate) fn store_path(state_dir: &Path, repo: &str) -> PathBuf {
    state_dir.join("objects").join(format!("{repo}.git"))
}
