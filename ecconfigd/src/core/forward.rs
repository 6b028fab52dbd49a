//! Writes on any node: the leader does them itself, every other node hands them to it.
//!
//! What always holds: who asked travels with the request, judged on the node that was asked; the answer comes when the asked node has applied
//! what the leader did, so whoever wrote reads it there; nothing is sent a second time that may have happened, unless doing it twice is the
//! same as once (an idempotency key). Requests travel as postcard, answers as JSON, both inside the peer protocol's version.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use repos::PackLimits;
use serde::{Deserialize, Serialize};

use super::{Core, peers};
use crate::commit::{
    CommitAnswer, CommitRequest, Job, NewRepo, Propose, PushCommand, PushJob, PushOutcome, PushPack, PushRequest,
};
use crate::error::{Error, Result};
use crate::peer::{Method, PeerError, Refusal, RefusalCode, Target};
use crate::raft::command::{Op, Outcome};
#[cfg(test)]
use crate::sim::mutants::{self, Mutant};
use crate::state::{Author, RepoName, State};

/// Larger requests take a connection of their own, so that nothing waits behind them.
const CALL_BYTES: usize = 1 << 20;
/// What a change or operation weighs beside its content, roughly.
const CHANGE_BYTES: usize = 100;
/// The largest request: the largest commit with room for its paths.
const MAX_REQUEST_BYTES: usize = 160 << 20;
/// How long a write waits for a leader: longer than an election takes.
const LEADERLESS: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// A write. The order of the variants is part of the protocol.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Write {
    Commit(Box<CommitRequest>),
    Create(Box<NewRepo>),
    Push(Box<ForwardedPush>),
    /// Operations that need no judging.
    Ops {
        ops: Vec<Op>,
        attachments: Vec<Bytes>,
    },
    /// A repository that is created once under this key of its author's.
    CreateOnce {
        new: Box<NewRepo>,
        key: String,
    },
}

/// A push without its quarantine, which stays on the node that received it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ForwardedPush {
    repo: RepoName,
    author: Author,
    commands: Vec<PushCommand>,
    atomic: bool,
    pack: PushPack,
}

/// What became of a write.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Written {
    Committed(CommitAnswer),
    Pushed(PushOutcome),
    Outcomes(Vec<Outcome>),
}

/// The leader's answer.
#[derive(Serialize, Deserialize)]
pub(crate) struct Answer {
    /// What the leader had applied when it answered: the asked node waits until it has, too.
    pub(crate) applied: u64,
    pub(crate) result: Result<Written>,
}

/// How an attempt failed.
pub(crate) enum Failure {
    /// For good: the answer is no.
    No(Error),
    /// Nothing was done.
    NotDone(Error),
    /// It may have happened.
    Unknown(Error),
}

pub(crate) enum Leader {
    Here,
    There(Target),
    Nobody,
}

impl Write {
    /// Whether doing it twice is the same as once.
    fn is_repeatable(&self) -> bool {
        #[cfg(test)]
        if mutants::is_on(Mutant::RepeatsAll) {
            return true;
        }
        match self {
            Write::Commit(request) => request.idempotency_key.is_some(),
            Write::CreateOnce { .. } => true,
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

impl Write {
    /// What it weighs, roughly.
    fn weight(&self) -> usize {
        let of_new = |new: &NewRepo| new.files.iter().map(|file| file.content.len() + CHANGE_BYTES).sum::<usize>();
        match self {
            Write::Commit(request) => {
                let changes: usize = request.repos.values().map(|change| change.changes.len()).sum();
                usize::try_from(request.content_bytes()).unwrap_or(usize::MAX).saturating_add(changes * CHANGE_BYTES)
            }
            Write::Create(new) | Write::CreateOnce { new, .. } => of_new(new),
            Write::Push(push) => match &push.pack {
                PushPack::Inline(pack) => pack.len(),
                _ => CHANGE_BYTES,
            },
            Write::Ops { ops, attachments } => {
                attachments.iter().map(Bytes::len).sum::<usize>() + ops.len() * CHANGE_BYTES
            }
        }
    }

    fn encode(&self) -> Result<Bytes> {
        postcard::to_allocvec(self).map(Bytes::from).map_err(Error::internal)
    }

    fn decode(body: &[u8]) -> Result<Write, Refusal> {
        postcard::from_bytes(body).map_err(Refusal::bad)
    }
}

impl ForwardedPush {
    pub(crate) fn new(request: PushRequest, pack: PushPack) -> Self {
        let PushRequest { repo, author, commands, atomic, .. } = request;
        Self { repo, author, commands, atomic, pack }
    }

    /// The push as if it had been received here: the pack goes through a quarantine, so that everything is judged again by whoever leads.
    pub(crate) fn unpack(self, state: &State) -> Result<PushJob> {
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
    /// Whether this was decided by the log, now or the first time, and not by a look at what is there. A push goes by refs that were read from a
    /// majority, and is never judged twice: what it moves is not where it says afterwards.
    fn went_through_the_log(&self) -> bool {
        match self {
            Written::Committed(answer) => answer.replayed || answer.repos.values().any(|committed| committed.changed),
            Written::Pushed(_) | Written::Outcomes(_) => true,
        }
    }

    pub(crate) fn committed(self) -> Result<CommitAnswer> {
        match self {
            Written::Committed(answer) => Ok(answer),
            other => other_answer(&other),
        }
    }

    pub(crate) fn pushed(self) -> Result<PushOutcome> {
        match self {
            Written::Pushed(outcome) => Ok(outcome),
            other => other_answer(&other),
        }
    }

    pub(crate) fn outcomes(self) -> Result<Vec<Outcome>> {
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

    async fn settle(&self) -> Result<()> {
        let begun = tokio::time::Instant::now();
        loop {
            // Whoever leads next has to be found first.
            match self.linearize().await {
                Err(Error::Unavailable(_)) if begun.elapsed() < LEADERLESS && !self.stops() => self.pause(PAUSE).await,
                done => return done,
            }
        }
    }
}

/// What delivering a write needs of the node that was asked.
pub(crate) trait Way: Sync {
    /// Who leads, as far as this node knows.
    fn leader(&self) -> Leader;

    /// Up to where this node has applied the log.
    fn applied_index(&self) -> u64;

    /// Does it here; only the leader can.
    fn here(&self, write: Write) -> impl Future<Output = Result<Written>> + Send;

    /// Whether a majority follows this node, and everything that they had acknowledged is applied here.
    fn confirm(&self) -> impl Future<Output = Result<()>> + Send;

    /// The write as postcard.
    fn encode(&self, write: &Arc<Write>) -> impl Future<Output = Result<Bytes>> + Send {
        std::future::ready(write.encode())
    }

    /// Hands it, as postcard, to whoever leads.
    fn there(&self, leader: &Target, write: Bytes) -> impl Future<Output = Result<Written, Failure>> + Send;

    /// The time since some point.
    fn clock(&self) -> Duration;

    /// Waits before the next attempt.
    fn pause(&self, pause: Duration) -> impl Future<Output = ()> + Send;

    /// Whether nothing is to be tried again, because this node stops.
    fn stops(&self) -> bool;

    /// How long it is tried.
    fn patience(&self) -> Duration {
        LEADERLESS
    }
}

/// Has it done by whoever leads. The answer comes after it is applied here.
pub(crate) async fn deliver(way: &impl Way, write: Write) -> Result<Written> {
    let (begun, write) = (way.clock(), Arc::new(write));
    let repeatable = write.is_repeatable();
    let mut may_have_happened = false;
    let mut encoded: Option<Bytes> = None;
    loop {
        let attempt = match way.leader() {
            Leader::Here => as_leader(way, &write).await,
            Leader::There(target) => {
                let body = match &encoded {
                    Some(body) => body.clone(),
                    None => encoded.insert(way.encode(&write).await?).clone(),
                };
                way.there(&target, body).await
            }
            Leader::Nobody => Err(Failure::NotDone(Error::Unavailable("there is no leader at the moment".into()))),
        };
        let error = match attempt {
            Ok(written) => return Ok(written),
            Err(Failure::NotDone(error)) => error,
            Err(Failure::Unknown(error)) if repeatable => {
                may_have_happened = true;
                error
            }
            #[cfg(test)]
            Err(Failure::Unknown(Error::Unavailable(why))) if mutants::is_on(Mutant::TooSure) => {
                return Err(Error::NotDone(why));
            }
            Err(Failure::No(error) | Failure::Unknown(error)) => return Err(error),
        };
        if way.clock().saturating_sub(begun) > way.patience() || way.stops() {
            return Err(match error {
                Error::Unavailable(why) if !may_have_happened => Error::NotDone(why),
                Error::NotDone(why) if may_have_happened => Error::Unavailable(why),
                error => error,
            });
        }
        tracing::debug!(%error, "a write is tried again");
        way.pause(PAUSE).await;
    }
}

/// Does it here, and refuses only what the cluster would refuse.
///
/// A refusal is judged by what this node has applied, without the log, and so is the answer that there was nothing to do. That may be too old:
/// this node may have led until a moment ago, or for as long as it is cut off, or have begun to lead before it has applied what the last
/// leader had acknowledged. So such an answer counts if a majority still follows this node, and nothing was applied meanwhile that it had not
/// known.
async fn as_leader(way: &impl Way, write: &Write) -> Result<Written, Failure> {
    let known = way.applied_index();
    let judged = match way.here(write.clone()).await {
        Ok(written) if written.went_through_the_log() => return Ok(written),
        Err(error @ Error::Unavailable(_)) => return Err(Failure::Unknown(error)),
        Err(error @ Error::NotDone(_)) => return Err(Failure::NotDone(error)),
        judged => judged,
    };
    way.confirm().await.map_err(Failure::NotDone)?;
    if way.applied_index() == known {
        return judged.map_err(Failure::No);
    }
    // Judged again by something that is as new as the request, whatever is applied from now on.
    way.here(write.clone()).await.map_err(|error| match error {
        Error::Unavailable(_) => Failure::Unknown(error),
        Error::NotDone(_) => Failure::NotDone(error),
        error => Failure::No(error),
    })
}

/// The leader's answer to what another node handed over; an error says that nothing was done.
pub(crate) async fn handed_over(way: &impl Way, write: &Write) -> Result<Answer> {
    let result = match as_leader(way, write).await {
        Ok(written) => Ok(written),
        Err(Failure::NotDone(error)) => return Err(error),
        Err(Failure::No(error) | Failure::Unknown(error)) => Err(error),
    };
    Ok(Answer { applied: way.applied_index(), result })
}

impl Answer {
    /// What the asked node makes of it.
    pub(crate) fn settle(self) -> Result<Written, Failure> {
        self.result.map_err(|error| match error {
            Error::Unavailable(_) => Failure::Unknown(error),
            error => Failure::No(error),
        })
    }
}

impl Way for Core {
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

    fn applied_index(&self) -> u64 {
        self.view().applied_index()
    }

    async fn here(&self, write: Write) -> Result<Written> {
        match write {
            Write::Commit(request) => self.ask(|answer| Job::Commit(request, answer)).await.map(Written::Committed),
            Write::Create(new) => self.ask(|answer| Job::Create(new, answer)).await.map(Written::Committed),
            Write::CreateOnce { mut new, key } => {
                new.key = Some(key);
                self.ask(|answer| Job::Create(new, answer)).await.map(Written::Committed)
            }
            Write::Push(push) => {
                let state = self.inner.proposer.state.clone();
                let job = tokio::task::spawn_blocking(move || push.unpack(&state));
                let job = job.await.map_err(Error::internal)??;
                self.ask(|answer| Job::Push(Box::new(job), answer)).await.map(Written::Pushed)
            }
            Write::Ops { ops, attachments } => {
                // Everything else goes through the Committer, which asks the same.
                self.refuse_read_only()?;
                self.inner.proposer.propose(ops, attachments).await.map(Written::Outcomes)
            }
        }
    }

    async fn confirm(&self) -> Result<()> {
        peers::confirmed(&self.inner.proposer, peers::APPLIED_WITHIN).await
    }

    async fn encode(&self, write: &Arc<Write>) -> Result<Bytes> {
        let (bytes, write) = (write.weight(), write.clone());
        self.inner.proposer.state.outside().work_on(bytes, move || write.encode()).await.map_err(Error::internal)?
    }

    async fn there(&self, leader: &Target, write: Bytes) -> Result<Written, Failure> {
        self.write_there(leader, write).await
    }

    fn clock(&self) -> Duration {
        self.inner.proposer.state.outside().monotonic()
    }

    async fn pause(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
    }

    fn stops(&self) -> bool {
        self.inner.stopping.is_cancelled()
    }
}

impl Core {
    /// Has it done by whoever leads. The answer comes after it is applied here.
    pub(super) async fn write(&self, write: Write) -> Result<Written> {
        // What the leader would do with it could not be read here.
        self.refuse_read_only()?;
        deliver(self, write).await
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
        answer.settle()
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
        let decoded = self.inner.proposer.state.outside().work_on(body.len(), move || Write::decode(&body));
        let write = decoded.await.map_err(Refusal::failed)??;
        let answer = handed_over(self, &write).await.map_err(|error| Refusal::new(RefusalCode::NotNow, error))?;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use cluster::api::RevisionSpec;

    use super::*;
    use crate::commit::RepoChange;

    /// A node that leads, as far as it knows. It finds nothing to do in what it has applied; `majority` says how far that is when it asks the
    /// others, if they answer.
    struct Leads {
        applied: std::sync::atomic::AtomicU64,
        majority: Option<u64>,
    }

    impl Way for Leads {
        fn leader(&self) -> Leader {
            Leader::Here
        }

        fn applied_index(&self) -> u64 {
            self.applied.load(std::sync::atomic::Ordering::Relaxed)
        }

        async fn here(&self, _: Write) -> Result<Written> {
            let head = crate::state::Head { revision: self.applied_index(), commit: repos::Oid::NULL };
            let committed = crate::commit::Committed { head, changed: false };
            let repos = BTreeMap::from([("default".parse().unwrap(), committed)]);
            Ok(Written::Committed(CommitAnswer { repos, replayed: false }))
        }

        async fn confirm(&self) -> Result<()> {
            let index = self.majority.ok_or_else(|| Error::Unavailable("nobody answers".into()))?;
            self.applied.store(index, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        }

        async fn there(&self, _: &Target, _: Bytes) -> Result<Written, Failure> {
            unreachable!("it leads")
        }

        fn clock(&self) -> Duration {
            Duration::ZERO
        }

        async fn pause(&self, _: Duration) {}

        fn stops(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn that_nothing_is_to_be_done_is_said_by_a_majority() {
        let author = Author { user: "u".into(), name: "N".into(), email: "e".into() };
        let request = CommitRequest { author, message: "m".into(), idempotency_key: None, repos: BTreeMap::new() };
        let write = Write::Commit(Box::new(request));
        let deliver = async |majority| {
            let node = Leads { applied: 5.into(), majority };
            deliver(&node, write.clone()).await
        };
        let found = |written: Written| written.committed().unwrap().repos.into_values().next().unwrap().head.revision;
        assert_eq!(found(deliver(Some(5)).await.unwrap()), 5);
        assert_eq!(found(deliver(Some(6)).await.unwrap()), 6, "it had not applied what others were told");
        let alone = deliver(None).await;
        assert!(matches!(alone, Err(Error::NotDone(_))), "{alone:?}");
    }

    /// The protocol is a promise between builds: these bytes are version 1.
    #[test]
    fn version_1_is_these_bytes() {
        let bytes = |write: &Write| hex::encode(postcard::to_allocvec(write).unwrap());
        assert_eq!(
            bytes(&Write::Ops { ops: vec![Op::Tick], attachments: vec![Bytes::from_static(b"a")] }),
            "03010e010161"
        );
        let change = RepoChange { base: RevisionSpec::Number(47), changes: Vec::new() };
        let commit = CommitRequest {
            author: Author { user: "u".into(), name: "N".into(), email: "e".into() },
            message: "m".into(),
            idempotency_key: Some("k".into()),
            repos: BTreeMap::from([("default".parse().unwrap(), change)]),
        };
        let new =
            NewRepo { repo: "east".parse().unwrap(), author: commit.author.clone(), files: Vec::new(), key: None };
        let create = Write::CreateOnce { new: Box::new(new.clone()), key: "k".into() };
        assert_eq!(bytes(&create), "0404656173740175014e016500016b");
        // The key does not travel inside.
        let inside = NewRepo { key: Some("k".into()), ..new.clone() };
        assert_eq!(bytes(&Write::Create(Box::new(inside))), bytes(&Write::Create(Box::new(new))));
        let commit = Write::Commit(Box::new(commit));
        assert_eq!(bytes(&commit), "000175014e0165016d01016b010764656661756c7402343700");
        let answer = Answer { applied: 3, result: Ok(Written::Outcomes(vec![Outcome::Done])) };
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"applied":3,"result":{"Ok":{"Outcomes":["Done"]}}}"#);
    }
}
