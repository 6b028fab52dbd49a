//! The lock that keeps two writers out of one working copy.
//!
//! `flock` goes away with the process, however it dies; the content of the file only says who it was.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::{At, Result, WorktreeError};

/// How often a waiting process looks again. `flock` cannot wait with a deadline.
const RETRY: Duration = Duration::from_millis(5);

/// Held as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, waiting for at most `wait`.
    pub(crate) fn acquire(path: &Path, root: &Path, wait: Duration) -> Result<Lock> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(lock) = Lock::try_acquire(path)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(WorktreeError::Locked { path: root.to_owned(), holder: holder(path) });
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Takes the lock if nobody has it.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Lock>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .at("open", path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let lock = Lock { file };
                lock.sign().at("write", path)?;
                Ok(Some(lock))
            }
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(err) => Err(err).at("lock", path),
        }
    }

    fn sign(&self) -> std::io::Result<()> {
        let program =
            std::env::current_exe().ok().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
        // Always as long: a file that is cut off is flushed when it is closed, and its block freed.
        let text = format!(
            "{:<95}\n",
            format!("process {} ({})", std::process::id(), program.as_deref().unwrap_or("unknown program"))
        );
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

fn holder(path: &Path) -> String {
    let mut text = String::new();
    // A bounded read: the file is ours, but nothing stops others from writing into it.
    let _ = File::open(path).map(|file| file.take(200).read_to_string(&mut text));
    if text.trim().is_empty() { "another process".into() } else { text.trim().into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_the_holder() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        let first = Lock::acquire(&path, temp.path(), Duration::ZERO).unwrap();
        let err = Lock::acquire(&path, temp.path(), Duration::ZERO).unwrap_err();
        assert!(err.to_string().contains(&format!("process {}", std::process::id())), "{err}");
        drop(first);
        Lock::acquire(&path, temp.path(), Duration::ZERO).unwrap();
    }
}
