//! The group commit: one sync for everybody who waits.
//!
//! There is no thread of its own for it. Whoever needs a sync and finds nobody syncing leads: it takes what has been written so far, syncs it, and all
//! that waited for it go on. With many writers the leader first waits a moment for those that the last sync released, or every group would be
//! half of what it could be.
//!
//! A failed sync is the point where a journal can lie. What always holds: one sync at a time (a file reports an error of its pages only
//! once, so the second of two would hear of none); a failure ends its [`Epoch`], and everything written in it behind the synced point is refused.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{JournalError, Result};
use crate::fs::{FsFile, write_all_at};
use crate::layout::{self, Point, Uuid};

/// The longest that a leader waits for stragglers.
const MAX_LINGER: Duration = Duration::from_millis(1);

/// Locks what no panic can leave half-changed.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sync that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// Records below this number were on disk before.
    pub(crate) synced: u64,
    pub(crate) path: PathBuf,
    pub(crate) error: Arc<io::Error>,
}

/// The time between two failed syncs.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    pub(crate) failure: OnceLock<Failure>,
}

impl Epoch {
    fn error(&self, end: u64) -> Option<JournalError> {
        let failure = self.failure.get().filter(|failure| end > failure.synced)?;
        Some(JournalError::NotSynced { path: failure.path.clone(), source: Arc::clone(&failure.error) })
    }
}

/// What is to be synced: a segment, and how far it was written.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) file: Arc<dyn FsFile>,
    pub(crate) path: PathBuf,
    pub(crate) point: Point,
    pub(crate) epoch: Arc<Epoch>,
}

/// Figures of a journal since it was opened.
#[derive(Debug, Default)]
pub struct Stats {
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_ns: AtomicU64,
    pub(crate) dropped_records: AtomicU64,
    pub(crate) full: AtomicU64,
}

impl Stats {
    /// Records and bytes written.
    pub fn written(&self) -> (u64, u64) {
        (self.records.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// How often the journal was synced, and how long that took together.
    pub fn syncs(&self) -> (u64, Duration) {
        (self.syncs.load(Ordering::Relaxed), Duration::from_nanos(self.sync_ns.load(Ordering::Relaxed)))
    }

    /// Records that went unread because `max_backlog` was reached, summed over subscribers.
    pub fn dropped_records(&self) -> u64 {
        self.dropped_records.load(Ordering::Relaxed)
    }

    /// Writes that failed because the disk was full.
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct State {
    synced: Point,
    leading: bool,
    /// Appends that wait for a sync.
    waiting: usize,
    /// How many the last sync released.
    group: usize,
    last_sync: Duration,
    closed: bool,
}

/// Who waits for syncs, and how far they have come.
#[derive(Debug)]
pub(crate) struct Commit {
    state: Mutex<State>,
    /// Writers wait for the end of a sync.
    done: Condvar,
    /// A leader waits for stragglers.
    arrived: Condvar,
    /// Readers wait for records.
    advanced: Condvar,
    /// Held while a file is synced; see above.
    gate: Mutex<()>,
    /// Tells readers of other processes. Not durable: whoever finds the file of an earlier boot does not believe it.
    tail_file: Arc<dyn FsFile>,
    dir: PathBuf,
    uuid: Uuid,
    boot: u64,
}

impl Commit {
    pub(crate) fn new(dir: PathBuf, synced: Point, tail_file: Arc<dyn FsFile>, uuid: Uuid, boot: u64) -> Self {
        let state = State { synced, leading: false, waiting: 0, group: 0, last_sync: Duration::ZERO, closed: false };
        let commit = Self {
            state: Mutex::new(state),
            done: Condvar::new(),
            arrived: Condvar::new(),
            advanced: Condvar::new(),
            gate: Mutex::new(()),
            tail_file,
            dir,
            uuid,
            boot,
        };
        commit.tell_others(synced);
        commit
    }

    /// How far everything is on disk.
    pub(crate) fn synced(&self) -> Point {
        locked(&self.state).synced
    }

    /// Waits until everything below `end` is on disk; leads a sync if nobody does. `written` is asked for what there is to sync; it takes the
    /// writers' lock, so it is called with none held.
    pub(crate) fn wait(
        &self,
        end: u64,
        epoch: &Arc<Epoch>,
        stats: &Stats,
        written: &dyn Fn() -> Option<Written>,
    ) -> Result<()> {
        let mut state = locked(&self.state);
        state.waiting += 1;
        if state.waiting >= state.group {
            self.arrived.notify_one();
        }
        let result = loop {
            if let Some(error) = epoch.error(end) {
                break Err(error);
            }
            if state.synced.next >= end {
                break Ok(());
            }
            if state.leading {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.leading = true;
            state = self.linger(state);
            let group = state.waiting;
            drop(state);
            let outcome = written().map(|written| self.sync(&written, stats));
            state = locked(&self.state);
            state.leading = false;
            state.group = group;
            self.done.notify_all();
            // A failure is in the epoch, if it concerns these records. Nothing to sync: these records went with a failed epoch, or are synced.
            if outcome.is_none() && state.synced.next < end {
                break Err(epoch.error(end).unwrap_or_else(|| JournalError::Closed { path: self.dir.clone() }));
            }
        };
        state.waiting -= 1;
        result
    }

    /// Waits for those that the last sync released, as long as that is little beside a sync.
    fn linger<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let deadline = Instant::now() + (state.last_sync / 8).min(MAX_LINGER);
        while state.waiting < state.group {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    /// Syncs one segment and publishes how far it goes; or ends the epoch.
    pub(crate) fn sync(&self, written: &Written, stats: &Stats) -> Result<()> {
        let gate = locked(&self.gate);
        if let Some(error) = written.epoch.error(written.point.next) {
            return Err(error);
        }
        let started = Instant::now();
        let result = written.file.sync_data();
        let took = started.elapsed();
        stats.syncs.fetch_add(1, Ordering::Relaxed);
        stats.sync_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        match result {
            Ok(()) => {
                self.publish(written.point, Some(took));
                drop(gate);
                Ok(())
            }
            Err(error) => {
                let (path, error) = (written.path.clone(), Arc::new(error));
                let failure = Failure { synced: self.synced().next, path: path.clone(), error: Arc::clone(&error) };
                // Set once: under the gate nobody else can have failed this epoch.
                drop(written.epoch.failure.set(failure));
                drop(gate);
                // Under the lock, or a writer between its look and its wait would miss it.
                let _state = locked(&self.state);
                self.done.notify_all();
                Err(JournalError::NotSynced { path, source: error })
            }
        }
    }

    /// Says that everything up to a point is on disk. A point behind the known one is old news.
    pub(crate) fn publish(&self, point: Point, took: Option<Duration>) {
        let mut state = locked(&self.state);
        state.last_sync = took.unwrap_or(state.last_sync);
        if (point.next, point.segment) > (state.synced.next, state.synced.segment) {
            state.synced = point;
            self.tell_others(point);
        }
        self.done.notify_all();
        self.advanced.notify_all();
    }

    fn tell_others(&self, point: Point) {
        // Readers of other processes then wait for the next sync; nothing is lost by it.
        drop(write_all_at(&*self.tail_file, &layout::encode_tail(self.uuid, point, self.boot), 0));
    }

    /// Waits until records from `next` on can be read; false when the time is up or the journal closed.
    pub(crate) fn wait_readable(&self, next: u64, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = locked(&self.state);
        loop {
            if state.synced.next > next {
                return true;
            }
            if state.closed {
                return false;
            }
            state = match deadline {
                None => self.advanced.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.advanced.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Lets waiting readers go.
    pub(crate) fn close(&self) {
        locked(&self.state).closed = true;
        self.advanced.notify_all();
    }
}
