//! Differences between trees, and between files as patches.
//!
//! Subtrees that are equal are never opened, so comparing costs what differs. Renames are not detected: a rename is
//! a deletion and an addition, here as everywhere else in this project.

use crate::reader::{Mode, Reader};
use crate::{Oid, RepoPath, Result};

/// One file that differs. Directories are never listed, only what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub path: RepoPath,
    /// What it was; `None` if it is new.
    pub old: Option<(Mode, Oid)>,
    /// What it is; `None` if it is gone.
    pub new: Option<(Mode, Oid)>,
}

/// How [`Reader::patch`] writes.
#[derive(Debug, Clone)]
pub struct PatchOptions {
    /// Unchanged lines around each change.
    pub context: u32,
    /// Stop before the text grows beyond this.
    pub limit_bytes: usize,
    /// Files larger than this are treated as binary.
    pub max_file_bytes: u64,
    /// Only this file or directory.
    pub path: Option<RepoPath>,
}

impl Default for PatchOptions {
    fn default() -> Self {
        PatchOptions { context: 3, limit_bytes: 1 << 20, max_file_bytes: 4 << 20, path: None }
    }
}

/// A difference as text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patch {
    /// The text, which `git apply` takes (binary files are only noted). Not necessarily UTF-8.
    pub text: Vec<u8>,
    /// The limit was reached, files are missing at the end.
    pub truncated: bool,
    /// How many files differ, also those that are missing in the text.
    pub files: usize,
}

impl Reader {
    /// What differs between two trees, in the order of git's index. `None` stands for nothing at all.
    pub fn changes(&self, _old_tree: Option<Oid>, _new_tree: Oid) -> Result<Vec<Change>> {
        todo!()
    }

    /// The difference between two trees as a unified diff with git's headers.
    pub fn patch(&self, _old_tree: Option<Oid>, _new_tree: Oid, _options: &PatchOptions) -> Result<Patch> {
        todo!()
    }

    /// The difference between two texts as the hunks of a unified diff, without headers.
    pub fn hunks(_old: &[u8], _new: &[u8], _context: u32) -> Vec<u8> {
        todo!()
    }
}
