//! Finding what differs from a manifest on disk.
//!
//! This is the main cost of an update: one `getdents` per directory and one `lstat` per file. Directories are
//! spread over a few threads; within one, the sorted names are merged with the manifest's sorted entries, so
//! nothing is looked up.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};

use rustix::fs::{self, AtFlags, FileType, RawDir};
use rustix::io::Errno;

use super::fsx::{self, DirCursor, Kind, Sig, absent, open_dir_at};
use super::manifest::{DirMeta, Entry, Held, Manifest, PathKey};
use super::watch::{Depth, Paths};

/// A path where disk and manifest disagree, at least in the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diff {
    pub path: PathKey,
    /// What is there; `None`: nothing any more.
    pub found: Option<Sig>,
}

#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// Sorted by path.
    pub diffs: Vec<Diff>,
    /// All directories, sorted by path.
    pub dirs: Vec<(PathKey, DirMeta)>,
}

/// Below this many files the threads cost more than they save.
const PARALLEL_FROM: usize = 1000;
/// The kernel's directory locks and this machine class do not reward more.
const MAX_THREADS: usize = 4;

struct Job {
    path: Vec<u8>,
    parent: Arc<OwnedFd>,
    /// The entries of the manifest below `path`.
    range: Range<usize>,
    /// The directories of the manifest below `path`.
    dirs: Range<usize>,
}

struct Queue {
    /// Directories that wait. Bounded by the directories of the tree; a stack, so that few descriptors are open.
    jobs: Vec<Job>,
    /// Workers that may still add jobs.
    busy: usize,
    failed: bool,
}

struct Pool<'a> {
    queue: Mutex<Queue>,
    wake: Condvar,
    manifest: &'a Manifest,
    /// Names directly below the root that belong to somebody else: `.git`, nested repositories.
    skip: &'a [Vec<u8>],
}

/// Compares the tree at `root` with the manifest.
pub(crate) fn scan(root: &Arc<OwnedFd>, manifest: &Manifest, skip: &[Vec<u8>]) -> io::Result<Scanned> {
    let first = Job {
        path: Vec::new(),
        parent: Arc::clone(root),
        range: 0..manifest.entries.len(),
        dirs: manifest.dirs_below(b"", 0..manifest.dirs.len()),
    };
    let pool = Pool {
        queue: Mutex::new(Queue { jobs: vec![first], busy: 0, failed: false }),
        wake: Condvar::new(),
        manifest,
        skip,
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS);
    let threads = if manifest.entries.len() < PARALLEL_FROM { 1 } else { cores };
    let mut all = Scanned::default();
    if threads == 1 {
        all = pool.work()?;
    } else {
        let parts = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| pool.work())).collect();
            let own = pool.work();
            let mut parts = vec![own];
            parts.extend(
                others
                    .into_iter()
                    .map(|t| t.join().unwrap_or_else(|_| Err(io::Error::other("a scanning thread panicked")))),
            );
            parts
        });
        for part in parts {
            let part = part?;
            all.diffs.extend(part.diffs);
            all.dirs.extend(part.dirs);
        }
    }
    all.diffs.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    all.dirs.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// Looks at these paths only; about all others the manifest is right. Paths with [`Depth::Whole`] are looked at with all that is
/// below, the others alone, and the directories they lie in are noted anew.
pub(crate) fn scan_touched(root: &Arc<OwnedFd>, manifest: &Manifest, touched: &Paths) -> io::Result<Scanned> {
    let mut look = Touched {
        manifest,
        cursor: DirCursor::new(Arc::clone(root)),
        dirs: BTreeMap::new(),
        whole: HashSet::new(),
        out: Scanned::default(),
    };
    for (path, depth) in touched {
        look.path(path, *depth)?;
    }
    let Touched { dirs, mut out, .. } = look;
    out.diffs.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    out.diffs.dedup_by(|a, b| a.path == b.path);
    let known = manifest.dirs.iter().filter(|(path, _)| !dirs.contains_key(path)).cloned();
    out.dirs = known.chain(dirs.iter().filter_map(|(path, meta)| Some((Arc::clone(path), (*meta)?)))).collect();
    out.dirs.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(out)
}

struct Touched<'a> {
    manifest: &'a Manifest,
    cursor: DirCursor,
    /// Directories that were looked at; `None`: not there.
    dirs: BTreeMap<PathKey, Option<DirMeta>>,
    /// Paths below which nothing is left to be looked at.
    whole: HashSet<Vec<u8>>,
    out: Scanned,
}

impl<'a> Touched<'a> {
    fn path(&mut self, path: &[u8], depth: Depth) -> io::Result<()> {
        if path.is_empty() {
            return self.directory(path);
        }
        // A path sorts after the directories that it lies in.
        if fsx::ancestors(path).any(|dir| self.whole.contains(dir)) {
            return Ok(());
        }
        self.directory(fsx::split(path).0)?;
        let found = self.cursor.try_lstat(path)?;
        let known = self.manifest.get(path);
        if let Some(sig) = found.filter(|sig| sig.kind() == Kind::Dir) {
            known.into_iter().for_each(|entry| push_missing(entry, &mut self.out));
            if depth == Depth::Alone && self.manifest.dir(path).is_some_and(|dir| dir.ino == sig.ino) {
                return self.directory(path);
            }
            return self.below(path);
        }
        self.forget_below(path);
        self.whole.insert(path.to_vec());
        match (found, known) {
            // Nobody versions it, and a log is written all the time: only another file in its place is news.
            (Some(sig), Some(entry)) if entry.base.is_none() && entry.held.is_some_and(|h| h.oid.is_none()) => {
                self.pool().compare(b"", path, known, sig, &mut self.out);
            }
            // Not by its signature: a store through a mapping need not change the time.
            (Some(sig), _) => self.out.diffs.push(Diff { path: path.into(), found: Some(sig) }),
            (None, Some(entry)) => push_missing(entry, &mut self.out),
            (None, None) => {}
        }
        Ok(())
    }

    /// Notes what a directory itself is like now.
    fn directory(&mut self, path: &[u8]) -> io::Result<()> {
        if self.dirs.contains_key(path) {
            return Ok(());
        }
        let meta = match self.cursor.dir(path) {
            Ok(dir) => Some(DirMeta::of(&fs::fstat(dir)?)),
            Err(err) if absent(&err) => None,
            Err(err) => return Err(err),
        };
        self.dirs.insert(path.into(), meta);
        Ok(())
    }

    /// A directory that came, with everything in it.
    fn below(&mut self, path: &[u8]) -> io::Result<()> {
        self.dirs.extend(self.known_dirs(path).map(|dir| (dir, None)).collect::<Vec<_>>());
        self.whole.insert(path.to_vec());
        let (parent, _) = self.cursor.parent(path)?;
        let parent = Arc::new(parent.try_clone_to_owned()?);
        let all = 0..self.manifest.entries.len();
        let pool = self.pool();
        let job = pool.job(&parent, path.to_vec(), &all, &(0..self.manifest.dirs.len()));
        pool.lock().jobs.push(job);
        let found = pool.work()?;
        self.out.diffs.extend(found.diffs);
        self.dirs.extend(found.dirs.into_iter().map(|(path, meta)| (path, Some(meta))));
        Ok(())
    }

    /// Nothing is below this path any more.
    fn forget_below(&mut self, path: &[u8]) {
        self.dirs.extend(self.known_dirs(path).map(|dir| (dir, None)).collect::<Vec<_>>());
        for entry in self.manifest.below(path) {
            push_missing(entry, &mut self.out);
        }
    }

    /// The directories of the manifest at and below a path that is not the root.
    fn known_dirs(&self, path: &[u8]) -> impl Iterator<Item = PathKey> {
        let dirs = &self.manifest.dirs;
        let itself = dirs.binary_search_by(|(dir, _)| (**dir).cmp(path)).ok();
        let below = self.manifest.dirs_below(path, 0..dirs.len());
        itself.into_iter().chain(below).map(|i| Arc::clone(&dirs[i].0))
    }

    fn pool(&self) -> Pool<'a> {
        Pool {
            queue: Mutex::new(Queue { jobs: Vec::new(), busy: 0, failed: false }),
            wake: Condvar::new(),
            manifest: self.manifest,
            skip: &[],
        }
    }
}

impl Pool<'_> {
    fn work(&self) -> io::Result<Scanned> {
        let mut out = Scanned::default();
        let mut names = Names::default();
        while let Some(job) = self.next() {
            let result = self.visit(job, &mut names, &mut out);
            let mut queue = self.lock();
            queue.busy -= 1;
            queue.failed |= result.is_err();
            self.wake.notify_all();
            drop(queue);
            result?;
        }
        Ok(out)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.failed {
                return None;
            }
            if let Some(job) = queue.jobs.pop() {
                queue.busy += 1;
                return Some(job);
            }
            if queue.busy == 0 {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// One directory: its own metadata, its files, and jobs for its directories.
    fn visit(&self, job: Job, names: &mut Names, out: &mut Scanned) -> io::Result<()> {
        let dir = if job.path.is_empty() {
            // A descriptor remembers how far it was read, and the root's is kept.
            Arc::new(open_dir_at(&job.parent, b".")?)
        } else {
            let name = super::fsx::split(&job.path).1;
            match open_dir_at(&job.parent, name) {
                Ok(fd) => Arc::new(fd),
                // Gone since it was listed, or replaced by something else: the files in it are gone.
                Err(err) if absent(&err) => {
                    self.missing(job.range, out);
                    return Ok(());
                }
                Err(err) => return Err(err),
            }
        };
        let meta = DirMeta::of(&fs::fstat(&dir)?);
        let before =
            self.manifest.dirs.binary_search_by(|(p, _)| (**p).cmp(&job.path)).ok().map(|i| &self.manifest.dirs[i]);
        let same_names = before.is_some_and(|(_, b)| b.has_same_names(&meta)) && !self.manifest.is_young(meta.mtime_ns);
        out.dirs.push((before.map_or_else(|| job.path.as_slice().into(), |(path, _)| Arc::clone(path)), meta));
        let mut prefix = job.path;
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        if same_names {
            return self.known_names(&dir, &prefix, job.range, job.dirs, out);
        }
        names.read(&dir, if prefix.is_empty() { self.skip } else { &[] })?;
        self.merge(&dir, &prefix, job.range, job.dirs, names, out)
    }

    /// A directory whose time says that no name came or went: only the files have to be looked at.
    fn known_names(
        &self,
        dir: &Arc<OwnedFd>,
        prefix: &[u8],
        range: Range<usize>,
        dirs: Range<usize>,
        out: &mut Scanned,
    ) -> io::Result<()> {
        let entries = &self.manifest.entries;
        let mut at = range.start;
        while at < range.end {
            let entry = &entries[at];
            let name = &entry.path[prefix.len()..];
            if let Some(slash) = name.iter().position(|b| *b == b'/') {
                let sub = &entry.path[..prefix.len() + slash + 1];
                at += entries[at..range.end].partition_point(|e| e.path.starts_with(sub));
                continue;
            }
            at += 1;
            if entry.held.is_none() {
                continue;
            }
            match fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => push_missing(entry, out),
                Ok(stat) => self.compare(prefix, name, Some(entry), Sig::of(&stat), out),
                Err(Errno::NOENT) => push_missing(entry, out),
                Err(err) => return Err(err.into()),
            }
        }
        let children =
            self.manifest.dirs[dirs.clone()].iter().filter(|(path, _)| !path[prefix.len()..].contains(&b'/'));
        let jobs = children.map(|(path, _)| self.job(dir, path.to_vec(), &range, &dirs)).collect();
        self.push(jobs);
        Ok(())
    }

    fn job(&self, parent: &Arc<OwnedFd>, path: Vec<u8>, range: &Range<usize>, dirs: &Range<usize>) -> Job {
        let slash = [path.as_slice(), b"/"].concat();
        let part = &self.manifest.entries[range.clone()];
        let from = part.partition_point(|e| *e.path < *slash);
        let len = part[from..].partition_point(|e| e.path.starts_with(&slash));
        let dirs = self.manifest.dirs_below(&path, dirs.clone());
        Job { path, parent: Arc::clone(parent), range: range.start + from..range.start + from + len, dirs }
    }

    fn push(&self, jobs: Vec<Job>) {
        if !jobs.is_empty() {
            self.lock().jobs.extend(jobs);
            self.wake.notify_all();
        }
    }

    fn merge(
        &self,
        dir: &Arc<OwnedFd>,
        prefix: &[u8],
        range: Range<usize>,
        dirs: Range<usize>,
        names: &Names,
        out: &mut Scanned,
    ) -> io::Result<()> {
        let entries = &self.manifest.entries;
        let (mut at, end) = (range.start, range.end);
        let mut jobs = Vec::new();
        for name in &names.items {
            let bytes = names.bytes(name);
            let key = Key { name: bytes, is_dir: name.is_dir };
            let from = at;
            while at < end && key.is_after(&entries[at].path[prefix.len()..]) {
                at += 1;
            }
            self.missing(from..at, out);
            if name.is_dir {
                let len = entries[at..end].partition_point(|e| key.contains(&e.path[prefix.len()..]));
                let path = [prefix, bytes].concat();
                let dirs = self.manifest.dirs_below(&path, dirs.clone());
                jobs.push(Job { path, parent: Arc::clone(dir), range: at..at + len, dirs });
                at += len;
                continue;
            }
            let known = (at < end && &entries[at].path[prefix.len()..] == bytes).then(|| &entries[at]);
            at += usize::from(known.is_some());
            match fs::statat(dir.as_fd(), names.c_str(name)?, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.compare(prefix, bytes, known, Sig::of(&stat), out),
                Err(Errno::NOENT) => known.into_iter().for_each(|e| push_missing(e, out)),
                Err(err) => return Err(err.into()),
            }
        }
        self.missing(at..end, out);
        self.push(jobs);
        Ok(())
    }

    fn compare(&self, prefix: &[u8], name: &[u8], known: Option<&Entry>, sig: Sig, out: &mut Scanned) {
        if let Some(entry) = known {
            if entry.held.as_ref().is_some_and(|held| self.is_same(entry, held, &sig)) {
                return;
            }
            out.diffs.push(Diff { path: Arc::clone(&entry.path), found: Some(sig) });
        } else {
            out.diffs.push(Diff { path: [prefix, name].concat().into(), found: Some(sig) });
        }
    }

    fn is_same(&self, entry: &Entry, held: &Held, sig: &Sig) -> bool {
        if entry.base.is_none() && held.oid.is_none() {
            // Nobody knows its content, so only another file in its place is news.
            return held.sig.ino == sig.ino
                && held.sig.mode == sig.mode
                && held.sig.uid == sig.uid
                && held.sig.gid == sig.gid;
        }
        held.sig == *sig && !self.manifest.is_racy(sig)
    }

    fn missing(&self, range: Range<usize>, out: &mut Scanned) {
        self.manifest.entries[range].iter().for_each(|entry| push_missing(entry, out));
    }
}

fn push_missing(entry: &Entry, out: &mut Scanned) {
    if entry.held.is_some() {
        out.diffs.push(Diff { path: Arc::clone(&entry.path), found: None });
    }
}

/// A name on disk, comparable with paths relative to its directory in the order of full paths: a directory sorts
/// as if its name ended in a slash.
struct Key<'a> {
    name: &'a [u8],
    is_dir: bool,
}

impl Key<'_> {
    fn is_after(&self, path: &[u8]) -> bool {
        if !self.is_dir {
            return path < self.name;
        }
        match path.get(..self.name.len()) {
            Some(head) if head == self.name => path.get(self.name.len()).is_none_or(|byte| *byte < b'/'),
            _ => path < self.name,
        }
    }

    fn contains(&self, path: &[u8]) -> bool {
        path.strip_prefix(self.name).is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

/// The names of one directory, sorted as in a git index; the allocation is used again for the next one.
#[derive(Default)]
struct Names {
    arena: Vec<u8>,
    items: Vec<Name>,
}

struct Name {
    range: Range<usize>,
    is_dir: bool,
}

impl Names {
    fn bytes(&self, name: &Name) -> &[u8] {
        &self.arena[name.range.clone()]
    }

    fn c_str(&self, name: &Name) -> io::Result<&CStr> {
        CStr::from_bytes_with_nul(&self.arena[name.range.start..=name.range.end]).map_err(io::Error::other)
    }

    fn read(&mut self, dir: &OwnedFd, skip: &[Vec<u8>]) -> io::Result<()> {
        self.arena.clear();
        self.items.clear();
        let mut buffer = [MaybeUninit::<u8>::uninit(); 32 * 1024];
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if bytes == b"." || bytes == b".." || skip.iter().any(|s| s == bytes) {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                    Err(_) => false,
                },
                _ => false,
            };
            let start = self.arena.len();
            self.arena.extend_from_slice(name.to_bytes_with_nul());
            self.items.push(Name { range: start..self.arena.len() - 1, is_dir });
        }
        let arena = &self.arena;
        self.items.sort_unstable_by(|a, b| {
            in_index_order(&arena[a.range.clone()], a.is_dir, &arena[b.range.clone()], b.is_dir)
        });
        Ok(())
    }
}

fn in_index_order(a: &[u8], a_is_dir: bool, b: &[u8], b_is_dir: bool) -> std::cmp::Ordering {
    let common = a.len().min(b.len());
    a[..common].cmp(&b[..common]).then_with(|| {
        let next = |name: &[u8], is_dir: bool| name.get(common).copied().or(is_dir.then_some(b'/'));
        next(a, a_is_dir).cmp(&next(b, b_is_dir))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::super::fsx::{Kind, lstat_at, open_dir};
    use super::*;
    use crate::{Mode, Oid};

    fn open(path: &Path) -> Arc<OwnedFd> {
        Arc::new(open_dir(path).unwrap())
    }

    fn known(root: &Arc<OwnedFd>, dir: &Path, path: &str) -> Entry {
        let sig = lstat_at(root, path.as_bytes()).unwrap();
        assert!(dir.join(path).symlink_metadata().is_ok());
        let leaf = super::super::manifest::Leaf { mode: Mode::File, oid: Oid::NULL };
        Entry {
            path: path.as_bytes().into(),
            base: Some(leaf),
            held: Some(Held { sig, oid: Some(Oid::NULL), shared: false }),
        }
    }

    #[test]
    fn sees_exactly_what_changed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        for path in ["a.b", "a/x", "a/y", "a-c", "b/c/d", "b/c.d", "z"] {
            std::fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            std::fs::write(dir.join(path), path).unwrap();
        }
        std::fs::create_dir(dir.join(".git")).unwrap();
        let root = open(dir);
        let mut manifest = Manifest { taken_ns: i64::MAX, ..Manifest::default() };
        let entries =
            ["a-c", "a.b", "a/x", "a/y", "b/c.d", "b/c/d", "z"].iter().map(|p| known(&root, dir, p)).collect();
        manifest.entries = Arc::new(entries);
        let skip = [b".git".to_vec()];
        let clean = scan(&root, &manifest, &skip).unwrap();
        assert_eq!(clean.diffs, []);
        assert_eq!(
            clean.dirs.iter().map(|(p, _)| String::from_utf8_lossy(p).into_owned()).collect::<Vec<_>>(),
            ["", "a", "b", "b/c"]
        );

        // Once more, without reading the directories.
        manifest.dirs = Arc::new(clean.dirs);
        assert_eq!(scan(&root, &manifest, &skip).unwrap().diffs, []);
        assert_eq!(scan(&root, &manifest, &skip).unwrap().dirs, *manifest.dirs);

        std::fs::write(dir.join("a/x"), "longer content").unwrap();
        std::fs::remove_file(dir.join("a.b")).unwrap();
        std::fs::remove_dir_all(dir.join("b/c")).unwrap();
        std::fs::write(dir.join("b/c"), "a file now").unwrap();
        std::fs::remove_file(dir.join("z")).unwrap();
        std::fs::create_dir(dir.join("z")).unwrap();
        std::fs::write(dir.join("z/new"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
        let diffs = scan(&root, &manifest, &skip).unwrap().diffs;
        let seen: Vec<_> =
            diffs.iter().map(|d| (String::from_utf8_lossy(&d.path).into_owned(), d.found.map(|s| s.kind()))).collect();
        let expected = [
            ("a.b", None),
            ("a/x", Some(Kind::File)),
            ("b/c", Some(Kind::File)),
            ("b/c/d", None),
            ("link", Some(Kind::Symlink)),
            ("z", None),
            ("z/new", Some(Kind::File)),
        ];
        assert_eq!(seen, expected.map(|(p, k)| (p.to_owned(), k)));
    }
}
