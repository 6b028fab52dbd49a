//! The file system calls of a working copy, all relative to an open directory.
//!
//! Working relative to descriptors keeps an operation inside the tree it began in, whichever of the two trees is
//! live by then, never follows a symbolic link on the way, and has no limit on the length of a path.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, Mode as Perm, OFlags, RawDir, RenameFlags, Stat};
use rustix::io::Errno;

/// What `lstat` says about a file, as far as it tells whether the file was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sig {
    pub ino: u64,
    pub size: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub dev: u64,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    File,
    Exec,
    Symlink,
    /// A socket, fifo or device: never versioned, only carried along.
    Special,
    Dir,
}

impl Kind {
    pub(crate) fn mode(self) -> Option<crate::Mode> {
        match self {
            Kind::File => Some(crate::Mode::File),
            Kind::Exec => Some(crate::Mode::Exec),
            Kind::Symlink => Some(crate::Mode::Symlink),
            Kind::Special | Kind::Dir => None,
        }
    }

    pub(crate) fn is_file(self) -> bool {
        matches!(self, Kind::File | Kind::Exec)
    }
}

impl Sig {
    pub(crate) fn of(stat: &Stat) -> Sig {
        Sig {
            ino: stat.st_ino,
            size: stat.st_size as u64,
            mtime_ns: stat.st_mtime.wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec as i64),
            ctime_ns: stat.st_ctime.wrapping_mul(1_000_000_000).wrapping_add(stat.st_ctime_nsec as i64),
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            dev: stat.st_dev,
        }
    }

    /// The kind, with git's idea of "executable": the owner may execute it.
    pub(crate) fn kind(&self) -> Kind {
        match FileType::from_raw_mode(self.mode) {
            FileType::RegularFile if self.mode & 0o100 != 0 => Kind::Exec,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Directory => Kind::Dir,
            _ => Kind::Special,
        }
    }

    pub(crate) fn perm(&self) -> u32 {
        self.mode & 0o7777
    }
}

pub(crate) fn lstat_at(dir: impl AsFd, name: &[u8]) -> io::Result<Sig> {
    Ok(Sig::of(&fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

/// Like [`lstat_at`]; `None` if nothing is there.
pub(crate) fn try_lstat_at(dir: impl AsFd, name: &[u8]) -> io::Result<Option<Sig>> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Sig::of(&stat))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Perm::empty())?)
}

/// Opens a directory below `dir`; a symbolic link in its place is an error.
pub(crate) fn open_dir_at(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(fs::openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Perm::empty())?)
}

/// The names in a directory, unsorted, without `.` and `..`, with their types where the file system tells.
pub(crate) fn list(dir: impl AsFd) -> io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
    // A descriptor remembers how far it was read; one of our own begins at the beginning.
    let own = open_dir_at(dir, b".")?;
    let mut entries = RawDir::new(&own, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(names)
}

pub(crate) fn read_at(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    let fd =
        fs::openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Perm::empty())?;
    let mut data = Vec::new();
    io::Read::read_to_end(&mut std::fs::File::from(fd), &mut data)?;
    Ok(data)
}

pub(crate) fn try_read_at(dir: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    match read_at(dir, name) {
        Ok(data) => Ok(Some(data)),
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Content of a file or target of a link, with the signature taken *before* reading: whoever writes while we read,
/// or later, changes the signature.
pub(crate) fn read_content_at(dir: impl AsFd, name: &[u8]) -> io::Result<(Sig, Vec<u8>)> {
    let dir = dir.as_fd();
    let sig = lstat_at(dir, name)?;
    let data = match sig.kind() {
        Kind::File | Kind::Exec => read_at(dir, name)?,
        Kind::Symlink => fs::readlinkat(dir, name, Vec::new())?.into_bytes(),
        Kind::Special | Kind::Dir => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    Ok((sig, data))
}

/// Creates `name`, which must not exist, with exactly these permissions, whatever the umask.
pub(crate) fn create_at(dir: impl AsFd, name: &[u8], data: &[u8], perm: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::openat(dir, name, flags, Perm::from_raw_mode(perm & 0o777))?;
    let mut file = std::fs::File::from(fd);
    io::Write::write_all(&mut file, data)?;
    let fd = OwnedFd::from(file);
    if fs::fstat(&fd)?.st_mode & 0o7777 != perm {
        fs::fchmod(&fd, Perm::from_raw_mode(perm))?;
    }
    Ok(fd)
}

/// Replaces (or creates) `name` in one step.
pub(crate) fn write_atomic_at(dir: impl AsFd, name: &[u8], data: &[u8], perm: u32, sync: bool) -> io::Result<()> {
    let dir = dir.as_fd();
    let temp = temp_name();
    let fd = create_at(dir, &temp, data, perm)?;
    if sync {
        fs::fdatasync(&fd)?;
    }
    fs::renameat(dir, temp.as_slice(), dir, name).inspect_err(|_| {
        let _ = fs::unlinkat(dir, temp.as_slice(), AtFlags::empty());
    })?;
    Ok(())
}

/// A name that nobody else uses, in git's style for files to be ignored.
pub(crate) fn temp_name() -> Vec<u8> {
    format!(".eccfg-tmp-{}", unique()).into_bytes()
}

/// A short text that no other process, and no other call, gets.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = now_ns();
    format!("{:x}-{:x}-{:x}", std::process::id(), now, COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Both times of a file.
pub(crate) fn times(time_ns: i64) -> fs::Timestamps {
    let time =
        fs::Timespec { tv_sec: time_ns.div_euclid(1_000_000_000), tv_nsec: time_ns.rem_euclid(1_000_000_000) as _ };
    fs::Timestamps { last_access: time, last_modification: time }
}

pub(crate) fn now_ns() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

/// Swaps two directories in one instant.
pub(crate) fn exchange(a_dir: impl AsFd, a: &[u8], b_dir: impl AsFd, b: &[u8]) -> io::Result<()> {
    Ok(fs::renameat_with(a_dir, a, b_dir, b, RenameFlags::EXCHANGE)?)
}

/// Removes a file, or a directory with all that is in it. Absent is fine.
pub(crate) fn remove_all_at(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    let dir = dir.as_fd();
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(err) => return Err(err.into()),
    }
    let sub = match open_dir_at(dir, name) {
        Ok(sub) => sub,
        Err(err) if err.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) => {
            fs::chmodat(dir, name, Perm::RWXU, AtFlags::empty())?;
            open_dir_at(dir, name)?
        }
        Err(err) => return Err(err),
    };
    for (child, _) in list(&sub)? {
        remove_all_at(&sub, &child)?;
    }
    drop(sub);
    Ok(fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// `mkdir`, if it is not there yet, with exactly these permissions.
pub(crate) fn ensure_dir_at(dir: impl AsFd, name: &[u8], perm: u32) -> io::Result<()> {
    let dir = dir.as_fd();
    match fs::mkdirat(dir, name, Perm::from_raw_mode(perm | 0o700)) {
        Ok(()) => Ok(fs::chmodat(dir, name, Perm::from_raw_mode(perm), AtFlags::empty())?),
        Err(Errno::EXIST) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// The last component of a path and what is before it.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// `path` and every directory above it, outermost first, without the root: `a`, `a/b` for `a/b/c`.
pub(crate) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(i, _)| &path[..i])
}

/// Opens the directories of many paths one after the other, keeping open what the next path may share. Quick when
/// the paths come sorted; correct in any order as long as nobody renames directories in between.
pub(crate) struct DirCursor {
    root: Arc<OwnedFd>,
    /// The directory that `stack` leads to.
    open: Vec<u8>,
    stack: Vec<(usize, OwnedFd)>,
}

impl DirCursor {
    pub(crate) fn new(root: Arc<OwnedFd>) -> Self {
        DirCursor { root, open: Vec::new(), stack: Vec::new() }
    }

    /// The directory `path`, if all of it exists and no part of it is a link.
    pub(crate) fn dir(&mut self, path: &[u8]) -> io::Result<BorrowedFd<'_>> {
        self.dir_with(path, |_, _, _| Err(io::Error::from(io::ErrorKind::NotFound)))
    }

    /// The directory `path`; `make(parent, name, path)` is called for components that do not exist.
    pub(crate) fn dir_with(
        &mut self,
        path: &[u8],
        mut make: impl FnMut(BorrowedFd<'_>, &[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<BorrowedFd<'_>> {
        while !is_at_or_below(path, &self.open) {
            self.stack.pop();
            let len = self.stack.last().map_or(0, |(len, _)| *len);
            self.open.truncate(len);
        }
        while self.open.len() < path.len() {
            let from = if self.open.is_empty() { 0 } else { self.open.len() + 1 };
            let to = path[from..].iter().position(|byte| *byte == b'/').map_or(path.len(), |i| from + i);
            let parent = self.stack.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let fd = match open_dir_at(parent, &path[from..to]) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    make(parent, &path[from..to], &path[..to])?;
                    open_dir_at(parent, &path[from..to])?
                }
                other => other?,
            };
            self.open = path[..to].to_vec();
            self.stack.push((to, fd));
        }
        Ok(self.stack.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// The directory that `path` is in, and its name there.
    pub(crate) fn parent<'p>(&mut self, path: &'p [u8]) -> io::Result<(BorrowedFd<'_>, &'p [u8])> {
        let (dir, name) = split(path);
        Ok((self.dir(dir)?, name))
    }

    /// `lstat`; `None` also if a directory on the way is missing or no directory.
    pub(crate) fn try_lstat(&mut self, path: &[u8]) -> io::Result<Option<Sig>> {
        match self.parent(path) {
            Ok((dir, name)) => try_lstat_at(dir, name),
            Err(err) if absent(&err) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Forgets the open directories; needed after removing or replacing one.
    pub(crate) fn reset(&mut self) {
        self.open.clear();
        self.stack.clear();
    }
}

/// The path leads nowhere: missing, or through something that is no directory.
pub(crate) fn absent(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || err.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// True if `path` equals `dir` or lies below it; everything lies below the root, which is empty.
pub(crate) fn is_at_or_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cursor_walks_and_never_follows_links() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("a/b/c")).unwrap();
        std::fs::create_dir_all(temp.path().join("ab")).unwrap();
        std::fs::write(temp.path().join("a/b/c/f"), "x").unwrap();
        std::fs::write(temp.path().join("ab/g"), "y").unwrap();
        std::os::unix::fs::symlink("a", temp.path().join("link")).unwrap();
        let mut cursor = DirCursor::new(Arc::new(open_dir(temp.path()).unwrap()));
        for _ in 0..2 {
            assert_eq!(cursor.try_lstat(b"a/b/c/f").unwrap().unwrap().size, 1);
            assert_eq!(cursor.try_lstat(b"ab/g").unwrap().unwrap().kind(), Kind::File);
            assert!(cursor.try_lstat(b"link/b").unwrap().is_none());
            assert!(cursor.try_lstat(b"ab/g/h").unwrap().is_none());
            assert!(cursor.try_lstat(b"a/x/y").unwrap().is_none());
        }
    }

    #[test]
    fn relations_of_paths() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
        assert_eq!(ancestors(b"a/b/c").collect::<Vec<_>>(), [&b"a"[..], b"a/b"]);
        assert!(is_at_or_below(b"a/b", b"a") && is_at_or_below(b"a", b"a") && !is_at_or_below(b"ab", b"a"));
    }

    #[test]
    fn removes_deep_and_unreadable_trees() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("t/a/b")).unwrap();
        std::fs::write(temp.path().join("t/a/b/f"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", temp.path().join("t/etc")).unwrap();
        let dir = open_dir(temp.path()).unwrap();
        remove_all_at(&dir, b"t").unwrap();
        remove_all_at(&dir, b"t").unwrap();
        assert!(!temp.path().join("t").exists() && Path::new("/etc/passwd").exists());
    }
}
