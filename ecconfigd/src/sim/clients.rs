//! The load: commits that race each other, reads that must be fresh, and repeats under one key.
//!
//! A request goes to some node and may get no answer. Every commit has a message of its own, by which it is found again.

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster::api::RevisionSpec;
use openraft::{AsyncRuntime as _, ReadPolicy};
use repos::{Content, Oid, RefName, RepoPath, TreeChange};
use tokio::sync::oneshot;

use super::cluster::World;
use super::history::{Ack, interval};
use super::linear;
use super::mutants::{self, Mutant};
use super::node::Node;
use super::rng::Rng;
use super::runtime::{Scheduler, now, sleep_us};
use crate::commit::{CommitRequest, Job, NewRepo, RepoChange};
use crate::core::forward::Write;
use crate::error::Error;
use crate::raft::command::{ChangeSet, IdempotencyKey, NewRevision, Op, Outcome, RefUpdate, RepoUpdate};
use crate::state::{Author, Head, RepoName};

/// How long a client waits for an answer.
pub(super) const PATIENCE_MS: u64 = 700;

pub(super) fn repo(name: &str) -> RepoName {
    name.parse().expect("a good name")
}

pub(super) fn author() -> Author {
    Author { user: "sim".into(), name: "Sim".into(), email: "sim@test".into() }
}

/// What became of a request.
enum Answer {
    Done(BTreeMap<RepoName, (Head, bool)>),
    Refused,
    /// This attempt certainly did nothing.
    NotDone,
    Unknown,
}

/// One client.
pub(super) struct Client {
    pub(super) world: World,
    pub(super) rng: Rng,
    number: u64,
    requests: u64,
}

impl Client {
    pub(super) fn new(world: World, number: u64) -> Client {
        let rng = Rng::new(world.plan.seed).fork(1000 + number);
        Client { world, rng, number, requests: 0 }
    }

    /// Asks until the run ends.
    pub(super) async fn run(mut self) {
        loop {
            let (low, high) = self.world.plan.think_us;
            sleep_us(self.rng.between(low, high)).await;
            if self.world.stopping() {
                return;
            }
            match self.rng.between(0, 9) {
                0..=2 => self.read().await,
                3 if !self.world.plan.objects => self.chain().await,
                3..=5 if self.world.plan.objects => self.push().await,
                _ => self.commit().await,
            }
        }
    }

    /// A message that no other commit has.
    pub(super) fn next_message(&mut self) -> String {
        self.requests += 1;
        format!("c{}-{}", self.number, self.requests)
    }

    pub(super) fn node(&mut self) -> Option<Node> {
        if self.rng.chance(600)
            && let Some(leader) = self.world.leader()
        {
            return Some(leader);
        }
        let running = self.world.running();
        self.rng.pick(&running).cloned()
    }

    /// Runs work on a node; `None` if there is no answer in time.
    pub(super) async fn ask<T: Send + 'static>(
        &mut self,
        node: Node,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        sleep_us(self.world.net().client_delay_us()).await;
        let (answer, answered) = oneshot::channel();
        let (scope, disk) = (node.scope.clone(), node.disk.clone());
        // The handle must not outlive the node.
        drop(node);
        scope.spawn(async move {
            // Who has taken itself out serves nothing.
            if disk.out().is_none() {
                drop(answer.send(work.await));
            }
        });
        let patience = std::time::Duration::from_millis(PATIENCE_MS);
        let answer = Scheduler::timeout(patience, answered).await.ok()?.ok();
        sleep_us(self.world.net().client_delay_us()).await;
        answer
    }

    // ── reads ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    async fn read(&mut self) {
        let Some(node) = self.node() else { return };
        let name = repo("default");
        let invoked = now();
        let (raft, state, of) = (node.raft.clone(), node.state.clone(), name.clone());
        let head = self
            .ask(node, async move {
                if !mutants::is_on(Mutant::StaleRead) {
                    raft.ensure_linearizable(ReadPolicy::ReadIndex).await.ok()?;
                }
                state.view().head(&of)
            })
            .await;
        let Some(head) = head.flatten() else { return };
        let op = linear::Op::read(head.revision, head.commit, interval(invoked, now()));
        self.world.history(|history| {
            history.reads += 1;
            history.heads.push((name, op));
        });
    }

    // ── commits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// One commit, repeated under its key until there is an answer.
    async fn commit(&mut self) {
        let message = self.next_message();
        let key = self.rng.chance(600).then(|| message.clone());
        let tries = if key.is_some() { 4 } else { 1 };
        let (invoked, mut repeats, mut unknown) = (now(), false, false);
        let mut request = None;
        for attempt in 0..tries {
            let Some(node) = self.node() else { break };
            let answer = if self.world.plan.objects {
                // The same request every time, base and all.
                if request.is_none() {
                    request = self.request(&node, &message, key.clone());
                }
                match request.clone() {
                    Some(request) => self.commit_objects(node, request).await,
                    None => Answer::Unknown,
                }
            } else {
                let change = self.change(&node, &message, key.clone(), &mut BTreeMap::new());
                self.propose(node, vec![change]).await.pop().unwrap_or(Answer::Unknown)
            };
            match answer {
                // The answer gets lost, so the client asks again.
                Answer::Done(heads) if key.is_some() && !repeats && self.rng.chance(150) => {
                    self.acknowledged(&message, heads, invoked);
                    sleep_us(self.rng.between(1_000, 30_000)).await;
                    repeats = true;
                }
                Answer::Done(heads) if repeats => return self.must_repeat(&message, &heads),
                Answer::Done(heads) => return self.acknowledged(&message, heads, invoked),
                // An earlier attempt may still be under way.
                Answer::Refused if repeats => {
                    return self.world.fail(format!("{message} was done, and its repeat was refused"));
                }
                Answer::Refused if attempt == 0 => return self.refused(&message),
                Answer::Refused => break,
                answer => {
                    unknown |= matches!(answer, Answer::Unknown);
                    sleep_us(self.rng.between(1_000, 60_000)).await;
                }
            }
        }
        if repeats {
            return;
        }
        if !unknown {
            return self.refused(&message);
        }
        self.world.note(|| format!("{message} unknown"));
        self.world.history(|history| history.unknown.extend([(message, invoked)]));
    }

    /// Several change sets in one entry, each on the one before.
    async fn chain(&mut self) {
        let Some(node) = self.node() else { return };
        let invoked = now();
        let mut heads = BTreeMap::new();
        let mut messages = Vec::new();
        let mut changes = Vec::new();
        for _ in 0..self.rng.between(2, 4) {
            let message = self.next_message();
            let key = self.rng.chance(300).then(|| message.clone());
            changes.push(self.change(&node, &message, key, &mut heads));
            messages.push(message);
        }
        let mut answers = self.propose(node, changes).await.into_iter();
        for message in messages {
            match answers.next().unwrap_or(Answer::Unknown) {
                Answer::Done(heads) => self.acknowledged(&message, heads, invoked),
                Answer::Refused | Answer::NotDone => self.refused(&message),
                Answer::Unknown => self.world.history(|history| history.unknown.extend([(message, invoked)])),
            }
        }
    }

    fn acknowledged(&self, message: &str, heads: BTreeMap<RepoName, (Head, bool)>, invoked: std::time::Duration) {
        let answered = now();
        self.world.note(|| format!("{message} done {heads:?}"));
        self.world.history(|history| {
            history.requests += 1;
            for (repo, (head, moved)) in heads {
                if !moved {
                    continue;
                }
                let op = linear::Op::write(head.revision, head.commit, interval(invoked, answered));
                history.heads.push((repo.clone(), op));
                history.acks.push(Ack { repo, head, message: message.to_owned() });
            }
        });
    }

    /// A repeat is answered as the first time.
    fn must_repeat(&self, message: &str, heads: &BTreeMap<RepoName, (Head, bool)>) {
        let first: Vec<_> = self.world.history(|history| {
            let acks = history.acks.iter().filter(|ack| ack.message == message);
            acks.map(|ack| (ack.repo.clone(), ack.head)).collect()
        });
        let again: Vec<_> =
            heads.iter().filter(|(_, (_, moved))| *moved).map(|(name, (head, _))| (name.clone(), *head)).collect();
        if first != again {
            self.world.fail(format!("{message} was answered {first:?}, and its repeat {again:?}"));
        }
    }

    fn refused(&self, message: &str) {
        self.world.note(|| format!("{message} refused"));
        self.world.history(|history| {
            history.requests += 1;
            history.refused.insert(message.to_owned());
        });
    }

    /// A change set on what this node shows, or on what the chain has come to.
    fn change(
        &mut self,
        node: &Node,
        message: &str,
        key: Option<String>,
        heads: &mut BTreeMap<(RepoName, RefName), Oid>,
    ) -> Op {
        let view = node.state.view();
        let mut names = vec![repo("default")];
        if self.rng.chance(200) {
            names.push(repo("global"));
        }
        let mut updates = Vec::new();
        for name in names {
            let refs = view.repos.get(&name).map(|repo| repo.refs.clone()).unwrap_or_default();
            let mut moves = vec![RefName::main()];
            if self.rng.chance(200) {
                let branch = format!("b{}", self.rng.between(0, 2));
                moves.push(RefName::branch(&branch).expect("a good name"));
            }
            let refs = moves.into_iter().map(|at| {
                let place = (name.clone(), at.clone());
                let old = heads.get(&place).or_else(|| refs.get(&at)).copied().unwrap_or(Oid::NULL);
                let new = self.oid();
                heads.insert(place, new);
                RefUpdate { name: at, old, new }
            });
            let refs = refs.collect();
            let path = if self.rng.chance(500) { "a/x" } else { "b/y" };
            let revision = NewRevision {
                author: "Sim <sim@test>".into(),
                message: message.to_owned(),
                paths: vec![path.to_owned()],
                paths_truncated: false,
            };
            updates.push(RepoUpdate { repo: name, refs, revision: Some(revision) });
        }
        let idempotency = key.map(|key| IdempotencyKey { user: "sim".into(), key, fingerprint: [7; 16] });
        Op::Change(ChangeSet { updates, unchanged: BTreeMap::new(), idempotency })
    }

    /// The name of an object that nobody has; the state does not look.
    fn oid(&mut self) -> Oid {
        let mut bytes = [1; 20];
        bytes[..8].copy_from_slice(&self.rng.next().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.rng.next().to_be_bytes());
        Oid::from_bytes(bytes)
    }

    async fn propose(&mut self, node: Node, ops: Vec<Op>) -> Vec<Answer> {
        let (to, world) = (node.clone(), self.world.clone());
        let count = ops.len();
        let write = Write::Ops { ops, attachments: Vec::new() };
        let outcomes = match self.ask(node, async move { to.deliver(world, write).await?.outcomes() }).await {
            Some(Ok(outcomes)) => outcomes,
            Some(Err(Error::NotDone(_))) => return (0..count).map(|_| Answer::NotDone).collect(),
            _ => return Vec::new(),
        };
        let answer = |outcome| match outcome {
            Outcome::Changed(heads) | Outcome::Replayed(heads) => Answer::Done(heads),
            _ => Answer::Refused,
        };
        outcomes.into_iter().map(answer).collect()
    }

    /// A commit as the API takes it, on what this node shows.
    fn request(&mut self, node: &Node, message: &str, key: Option<String>) -> Option<CommitRequest> {
        let view = node.state.view();
        let mut names = vec![repo("default")];
        if self.rng.chance(200) {
            names.push(repo("global"));
        }
        let mut repos = BTreeMap::new();
        for name in names {
            let head = view.head(&name)?;
            let path = match self.rng.between(0, 3) {
                0 => "a/same".to_owned(),
                n => format!("{}/{message}", if n == 1 { "a" } else { "b" }),
            };
            let content = Content::Bytes(Bytes::from(format!("{message}\n")));
            let path = RepoPath::new(path).expect("a good path");
            let changes = vec![TreeChange::Put { path, mode: None, content }];
            repos.insert(name, RepoChange { base: RevisionSpec::Number(head.revision), changes });
        }
        Some(CommitRequest { author: author(), message: message.to_owned(), idempotency_key: key, repos })
    }

    /// Hands it to the node's Committer.
    async fn commit_objects(&mut self, node: Node, request: CommitRequest) -> Answer {
        let (to, world) = (node.clone(), self.world.clone());
        let write = Write::Commit(Box::new(request));
        let answer = self.ask(node, async move { to.deliver(world, write).await?.committed() }).await;
        match answer {
            Some(Ok(answer)) => {
                let repos = answer.repos.into_iter();
                Answer::Done(repos.map(|(name, done)| (name, (done.head, done.changed))).collect())
            }
            Some(Err(Error::Conflict { .. } | Error::Refused { .. })) => Answer::Refused,
            Some(Err(Error::NotDone(_))) => Answer::NotDone,
            Some(Err(Error::Internal(what))) => {
                self.world.fail(format!("the Committer failed: {what}"));
                Answer::Unknown
            }
            Some(Err(_)) | None => Answer::Unknown,
        }
    }
}

/// Makes the repositories, through whoever leads, until it is done.
pub(super) async fn first_state(world: &World) -> bool {
    let mut client = Client::new(world.clone(), 0);
    for _ in 0..200 {
        if world.failure().is_some() {
            return false;
        }
        sleep_us(20_000).await;
        let Some(node) = world.leader() else { continue };
        if node.state.view().repos.len() == 2 {
            return true;
        }
        if world.plan.objects {
            for name in ["default", "global"] {
                let new = NewRepo { repo: repo(name), author: author(), files: Vec::new(), key: None };
                let queue = node.queue.clone();
                let create = async move {
                    let (answer, answered) = oneshot::channel();
                    drop(queue.put(Job::Create(Box::new(new), answer)));
                    drop(queue);
                    drop(answered.await);
                };
                client.ask(node.clone(), create).await;
            }
        } else {
            let create = |name| Op::CreateRepo { repo: repo(name), head_ref: RefName::main() };
            let found = Op::Found { cluster: "sim".into() };
            client.propose(node, vec![found, create("default"), create("global")]).await;
        }
    }
    world.fail("the first state could not be made".into());
    false
}
