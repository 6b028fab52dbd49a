//! The writing side of a journal.
//!
//! An append numbers its batch and writes it itself, under the writers' lock: one copy into the page cache, no hand-over to another thread. With
//! `Safe` it then waits for the group commit ([`crate::commit`]). Everything about the file being written is in [`Tail`], behind that lock.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use dir_lock::Owner;

use crate::commit::{Commit, Epoch, Stats, locked};
use crate::error::{JournalError, Result};
use crate::flusher::Flusher;
use crate::fs::{Fs, FsFile, Held, System};
use crate::layout::{self, Point, TAIL_FILE, Uuid};
use crate::notes::Notes;
use crate::open::{self, Found};
use crate::options::{AtLimit, Durability, Event, Options};
use crate::record::Batch;
use crate::retention::{Keep, Removed};
use crate::subscribers::{Registry, Subscriber};
use crate::tail::{Tail, forget};

/// What writers, readers and the flusher share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) registry: Registry,
    pub(crate) commit: Commit,
    pub(crate) stats: Stats,
    options: RwLock<Options>,
    pub(crate) tail: Mutex<Tail>,
    /// As the next segment begins with them. Changed behind the writers' lock, but for what is forgotten; apart from it, because that is held for as
    /// long as a disk takes to end a segment, and who only looks must not wait for a disk. So it is never held over one.
    pub(crate) notes: Mutex<Notes>,
    /// Writers wait for a subscriber.
    pub(crate) room: Condvar,
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

    /// Changes what may lie on the disk, what happens then, and how long records stay without subscribers; from the next append on.
    pub fn set_limits(&self, max_backlog_bytes: Option<u64>, at_limit: AtLimit, keep: Keep) {
        let mut options = self.inner.options.write().unwrap_or_else(PoisonError::into_inner);
        *options = Options { max_backlog_bytes, at_limit, keep, ..options.clone() };
        drop(options);
        self.inner.room.notify_all();
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
        self.append_as(batch, self.inner.options().durability)
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

    /// What was noted under a key with the newest batch that did. Waits for no disk.
    pub fn note(&self, key: &[u8]) -> Option<Vec<u8>> {
        locked(&self.inner.notes).get(key).cloned()
    }

    /// Forgets notes. They come back when the process dies before the next segment is made, so this is for keeping the table small and nothing else.
    pub fn forget_notes<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        let mut notes = locked(&self.inner.notes);
        keys.for_each(|key| drop(notes.remove(key)));
    }

    /// Everything that is noted. Waits for no disk.
    pub fn notes(&self) -> Notes {
        locked(&self.inner.notes).clone()
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
        let Found { registry, end, next, last, cut_bytes, events, notes } = found;
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
        let inner = Self {
            registry,
            commit,
            stats: Stats::default(),
            options: RwLock::new(options),
            tail: Mutex::new(tail),
            notes: Mutex::new(notes),
            room: Condvar::new(),
        };
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

    pub(crate) fn options(&self) -> RwLockReadGuard<'_, Options> {
        self.options.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, event: &Event) {
        if let Some(on_event) = &self.options().on_event {
            on_event(event);
        }
    }

    pub(crate) fn sync_delay(&self) -> Option<Duration> {
        self.options().sync_delay
    }

    /// Without subscribers less than `max_backlog` is kept, so that the limit is not looked at with every append.
    pub(crate) fn keep(&self) -> Keep {
        let options = self.options();
        let Keep { age, bytes } = options.keep;
        Keep { age, bytes: bytes.min(options.max_backlog_bytes.map_or(u64::MAX, |max| max / 2)) }
    }

    fn first(&self) -> Result<u64> {
        let segments = layout::segments(&*self.registry.fs, &self.registry.dir)?;
        Ok(segments.first().copied().unwrap_or(1).min(self.commit.synced().next))
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
