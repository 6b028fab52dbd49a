//! The thread that writes aggregated files, each line exactly once.
//!
//! Streams hand in [`Work`]: a block of records, with where it begins and where the source goes on. The thread takes all that waits and makes a round
//! of it: files that are new are noted, lines are written, files are synced, then one commit notes every file's length together with every
//! source's place. Only then are the streams answered and nodes told to forget. A block that does not begin where its source stands was read by
//! a stream that did not know what another had handed in; it is not written, and the stream begins again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::documents::schema::logd::PathPattern;
use logd_journal::JournalError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::files::{Claims, FileFailure, Files, Fresh, Modes, cut_uncommitted};
use super::state::{Changes, SourceKey, State};
use crate::path::{Names, render};
use crate::wire::protocol::{Place, records};

/// Blocks that wait for the next round. What they hold is bounded by the streams' permits, not here.
const QUEUE_BLOCKS: usize = 1024;
/// What a round takes together: enough for its syncs to be a small part.
const ROUND_BYTES: usize = 32 << 20;
/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How often idle files are looked for when nothing comes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a file that was closed is still remembered.
const FINISHED_AFTER: Duration = Duration::from_secs(60);

/// A block of records to write.
#[derive(Debug)]
pub struct Work {
    /// Whose.
    pub source: SourceKey,
    /// The subcluster of its node.
    pub subcluster: String,
    /// Where the block begins.
    pub from: Place,
    /// Where the source goes on.
    pub to: Place,
    /// It may begin elsewhere than where the source stood, because the journal is another one.
    pub jump: bool,
    /// Its records, unpacked.
    pub raw: Bytes,
    /// For the memory that it takes.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Told when everything is on disk; dropped when the block was not written.
    pub done: oneshot::Sender<()>,
}

/// How files are written; may change between rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Their names.
    pub pattern: PathPattern,
    /// Their modes and numbers.
    pub modes: Modes,
}

/// Figures of a manager since the daemon started.
#[derive(Debug, Default)]
pub struct Figures {
    /// Lines written.
    pub lines: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Commits.
    pub rounds: AtomicU64,
    /// Lines that came after their file was compressed.
    pub late_lines: AtomicU64,
    /// Records that are missing, as nodes told.
    pub missing_records: AtomicU64,
    /// Bytes that a start cut because they were not committed.
    pub cut_bytes: AtomicU64,
    /// Files open now.
    pub open_files: AtomicU64,
    /// The disk is full.
    pub full: AtomicBool,
}

/// What streams and the janitor know of the writer.
#[derive(Debug, Clone)]
pub struct WriterHandle {
    /// For blocks.
    pub work: mpsc::Sender<Work>,
    /// Every source's place as of the last commit.
    pub places: watch::Receiver<Arc<HashMap<SourceKey, Place>>>,
    /// Figures.
    pub figures: Arc<Figures>,
}

/// A writer could not go on.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The state.
    #[error("the manager's state")]
    State(#[from] JournalError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileFailure),
}

/// The thread.
#[derive(Debug)]
pub struct Writer {
    state: State,
    files: Files,
    target: watch::Receiver<Target>,
    /// In memory: also what is in the round that is being written.
    places: HashMap<SourceKey, Place>,
    paths: HashMap<SourceKey, (u64, PathBuf)>,
    published: watch::Sender<Arc<HashMap<SourceKey, Place>>>,
    figures: Arc<Figures>,
    stop: CancellationToken,
    quiet_since: HashMap<PathBuf, Instant>,
}

impl Writer {
    /// Opens the state, cuts what was not committed, and starts the thread. `failed` is cancelled when it cannot go on.
    pub fn start(
        dir: &Path,
        node: &str,
        target: watch::Receiver<Target>,
        claims: Claims,
        stop: CancellationToken,
        failed: CancellationToken,
    ) -> Result<(WriterHandle, std::thread::JoinHandle<()>), WriterError> {
        let state = State::open(dir, node)?;
        let figures = Arc::new(Figures::default());
        let cut = cut_uncommitted(&state)?;
        if cut > 0 {
            tracing::info!(bytes = cut, "what was written and not committed is cut; it comes again");
            figures.cut_bytes.store(cut, Ordering::Relaxed);
        }
        let places: HashMap<_, _> = state.sources().iter().map(|(source, place)| (source.clone(), *place)).collect();
        let (published, places_seen) = watch::channel(Arc::new(places.clone()));
        for path in state.files().keys() {
            claims.take_to_write(path);
        }
        let (work, queue) = mpsc::channel(QUEUE_BLOCKS);
        let writer = Self {
            state,
            files: Files::new(claims),
            target,
            places,
            paths: HashMap::new(),
            published,
            figures: figures.clone(),
            stop,
            quiet_since: HashMap::new(),
        };
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name("log-manager".into()).spawn(move || {
            if let Err(error) = writer.run(queue, &runtime) {
                tracing::error!(error = %cluster::error::Chain(&error), "aggregated files cannot be written");
                failed.cancel();
            }
        });
        let thread =
            thread.map_err(|source| FileFailure { action: "start the writer of", path: dir.into(), source })?;
        Ok((WriterHandle { work, places: places_seen, figures }, thread))
    }

    fn run(mut self, mut queue: mpsc::Receiver<Work>, runtime: &tokio::runtime::Handle) -> Result<(), WriterError> {
        let mut looked = Instant::now();
        loop {
            let next = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => None,
                    work = tokio::time::timeout(LOOK_EVERY, queue.recv()) => Some(work),
                }
            });
            match next {
                None | Some(Ok(None)) => return Ok(()),
                Some(Err(_)) => {}
                Some(Ok(Some(first))) => {
                    let max_open = self.target.borrow().modes.max_open;
                    let mut bytes = first.raw.len();
                    let mut round = vec![first];
                    // A block is of one source, so it rarely needs more than one file.
                    while bytes < ROUND_BYTES
                        && round.len() < max_open
                        && let Ok(work) = queue.try_recv()
                    {
                        bytes += work.raw.len();
                        round.push(work);
                    }
                    if !self.round(round)? {
                        return Ok(());
                    }
                    self.files.close_surplus(max_open);
                }
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                let modes = self.target.borrow().modes;
                self.files.close_idle(modes);
                self.finish()?;
                self.figures.open_files.store(self.files.count() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Writes a round. False when the daemon stops while the disk is full.
    fn round(&mut self, round: Vec<Work>) -> Result<bool, WriterError> {
        let target = self.target.borrow_and_update().clone();
        let mut fresh = Fresh::default();
        let mut sources = Vec::new();
        let mut answers = Vec::new();
        let (mut lines, mut bytes) = (0, 0);
        for work in round {
            let stands = self.places.get(&work.source).copied();
            if stands.is_some_and(|stands| stands != work.from) && !work.jump {
                tracing::debug!(source = ?work.source, "a block that does not fit is not written");
                continue;
            }
            let mut path = (u64::MAX, PathBuf::new());
            for (time_us, line) in records(&work.raw) {
                let second = time_us / 1_000_000;
                if path.0 != second {
                    path = (second, self.path_of(&work, &target.pattern, time_us));
                }
                self.files.add(&path.1, time_us, line, &mut fresh);
                lines += 1;
                bytes += line.len() as u64 + 1;
            }
            self.places.insert(work.source.clone(), work.to);
            sources.push((work.source, work.to));
            answers.push(work.done);
        }
        if !self.open_fresh(fresh, &target)? {
            return Ok(false);
        }
        let Some(files) = self.until_room(|writer| writer.files.write())? else { return Ok(false) };
        let changes = Changes { sources, files };
        let committed = self.until_room(|writer| writer.state.commit(changes.clone()))?;
        if committed.is_none() {
            return Ok(false);
        }
        self.files.committed();
        self.figures.lines.fetch_add(lines, Ordering::Relaxed);
        self.figures.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.figures.rounds.fetch_add(1, Ordering::Relaxed);
        self.publish();
        for done in answers {
            // A stream may have ended meanwhile.
            let _ = done.send(());
        }
        Ok(true)
    }

    /// The path for a record, remembered for its second.
    fn path_of(&mut self, work: &Work, pattern: &PathPattern, time_us: u64) -> PathBuf {
        let second = time_us / 1_000_000;
        if let Some((of_second, path)) = self.paths.get(&work.source)
            && *of_second == second
        {
            return path.clone();
        }
        let SourceKey { node, log } = work.source.clone();
        let names = Names { log, node, subcluster: work.subcluster.clone() };
        let path = render(pattern, &names, time_us);
        self.paths.insert(work.source.clone(), (second, path.clone()));
        path
    }

    fn open_fresh(&mut self, fresh: Fresh, target: &Target) -> Result<bool, WriterError> {
        if fresh.is_empty() {
            return Ok(true);
        }
        let opened = self.until_room(|writer| {
            let unknown = writer.files.open_fresh(&fresh, &writer.state, target.modes)?;
            let changes = Changes { sources: Vec::new(), files: unknown };
            writer.state.commit(changes).map_err(WriterError::from)
        })?;
        if opened.is_none() {
            return Ok(false);
        }
        let late = self.files.take_fresh(fresh);
        if late > 0 {
            self.figures.late_lines.fetch_add(late, Ordering::Relaxed);
            tracing::warn!(
                lines = late,
                "lines came after their file was compressed; they are in a .late file beside it"
            );
        }
        Ok(true)
    }

    /// Tries until there is room on the disk; `None` when the daemon stops first.
    fn until_room<T, E: Into<WriterError>>(
        &mut self,
        mut step: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<Option<T>, WriterError> {
        loop {
            let error = match step(self) {
                Ok(value) => {
                    self.figures.full.store(false, Ordering::Relaxed);
                    return Ok(Some(value));
                }
                Err(error) => error.into(),
            };
            let full = match &error {
                WriterError::File(failure) => failure.is_full(),
                WriterError::State(error) => error.is_temporary() || matches!(error, JournalError::NotSynced { .. }),
            };
            if !full {
                return Err(error);
            }
            if !self.figures.full.swap(true, Ordering::Relaxed) {
                tracing::error!(error = %cluster::error::Chain(&error), "the disk is full: nodes keep their lines until there is room");
            }
            if self.stop.is_cancelled() {
                return Ok(None);
            }
            std::thread::sleep(RETRY);
        }
    }

    fn publish(&self) {
        self.published.send_replace(Arc::new(self.places.clone()));
    }

    /// Forgets files that were not written for a while: nothing of them is uncommitted, and the janitor may have them.
    fn finish(&mut self) -> Result<(), WriterError> {
        let files = &self.files;
        let closed: Vec<PathBuf> = self.state.files().keys().filter(|path| !files.is_open(path)).cloned().collect();
        let now = Instant::now();
        self.quiet_since.retain(|path, _| closed.contains(path));
        for path in closed {
            self.quiet_since.entry(path).or_insert(now);
        }
        let quiet = self.quiet_since.iter().filter(|(_, since)| since.elapsed() >= FINISHED_AFTER);
        let over: Vec<PathBuf> = quiet.map(|(path, _)| path.clone()).collect();
        let files = over.iter().map(|path| (path.clone(), None)).collect();
        let changes = Changes { sources: Vec::new(), files };
        if self.until_room(|writer| writer.state.commit(changes.clone()))?.is_some() {
            for path in over {
                self.quiet_since.remove(&path);
                self.files.claims().written(&path);
            }
        }
        Ok(())
    }
}
