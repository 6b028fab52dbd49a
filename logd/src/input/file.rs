//! Files that grow, through rotation and restarts.
//!
//! A file is its inode, not its name. How far it was read is noted in the journal together with its lines, so neither a crash nor a rename makes a
//! line come twice or not at all. A file that was renamed away is read to its end, also when the rename happened while nobody looked. One that
//! was truncated in place is read from its start; what was written between the last look and the truncation is nowhere any more, which no reader
//! can help. The first bytes of a file, as they were, tell it from another one under the same inode.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logd_journal::Batch;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::lines::Lines;
use super::{Feed, batch_of};
use crate::node::log::SourceNote;
use crate::node::{Closed, Receipt};
use crate::path::now_us;

/// What is read of a file at once; one chunk for the writer.
const READ_BYTES: usize = 128 << 10;
/// Chunks that may wait for their sync.
const CHUNKS_UNDER_WAY: usize = 4;
/// The longest sleep, for file systems that tell nothing, and for the stop.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often the pattern is matched anew without being told.
const MATCH_EVERY: Duration = Duration::from_secs(2);
/// A file that lost its name is still written for a while by those who have it open.
const QUIET: Duration = Duration::from_secs(5);
/// How much of a file's start tells it from another.
const HEAD_BYTES: u64 = 256;

type Inode = (u64, u64);

pub(super) fn start(feed: &Feed, pattern: PathBuf) {
    let feed = feed.clone();
    feed.clone().spawn(async move {
        let run = tokio::task::spawn_blocking(move || {
            let mut follower = Follower::new(feed, pattern);
            // Closed: the log has said why.
            let _ = follower.run();
        });
        let _ = run.await;
    });
}

struct Follower {
    feed: Feed,
    pattern: PathBuf,
    files: BTreeMap<Inode, Followed>,
    under_way: Vec<Receipt>,
    buffer: Vec<u8>,
    watch: Option<(Inotify, Vec<PathBuf>)>,
}

struct Followed {
    path: PathBuf,
    file: File,
    /// Behind everything that was read.
    offset: u64,
    lines: Lines,
    head: Head,
    /// Since when it has no name that matches.
    left: Option<Instant>,
}

/// The start of a file as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Head {
    bytes: u64,
    crc: u32,
}

impl Head {
    fn of(file: &File, bytes: u64) -> std::io::Result<Self> {
        let mut buffer = [0; HEAD_BYTES as usize];
        let wanted = usize::try_from(bytes.min(HEAD_BYTES)).unwrap_or(buffer.len());
        let mut filled = 0;
        while filled < wanted {
            match file.read_at(&mut buffer[filled..wanted], filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(Self { bytes: filled as u64, crc: crc32c::crc32c(&buffer[..filled]) })
    }
}

/// What the journal knows of a file.
struct FileNote {
    position: u64,
    head: Head,
    path: PathBuf,
}

fn key_of(inode: Inode) -> Vec<u8> {
    format!("file:{:x}:{:x}", inode.0, inode.1).into_bytes()
}

fn inode_of(key: &[u8]) -> Option<Inode> {
    let (dev, ino) = std::str::from_utf8(key).ok()?.strip_prefix("file:")?.split_once(':')?;
    Some((u64::from_str_radix(dev, 16).ok()?, u64::from_str_radix(ino, 16).ok()?))
}

impl FileNote {
    fn encode(&self) -> Vec<u8> {
        let mut more = self.head.bytes.to_le_bytes().to_vec();
        more.extend_from_slice(&self.head.crc.to_le_bytes());
        more.extend_from_slice(self.path.as_os_str().as_encoded_bytes());
        SourceNote::now(self.position).encode(&more)
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let position = SourceNote::parse(value)?.position;
        let bytes = u64::from_le_bytes(value.get(16..24)?.try_into().ok()?);
        let crc = u32::from_le_bytes(value.get(24..28)?.try_into().ok()?);
        let path = PathBuf::from(String::from_utf8_lossy(value.get(28..)?).into_owned());
        Some(Self { position, head: Head { bytes, crc }, path })
    }
}

impl Follower {
    fn new(feed: Feed, pattern: PathBuf) -> Self {
        let buffer = vec![0; READ_BYTES];
        Self { feed, pattern, files: BTreeMap::new(), under_way: Vec::new(), buffer, watch: None }
    }

    fn run(&mut self) -> Result<(), Closed> {
        self.find();
        self.find_renamed();
        let mut matched = Instant::now();
        while !self.feed.stop.is_cancelled() {
            let more = self.read_all()?;
            if more {
                continue;
            }
            self.wait();
            self.drop_left()?;
            if matched.elapsed() >= MATCH_EVERY || self.told() {
                matched = Instant::now();
                self.find();
            }
        }
        self.settle(0)
    }

    /// Looks which files there are now.
    fn find(&mut self) {
        let mut dirs = Vec::new();
        let mut seen = Vec::new();
        for path in expand(&self.pattern, &mut dirs) {
            let Ok(found) = std::fs::metadata(&path) else { continue };
            if !found.is_file() {
                continue;
            }
            let inode = (found.dev(), found.ino());
            seen.push(inode);
            match self.files.get_mut(&inode) {
                Some(known) => known.path = path,
                None => self.open(inode, path),
            }
        }
        for (inode, file) in &mut self.files {
            match (seen.contains(inode), file.left) {
                (true, _) => file.left = None,
                (false, None) => file.left = Some(Instant::now()),
                (false, Some(_)) => {}
            }
        }
        self.watch_dirs(dirs);
    }

    /// Files of an earlier run that were renamed while nobody looked are beside the place where they were.
    fn find_renamed(&mut self) {
        for (key, value) in self.feed.log.journal().notes() {
            let (Some(inode), Some(note)) = (inode_of(&key), FileNote::parse(&value)) else { continue };
            if self.files.contains_key(&inode) {
                continue;
            }
            let Some(entries) = note.path.parent().and_then(|dir| std::fs::read_dir(dir).ok()) else { continue };
            for entry in entries.flatten() {
                let is_it = |found: std::fs::Metadata| {
                    found.is_file() && (found.dev(), found.ino()) == inode && found.len() > note.position
                };
                if entry.metadata().is_ok_and(is_it) {
                    self.open(inode, entry.path());
                    // Not from the start: if it is another file now, it is none of ours.
                    let known = self.files.get_mut(&inode);
                    if known.is_some_and(|file| file.offset != note.position) {
                        self.files.remove(&inode);
                    } else if let Some(file) = self.files.get_mut(&inode) {
                        file.left = Some(Instant::now());
                    }
                }
            }
        }
    }

    fn open(&mut self, inode: Inode, path: PathBuf) {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(log = self.feed.log.name(), path = %path.display(), %error, "a file cannot be read");
                return;
            }
        };
        // The name may have gone to another file since.
        if !file.metadata().is_ok_and(|found| (found.dev(), found.ino()) == inode) {
            return;
        }
        let note = self.feed.log.journal().note(&key_of(inode)).and_then(|value| FileNote::parse(&value));
        let offset = note.map_or(0, |note| match Head::of(&file, note.head.bytes) {
            Ok(head) if head == note.head => note.position,
            _ => 0,
        });
        let head = Head::of(&file, offset).unwrap_or_default();
        let lines = Lines::new(self.feed.max_line_bytes);
        tracing::debug!(log = self.feed.log.name(), path = %path.display(), offset, "following");
        self.files.insert(inode, Followed { path, file, offset, lines, head, left: None });
    }

    /// Reads a piece of every file; those that lost their name first, since they are older. True when there is more.
    fn read_all(&mut self) -> Result<bool, Closed> {
        let mut order: Vec<(bool, Inode)> =
            self.files.iter().map(|(inode, file)| (file.left.is_none(), *inode)).collect();
        order.sort_unstable();
        let mut more = false;
        for (_, inode) in order {
            more |= self.read(inode)?;
        }
        Ok(more)
    }

    fn read(&mut self, inode: Inode) -> Result<bool, Closed> {
        let Some(file) = self.files.get_mut(&inode) else { return Ok(false) };
        let length = file.file.metadata().map_or(file.offset, |found| found.len());
        if length == file.offset {
            return Ok(false);
        }
        let replaced =
            length < file.offset || Head::of(&file.file, file.head.bytes).is_ok_and(|head| head != file.head);
        let mut batch = Batch::new();
        if replaced {
            tracing::info!(log = self.feed.log.name(), path = %file.path.display(), "truncated in place: reading from its start");
            // The end of this line will never come.
            let now = now_us();
            let found = file.lines.finish(|line| self.feed.push(&mut batch, now, line));
            self.feed.count_cut(found.cut);
            (file.offset, file.head) = (0, Head::default());
        }
        let bytes = match file.file.read_at(&mut self.buffer, file.offset) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(log = self.feed.log.name(), path = %file.path.display(), %error, "a file cannot be read");
                return Ok(false);
            }
        };
        file.offset += bytes as u64;
        if file.head.bytes < HEAD_BYTES {
            file.head = Head::of(&file.file, file.offset).unwrap_or(file.head);
        }
        let fresh = batch_of(&self.feed, &mut file.lines, &self.buffer[..bytes]);
        if batch.is_empty() {
            batch = fresh;
        } else {
            let now = now_us();
            fresh.payloads().for_each(|line| self.feed.push(&mut batch, now, line));
        }
        let note =
            FileNote { position: file.offset - file.lines.pending_bytes(), head: file.head, path: file.path.clone() };
        // What was read of the head may reach behind the position; the note's may not, or a line that grows would look like another file.
        let head = Head::of(&file.file, note.position).unwrap_or_default();
        self.send(batch, inode, &FileNote { head, ..note })?;
        Ok(bytes > 0)
    }

    fn send(&mut self, mut batch: Batch, inode: Inode, note: &FileNote) -> Result<(), Closed> {
        if batch.is_empty() {
            return Ok(());
        }
        if let Err(error) = batch.note(&key_of(inode), &note.encode()) {
            tracing::warn!(log = self.feed.log.name(), path = %note.path.display(), %error, "its lines may come twice after a crash");
        }
        let receipt = self.feed.log.write_blocking(batch, false)?;
        self.under_way.push(receipt);
        self.settle(CHUNKS_UNDER_WAY)
    }

    /// Waits until at most so many chunks are under way.
    fn settle(&mut self, most: usize) -> Result<(), Closed> {
        while self.under_way.len() > most {
            self.under_way.remove(0).wait_blocking()?;
        }
        Ok(())
    }

    /// Lets go of files that lost their name and were quiet since; what they end with is a line, though nothing ends it.
    fn drop_left(&mut self) -> Result<(), Closed> {
        let quiet = |file: &Followed| file.left.is_some_and(|left| left.elapsed() >= QUIET);
        let gone: Vec<Inode> = self.files.iter().filter(|(_, file)| quiet(file)).map(|(inode, _)| *inode).collect();
        for inode in gone {
            let Some(mut file) = self.files.remove(&inode) else { continue };
            let (mut batch, now) = (Batch::new(), now_us());
            let found = file.lines.finish(|line| self.feed.push(&mut batch, now, line));
            self.feed.count_cut(found.cut);
            self.send(batch, inode, &FileNote { position: file.offset, head: file.head, path: file.path })?;
        }
        Ok(())
    }

    fn watch_dirs(&mut self, mut dirs: Vec<PathBuf>) {
        dirs.sort();
        dirs.dedup();
        if self.watch.as_ref().is_some_and(|(_, watched)| *watched == dirs) {
            return;
        }
        let Ok(inotify) = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC) else { return };
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        for dir in &dirs {
            // What cannot be watched is looked at.
            let _ = inotify.add_watch(dir, flags);
        }
        self.watch = Some((inotify, dirs));
    }

    fn wait(&self) {
        let timeout = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::NONE);
        match &self.watch {
            Some((inotify, _)) => drop(poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout)),
            None => std::thread::sleep(LOOK_EVERY),
        }
    }

    /// Takes what inotify has to say; true when names changed.
    fn told(&self) -> bool {
        let Some((inotify, _)) = &self.watch else { return false };
        let mut names = false;
        while let Ok(events) = inotify.read_events() {
            names |= events.iter().any(|event| !event.mask.contains(AddWatchFlags::IN_MODIFY));
        }
        names
    }
}

/// The files that match a shell pattern, in order, and the directories that were looked into.
fn expand(pattern: &Path, dirs: &mut Vec<PathBuf>) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.components().skip(1) {
        let part = part.as_os_str().to_string_lossy();
        let is_pattern = part.contains(['*', '?', '[', '{']);
        let glob = globset::Glob::new(&part).map(|glob| glob.compile_matcher());
        let mut next = Vec::new();
        for dir in found {
            if !is_pattern || glob.is_err() {
                next.push(dir.join(&*part));
                continue;
            }
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            let names = entries.flatten().map(|entry| entry.file_name());
            let matching = names.filter(|name| {
                let hidden = name.as_encoded_bytes().starts_with(b".") && !part.starts_with('.');
                !hidden && glob.as_ref().is_ok_and(|glob| glob.is_match(name))
            });
            next.extend(matching.map(|name| dir.join(name)));
            dirs.push(dir);
        }
        next.sort();
        found = next;
    }
    dirs.extend(found.iter().filter_map(|path| path.parent().map(Path::to_path_buf)));
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns_and_notes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/x.log", "a/y.log", "b/x.log", "b/.hidden.log", "b/x.txt"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let mut dirs = Vec::new();
        let found = expand(&dir.path().join("*/*.log"), &mut dirs);
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a/x.log", "a/y.log", "b/x.log"]);
        assert!(dirs.contains(&dir.path().join("b")));
        assert_eq!(expand(&dir.path().join("c/none.log"), &mut dirs).len(), 1, "a fixed name need not be there yet");

        let note = FileNote { position: 77, head: Head { bytes: 5, crc: 9 }, path: "/v/x.log".into() };
        let read = FileNote::parse(&note.encode()).unwrap();
        assert_eq!((read.position, read.head, read.path), (77, note.head, note.path));
        assert_eq!(inode_of(&key_of((0xfe01, 12))), Some((0xfe01, 12)));
    }
}
