//! The files that a manager writes: opened when needed, kept open while used, finished, never written past what is committed.
//!
//! A file is known to the state before its first byte is written, so that a crash finds every file that it may have to cut.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::state::{FileMark, State};
use super::times::Times;

/// From so many files on, one sync of the file system is cheaper than one per file.
const SYNC_EACH: usize = 32;
/// How often an open file is compared with its name.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The endings of finished files that were compressed.
pub const COMPRESSED: [&str; 2] = [".gz", ".zst"];
/// The ending of what came too late for them.
pub const LATE: &str = ".late";

/// How files are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Permissions of files.
    pub file: u32,
    /// Permissions of directories.
    pub dir: u32,
    /// Files open at once.
    pub max_open: usize,
    /// How long a file without lines stays open.
    pub max_idle: Duration,
}

/// Whose a file is: the writer's, as long as it may grow or be cut, or the janitor's while it is compressed or removed.
#[derive(Debug, Clone, Default)]
pub struct Claims(Arc<Mutex<Owners>>);

#[derive(Debug, Default)]
struct Owners {
    writer: HashSet<PathBuf>,
    janitor: HashSet<PathBuf>,
}

impl Claims {
    fn owners(&self) -> std::sync::MutexGuard<'_, Owners> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the writer; false when the janitor has it.
    pub fn take_to_write(&self, path: &Path) -> bool {
        let mut owners = self.owners();
        let free = !owners.janitor.contains(path);
        if free {
            owners.writer.insert(path.into());
        }
        free
    }

    /// The writer needs it no more.
    pub fn written(&self, path: &Path) {
        self.owners().writer.remove(path);
    }

    /// For the janitor; false when the writer has it.
    pub fn take_to_finish(&self, path: &Path) -> bool {
        let mut owners = self.owners();
        let free = !owners.writer.contains(path);
        if free {
            owners.janitor.insert(path.into());
        }
        free
    }

    /// The janitor is done with it.
    pub fn finished(&self, path: &Path) {
        self.owners().janitor.remove(path);
    }
}

/// A path with an ending.
pub fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[derive(Debug)]
struct OpenFile {
    /// Where it really is: the wanted path, or the `.late` file beside it.
    path: PathBuf,
    file: File,
    times: Option<Times>,
    mark: FileMark,
    /// Lines of this round, and how many.
    pending: Vec<u8>,
    lines: u64,
    used: Instant,
    looked: Instant,
}

/// All of them, by the path that was wanted.
#[derive(Debug)]
pub struct Files {
    open: HashMap<PathBuf, OpenFile>,
    claims: Claims,
    /// Those with lines of this round.
    dirty: Vec<PathBuf>,
}

/// An error with the file it is about.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileFailure {
    /// What was tried.
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

impl FileFailure {
    fn new<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self { action, path: path.into(), source }
    }

    /// True where waiting for room is the right answer.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl Files {
    /// None open yet.
    pub fn new(claims: Claims) -> Self {
        Self { open: HashMap::new(), claims, dirty: Vec::new() }
    }

    /// Adds a line for a path; it is written with [`Files::write`].
    pub fn add(&mut self, path: &Path, time_us: u64, line: &[u8], fresh: &mut Fresh) {
        if let Some(file) = self.open.get_mut(path) {
            if file.pending.is_empty() {
                self.dirty.push(path.into());
            }
            file.add(time_us, line);
            return;
        }
        fresh.add(path, time_us, line);
    }

    /// Opens the files that lines came for. Answers which of them the state does not know yet; those must be committed before anything is
    /// written. After an error the same can be tried again: what an earlier try opened and nobody committed is in the answer too.
    pub fn open_fresh(
        &mut self,
        fresh: &Fresh,
        state: &State,
        modes: Modes,
    ) -> Result<Vec<(PathBuf, Option<FileMark>)>, FileFailure> {
        for path in fresh.0.keys() {
            if !self.open.contains_key(path) {
                let file = self.open_one(path, state, modes)?;
                self.open.insert(path.clone(), file);
            }
        }
        let opened = fresh.0.keys().filter_map(|path| self.open.get(path));
        let unknown = opened.filter(|file| state.file(&file.path) != Some(file.mark));
        Ok(unknown.map(|file| (file.path.clone(), Some(file.mark))).collect())
    }

    /// Gives opened files their lines. Answers how many came too late for their own file.
    pub fn take_fresh(&mut self, fresh: Fresh) -> u64 {
        for (path, lines) in fresh.0 {
            let Some(file) = self.open.get_mut(&path) else { continue };
            if file.pending.is_empty() {
                self.dirty.push(path.clone());
            }
            let mut rest = &lines.bytes[..];
            for (time_us, length) in lines.lines {
                let (line, after) = rest.split_at(length);
                file.add(time_us, line);
                rest = after;
            }
        }
        let late = self.dirty.iter().filter_map(|path| self.open.get(path).filter(|file| file.path != *path));
        late.map(|file| file.lines).sum()
    }

    fn open_one(&self, wanted: &Path, state: &State, modes: Modes) -> Result<OpenFile, FileFailure> {
        let finished = |path: &Path| COMPRESSED.iter().any(|ending| with_ending(path, ending).exists());
        let late = finished(wanted) || !self.claims.take_to_write(wanted);
        let path = if late { with_ending(wanted, LATE) } else { wanted.to_path_buf() };
        if late && !self.claims.take_to_write(&path) {
            // It is being removed, for its age. Rare enough to wait for, as for a full disk.
            let error = io::Error::new(io::ErrorKind::StorageFull, "it is being removed");
            return Err(FileFailure { action: "open", path, source: error });
        }
        if let Some(dir) = path.parent() {
            let made = cluster::files::create_dirs(dir, modes.dir).map_err(|error| match error {
                cluster::files::FileError::Io { source, .. } => source,
                other => io::Error::other(other),
            });
            made.map_err(FileFailure::new("make the directory of", &path))?;
        }
        let new = !path.exists();
        let open = || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(modes.file).open(&path)?;
            if new {
                // Whatever the umask says.
                file.set_permissions(Permissions::from_mode(modes.file))?;
                file.sync_all()?;
                if let Some(dir) = path.parent() {
                    File::open(dir)?.sync_all()?;
                }
            }
            let found = file.metadata()?;
            Ok((file, FileMark { inode: (found.dev(), found.ino()), length: found.len() }))
        };
        let (file, mut mark) = open().map_err(FileFailure::new("open", &path))?;
        // What is behind the committed length is of a round that failed in this process.
        if let Some(known) = state.file(&path).filter(|known| known.inode == mark.inode && known.length < mark.length) {
            file.set_len(known.length).map_err(FileFailure::new("cut", &path))?;
            mark = known;
        }
        // People read files without times too.
        let times = Times::open(&path, mark.length, modes.file).ok();
        let now = Instant::now();
        Ok(OpenFile { path, file, times, mark, pending: Vec::new(), lines: 0, used: now, looked: now })
    }

    /// Writes the lines of this round and syncs them; answers the files as they are then. After an error the same can be tried again.
    pub fn write(&mut self) -> Result<Vec<(PathBuf, Option<FileMark>)>, FileFailure> {
        for path in &self.dirty {
            let Some(open) = self.open.get_mut(path) else { continue };
            let written = open.file.write_all_at(&open.pending, open.mark.length);
            if let Err(error) = written {
                // Half a line must not be seen for long; the next try writes it again.
                let _ = open.file.set_len(open.mark.length);
                return Err(FileFailure::new("write", &open.path)(error));
            }
        }
        self.sync()?;
        let mut marks = Vec::with_capacity(self.dirty.len());
        for path in &self.dirty {
            let Some(open) = self.open.get(path) else { continue };
            let length = open.mark.length + open.pending.len() as u64;
            marks.push((open.path.clone(), Some(FileMark { length, ..open.mark })));
        }
        Ok(marks)
    }

    fn sync(&self) -> Result<(), FileFailure> {
        let dirty = || self.dirty.iter().filter_map(|path| self.open.get(path));
        if self.dirty.len() < SYNC_EACH {
            for open in dirty() {
                open.file.sync_data().map_err(FileFailure::new("fsync", &open.path))?;
            }
            return Ok(());
        }
        let mut by_device: BTreeMap<u64, &OpenFile> = BTreeMap::new();
        by_device.extend(dirty().map(|open| (open.mark.inode.0, open)));
        for open in by_device.values() {
            let synced = nix::unistd::syncfs(&open.file);
            synced.map_err(|errno| FileFailure::new("sync the file system of", &open.path)(errno.into()))?;
        }
        Ok(())
    }

    /// After the commit: what was written counts.
    pub fn committed(&mut self) {
        let now = Instant::now();
        for path in self.dirty.drain(..) {
            let Some(open) = self.open.get_mut(&path) else { continue };
            open.mark.length += open.pending.len() as u64;
            open.pending.clear();
            open.pending.shrink_to(256 << 10);
            open.lines = 0;
            open.used = now;
            if let Some(times) = &mut open.times
                && times.flush().is_err()
            {
                open.times = None;
            }
        }
    }

    /// Closes what was not used, or is too much, or is no longer the file of its name.
    pub fn close_idle(&mut self, modes: Modes) {
        let now = Instant::now();
        self.open.retain(|_, open| {
            if now.duration_since(open.used) >= modes.max_idle {
                return false;
            }
            if now.duration_since(open.looked) >= LOOK_EVERY {
                open.looked = now;
                let named = std::fs::metadata(&open.path).map(|found| (found.dev(), found.ino()));
                return named.is_ok_and(|inode| inode == open.mark.inode);
            }
            true
        });
        self.close_surplus(modes.max_open);
    }

    /// Closes those that were not used for longest, down to a number. Between rounds: nothing is pending then.
    pub fn close_surplus(&mut self, max_open: usize) {
        let surplus = self.open.len().saturating_sub(max_open);
        if surplus > 0 {
            let mut by_age: Vec<(Instant, PathBuf)> =
                self.open.iter().map(|(path, open)| (open.used, path.clone())).collect();
            by_age.sort_unstable();
            by_age.into_iter().take(surplus).for_each(|(_, path)| drop(self.open.remove(&path)));
        }
    }

    /// The files' owners.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// True when the file is open under its own name or as a `.late` one.
    pub fn is_open(&self, path: &Path) -> bool {
        self.open.values().any(|open| open.path == path)
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.len()
    }
}

impl OpenFile {
    fn add(&mut self, time_us: u64, line: &[u8]) {
        if let Some(times) = &mut self.times {
            times.note(self.mark.length + self.pending.len() as u64, time_us);
        }
        self.pending.extend_from_slice(line);
        self.pending.push(b'\n');
        self.lines += 1;
    }
}

/// Lines of files that are not open yet.
#[derive(Debug, Default)]
pub struct Fresh(BTreeMap<PathBuf, FreshLines>);

#[derive(Debug, Default)]
struct FreshLines {
    bytes: Vec<u8>,
    lines: Vec<(u64, usize)>,
}

impl Fresh {
    fn add(&mut self, path: &Path, time_us: u64, line: &[u8]) {
        if !self.0.contains_key(path) {
            self.0.insert(path.into(), FreshLines::default());
        }
        if let Some(lines) = self.0.get_mut(path) {
            lines.bytes.extend_from_slice(line);
            lines.lines.push((time_us, line.len()));
        }
    }

    /// True when every file was open.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Cuts what files have beyond the last commit: what a crash left there comes again. Answers the bytes that were cut.
pub fn cut_uncommitted(state: &State) -> Result<u64, FileFailure> {
    let mut cut = 0;
    for (path, mark) in state.files() {
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(FileFailure::new("look at", path)(error)),
        };
        if (found.dev(), found.ino()) != mark.inode {
            tracing::warn!(path = %path.display(), "somebody put another file here; it is left as it is");
            continue;
        }
        if found.len() < mark.length {
            let missing = mark.length - found.len();
            tracing::error!(path = %path.display(), missing, "the file is shorter than it was: somebody cut it");
            continue;
        }
        if found.len() > mark.length {
            let file = OpenOptions::new().write(true).open(path).map_err(FileFailure::new("open", path))?;
            file.set_len(mark.length).map_err(FileFailure::new("cut", path))?;
            file.sync_all().map_err(FileFailure::new("fsync", path))?;
            cut += found.len() - mark.length;
        }
    }
    Ok(cut)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::state::Changes;
    use super::*;

    #[test]
    fn a_file_that_a_failed_try_opened_is_still_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(&dir.path().join("state"), "m").unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        // The second is finished, and its `.late` file is being removed: the try fails after the first was opened.
        std::fs::write(with_ending(&second, ".gz"), "").unwrap();
        let claims = Claims::default();
        let late = with_ending(&second, LATE);
        assert!(claims.take_to_finish(&late));
        let mut files = Files::new(claims.clone());
        let mut fresh = Fresh::default();
        fresh.add(&first, 1, b"line");
        fresh.add(&second, 1, b"line");
        let modes = Modes { file: 0o640, dir: 0o750, max_open: 10, max_idle: Duration::from_secs(60) };
        assert!(files.open_fresh(&fresh, &state, modes).unwrap_err().is_full());
        claims.finished(&late);
        let unknown = files.open_fresh(&fresh, &state, modes).unwrap();
        let paths: Vec<_> = unknown.iter().map(|(path, _)| path.clone()).collect();
        assert_eq!(paths, [first.clone(), late.clone()]);
        state.commit(Changes { sources: Vec::new(), files: unknown }).unwrap();
        assert!(files.open_fresh(&fresh, &state, modes).unwrap().is_empty());
        files.take_fresh(fresh);
        files.write().unwrap();
        drop(files);
        // A crash here: both are known, and what was written is cut.
        assert_eq!(cut_uncommitted(&state).unwrap(), 10);
        assert_eq!([first, late].map(|path| std::fs::read(path).unwrap()), [b"", b""]);
    }
}
