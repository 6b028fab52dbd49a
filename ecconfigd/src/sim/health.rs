//! What the product's `core/health/` does with tokio's timers and its peers, with virtual timers and the simulated network: a node compares
//! itself with the others, steps aside when it is the one that is wrong, and rebuilds itself from them. Who is wrong is the product's
//! judgement, what is replaced is replaced by the product's code.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::Snapshot;

use super::cluster::World;
use super::mutants::{self, Mutant};
use super::net::{Parcel, Peer};
use super::node::Node;
use super::rng::Rng;
use super::runtime::{Scheduler, sleep_us};
use crate::commit::Propose as _;
use crate::core::health::objects::set_bad_aside;
use crate::core::health::{Ask, Part, Told, judge_all};
use crate::raft::Vote;
use crate::raft::command::Op;
use crate::state::RepoName;

/// How long a member may take to answer.
const WITHIN: Duration = Duration::from_millis(150);
/// A fresh snapshot has to be written first.
const SNAPSHOT_WITHIN: Duration = Duration::from_millis(2_000);
/// Entries that the leader writes at most until it is where a fresh snapshot shall be.
const MAX_TICKS: usize = 8;
/// Between two ticks of the leader: longer than between two looks, so that every node sees the digest behind each.
const TICK_US: u64 = 500_000;

/// Packs of a member, all of them.
pub(super) type Packs = Vec<(RepoName, Vec<u8>)>;

/// Has whoever leads write the clock down, behind which all compute the digest of their table.
pub(super) async fn ticks(world: World) {
    while world.failure().is_none() {
        sleep_us(TICK_US).await;
        if let Some(leader) = world.leader() {
            let proposer = leader.proposer.clone();
            leader.scope.clone().spawn(async move { drop(proposer.one(Op::Tick).await) });
        }
    }
}

impl Node {
    /// Looks after itself until it ends.
    pub(super) async fn keep_healthy(self, world: World, mut rng: Rng) {
        let mut asked = Ask::default();
        loop {
            sleep_us(rng.between(50_000, 200_000)).await;
            self.compare(&world, &mut asked).await;
            let Some(part) = self.disk.out() else { continue };
            self.step_aside(part).await;
            let right = match part {
                Part::State => match self.renew(&world).await {
                    Ok(()) => self.heal(&world, &mut rng).await,
                    other => other,
                },
                Part::Objects => self.heal(&world, &mut rng).await,
            };
            match right {
                Ok(()) => {
                    world.note(|| format!("n{} is right again", self.id));
                    self.state.suspects().iter().for_each(|repo| self.state.is_whole(repo));
                    self.disk.set_out(None);
                    self.raft.runtime_config().elect(true);
                }
                Err(why) => world.note(|| format!("n{} stays out: {why}", self.id)),
            }
        }
    }

    /// Takes itself out. What it holds against itself is on its disk before it acts on it.
    pub(super) async fn go_out(&self, world: &World, part: Part, why: &str) {
        if self.disk.out().is_some_and(|before| before == part || before == Part::State) {
            return;
        }
        world.note(|| format!("n{} is out: {why}", self.id));
        if part == Part::State {
            world.must(super::invariants::right_nodes_stay::check(self.id, &self.disk, &world.running()));
        }
        self.disk.set_out(Some(part));
        self.state.hub().send_away();
        self.step_aside(part).await;
    }

    async fn step_aside(&self, part: Part) {
        if part == Part::State {
            self.raft.runtime_config().elect(false);
        }
        let metrics = self.raft.metrics().borrow_watched().clone();
        let next = metrics.membership_config.voter_ids().find(|id| *id != self.id);
        if let (true, Some(next)) = (metrics.current_leader == Some(self.id), next) {
            drop(self.raft.trigger().transfer_leader(next).await);
        }
    }

    // ── the state ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

    fn others(&self) -> Vec<u64> {
        let members = self.raft.metrics().borrow_watched().membership_config.clone();
        members.membership().nodes().map(|(id, _)| *id).filter(|id| *id != self.id).collect()
    }

    /// One round, as the product's: asks everybody, and judges itself.
    async fn compare(&self, world: &World, asked: &mut Ask) {
        let state = self.state.clone();
        drop(self.state.outside().blocking(move || state.compute_digest()).await);
        let (applied, digest) = (self.state.view().applied_index(), self.state.newest_digest());
        let mut ask = std::mem::take(asked);
        ask.hashes.push(applied);
        ask.digests.extend(digest);
        ask.hashes.dedup();
        ask.digests.dedup();
        let own = Told::of(&self.state, &ask, None);
        let calls = self.others().into_iter().map(|id| {
            let (ask, net) = (ask.clone(), world.net());
            async move {
                let work = move |peer: Peer| -> futures::future::BoxFuture<'static, _> {
                    let out = peer.disk.out().map(|_| "out".to_owned());
                    Box::pin(async move { Some(Told::of(&peer.state, &ask, out)) })
                };
                Some((id, net.call((self.id, id), WITHIN, work).await.ok()?))
            }
        });
        let told: BTreeMap<u64, Told> = futures::future::join_all(calls).await.into_iter().flatten().collect();
        *asked = Ask { hashes: vec![applied], digests: digest.into_iter().collect() };
        let voters: Vec<u64> = self.state.view().membership.voter_ids().collect();
        if let Err(why) = judge_all(self.id, &voters, &own, &told)
            && !mutants::is_on(Mutant::NeverDoubts)
        {
            self.go_out(world, Part::State, &why).await;
        }
    }

    /// Replaces the whole state by a snapshot that the leader writes for it.
    async fn renew(&self, world: &World) -> Result<(), String> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let leader = metrics.current_leader.filter(|leader| *leader != self.id).ok_or("no other node leads")?;
        let min_index = metrics.last_log_index.unwrap_or(0) + 1;
        let work =
            move |peer: Peer| -> futures::future::BoxFuture<'static, _> { Box::pin(fresh_snapshot(peer, min_index)) };
        let fetched = world.net().call((self.id, leader), SNAPSHOT_WITHIN, work).await;
        let (vote, parcel) = fetched.map_err(|_| "the leader sent no snapshot")?;
        let snapshot = parcel.unpack(&self.peer())?;
        self.state.renew_with_next_snapshot(true);
        let snapshot = Snapshot { meta: parcel.meta.clone(), snapshot };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        let not_taken = self.state.waits_for_renewal();
        self.state.renew_with_next_snapshot(false);
        installed.map_err(|error| error.to_string())?;
        if not_taken { Err("the log went on in the meantime".into()) } else { Ok(()) }
    }

    // ── objects ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Sets bad packs aside and fetches what is missing until all repositories are whole.
    async fn heal(&self, world: &World, rng: &mut Rng) -> Result<(), String> {
        if !world.plan.objects {
            return Ok(());
        }
        // The log may bring what is missing.
        sleep_us(100_000).await;
        let missing = self.examine().await?;
        if missing == 0 {
            return Ok(());
        }
        let others = self.others();
        let from = *rng.pick(&others).ok_or("there is nobody to fetch from")?;
        let work = move |peer: Peer| -> futures::future::BoxFuture<'static, _> {
            Box::pin(async move { if peer.disk.out().is_some() { None } else { Some(Parcel::packs(&peer)) } })
        };
        let packs: Packs = world.net().call((self.id, from), WITHIN, work).await.map_err(|_| "nobody sent objects")?;
        Parcel::install(&packs, &self.peer())?;
        match self.examine().await? {
            0 => Ok(()),
            missing => Err(format!("{missing} objects are missing")),
        }
    }

    /// Sets aside what is bad, and answers how much is missing then.
    async fn examine(&self) -> Result<usize, String> {
        let state = self.state.clone();
        let work = move || -> Result<usize, String> {
            let mut missing = 0;
            for (name, repo) in state.view().repos.iter() {
                missing += set_bad_aside(&state, name, repo)?.len();
            }
            Ok(missing)
        };
        self.state.outside().blocking(work).await.map_err(|error| error.to_string())?
    }
}

/// What the leader does for a node that renews itself.
async fn fresh_snapshot(peer: Peer, min_index: u64) -> Option<(Vote, Arc<Parcel>)> {
    if peer.disk.out().is_some() {
        return None;
    }
    for _ in 0..MAX_TICKS {
        if peer.state.view().applied_index() >= min_index {
            break;
        }
        Scheduler::timeout(WITHIN, peer.proposer.one(Op::Tick)).await.ok()?.ok()?;
    }
    let metrics = peer.raft.metrics().borrow_watched().clone();
    if metrics.current_leader != Some(metrics.id) || peer.state.view().applied_index() < min_index {
        return None;
    }
    let state = peer.state.clone();
    let (meta, snapshot) = peer.state.outside().blocking(move || state.build_snapshot()).await.ok()?.ok()?;
    let parcel = Parcel::pack(Snapshot { meta, snapshot }, Some(&peer));
    Some((metrics.vote, Arc::new(parcel)))
}
