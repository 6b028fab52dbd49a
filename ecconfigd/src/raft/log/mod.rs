//! The log on disk: a plain file in segments.
//!
//! Why not a database: an append and one fdatasync is all that a commit waits for. What always holds: an entry is readable when `append`
//! returns and acknowledged only after its sync; a write that was torn by a crash was never acknowledged and is cut at the next start, and said;
//! damage anywhere else is refused with words, because the records behind it are proof that something acknowledged is lost; after a failed
//! sync nothing more is written. The bytes are described in [`record`] and [`segment`].
//!
//! Left out on purpose: reading around damage. With replication a damaged member is rebuilt from the others; alone, from a backup.

mod index;
mod record;
mod segment;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{mpsc, oneshot};

use self::index::{Index, Lookup, Place};
use self::record::Record;
use self::segment::{HEADER_BYTES, Segment};
#[cfg(test)]
pub(crate) use self::simulated::Platter;
use self::writer::Old;
pub(crate) use self::writer::{Request, Writer};
use super::{Entry, FAR_BEHIND, Group, LogId, Vote};
use crate::outside::{self, Outside};

/// Requests that wait for the writer. Openraft has a handful in flight; when it is full, openraft waits.
const QUEUE: usize = 256;
/// What one replication request reads at most, and what is read at once to be applied, beyond the first entry.
const READ_BYTES: usize = 8 << 20;
/// … and for a follower that is far behind: what is synced there at once holds up other syncs on the same disk.
const FAR_READ_BYTES: usize = 256 << 10;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file could not be read or written.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of another version.
    #[error("{} has log version {version}, this build knows 1: it was written by a newer ecconfigd, run that", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A record of another version.
    #[error("{} at offset {offset}: a record of kind {kind}, version {version}, which this build does not know: it was written by a newer ecconfigd, run that", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The record's kind.
        kind: u8,
        /// The record's version.
        version: u8,
    },
    /// Something that was acknowledged is damaged.
    #[error("{} is damaged at offset {offset}: {what}. Acknowledged entries are lost, so this node must not go on; restore its data directory or let it join again", path.display())]
    Rot {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

/// Figures of the log, for metrics.
#[derive(Debug, Default)]
pub struct LogStats {
    syncs: AtomicU64,
    sync_ns: AtomicU64,
    bytes: AtomicU64,
    /// The newest syncs' durations; bounded, for percentiles.
    recent_ns: Mutex<VecDeque<u64>>,
}

impl LogStats {
    fn synced(&self, took: Duration) {
        const KEPT: usize = 1024;
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_ns.fetch_add(ns, Ordering::Relaxed);
        let mut recent = locked(&self.recent_ns);
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(ns);
    }

    fn written_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How often the log was synced, and how long that took together.
    pub fn syncs(&self) -> (u64, Duration) {
        (self.syncs.load(Ordering::Relaxed), Duration::from_nanos(self.sync_ns.load(Ordering::Relaxed)))
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The duration that this share of the newest syncs stayed below.
    pub fn sync_quantile(&self, share: f64) -> Duration {
        let mut recent: Vec<u64> = locked(&self.recent_ns).iter().copied().collect();
        recent.sort_unstable();
        let at = ((recent.len() as f64) * share) as usize;
        Duration::from_nanos(recent.get(at.min(recent.len().saturating_sub(1))).copied().unwrap_or(0))
    }
}

/// Locks what no panic can leave half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The log. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    index: Arc<Mutex<Index>>,
    requests: mpsc::Sender<Request>,
    stats: Arc<LogStats>,
    outside: Arc<dyn Outside>,
}

impl LogStore {
    /// Opens the log in a directory, which is made if it is missing, and starts its writer.
    pub fn open(dir: &Path, segment_bytes: u64) -> Result<LogStore, LogError> {
        let (log, writer, receiver) = LogStore::open_unwritten(dir, segment_bytes, outside::Machine::shared())?;
        std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer.run(receiver))
            .map_err(|source| LogError::Io { action: "start the writer of", path: dir.to_owned(), source })?;
        Ok(log)
    }

    /// The same on another machine, and without the thread: whoever calls this has to serve the writer's requests.
    pub(crate) fn open_unwritten(
        dir: &Path,
        segment_bytes: u64,
        outside: Arc<dyn Outside>,
    ) -> Result<(LogStore, Writer, mpsc::Receiver<Request>), LogError> {
        let io = |action, source| LogError::Io { action, path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(|e| io("create", e))?;
        let stats = Arc::new(LogStats::default());
        let mut writer = recover(dir, segment_bytes, stats.clone())?;
        locked(&writer.index).shrink_cache();
        writer.synced = writer.next_sequence.saturating_sub(1);
        let index = writer.index.clone();
        let (requests, receiver) = mpsc::channel(QUEUE);
        Ok((LogStore { index, requests, stats, outside }, writer, receiver))
    }

    /// Figures.
    pub fn stats(&self) -> Arc<LogStats> {
        self.stats.clone()
    }

    /// Refuses a log that was lost although the state is there.
    ///
    /// Alone, nothing is committed before it is in this log and synced, so a log that ends before the state has lost something. With other
    /// voters it may end there: a crash came between installing a snapshot and purging the log, or an entry was on the others' disks, and so
    /// committed and applied here, before it was on this one. Nobody counted this node for such an entry; openraft closes the hole. What must
    /// still be there is the vote, which is synced before anything else: without it this node could vote twice.
    pub fn covers(&self, applied_index: u64, others_vote: bool) -> Result<(), String> {
        let index = locked(&self.index);
        let last = index.last().map_or(0, |id| id.index);
        if last >= applied_index || (others_vote && index.vote.is_some()) {
            return Ok(());
        }
        Err(format!(
            "the log ends at index {last}, but the state has index {applied_index}: acknowledged entries are lost, so this node must not go on; restore its data directory or let it join again"
        ))
    }

    /// Refuses a state that ends before the log begins: entries in between are in neither.
    pub fn continues(&self, applied_index: u64) -> Result<(), String> {
        let purged = locked(&self.index).purged.map_or(0, |id| id.index);
        if applied_index >= purged {
            return Ok(());
        }
        Err(format!(
            "the state ends at index {applied_index}, and the log begins behind index {purged}: neither the database nor the snapshot can be used, so this node cannot go on by itself; let it join again (`eccfg node replace`), or restore its data directory"
        ))
    }

    /// Syncs and ends the writer. Later writes fail.
    pub async fn close(&self) -> io::Result<()> {
        self.ask(|done| Request::Close { done }).await
    }

    async fn send(&self, request: Request) -> io::Result<()> {
        self.requests.send(request).await.map_err(|_| io::Error::other("the log is closed"))
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Request) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(request(done)).await?;
        answer.await.map_err(|_| io::Error::other("the log is closed"))?
    }

    /// The entries of `start..end`, or the first of them if all weigh more than this; one at least. What is in memory is answered at once, and
    /// files are read outside the async threads: they may be on a slow disk.
    async fn read(&self, start: u64, end: u64, limit_bytes: usize) -> io::Result<Vec<Entry>> {
        let lookups = locked(&self.index).range(start, end, limit_bytes);
        let in_memory = lookups.iter().all(Lookup::is_here);
        let load = move || lookups.into_iter().map(Lookup::load).collect();
        if in_memory { load() } else { self.outside.blocking(load).await? }
    }

    /// The same, here and now, for whoever watches a simulation from outside.
    #[cfg(test)]
    pub(crate) fn look(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        locked(&self.index).range(start, end, usize::MAX).into_iter().map(Lookup::load).collect()
    }
}

/// Reads all segments and answers a writer that goes on behind them.
fn recover(dir: &Path, segment_bytes: u64, stats: Arc<LogStats>) -> Result<Writer, LogError> {
    let mut index = Index::default();
    let mut old: Vec<Old> = Vec::new();
    let mut end = HEADER_BYTES;
    let mut next_sequence = 1;
    let list = segment::list(dir).map_err(|source| LogError::Io { action: "list", path: dir.to_owned(), source })?;
    for (at, (number, path)) in list.iter().enumerate() {
        let io = |action| move |source| LogError::Io { action, path: path.clone(), source };
        let segment = Arc::new(Segment::open(*number, path).map_err(io("open"))?);
        let Some(scan) = segment.scan(at + 1 == list.len())? else {
            tracing::warn!(path = %path.display(), "removed a segment of the log that a crash left half-made");
            std::fs::remove_file(path).map_err(io("remove"))?;
            continue;
        };
        if old.last().is_some_and(|before| before.segment.number + 1 != *number)
            || (!old.is_empty() && scan.first_sequence != next_sequence)
        {
            return Err(LogError::Rot { path: path.clone(), offset: 0, what: "segments before it are missing".into() });
        }
        if scan.torn_bytes > 0 {
            tracing::warn!(
                path = %path.display(), offset = scan.end, bytes = scan.torn_bytes,
                "cut a torn write at the end of the log; it was never acknowledged"
            );
        }
        (end, next_sequence) = (scan.end, scan.next_sequence);
        let highest_index = replay(&mut index, &segment, scan.records).map_err(|(offset, what)| LogError::Rot {
            path: path.clone(),
            offset,
            what,
        })?;
        old.push(Old { segment, highest_index });
    }
    // What is on disk, so that the next group takes it back there where it is not believed.
    let committed = index.committed;
    index.forget_committed_unless_here();
    let index = Arc::new(Mutex::new(index));
    let dir_path = dir.to_owned();
    let (segment, highest_index, room) = match old.pop() {
        Some(last) => {
            let length = last.segment.file.metadata().map_err(|e| last.segment.io("read", e))?.len();
            // What a killed process wrote may still be in memory only; from here on it counts as synced.
            last.segment.file.sync_data().map_err(|e| last.segment.io("sync", e))?;
            (last.segment, last.highest_index, length)
        }
        None => {
            let number = list.last().map_or(1, |(number, _)| *number);
            let made = Segment::create(dir, number, next_sequence, segment_bytes);
            let made = made.map_err(|source| LogError::Io { action: "create", path: dir.to_owned(), source })?;
            (Arc::new(made), None, segment_bytes)
        }
    };
    Ok(Writer {
        dir: dir_path,
        segment_bytes,
        index,
        stats,
        old,
        segment,
        highest_index,
        end,
        room,
        next_sequence,
        synced: 0,
        committed,
        failed: None,
    })
}

/// Does again what the records say. Answers the highest index that was written to the segment.
fn replay(
    index: &mut Index,
    segment: &Arc<Segment>,
    records: Vec<(u64, record::Framed)>,
) -> Result<Option<u64>, (u64, String)> {
    let mut highest = None;
    for (offset, framed) in records {
        match framed.record {
            Record::Entry(entry) => {
                highest = highest.max(Some(entry.log_id.index));
                if index.purged.is_some_and(|purged| entry.log_id.index <= purged.index) {
                    continue;
                }
                let place = Place { segment: segment.clone(), offset, bytes: framed.bytes };
                index.push(entry, Some(place), false).map_err(|what| (offset, what))?;
            }
            Record::Vote(vote) => index.vote = Some(vote),
            Record::Committed(id) => index.committed = id,
            Record::Truncate(keep_upto) => index.truncate(keep_upto),
            Record::Purge(upto) => index.purge(upto),
        }
    }
    Ok(highest)
}

/// The first index of a range, and the one behind its last.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl<C: Group> RaftLogReader<C> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    /// In pieces: what is to be applied after a start, or behind a long batch, may be more than shall be in memory at once.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (log, (start, end)) = (self.clone(), bounds(&range));
        let pieces = stream::try_unfold(start, move |from| {
            let log = log.clone();
            async move {
                let piece = log.read(from, end, READ_BYTES).await?;
                let next = from + piece.len() as u64;
                io::Result::Ok((!piece.is_empty()).then(|| (stream::iter(piece).map(Ok), next)))
            }
        });
        Box::pin(pieces.try_flatten())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let last = locked(&self.index).last().map_or(0, |id| id.index);
        let far_behind = start + FAR_BEHIND < last;
        self.read(start, end, if far_behind { FAR_READ_BYTES } else { READ_BYTES }).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(locked(&self.index).vote)
    }
}

impl<C: Group> RaftLogStorage<C> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<C>, io::Error> {
        let index = locked(&self.index);
        Ok(LogState { last_purged_log_id: index.purged, last_log_id: index.last() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        locked(&self.index).vote = Some(*vote);
        self.ask(|done| Request::Vote { vote: *vote, done }).await
    }

    /// Not written by itself: it only spares the next start an election before it applies what it has, and travels with the next group.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        locked(&self.index).committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(locked(&self.index).committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut index = locked(&self.index);
            for entry in &entries {
                index.push(entry.clone(), None, true).map_err(io::Error::other)?;
            }
        }
        let done = Box::new(move |result| callback.io_completed(result));
        self.send(Request::Append { entries, done }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let keep_upto = last_log_id.map(|id| id.index);
        locked(&self.index).truncate(keep_upto);
        self.ask(|done| Request::Truncate { keep_upto, done }).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        locked(&self.index).purge(log_id);
        self.ask(|done| Request::Purge { upto: log_id, done }).await
    }
}
