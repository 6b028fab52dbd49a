//! Looking at the live tree: what it is based on, what is local.

use super::error::{At, Result};
use super::gitdir::MountState;
use super::inner::{Held, Inner};
use super::manifest::Manifest;
use super::objects::harvest;
use super::tree::{Line, Tree};
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
    /// At nothing but `.git`, if this process remembers the rest. Under the lock.
    Trust,
}

impl Inner {
    pub(crate) fn survey(&self, look: Look) -> Result<Survey> {
        let tree = self.live()?;
        let id = tree.id()?.unwrap_or_default();
        let states = self.states(&tree)?;
        let cached = self.cache().live.clone();
        let trusted = look == Look::Trust && cached.as_ref().is_some_and(|c| c.id == id);
        let mut manifests = self.remembered(&tree, &states, cached.as_ref())?;
        let (mut lines, mut unmerged, mut readers) = (Vec::new(), Vec::new(), Vec::new());
        for (i, mount) in tree.mounts.iter().enumerate() {
            let reader = self.reader(i, &tree, look)?;
            let line = mount.line(&reader, states[i].base.as_ref().map(|b| b.commit))?;
            unmerged.push(mount.read_staged(&mut manifests[i], &line)?);
            if !trusted {
                let staged: std::collections::HashSet<&[u8]> = manifests[i].staged.iter().map(|s| &*s.path).collect();
                let looked =
                    mount.look(&manifests[i], &|path| staged.contains(path) || line.diff.contains_key(path))?;
                drop(staged);
                manifests[i] = looked;
            }
            lines.push(line);
            readers.push(reader);
        }
        if look != Look::Read {
            self.cache().live = Some(Held { id: id.clone(), manifests: manifests.clone() });
        }
        Ok(Survey { tree, id, states, manifests, lines, unmerged, readers })
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
