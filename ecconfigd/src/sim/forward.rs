//! Writes through a node that does not lead: the product's rules for handing them over, on a network that loses requests and answers.

use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{AsyncRuntime as _, ReadPolicy};
use tokio::sync::oneshot;

use super::clients::PATIENCE_MS;
use super::cluster::World;
use super::net::{Lost, Net, Peer};
use super::node::Node;
use super::runtime::{Scheduler, now, sleep_us};
use crate::commit::{Job, Propose as _};
use crate::core::forward::{Answer, Failure, Leader, Way, Write, Written, deliver, handed_over};
use crate::error::{Error, Result};
use crate::peer::Target;

/// How long a request that was handed over may take.
const WITHIN: Duration = Duration::from_millis(300);

/// A node that was asked.
pub(super) struct Asked {
    id: u64,
    peer: Peer,
    queue: crate::commit::Queue,
    world: World,
}

impl Node {
    /// Has a write done, through whoever leads.
    pub(super) async fn deliver(self, world: World, write: Write) -> Result<Written> {
        let asked = Asked { id: self.id, peer: self.peer(), queue: self.queue.clone(), world };
        // The handle must not outlive the node.
        drop(self);
        deliver(&asked, write).await
    }
}

impl Asked {
    fn net(&self) -> Net {
        self.world.net()
    }

    async fn job<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        if self.peer.disk.out().is_some() {
            return Err(Error::Unavailable("it has taken itself out".into()));
        }
        let (answer, answered) = oneshot::channel();
        self.queue.put(job(answer))?;
        answered.await.map_err(|_| Error::Unavailable("no answer".into()))?
    }
}

/// What the leader does with what was handed over; nothing if it does not lead.
async fn take(peer: Peer, world: World, write: Bytes) -> Option<std::result::Result<Answer, Error>> {
    let metrics = peer.raft.metrics().borrow_watched().clone();
    if metrics.current_leader != Some(metrics.id) || peer.disk.out().is_some() {
        return Some(Err(Error::Unavailable("it does not lead".into())));
    }
    let queue = peer.queue.clone();
    let asked = Asked { id: metrics.id, peer, queue, world };
    let write: Write = postcard::from_bytes(&write).expect("what a node sends can be read");
    Some(handed_over(&asked, &write).await)
}

impl Way for Asked {
    fn leader(&self) -> Leader {
        match self.peer.raft.metrics().borrow_watched().current_leader {
            Some(id) if id == self.id => Leader::Here,
            Some(id) => Leader::There(Target { raft_id: id, node: format!("n{id}"), address: String::new() }),
            None => Leader::Nobody,
        }
    }

    fn applied_index(&self) -> u64 {
        self.peer.state.view().applied_index()
    }

    async fn here(&self, write: Write) -> Result<Written> {
        match write {
            Write::Commit(request) => self.job(|answer| Job::Commit(request, answer)).await.map(Written::Committed),
            Write::Create(new) => self.job(|answer| Job::Create(new, answer)).await.map(Written::Committed),
            Write::CreateOnce { mut new, key } => {
                new.key = Some(key);
                self.job(|answer| Job::Create(new, answer)).await.map(Written::Committed)
            }
            Write::Push(push) => {
                let job = push.unpack(&self.peer.state)?;
                self.job(|answer| Job::Push(Box::new(job), answer)).await.map(Written::Pushed)
            }
            Write::Ops { ops, attachments } => {
                self.peer.proposer.propose(ops, attachments).await.map(Written::Outcomes)
            }
        }
    }

    async fn confirm(&self) -> Result<()> {
        let current = self.peer.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
        current.map(drop).map_err(|error| Error::Unavailable(error.to_string()))
    }

    async fn there(&self, leader: &Target, write: Bytes) -> std::result::Result<Written, Failure> {
        let world = self.world.clone();
        let work = move |peer: Peer| -> futures::future::BoxFuture<'static, _> { Box::pin(take(peer, world, write)) };
        let told = self.net().call_once((self.id, leader.raft_id), WITHIN, work).await;
        let lost = |words: &str| Error::Unavailable(words.into());
        let answer = match told {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Failure::NotDone(error)),
            Err(Lost::Refused) => return Err(Failure::NotDone(lost("nobody listens"))),
            Err(Lost::Timeout(_)) => return Err(Failure::Unknown(lost("no answer; it may have happened"))),
        };
        let deadline = now() + WITHIN;
        while self.applied_index() < answer.applied && now() < deadline {
            sleep_us(1_000).await;
        }
        answer.settle()
    }

    fn clock(&self) -> Duration {
        now()
    }

    async fn pause(&self, pause: Duration) {
        Scheduler::sleep(pause).await;
    }

    fn stops(&self) -> bool {
        self.world.stopping()
    }

    /// Shorter than its clients' patience, so that they hear that nothing was done.
    fn patience(&self) -> Duration {
        Duration::from_millis(PATIENCE_MS / 2)
    }
}
