//! The directory in which a store writes before anybody may read, and its end after a crash.
//!
//! Every open store has one of its own under `quarantine/`, locked as long as the store is open. What a crash leaves has no
//! lock, and the next one to open the store removes it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result};

/// The directory that this store writes in before anybody may read. The lock lives as long as the file is open.
pub(crate) struct Staging {
    pub(crate) directory: PathBuf,
    /// Directories of quarantines that are over, empty but for an empty `pack`. Removing and making directories costs
    /// milliseconds on some file systems, on every push and every fetch.
    spare: Vec<PathBuf>,
    _lock: File,
}

/// As many quarantines as are likely to be in use at once; what comes back beyond that is removed.
const MAX_SPARE: usize = 16;

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.directory) {
            tracing::debug!(directory = %self.directory.display(), %err, "could not remove a staging directory; the next start will");
        }
    }
}

impl Staging {
    /// A new directory in `quarantine`, locked.
    pub(crate) fn new(quarantine: &Path) -> Result<Staging> {
        let _entrance = lock_entrance(quarantine, FlockOperation::LockExclusive)?;
        let directory = tempfile::Builder::new()
            .prefix("s-")
            .tempdir_in(quarantine)
            .map_err(Error::io("create a directory in", quarantine))?
            .keep();
        let lock = File::open(&directory).map_err(Error::io("open", &directory))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|err| Error::io("lock", &directory)(err.into()))?;
        Ok(Staging { directory, spare: Vec::new(), _lock: lock })
    }

    /// A directory of an earlier quarantine.
    pub(crate) fn take_spare(&mut self) -> Option<PathBuf> {
        self.spare.pop()
    }

    /// Keeps an emptied directory for the next quarantine; false if there are enough.
    pub(crate) fn keep_spare(&mut self, directory: &Path) -> bool {
        let keep = self.spare.len() < MAX_SPARE && directory.starts_with(&self.directory);
        if keep {
            self.spare.push(directory.to_owned());
        }
        keep
    }
}

/// Takes the lock that keeps those who clean up apart from those who have not locked their directory yet, or are between
/// the two files of a pack.
pub(crate) fn lock_entrance(quarantine: &Path, operation: FlockOperation) -> Result<File> {
    let path = quarantine.join("lock");
    let open = || File::options().create(true).append(true).open(&path);
    let file = match open() {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(quarantine).map_err(Error::io("create", quarantine))?;
            open()
        }
        other => other,
    };
    let file = file.map_err(Error::io("open", &path))?;
    flock(&file, operation).map_err(|err| Error::io("lock", &path)(err.into()))?;
    Ok(file)
}

pub(crate) fn remove_stale(quarantine: &Path, packs: Option<&Path>) -> Result<()> {
    if !quarantine.is_dir() {
        return Ok(());
    }
    let _entrance = lock_entrance(quarantine, FlockOperation::LockExclusive)?;
    for path in paths_in(quarantine)?.into_iter().filter(|path| path.is_dir()) {
        let directory = File::open(&path).map_err(Error::io("open", &path))?;
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    // Packs of which only the first file was installed, or the second removed already.
    let packs = packs.map_or_else(|| Ok(Vec::new()), paths_in)?;
    for path in packs.into_iter().filter(|path| is_orphan(path)) {
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

fn paths_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(Error::io("list", directory))).collect()
}

/// Git, too, puts the index of a pack in place last. What it may still be at work on is left alone.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);

fn is_orphan(path: &Path) -> bool {
    let is_old = || {
        fs::metadata(path)
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ORPHAN_AGE))
    };
    path.extension().is_some_and(|extension| extension == "pack") && !path.with_extension("idx").exists() && is_old()
}
