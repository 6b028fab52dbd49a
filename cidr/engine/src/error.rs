//! What can go wrong with files, in words that name the file.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of the store or one of its files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the directory.
    #[error(transparent)]
    Locked(#[from] dir_lock::LockError),
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file's content is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A file of a later build.
    #[error("{} has version {found}, and this build knows {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version that this build writes.
        known: u32,
    },
    /// Files without the list that says which of them count.
    #[error("{} has files of counts but no manifest", dir.display())]
    NoManifest {
        /// The directory.
        dir: PathBuf,
    },
    /// An earlier write could not be made durable.
    #[error("an earlier write in {} failed; open the directory again to go on from what is really there", dir.display())]
    Poisoned {
        /// The directory.
        dir: PathBuf,
    },
    /// Counts that no longer fit into 62 bits.
    #[error("the counts of {series} at {stamp} are too large to be summed exactly")]
    TooLarge {
        /// The series.
        series: String,
        /// The window or the first day.
        stamp: String,
    },
    /// A name that cannot be part of a file name or query.
    #[error("\"{name}\" cannot be the name of a series or node: {reason}")]
    Name {
        /// What was given, shortened.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A window whose ends make no sense.
    #[error("a window of {series} cannot go from {start} to {end}")]
    Window {
        /// The series.
        series: String,
        /// Its start.
        start: i64,
        /// Its end.
        end: i64,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Cancelled,
}

/// The result of everything here that touches files.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.into(), source }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.into(), what: what.into() }
    }

    /// True for content that is not what was written, as opposed to a failing system call.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Version { .. })
    }
}
