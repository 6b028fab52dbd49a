//! The one thread that writes the log.
//!
//! It takes everything that waits, writes it with one call, syncs once, and only then tells those who wait. After a failed sync nobody knows
//! what is on the disk, so it refuses every further write; the process has to end.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::index::{Index, Place};
use super::record::{self, Record};
use super::segment::{HEADER_BYTES, Segment};
use super::{LogStats, locked};
use crate::raft::{Entry, LogId, Vote};

/// What is written with one call: enough that a sync is shared by everybody who waits, little enough to stay in the caches.
const GROUP_BYTES: usize = 8 << 20;

/// Tells openraft that its entries are on the disk, or why not.
type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Work for the writer.
pub(crate) enum Request {
    Append { entries: Vec<Entry>, done: Flushed },
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    Truncate { keep_upto: Option<u64>, done: oneshot::Sender<io::Result<()>> },
    Purge { upto: LogId, done: oneshot::Sender<io::Result<()>> },
    Close { done: oneshot::Sender<io::Result<()>> },
}

enum Done {
    Flushed(Flushed),
    Told(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Done::Flushed(done) => done(result),
            // Whoever asked may have gone.
            Done::Told(done) => drop(done.send(result)),
        }
    }
}

/// A segment that is no longer written.
pub(super) struct Old {
    pub(super) segment: Arc<Segment>,
    /// The highest entry that was ever written to it.
    pub(super) highest_index: Option<u64>,
}

/// The writer's state.
pub(crate) struct Writer {
    pub(super) dir: PathBuf,
    pub(super) segment_bytes: u64,
    pub(super) index: Arc<Mutex<Index>>,
    pub(super) stats: Arc<LogStats>,
    /// Segments before the current one, oldest first.
    pub(super) old: Vec<Old>,
    pub(super) segment: Arc<Segment>,
    pub(super) highest_index: Option<u64>,
    /// Where the next record goes in the current segment, and its room.
    pub(super) end: u64,
    pub(super) room: u64,
    pub(super) next_sequence: u64,
    /// Every record up to this sequence number is on disk.
    pub(super) synced: u64,
    /// What the log says was committed.
    pub(super) committed: Option<LogId>,
    pub(super) failed: Option<String>,
}

/// Records that are written together.
#[derive(Default)]
pub(super) struct Group {
    buffer: Vec<u8>,
    /// Entries and where they begin in the buffer, with their length.
    places: Vec<(LogId, usize, usize)>,
    done: Vec<Done>,
    purge: Option<LogId>,
    pub(super) must_sync: bool,
    pub(super) close: bool,
}

impl Writer {
    /// Serves requests until one closes the log or all senders are gone.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Group::default();
        while let Some(first) = requests.blocking_recv() {
            self.gather(&mut group, first, &mut requests);
            let close = group.close;
            self.put(&mut group);
            self.settle(&mut group);
            if close {
                return;
            }
        }
    }

    /// Puts the request and everything that waits behind it into the group.
    pub(super) fn gather(&mut self, group: &mut Group, first: Request, requests: &mut mpsc::Receiver<Request>) {
        self.add_committed(group);
        self.add(group, first);
        while group.buffer.len() < GROUP_BYTES && !group.close {
            match requests.try_recv() {
                Ok(next) => self.add(group, next),
                Err(_) => break,
            }
        }
    }

    /// What was committed goes along with what is written anyway: it is worth no write of its own.
    fn add_committed(&mut self, group: &mut Group) {
        let committed = locked(&self.index).committed;
        if committed != self.committed {
            self.frame(group, &Record::Committed(committed));
            self.committed = committed;
        }
    }

    fn add(&mut self, group: &mut Group, request: Request) {
        match request {
            Request::Append { entries, done } => {
                for entry in entries {
                    self.add_entry(group, entry);
                }
                group.must_sync = true;
                group.done.push(Done::Flushed(done));
            }
            Request::Vote { vote, done } => self.add_record(group, &Record::Vote(vote), done),
            Request::Truncate { keep_upto, done } => self.add_record(group, &Record::Truncate(keep_upto), done),
            Request::Purge { upto, done } => {
                self.add_record(group, &Record::Purge(upto), done);
                group.purge = Some(upto);
            }
            Request::Close { done } => {
                group.must_sync = true;
                group.close = true;
                group.done.push(Done::Told(done));
            }
        }
    }

    fn add_record(&mut self, group: &mut Group, record: &Record, done: oneshot::Sender<io::Result<()>>) {
        self.frame(group, record);
        group.must_sync = true;
        group.done.push(Done::Told(done));
    }

    fn add_entry(&mut self, group: &mut Group, entry: Entry) {
        let id = entry.log_id;
        let bytes = self.frame(group, &Record::Entry(entry));
        group.places.push((id, group.buffer.len() - bytes, bytes));
        self.highest_index = self.highest_index.max(Some(id.index));
    }

    /// Encodes a record behind the others; opens a new segment first when the current one is full.
    fn frame(&mut self, group: &mut Group, record: &Record) -> usize {
        let start = group.buffer.len();
        let bytes = record::encode(&mut group.buffer, self.next_sequence, self.synced, record);
        if self.end + group.buffer.len() as u64 > self.room && self.failed.is_none() {
            let tail = group.buffer.split_off(start);
            if let Err(error) = self.write(group).and_then(|()| self.roll(bytes as u64)) {
                self.fail("open a new segment of the log", &error);
            }
            group.buffer.clear();
            drop(tail);
            record::encode(&mut group.buffer, self.next_sequence, self.synced, record);
        }
        self.next_sequence += 1;
        bytes
    }

    /// Writes the group.
    pub(super) fn put(&mut self, group: &mut Group) {
        if self.failed.is_none()
            && let Err(error) = self.write(group)
        {
            self.fail("write the log", &error);
        }
    }

    /// Syncs what was put if somebody waits for it, and tells them.
    pub(super) fn settle(&mut self, group: &mut Group) {
        if self.failed.is_none()
            && group.must_sync
            && let Err(error) = self.sync()
        {
            self.fail("sync the log", &error);
        }
        if self.failed.is_none()
            && let Some(upto) = group.purge
            && let Err(error) = self.drop_segments(upto)
        {
            self.fail("remove a segment of the log", &error);
        }
        for done in group.done.drain(..) {
            done.tell(match &self.failed {
                None => Ok(()),
                Some(why) => Err(io::Error::other(format!("the log takes no more writes: {why}"))),
            });
        }
        *group = Group { buffer: std::mem::take(&mut group.buffer), ..Group::default() };
        group.buffer.clear();
        if group.buffer.capacity() > 2 * GROUP_BYTES {
            group.buffer = Vec::new();
        }
    }

    /// Writes what is in the buffer and tells readers where its entries are.
    fn write(&mut self, group: &mut Group) -> io::Result<()> {
        if group.buffer.is_empty() {
            return Ok(());
        }
        self.segment.file.write_all_at(&group.buffer, self.end)?;
        let mut index = locked(&self.index);
        for (id, start, bytes) in group.places.drain(..) {
            let place = Place { segment: self.segment.clone(), offset: self.end + start as u64, bytes };
            index.written(id, place);
        }
        index.shrink_cache();
        drop(index);
        self.end += group.buffer.len() as u64;
        self.stats.written_bytes(group.buffer.len());
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let begin = Instant::now();
        self.segment.file.sync_data()?;
        self.stats.synced(begin.elapsed());
        self.synced = self.next_sequence - 1;
        Ok(())
    }

    /// Syncs the full segment and opens the next one, which begins with what the old ones said about vote, commit and purge.
    fn roll(&mut self, needed: u64) -> io::Result<()> {
        self.sync()?;
        let heads = {
            let index = locked(&self.index);
            let vote = index.vote.map(Record::Vote);
            let committed = index.committed.map(|id| Record::Committed(Some(id)));
            [vote, committed, index.purged.map(Record::Purge)]
        };
        let bytes = self.segment_bytes.max(needed + HEADER_BYTES + 4096);
        let segment = Segment::create(&self.dir, self.segment.number + 1, self.next_sequence, bytes)?;
        let old = std::mem::replace(&mut self.segment, Arc::new(segment));
        self.old.push(Old { segment: old, highest_index: self.highest_index.take() });
        (self.end, self.room) = (HEADER_BYTES, bytes);
        let mut buffer = Vec::new();
        for record in heads.into_iter().flatten() {
            record::encode(&mut buffer, self.next_sequence, self.synced, &record);
            self.next_sequence += 1;
        }
        self.segment.file.write_all_at(&buffer, self.end)?;
        self.end += buffer.len() as u64;
        self.sync()
    }

    /// Removes the segments at the beginning whose entries are all purged.
    fn drop_segments(&mut self, upto: LogId) -> io::Result<()> {
        let keep = self.old.iter().position(|old| old.highest_index.is_some_and(|highest| highest > upto.index));
        let gone: Vec<Old> = self.old.drain(..keep.unwrap_or(self.old.len())).collect();
        for old in &gone {
            std::fs::remove_file(&old.segment.path)?;
            tracing::debug!(path = %old.segment.path.display(), "removed a purged segment of the log");
        }
        if !gone.is_empty() {
            // The blocks are freed when the last handle is closed. That may take tens of milliseconds (ext4 with `discard`), for which no commit
            // shall wait; without a thread it happens here.
            let _ = std::thread::Builder::new().name("log-remover".into()).spawn(move || drop(gone));
        }
        Ok(())
    }

    fn fail(&mut self, action: &str, error: &io::Error) {
        let why = format!("could not {action} in {}: {error}", self.dir.display());
        tracing::error!("{why}; no further write is accepted");
        self.failed = Some(why);
    }
}
