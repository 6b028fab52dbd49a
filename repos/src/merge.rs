//! Three-way merges of trees.
//!
//! Renames are never followed: a file that one side moved and the other edited is a conflict. Lines are compared
//! with the histogram algorithm, as `git merge-tree -c diff.algorithm=histogram` does.

use crate::{Oid, RepoPath, Result, draft::Draft};

/// What to do where both sides changed the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeMode {
    /// Report the conflicts and make no tree.
    Refuse,
    /// Take our side of every conflict.
    Ours,
    /// Take their side of every conflict.
    Theirs,
    /// Make a tree with conflict markers in the files, and report the conflicts.
    Markers {
        /// What stands at the markers.
        labels: Labels,
    },
}

/// The words at conflict markers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// At `<<<<<<<`.
    pub ours: String,
    /// At `|||||||`.
    pub base: String,
    /// At `>>>>>>>`.
    pub theirs: String,
}

/// What a merge came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// The merged tree; `None` only under [`MergeMode::Refuse`] with conflicts.
    pub tree: Option<Oid>,
    /// Where both sides disagreed, by path. Under `Ours` and `Theirs`: what was decided that way.
    pub conflicts: Vec<Conflict>,
}

/// A path on which both sides disagreed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The path.
    pub path: RepoPath,
    /// How they disagreed.
    pub kind: ConflictKind,
}

/// How two sides can disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConflictKind {
    /// Both edited the same lines.
    Content,
    /// Both edited a file that cannot be merged by lines: binary, a symbolic link, too large.
    Binary,
    /// Both added the path, with different content.
    AddAdd,
    /// We edited what they deleted.
    ModifyDelete,
    /// We deleted what they edited.
    DeleteModify,
    /// Both changed the mode, differently.
    Mode,
    /// One has a directory where the other has a file.
    DirectoryFile,
    /// One has a file where the other has a symbolic link.
    Type,
}

impl Draft {
    /// Merges what `ours` and `theirs` changed since `base` (`None`: they have nothing in common).
    pub fn merge(&mut self, _base: Option<Oid>, _ours: Oid, _theirs: Oid, _mode: &MergeMode) -> Result<Merge> {
        todo!()
    }
}
