//! The writing side of a journal.
//!
//! An append numbers its batch and writes it itself, under the writers' lock: one copy into the page cache, no hand-over to another thread. With
//! `Safe` it then waits for the group commit ([`crate::commit`]). Everything about the file being written is in [`Tail`], behind that lock.
//!
//! A full disk fails the append, cuts what was written of it, and changes nothing else: the next append simply tries again.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dir_lock::Owner;

use crate::commit::{Commit, Epoch, Stats, Written, locked};
use crate::error::{JournalError, Result, is_full};
use crate::flusher::Flusher;
use crate::fs::{Fs, FsFile, Held, System, write_all_at};
use crate::layout::{self, Point, SEGMENT_HEADER_BYTES, SegmentHeader, TAIL_FILE, Uuid};
use crate::open::{self, Found, JUMP};
use crate::options::{AtLimit, Durability, Event, Options};
use crate::record::{self, Batch, Kind, Mark};
use crate::retention::{Keep, Removed, furthest_behind};
use crate::subscribers::{Registry, Subscriber};

/// A mark costs 32 bytes; one per this many keeps that under a hundredth. In small segments more often, or they would have none.
const MARK_EVERY_BYTES: u64 = 4096;
/// How often a blocked writer looks for checkpoints that another process made.
const BLOCKED_LOOK: Duration = Duration::from_secs(1);

/// A segment that is written.
#[derive(Debug)]
struct Segment {
    first: u64,
    path: PathBuf,
    file: Arc<dyn FsFile>,
    salt: u32,
}

/// Where the next record goes.
#[derive(Debug)]
struct Tail {
    /// `None`: the next append makes one.
    segment: Option<Segment>,
    offset: u64,
    next: u64,
    /// For the header of the next segment.
    previous_end: u64,
    cut_bytes: u64,
    /// Where the newest mark ends, and what it says.
    marked_offset: u64,
    marked_synced: u64,
    epoch: Arc<Epoch>,
    /// Segments before this one: first number and size.
    sealed: VecDeque<(u64, u64)>,
    poison: Option<String>,
    closed: bool,
}

impl Tail {
    fn has_records(&self) -> bool {
        self.segment.is_some() && self.offset > SEGMENT_HEADER_BYTES as u64
    }

    fn total_bytes(&self) -> u64 {
        self.sealed.iter().map(|(_, bytes)| bytes).sum::<u64>() + self.offset
    }

    fn written(&self) -> Option<Written> {
        let segment = self.segment.as_ref()?;
        Some(Written {
            file: Arc::clone(&segment.file),
            path: segment.path.clone(),
            point: Point { next: self.next, segment: segment.first, offset: self.offset },
            epoch: Arc::clone(&self.epoch),
        })
    }
}

/// What writers, readers and the flusher share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) registry: Registry,
    pub(crate) commit: Commit,
    pub(crate) stats: Stats,
    options: Options,
    tail: Mutex<Tail>,
    /// Writers wait for a subscriber.
    room: Condvar,
}

/// A journal that this process writes. Share it by reference or `Arc`; every method takes `&self`.
#[derive(Debug)]
pub struct Journal {
    inner: Arc<Inner>,
    flusher: Option<Flusher>,
    _lock: Box<dyn Held>,
}

impl Journal {
    /// Opens or makes the journal in `dir`, which no other process may have open for writing.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        Self::open_on(Arc::new(System), dir, options)
    }

    /// The same on a file system of the caller's choice.
    pub fn open_on(fs: Arc<dyn Fs>, dir: &Path, options: Options) -> Result<Self> {
        fs.create_dirs(dir).map_err(JournalError::io("create", dir))?;
        let lock = fs.lock_dir(dir, &Owner::current(&options.program, &options.node))?;
        let found = open::open(&fs, dir)?;
        let inner = Arc::new(Inner::new(found, options)?);
        let flusher = Flusher::start(&inner);
        Ok(Self { inner, flusher, _lock: lock })
    }

    /// Who this journal is.
    pub fn uuid(&self) -> Uuid {
        self.inner.registry.uuid
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.inner.registry.dir
    }

    /// Figures since it was opened.
    pub fn stats(&self) -> &Stats {
        &self.inner.stats
    }

    /// Appends one record of now; answers its number.
    pub fn append(&self, payload: &[u8]) -> Result<u64> {
        let mut batch = Batch::new();
        batch.push(self.inner.registry.fs.now_us(), payload)?;
        self.append_batch(&mut batch).map(|sequences| sequences.start)
    }

    /// Appends all records of a batch, as durably as the journal's options say; answers their numbers. After an error the batch can be given
    /// again; with [`JournalError::NotSynced`] its records may then be there twice after a crash, under different numbers.
    pub fn append_batch(&self, batch: &mut Batch) -> Result<Range<u64>> {
        self.append_as(batch, self.inner.options.durability)
    }

    /// The same with a durability for this batch.
    pub fn append_as(&self, batch: &mut Batch, durability: Durability) -> Result<Range<u64>> {
        let (sequences, epoch) = self.inner.write(batch)?;
        match (durability, &self.flusher) {
            (Durability::Safe, _) => self.inner.wait_synced(sequences.end, &epoch)?,
            (Durability::Fast, Some(flusher)) => flusher.dirty(),
            (Durability::Fast, None) => {}
        }
        Ok(sequences)
    }

    /// Waits until everything appended so far is on disk.
    pub fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    /// The number after the last record that is on disk: what readers can see.
    pub fn synced(&self) -> u64 {
        self.inner.commit.synced().next
    }

    /// The first number that is still there.
    pub fn first(&self) -> Result<u64> {
        self.inner.first()
    }

    /// Adds a subscriber that gets everything that is still there.
    pub fn subscribe(&self, name: &str) -> Result<u64> {
        let locked = self.inner.registry.lock()?;
        let next = self.inner.first()?;
        locked.add(name, next).map(|()| next)
    }

    /// Adds a subscriber that gets what is written from now on.
    pub fn subscribe_at_end(&self, name: &str) -> Result<u64> {
        let locked = self.inner.registry.lock()?;
        let next = self.inner.commit.synced().next;
        locked.add(name, next).map(|()| next)
    }

    /// Adds a subscriber unless it is there.
    pub fn ensure_subscriber(&self, name: &str) -> Result<()> {
        match self.subscribe(name) {
            Err(JournalError::SubscriberExists { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Removes a subscriber, and the segments that only it needed.
    pub fn unsubscribe(&self, name: &str) -> Result<Removed> {
        self.inner.registry.lock()?.remove(name)?;
        self.inner.collect()
    }

    /// The subscribers by name.
    pub fn subscribers(&self) -> Result<Vec<Subscriber>> {
        self.inner.registry.load()
    }

    /// Notes durably that a subscriber needs nothing below `next`, and removes the segments that nobody needs any more.
    pub fn checkpoint(&self, name: &str, next: u64) -> Result<Removed> {
        let synced = self.synced();
        if next > synced {
            let what = format!("record {} was never written, the newest is {}", next - 1, synced - 1);
            return Err(JournalError::Position { path: self.dir().into(), what });
        }
        self.inner.registry.lock()?.set(name, next, false)?;
        // The position is what was asked for, and it is durable. What could not be removed goes next time.
        self.inner.collect().or_else(|error| {
            self.inner.tell(&Event::NotRemoved { reason: error.to_string() });
            Ok(Removed::default())
        })
    }

    /// Removes what nobody needs; for journals without subscribers, which lose by age, call it now and then.
    pub fn collect(&self) -> Result<Removed> {
        self.inner.collect()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Syncs everything and marks the end as clean.
    pub fn close(mut self) -> Result<()> {
        self.close_once()
    }

    fn close_once(&mut self) -> Result<()> {
        if let Some(flusher) = self.flusher.take() {
            flusher.stop();
        }
        self.inner.close()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Whoever wants to know calls `close`. What fails here is what a crash would leave, and is found at the next open.
        drop(self.close_once());
    }
}

impl Inner {
    fn new(found: Found, options: Options) -> Result<Self> {
        let Found { registry, end, next, last, cut_bytes, events } = found;
        let sealed = layout::segments(&*registry.fs, &registry.dir)?;
        let (segment, offset) = last.unwrap_or((0, 0));
        let tail_file = open_tail_file(&registry)?;
        let boot = layout::boot_hash(&registry.fs.boot_id());
        let synced = Point { next: end, segment, offset };
        let commit = Commit::new(registry.dir.clone(), synced, tail_file, registry.uuid, boot);
        let tail = Tail {
            segment: None,
            offset: 0,
            next,
            previous_end: end,
            cut_bytes,
            marked_offset: 0,
            marked_synced: 0,
            epoch: Arc::default(),
            sealed: VecDeque::new(),
            poison: None,
            closed: false,
        };
        let inner =
            Self { registry, commit, stats: Stats::default(), options, tail: Mutex::new(tail), room: Condvar::new() };
        for event in &events {
            inner.tell(event);
        }
        let mut tail = locked(&inner.tail);
        inner.refresh_sealed(&mut tail)?;
        if sealed.is_empty() {
            // At once, so that a directory without segments can only be one that somebody emptied.
            inner.make_segment(&mut tail)?;
        }
        drop(tail);
        Ok(inner)
    }

    pub(crate) fn tell(&self, event: &Event) {
        if let Some(on_event) = &self.options.on_event {
            on_event(event);
        }
    }

    pub(crate) fn sync_delay(&self) -> Option<Duration> {
        self.options.sync_delay
    }

    /// Without subscribers less than `max_backlog` is kept, so that the limit is not looked at with every append.
    fn keep(&self) -> Keep {
        let Keep { age, bytes } = self.options.keep;
        Keep { age, bytes: bytes.min(self.options.max_backlog_bytes.map_or(u64::MAX, |max| max / 2)) }
    }

    fn first(&self) -> Result<u64> {
        let segments = layout::segments(&*self.registry.fs, &self.registry.dir)?;
        Ok(segments.first().copied().unwrap_or(1).min(self.commit.synced().next))
    }

    /// Numbers a batch and writes it.
    fn write(&self, batch: &mut Batch) -> Result<(Range<u64>, Arc<Epoch>)> {
        let tail = locked(&self.tail);
        let mut tail = self.make_room(tail, batch.size_bytes() as u64)?;
        let sequences = tail.next..tail.next + batch.len() as u64;
        if batch.is_empty() {
            return Ok((sequences, Arc::clone(&tail.epoch)));
        }
        let filled = tail.offset + batch.size_bytes() as u64 > self.options.roll_bytes();
        if tail.segment.is_none() || (filled && tail.has_records()) {
            self.roll(&mut tail)?;
        }
        let sequences = tail.next..tail.next + batch.len() as u64;
        if sequences.end - self.commit.synced().next > JUMP {
            self.sync_tail(&tail)?;
        }
        self.write_records(&mut tail, batch)?;
        self.stats.records.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Ok((sequences, Arc::clone(&tail.epoch)))
    }

    fn write_records(&self, tail: &mut Tail, batch: &mut Batch) -> Result<()> {
        let synced = self.commit.synced().next;
        let every = MARK_EVERY_BYTES.min(self.options.roll_bytes() / 4);
        let marked = tail.offset - tail.marked_offset >= every && synced > tail.marked_synced;
        let mark = marked.then(|| Mark { synced, time_us: self.registry.fs.now_us() });
        let segment = tail.segment.as_ref().expect("the caller made one");
        let bytes = batch.number(tail.next, segment.salt, mark);
        if let Err(error) = write_all_at(&*segment.file, bytes, tail.offset) {
            return Err(self.take_back(tail, error));
        }
        if marked {
            tail.marked_offset = tail.offset + record::MARK_BYTES as u64;
            tail.marked_synced = synced;
        }
        self.stats.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        tail.offset += bytes.len() as u64;
        tail.next += batch.len() as u64;
        Ok(())
    }

    /// Cuts what was written of a batch that did not fit. Where even that fails, the segment is left as it is: nothing behind the last whole
    /// record is ever read, and the next append begins another segment.
    fn take_back(&self, tail: &mut Tail, error: std::io::Error) -> JournalError {
        let Some(segment) = &tail.segment else { return JournalError::io("write", &self.registry.dir)(error) };
        let path = segment.path.clone();
        let cut = segment.file.set_len(tail.offset);
        if is_full(&error) {
            self.stats.full.fetch_add(1, Ordering::Relaxed);
        }
        if cut.is_err()
            && let Err(error) = self.seal(tail)
        {
            return error;
        }
        JournalError::io("write", &path)(error)
    }

    /// Ends the segment: everything in it is synced before the next one is made.
    fn roll(&self, tail: &mut Tail) -> Result<()> {
        self.seal(tail)?;
        self.make_segment(tail)?;
        // What can go by age, or because it was passed while it was being written.
        let collected = self.registry.lock().and_then(|locked| locked.collect(self.keep()));
        match collected {
            Ok(removed) => forget(tail, &removed),
            Err(error) => self.tell(&Event::NotRemoved { reason: error.to_string() }),
        }
        Ok(())
    }

    fn seal(&self, tail: &mut Tail) -> Result<()> {
        if tail.segment.is_none() {
            return Ok(());
        }
        self.sync_tail(tail)?;
        if let Some(segment) = tail.segment.take() {
            tail.sealed.push_back((segment.first, tail.offset));
            tail.previous_end = tail.next;
            tail.offset = 0;
        }
        Ok(())
    }

    fn sync_tail(&self, tail: &Tail) -> Result<()> {
        match tail.written() {
            Some(written) => self.commit.sync(&written, &self.stats),
            None => Ok(()),
        }
    }

    /// Makes the next segment, name and header on disk before anything relies on it.
    fn make_segment(&self, tail: &mut Tail) -> Result<()> {
        let Registry { fs, dir, uuid } = &self.registry;
        let first = tail.next;
        let path = layout::segment_path(dir, first);
        let header = SegmentHeader {
            uuid: *uuid,
            first,
            previous_end: tail.previous_end,
            cut_bytes: tail.cut_bytes,
            created_us: fs.now_us(),
        };
        let make = || {
            let file = fs.create_new(&path)?;
            write_all_at(&*file, &header.encode(), 0)?;
            file.sync_data()?;
            fs.sync_dir(dir)?;
            Ok(file)
        };
        let file = make().map_err(|error: std::io::Error| {
            if is_full(&error) {
                self.stats.full.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing is in it, and the next try needs the name.
            drop(fs.remove(&path));
            JournalError::io("create", &path)(error)
        })?;
        let offset = SEGMENT_HEADER_BYTES as u64;
        tail.segment = Some(Segment { first, path, file, salt: layout::salt(*uuid, first) });
        tail.offset = offset;
        tail.marked_offset = offset;
        tail.marked_synced = first;
        tail.cut_bytes = 0;
        self.commit.publish(Point { next: first, segment: first, offset }, None);
        Ok(())
    }

    pub(crate) fn wait_synced(&self, end: u64, epoch: &Arc<Epoch>) -> Result<()> {
        self.commit.wait(end, epoch, &self.stats, &|| locked(&self.tail).written())
    }

    pub(crate) fn sync(&self) -> Result<()> {
        let (end, epoch) = {
            let tail = locked(&self.tail);
            if tail.segment.is_none() {
                return Ok(());
            }
            (tail.next, Arc::clone(&tail.epoch))
        };
        self.wait_synced(end, &epoch)
    }

    /// Refuses what cannot be written, repairs what can be, and keeps to `max_backlog`.
    fn make_room<'a>(&'a self, mut tail: MutexGuard<'a, Tail>, bytes: u64) -> Result<MutexGuard<'a, Tail>> {
        let deadline = match self.options.at_limit {
            AtLimit::Block(patience) => Instant::now().checked_add(patience),
            AtLimit::DropOldest => None,
        };
        let mut told = false;
        loop {
            self.check(&mut tail)?;
            let Some(max_bytes) = self.options.max_backlog_bytes else { return Ok(tail) };
            if tail.total_bytes() + bytes <= max_bytes {
                return Ok(tail);
            }
            let Some(slowest) = self.look_for_room(&mut tail)? else { return Ok(tail) };
            if tail.total_bytes() + bytes <= max_bytes {
                return Ok(tail);
            }
            if tail.sealed.is_empty() {
                if !tail.has_records() {
                    // A batch larger than the whole limit.
                    return Ok(tail);
                }
                self.roll(&mut tail)?;
                continue;
            }
            if self.options.at_limit == AtLimit::DropOldest {
                self.drop_oldest(&mut tail)?;
                continue;
            }
            if !std::mem::replace(&mut told, true) {
                self.tell(&Event::Blocked { subscriber: slowest.clone() });
            }
            let left = deadline.map_or(BLOCKED_LOOK, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let path = self.registry.dir.clone();
                return Err(JournalError::Backlog { path, max_bytes, subscriber: slowest });
            }
            tail = self.room.wait_timeout(tail, left.min(BLOCKED_LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Looks again at what is on the disk, and removes what was passed. Answers who is furthest behind, if there are subscribers.
    fn look_for_room(&self, tail: &mut Tail) -> Result<Option<String>> {
        let locked = self.registry.lock()?;
        locked.collect(self.keep())?;
        let subscribers = self.registry.load()?;
        drop(locked);
        self.refresh_sealed(tail)?;
        Ok(furthest_behind(&subscribers).map(|slowest| slowest.name.clone()))
    }

    fn refresh_sealed(&self, tail: &mut Tail) -> Result<()> {
        let Registry { fs, dir, .. } = &self.registry;
        let current = tail.segment.as_ref().map(|segment| segment.first);
        tail.sealed.clear();
        for first in layout::segments(&**fs, dir)? {
            let path = layout::segment_path(dir, first);
            if Some(first) == current {
                continue;
            }
            match fs.open(&path, false).and_then(|file| file.length()) {
                Ok(bytes) => tail.sealed.push_back((first, bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(JournalError::io("measure", &path)(error)),
            }
        }
        Ok(())
    }

    fn drop_oldest(&self, tail: &mut Tail) -> Result<()> {
        if let Some(dropped) = self.registry.lock()?.drop_oldest()? {
            let lost: u64 = dropped.lost.iter().map(|(_, records)| records).sum();
            self.stats.dropped_records.fetch_add(lost, Ordering::Relaxed);
            tail.sealed.retain(|(first, _)| *first >= dropped.sequences.end);
            self.tell(&Event::Dropped(dropped));
            return Ok(());
        }
        // Another process was faster.
        self.refresh_sealed(tail)
    }

    fn check(&self, tail: &mut Tail) -> Result<()> {
        let path = &self.registry.dir;
        if tail.closed {
            return Err(JournalError::Closed { path: path.clone() });
        }
        if tail.epoch.failure.get().is_some() {
            self.repair(tail)?;
        }
        match &tail.poison {
            Some(reason) => Err(JournalError::Poisoned { path: path.clone(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// After a failed sync. A full disk ends: what was not synced is cut, and once that is on disk a new segment begins, with numbers that no
    /// record had. After any other failure nobody knows what the disk holds, so nothing more is written.
    fn repair(&self, tail: &mut Tail) -> Result<()> {
        let Some(failure) = tail.epoch.failure.get().cloned() else { return Ok(()) };
        if !is_full(&failure.error) {
            tail.poison = Some(failure.error.to_string());
            return Ok(());
        }
        let synced = self.commit.synced();
        if let Some(segment) = &tail.segment {
            let cut = segment.file.set_len(synced.offset).and_then(|()| segment.file.sync_data());
            match cut {
                Ok(()) => {}
                Err(error) if is_full(&error) => return Err(JournalError::io("cut", &segment.path)(error)),
                Err(error) => {
                    tail.poison = Some(error.to_string());
                    return Ok(());
                }
            }
            let records = tail.next - synced.next;
            let reason = failure.error.to_string();
            self.tell(&Event::NotSynced { path: segment.path.clone(), records, reason });
            tail.sealed.push_back((segment.first, synced.offset));
            tail.cut_bytes = tail.offset - synced.offset;
            // An empty segment would be in the way of the next one's name if no number was given in it.
            if tail.next == segment.first {
                tail.next += 1;
            }
        }
        tail.segment = None;
        tail.offset = 0;
        tail.previous_end = synced.next;
        tail.epoch = Arc::default();
        Ok(())
    }

    fn collect(&self) -> Result<Removed> {
        let removed = self.registry.lock()?.collect(self.keep())?;
        forget(&mut locked(&self.tail), &removed);
        self.room.notify_all();
        Ok(removed)
    }

    fn close(&self) -> Result<()> {
        let mut tail = locked(&self.tail);
        if std::mem::replace(&mut tail.closed, true) {
            return Ok(());
        }
        let result = self.write_end(&mut tail);
        drop(tail);
        self.commit.close();
        result
    }

    fn write_end(&self, tail: &mut Tail) -> Result<()> {
        if tail.poison.is_some() || tail.epoch.failure.get().is_some() {
            return Err(JournalError::Closed { path: self.registry.dir.clone() });
        }
        self.sync_tail(tail)?;
        let Some(segment) = &tail.segment else { return Ok(()) };
        let mut end = Vec::new();
        record::encode_control(&mut end, Kind::End, tail.next, self.registry.fs.now_us(), &[], segment.salt);
        let io = |action| JournalError::io(action, &segment.path);
        write_all_at(&*segment.file, &end, tail.offset).map_err(io("write"))?;
        segment.file.sync_data().map_err(io("fsync"))
    }
}

fn forget(tail: &mut Tail, removed: &Removed) {
    tail.sealed.retain(|(first, _)| *first >= removed.through);
}

/// The file is replaced in place and kept: readers of other processes watch it.
fn open_tail_file(registry: &Registry) -> Result<Arc<dyn FsFile>> {
    let path = registry.dir.join(TAIL_FILE);
    match registry.fs.open(&path, true) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            registry.fs.create_new(&path).map_err(JournalError::io("create", &path))
        }
        other => other.map_err(JournalError::io("open", &path)),
    }
}
