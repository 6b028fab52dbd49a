//! The C library jlog's directories: reading them, and taking them over.
//!
//! What is here is made from a description of the bytes, not from that library. Nothing here writes into such a directory.

mod format;
mod import;
#[cfg(test)]
pub(crate) mod tests;

pub use format::{OldCheckpoint, OldJournal, OldRecord, Skipped};
pub use import::{ImportReport, ImportedSubscriber, import_in_place, import_into};

use std::io;
use std::path::PathBuf;

/// Why an old journal could not be read or taken over.
#[derive(Debug, thiserror::Error)]
pub enum OldError {
    /// A file could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is none.
    #[error("{} is no jlog directory: {what}", path.display())]
    NotOld {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// It is there already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody wrote to it during the import.
    #[error("{} changed while it was read: stop the program that writes it first", path.display())]
    Changed {
        /// The segment.
        path: PathBuf,
    },
    /// The new journal could not be written.
    #[error(transparent)]
    Journal(#[from] logd_journal::JournalError),
}

impl OldError {
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
