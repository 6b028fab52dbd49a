//! The database's file: opening it without trusting it, and exchanging it for a fresh one.
//!
//! redb checks its pages when it is told to and not when it reads them, and damaged pages can make it panic. So the whole file is checked
//! when it is opened, before anything else reads it. What is damaged there is moved aside; the newest snapshot and the log behind it are
//! the same state, and where they are not enough the other members are. While it is open the same check runs now and then over what is
//! durable ([`shadow`]).

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageError};

use super::aside;
use super::db::{State, StateError};
use super::shadow::Shadow;
use super::snapshot::FILE_NAME as SNAPSHOT;
use crate::outside::Outside;

pub(super) const FILE: &str = "state.redb";
const FRESH: &str = "state.redb.fresh";
/// redb's cache: the whole state of a usual cluster fits.
const CACHE_BYTES: usize = 32 << 20;

/// … and that of the look at an open one, which reads every page once.
const CHECK_BYTES: usize = 1 << 20;

/// Where the database lies, and how another one takes its place.
pub(crate) trait Home: Send + Sync + 'static {
    /// The database, after every page of it was compared with its checksum; an empty one where there is none.
    fn open(&self) -> Result<Database, StateError>;

    /// Moves a database that cannot be used into this directory.
    fn set_aside(&self, aside: &Path) -> Result<(), StateError>;

    /// An empty database beside the present one.
    fn fresh(&self) -> Result<Database, StateError>;

    /// The fresh one takes the present one's place, which is kept in this directory.
    fn exchange(&self, aside: &Path) -> Result<(), StateError>;

    /// Compares what is durable of the present one with its checksums, while it is open. Nobody may commit durably meanwhile.
    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
}

/// A file in the data directory.
pub(super) struct FileHome {
    pub(super) data: PathBuf,
}

impl FileHome {
    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> StateError {
        let path = self.data.join(FILE);
        move |source| StateError::Io { action, path: path.clone(), source }
    }
}

impl Home for FileHome {
    fn open(&self) -> Result<Database, StateError> {
        let path = self.data.join(FILE);
        checked(&path, path.exists(), || create(&path))
    }

    fn set_aside(&self, aside: &Path) -> Result<(), StateError> {
        fs::rename(self.data.join(FILE), aside.join(FILE)).map_err(self.io("set aside"))
    }

    fn fresh(&self) -> Result<Database, StateError> {
        let path = self.data.join(FRESH);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.io("replace")(error)),
            _ => {}
        }
        Ok(create(&path)?)
    }

    fn exchange(&self, aside: &Path) -> Result<(), StateError> {
        let failed = self.io("replace");
        fs::rename(self.data.join(FILE), aside.join(FILE)).map_err(&failed)?;
        fs::rename(self.data.join(FRESH), self.data.join(FILE)).map_err(&failed)?;
        File::open(&self.data).and_then(|dir| dir.sync_all()).map_err(&failed)
    }

    fn check(&self) -> Result<(), StateError> {
        let path = self.data.join(FILE);
        let shadow = Shadow::of(&path).map_err(self.io("check"))?;
        understood(&path, || {
            Database::builder().set_cache_size(CHECK_BYTES).create_with_backend(shadow)?.check_integrity()
        })
        .map(drop)
    }
}

/// Whether a directory holds state already.
pub fn has_state(data: &Path) -> bool {
    data.join(FILE).exists()
}

/// Opens the state of a data directory, or what can be made again of it.
pub(crate) fn open(
    home: Arc<dyn Home>,
    data: &Path,
    max_watchers: usize,
    outside: Arc<dyn Outside>,
) -> Result<Arc<State>, StateError> {
    let whole = home.open().and_then(|db| State::open_on(db, home.clone(), data, max_watchers, outside.clone()));
    let why = match whole {
        // A crash in the middle of an exchange leaves no database.
        Ok(state) if state.view().applied.is_none() => return from_snapshot(state),
        Ok(state) => return Ok(state),
        Err(error) if error.is_damage() => error.to_string(),
        Err(error) => return Err(error),
    };
    tracing::error!("{why}; the database is set aside and made again from the newest snapshot and the log");
    let failed = |source| StateError::Io { action: "set aside", path: data.join(FILE), source };
    home.set_aside(&aside::place(data, "state").map_err(failed)?)?;
    let db = home.open()?;
    from_snapshot(State::open_on(db, home, data, max_watchers, outside)?)
}

/// A snapshot that is damaged as well is set aside: where the log is not enough without it, whoever compares the two says what to do.
fn from_snapshot(state: Arc<State>) -> Result<Arc<State>, StateError> {
    let found = state.current_snapshot();
    let installed = found.and_then(|found| found.map_or(Ok(()), |(_, manifest)| state.install_snapshot(manifest)));
    match installed {
        Err(StateError::Io { source, .. }) if is_damage(&source) => {
            tracing::error!("{source}; it is set aside");
            let path = state.data.join(SNAPSHOT);
            let failed = |source| StateError::Io { action: "set aside", path: path.clone(), source };
            fs::rename(&path, state.aside("snapshot")?.join(SNAPSHOT)).map_err(failed)?;
            Ok(state)
        }
        other => other.map(|()| state),
    }
}

/// Opens or makes a database that nobody else may read: it holds password hashes.
fn create(path: &Path) -> Result<Database, DatabaseError> {
    let open = || {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(file)
    };
    let file = open().map_err(StorageError::Io)?;
    Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)
}

/// Opens a database, and compares every page of one that exists with its checksum. `path` is for words only.
pub(crate) fn checked(
    path: &Path,
    exists: bool,
    open: impl FnOnce() -> Result<Database, DatabaseError>,
) -> Result<Database, StateError> {
    understood(path, || {
        let mut db = open()?;
        if exists && !db.check_integrity()? {
            tracing::warn!(path = %path.display(), "the state database was repaired");
        }
        Ok(db)
    })
}

/// Tells damage from other failures.
fn understood<T>(path: &Path, work: impl FnOnce() -> Result<T, DatabaseError>) -> Result<T, StateError> {
    let damaged = |reason: String| StateError::Database { path: path.to_owned(), reason };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Err(DatabaseError::Storage(StorageError::Corrupted(reason)))) => Err(damaged(reason)),
        Ok(Err(DatabaseError::Storage(StorageError::Io(error)))) if is_damage(&error) => {
            Err(damaged(error.to_string()))
        }
        Ok(Err(error @ (DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_)))) => {
            Err(damaged(error.to_string()))
        }
        Ok(other) => Ok(other?),
        Err(_) => Err(damaged("it cannot be understood".into())),
    }
}

/// What a file with other bytes than were written leads to, unlike a disk that does not answer.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput)
}
