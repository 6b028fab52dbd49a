//! One of the two trees, opened, and what is found when looking at it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{At, Result, WorktreeError};
use super::fsx::{self, DirCursor, Kind, open_dir, open_dir_at};
use super::gitdir;
use super::gitindex::GitIndex;
use super::manifest::{Entry, Held, Leaf, Manifest, PathKey, Staged};
use super::objects::blob_oid;
use super::scan::{Scanned, scan, scan_touched};
use super::types::Mount;
use super::watch::Paths;
use crate::{Oid, Reader};

/// Descriptors into one tree. They stay in it when the trees change places.
#[derive(Clone)]
pub(crate) struct Tree {
    pub path: PathBuf,
    pub mounts: Vec<TreeMount>,
}

#[derive(Clone)]
pub(crate) struct TreeMount {
    pub dir: Arc<OwnedFd>,
    pub git: Arc<OwnedFd>,
    /// For messages.
    pub path: PathBuf,
    /// Its directory below the root; empty for the outer one.
    pub at: Vec<u8>,
    /// Names directly below `dir` that are not part of this repository.
    pub skip: Vec<Vec<u8>>,
}

impl Tree {
    pub(crate) fn open(path: &Path, mounts: &[Mount]) -> Result<Tree> {
        let root = Arc::new(open_dir(path).at("open", path)?);
        let nested: Vec<Vec<u8>> =
            mounts.iter().filter(|m| !m.at.is_empty()).map(|m| m.at.clone().into_bytes()).collect();
        let mut opened = Vec::new();
        for mount in mounts {
            let mount_path = path.join(&mount.at);
            let (dir, skip) = if mount.at.is_empty() {
                let skip = nested.iter().cloned().chain([b".git".to_vec()]).collect();
                (Arc::clone(&root), skip)
            } else {
                (Arc::new(open_dir_at(&root, mount.at.as_bytes()).at("open", &mount_path)?), vec![b".git".to_vec()])
            };
            let git = Arc::new(open_dir_at(&dir, b".git").at("open", &mount_path.join(".git"))?);
            opened.push(TreeMount { dir, git, path: mount_path, at: mount.at.clone().into_bytes(), skip });
        }
        Ok(Tree { path: path.to_owned(), mounts: opened })
    }

    /// Paths of the tree, mount by mount. `None` if a mount as a whole may have been replaced.
    pub(crate) fn by_mount(&self, touched: Paths) -> Option<Vec<Paths>> {
        let mut mounts = vec![Paths::new(); self.mounts.len()];
        for (path, depth) in touched {
            let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
            let nested = self.mounts.iter().skip(1).position(|mount| mount.at == first).map(|i| i + 1);
            match nested {
                Some(_) if first == path.as_slice() => return None,
                Some(i) => {
                    let inside = path[first.len() + 1..].to_vec();
                    if !self.mounts[i].is_skipped(&inside) {
                        mounts[i].insert(inside, depth);
                    }
                }
                None if self.mounts[0].is_skipped(&path) => {}
                None => drop(mounts[0].insert(path, depth)),
            }
        }
        Some(mounts)
    }

    /// The tree's id, kept in the outer repository.
    pub(crate) fn id(&self) -> Result<Option<String>> {
        gitdir::read_tree_id(&self.mounts[0].git).at("read", &self.path.join(".git/eccfg/tree"))
    }
}

impl TreeMount {
    fn is_skipped(&self, path: &[u8]) -> bool {
        self.skip.iter().any(|name| fsx::is_at_or_below(path, name))
    }

    pub(crate) fn cursor(&self) -> DirCursor {
        DirCursor::new(Arc::clone(&self.dir))
    }

    /// Compares the files with `manifest` and answers what is there now. Contents of files that git versions
    /// (`versioned`, or with a base) are hashed if their signature changed.
    pub(crate) fn look(
        &self,
        manifest: &Manifest,
        touched: Option<&Paths>,
        versioned: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Manifest> {
        Ok(self.look_diffs(manifest, touched, versioned)?.0)
    }

    /// Like [`look`](Self::look), and which paths (and directories) were found to differ from `manifest`. With `touched`, only
    /// these are looked at, and the manifest is right about the rest.
    pub(crate) fn look_diffs(
        &self,
        manifest: &Manifest,
        touched: Option<&Paths>,
        versioned: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(Manifest, Vec<PathKey>)> {
        if touched.is_some_and(Paths::is_empty) {
            return Ok((manifest.clone(), Vec::new()));
        }
        // What was young when everything was looked at is still to be mistrusted when only a part is.
        let taken_ns = if touched.is_some() { manifest.taken_ns } else { fsx::now_ns() };
        let scanned = match touched {
            Some(touched) => scan_touched(&self.dir, manifest, touched),
            None => scan(&self.dir, manifest, &self.skip),
        };
        let Scanned { diffs, dirs } = scanned.at("scan", &self.path)?;
        let mut cursor = self.cursor();
        let mut changes = Vec::with_capacity(diffs.len());
        let paths = diffs.iter().map(|d| PathKey::clone(&d.path)).collect();
        for diff in diffs {
            let known = manifest.get(&diff.path);
            let base = known.and_then(|e| e.base);
            let held = match diff.found {
                None => None,
                Some(sig) if sig.kind() == Kind::Special => Some(Held { sig, oid: None, shared: false }),
                Some(sig) if base.is_none() && !versioned(&diff.path) => {
                    let shared = known.and_then(|e| e.held).is_some_and(|h| h.shared && h.sig.ino == sig.ino);
                    Some(Held { sig, oid: None, shared })
                }
                Some(_) => hash(&mut cursor, &diff.path)
                    .at("read", &self.path.join(crate::RepoPath::from_tree(diff.path.to_vec()).as_path()))?,
            };
            changes.push(Entry { path: diff.path, base, held });
        }
        let mut now = Manifest {
            commit: manifest.commit,
            taken_ns,
            dirs: if *manifest.dirs == dirs { Arc::clone(&manifest.dirs) } else { Arc::new(dirs) },
            index_sig: manifest.index_sig,
            ..Manifest::default()
        };
        now.staged.clone_from(&manifest.staged);
        now.entries.clone_from(&manifest.entries);
        // Told to have been touched, by ourselves perhaps, and as it was: the list stays the very same.
        changes.retain(|change| manifest.get(&change.path) != Some(change));
        now.patch(changes);
        Ok((now, paths))
    }

    /// What is staged against the commit that HEAD names, re-read only if the index file changed. The second value
    /// lists unmerged paths.
    pub(crate) fn read_staged(&self, manifest: &mut Manifest, line: &Line) -> Result<Vec<Vec<u8>>> {
        let sig = fsx::try_lstat_at(&self.git, b"index").at("read", &self.path.join(".git/index"))?;
        // Git writes another file and renames it, so that an index which was written at the same time is another inode.
        if sig.is_some() && sig == manifest.index_sig && line.unchanged {
            return Ok(Vec::new());
        }
        let index = GitIndex::read(&self.git, &self.path.join(".git"))?;
        manifest.staged = staged(&index, manifest, line);
        let unmerged = index.unmerged();
        // Unmerged entries are re-read every time.
        manifest.index_sig = if unmerged.is_empty() { index.sig } else { None };
        Ok(unmerged)
    }

    /// The branch `main` against the base.
    pub(crate) fn line(&self, reader: &Reader, base: Option<Oid>) -> Result<Line> {
        let main = gitdir::read_ref(&self.git, gitdir::MAIN).at("read", &self.path.join(".git/refs/heads/main"))?;
        let Some(main) = main.filter(|main| Some(*main) != base) else {
            return Ok(Line { main: base, unchanged: true, ..Line::default() });
        };
        let old = base.map(|commit| reader.tree_of(commit)).transpose()?;
        let diff = reader.changes(old, reader.tree_of(main)?)?;
        let diff = diff.into_iter().map(|c| (c.path.as_bytes().into(), leaf_of(c.new))).collect();
        Ok(Line { main: Some(main), diff, ..Line::default() })
    }

    /// Refuses anything but `main`.
    pub(crate) fn require_main(&self) -> Result<()> {
        match gitdir::head(&self.git).at("read", &self.path.join(".git/HEAD"))? {
            Ok(name) if name == gitdir::MAIN => Ok(()),
            Ok(name) => Err(WorktreeError::NotOnMain { path: self.path.clone(), head: name }),
            Err(text) => Err(WorktreeError::NotOnMain { path: self.path.clone(), head: text }),
        }
    }

    pub(crate) fn state(&self) -> Result<gitdir::MountState> {
        let path = self.path.join(".git/eccfg/state");
        gitdir::read_state(&self.git).at("read", &path)?.map_err(|reason| WorktreeError::Damaged { path, reason })
    }
}

pub(crate) fn leaf_of(side: Option<(crate::Mode, Oid)>) -> Option<Leaf> {
    side.map(|(mode, oid)| Leaf { mode, oid })
}

/// Hashes a file; `None` if it is gone by now.
pub(crate) fn hash(cursor: &mut DirCursor, path: &[u8]) -> io::Result<Option<Held>> {
    let (dir, name) = match cursor.parent(path) {
        Ok(found) => found,
        Err(err) if fsx::absent(&err) => return Ok(None),
        Err(err) => return Err(err),
    };
    match fsx::read_content_at(dir, name) {
        Ok((sig, data)) => Ok(Some(Held { sig, oid: Some(blob_oid(&data)), shared: false })),
        Err(err) if fsx::absent(&err) => Ok(None),
        Err(err) if err.kind() == io::ErrorKind::InvalidInput => match fsx::try_lstat_at(dir, name)? {
            Some(sig) if sig.kind() == Kind::Special => Ok(Some(Held { sig, oid: None, shared: false })),
            _ => Ok(None),
        },
        Err(err) => Err(err),
    }
}

/// What the local branch `main` has beyond the base.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line {
    /// Its commit; the base if there is nothing local.
    pub main: Option<Oid>,
    /// Paths where its tree differs from the base's.
    pub diff: BTreeMap<PathKey, Option<Leaf>>,
    /// True if `main` is the base.
    pub unchanged: bool,
}

impl Line {
    /// What HEAD has at `path`.
    pub(crate) fn head(&self, manifest: &Manifest, path: &[u8]) -> Option<Leaf> {
        match self.diff.get(path) {
            Some(leaf) => *leaf,
            None => manifest.base(path),
        }
    }
}

fn staged(index: &GitIndex, manifest: &Manifest, line: &Line) -> Vec<Staged> {
    let mut out = Vec::new();
    let mut bases = manifest.entries.iter().filter(|e| e.base.is_some()).peekable();
    let missing = |path: &PathKey, out: &mut Vec<Staged>, base: Option<Leaf>| {
        let head = line.diff.get(path).copied().unwrap_or(base);
        if head.is_some() {
            out.push(Staged { path: PathKey::clone(path), leaf: None, intent_to_add: false });
        }
    };
    for entry in index.entries().filter(|e| e.stage == 0 || e.stage == 2) {
        while let Some(gone) = bases.next_if(|b| *b.path < *entry.path) {
            missing(&gone.path, &mut out, gone.base);
        }
        let base = bases.next_if(|b| *b.path == *entry.path);
        if entry.stage != 0 {
            continue;
        }
        let head = line.diff.get(entry.path).copied().unwrap_or(base.and_then(|b| b.base));
        if head != Some(entry.leaf) {
            let path = base.map_or_else(|| entry.path.into(), |b| PathKey::clone(&b.path));
            out.push(Staged { path, leaf: Some(entry.leaf), intent_to_add: entry.intent_to_add });
        }
    }
    for gone in bases {
        missing(&gone.path, &mut out, gone.base);
    }
    // Added by a local commit, and gone from the index.
    for (path, leaf) in &line.diff {
        let known = leaf.is_none() || manifest.base(path).is_some() || out.iter().any(|s| s.path == *path);
        if !known && !index.entries().any(|e| *e.path == **path) {
            out.push(Staged { path: PathKey::clone(path), leaf: None, intent_to_add: false });
        }
    }
    let unmerged = index.unmerged();
    out.retain(|s| s.leaf.is_some() || !unmerged.iter().any(|u| **u == *s.path));
    out.sort_by(|a, b| a.path.cmp(&b.path));
    out
}
