//! A node: the real state, log, state machine, Committer and openraft on a simulated machine.
//!
//! What the product's `core/life.rs` does with tokio's timers (checkpoints, compaction) is done here with virtual ones; everything that
//! decides or keeps anything is the product's code.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;

use super::cluster::World;
use super::disk::Disk;
use super::mutants::{self, Mutant};
use super::net::{Links, Peer};
use super::rng::Rng;
use super::runtime::{Scope, SimConfig, locked, now, sleep_us};
use crate::commit::{Proposer, Queue};
use crate::core::health::Part;
use crate::outside::Outside;
use crate::raft::log::LogStore;
use crate::raft::machine::Machine;
use crate::raft::{Raft, config};
use crate::state::State;

/// Segments of the log: small, so that a run crosses into new ones.
const SEGMENT_BYTES: u64 = 16 << 10;
const MAX_WATCHERS: usize = 64;
/// The wall clock of a machine that has the right time: 2026-11-22.
const WALL_MS: u64 = 1_795_363_200_000;

/// How a machine behaves: its clocks and its disk.
pub(super) struct Machinery {
    id: u64,
    rng: Mutex<Rng>,
    /// Parts in a thousand by which its monotonic clock is fast or slow.
    drift_permille: i64,
    booted: Duration,
    behaviour: Mutex<Behaviour>,
    disk: Arc<Disk>,
    /// Which life of the disk this node belongs to.
    epoch: u64,
    world: World,
}

/// What the nemesis changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Behaviour {
    pub(super) wall_skew_ms: i64,
    pub(super) sync_us: (u64, u64),
}

impl Machinery {
    fn sync_us(&self) -> u64 {
        let (low, high) = locked(&self.behaviour).sync_us;
        locked(&self.rng).between(low, high)
    }
}

impl Outside for Machinery {
    fn monotonic(&self) -> Duration {
        let since = now().saturating_sub(self.booted).as_micros() as i64;
        Duration::from_micros((since + since * self.drift_permille / 1000).max(0) as u64)
    }

    fn wall_ms(&self) -> u64 {
        let right = WALL_MS + now().as_millis() as u64;
        right.saturating_add_signed(locked(&self.behaviour).wall_skew_ms)
    }

    fn random(&self) -> io::Result<[u8; 16]> {
        let mut rng = locked(&self.rng);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&rng.next().to_le_bytes());
        bytes[8..].copy_from_slice(&rng.next().to_le_bytes());
        Ok(bytes)
    }

    fn is_up(&self) -> bool {
        self.disk.volume().epoch() == self.epoch
    }

    /// Inline, after some virtual time. The world looks at the node as soon as the work is done, before anybody else can.
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let us = locked(&self.rng).between(20, 400);
        let (world, id) = (self.world.clone(), self.id);
        Box::pin(async move {
            sleep_us(us).await;
            work();
            world.look(id);
        })
    }
}

/// A node that runs.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) scope: Arc<Scope>,
    pub(super) raft: Raft<SimConfig>,
    pub(super) state: Arc<State>,
    pub(super) log: LogStore,
    pub(super) proposer: Proposer<SimConfig>,
    pub(super) queue: Queue,
    pub(super) machinery: Arc<Machinery>,
    pub(super) disk: Arc<Disk>,
}

/// What a node is started with.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) id: u64,
    pub(super) disk: Arc<Disk>,
    pub(super) rng: Rng,
    pub(super) drift_permille: i64,
    pub(super) behaviour: Behaviour,
    pub(super) compact_entries: u64,
}

impl Node {
    /// Starts the node on what its disk has, in a scope of its own; answers an error that the product would end with.
    pub(super) async fn start(setup: Setup, scope: Arc<Scope>, world: World) -> Result<Node, String> {
        let Setup { id, disk, rng, drift_permille, behaviour, compact_entries } = setup;
        let machinery = Arc::new(Machinery {
            id,
            rng: Mutex::new(rng.fork(1)),
            drift_permille,
            booted: now(),
            behaviour: Mutex::new(behaviour),
            disk: disk.clone(),
            epoch: disk.volume().epoch(),
            world: world.clone(),
        });
        let home = Arc::new(super::disk::SimHome { disk: disk.clone() });
        let state = crate::state::open_in(home, &disk.dir, MAX_WATCHERS, machinery.clone());
        let state = state.map_err(|error| format!("the state does not open: {error}"))?;
        let opened = LogStore::open_unwritten(&disk.dir.join("raft"), SEGMENT_BYTES, machinery.clone());
        let (log, writer, requests) = opened.map_err(|error| format!("the log does not open: {error}"))?;
        let platter = Platter { disk: disk.clone(), machinery: machinery.clone() };
        scope.spawn(writer.run_simulated(requests, platter));
        let view = state.view();
        log.covers(view.applied_index(), view.membership.membership().voter_ids().any(|voter| voter != id))?;
        log.continues(view.applied_index())?;
        drop(view);
        let config = config("sim", compact_entries / 2).map_err(|error| error.to_string())?;
        let links = Links { net: world.net(), from: id };
        let raft = Raft::<SimConfig>::new(id, config, links, log.clone(), Machine::new(state.clone())).await;
        let raft = raft.map_err(|error| format!("raft does not start: {error}"))?;
        let proposer = Proposer { raft: raft.clone(), state: state.clone() };
        let (queue, committer) = Queue::new(proposer.clone(), Default::default(), 64);
        scope.spawn(committer);
        let node = Node { id, scope: scope.clone(), raft, state, log, proposer, queue, machinery, disk };
        if world.plan.objects || world.plan.damage.is_some() {
            if !node.state.suspects().is_empty() {
                // The log may bring again what they lack; until that is known nothing of them is served.
                node.go_out(&world, Part::Objects, "packs were damaged").await;
            }
            scope.spawn(node.clone().keep_healthy(world.clone(), rng.fork(3)));
        }
        scope.spawn(node.clone().maintain(compact_entries, rng.fork(2), world));
        Ok(node)
    }

    pub(super) fn peer(&self) -> Peer {
        Peer {
            raft: self.raft.clone(),
            state: self.state.clone(),
            scope: self.scope.clone(),
            disk: self.disk.clone(),
            proposer: self.proposer.clone(),
            queue: self.queue.clone(),
        }
    }

    pub(super) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut locked(&self.machinery.behaviour));
    }

    /// Checkpoints and compaction, as the product's maintenance does them.
    async fn maintain(self, compact_entries: u64, mut rng: Rng, world: World) {
        let mut compacted = 0;
        loop {
            sleep_us(rng.between(50_000, 400_000)).await;
            let (_, entries) = self.state.durable();
            if entries > 0 {
                let state = self.state.clone();
                let done = self.state.outside().blocking(move || state.checkpoint().map(drop)).await;
                // The state takes nothing any more then, which ends raft and so the node.
                if !matches!(done, Ok(Ok(()))) {
                    world.note(|| format!("n{} checkpoint failed: {done:?}", self.id));
                }
            }
            if rng.chance(300) {
                self.merge_packs().await;
            }
            let durable = self.state.durable().0.map_or(0, |id| id.index);
            if durable >= compacted + compact_entries {
                compacted = durable;
                // The node may be on its way out.
                drop(self.raft.trigger().snapshot().await);
            }
        }
    }
}

impl Node {
    /// What the product's consolidator does when there are many packs; here two are many.
    async fn merge_packs(&self) {
        let (state, disk) = (self.state.clone(), self.disk.clone());
        let merged = self.state.outside().blocking(move || -> Result<(), String> {
            for (name, repo) in state.view().repos.iter() {
                let tips: BTreeSet<repos::Oid> = repo.refs.values().copied().collect();
                let tips: Vec<repos::Oid> = tips.into_iter().collect();
                let options = repos::ConsolidateOptions { min_packs: 2, ..Default::default() };
                let done = disk.merging(name, || repo.store.consolidate(&options, &tips));
                done.map_err(|error| format!("packs of {name} could not be merged: {error}"))?;
            }
            Ok(())
        });
        if let Ok(Err(what)) = merged.await {
            self.machinery.world.fail(format!("n{}: {what}", self.id));
        }
    }
}

/// The disk as the log's writer sees it.
pub(super) struct Platter {
    disk: Arc<Disk>,
    machinery: Arc<Machinery>,
}

impl crate::raft::log::Platter for Platter {
    fn sync(&self) -> BoxFuture<'static, ()> {
        let us = self.machinery.sync_us();
        Box::pin(sleep_us(us))
    }

    fn synced(&self, segment: u64, end: u64) {
        self.disk.log_synced(segment, end);
    }

    fn acks_early(&self) -> bool {
        mutants::is_on(Mutant::AckBeforeSync)
    }
}
