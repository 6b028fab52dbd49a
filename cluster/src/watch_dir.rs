//! Telling that something below a directory changed, also when the directory itself is exchanged for another.
//!
//! An inotify watch belongs to an inode. When a working copy is swapped by rename, the watches stay on the displaced tree, so the parent
//! is watched too, and [`DirWatch::rearm`] puts fresh watches on what the path names now. Callers re-arm first and read afterwards: a
//! change between the two is then seen. Directories named `.git` are left out; they change with every `git status`.
//!
//! [`DirWatch::files`] watches a few files of a directory instead, and tells of them only when somebody has finished with one: a file
//! that is being written has a beginning that may mean something else than the whole.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A burst ends when nothing happened for this long.
const QUIET: Duration = Duration::from_millis(10);
/// A burst that does not end is reported anyway after this long.
const LONGEST_BURST: Duration = Duration::from_millis(150);
/// Watching more directories than this is a mistake (or an attack on inotify's per-user limit).
const MAX_DIRS: usize = 20_000;

/// A directory could not be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {}", path.display())]
pub struct WatchError {
    /// The directory.
    pub path: PathBuf,
    /// Why not.
    pub source: notify::Error,
}

/// Watches a directory and everything below it, or some files of it.
#[derive(Debug)]
pub struct DirWatch {
    dir: PathBuf,
    /// Those that matter; everything, if there is none.
    files: &'static [&'static str],
    watcher: RecommendedWatcher,
    // One slot: "something changed" needs no queue, a second event while one is pending adds nothing.
    changes: mpsc::Receiver<()>,
    /// Something changed that was not reported yet.
    pending: bool,
}

impl DirWatch {
    /// Watches `dir`, which need not exist yet as long as its parent does.
    pub fn new(dir: &Path) -> Result<Self, WatchError> {
        Self::files(dir, &[])
    }

    /// Watches the files of these names in `dir`, which need not exist yet as long as its parent does.
    pub fn files(dir: &Path, files: &'static [&'static str]) -> Result<Self, WatchError> {
        let (watcher, changes) = arm(dir, files)?;
        Ok(Self { dir: dir.into(), files, watcher, changes, pending: false })
    }

    /// Waits for a change, and for the end of the burst it belongs to; then watches whatever the path names now.
    ///
    /// Cancelling loses nothing but the debouncing.
    pub async fn changed(&mut self) {
        if !self.pending && self.changes.recv().await.is_none() {
            // The watcher lives in `self`; its sender cannot be gone. Waiting forever beats a busy loop all the same.
            std::future::pending::<()>().await;
        }
        self.pending = true;
        let end = Instant::now() + LONGEST_BURST;
        while let Ok(Some(())) = tokio::time::timeout_at(end.min(Instant::now() + QUIET), self.changes.recv()).await {}
        if let Err(error) = self.rearm() {
            tracing::warn!(dir = %self.dir.display(), error = %crate::error::Chain(&error), "directory not watched anew");
        }
        self.pending = false;
    }

    /// Puts watches on what the path names now.
    pub fn rearm(&mut self) -> Result<(), WatchError> {
        (self.watcher, self.changes) = arm(&self.dir, self.files)?;
        Ok(())
    }
}

type Armed = (RecommendedWatcher, mpsc::Receiver<()>);

fn arm(dir: &Path, files: &'static [&'static str]) -> Result<Armed, WatchError> {
    let (sender, changes) = mpsc::channel(1);
    let name = dir.file_name().map(PathBuf::from);
    let parent = parent_of(dir);
    let from_parent = (parent.clone(), name);
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| WatchError { path, source }
    };
    let handler = move |event: notify::Result<Event>| {
        if event.map_or(true, |event| matters(&event, &from_parent, files)) {
            let _ = sender.try_send(());
        }
    };
    let config = notify::Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(handler, config).map_err(failed(dir))?;
    watcher.watch(&parent, RecursiveMode::NonRecursive).map_err(failed(&parent))?;
    let mut found = 0;
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        found += 1;
        if found > MAX_DIRS {
            return Err(failed(&dir)(notify::Error::new(notify::ErrorKind::MaxFilesWatch)));
        }
        match watcher.watch(&dir, RecursiveMode::NonRecursive) {
            Ok(()) if files.is_empty() => waiting.extend(directories_in(&dir)),
            Ok(()) => {}
            // Gone since it was listed, or not there yet: the watch above it tells when it comes.
            Err(_) if !dir.exists() => {}
            Err(error) => return Err(failed(&dir)(error)),
        }
    }
    Ok((watcher, changes))
}

/// In the parent only the directory itself matters, not its neighbours. Being read is no change.
fn matters(event: &Event, (parent, name): &(PathBuf, Option<PathBuf>), files: &[&str]) -> bool {
    if event.paths.is_empty() {
        return !matches!(event.kind, EventKind::Access(_));
    }
    event.paths.iter().any(|path| {
        if path.parent() == Some(parent) {
            path.file_name().map(Path::new) == name.as_deref() && !matches!(event.kind, EventKind::Access(_))
        } else if files.is_empty() {
            !matches!(event.kind, EventKind::Access(_))
        } else {
            files.iter().any(|file| path.file_name() == Some(OsStr::new(file))) && is_finished(event.kind, path)
        }
    })
}

/// True if whoever did this to a file is done with it. One that is opened to be written is not, until it is closed; a link comes whole.
fn is_finished(kind: EventKind, path: &Path) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_)) => false,
        EventKind::Create(_) => path.symlink_metadata().is_ok_and(|meta| meta.is_symlink() || meta.nlink() > 1),
        _ => true,
    }
}

fn directories_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != ".git")
        .map(|entry| entry.path())
        .collect()
}

fn parent_of(dir: &Path) -> PathBuf {
    match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.into(),
        None => dir.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    async fn noticed(watch: &mut DirWatch) -> bool {
        tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn an_exchanged_directory_is_noticed_and_watched_anew() {
        let top = tempfile::tempdir().unwrap();
        let (live, spare) = (top.path().join("conf"), top.path().join("spare"));
        for dir in [&live, &spare] {
            fs::create_dir_all(dir.join("default")).unwrap();
        }
        let mut watch = DirWatch::new(&live).unwrap();
        for _ in 0..3 {
            nix::fcntl::renameat2(
                nix::fcntl::AT_FDCWD,
                &live,
                nix::fcntl::AT_FDCWD,
                &spare,
                nix::fcntl::RenameFlags::RENAME_EXCHANGE,
            )
            .unwrap();
            assert!(noticed(&mut watch).await, "the exchange was not noticed");
            fs::write(live.join("default/a.toml"), b"x").unwrap();
            assert!(noticed(&mut watch).await, "a change after the exchange was not noticed");
        }
    }

    #[tokio::test]
    async fn neighbours_git_and_readers_do_not_wake() {
        let top = tempfile::tempdir().unwrap();
        let live = top.path().join("conf");
        fs::create_dir_all(live.join(".git")).unwrap();
        fs::create_dir_all(live.join("n1/deep")).unwrap();
        fs::write(live.join("n1/deep/a"), b"x").unwrap();
        let mut watch = DirWatch::new(&live).unwrap();
        fs::write(top.path().join("neighbour"), b"x").unwrap();
        fs::write(live.join(".git/index"), b"x").unwrap();
        fs::read(live.join("n1/deep/a")).unwrap();
        // The watch works in order, so once this one has arrived, all before it have been judged.
        fs::write(live.join("n1/deep/b"), b"x").unwrap();
        assert!(noticed(&mut watch).await);
        let pending = watch.changes.try_recv();
        assert!(pending.is_err(), "something else woke the watcher as well");
    }

    #[tokio::test]
    async fn a_link_to_a_directory_is_watched_on_both_ends() {
        let top = tempfile::tempdir().unwrap();
        let (one, two, link) = (top.path().join("one/id"), top.path().join("two/id"), top.path().join("etc/identity"));
        for dir in [&one, &two, &top.path().join("etc")] {
            fs::create_dir_all(dir).unwrap();
        }
        crate::files::symlink_atomic(&one, &link).unwrap();
        let mut watch = DirWatch::new(&link).unwrap();
        fs::write(one.join("cert.pem"), b"x").unwrap();
        assert!(noticed(&mut watch).await, "a change behind the link");
        crate::files::symlink_atomic(&two, &link).unwrap();
        assert!(noticed(&mut watch).await, "the link itself");
        fs::write(two.join("cert.pem"), b"x").unwrap();
        assert!(noticed(&mut watch).await, "a change behind the new link");
    }

    #[tokio::test]
    async fn of_some_files_only_what_is_finished_is_told() {
        use std::io::Write as _;
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("etc");
        let mut watch = DirWatch::files(&dir, &["boot.toml"]).unwrap();
        fs::create_dir_all(dir.join("conf")).unwrap();
        assert!(noticed(&mut watch).await, "the directory itself came");
        let mut half = fs::File::create(dir.join("boot.toml")).unwrap();
        half.write_all(b"autoupdate = ").unwrap();
        fs::write(dir.join("conf/boot.toml"), b"x").unwrap();
        fs::write(dir.join("other.toml"), b"x").unwrap();
        let early = tokio::time::timeout(QUIET * 5, watch.changes.recv()).await;
        assert!(early.is_err(), "a file was told that is half written, or that does not matter");
        half.write_all(b"false\n").unwrap();
        drop(half);
        assert!(noticed(&mut watch).await, "it was closed");
        fs::write(dir.join("boot.new"), b"x").unwrap();
        fs::rename(dir.join("boot.new"), dir.join("boot.toml")).unwrap();
        assert!(noticed(&mut watch).await, "another took its place");
        fs::remove_file(dir.join("boot.toml")).unwrap();
        assert!(noticed(&mut watch).await, "it went");
        std::os::unix::fs::symlink("other.toml", dir.join("boot.toml")).unwrap();
        assert!(noticed(&mut watch).await, "a link took its place");
    }

    #[tokio::test]
    async fn a_directory_that_comes_later_is_noticed() {
        let top = tempfile::tempdir().unwrap();
        let live = top.path().join("conf");
        let mut watch = DirWatch::new(&live).unwrap();
        fs::create_dir(&live).unwrap();
        assert!(noticed(&mut watch).await);
        fs::create_dir(live.join("new")).unwrap();
        assert!(noticed(&mut watch).await);
        fs::write(live.join("new/file"), b"x").unwrap();
        assert!(noticed(&mut watch).await);
    }
}
