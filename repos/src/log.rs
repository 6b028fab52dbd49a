//! History: listing commits, ancestry, merge bases.

use crate::reader::{CommitInfo, Reader};
use crate::{Oid, RepoPath, Result};

/// What [`Reader::log`] lists.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Only commits that changed this file or directory, compared with each commit's first parent.
    pub path: Option<RepoPath>,
    /// At most so many.
    pub limit: usize,
    /// Pass over so many first.
    pub skip: usize,
    /// Follow first parents only.
    pub first_parent: bool,
    /// Leave out these commits and everything they descend from.
    pub hide: Vec<Oid>,
    /// Give up looking after so many commits: a path that never changed must not cost the whole history.
    pub max_visited: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { path: None, limit: 100, skip: 0, first_parent: false, hide: Vec::new(), max_visited: 1_000_000 }
    }
}

impl Reader {
    /// The commits that `from` descends from, itself first; newest first, a commit before its parents where times allow.
    pub fn log(&self, _from: Oid, _options: &LogOptions) -> Result<Vec<CommitInfo>> {
        todo!()
    }

    /// True if `ancestor` is `commit` or one of the commits it descends from.
    pub fn is_ancestor(&self, _ancestor: Oid, _commit: Oid) -> Result<bool> {
        todo!()
    }

    /// A best common ancestor, if the two have one.
    pub fn merge_base(&self, _a: Oid, _b: Oid) -> Result<Option<Oid>> {
        todo!()
    }
}
