//! Pushes: a pack that a client made, in a quarantine first, then in the entry or ahead of it in chunks.
//!
//! A push moves branches as well as `main`, one or several at once, forward or not. What the log makes of refs is known to the oracle; what
//! clients were told of their pushes is compared with it in `invariants/pushes_as_told.rs`.

use std::time::Duration;

use bytes::Bytes;
use repos::{Content, Draft, NewCommit, Oid, PackLimits, Reader, RefName, RepoPath, Signature, TreeChange};
use tokio::sync::oneshot;

use super::clients::{Client, author, repo};
use super::cluster::World;
use super::history::{Ack, Push, interval};
use super::linear;
use super::node::Node;
use super::runtime::now;
use crate::commit::{ChunkSource, Job, Propose as _, PushCommand, PushJob, PushOutcome, PushPack, PushRequest};
use crate::core::forward::{ForwardedPush, Write};
use crate::error::{Error, Result};
use crate::state::RepoName;

/// What a client made on its machine.
struct Work {
    pack: Option<Bytes>,
    commands: Vec<PushCommand>,
    /// The message of the newest commit, if `main` shall move to it.
    message: Option<String>,
}

/// A pack in pieces that are smaller than those of a real upload, as the packs here are.
struct Pieces {
    pack: Bytes,
    piece_bytes: usize,
}

impl ChunkSource for Pieces {
    async fn chunk(&mut self, offset: u64, bytes: usize) -> Result<Bytes> {
        self.pack.chunk(offset, bytes.min(self.piece_bytes)).await
    }
}

impl Client {
    /// One push to a node, made on what that node shows.
    pub(super) async fn push(&mut self) {
        let Some(node) = self.node().filter(|node| node.disk.out().is_none()) else { return };
        let name = repo("default");
        let label = self.next_message();
        let made = self.make(&node, &name, &label);
        let work = match made {
            Ok(Some(work)) => work,
            Ok(None) => return,
            Err(what) => return self.world.fail(format!("n{} cannot read what it shows: {what}", node.id)),
        };
        let atomic = self.rng.chance(500);
        let piece_bytes = if self.rng.chance(500) { Some(self.rng.between(100, 900) as usize) } else { None };
        let (commands, message, invoked) = (work.commands.clone(), work.message.clone(), now());
        let request = Sent { repo: name.clone(), work, atomic, piece_bytes };
        let (to, world) = (node.clone(), self.world.clone());
        let answer = self.ask(node, request.push(to, world)).await;
        self.pushed(&label, name, commands, message, invoked, answer);
    }

    /// Commits on `main` or a branch, or the end of a branch. `None` if there is nothing to do.
    fn make(&mut self, node: &Node, name: &RepoName, label: &str) -> std::result::Result<Option<Work>, String> {
        let view = node.state.view();
        let Some(shown) = view.repos.get(name) else { return Ok(None) };
        let at = |name: &RefName| shown.refs.get(name).copied().unwrap_or(Oid::NULL);
        let branch = RefName::branch(&format!("b{}", self.rng.between(0, 2))).expect("a good name");
        let (to_main, to_branch) = match self.rng.between(0, 9) {
            0..=4 => (true, false),
            5..=6 => (true, true),
            7..=8 => (false, true),
            _ if at(&branch).is_null() => return Ok(None),
            _ => {
                let gone = PushCommand { name: branch.clone(), old: at(&branch), new: Oid::NULL };
                return Ok(Some(Work { pack: None, commands: vec![gone], message: None }));
            }
        };
        let text = |error: repos::Error| error.to_string();
        let mut draft = Draft::new(&shown.store).map_err(text)?;
        let mut tip = shown.record.head.commit;
        for number in 0..self.rng.between(1, 3) {
            tip = self.commit_on(&mut draft, tip, &format!("{label}.{number}")).map_err(text)?;
        }
        let message = Reader::commit(&draft, tip).map_err(text)?.message;
        let mut commands = Vec::new();
        for (wanted, name) in [(to_main, RefName::main()), (to_branch, branch)] {
            if wanted {
                commands.push(PushCommand { old: at(&name), name, new: tip });
            }
        }
        let pack = draft.pack_of(&[tip]).map_err(text)?.map(Bytes::from);
        Ok(Some(Work { pack, commands, message: to_main.then_some(message) }))
    }

    fn commit_on(&mut self, draft: &mut Draft, parent: Oid, message: &str) -> repos::Result<Oid> {
        let tree = if parent.is_null() { Oid::EMPTY_TREE } else { draft.tree_of(parent)? };
        let path = match self.rng.between(0, 2) {
            0 => "a/pushed".to_owned(),
            1 => "b/pushed".to_owned(),
            _ => format!("a/{message}"),
        };
        // What does not compress, so that packs have some size.
        let noise: String = (0..self.rng.between(1, 20)).map(|_| format!("{:x}", self.rng.next())).collect();
        let content = Content::Bytes(Bytes::from(format!("{message} {noise}\n")));
        let put = TreeChange::Put { path: RepoPath::new(path).expect("a good path"), mode: None, content };
        let tree = draft.apply(tree, &[put]).expect("a file can be put anywhere here");
        let who = Signature { name: "Sim".into(), email: "sim@test".into(), time_s: 5, offset_min: 0 };
        let parents = if parent.is_null() { Vec::new() } else { vec![parent] };
        draft.commit(&NewCommit { tree, parents, author: who.clone(), committer: who, message: message.to_owned() })
    }

    /// Notes what became of a push.
    fn pushed(
        &mut self,
        label: &str,
        repo: RepoName,
        commands: Vec<PushCommand>,
        message: Option<String>,
        invoked: Duration,
        answer: Option<Result<PushOutcome>>,
    ) {
        let outcome = match answer {
            Some(Ok(outcome)) => outcome,
            Some(Err(Error::Internal(what))) => return self.world.fail(format!("a push failed: {what}")),
            Some(Err(_)) | None => {
                self.world.note(|| format!("push {label} unknown"));
                let message = message.unwrap_or_default();
                return self.world.history(|history| history.unknown.extend([(message, invoked)]));
            }
        };
        self.world.note(|| format!("push {label} {:?}", outcome.refs));
        let moved = outcome.head;
        let main_refused = outcome.refs.iter().any(|(name, result)| *name == RefName::main() && result.is_err());
        self.world.history(|history| {
            history.requests += 1;
            if let (Some(head), Some(message)) = (moved, &message) {
                let op = linear::Op::write(head.revision, head.commit, interval(invoked, now()));
                history.heads.push((repo.clone(), op));
                history.acks.push(Ack { repo: repo.clone(), head, message: message.clone() });
            }
            if main_refused {
                history.refused.extend(message);
            }
            history.pushes.push(Push { repo, commands, results: outcome.refs });
        });
    }
}

/// A push under way.
struct Sent {
    repo: RepoName,
    work: Work,
    atomic: bool,
    /// Goes ahead in chunks of this size.
    piece_bytes: Option<usize>,
}

impl Sent {
    /// What the server does with a push, from the quarantine on.
    async fn push(self, node: Node, world: World) -> Result<PushOutcome> {
        let proposer = node.proposer.clone();
        let Sent { repo, work, atomic, piece_bytes } = self;
        let store = proposer.state.view().repos.get(&repo).map(|repo| repo.store.clone());
        let store = store.ok_or_else(|| Error::no_repo(&repo))?;
        let (mut quarantine, mut pack, mut upload) = (None, PushPack::None, None);
        if let Some(bytes) = work.pack {
            let mut received = store.quarantine().map_err(Error::internal)?;
            received.receive(&mut bytes.as_ref(), &PackLimits::default()).map_err(Error::internal)?;
            quarantine = Some(received);
            pack = match piece_bytes {
                None => PushPack::Inline(bytes),
                Some(piece_bytes) => {
                    let id = proposer.upload(Pieces { pack: bytes, piece_bytes }).await?;
                    upload = Some(id);
                    PushPack::Upload(id)
                }
            };
        }
        let request = PushRequest { repo, author: author(), commands: work.commands, atomic, quarantine };
        let leads = proposer.raft.is_leader();
        let result = if leads {
            // Judged over the quarantine that it was received in.
            let (answer, answered) = oneshot::channel();
            let put = node.queue.put(Job::Push(Box::new(PushJob { request, pack }), answer));
            drop(node);
            put?;
            answered.await.map_err(|_| Error::Unavailable("no answer".into()))?
        } else {
            let write = Write::Push(Box::new(ForwardedPush::new(request, pack)));
            node.deliver(world, write).await?.pushed()
        };
        if let Some(id) = upload
            && !result.as_ref().is_ok_and(|outcome| outcome.refs.iter().any(|(_, result)| result.is_ok()))
        {
            proposer.drop_upload(id).await;
        }
        result
    }
}
