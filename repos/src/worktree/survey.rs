//! Looking at the live tree: what it is based on, what is local.

use super::error::{At, Result};
use super::gitdir::MountState;
use super::inner::{Held, Inner};
use super::manifest::Manifest;
use super::objects::harvest;
use super::tree::{Line, Tree};
use super::types::{Scan, Settled};
use super::watch::Paths;
use crate::{Reader, Store};

/// The live tree as it is now.
pub(crate) struct Survey {
    pub tree: Tree,
    pub id: String,
    pub states: Vec<MountState>,
    pub manifests: Vec<Manifest>,
    pub lines: Vec<Line>,
    /// Per mount, paths with conflict stages in the index.
    pub unmerged: Vec<Vec<Vec<u8>>>,
    pub readers: Vec<Reader>,
}

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// At every file, without changing anything on disk.
    Read,
    /// At every file, under the lock: objects of plain git are collected into the stores.
    Write,
    /// Like `Write`, but only at the files that the watch tells to have been touched, if it can tell.
    Watched,
}

impl From<Scan> for Look {
    fn from(scan: Scan) -> Look {
        match scan {
            Scan::Full => Look::Write,
            Scan::Watched => Look::Watched,
        }
    }
}

/// The manifests are about the commits that the mounts are based on.
pub(crate) fn fits(manifests: &[Manifest], states: &[MountState]) -> bool {
    let commits = states.iter().map(|s| s.base.as_ref().map(|b| b.commit));
    manifests.len() == states.len() && manifests.iter().zip(commits).all(|(m, commit)| m.commit == commit)
}

impl Inner {
    pub(crate) fn survey(&self, look: Look) -> Result<Survey> {
        let tree = self.live()?;
        let id = tree.id()?.unwrap_or_default();
        let states = self.states(&tree)?;
        let cached = self.cache().live.clone();
        let mut manifests = self.remembered(&tree, &states, cached.as_ref())?;
        let touched = self.touched(&tree, &id, look, cached.is_some_and(|c| c.id == id && fits(&c.manifests, &states)));
        let (mut lines, mut unmerged, mut readers) = (Vec::new(), Vec::new(), Vec::new());
        for (i, mount) in tree.mounts.iter().enumerate() {
            let reader = self.reader(i, &tree, look)?;
            let line = mount.line(&reader, states[i].base.as_ref().map(|b| b.commit))?;
            unmerged.push(mount.read_staged(&mut manifests[i], &line)?);
            let staged: std::collections::HashSet<&[u8]> = manifests[i].staged.iter().map(|s| &*s.path).collect();
            let looked = mount.look(&manifests[i], touched.as_ref().map(|t| &t[i]), &|path| {
                staged.contains(path) || line.diff.contains_key(path)
            })?;
            drop(staged);
            manifests[i] = looked;
            lines.push(line);
            readers.push(reader);
        }
        if look != Look::Read {
            self.cache().live = Some(Held { id: id.clone(), manifests: manifests.clone() });
            self.looked(&tree, &id);
        }
        Ok(Survey { tree, id, states, manifests, lines, unmerged, readers })
    }

    /// What has to be looked at, mount by mount; `None`: everything.
    pub(crate) fn touched(&self, tree: &Tree, id: &str, look: Look, remembered: bool) -> Option<Vec<Paths>> {
        if look == Look::Read {
            return None;
        }
        let touched = self.watch.get()?.begin(tree, id)?;
        if look == Look::Watched && remembered { tree.by_mount(touched) } else { None }
    }

    /// Both trees are watched, what was touched in them is known, and so is where they differ. Under the lock.
    pub(crate) fn tend(&self, look: Look) -> Result<Settled> {
        if let Some(watch) = self.watch.get() {
            watch.arm(&self.live()?);
            if let Ok(spare) = Tree::open(&self.spare_path(), self.mounts()) {
                watch.arm(&spare);
            }
        }
        let settled = self.sweep_spare(look)?;
        self.survey(look)?;
        self.compare_trees();
        Ok(settled)
    }

    /// The watch is told that `tree` was looked at, and that what it holds is remembered.
    pub(crate) fn looked(&self, tree: &Tree, id: &str) {
        if let Some(watch) = self.watch.get() {
            watch.done(tree, id);
        }
    }

    fn reader(&self, mount: usize, tree: &Tree, look: Look) -> Result<Reader> {
        if look != Look::Read {
            harvest(&tree.mounts[mount].git, &self.stores[mount])?;
            super::fault::point("stage.harvested");
            return Ok(self.stores[mount].reader()?);
        }
        // The tree's own directory borrows from the store, so it sees both.
        let objects = tree.mounts[mount].path.join(".git/objects");
        let own = std::fs::read_dir(&objects).at("list", &objects)?.flatten().any(|e| e.file_name().len() == 2)
            || std::fs::read_dir(objects.join("pack")).is_ok_and(|mut d| d.next().is_some());
        let store = if own { Store::open_objects(&objects)? } else { self.stores[mount].clone() };
        Ok(store.reader()?)
    }
}
