//! Whether a file system keeps what it promises: locks, renames, syncs.
//!
//! A journal on a mount whose locks do nothing would be opened by two nodes at once. Only a second process can find that out: the check runs this
//! program again, as `logd check-mount --probe`, against a file that this one holds. With `--peer` the log daemon of another node does the same, on a
//! mount that the two hosts share.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

/// What the check leaves in the directory while it runs.
const PROBE: &str = ".logd-check-mount";
/// What is written there, so that two nodes know that they see the same file.
const TOKEN_BYTES: usize = 16;

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
    let path = locks(dir, "another process", probe_in_child)?;
    renames(dir, &path.0, &|what| MountError::Wrong { dir: dir.into(), what: what.into() })
}

/// Checks locks against a node that has the same mount; `probe` has it look at a file.
pub fn check_with(
    dir: &Path,
    node: &str,
    probe: impl Fn(&Path) -> Result<Glimpse, MountError>,
) -> Result<(), MountError> {
    let look = |path: &Path| {
        let glimpse = probe(path)?;
        let content = fs::read(path).map_err(io("read", path))?;
        if glimpse.content != content {
            let what = format!("{node} sees another file there: it has not the same mount at this path");
            return Err(MountError::Wrong { dir: dir.into(), what });
        }
        Ok(glimpse.seen)
    };
    locks(dir, node, look).map(drop)
}

/// Holds a lock and has somebody else look, then lets it go and has him look again. Answers the file.
fn locks(dir: &Path, other: &str, look: impl Fn(&Path) -> Result<Seen, MountError>) -> Result<Temporary, MountError> {
    let wrong = |what: String| MountError::Wrong { dir: dir.into(), what };
    let path = dir.join(format!("{PROBE}-{}", std::process::id()));
    let temporary = Temporary(path.clone());
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let mut file = file.map_err(io("create", &path))?;
    let mut token = [0; TOKEN_BYTES];
    getrandom::fill(&mut token).map_err(|error| io("fill", &path)(io::Error::other(error.to_string())))?;
    file.write_all(&token).and_then(|()| file.sync_all()).map_err(io("write and sync", &path))?;
    let lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| io("lock", &path)(errno.into()))?;
    if look(&path)? == Seen::Free {
        return Err(wrong(format!("{other} got a lock that this one holds")));
    }
    drop(lock);
    if look(&path)? == Seen::Held {
        return Err(wrong(format!("a lock stays, as {other} sees it, after it was let go")));
    }
    Ok(temporary)
}

/// What another node sees of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glimpse {
    /// Of its lock.
    pub seen: Seen,
    /// Its first bytes.
    pub content: Vec<u8>,
}

/// Looks at a file for another node. Only at those that a check makes: whoever may ask must not thereby read or lock anything else.
pub fn glimpse(path: &Path) -> io::Result<Glimpse> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !path.is_absolute() || !name.starts_with(PROBE) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file of check-mount"));
    }
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut content = Vec::new();
    (&file).take(TOKEN_BYTES as u64).read_to_end(&mut content)?;
    Ok(Glimpse { seen: probe(path)?, content })
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
