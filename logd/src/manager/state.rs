//! What a manager must not forget: how far it has read each source, and how long each of its files was then.
//!
//! Both change together, in one record of a small journal (its notes are the tables), after the files' content is on disk. A start finds the state of
//! the last commit and cuts what files have beyond it: what a crash left there is read again from where the source stood.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use logd_journal::{Batch, Journal, JournalError, Keep, Options};

use crate::wire::protocol::Place;

/// Commits are some hundred bytes; this is a few minutes of them.
const SEGMENT_BYTES: u64 = 4 << 20;

/// A log of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// The node.
    pub node: String,
    /// The log.
    pub log: String,
}

/// A file as of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMark {
    /// The inode, so that a file that somebody put in its place is left alone.
    pub inode: (u64, u64),
    /// Its length.
    pub length: u64,
}

/// The state on disk.
#[derive(Debug)]
pub struct State {
    journal: Journal,
    sources: BTreeMap<SourceKey, Place>,
    files: BTreeMap<PathBuf, FileMark>,
}

/// What changes with one commit.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Sources that were read further.
    pub sources: Vec<(SourceKey, Place)>,
    /// Files that grew, were begun, or (`None`) are finished.
    pub files: Vec<(PathBuf, Option<FileMark>)>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.files.is_empty()
    }
}

const SOURCE: &[u8] = b"source:";
const FILE: &[u8] = b"file:";

impl State {
    /// Opens or makes the state in a directory.
    pub fn open(dir: &Path, node: &str) -> Result<Self, JournalError> {
        let options = Options {
            node: node.into(),
            segment_bytes: SEGMENT_BYTES,
            keep: Keep { age: Duration::ZERO, bytes: 0 },
            sync_delay: None,
            ..Options::default()
        };
        let journal = Journal::open(dir, options)?;
        let (mut sources, mut files) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in journal.notes() {
            if let Some(name) = key.strip_prefix(SOURCE) {
                sources.extend(parse_source(name, &value));
            } else if let Some(path) = key.strip_prefix(FILE) {
                files.extend(parse_file(path, &value));
            }
        }
        Ok(Self { journal, sources, files })
    }

    /// How far a source was read.
    pub fn place(&self, source: &SourceKey) -> Option<Place> {
        self.sources.get(source).copied()
    }

    /// Every source.
    pub fn sources(&self) -> &BTreeMap<SourceKey, Place> {
        &self.sources
    }

    /// A file that is not finished.
    pub fn file(&self, path: &Path) -> Option<FileMark> {
        self.files.get(path).copied()
    }

    /// Every file that is not finished.
    pub fn files(&self) -> &BTreeMap<PathBuf, FileMark> {
        &self.files
    }

    /// Makes changes durable, all or none. After an error nothing has changed, and the same can be tried again.
    pub fn commit(&mut self, changes: Changes) -> Result<(), JournalError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        // Notes go with a record.
        batch.push(crate::path::now_us(), b"")?;
        for (source, place) in &changes.sources {
            let key = [SOURCE, source.node.as_bytes(), b"/", source.log.as_bytes()].concat();
            batch.note(&key, &[&place.uuid[..], &place.next.to_le_bytes(), &place.made_us.to_le_bytes()].concat())?;
        }
        for (path, mark) in &changes.files {
            let key = [FILE, path.as_os_str().as_encoded_bytes()].concat();
            let value = mark.map(|mark| [mark.inode.0, mark.inode.1, mark.length].map(u64::to_le_bytes).concat());
            batch.note(&key, &value.unwrap_or_default())?;
        }
        self.journal.append_batch(&mut batch)?;
        self.sources.extend(changes.sources);
        for (path, mark) in changes.files {
            match mark {
                Some(mark) => drop(self.files.insert(path, mark)),
                None => drop(self.files.remove(&path)),
            }
        }
        Ok(())
    }
}

fn parse_source(name: &[u8], value: &[u8]) -> Option<(SourceKey, Place)> {
    let (node, log) = std::str::from_utf8(name).ok()?.split_once('/')?;
    let (uuid, rest) = value.split_first_chunk::<16>()?;
    let number = |at: usize| Some(u64::from_le_bytes(rest.get(at..at + 8)?.try_into().ok()?));
    // The first managers did not note the second number.
    let place = Place { uuid: *uuid, next: number(0)?, made_us: number(8).unwrap_or(0) };
    Some((SourceKey { node: node.into(), log: log.into() }, place))
}

fn parse_file(path: &[u8], value: &[u8]) -> Option<(PathBuf, FileMark)> {
    let number = |at: usize| Some(u64::from_le_bytes(value.get(at..at + 8)?.try_into().ok()?));
    let mark = FileMark { inode: (number(0)?, number(8)?), length: number(16)? };
    Some((PathBuf::from(std::str::from_utf8(path).ok()?), mark))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn commits_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let source = SourceKey { node: "n1".into(), log: "mainlog".into() };
        let path = PathBuf::from("/l/a");
        let mark = |length| FileMark { inode: (1, 2), length };
        let place = |next| Place { uuid: [7; 16], next, made_us: next * 2 };
        let mut state = State::open(dir.path(), "m").unwrap();
        for n in 1..100 {
            let changes = Changes {
                sources: vec![(source.clone(), place(n))],
                files: vec![(path.clone(), Some(mark(n * 10))), (PathBuf::from(format!("/l/{n}")), Some(mark(0)))],
            };
            state.commit(changes).unwrap();
            let gone = vec![(PathBuf::from(format!("/l/{n}")), None)];
            state.commit(Changes { sources: vec![], files: gone }).unwrap();
        }
        drop(state);
        let state = State::open(dir.path(), "m").unwrap();
        assert_eq!(state.place(&source), Some(place(99)));
        assert_eq!(state.files().len(), 1);
        assert_eq!(state.file(&path), Some(mark(990)));
    }
}
