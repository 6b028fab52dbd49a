//! Writes on any node: the leader does them itself, every other node hands them to it.
//!
//! What always holds: who asked travels with the request, judged on the node that was asked; the answer comes when the asked node has applied
//! what the leader did, so whoever wrote reads it there; nothing is sent a second time that may have happened, unless doing it twice is the
//! same as once (an idempotency key). Requests travel as postcard, answers as JSON, both inside the peer protocol's version.

use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use repos::PackLimits;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Core, peers};
use crate::commit::{
    CommitAnswer, CommitRequest, Job, NewRepo, Propose, PushCommand, PushJob, PushOutcome, PushPack, PushRequest,
};
use crate::error::{Error, Result};
use crate::peer::{Method, PeerError, Refusal, RefusalCode, Target};
use crate::raft::command::{Op, Outcome};
use crate::state::{Author, RepoName, State};

/// Larger requests take a connection of their own, so that nothing waits behind them.
const CALL_BYTES: usize = 1 << 20;
/// The largest request: the largest commit with room for its paths.
const MAX_REQUEST_BYTES: usize = 160 << 20;
/// How long a write waits for a leader: longer than an election takes.
const LEADERLESS: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// A write. The order of the variants is part of the protocol.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Write {
    Commit(Box<CommitRequest>),
    Create(Box<NewRepo>),
    Push(Box<ForwardedPush>),
    /// Operations that need no judging.
    Ops {
        ops: Vec<Op>,
        attachments: Vec<Bytes>,
    },
}

/// A push without its quarantine, which stays on the node that received it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ForwardedPush {
    repo: RepoName,
    author: Author,
    commands: Vec<PushCommand>,
    atomic: bool,
    pack: PushPack,
}

/// What became of a write.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Written {
    Committed(CommitAnswer),
    Pushed(PushOutcome),
    Outcomes(Vec<Outcome>),
}

/// The leader's answer.
#[derive(Serialize, Deserialize)]
struct Answer {
    /// What the leader had applied when it answered: the asked node waits until it has, too.
    applied: u64,
    result: Result<Written>,
}

/// How an attempt failed.
enum Failure {
    /// For good: the answer is no.
    No(Error),
    /// Nothing was done.
    NotDone(Error),
    /// It may have happened.
    Unknown(Error),
}

enum Leader {
    Here,
    There(Target),
    Nobody,
}

impl Write {
    /// Whether doing it twice is the same as once.
    fn is_repeatable(&self) -> bool {
        match self {
            Write::Commit(request) => request.idempotency_key.is_some(),
            Write::Create(_) | Write::Push(_) => false,
            Write::Ops { ops, .. } => ops.iter().all(|op| {
                matches!(
                    op,
                    Op::Report(_)
                        | Op::Freeze { .. }
                        | Op::Pin { .. }
                        | Op::SetVoter { .. }
                        | Op::PutNodeToken(_)
                        | Op::Readdress { .. }
                        | Op::DropUpload { .. }
                )
            }),
        }
    }
}

impl ForwardedPush {
    pub(super) fn new(request: PushRequest, pack: PushPack) -> Self {
        let PushRequest { repo, author, commands, atomic, .. } = request;
        Self { repo, author, commands, atomic, pack }
    }

    /// The push as if it had been received here: the pack goes through a quarantine, so that everything is judged again by whoever leads.
    fn unpack(self, state: &State) -> Result<PushJob> {
        let store = match state.view().repos.get(&self.repo) {
            Some(repo) => repo.store.clone(),
            None => return Err(Error::no_repo(&self.repo)),
        };
        let receive = |pack: &mut dyn std::io::Read| -> Result<_> {
            let mut quarantine = store.quarantine().map_err(Error::internal)?;
            quarantine.receive(pack, &PackLimits::default()).map_err(|error| Error::Invalid(error.to_string()))?;
            Ok(quarantine)
        };
        let (quarantine, pack) = match self.pack {
            PushPack::None => (None, PushPack::None),
            PushPack::Inline(bytes) => (Some(receive(&mut bytes.as_ref())?), PushPack::Inline(bytes)),
            PushPack::Upload(id) => {
                let mut file = state.open_upload(id).map_err(Error::internal)?;
                (Some(receive(&mut file)?), PushPack::Upload(id))
            }
        };
        let (repo, author, commands, atomic) = (self.repo, self.author, self.commands, self.atomic);
        Ok(PushJob { request: PushRequest { repo, author, commands, atomic, quarantine }, pack })
    }
}

fn other_answer<T>(written: &Written) -> Result<T> {
    Err(Error::Internal(format!("a write was answered {written:?}")))
}

impl Written {
    pub(super) fn committed(self) -> Result<CommitAnswer> {
        match self {
            Written::Committed(answer) => Ok(answer),
            other => other_answer(&other),
        }
    }

    pub(super) fn pushed(self) -> Result<PushOutcome> {
        match self {
            Written::Pushed(outcome) => Ok(outcome),
            other => other_answer(&other),
        }
    }

    fn outcomes(self) -> Result<Vec<Outcome>> {
        match self {
            Written::Outcomes(outcomes) => Ok(outcomes),
            other => other_answer(&other),
        }
    }
}

impl Propose for Core {
    fn state(&self) -> &State {
        &self.inner.proposer.state
    }

    async fn propose(&self, ops: Vec<Op>, attachments: Vec<Bytes>) -> Result<Vec<Outcome>> {
        self.write(Write::Ops { ops, attachments }).await?.outcomes()
    }
}

impl Core {
    fn leader(&self) -> Leader {
        let metrics = self.inner.proposer.raft.metrics().borrow_watched().clone();
        match metrics.current_leader {
            Some(id) if id == self.inner.raft_id => Leader::Here,
            Some(id) => match metrics.membership_config.membership().get_node(&id) {
                Some(node) => Leader::There(peers::target(id, node)),
                None => Leader::Nobody,
            },
            None => Leader::Nobody,
        }
    }

    /// Has it done by whoever leads. The answer comes after it is applied here.
    pub(super) async fn write(&self, write: Write) -> Result<Written> {
        // What the leader would do with it could not be read here.
        self.refuse_read_only()?;
        let begun = Instant::now();
        let repeatable = write.is_repeatable();
        let mut encoded: Option<Bytes> = None;
        loop {
            let attempt = match self.leader() {
                Leader::Here => self.write_as_leader(&write).await,
                Leader::There(target) => {
                    let body = match &encoded {
                        Some(body) => body.clone(),
                        None => encoded.insert(postcard::to_allocvec(&write).map_err(Error::internal)?.into()).clone(),
                    };
                    self.write_there(&target, body).await
                }
                Leader::Nobody => Err(Failure::NotDone(Error::Unavailable("there is no leader at the moment".into()))),
            };
            let error = match attempt {
                Ok(written) => return Ok(written),
                Err(Failure::NotDone(error)) => error,
                Err(Failure::Unknown(error)) if repeatable => error,
                Err(Failure::No(error) | Failure::Unknown(error)) => return Err(error),
            };
            if begun.elapsed() > LEADERLESS || self.inner.stopping.is_cancelled() {
                return Err(error);
            }
            tracing::debug!(%error, "a write is tried again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Does it here, and refuses only what the cluster would refuse.
    ///
    /// A refusal is judged by what this node has applied, without the log. That may be too old: this node may have led until a moment ago, or
    /// have begun to lead before it has applied what the last leader had acknowledged. So a refusal counts if a majority still follows this
    /// node, and nothing was applied meanwhile that it had not known.
    async fn write_as_leader(&self, write: &Write) -> Result<Written, Failure> {
        let known = self.view().applied_index();
        let refusal = match self.write_here(write.clone()).await {
            Ok(written) => return Ok(written),
            Err(error @ Error::Unavailable(_)) => return Err(Failure::Unknown(error)),
            Err(error) => error,
        };
        let current = self.inner.proposer.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
        current.map_err(|error| Failure::NotDone(Error::Unavailable(error.to_string())))?;
        if self.view().applied_index() == known {
            return Err(Failure::No(refusal));
        }
        // Judged again by something that is as new as the request, whatever is applied from now on.
        self.write_here(write.clone()).await.map_err(|error| match error {
            Error::Unavailable(_) => Failure::Unknown(error),
            error => Failure::No(error),
        })
    }

    /// Does it here; only the leader can.
    async fn write_here(&self, write: Write) -> Result<Written> {
        match write {
            Write::Commit(request) => self.ask(|answer| Job::Commit(request, answer)).await.map(Written::Committed),
            Write::Create(new) => self.ask(|answer| Job::Create(new, answer)).await.map(Written::Committed),
            Write::Push(push) => {
                let state = self.inner.proposer.state.clone();
                let job = tokio::task::spawn_blocking(move || push.unpack(&state));
                let job = job.await.map_err(Error::internal)??;
                self.ask(|answer| Job::Push(Box::new(job), answer)).await.map(Written::Pushed)
            }
            Write::Ops { ops, attachments } => {
                self.inner.proposer.propose(ops, attachments).await.map(Written::Outcomes)
            }
        }
    }

    async fn write_there(&self, leader: &Target, body: Bytes) -> Result<Written, Failure> {
        let within = self.inner.options.limits.commit_timeout;
        let Some(client) = &self.inner.client else {
            return Err(Failure::NotDone(Error::Unavailable(format!("this node does not lead, {} does", leader.node))));
        };
        let answer = if body.len() <= CALL_BYTES {
            client.call(leader, Method::FORWARD, body, within).await
        } else {
            let talk = async {
                let mut stream = client.open(leader, Method::FORWARD_PUSH, Bytes::new()).await?;
                stream.send(body).await?;
                stream.finish().await?;
                let first = stream.next_within(within).await?.unwrap_or_default();
                let rest = stream.collect(MAX_REQUEST_BYTES).await?;
                Ok(if rest.is_empty() { first } else { [first, rest].concat().into() })
            };
            talk.await
        };
        let answer = answer.map_err(|error: PeerError| {
            let words = match error.may_have_happened() {
                true => format!("{error}; it may have happened"),
                false => error.to_string(),
            };
            let unavailable = Error::Unavailable(words);
            if error.may_have_happened() { Failure::Unknown(unavailable) } else { Failure::NotDone(unavailable) }
        })?;
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|error| Failure::Unknown(Error::internal(error)))?;
        let proposer = &self.inner.proposer;
        if let Err(error) = peers::wait_applied(proposer, answer.applied, within).await {
            // It was done; what is missing is only that it can be read here.
            tracing::warn!(
                index = answer.applied,
                "a forwarded write was answered before it was applied here: {error}"
            );
        }
        answer.result.map_err(|error| match error {
            Error::Unavailable(_) => Failure::Unknown(error),
            error => Failure::No(error),
        })
    }

    /// What another node handed over.
    pub(super) async fn forwarded(&self, body: Bytes) -> Result<Bytes, Refusal> {
        if !self.inner.proposer.raft.is_leader() {
            let words = format!("{} does not lead", self.inner.options.node);
            return Err(Refusal::new(RefusalCode::NotNow, words));
        }
        if let Some(why) = self.out() {
            return Err(Refusal::new(RefusalCode::NotNow, why));
        }
        let write: Write = postcard::from_bytes(&body).map_err(Refusal::bad)?;
        drop(body);
        let result = match self.write_as_leader(&write).await {
            Ok(written) => Ok(written),
            Err(Failure::NotDone(error)) => return Err(Refusal::new(RefusalCode::NotNow, error)),
            Err(Failure::No(error) | Failure::Unknown(error)) => Err(error),
        };
        let answer = Answer { applied: self.view().applied_index(), result };
        serde_json::to_vec(&answer).map(Bytes::from).map_err(Refusal::failed)
    }

    /// The same for a request that is too large for a call.
    pub(super) async fn forwarded_in_pieces(&self, stream: &mut crate::peer::Bulk) -> Result<(), Refusal> {
        let body = stream.collect(MAX_REQUEST_BYTES).await.map_err(Refusal::failed)?;
        let answer = self.forwarded(body).await?;
        stream.send(answer).await.map_err(Refusal::failed)?;
        stream.finish().await.map_err(Refusal::failed)
    }
}
