//! What can go wrong, with the object or file it went wrong on.

use std::io;
use std::path::{Path, PathBuf};

use crate::Oid;
use crate::reader::ObjectKind;

/// The result of most calls of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of a store could not be read or written.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was attempted, as in "could not …".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory is not a repository of ours.
    #[error("{} is not a repository: {reason}", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// An object is not in the store.
    #[error("object {id} is missing")]
    Missing {
        /// The object.
        id: Oid,
    },
    /// An object is of another kind than its use demands.
    #[error("object {id} is a {actual}, not a {expected}")]
    WrongKind {
        /// The object.
        id: Oid,
        /// What was wanted.
        expected: ObjectKind,
        /// What it is.
        actual: ObjectKind,
    },
    /// An object could not be decoded.
    #[error("object {id} is damaged: {reason}")]
    Damaged {
        /// The object.
        id: Oid,
        /// What is wrong.
        reason: String,
    },
    /// A blob is larger than the caller is ready to take.
    #[error("object {id} has {size_bytes} bytes; at most {limit_bytes} are allowed here")]
    TooLarge {
        /// The object.
        id: Oid,
        /// Its size.
        size_bytes: u64,
        /// The caller's limit.
        limit_bytes: u64,
    },
    /// The disk failed earlier, and what it holds is not certain any more.
    #[error("an earlier sync of {} failed; it takes no more until it is opened again", path.display())]
    SyncFailed {
        /// The repository.
        path: PathBuf,
    },
    /// A pack was refused.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The object database failed in a way it did not explain better.
    #[error("the object database failed at {id}")]
    Odb {
        /// The object that was looked for.
        id: Oid,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// For `map_err`: wraps an I/O error with what was attempted and on what.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

/// Why a pack was refused. All but [`PackError::Io`] are the sender's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Reading the pack, or writing it down, failed.
    #[error("could not {action} the pack")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The stream ended in the middle of the pack.
    #[error("the pack ends early, after {received_bytes} bytes")]
    Truncated {
        /// What came.
        received_bytes: u64,
    },
    /// The bytes are not a pack, or not a sound one.
    #[error("the pack is damaged: {reason}")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// The pack, or something in it, is larger than the limits allow.
    #[error("the pack is refused: {what} {value} exceeds the limit of {limit}")]
    Limit {
        /// Which limit, in words.
        what: &'static str,
        /// The value that was too large.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// A delta refers to an object that neither the pack nor the store has.
    #[error("the pack needs object {base}, which is not here")]
    MissingBase {
        /// The object.
        base: Oid,
    },
}

impl PackError {
    pub(crate) fn damaged(reason: impl Into<String>) -> PackError {
        PackError::Damaged { reason: reason.into() }
    }
}
