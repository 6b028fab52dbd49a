//! One repository on disk.
//!
//! A store is a bare git repository whose objects live in packs. Packs are only ever added, or replaced by one that
//! has the same objects, so readers never wait. Installing a pack twice is harmless, which makes applying a log
//! entry again harmless. Nothing is synced to disk when it is installed: the log is the durable copy until
//! [`Store::sync`] has returned.

use std::path::{Path, PathBuf};

use crate::oid::PackId;
use crate::quarantine::Quarantine;
use crate::reader::Reader;
use crate::{Oid, RefMap, RefName, Result};

/// One repository on disk. Clones share it; all threads may use it at once.
#[derive(Clone)]
pub struct Store {
    _todo: (),
}

/// When and how packs are merged.
#[derive(Debug, Clone)]
pub struct ConsolidateOptions {
    /// Do nothing below so many packs.
    pub min_packs: usize,
    /// A pack is left alone if it has at least this many times the objects of all smaller ones together.
    pub factor: u32,
}

impl Default for ConsolidateOptions {
    fn default() -> Self {
        ConsolidateOptions { min_packs: 50, factor: 2 }
    }
}

/// What consolidating did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Consolidated {
    /// Packs before.
    pub packs_before: usize,
    /// Packs after.
    pub packs_after: usize,
    /// Objects in the new pack, if one was written.
    pub objects: u32,
    /// Its size.
    pub bytes: u64,
}

/// Something wrong in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub id: Oid,
    /// What is wrong with it.
    pub kind: ProblemKind,
    /// The commit, tree or tag that refers to it, if it is not a tip.
    pub referrer: Option<Oid>,
}

/// What can be wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProblemKind {
    /// It is not there.
    Missing,
    /// It does not decode, or its content does not have its name.
    Damaged(String),
}

impl Store {
    /// Makes an empty repository. An existing one is opened.
    pub fn init(_path: &Path) -> Result<Store> {
        todo!()
    }

    /// Opens a repository and removes what crashed writers left behind.
    pub fn open(_path: &Path) -> Result<Store> {
        todo!()
    }

    /// A store that is only an object directory: the shared one of working copies. It is created if it is missing.
    /// [`Store::project_refs`] does not work on it.
    pub fn open_objects(_objects_dir: &Path) -> Result<Store> {
        todo!()
    }

    /// The repository's directory (for [`Store::open_objects`], the object directory).
    pub fn path(&self) -> &Path {
        todo!()
    }

    /// The directory of its objects.
    pub fn objects_dir(&self) -> &Path {
        todo!()
    }

    /// A view for one thread.
    pub fn reader(&self) -> Result<Reader> {
        todo!()
    }

    /// A place to receive a pack in.
    pub fn quarantine(&self) -> Result<Quarantine> {
        todo!()
    }

    /// Installs a self-contained pack: checks and indexes it and makes it visible at once. Again is harmless. Not synced.
    pub fn install_pack(&self, _pack: &[u8]) -> Result<PackId> {
        todo!()
    }

    /// The same from a file, which is left where it is and never held in memory as a whole.
    pub fn install_pack_file(&self, _pack: &Path) -> Result<PackId> {
        todo!()
    }

    /// Writes every pack that was installed since the last time to the disk, for good.
    pub fn sync(&self) -> Result<()> {
        todo!()
    }

    /// Writes git's own references, so that plain `git` finds what the replicated state says. Each file is replaced atomically.
    pub fn project_refs(&self, _refs: &RefMap, _head: &RefName) -> Result<()> {
        todo!()
    }

    /// Merges small packs into a larger one. Readers and installers go on meanwhile.
    /// Nothing is dropped: `tips` only say what is to come first in the pack.
    pub fn consolidate(&self, _options: &ConsolidateOptions, _tips: &[Oid]) -> Result<Consolidated> {
        todo!()
    }

    /// Reads everything that `tips` reach. At most a thousand problems are listed.
    pub fn verify(&self, _tips: &[Oid]) -> Result<Vec<Problem>> {
        todo!()
    }

    /// The packs, for figures and for fetching what another replica has.
    pub fn packs(&self) -> Result<Vec<(PackId, PathBuf, u64)>> {
        todo!()
    }
}
