//! The Committer's queue and loop.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster::api::RevisionSpec;
use cluster::documents::DocumentKind;
use cluster::gate::GateLimits;
use repos::{Content, Mode, TreeChange};
use tokio::sync::{mpsc, oneshot};

use super::build::{self, Batch, Builder, NewRepo, Verdict};
use super::proposer::{Propose as _, Proposer};
use super::push::{PushPack, refuse_accepted};
use super::types::{CommitAnswer, CommitRequest, PushOutcome, PushRequest, RepoChange};
use super::{INLINE_PACK_BYTES, judge};
use crate::error::{Error, Result};
use crate::raft::command::{Op, Outcome, PackSource};
use crate::raft::{Group, TypeConfig};
use crate::state::{RepoName, View};

/// Requests of one batch: more would make the first wait for the building of the last.
const BATCH_REQUESTS: usize = 256;

/// A batch that is built sooner than this is not worth a change of threads.
const BRIEF: Duration = Duration::from_millis(1);
/// … if it has no more bytes than this.
const BRIEF_BYTES: u64 = 64 << 10;
/// … and no more files.
const BRIEF_FILES: usize = 64;

type Answer<T> = oneshot::Sender<Result<T>>;

/// A push on its way through the Committer. Dropping it removes the quarantine.
pub(crate) struct PushJob {
    pub(crate) request: PushRequest,
    pub(crate) pack: PushPack,
}

/// Work for the Committer.
pub(crate) enum Job {
    Commit(Box<CommitRequest>, Answer<CommitAnswer>),
    Push(Box<PushJob>, Answer<PushOutcome>),
    Create(Box<NewRepo>, Answer<CommitAnswer>),
}

/// Figures of the Committer, for metrics.
#[derive(Debug, Default)]
pub struct CommitterStats {
    /// Requests that were answered.
    pub requests: AtomicU64,
    /// Entries that were proposed for them.
    pub entries: AtomicU64,
    /// Requests that wait.
    pub queued: AtomicU64,
    /// Time spent on judging and building, in nanoseconds.
    pub build_ns: AtomicU64,
    /// Time from proposing an entry until it was applied, in nanoseconds.
    pub propose_ns: AtomicU64,
}

fn add_elapsed(counter: &AtomicU64, since: Instant) {
    counter.fetch_add(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// The way in. The Committer ends when all of these are gone.
#[derive(Clone)]
pub(crate) struct Queue {
    jobs: mpsc::Sender<Job>,
    pub(crate) stats: Arc<CommitterStats>,
}

impl Queue {
    /// Starts the Committer; its task ends when the queue is dropped and drained.
    pub(crate) fn start(proposer: Proposer, limits: GateLimits, length: usize) -> (Queue, tokio::task::JoinHandle<()>) {
        let (queue, committer) = Queue::new(proposer, limits, length);
        (queue, tokio::spawn(committer))
    }

    /// The way in and the Committer, which the caller has to run.
    pub(crate) fn new<C: Group>(
        proposer: Proposer<C>,
        limits: GateLimits,
        length: usize,
    ) -> (Queue, impl Future<Output = ()> + Send + 'static) {
        let (jobs, receiver) = mpsc::channel(length);
        let stats = Arc::new(CommitterStats::default());
        let committer =
            Committer { proposer, limits, stats: stats.clone(), later: VecDeque::new(), last_was_brief: false };
        (Queue { jobs, stats }, committer.run(receiver))
    }

    /// Puts a job in, or says that it is full.
    pub(crate) fn put(&self, job: Job) -> Result<()> {
        self.stats.queued.fetch_add(1, Ordering::Relaxed);
        self.jobs.try_send(job).map_err(|error| {
            self.stats.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => Error::Overloaded { queue: "the Committer's queue".into() },
                mpsc::error::TrySendError::Closed(_) => Error::Unavailable("the server is stopping".into()),
            }
        })
    }
}

pub(super) struct Committer<C: Group = TypeConfig> {
    pub(super) proposer: Proposer<C>,
    pub(super) limits: GateLimits,
    pub(super) stats: Arc<CommitterStats>,
    /// Jobs that could not share a batch with others; they go first in the next. Never more than a batch.
    pub(super) later: VecDeque<Job>,
    /// Whether the last batch was built in less than [`BRIEF`].
    pub(super) last_was_brief: bool,
}

/// A job whose answer waits for the log.
enum Waiting {
    Commit(Answer<CommitAnswer>, usize),
    Push(Box<PushJob>, Answer<PushOutcome>, PushOutcome, usize),
}

/// What building a batch leaves.
struct Built {
    batch: Result<Batch>,
    waiting: Vec<Waiting>,
    later: VecDeque<Job>,
}

impl<C: Group> Committer<C> {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        loop {
            let mut batch: VecDeque<Job> = std::mem::take(&mut self.later);
            if batch.is_empty() {
                match jobs.recv().await {
                    Some(job) => batch.push_back(job),
                    None => return,
                }
            }
            let mut bytes: u64 = batch.iter().map(weight).sum();
            while batch.len() < BATCH_REQUESTS && bytes < INLINE_PACK_BYTES {
                let Ok(job) = jobs.try_recv() else { break };
                bytes += weight(&job);
                batch.push_back(job);
            }
            self.serve(batch).await;
        }
    }

    /// Builds, proposes and answers one batch.
    pub(super) async fn serve(&mut self, jobs: VecDeque<Job>) {
        let taken = jobs.len();
        let begin = Instant::now();
        let (state, limits, time_ms) = (self.proposer.state.clone(), self.limits, self.proposer.wall_ms());
        let outside = self.proposer.state.outside();
        // One like the last one, which took next to no time.
        let brief = self.last_was_brief && is_brief(&state.view(), &jobs);
        let since = outside.monotonic();
        let work = move || build(Builder::new(state, limits, time_ms), jobs);
        let built = if brief { outside.here(work).await } else { outside.blocking(work).await };
        self.last_was_brief = outside.monotonic().saturating_sub(since) < BRIEF;
        let Ok(Built { batch, waiting, later }) = built else {
            // The answers were dropped with the panic; whoever waits is told that by the channel.
            tracing::error!("building a batch of commits panicked");
            return;
        };
        add_elapsed(&self.stats.build_ns, begin);
        let served = (taken - later.len()) as u64;
        self.stats.queued.fetch_sub(served, Ordering::Relaxed);
        self.stats.requests.fetch_add(served, Ordering::Relaxed);
        self.later = later;
        match batch {
            Ok(batch) if batch.is_empty() => {}
            Ok(batch) => {
                self.stats.entries.fetch_add(1, Ordering::Relaxed);
                let first_change = batch.first_change;
                let begin = Instant::now();
                let outcomes = self.propose(batch).await;
                add_elapsed(&self.stats.propose_ns, begin);
                for one in waiting {
                    one.answer(first_change, &outcomes);
                }
            }
            Err(error) => {
                let failed = Err(error);
                waiting.into_iter().for_each(|one| one.answer(0, &failed));
            }
        }
    }

    /// Proposes the batch; packs that are too large for an entry go ahead.
    async fn propose(&self, mut batch: Batch) -> Result<Vec<Outcome>> {
        for (repo, pack) in std::mem::take(&mut batch.large) {
            let upload = self.proposer.upload(pack).await?;
            batch.insert_pack(Op::Pack { repo, source: PackSource::Upload(upload) });
        }
        self.proposer.propose_at(batch.time_ms, batch.ops, batch.attachments).await
    }
}

/// A single commit of usual size: a few files on top of what is there now. What was made of an older revision has to be merged, and its place in
/// history looked for; documents are judged for all nodes that read them.
pub(super) fn is_brief(view: &View, jobs: &VecDeque<Job>) -> bool {
    let Some(Job::Commit(request, _)) = jobs.front().filter(|_| jobs.len() == 1) else { return false };
    let on_head = |(name, change): (&RepoName, &RepoChange)| {
        view.head(name).is_some_and(|head| match &change.base {
            RevisionSpec::Number(number) => *number == head.revision,
            RevisionSpec::Commit(hex) => hex.parse() == Ok(head.commit),
        })
    };
    let mut changes = request.repos.values().flat_map(|change| &change.changes);
    request.content_bytes() <= BRIEF_BYTES
        && request.repos.values().map(|change| change.changes.len()).sum::<usize>() <= BRIEF_FILES
        && request.repos.iter().all(on_head)
        && changes.all(is_plain_file)
}

/// Whether a change is of one file, of which only its content is judged.
fn is_plain_file(change: &TreeChange) -> bool {
    match change {
        TreeChange::Put { path, mode, content: Content::Bytes(_) } => {
            let document =
                std::str::from_utf8(path.name()).is_ok_and(|name| DocumentKind::of_file_name(name).is_some());
            !document && *mode != Some(Mode::Symlink)
        }
        _ => false,
    }
}

/// What a job adds to the entry, roughly.
fn weight(job: &Job) -> u64 {
    match job {
        Job::Commit(request, _) => request.content_bytes(),
        Job::Push(push, _) => match &push.pack {
            PushPack::Inline(bytes) => bytes.len() as u64,
            _ => 0,
        },
        Job::Create(new, _) => new.files.iter().map(|file| file.content.len() as u64).sum(),
    }
}

/// Judges and builds all jobs, on a blocking thread.
fn build(mut builder: Builder, jobs: VecDeque<Job>) -> Built {
    let mut waiting = Vec::new();
    let mut later = VecDeque::new();
    for job in jobs {
        match job {
            Job::Commit(request, answer) => match builder.commit(&request) {
                Verdict::Later => later.push_back(Job::Commit(request, answer)),
                Verdict::Op(op) => waiting.push(Waiting::Commit(answer, op)),
                Verdict::Answered(result) => drop(answer.send(result)),
            },
            Job::Create(new, answer) => match builder.create(&new, true) {
                Verdict::Later => later.push_back(Job::Create(new, answer)),
                Verdict::Op(op) => waiting.push(Waiting::Commit(answer, op)),
                Verdict::Answered(result) => drop(answer.send(result)),
            },
            Job::Push(push, answer) => match builder.push(&push.request, &push.pack) {
                (Verdict::Later, _) => later.push_back(Job::Push(push, answer)),
                (Verdict::Op(op), Some(outcome)) => waiting.push(Waiting::Push(push, answer, outcome, op)),
                (Verdict::Op(_), None) => unreachable!("an accepted push has an outcome"),
                (Verdict::Answered(result), _) => drop(answer.send(result)),
            },
        }
    }
    Built { batch: builder.finish(), waiting, later }
}

impl Waiting {
    fn answer(self, first_change: usize, outcomes: &Result<Vec<Outcome>>) {
        let outcome = |op: usize| match outcomes {
            Ok(outcomes) => outcomes.get(first_change + op).ok_or_else(|| Error::Internal("no outcome".into())),
            Err(error) => Err(error.clone()),
        };
        // Whoever asked may have gone; the commit stays.
        match self {
            Waiting::Commit(answer, op) => drop(answer.send(outcome(op).and_then(commit_answer))),
            Waiting::Push(push, answer, planned, op) => {
                let result = outcome(op).and_then(|outcome| push_answer(&push.request.repo, planned, outcome));
                drop(answer.send(result));
            }
        }
    }
}

fn commit_answer(outcome: &Outcome) -> Result<CommitAnswer> {
    match outcome {
        Outcome::Changed(heads) => Ok(build::answer(heads.clone(), false)),
        Outcome::Replayed(heads) => Ok(build::answer(heads.clone(), true)),
        other => Err(not_done(other)),
    }
}

fn not_done(outcome: &Outcome) -> Error {
    match outcome {
        // Only possible when the leadership moved between judging and applying.
        Outcome::Stale { repo, name } => Error::Unavailable(format!("{name} of {repo} moved meanwhile; try again")),
        Outcome::Refused(why) => {
            let finding = cluster::api::Finding { message: why.clone(), ..empty_finding() };
            Error::Refused { findings: vec![finding] }
        }
        other => Error::Internal(format!("a change was answered {other:?}")),
    }
}

fn empty_finding() -> cluster::api::Finding {
    judge::path_finding(&RepoName::global(), String::new(), String::new())
}

fn push_answer(repo: &RepoName, mut outcome: PushOutcome, done: &Outcome) -> Result<PushOutcome> {
    match done {
        Outcome::Changed(heads) => {
            let heads: &BTreeMap<_, _> = heads;
            if let Some((head, true)) = heads.get(repo) {
                outcome.head = Some(*head);
                outcome.lines.push(format!("{repo} is at r{} now", head.revision));
            }
        }
        Outcome::Stale { .. } => refuse_accepted(&mut outcome, "fetch first: it moved meanwhile"),
        Outcome::Refused(why) => refuse_accepted(&mut outcome, why),
        other => return Err(not_done(other)),
    }
    Ok(outcome)
}
