//! What can go wrong with a working copy, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Oid, RepoPath};

/// An operation on a working copy that failed. Unless a variant says otherwise, nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum WorktreeError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "write".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No working copy here, nor in any directory above.
    #[error("{} is not in a working copy", .0.display())]
    NotAWorkingCopy(PathBuf),
    /// `create` found a working copy.
    #[error("{} is a working copy already", .0.display())]
    AlreadyExists(PathBuf),
    /// `create` found something else.
    #[error("{} exists and is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The directory cannot be exchanged with one beside it.
    #[error("{} cannot be exchanged atomically: {reason}", path.display())]
    CannotExchange {
        /// The root of the working copy.
        path: PathBuf,
        /// What stands in the way.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// Another process is changing this working copy.
    #[error("{} is locked by {holder}", path.display())]
    Locked {
        /// The root of the working copy.
        path: PathBuf,
        /// Process id and program.
        holder: String,
    },
    /// Plain `git` is at work in the tree, or died there.
    #[error("another git process seems to be running: {} exists", .0.display())]
    GitBusy(PathBuf),
    /// Local edits and the update touch the same lines.
    #[error("local edits overlap with the update: {}", list(paths))]
    Overlap {
        /// The files, relative to the root of the working copy.
        paths: Vec<RepoPath>,
    },
    /// An earlier `pull --manual` left conflicts.
    #[error("unresolved conflicts: {}", list(paths))]
    Unresolved {
        /// The files, relative to the root of the working copy.
        paths: Vec<RepoPath>,
    },
    /// Another branch than `main`, or no branch, is checked out.
    #[error("the branch main is not checked out in {} (HEAD is {head})", path.display())]
    NotOnMain {
        /// The mount's directory.
        path: PathBuf,
        /// What is checked out.
        head: String,
    },
    /// Plain `git` committed, staged or switched branches between staging and exchange. Stage again.
    #[error("plain git changed {} while the update was being prepared", .0.display())]
    ChangedMeanwhile(PathBuf),
    /// The commit is not in the mount's store.
    #[error("commit {commit} of {repo} has not been fetched")]
    NoSuchCommit {
        /// The repository.
        repo: String,
        /// The commit.
        commit: Oid,
    },
    /// A mount that does not exist.
    #[error("this working copy has no repository named {0}")]
    NoSuchMount(String),
    /// The options of `create` make no sense.
    #[error("cannot lay out the working copy: {0}")]
    BadLayout(String),
    /// A path that the operation cannot work on.
    #[error("{path}: {reason}")]
    BadPath {
        /// The path as it was given.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One of our own files, or the git index, cannot be understood.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A working copy of another version of this program.
    #[error("{} has version {version}, this build knows 1: it was made by a newer eccfg, run that", path.display())]
    Version {
        /// The file that says so.
        path: PathBuf,
        /// The version found.
        version: u32,
    },
    /// The object store failed.
    #[error("object store")]
    Store(#[from] crate::Error),
}

impl WorktreeError {
    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotAWorkingCopy(_) => "`eccfg bootstrap` makes one; --wc DIR or ECCFG_WC says where it is".into(),
            Self::AlreadyExists(_) => "`eccfg pull` updates it".into(),
            Self::NotEmpty(_) => "move it away, or choose another directory with --wc DIR".into(),
            Self::CannotExchange { hint, .. } => hint.clone(),
            Self::Locked { .. } => "wait for it to finish".into(),
            Self::GitBusy(lock) => format!("wait for it to finish; if none runs any more, remove {}", lock.display()),
            Self::Overlap { .. } => "pull --mine keeps the local side, --theirs takes the upstream side, --manual writes both into the files".into(),
            Self::Unresolved { .. } => "edit the files and run `eccfg resolve FILE…`".into(),
            Self::ChangedMeanwhile(_) => "try again".into(),
            Self::NotOnMain { .. } => "`git switch main` brings it back".into(),
            _ => return None,
        })
    }

    /// True where two sides want different things (exit status 3).
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Overlap { .. } | Self::Unresolved { .. })
    }

    /// The paths that an overlap or unresolved conflict is about.
    pub fn paths(&self) -> &[RepoPath] {
        match self {
            Self::Overlap { paths } | Self::Unresolved { paths } => paths,
            _ => &[],
        }
    }
}

/// What everything in this module returns.
pub(crate) type Result<T, E = WorktreeError> = std::result::Result<T, E>;

/// Adds what was tried, and on what, to an I/O error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| WorktreeError::Io { action, path: path.to_owned(), source: source.into() })
    }
}

/// A few names; the caller prints the whole list if it wants to.
fn list(paths: &[RepoPath]) -> String {
    const SHOWN: usize = 5;
    let mut text = paths.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if paths.len() > SHOWN {
        text.push_str(&format!(" and {} more", paths.len() - SHOWN));
    }
    text
}
