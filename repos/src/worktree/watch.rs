//! What was touched since it was last looked at, told by the kernel.
//!
//! Looking at 10,000 files costs more than everything else in an update. inotify says which of them need it: every directory of
//! *both* trees is watched, and watches belong to inodes, so they stay where they are when the trees change places. What is
//! collected are paths, not meanings: whatever happened to a path, it is looked at again, and the manifest is right about all
//! the others. Our own writes are told too, and looked at like anybody's.
//!
//! # What always holds
//! A directory of an armed tree is watched since before it was last looked at, or lies at or below a path that is noted to be looked
//! at as a whole. Where that cannot be kept up (too many events or directories, a file system that others may change) the
//! tree is not armed, and every look is at every file. Arming costs a walk and happens only when nobody waits ([`Watch::arm`]).
//!
//! # What inotify does not see
//! A store through a mapping is told when the file is unmapped; a write through a hard link from outside the tree, never. For
//! these there is the look at the displaced tree after every exchange, which is always at every file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::FileType;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::fsx;
use super::tree::Tree;

/// How far down a touched path has to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// The path itself.
    Alone,
    /// A directory came or went: with all that is below.
    Whole,
}

/// Paths relative to a tree's root.
pub(crate) type Paths = BTreeMap<Vec<u8>, Depth>;

/// More than this are not remembered one by one: looking at every file is as quick then.
const MAX_TOUCHED: usize = 4096;
/// After a failure the next attempt to arm is made no sooner.
const RETRY: Duration = Duration::from_secs(60);
/// The kernel keeps 16,384 events (`fs.inotify.max_queued_events`); they are fetched this often at most, so that a log file
/// below the working copy does not keep a thread busy.
const PACE: Duration = Duration::from_millis(50);

/// Watches the two trees of a working copy.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    /// The fetching thread waits for this to be closed too.
    _alive: io::PipeWriter,
}

struct Shared {
    inotify: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Which directory a watch is on. Bounded by the directories of two trees and by `fs.inotify.max_user_watches`.
    dirs: HashMap<i32, Place>,
    /// At most two.
    trees: Vec<Slot>,
    /// Why a tree is not armed, as it was last said.
    trouble: Option<String>,
    not_before: Option<Instant>,
}

struct Place {
    root: Root,
    path: Vec<u8>,
}

/// A tree is known by the inode of its root, which stays when the trees change places.
type Root = (u64, u64);

struct Slot {
    root: Root,
    armed: bool,
    /// The tree's id when it was last looked at. Everything but `touched` is as it was then.
    known: Option<String>,
    touched: Paths,
}

impl Slot {
    fn disarm(&mut self) {
        self.armed = false;
        self.known = None;
        self.touched.clear();
    }

    fn touch(&mut self, path: Vec<u8>, depth: Depth) {
        let noted = self.touched.entry(path).or_insert(depth);
        *noted = depth.max(*noted);
        if self.touched.len() > MAX_TOUCHED {
            // Still watched, but new directories are among what is forgotten: it has to be walked again.
            self.disarm();
        }
    }
}

fn events_wanted() -> WatchFlags {
    WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        // The end of a mapping through which the file could be written.
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::ONLYDIR
        | WatchFlags::EXCL_UNLINK
}

/// Why a tree cannot be watched.
#[derive(Debug, thiserror::Error)]
enum ArmError {
    #[error("there are more directories than this user may watch (fs.inotify.max_user_watches)")]
    TooManyDirectories,
    #[error("this user has too many inotify instances (fs.inotify.max_user_instances)")]
    TooManyInstances,
    #[error("its file system can be changed from elsewhere")]
    Shared,
    #[error("one of its directories appears twice")]
    Twice,
    #[error("{0}")]
    Other(#[from] io::Error),
}

impl Watch {
    /// Nothing is armed yet.
    pub(crate) fn new() -> io::Result<Watch> {
        let shared = Arc::new(Shared::new()?);
        let (ended, alive) = io::pipe()?;
        let fetching = Arc::downgrade(&shared);
        let inotify = shared.inotify.try_clone()?;
        std::thread::Builder::new()
            .name("worktree-watch".into())
            .spawn(move || keep_fetching(&fetching, &inotify, &ended))?;
        Ok(Watch { shared, _alive: alive })
    }

    /// Why a tree is not watched, if one is not.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    /// Watches every directory of `tree`, if that is not so already and did not fail a moment ago. What is not armed has to be
    /// looked at as a whole next, whatever [`begin`](Self::begin) said before.
    pub(crate) fn arm(&self, tree: &Tree) {
        let mut state = self.shared.fetched();
        let Ok(root) = root_of(tree) else { return };
        if state.slot(root).is_some_and(|slot| slot.armed) || state.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        state.make_room(&self.shared.inotify, root);
        match self.shared.arm_all(&mut state, tree, root) {
            Ok(()) => {
                if state.trouble.take().is_some() {
                    tracing::info!(tree = %tree.path.display(), "the working copy can be watched again");
                }
                state.not_before = None;
                state.trees.push(Slot { root, armed: true, known: None, touched: Paths::new() });
            }
            Err(err) => {
                state.drop_tree(&self.shared.inotify, root);
                state.not_before = Some(Instant::now() + RETRY);
                let why = err.to_string();
                if state.trouble.as_ref() != Some(&why) {
                    tracing::warn!(
                        tree = %tree.path.display(),
                        why,
                        "the working copy cannot be watched; every update looks at every file, which takes longer"
                    );
                    state.trouble = Some(why);
                }
            }
        }
    }

    /// The caller is about to look at `tree`, whose id is `id`. Answers what was touched since it was last looked at under this
    /// id, or `None` if that is not known: then everything has to be looked at. The answer is given once; unless
    /// [`done`](Self::done) follows, the next look is at everything.
    pub(crate) fn begin(&self, tree: &Tree, id: &str) -> Option<Paths> {
        let mut state = self.shared.fetched();
        let root = root_of(tree).ok()?;
        let slot = state.slot(root)?;
        let (known, touched) = (slot.known.take(), std::mem::take(&mut slot.touched));
        if !slot.armed {
            return None;
        }
        // Directories that came must be watched before they are looked at.
        for path in touched.iter().filter(|(_, depth)| **depth == Depth::Whole).map(|(path, _)| path) {
            if self.shared.arm_below(&mut state, tree, root, path).is_err() {
                state.drop_tree(&self.shared.inotify, root);
                return None;
            }
        }
        (known.as_deref() == Some(id) && !id.is_empty()).then_some(touched)
    }

    /// `tree` was looked at since [`begin`](Self::begin), and the caller remembers under `id` what it holds.
    pub(crate) fn done(&self, tree: &Tree, id: &str) {
        if let Ok(root) = root_of(tree)
            && let Some(slot) = self.shared.lock().slot(root).filter(|slot| slot.armed)
        {
            slot.known = Some(id.into());
        }
    }

    /// What is remembered of `tree` under the id `old` is remembered under `new` from now on.
    pub(crate) fn renamed(&self, tree: &Tree, old: &str, new: &str) {
        if let Ok(root) = root_of(tree)
            && let Some(slot) = self.shared.lock().slot(root).filter(|slot| slot.known.as_deref() == Some(old))
        {
            slot.known = Some(new.into());
        }
    }

    /// True if nothing in `tree` was touched since it was last looked at under this id.
    pub(crate) fn is_untouched(&self, tree: &Tree, id: &str) -> bool {
        let mut state = self.shared.fetched();
        let Ok(root) = root_of(tree) else { return false };
        state.slot(root).is_some_and(|slot| slot.known.as_deref() == Some(id) && slot.touched.is_empty())
    }
}

fn root_of(tree: &Tree) -> io::Result<Root> {
    let stat = rustix::fs::fstat(&tree.mounts[0].dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Fetches events until the other side is closed, so that the kernel's queue does not run over while nobody looks.
fn keep_fetching(shared: &Weak<Shared>, inotify: &OwnedFd, ended: &io::PipeReader) {
    loop {
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
        let Some(shared) = shared.upgrade() else { return };
        drop(shared.fetched());
        drop(shared);
        std::thread::sleep(PACE);
    }
}

impl Shared {
    fn new() -> io::Result<Shared> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|err| match err {
            Errno::MFILE => io::Error::other(ArmError::TooManyInstances),
            err => err.into(),
        })?;
        Ok(Shared { inotify, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state with everything that has happened until now.
    fn fetched(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            match events.next() {
                Ok(event) => state.note(&self.inotify, event.wd(), event.events(), event.file_name()),
                Err(Errno::AGAIN) => return state,
                Err(Errno::INTR) => {}
                Err(_) => {
                    state.trees.iter_mut().for_each(Slot::disarm);
                    return state;
                }
            }
        }
    }

    fn arm_all(&self, state: &mut State, tree: &Tree, root: Root) -> Result<(), ArmError> {
        let dir = &tree.mounts[0].dir;
        if !is_local(dir)? {
            return Err(ArmError::Shared);
        }
        let mut seen = HashSet::new();
        self.walk(state, dir, root, Vec::new(), &skipped(tree), &mut |wd| seen.insert(wd))
    }

    /// Watches a directory that came, if it is still there.
    fn arm_below(&self, state: &mut State, tree: &Tree, root: Root, path: &[u8]) -> Result<(), ArmError> {
        let skip = skipped(tree);
        if skip.iter().any(|s| fsx::is_at_or_below(path, s)) {
            return Ok(());
        }
        let mut cursor = tree.mounts[0].cursor();
        match cursor.dir(path) {
            // A directory that was renamed inside the tree has its watch already: the same one under another path.
            Ok(dir) => self.walk(state, dir, root, path.to_vec(), &skip, &mut |_| true),
            Err(err) if fsx::absent(&err) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    /// First the watch, then the list: what comes after the list is told.
    fn walk(
        &self,
        state: &mut State,
        dir: impl AsFd,
        root: Root,
        path: Vec<u8>,
        skip: &[Vec<u8>],
        is_new: &mut dyn FnMut(i32) -> bool,
    ) -> Result<(), ArmError> {
        super::fault::watch_limit(state.dirs.len()).map_err(|()| ArmError::TooManyDirectories)?;
        // By descriptor: the path may lead to the other tree by now.
        let place = format!("/proc/self/fd/{}/.", dir.as_fd().as_raw_fd());
        let wd = match inotify::add_watch(&self.inotify, place, events_wanted()) {
            Ok(wd) => wd,
            Err(Errno::NOSPC) => return Err(ArmError::TooManyDirectories),
            Err(err) => return Err(io::Error::from(err).into()),
        };
        if !is_new(wd) {
            return Err(ArmError::Twice);
        }
        state.dirs.insert(wd, Place { root, path: path.clone() });
        for (name, kind) in fsx::list(&dir)? {
            if !matches!(kind, FileType::Directory | FileType::Unknown) {
                continue;
            }
            let below = crate::path::join_bytes(&path, &name);
            if skip.contains(&below) {
                continue;
            }
            match fsx::open_dir_at(&dir, &name) {
                Ok(sub) => self.walk(state, &sub, root, below, skip, is_new)?,
                // Gone since it was listed, or no directory.
                Err(err) if fsx::absent(&err) => {}
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }
}

/// The `.git` directories of the mounts, which are always looked at.
fn skipped(tree: &Tree) -> Vec<Vec<u8>> {
    let nested = tree.mounts[0].skip.iter().filter(|name| *name != b".git");
    nested.map(|at| crate::path::join_bytes(at, b".git")).chain([b".git".to_vec()]).collect()
}

impl State {
    fn slot(&mut self, root: Root) -> Option<&mut Slot> {
        self.trees.iter_mut().find(|slot| slot.root == root)
    }

    /// A third tree means that one of the two has been made anew.
    fn make_room(&mut self, inotify: &OwnedFd, root: Root) {
        self.drop_tree(inotify, root);
        while self.trees.len() > 1 {
            let unarmed = self.trees.iter().position(|slot| !slot.armed).unwrap_or(0);
            let old = self.trees[unarmed].root;
            self.drop_tree(inotify, old);
        }
    }

    fn drop_tree(&mut self, inotify: &OwnedFd, root: Root) {
        self.trees.retain(|slot| slot.root != root);
        self.unwatch(inotify, |place| place.root == root);
    }

    fn unwatch(&mut self, inotify: &OwnedFd, which: impl Fn(&Place) -> bool) {
        let gone: Vec<i32> = self.dirs.iter().filter(|(_, place)| which(place)).map(|(wd, _)| *wd).collect();
        for wd in gone {
            self.dirs.remove(&wd);
            // It may have gone with its directory.
            let _ = inotify::remove_watch(inotify, wd);
        }
    }

    fn note(&mut self, inotify: &OwnedFd, wd: i32, what: ReadFlags, name: Option<&CStr>) {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.trees.iter_mut().for_each(Slot::disarm);
            return;
        }
        let Some(place) = self.dirs.get(&wd) else { return };
        let (root, dir) = (place.root, place.path.clone());
        if what.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) {
            self.dirs.remove(&wd);
            if (dir.is_empty() || what.contains(ReadFlags::UNMOUNT))
                && let Some(slot) = self.slot(root)
            {
                slot.disarm();
            }
            return;
        }
        let path = match name {
            Some(name) => crate::path::join_bytes(&dir, name.to_bytes()),
            None => dir,
        };
        let came_or_went = ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
        let whole = what.contains(ReadFlags::ISDIR) && what.intersects(came_or_went);
        if whole && what.contains(ReadFlags::MOVED_FROM) {
            // Its watches would go on telling about a path where it is not any more.
            self.unwatch(inotify, |place| place.root == root && fsx::is_at_or_below(&place.path, &path));
        }
        if let Some(slot) = self.slot(root).filter(|slot| slot.armed) {
            slot.touch(path, if whole { Depth::Whole } else { Depth::Alone });
        }
    }
}

/// File systems that nobody can change behind this kernel's back.
fn is_local(dir: impl AsFd) -> io::Result<bool> {
    /// ext2 to ext4, xfs, btrfs, f2fs, tmpfs, overlayfs, zfs, bcachefs.
    const KNOWN: [u64; 8] =
        [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1, 0xca45_1a4e];
    let kind = rustix::fs::fstatfs(dir)?.f_type as u64 & 0xffff_ffff;
    Ok(KNOWN.contains(&kind))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::super::types::Mount;
    use super::*;

    fn tree(root: &Path) -> Tree {
        std::fs::create_dir_all(root.join(".git")).unwrap();
        let mount = Mount { name: "r".into(), at: String::new(), remote_url: String::new(), ca: None };
        Tree::open(root, &[mount]).unwrap()
    }

    /// Nobody fetches the events beside the test.
    fn armed(tree: &Tree) -> Watch {
        let watch = Watch { shared: Arc::new(Shared::new().unwrap()), _alive: io::pipe().unwrap().1 };
        watch.arm(tree);
        assert_eq!(watch.trouble(), None);
        assert_eq!(watch.begin(tree, "1"), None, "armed, and never looked at");
        watch.done(tree, "1");
        watch
    }

    fn told(watch: &Watch, tree: &Tree) -> Option<Vec<(String, Depth)>> {
        let touched = watch.begin(tree, "1")?;
        watch.done(tree, "1");
        Some(touched.into_iter().map(|(path, depth)| (String::from_utf8(path).unwrap(), depth)).collect())
    }

    #[test]
    fn tells_what_was_touched_once() {
        let temp = tempfile::tempdir().unwrap();
        let tree = tree(temp.path());
        std::fs::create_dir_all(temp.path().join("a/b")).unwrap();
        let watch = armed(&tree);
        assert_eq!(told(&watch, &tree), Some(vec![]));
        std::fs::write(temp.path().join("a/b/c"), "1").unwrap();
        std::fs::write(temp.path().join(".git/HEAD"), "1").unwrap();
        assert!(!watch.is_untouched(&tree, "1"));
        assert_eq!(told(&watch, &tree), Some(vec![("a/b/c".into(), Depth::Alone)]));
        assert!(watch.is_untouched(&tree, "1") && !watch.is_untouched(&tree, "2"));
        std::fs::rename(temp.path().join("a"), temp.path().join("z")).unwrap();
        let told_whole = told(&watch, &tree).unwrap();
        assert!(told_whole.contains(&("a".into(), Depth::Whole)) && told_whole.contains(&("z".into(), Depth::Whole)));
        std::fs::write(temp.path().join("z/b/c"), "2").unwrap();
        assert_eq!(told(&watch, &tree), Some(vec![("z/b/c".into(), Depth::Alone)]), "not under the old name");
    }

    #[test]
    fn another_id_or_a_look_that_failed_means_a_look_at_everything() {
        let temp = tempfile::tempdir().unwrap();
        let tree = tree(temp.path());
        let watch = armed(&tree);
        watch.renamed(&tree, "1", "2");
        assert!(watch.begin(&tree, "2").is_some());
        assert_eq!(watch.begin(&tree, "2"), None, "nobody said that the look had succeeded");
        watch.done(&tree, "2");
        assert_eq!(watch.begin(&tree, "3"), None);
    }

    #[test]
    fn a_queue_that_ran_over_means_a_look_at_everything() {
        let temp = tempfile::tempdir().unwrap();
        let tree = tree(temp.path());
        let watch = armed(&tree);
        let queued = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let queued: usize = queued.trim().parse().unwrap();
        // Two in turn: equal events in a row are one.
        let mut files = ["a", "b"].map(|name| std::fs::File::create(temp.path().join(name)).unwrap());
        for i in 0..queued {
            io::Write::write_all(&mut files[i % 2], b"x").unwrap();
        }
        assert_eq!(watch.begin(&tree, "1"), None);
        watch.done(&tree, "1");
        assert_eq!(watch.begin(&tree, "1"), None, "directories may have come that are not watched");
        watch.arm(&tree);
        assert_eq!(watch.begin(&tree, "1"), None);
        watch.done(&tree, "1");
        assert_eq!(told(&watch, &tree), Some(vec![]));
    }

    #[test]
    fn a_tree_that_was_made_anew_is_another_one() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("t");
        let old = tree(&root);
        let watch = armed(&old);
        std::fs::remove_dir_all(&root).unwrap();
        let new = tree(&root);
        assert_eq!(watch.begin(&new, "1"), None);
        watch.done(&new, "1");
        assert_eq!(watch.begin(&new, "1"), None, "it is not armed");
    }
}
