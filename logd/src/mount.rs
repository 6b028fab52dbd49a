//! Whether a file system keeps what it promises: locks, renames, syncs.
//!
//! A journal on a mount whose locks do nothing would be opened by two nodes at once. Only a second process can find that out: the check runs this
//! program again, as `logd check-mount --probe`, against a file that this one holds. With `--peer` two hosts do the same on a mount that they share.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

/// What the check leaves in the directory while it runs.
const PROBE: &str = ".logd-check-mount";

/// A mount that cannot be trusted with data.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It answered, and wrongly.
    #[error("{} cannot be trusted with data: {what}", dir.display())]
    Wrong {
        /// The directory.
        dir: PathBuf,
        /// What it did.
        what: String,
    },
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> MountError + 'a {
    move |source| MountError::Io { action, path: path.into(), source }
}

/// A file that goes when this does.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Checks locks between two processes, renames, and syncs in a directory.
pub fn check(dir: &Path) -> Result<(), MountError> {
    let wrong = |what: &str| MountError::Wrong { dir: dir.into(), what: what.into() };
    let path = dir.join(format!("{PROBE}-{}", std::process::id()));
    let _gone = Temporary(path.clone());
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.map_err(io("create", &path))?;
    let lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| io("lock", &path)(errno.into()))?;
    match probe_in_child(&path)? {
        Seen::Held => {}
        Seen::Free => return Err(wrong("another process got a lock that this one holds")),
    }
    drop(lock);
    match probe_in_child(&path)? {
        Seen::Free => {}
        Seen::Held => return Err(wrong("a lock stays after it was let go")),
    }
    renames(dir, &path, &wrong)
}

/// What another process sees of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Somebody has it.
    Held,
    /// It could be taken.
    Free,
}

/// What `--probe` does: tries to lock, says what it saw.
pub fn probe(path: &Path) -> io::Result<Seen> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(Seen::Free),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(Seen::Held),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn probe_in_child(path: &Path) -> Result<Seen, MountError> {
    let exe = std::env::current_exe().map_err(io("find this program for", path))?;
    let run = Command::new(exe).args(["logd", "check-mount", "--probe"]).arg(path).stdin(Stdio::null()).output();
    let run = run.map_err(io("start a second process for", path))?;
    match run.stdout.trim_ascii() {
        b"held" => Ok(Seen::Held),
        b"free" => Ok(Seen::Free),
        _ => {
            let said = String::from_utf8_lossy(&run.stderr).trim().to_owned();
            Err(io("have a second process lock", path)(io::Error::other(said)))
        }
    }
}

/// A rename replaces in one step, keeps content and inode, and both it and the content can be synced.
fn renames(dir: &Path, target: &Path, wrong: &dyn Fn(&str) -> MountError) -> Result<(), MountError> {
    let from = dir.join(format!("{PROBE}-{}-new", std::process::id()));
    let _gone = Temporary(from.clone());
    let mut file = File::create(&from).map_err(io("create", &from))?;
    let inode = file.metadata().map_err(io("look at", &from))?.ino();
    file.write_all(b"content").and_then(|()| file.sync_all()).map_err(io("write and sync", &from))?;
    fs::rename(&from, target).map_err(io("rename to", target))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync", dir))?;
    let mut text = String::new();
    let mut renamed = File::open(target).map_err(io("open", target))?;
    renamed.read_to_string(&mut text).map_err(io("read", target))?;
    if text != "content" || from.exists() {
        return Err(wrong("a rename did not replace its target"));
    }
    if renamed.metadata().map_err(io("look at", target))?.ino() != inode {
        return Err(wrong("a rename changed the file's number"));
    }
    let longer = OpenOptions::new().write(true).open(target).map_err(io("open", target))?;
    longer.set_len(3).and_then(|()| longer.sync_data()).map_err(io("cut", target))?;
    if fs::metadata(target).map_err(io("look at", target))?.len() != 3 {
        return Err(wrong("a file that was cut kept its length"));
    }
    Ok(())
}
