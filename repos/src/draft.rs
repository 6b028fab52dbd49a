//! Building objects in memory.
//!
//! A [`Draft`] stands on a store and sees its objects and its own. Several commits can be chained in one draft;
//! nothing is written until [`Draft::into_pack`] hands out exactly the new objects, so a draft that is dropped
//! leaves no trace.

use bytes::Bytes;

use crate::quarantine::{CheckError, TreeRules};
use crate::reader::{Mode, Reader, Signature};
use crate::{Error, Oid, RepoPath, Result, Store};

/// One edit of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeChange {
    /// Create or replace a file; directories on the way are made. A directory in its place is an error.
    Put {
        /// The file.
        path: RepoPath,
        /// `File`, `Exec` or `Symlink`. `None` keeps the mode of the file that is there, or makes a `File`.
        mode: Option<Mode>,
        /// What is in it; for a symbolic link, its target.
        content: Content,
    },
    /// Remove a file, or a directory with all that is in it.
    Delete {
        /// What to remove; it must exist.
        path: RepoPath,
    },
    /// Move a file or a directory. The target must not exist.
    Rename {
        /// Where it is.
        from: RepoPath,
        /// Where it goes.
        to: RepoPath,
    },
    /// Change the mode of a file and keep its content.
    Chmod {
        /// The file.
        path: RepoPath,
        /// `File` or `Exec`.
        mode: Mode,
    },
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// A blob that the draft can see.
    Blob(Oid),
}

/// A commit to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCommit {
    /// The root tree.
    pub tree: Oid,
    /// The parents, the first one first.
    pub parents: Vec<Oid>,
    /// Who made the change.
    pub author: Signature,
    /// Who makes the commit.
    pub committer: Signature,
    /// The message; a newline is added at its end if it has none.
    pub message: String,
}

/// Why a change could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The change does not fit the tree.
    #[error("{path}: {problem}")]
    Change {
        /// The path that the change names.
        path: RepoPath,
        /// What is wrong.
        problem: ApplyProblem,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// What can be wrong with a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyProblem {
    /// Nothing is there to delete, rename or change.
    #[error("there is no such file or directory")]
    NotFound,
    /// A file was expected.
    #[error("is a directory")]
    IsADirectory,
    /// A directory on the way is a file.
    #[error("{0} is a file, not a directory")]
    NotADirectory(RepoPath),
    /// The target of a rename exists.
    #[error("exists already")]
    Exists,
    /// A directory cannot be moved into itself.
    #[error("cannot be moved into itself")]
    IntoItself,
    /// A file cannot have this mode.
    #[error("mode {0} is not for files")]
    Mode(Mode),
    /// The blob that the change names is not here.
    #[error("blob {0} is missing")]
    MissingBlob(Oid),
}

/// Objects in memory on top of a store. Dereferences to a [`Reader`] that sees them.
pub struct Draft {
    reader: Reader,
}

impl std::ops::Deref for Draft {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Draft {
    /// An empty draft on a store.
    pub fn new(_store: &Store) -> Result<Draft> {
        todo!()
    }

    /// An empty draft on what a reader sees (a quarantine's, for instance).
    pub fn over(reader: Reader) -> Draft {
        Draft { reader }
    }

    /// Stores a blob.
    pub fn write_blob(&mut self, _data: &[u8]) -> Result<Oid> {
        todo!()
    }

    /// Applies the changes one after the other and answers the new tree. `tree` may be [`Oid::EMPTY_TREE`].
    /// If one does not fit, none is applied.
    pub fn apply(&mut self, _tree: Oid, _changes: &[TreeChange]) -> Result<Oid, ApplyError> {
        todo!()
    }

    /// Makes a commit.
    pub fn commit(&mut self, _commit: &NewCommit) -> Result<Oid> {
        todo!()
    }

    /// Checks everything in `tree` that is not in `base` against the rules that pushed trees are checked against.
    pub fn check_tree(&self, _base: Option<Oid>, _tree: Oid, _rules: &TreeRules) -> Result<(), CheckError> {
        todo!()
    }

    /// A self-contained pack of exactly the objects that the draft made and the store did not have.
    /// `None` if there are none. Objects that no commit came to use are in it as well.
    pub fn into_pack(self) -> Result<Option<Vec<u8>>> {
        todo!()
    }

    /// Like [`Draft::into_pack`], but only what `tips` reach, and without consuming the draft: candidates that were
    /// refused leave nothing behind.
    pub fn pack_of(&self, _tips: &[Oid]) -> Result<Option<Vec<u8>>> {
        todo!()
    }
}
