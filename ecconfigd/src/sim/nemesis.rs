//! Everything that goes wrong, and everything that is put right again.
//!
//! What a fault brings later (a restart, a calm network) does not come once the run stops: [`heal`] puts everything right then.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{AsyncRuntime as _, ChangeMembers};

use super::cluster::World;
use super::faults::Fault;
use super::node::Node;
use super::rng::Rng;
use super::runtime::{Scheduler, sleep_us};
use crate::raft::RaftNode;

/// Faults until the run stops; puts everything right before it ends.
pub(super) async fn faults(world: World) {
    let mut rng = Rng::new(world.plan.seed).fork(3);
    let mut cut = BTreeSet::new();
    while !world.stopping() {
        let (low, high) = world.plan.calm_ms;
        sleep_us(rng.between(low, high) * 1000).await;
        if world.stopping() {
            break;
        }
        let machines = world.machines();
        let Some(victim) = rng.pick(&machines).copied() else { continue };
        match rng.between(0, 99) {
            0..=24 => crash(&world, &mut rng, &[victim]),
            25..=31 => crash(&world, &mut rng, &machines),
            32..=38 => {
                if let Some(leader) = world.leader() {
                    crash(&world, &mut rng, &[leader.id]);
                }
            }
            39..=52 => {
                cut = split(&mut rng, &machines);
                world.count(Fault::Cut);
                world.note(|| format!("cut {cut:?}"));
                world.net().cut(cut.clone());
            }
            53..=58 => {
                let other = *rng.pick(&machines).unwrap_or(&victim);
                world.note(|| format!("cut n{victim} to n{other}"));
                cut.insert((victim, other));
                world.net().cut(cut.clone());
            }
            59..=68 => {
                cut.clear();
                world.note(|| "mended".into());
                world.net().cut(BTreeSet::new());
            }
            69..=76 => pause(&world, &mut rng, victim),
            77..=82 => slow_disk(&world, &mut rng, victim),
            83..=87 => storm(&world, &mut rng),
            88..=91 => {
                let skew_ms = skew_ms(&mut rng);
                world.count(if skew_ms < 0 { Fault::ClockBehind } else { Fault::ClockAhead });
                world.note(|| format!("n{victim} wall clock {skew_ms} ms"));
                world.behave(victim, move |behaviour| behaviour.wall_skew_ms = skew_ms);
            }
            92..=95 => broken_disk(&world, &mut rng, victim),
            _ => {
                if let Some(leader) = world.leader() {
                    world.count(Fault::HandOver);
                    world.note(|| format!("n{} shall hand over to n{victim}", leader.id));
                    drop(leader.raft.trigger().transfer_leader(victim).await);
                }
            }
        }
    }
}

/// By how much a wall clock is wrong from now on: minutes, as after a suspend, a day, or all that a clock can be.
fn skew_ms(rng: &mut Rng) -> i64 {
    const HOUR_MS: u64 = 3_600_000;
    let most_ms = *rng
        .pick(&[HOUR_MS / 30, HOUR_MS, 24 * HOUR_MS, 20 * 365 * 24 * HOUR_MS, 80 * 365 * 24 * HOUR_MS])
        .unwrap_or(&HOUR_MS);
    let ms = rng.between(0, most_ms) as i64;
    if rng.chance(500) { -ms } else { ms }
}

/// Everything works again: no cuts, no losses, all machines up.
pub(super) async fn heal(world: &World) {
    world.note(|| "heal".into());
    world.net().cut(BTreeSet::new());
    let mut weather = world.plan.weather.clone();
    (weather.loss_permille, weather.duplicate_permille) = (0, 0);
    world.net().set_weather(weather);
    for id in world.machines() {
        world.behave(id, |behaviour| behaviour.sync_us = (100, 500));
        if let Some(node) = world.node(id) {
            node.scope.pause(false);
            // A node whose disk failed or that openraft stopped ends, and its supervisor starts it again.
            let stopped = node.raft.metrics().borrow_watched().running_state.is_err() || node.disk.volume().is_broken();
            drop(node);
            if stopped {
                world.crash(id);
            }
        }
        world.start(id).await;
    }
}

/// A machine whose log is spoiled stays away, so an operator takes it out of the group.
pub(super) async fn take_out_the_lost(world: &World) {
    for id in world.lost() {
        // The run has all of its peace for it, and says what is missing if this does not succeed.
        for _ in 0..100 {
            sleep_us(50_000).await;
            let Some(leader) = world.leader() else { continue };
            let members = leader.raft.metrics().borrow_watched().membership_config.clone();
            let gone = match (members.voter_ids().any(|voter| voter == id), members.membership().get_node(&id)) {
                (true, _) => change(world, &leader, ChangeMembers::RemoveVoters([id].into()), false).await,
                (false, Some(_)) => change(world, &leader, ChangeMembers::RemoveNodes([id].into()), false).await,
                (false, None) => true,
            };
            if gone {
                world.remove_machine(id);
                break;
            }
        }
    }
}

fn crash(world: &World, rng: &mut Rng, victims: &[u64]) {
    for id in victims {
        world.crash(*id);
    }
    for id in victims {
        let (world, id, after_ms) = (world.clone(), *id, rng.between(5, 500));
        drop(Scheduler::spawn(async move {
            sleep_us(after_ms * 1000).await;
            if !world.stopping() {
                world.start(id).await;
            }
        }));
    }
}

/// Two groups that do not hear each other, or only in one direction.
fn split(rng: &mut Rng, machines: &[u64]) -> BTreeSet<(u64, u64)> {
    let side: BTreeSet<u64> = machines.iter().copied().filter(|_| rng.chance(400)).collect();
    let both = rng.chance(700);
    let pairs = machines.iter().flat_map(|a| machines.iter().map(move |b| (*a, *b)));
    let crosses = |(a, b): &(u64, u64)| {
        (side.contains(a) && !side.contains(b)) || (both && side.contains(b) && !side.contains(a))
    };
    pairs.filter(crosses).collect()
}

fn pause(world: &World, rng: &mut Rng, victim: u64) {
    let Some(node) = world.node(victim) else { return };
    let ms = rng.between(20, 900);
    world.count(Fault::Pause);
    world.note(|| format!("n{victim} stands still for {ms} ms"));
    let scope = node.scope.clone();
    scope.pause(true);
    drop(Scheduler::spawn(async move {
        sleep_us(ms * 1000).await;
        scope.pause(false);
    }));
}

fn slow_disk(world: &World, rng: &mut Rng, victim: u64) {
    let (us, ms) = (rng.between(5_000, 120_000), rng.between(100, 800));
    world.count(Fault::SlowDisk);
    world.note(|| format!("n{victim} syncs take up to {us} us"));
    let usual = world.plan.sync_us;
    world.behave(victim, move |behaviour| behaviour.sync_us = (us / 4, us));
    let world = world.clone();
    drop(Scheduler::spawn(async move {
        sleep_us(ms * 1000).await;
        if !world.stopping() {
            world.behave(victim, move |behaviour| behaviour.sync_us = usual);
        }
    }));
}

/// The network loses a lot for a while.
fn storm(world: &World, rng: &mut Rng) {
    let (permille, ms) = (rng.between(50, 500), rng.between(50, 400));
    world.count(Fault::Storm);
    world.note(|| format!("storm {permille}"));
    let usual = world.plan.weather.clone();
    let mut weather = usual.clone();
    (weather.loss_permille, weather.duplicate_permille) = (permille, 200);
    world.net().set_weather(weather);
    let world = world.clone();
    drop(Scheduler::spawn(async move {
        sleep_us(ms * 1000).await;
        if !world.stopping() {
            world.net().set_weather(usual);
        }
    }));
}

/// The database's disk fails in the middle of something; the node ends soon after and comes back.
fn broken_disk(world: &World, rng: &mut Rng, victim: u64) {
    let Some(disk) = world.node(victim).map(|node| node.disk) else { return };
    let (writes, ms) = (rng.between(0, 30), rng.between(50, 500));
    world.count(Fault::BrokenDisk);
    world.note(|| format!("n{victim} disk fails after {writes} writes"));
    disk.volume().fail_after(writes);
    let world = world.clone();
    drop(Scheduler::spawn(async move {
        sleep_us(ms * 1000).await;
        if world.stopping() {
            return;
        }
        world.crash(victim);
        sleep_us(ms * 500).await;
        if !world.stopping() {
            world.start(victim).await;
        }
    }));
}

// ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Members come, are promoted and demoted, go, and are replaced, while everything else goes on.
pub(super) async fn membership(world: World, dir: PathBuf) {
    let mut rng = Rng::new(world.plan.seed).fork(4);
    let mut next_id = world.plan.voters + 1;
    while !world.stopping() {
        sleep_us(rng.between(50, 400) * 1000).await;
        let Some(leader) = world.leader() else { continue };
        if world.stopping() {
            break;
        }
        let members = leader.raft.metrics().borrow_watched().membership_config.clone();
        let voters: Vec<u64> = members.voter_ids().collect();
        let learners: Vec<u64> = members.membership().learner_ids().collect();
        let total = voters.len() + learners.len();
        match rng.between(0, 4) {
            0 if total < 6 => {
                let id = next_id;
                next_id += 1;
                world.add_machine(id, &dir);
                world.start(id).await;
                let node = RaftNode { name: format!("n{id}"), address: format!("n{id}:1") };
                let added = patience(leader.raft.add_learner(id, node, false)).await;
                world.note(|| format!("n{id} comes: {added}"));
            }
            1 if voters.len() < 5 => {
                if let Some(id) = rng.pick(&learners).copied() {
                    change(&world, &leader, ChangeMembers::AddVoterIds([id].into()), true).await;
                }
            }
            2 if voters.len() > 3 => {
                if let Some(id) = rng.pick(&voters).copied() {
                    change(&world, &leader, ChangeMembers::RemoveVoters([id].into()), true).await;
                }
            }
            3 => {
                if let Some(id) = rng.pick(&learners).copied()
                    && change(&world, &leader, ChangeMembers::RemoveNodes([id].into()), false).await
                {
                    world.remove_machine(id);
                }
            }
            4 if total > 3 && learners.len() + voters.len() > 3 => {
                // A replacement: the machine is gone before it is taken out.
                let dead: Vec<u64> = voters.iter().copied().filter(|id| *id != leader.id).collect();
                if voters.len() > 3
                    && let Some(id) = rng.pick(&dead).copied()
                    && change(&world, &leader, ChangeMembers::RemoveVoters([id].into()), false).await
                {
                    world.remove_machine(id);
                }
            }
            _ => {}
        }
    }
}

async fn change(world: &World, leader: &Node, change: ChangeMembers<u64, RaftNode>, retain: bool) -> bool {
    let joint = leader.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len() > 1;
    if joint {
        // As the steward does: what was begun is finished first. A leader that a step in between leaves out cannot take the next.
        let settled = patience(leader.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), true)).await;
        world.note(|| format!("n{} settles: {settled}", leader.id));
        return false;
    }
    let what = format!("{change:?}");
    let done = patience(leader.raft.change_membership(change, retain)).await;
    world.note(|| format!("n{} {what}: {done}", leader.id));
    done
}

/// Whether it succeeded in time.
async fn patience<T: Send, E: Send>(work: impl Future<Output = Result<T, E>> + Send) -> bool {
    matches!(Scheduler::timeout(Duration::from_millis(800), work).await, Ok(Ok(_)))
}
