//! One log: its journal and the thread that writes it.
//!
//! Inputs hand in [`Chunk`]s: a batch of lines, with the position in their source as the batch's notes. The thread takes all that wait, writes them,
//! syncs once, and answers. What is answered is on disk (with `mode = "fast"`, written), together with its notes; what is not answered will be
//! offered again by whoever can, and the notes tell how far it had come. A full disk, or a full backlog with `at_limit = "block"`, makes
//! the thread try again until there is room; the queue fills, and the inputs wait.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster::documents::schema::logd::{AtLimit, JournalMode, Log as Settings, PathPattern};
use logd_journal::{Batch, Durability, Event, Journal, JournalError, Keep, Options};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::text::TextCopy;
use crate::path::{Names, now_us};

/// Chunks that wait for the writer: enough for it to find the next group ready after a sync. An input makes chunks of about 64 KiB, so this
/// is half a MiB of memory per log, and as much again while a group is written; when it is full, inputs wait.
const QUEUE_CHUNKS: usize = 8;
/// How long written lines may wait for their sync with `mode = "fast"`.
const FAST_SYNC: Duration = Duration::from_millis(5);
/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// How long the journal waits for a subscriber at its limit before the thread looks whether it shall stop.
const BLOCK_LOOK: Duration = Duration::from_millis(500);
/// What the notes of sources that are gone may pile up to; beyond it the ones unused for longest go. Each is some 60 bytes.
const MAX_SOURCES: usize = 4096;
/// The age at which a source that was never heard of again is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Lines on their way to the disk.
#[derive(Debug)]
pub struct Chunk {
    batch: Batch,
    /// The answer waits for a sync, also with `mode = "fast"`.
    safe: bool,
    done: oneshot::Sender<()>,
}

/// The log takes no more lines: the daemon stops, or the journal cannot be written any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log takes no more lines")]
pub struct Closed;

/// Ends when the lines are on disk.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<()>);

impl Receipt {
    /// Waits.
    pub async fn wait(self) -> Result<(), Closed> {
        self.0.await.map_err(|_| Closed)
    }

    /// Waits on a thread that is not a worker of the runtime.
    pub fn wait_blocking(self) -> Result<(), Closed> {
        self.0.blocking_recv().map_err(|_| Closed)
    }
}

/// Figures of a log since the daemon started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lines that were longer than the limit.
    pub cut_lines: AtomicU64,
    /// Lines that a client sent again and that were there already.
    pub repeated_lines: AtomicU64,
    /// Lines that went unread at `max_backlog`.
    pub dropped_lines: AtomicU64,
    /// True while the disk is full.
    pub full: AtomicBool,
    /// True while writers wait at `max_backlog`.
    pub blocked: AtomicBool,
}

/// A log of this node.
#[derive(Debug)]
pub struct Log {
    name: String,
    journal: Arc<Journal>,
    queue: mpsc::Sender<Chunk>,
    synced: watch::Sender<u64>,
    text: watch::Sender<Option<PathPattern>>,
    fast: Arc<AtomicBool>,
    /// Set while the log is configured; without it only what is left in the journal is served.
    settings: watch::Sender<Option<Settings>>,
    /// Figures.
    pub counters: Arc<Counters>,
    stop: CancellationToken,
    give_up: CancellationToken,
}

/// The thread of a log; joined when the daemon stops.
#[derive(Debug)]
pub struct Writer {
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    /// Waits until everything that was handed in is on disk and the thread has ended. Call it after [`Log::stop`].
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a log's writer ended in a panic");
        }
    }
}

/// What a log needs to know of its node.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory of the journal.
    pub dir: PathBuf,
    /// Log, node and subcluster.
    pub names: Names,
    /// Cancelled when a journal of this node can no longer be written: the daemon then ends, and the next start reads what is there.
    pub failed: CancellationToken,
}

impl Log {
    /// Opens or makes the journal and starts its thread.
    pub fn open(place: &Place, settings: Option<&Settings>) -> Result<(Arc<Self>, Writer), JournalError> {
        let counters = Arc::new(Counters::default());
        let options = Options {
            node: place.names.node.clone(),
            sync_delay: None,
            on_event: Some(listener(&place.names.log, &counters)),
            ..Options::default()
        };
        let journal = Arc::new(Journal::open(&place.dir, options)?);
        let (queue, chunks) = mpsc::channel(QUEUE_CHUNKS);
        let synced = watch::Sender::new(journal.synced());
        let (text, text_changes) = watch::channel(None);
        let fast = Arc::new(AtomicBool::new(false));
        let (stop, give_up) = (CancellationToken::new(), CancellationToken::new());
        let log = Arc::new(Self {
            name: place.names.log.clone(),
            journal: Arc::clone(&journal),
            queue,
            synced: synced.clone(),
            text,
            fast: Arc::clone(&fast),
            settings: watch::Sender::new(None),
            counters: Arc::clone(&counters),
            stop: stop.clone(),
            give_up: give_up.clone(),
        });
        log.configure(settings)?;
        let thread = Thread {
            journal,
            names: place.names.clone(),
            synced,
            text_changes,
            text: None,
            fast,
            counters,
            failed: place.failed.clone(),
            stop,
            give_up,
        };
        let runtime = tokio::runtime::Handle::current();
        let spawned = std::thread::Builder::new()
            .name(format!("log-{}", place.names.log))
            .spawn(move || thread.run(chunks, &runtime));
        let thread = spawned.map_err(|source| JournalError::Io {
            action: "start the writer of",
            path: place.dir.clone(),
            source,
        })?;
        Ok((log, Writer { thread }))
    }

    /// Takes new settings. Lines that are under way are not touched.
    pub fn configure(&self, settings: Option<&Settings>) -> Result<(), JournalError> {
        if let Some(settings) = settings {
            for subscriber in &settings.subscribers {
                self.journal.ensure_subscriber(subscriber)?;
            }
            let at_limit = match settings.at_limit {
                AtLimit::DropOldest => logd_journal::AtLimit::DropOldest,
                AtLimit::Block => logd_journal::AtLimit::Block(BLOCK_LOOK),
            };
            let keep = Keep { age: settings.keep.into(), ..Keep::default() };
            self.journal.set_limits(Some(settings.max_backlog.bytes()), at_limit, keep);
            self.fast.store(settings.mode == JournalMode::Fast, Ordering::Relaxed);
        }
        self.text.send_replace(settings.and_then(|settings| settings.text.clone()));
        self.settings.send_replace(settings.cloned());
        Ok(())
    }

    /// The log's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its settings; none when it is no longer configured.
    pub fn settings(&self) -> Option<Settings> {
        self.settings.borrow().clone()
    }

    /// Its journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.journal.dir()
    }

    /// Changes with every sync: the number after the last record that readers can see.
    pub fn synced(&self) -> watch::Receiver<u64> {
        self.synced.subscribe()
    }

    /// Takes no more lines. What was handed in is still written.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for room no longer: what is not written yet is left to whoever can send it again.
    pub fn give_up(&self) {
        self.give_up.cancel();
    }

    /// Hands in lines; `safe` wants them synced before the answer whatever the log's mode. Waits while the queue is full.
    pub async fn write(&self, batch: Batch, safe: bool) -> Result<Receipt, Closed> {
        let (done, receipt) = oneshot::channel();
        self.queue.send(Chunk { batch, safe, done }).await.map_err(|_| Closed)?;
        Ok(Receipt(receipt))
    }

    /// The same on a thread that is not a worker of the runtime.
    pub fn write_blocking(&self, batch: Batch, safe: bool) -> Result<Receipt, Closed> {
        let (done, receipt) = oneshot::channel();
        self.queue.blocking_send(Chunk { batch, safe, done }).map_err(|_| Closed)?;
        Ok(Receipt(receipt))
    }
}

/// The next chunk; `None` once everything that was handed in was taken. An error: it is time to sync what was written.
async fn next(
    chunks: &mut mpsc::Receiver<Chunk>,
    dirty: bool,
    stop: &CancellationToken,
) -> Result<Option<Chunk>, tokio::time::error::Elapsed> {
    let wait = if dirty { FAST_SYNC } else { Duration::MAX };
    tokio::select! {
        biased;
        chunk = tokio::time::timeout(wait, chunks.recv()) => chunk,
        () = stop.cancelled() => {
            chunks.close();
            Ok(chunks.recv().await)
        }
    }
}

/// Journal events as lines of the daemon's own log and as figures.
fn listener(log: &str, counters: &Arc<Counters>) -> logd_journal::Listener {
    let (log, counters) = (log.to_owned(), Arc::clone(counters));
    Arc::new(move |event| match event {
        Event::Dropped(dropped) => {
            let records = dropped.sequences.end - dropped.sequences.start;
            counters.dropped_lines.fetch_add(records, Ordering::Relaxed);
            tracing::error!(log, records, lost = ?dropped.lost, "max_backlog is reached: the oldest lines are dropped unread");
        }
        Event::Blocked { subscriber } => {
            if !counters.blocked.swap(true, Ordering::Relaxed) {
                tracing::error!(log, subscriber, "max_backlog is reached: writers wait for this subscriber");
            }
        }
        Event::Rot { .. } | Event::Wiped { .. } | Event::DamagedSubscriber { .. } | Event::NotSynced { .. } => {
            tracing::error!(log, ?event, "the journal is damaged");
        }
        Event::TornTail { .. } | Event::UnfinishedSegment { .. } => {
            tracing::info!(log, ?event, "an unclean end was repaired; nothing that was acknowledged is gone");
        }
        Event::NotRemoved { reason } => tracing::warn!(log, reason, "passed records are not removed"),
    })
}

/// What the thread owns.
struct Thread {
    journal: Arc<Journal>,
    names: Names,
    synced: watch::Sender<u64>,
    text_changes: watch::Receiver<Option<PathPattern>>,
    text: Option<TextCopy>,
    fast: Arc<AtomicBool>,
    counters: Arc<Counters>,
    failed: CancellationToken,
    stop: CancellationToken,
    give_up: CancellationToken,
}

impl Thread {
    fn run(mut self, mut chunks: mpsc::Receiver<Chunk>, runtime: &tokio::runtime::Handle) {
        self.forget_old_sources();
        let mut dirty = false;
        loop {
            let next = runtime.block_on(next(&mut chunks, dirty, &self.stop));
            let Ok(next) = next else {
                dirty = false;
                if !self.sync_written() {
                    break;
                }
                continue;
            };
            let Some(first) = next else { break };
            let mut round = vec![first];
            while round.len() < QUEUE_CHUNKS
                && let Ok(chunk) = chunks.try_recv()
            {
                round.push(chunk);
            }
            let safe = !self.fast.load(Ordering::Relaxed) || round.iter().any(|chunk| chunk.safe);
            if let Err(error) = self.write(&mut round, safe) {
                if self.give_up.is_cancelled() {
                    tracing::warn!(log = self.names.log, "stopped without room for the lines that wait");
                    break;
                }
                let error = cluster::error::Chain(&error);
                tracing::error!(log = self.names.log, %error, "the journal takes no more lines");
                self.failed.cancel();
                break;
            }
            dirty = !safe;
            self.copy(&round);
            self.synced.send_replace(self.journal.synced());
            for chunk in round {
                // Nobody may be waiting any more.
                let _ = chunk.done.send(());
            }
        }
        self.sync_written();
    }

    /// Writes a round, and syncs it if wanted. Waits for room however long that takes.
    fn write(&mut self, round: &mut [Chunk], safe: bool) -> Result<(), JournalError> {
        let mut from = 0;
        loop {
            match self.try_write(round, &mut from, safe) {
                Ok(()) => {
                    self.counters.full.store(false, Ordering::Relaxed);
                    self.counters.blocked.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                // What was written of the round is cut at the next append.
                Err(JournalError::NotSynced { .. }) => from = 0,
                Err(error) if error.is_temporary() => self.wait_for_room(&error),
                Err(error) => return Err(error),
            }
            if self.failed.is_cancelled() || self.give_up.is_cancelled() {
                return Err(JournalError::Closed { path: self.journal.dir().into() });
            }
        }
    }

    fn try_write(&self, round: &mut [Chunk], from: &mut usize, safe: bool) -> Result<(), JournalError> {
        while let Some(chunk) = round.get_mut(*from) {
            self.journal.append_as(&mut chunk.batch, Durability::Fast)?;
            *from += 1;
        }
        if safe { self.journal.sync() } else { Ok(()) }
    }

    fn wait_for_room(&self, error: &JournalError) {
        // A full backlog was waited for in the append already.
        if matches!(error, JournalError::Full { .. }) {
            if !self.counters.full.swap(true, Ordering::Relaxed) {
                tracing::error!(log = self.names.log, %error, "inputs wait until there is room");
            }
            std::thread::sleep(RETRY);
        }
    }

    /// False when the journal can no longer be written.
    fn sync_written(&self) -> bool {
        let result = self.journal.sync();
        self.synced.send_replace(self.journal.synced());
        match result {
            Ok(()) => true,
            // Told as an event; the next append repairs it.
            Err(JournalError::NotSynced { .. }) => true,
            Err(error) => {
                tracing::error!(log = self.names.log, error = %cluster::error::Chain(&error), "not synced");
                self.failed.cancel();
                false
            }
        }
    }

    fn copy(&mut self, round: &[Chunk]) {
        if self.text_changes.has_changed().unwrap_or(false) || self.text.is_none() {
            let pattern = self.text_changes.borrow_and_update().clone();
            self.text = pattern.map(|pattern| TextCopy::new(pattern, self.names.clone()));
        }
        let Some(text) = &mut self.text else { return };
        for chunk in round {
            text.add(chunk.batch.payloads());
        }
        text.flush(now_us());
    }

    /// Clients come and go, each with a note; without this their notes would pile up.
    fn forget_old_sources(&self) {
        let now_s = now_us() / 1_000_000;
        let mut sources: Vec<(u64, Vec<u8>)> = self
            .journal
            .notes()
            .into_iter()
            .map(|(key, value)| (SourceNote::parse(&value).map_or(0, |note| note.seen_s), key))
            .collect();
        sources.sort_unstable();
        let surplus = sources.len().saturating_sub(MAX_SOURCES);
        let old = |seen_s: u64| now_s.saturating_sub(seen_s) > FORGET_AFTER.as_secs();
        let gone = sources.iter().enumerate().filter(|(place, (seen_s, _))| *place < surplus || old(*seen_s));
        let mut keys = gone.map(|(_, (_, key))| key).peekable();
        if keys.peek().is_none() {
            return;
        }
        tracing::debug!(log = self.names.log, "old sources are forgotten");
        // Notes go with records only, and there is none to write now: the next segment is made without them.
        self.journal.forget_notes(keys.map(Vec::as_slice));
    }
}

/// What a note about a source says: how far it was read, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceNote {
    /// A number or an offset.
    pub position: u64,
    /// Seconds since 1970.
    pub seen_s: u64,
}

impl SourceNote {
    /// A position as of now.
    pub fn now(position: u64) -> Self {
        Self { position, seen_s: now_us() / 1_000_000 }
    }

    /// As it is kept: two little-endian numbers, then what the source adds.
    pub fn encode(self, more: &[u8]) -> Vec<u8> {
        let mut out = self.position.to_le_bytes().to_vec();
        out.extend_from_slice(&self.seen_s.to_le_bytes());
        out.extend_from_slice(more);
        out
    }

    /// `None` for what is no note of a source.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(value.get(at..at + 8)?.try_into().ok()?));
        Some(Self { position: number(0)?, seen_s: number(8)? })
    }
}
