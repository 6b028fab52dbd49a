//! One run: a cluster under faults, then peace, then everything is compared.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use openraft::AsyncRuntime as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft_rt_sim::SimRuntime;

use super::clients::{Client, first_state};
use super::cluster::World;
use super::damage::{self, Damage};
use super::faults::Counts;
use super::invariants::{
    acknowledged_stays, key_applied_once, objects_are_whole, one_commit_per_revision, pushes_as_told,
    reads_are_linearizable, refused_never_happens, replicas_equal, watch_gap_free,
};
use super::mutants::{self, Mutant};
use super::net::Net;
use super::node::Node;
use super::plan::Plan;
use super::rng::Rng;
use super::runtime::{Scheduler, locked, now, sleep_us};
use super::subscribers::{self, Inbox};
use super::{health, linear, nemesis};
use crate::commit::Propose as _;
use crate::raft::RaftNode;
use crate::raft::command::Op;

/// Virtual time after which a healed cluster must agree.
const PEACE_MS: u64 = 30_000;

/// What a run came to.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) failure: Option<String>,
    /// Changes with everything that happened and when.
    pub(super) digest: u64,
    pub(super) lines: Vec<String>,
    pub(super) acks: usize,
    pub(super) reads: u64,
    pub(super) events: u64,
    pub(super) virtual_ms: u64,
    pub(super) faults: Counts,
}

/// Runs a plan, with or without a bug.
pub(super) fn run(plan: Plan, mutant: Option<Mutant>) -> Report {
    let _on = mutants::switch_on(mutant);
    let base = Path::new("/dev/shm");
    let dir = if base.is_dir() { tempfile::tempdir_in(base) } else { tempfile::tempdir() };
    let dir = dir.expect("a temporary directory can be made");
    let seed = plan.seed;
    let net = Net::new(Rng::new(seed).fork(2), plan.weather.clone());
    let world = World::new(plan, net, dir.path());
    let mut runtime = SimRuntime::with_seed(seed);
    // A run that comes to a standstill or turns in circles panics in the runtime.
    let told = catch_unwind(AssertUnwindSafe(|| runtime.block_on(story(&world, dir.path()))));
    let virtual_ms = told.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        world.fail_untimed(text.unwrap_or_else(|| "the run panicked".into()));
        0
    });
    // Ends every task while the runtime is still there.
    for id in world.machines() {
        runtime.block_on(async { world.remove_machine(id) });
    }
    drop(runtime);
    let (acks, reads, events) = world.history(|history| (history.acks.len(), history.reads, history.events));
    let (failure, digest, lines) = (world.failure(), world.digest(), world.lines());
    Report { seed, failure, digest, lines, acks, reads, events, virtual_ms, faults: world.faults() }
}

/// Answers how long it took in virtual time.
async fn story(world: &World, dir: &Path) -> u64 {
    let members: BTreeMap<u64, RaftNode> = (1..=world.plan.voters)
        .map(|id| (id, RaftNode { name: format!("n{id}"), address: format!("n{id}:1") }))
        .collect();
    for id in members.keys() {
        world.add_machine(*id, dir);
        world.start(*id).await;
    }
    if let Some(first) = world.node(1) {
        let done = first.raft.initialize(members).await;
        world.must(done.map_err(|error| format!("the group could not be made: {error}")));
    }
    if first_state(world).await {
        let inboxes = [subscribers::start(world, 1, &[]), subscribers::start(world, 2, &["a"])];
        if world.plan.damage == Some(Damage::Row) {
            drop(Scheduler::spawn(health::ticks(world.clone())));
        }
        busy(world, dir).await;
        nemesis::heal(world).await;
        nemesis::take_out_the_lost(world).await;
        let members = agree(world).await;
        compare(world, &members);
        for inbox in &inboxes {
            all_told(world, inbox).await;
        }
    }
    now().as_millis() as u64
}

/// Waits until a subscriber has everything. It changes nodes at most every second, and then has it at once.
async fn all_told(world: &World, inbox: &Inbox) {
    let check = || {
        let received = locked(inbox);
        world.oracle(|oracle| watch_gap_free::check(&received, oracle.revisions(), true))
    };
    for _ in 0..60 {
        if world.failure().is_some() || check().is_ok() {
            return;
        }
        sleep_us(50_000).await;
    }
    world.must(check());
}

/// Clients, faults and changes of the membership until the time is over.
async fn busy(world: &World, dir: &Path) {
    let mut tasks = Vec::new();
    for number in 1..=world.plan.clients {
        tasks.push(Scheduler::spawn(Client::new(world.clone(), number).run()));
    }
    tasks.push(Scheduler::spawn(nemesis::faults(world.clone())));
    tasks.push(Scheduler::spawn(damage::strike(world.clone())));
    if world.plan.membership {
        tasks.push(Scheduler::spawn(nemesis::membership(world.clone(), dir.to_owned())));
    }
    let end = now() + Duration::from_millis(world.plan.busy_ms);
    while now() < end && world.failure().is_none() {
        sleep_us(20_000).await;
    }
    world.stop();
    for task in tasks {
        if task.await.is_err() {
            world.fail("a task of the simulation panicked".into());
        }
    }
}

/// Waits until all members have the same index, and answers them.
async fn agree(world: &World) -> Vec<Node> {
    let end = now() + Duration::from_millis(PEACE_MS);
    let mut barrier = None;
    let mut state = String::new();
    while world.failure().is_none() {
        if now() > end {
            world.fail(format!("after {PEACE_MS} ms without faults the members still do not agree: {state}"));
            break;
        }
        let Some(leader) = world.leader() else {
            sleep_us(20_000).await;
            continue;
        };
        if barrier.is_none() {
            // One entry of this leader, so that all before it is committed.
            let tick = Scheduler::timeout(Duration::from_millis(500), leader.proposer.one(Op::Tick)).await;
            barrier = matches!(tick, Ok(Ok(_))).then(|| leader.state.view().applied_index());
            sleep_us(5_000).await;
            continue;
        }
        let membership = leader.raft.metrics().borrow_watched().membership_config.clone();
        let ids: Vec<u64> = membership.membership().nodes().map(|(id, _)| *id).collect();
        let nodes: Vec<Node> = ids.iter().filter_map(|id| world.node(*id)).collect();
        let applied: Vec<_> = nodes.iter().map(|node| node.state.view().applied.map(|id| id.index)).collect();
        let well = nodes.iter().all(|node| node.disk.out().is_none()) && !row_is_left(world, &nodes);
        if well && nodes.len() == ids.len() && applied.iter().all(|index| *index == applied[0] && *index >= barrier) {
            world.note(|| format!("agreed at {:?}: {ids:?}", applied[0]));
            return nodes;
        }
        let out: Vec<_> = nodes.iter().filter_map(|node| Some((node.id, node.disk.out()?))).collect();
        state = format!("members {ids:?}, indexes {applied:?}, out {out:?}");
        sleep_us(20_000).await;
    }
    Vec::new()
}

/// Whether a row that nobody wrote is in the table of some and not of others.
fn row_is_left(world: &World, nodes: &[Node]) -> bool {
    world.plan.damage == Some(Damage::Row) && nodes.windows(2).any(|two| two[0].state.dump() != two[1].state.dump())
}

/// Everything that can only be said at the end.
fn compare(world: &World, members: &[Node]) {
    let acks = world.history(|history| history.acks.clone());
    world.must(one_commit_per_revision::check_acks(&acks));
    for node in members {
        world.look(node.id);
        world.must(acknowledged_stays::check(node.id, &node.state, &acks));
        world.must(one_commit_per_revision::check_node(node.id, &node.state));
        world.must(key_applied_once::check_node(node.id, &node.state));
        if world.plan.objects {
            world.must(acknowledged_stays::check_objects(node.id, &node.state, &acks));
            world.must(objects_are_whole::check(node.id, &node.state));
        }
        world.must(replicas_equal::check_tables((members[0].id, &members[0].state), (node.id, &node.state)));
    }
    let refused = world.history(|history| history.refused.clone());
    world.must(world.oracle(|oracle| refused_never_happens::check(&refused, oracle.revisions())));
    let pushes = world.history(|history| history.pushes.clone());
    for push in &pushes {
        world.must(world.oracle(|oracle| pushes_as_told::check(push, oracle.moments())));
    }
    note_maybes(world);
    world.must(world.history(|history| reads_are_linearizable::check(history)));
}

/// Writes without an answer that are in the log all the same, and the revisions of the first state.
fn note_maybes(world: &World) {
    let acked: std::collections::BTreeSet<_> =
        world.history(|history| history.acks.iter().map(|ack| (ack.repo.clone(), ack.head.revision)).collect());
    let rest: Vec<_> = world.oracle(|oracle| {
        oracle.revisions().filter(|r| !acked.contains(&(r.repo.clone(), r.head.revision))).cloned().collect()
    });
    world.history(|history| {
        for revision in rest {
            let invoked = history.unknown.get(&revision.message).map_or(0, |at| at.as_nanos() as u64);
            let op = linear::Op::maybe(revision.head.revision, revision.head.commit, invoked);
            history.heads.push((revision.repo, op));
        }
    });
}
