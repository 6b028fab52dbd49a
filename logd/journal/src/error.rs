//! What can go wrong, in words that name the file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dir_lock::LockError;

/// Why the journal could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
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
    /// The disk, a quota or a file size limit is exhausted. Nothing of the write stayed; the same write works once there is room.
    #[error("no room to write {}; nothing of it was kept, and writing goes on by itself once there is room", path.display())]
    Full {
        /// The segment or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody else writes this journal.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The directory holds something else.
    #[error("{} is no journal: {what}", path.display())]
    NotAJournal {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Written by a newer build, or on a machine of the other byte order.
    #[error("{} has {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What this build does not know.
        what: String,
    },
    /// The records were written but could not be made durable; whether any of them is on the disk is unknown, and none was acknowledged.
    #[error("the records could not be made durable in {}", path.display())]
    NotSynced {
        /// The segment.
        path: PathBuf,
        /// The system's answer to the sync.
        source: Arc<io::Error>,
    },
    /// An earlier sync failed in a way that leaves the content of the disk unknown.
    #[error("{} takes no more records after a failed sync ({reason}); restart to read what is really there", path.display())]
    Poisoned {
        /// The journal.
        path: PathBuf,
        /// The failure.
        reason: String,
    },
    /// The journal was closed.
    #[error("{} is closed", path.display())]
    Closed {
        /// The journal.
        path: PathBuf,
    },
    /// `max_backlog` is reached, writers are to wait, and this one did not want to wait any longer.
    #[error("{} holds its max_backlog of {max_bytes} bytes, and subscriber {subscriber:?} has not read them", path.display())]
    Backlog {
        /// The journal.
        path: PathBuf,
        /// The limit.
        max_bytes: u64,
        /// Who is furthest behind.
        subscriber: String,
    },
    /// One record, or one batch, is larger than the format allows.
    #[error("{bytes} bytes are more than the {limit} that {what} may have")]
    TooLong {
        /// A record or a batch.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// No name for a subscriber.
    #[error("{name:?} cannot be a subscriber's name: {reason}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no such subscriber.
    #[error("{} has no subscriber {name:?}", path.display())]
    NoSubscriber {
        /// The journal.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// There is one of this name already.
    #[error("{} has a subscriber {name:?} already", path.display())]
    SubscriberExists {
        /// The journal.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A position that this journal never reached, or one of another journal: it was wiped, restored or exchanged.
    #[error("{} is not the journal that the position belongs to: {what}", path.display())]
    Position {
        /// The journal.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
}

/// What the journal's functions answer.
pub type Result<T, E = JournalError> = std::result::Result<T, E>;

impl JournalError {
    /// True where waiting for room (on the disk, or below `max_backlog`) and trying again is the right answer.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Backlog { .. })
    }

    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| match source.kind() {
            _ if is_full(&source) => Self::Full { path: path.into(), source },
            _ => Self::Io { action, path: path.into(), source },
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// True for the errors that end when somebody makes room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
