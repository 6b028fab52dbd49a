//! Files that survive a power cut: either the old content or the new one, never half of it, never an empty one.
//!
//! The order is always the same: write a temporary file beside the target, fsync it, rename it over the target, fsync the directory.
//! A failed fsync is final: the kernel may have dropped the dirty pages and answer the next fsync with success, so whoever keeps state
//! that others rely on holds a [`Poison`] and refuses every further write after the first failure.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What was tried, on which path, and why it failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, such as `rename`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// An earlier write could not be made durable.
    #[error("an earlier write below {path} was not made durable; restart to read what is really there")]
    Poisoned {
        /// What the poison guards.
        path: PathBuf,
    },
}

impl FileError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.into(), source }
    }

    /// True when the file or directory does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Replaces `path` with `bytes`, durably, with exactly `mode` whatever the umask says.
///
/// A symbolic link at `path` is replaced, not followed: callers that want to write through one resolve it first.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = temporary_name(path);
    let result = write_new(&temporary, bytes, mode).and_then(|()| rename(&temporary, path));
    if result.is_err() {
        // Best effort: the write's own error is the one worth telling.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Creates a file that must not exist yet, durably but for its directory entry (see [`sync_dir`]).
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(FileError::io("create", path))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(FileError::io("set the mode of", path))?;
    file.write_all(bytes).map_err(FileError::io("write", path))?;
    file.sync_all().map_err(FileError::io("fsync", path))
}

/// Renames within one file system and makes the rename durable.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(FileError::io("rename into place", to))?;
    sync_dir(parent(to))?;
    if parent(from) != parent(to) {
        sync_dir(parent(from))?;
    }
    Ok(())
}

/// Removes a file durably; one that is not there is removed already.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io("remove", path)(error)),
        _ => sync_dir(parent(path)),
    }
}

/// Points the symbolic link `link` to `target` in one step, durably.
pub fn symlink_atomic(target: &Path, link: &Path) -> Result<(), FileError> {
    let temporary = temporary_name(link);
    std::os::unix::fs::symlink(target, &temporary).map_err(FileError::io("link", &temporary))?;
    rename(&temporary, link).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Makes creations, renames and removals in a directory durable.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(FileError::io("fsync", dir))
}

/// Creates a directory and its missing parents, each with `mode` (masked by the umask), durably.
pub fn create_dirs(dir: &Path, mode: u32) -> Result<(), FileError> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = parent(dir);
    create_dirs(above, mode)?;
    match fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => sync_dir(above),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(FileError::io("create the directory", dir)(error)),
    }
}

/// Reads a whole file of at most `limit_bytes`; `None` when it does not exist.
pub fn read_limited(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    use std::io::Read as _;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    if bytes.len() as u64 > limit_bytes {
        let error = io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit_bytes} bytes"));
        return Err(FileError::io("read", path)(error));
    }
    Ok(Some(bytes))
}

/// Remembers that a write was not made durable, and refuses all that follow.
#[derive(Debug)]
pub struct Poison {
    guards: PathBuf,
    failed: AtomicBool,
}

impl Poison {
    /// A poison that has not been taken yet; `guards` is named in refusals.
    pub fn new(guards: impl Into<PathBuf>) -> Self {
        Self { guards: guards.into(), failed: AtomicBool::new(false) }
    }

    /// Runs one write. After the first that fails, every later one is refused without being tried.
    pub fn guard<T, E: From<FileError>>(&self, write: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if self.failed.load(Ordering::Acquire) {
            return Err(FileError::Poisoned { path: self.guards.clone() }.into());
        }
        write().inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    /// True once a write has failed.
    pub fn is_taken(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// A hidden name in the same directory. Random, because a process number comes back (in a container it is always the same), and what a
/// killed process left must not be in the way.
fn temporary_name(path: &Path) -> PathBuf {
    let mut random = [0; 8];
    getrandom::fill(&mut random).expect("the kernel's random source works once the machine is up");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parent(path).join(format!(".{name}.{}.tmp", hex::encode(random)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn replaces_content_and_mode_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"x").unwrap();
        let error = write_atomic(&path, b"new", 0o644).unwrap_err();
        assert!(error.to_string().contains("target"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[test]
    fn a_link_is_replaced_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("current");
        symlink_atomic(Path::new("a"), &link).unwrap();
        symlink_atomic(Path::new("b"), &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("b"));
    }

    #[test]
    fn poison_refuses_after_the_first_failure() {
        let poison = Poison::new("/data/log");
        poison.guard(|| Ok::<_, FileError>(())).unwrap();
        let failed = poison.guard(|| sync_dir(Path::new("/nonexistent/eccluster")));
        assert!(failed.unwrap_err().is_not_found());
        let mut tried = false;
        let refused = poison.guard(|| {
            tried = true;
            Ok::<_, FileError>(())
        });
        assert!(refused.unwrap_err().to_string().contains("/data/log"));
        assert!(!tried && poison.is_taken());
    }

    #[test]
    fn reading_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(read_limited(&path, 3).unwrap().is_none());
        fs::write(&path, b"abc").unwrap();
        assert_eq!(read_limited(&path, 3).unwrap().unwrap(), b"abc");
        assert!(read_limited(&path, 2).is_err());
    }
}
