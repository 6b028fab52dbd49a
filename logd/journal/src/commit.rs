//! The group commit: one sync for everybody who waits.
//!
//! There is no thread of its own for it. Whoever needs a sync and finds nobody syncing leads: it takes what has been written so far, syncs it, and all
//! that waited for it go on. With many writers the first one there waits a moment for those that the last sync released, or every group would be
//! half of what it could be; the one that completes the group leads, without a change of threads in between.
//!
//! On a fast disk the waking of writers takes as long as the sync. So nobody is woken for nothing: a sync ends a round, and those that it
//! does not cover wait for the next one apart from those that it does.
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

/// The longest that a group is waited for; see [`Commit::linger`].
const MAX_LINGER: Duration = Duration::from_millis(1);
/// The same as a part of a sync: what a group costs that does not come together again.
const LINGER_PART: u32 = 4;

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
    /// Counts syncs that were led. Whoever waits for the one that is next, or under way, waits at its number.
    round: usize,
    /// The round's sync is under way.
    leading: bool,
    /// Records below this number are in it; 0 while that is not known.
    covered: u64,
    /// Somebody leads the round if the group does not come together in time.
    lingering: bool,
    /// Appends that wait for a sync, each by the number after its last record. Not those that were released and have not woken up yet.
    waiting: Vec<u64>,
    /// How many waited when the last sync ended: those that it released, and those that came meanwhile. The next group may be all of them.
    group: usize,
    last_sync: Duration,
    closed: bool,
}

impl State {
    /// Everybody is there that the next sync can be expected to be for.
    fn is_complete(&self) -> bool {
        self.waiting.len() >= self.group
    }

    fn forget_released(&mut self) {
        let synced = self.synced.next;
        self.waiting.retain(|end| *end > synced);
    }
}

/// Who waits for syncs, and how far they have come.
#[derive(Debug)]
pub(crate) struct Commit {
    state: Mutex<State>,
    /// Writers wait for the end of a round: of even ones, of odd ones.
    done: [Condvar; 2],
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
        let state = State {
            synced,
            round: 0,
            leading: false,
            covered: 0,
            lingering: false,
            waiting: Vec::new(),
            group: 0,
            last_sync: Duration::ZERO,
            closed: false,
        };
        let commit = Self {
            state: Mutex::new(state),
            done: [Condvar::new(), Condvar::new()],
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
        if state.synced.next < end {
            state.waiting.push(end);
        }
        let error = loop {
            if let Some(error) = epoch.error(end) {
                break error;
            }
            if state.synced.next >= end {
                return Ok(());
            }
            let complete = state.is_complete();
            if state.leading || (state.lingering && !complete) {
                let missed = state.leading && state.covered != 0 && end > state.covered;
                let round = state.round + usize::from(missed);
                state = self.done[round % 2].wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if !complete {
                let round = state.round;
                state = self.linger(state);
                if state.leading || state.round != round {
                    continue;
                }
            }
            let synced = self.lead(state, stats, written);
            state = locked(&self.state);
            // A failure is in the epoch, if it concerns these records. Nothing to sync: these records went with a failed epoch, or are synced.
            if !synced && state.synced.next < end {
                break epoch.error(end).unwrap_or_else(|| JournalError::Closed { path: self.dir.clone() });
            }
        };
        state.waiting.retain(|waiting| *waiting != end);
        Err(error)
    }

    /// Waits for those that the last sync released, as long as they keep coming and it is little beside a sync. Whoever completes the group leads.
    fn linger<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let (round, half) = (state.round, (state.last_sync / LINGER_PART).min(MAX_LINGER) / 2);
        let deadline = Instant::now() + 2 * half;
        state.lingering = true;
        while state.round == round && !state.leading && !state.is_complete() {
            let before = state.waiting.len();
            let left = half.min(deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            let wait = self.done[round % 2].wait_timeout(state, left);
            let (now, outcome) = wait.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if outcome.timed_out() && state.waiting.len() == before {
                break;
            }
        }
        // Of another round somebody else may be doing it.
        state.lingering &= state.round != round;
        state
    }

    /// Syncs for everybody who waits; false when there was nothing to sync.
    fn lead(&self, mut state: MutexGuard<'_, State>, stats: &Stats, written: &dyn Fn() -> Option<Written>) -> bool {
        state.leading = true;
        state.covered = 0;
        drop(state);
        let Some(written) = written() else {
            // As after a failure: nobody is left to wait for another.
            self.end_round(locked(&self.state));
            self.wake_all();
            return false;
        };
        locked(&self.state).covered = written.point.next;
        // What went wrong is in the epoch.
        let gate = locked(&self.gate);
        let result = self.sync_gated(&written, stats);
        let mut state = locked(&self.state);
        match result {
            Ok(took) => {
                self.advance(&mut state, written.point, Some(took));
                drop(gate);
                self.end_round(state);
            }
            // Also those that it did not cover are of the epoch that ended.
            Err(_) => {
                drop(gate);
                self.end_round(state);
                self.wake_all();
            }
        }
        true
    }

    /// Lets those go whose sync it was, and has one of the others see to the next.
    fn end_round(&self, mut state: MutexGuard<'_, State>) {
        let round = state.round;
        state.round += 1;
        state.leading = false;
        // Whoever lingered for this round does so no more, and may not know it yet.
        state.lingering = false;
        drop(state);
        self.done[round % 2].notify_all();
        self.done[(round + 1) % 2].notify_one();
        self.advanced.notify_all();
    }

    /// Syncs one segment for the writer that is at its end and publishes how far it goes; or ends the epoch.
    pub(crate) fn sync(&self, written: &Written, stats: &Stats) -> Result<()> {
        let gate = locked(&self.gate);
        let result = self.sync_gated(written, stats);
        let mut state = locked(&self.state);
        let result = result.map(|took| self.advance(&mut state, written.point, Some(took)));
        drop((state, gate));
        self.wake_all();
        result
    }

    /// The sync itself; the caller holds the gate and wakes those who wait, or a writer between its look and its wait would miss a failure.
    fn sync_gated(&self, written: &Written, stats: &Stats) -> Result<Duration> {
        if let Some(error) = written.epoch.error(written.point.next) {
            return Err(error);
        }
        let started = Instant::now();
        let result = written.file.sync_data();
        let took = started.elapsed();
        stats.syncs.fetch_add(1, Ordering::Relaxed);
        stats.sync_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        result.map(|()| took).map_err(|error| {
            let (path, error) = (written.path.clone(), Arc::new(error));
            let failure = Failure { synced: self.synced().next, path: path.clone(), error: Arc::clone(&error) };
            // Set once: under the gate nobody else can have failed this epoch.
            drop(written.epoch.failure.set(failure));
            JournalError::NotSynced { path, source: error }
        })
    }

    /// Says that everything up to a point is on disk.
    pub(crate) fn publish(&self, point: Point) {
        self.advance(&mut locked(&self.state), point, None);
        self.wake_all();
    }

    /// A point behind the known one is old news.
    fn advance(&self, state: &mut State, point: Point, took: Option<Duration>) {
        if let Some(took) = took {
            state.last_sync = took;
            state.group = state.waiting.len();
        }
        if (point.next, point.segment) > (state.synced.next, state.synced.segment) {
            state.synced = point;
            state.forget_released();
            self.tell_others(point);
        }
    }

    fn wake_all(&self) {
        self.done.iter().for_each(Condvar::notify_all);
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
