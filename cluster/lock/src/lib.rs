//! One process per data directory, and a second one learns who the first is.
//!
//! The lock is a `flock` on `<dir>/lock`, which the kernel releases however the process ends, so that nothing stale can ever block a
//! start. The file's text names the owner for people; it decides nothing. (The boot id makes a pid of an earlier boot recognisable.)
//!
//! A crate of its own, so that what must not know the rest of `cluster` (the journal) locks its directories in the same way.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// The name of the lock file inside the directory.
pub const LOCK_FILE: &str = "lock";

/// Who holds a directory or a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The program, such as `ecconfigd`.
    pub program: String,
    /// The node it acts as.
    pub node: String,
    /// The process.
    pub pid: u32,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// When the process took the lock, RFC 3339 in UTC.
    pub since: String,
}

impl Owner {
    /// This process, as `program` on `node`.
    pub fn current(program: &str, node: &str) -> Self {
        let now = time::OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        let since = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        Self { program: program.into(), node: node.into(), pid: std::process::id(), boot_id: boot_id(), since }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of node {} (pid {}, since {}", self.program, self.node, self.pid, self.since)?;
        if self.boot_id == boot_id() { f.write_str(")") } else { write!(f, ", boot {})", self.boot_id) }
    }
}

/// Why a directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("{} is in use by {}", dir.display(), owner.as_ref().map_or_else(|| "another process".into(), ToString::to_string))]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, where the lock file says so.
        owner: Option<Box<Owner>>,
    },
    /// The lock file could not be made or read.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A held lock on a directory; dropping it releases it.
#[derive(Debug)]
pub struct DirLock {
    _file: Flock<File>,
    dir: PathBuf,
}

impl DirLock {
    /// Takes the directory for `owner`, or says who has it.
    pub fn acquire(dir: &Path, owner: &Owner) -> Result<Self, LockError> {
        Self::acquire_file(&dir.join(LOCK_FILE), dir, owner)
    }

    /// The same with a lock file of the caller's choice, for locks beside a directory that is exchanged.
    pub fn acquire_file(path: &Path, dir: &Path, owner: &Owner) -> Result<Self, LockError> {
        let io = |action| move |source| LockError::Io { action, path: path.into(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map_err(io("open"))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, nix::Error::EWOULDBLOCK)) => return Err(held(dir, file)),
            Err((_, errno)) => return Err(io("lock")(errno.into())),
        };
        // One short write after truncation: a reader in between sees no owner, which is only less helpful.
        let text = serde_json::to_string(owner).expect("an owner is plain strings and numbers");
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(io("write"))?;
        Ok(Self { _file: file, dir: dir.into() })
    }

    /// The locked directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn held(dir: &Path, mut file: File) -> LockError {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| (&mut file).take(4096).read_to_string(&mut text));
    let owner = read.ok().and_then(|_| serde_json::from_str(&text).ok()).map(Box::new);
    LockError::Held { dir: dir.into(), owner }
}

/// The kernel's id of this boot; empty where there is none.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_second_opener_learns_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::acquire(dir.path(), &Owner::current("ecconfigd", "n1")).unwrap();
        let error = DirLock::acquire(dir.path(), &Owner::current("eccfg", "n2")).unwrap_err();
        let text = error.to_string();
        for part in ["ecconfigd", "node n1", &format!("pid {}", std::process::id()), &dir.path().display().to_string()]
        {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        let LockError::Held { owner: Some(owner), .. } = error else { panic!("not held: {text}") };
        assert_eq!(owner.boot_id, boot_id());
        drop(first);
        DirLock::acquire(dir.path(), &Owner::current("eccfg", "n2")).unwrap();
    }

    #[test]
    fn an_unlocked_file_blocks_nobody_whatever_it_says() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK_FILE), b"{\"program\": \"half a line").unwrap();
        let lock = DirLock::acquire(dir.path(), &Owner::current("logd", "n1")).unwrap();
        assert_eq!(lock.dir(), dir.path());
    }
}
