//! What `eccfg doctor` asks of every node: how it is, and on request everything that it holds, read and compared.
//!
//! The node that is asked by a client asks all members at once; each examines itself and tells what it finds while it does. Reading is held to
//! the rate of the usual scrubbing, one such examination runs on a node at a time, and it ends with the connection of whoever asked.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cluster::api::{Checkup, CheckupEvent};
use tokio::sync::{SemaphorePermit, mpsc};

use super::{Ask, Core};
use crate::commit::Propose as _;
use crate::core::disk;
use crate::error::{Error, Result};
use crate::peer::{Bulk, Method, Refusal, RefusalCode};
use crate::raft::command::Op;

/// Events that wait for whoever asked; then reading waits.
const QUEUE: usize = 16;
/// Objects between two words about how far it is.
const TELL_EVERY: u64 = 500;
/// How long the members may take to hash their tables.
const DIGESTS_WITHIN: Duration = Duration::from_secs(10);
const DIGESTS_LOOK: Duration = Duration::from_millis(300);
/// How long a member that examines itself may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// The question of [`Method::EXAMINE`].
#[derive(serde::Serialize, serde::Deserialize)]
struct Question {
    deep: bool,
}

impl Core {
    /// Examines every member, this one too, and tells what is found, by node. Ends when nobody listens any more.
    pub async fn examine_all(&self, deep: bool, tell: mpsc::Sender<(String, CheckupEvent)>) {
        let own = self.inner.options.node.to_string();
        let mut tasks = tokio::task::JoinSet::new();
        let (core, to) = (self.clone(), tell.clone());
        tasks.spawn(async move {
            let _alone = match core.reads_everything_alone(deep) {
                Ok(alone) => alone,
                Err(why) => return drop(to.send((own, CheckupEvent::Failed { why: why.into() })).await),
            };
            let (events, mut found) = mpsc::channel(QUEUE);
            let pass = async {
                while let Some(event) = found.recv().await {
                    if to.send((own.clone(), event)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                () = async { tokio::join!(core.examine(deep, events), pass); } => {}
                () = to.closed() => {}
            }
        });
        for target in self.other_members() {
            let (core, to) = (self.clone(), tell.clone());
            tasks.spawn(async move {
                let node = target.node.clone();
                let asked = core.examine_there(&target, deep, &to);
                tokio::select! {
                    done = asked => if let Err(why) = done {
                        drop(to.send((node, CheckupEvent::Failed { why })).await);
                    },
                    () = to.closed() => {}
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// One examination that reads everything at a time; how a node is it says at any time.
    fn reads_everything_alone(&self, deep: bool) -> std::result::Result<Option<SemaphorePermit<'_>>, &'static str> {
        if !deep {
            return Ok(None);
        }
        self.health().examining.try_acquire().map(Some).map_err(|_| "another examination is running on it")
    }

    async fn examine_there(
        &self,
        target: &crate::peer::Target,
        deep: bool,
        tell: &mpsc::Sender<(String, CheckupEvent)>,
    ) -> std::result::Result<(), String> {
        let client = self.inner.client.as_ref().ok_or("this node has no identity")?;
        let head = serde_json::to_vec(&Question { deep }).map_err(|error| error.to_string())?;
        let mut stream = client.open(target, Method::EXAMINE, head.into()).await.map_err(|error| error.to_string())?;
        while let Some(piece) = stream.next_within(SILENCE).await.map_err(|error| error.to_string())? {
            let event = serde_json::from_slice(&piece).map_err(|error| error.to_string())?;
            if tell.send((target.node.clone(), event)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Answers [`Method::EXAMINE`].
    pub(in crate::core) async fn serve_examination(
        &self,
        head: Bytes,
        stream: &mut Bulk,
    ) -> std::result::Result<(), Refusal> {
        let question: Question = serde_json::from_slice(&head).map_err(Refusal::bad)?;
        let alone = self.reads_everything_alone(question.deep);
        let _alone = alone.map_err(|why| Refusal::new(RefusalCode::NotNow, why))?;
        let (tell, mut found) = mpsc::channel(QUEUE);
        let send = async {
            // Whoever asked has gone when sending fails; dropping `found` ends the reading.
            while let Some(event) = found.recv().await {
                let json = serde_json::to_vec(&event).map_err(Refusal::failed)?;
                stream.send(json.into()).await.map_err(Refusal::failed)?;
                stream.flush().await.map_err(Refusal::failed)?;
            }
            drop(found);
            stream.finish().await.map_err(Refusal::failed)
        };
        let (_, sent) = tokio::join!(self.examine(question.deep, tell), send);
        sent
    }

    /// Examines this node.
    async fn examine(&self, deep: bool, tell: mpsc::Sender<CheckupEvent>) {
        if tell.send(CheckupEvent::Checkup(self.checkup().await)).await.is_err() || !deep {
            return;
        }
        let (progress, mut told) = (tell.clone(), 0);
        let scrubbed = self.scrub(move |repo, so_far| {
            if so_far.objects < told + TELL_EVERY {
                return !progress.is_closed();
            }
            told = so_far.objects;
            let event = CheckupEvent::Progress { repo: repo.to_string(), objects: so_far.objects, bytes: so_far.bytes };
            progress.blocking_send(event).is_ok()
        });
        let event = match scrubbed.await {
            Ok(found) => CheckupEvent::Objects { objects: found.objects, bytes: found.bytes, problems: found.problems },
            Err(why) => CheckupEvent::Failed { why },
        };
        drop(tell.send(event).await);
    }

    async fn checkup(&self) -> Checkup {
        let limits = &self.inner.options.limits;
        let data = self.inner.options.data.clone();
        let free = tokio::task::spawn_blocking(move || disk::free_bytes(&data)).await;
        let group = self.group();
        Checkup {
            version: env!("CARGO_PKG_VERSION").into(),
            wall_ms: self.inner.proposer.wall_ms(),
            leader: group.leader,
            applied: group.applied,
            not_ready: match self.readiness() {
                super::super::Readiness::Ready => None,
                other => Some(format!("{other:?}")),
            },
            out: self.out(),
            disputed: self.health().disputed(),
            free_bytes: free.ok().and_then(std::result::Result::ok),
            reserve_bytes: disk::reserve_bytes(limits),
        }
    }

    /// Whether all members have the same state: the running hash, and with `tables` every row, read where it lies.
    pub async fn compare_replicas(&self, tables: bool) -> Result<()> {
        self.replicas_agree().await?;
        if !tables {
            return Ok(());
        }
        // Replicas hash their tables behind a tick.
        let before = self.inner.proposer.state.newest_digest();
        self.one(Op::Tick).await?;
        let deadline = tokio::time::Instant::now() + DIGESTS_WITHIN;
        let others = self.other_members();
        let mut index = None;
        loop {
            index = index.or(self.inner.proposer.state.newest_digest().filter(|newest| Some(*newest) != before));
            if let Some(index) = index {
                let ask = Ask { hashes: Vec::new(), digests: vec![index] };
                let own = self.own_hashes(&ask).digests.remove(&index);
                let told = self.ask_hashes(&ask, &others).await;
                let digests: BTreeMap<&str, Option<&String>> = others
                    .iter()
                    .filter_map(|target| Some((target.node.as_str(), told.get(&target.raft_id)?.digests.get(&index))))
                    .collect();
                if let Some((node, _)) = digests.iter().find(|(_, digest)| digest.is_some() && **digest != own.as_ref())
                {
                    let words = format!("the table of {node} differs from this node's at entry {index}");
                    return Err(Error::Internal(words));
                }
                if digests.len() == others.len() && digests.values().all(Option::is_some) {
                    return Ok(());
                }
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::Unavailable("not all members told the hash of their table".into()));
            }
            tokio::time::sleep(DIGESTS_LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::core::tests::started;

    async fn told(core: &Core, deep: bool) -> Vec<CheckupEvent> {
        let (tell, mut told) = mpsc::channel(QUEUE);
        let read = async {
            let mut events = Vec::new();
            while let Some((_, event)) = told.recv().await {
                events.push(event);
            }
            events
        };
        tokio::join!(core.examine_all(deep, tell), read).1
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn everything_is_read_once_at_a_time_and_how_it_is_a_node_always_says() {
        let dir = tempfile::tempdir().unwrap();
        let core = started(dir.path()).await;
        let checkup = |events: &[CheckupEvent]| events.iter().any(|event| matches!(event, CheckupEvent::Checkup(_)));
        let failed = |events: &[CheckupEvent]| events.iter().any(|event| matches!(event, CheckupEvent::Failed { .. }));
        let reading = core.reads_everything_alone(true).unwrap();
        let (plain, deep) = (told(&core, false).await, told(&core, true).await);
        assert!(checkup(&plain) && !failed(&plain), "{plain:?}");
        assert!(failed(&deep) && deep.len() == 1, "{deep:?}");
        drop(reading);
        let deep = told(&core, true).await;
        assert!(checkup(&deep) && !failed(&deep), "{deep:?}");
        core.shutdown().await;
    }
}
