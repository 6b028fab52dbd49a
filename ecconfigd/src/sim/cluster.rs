//! The world of one run: nodes, network, what was seen so far, and the first thing that went wrong.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use openraft::async_runtime::watch::WatchReceiver as _;

use super::damage::Damage;
use super::disk::Disk;
use super::faults::{Counts, Fault};
use super::history::History;
use super::invariants::{clock_keeps_pace, refs_follow_log, replicas_equal};
use super::mutants::{self, Mutant};
use super::net::Net;
use super::node::{Behaviour, Node, Setup};
use super::oracle::Oracle;
use super::plan::Plan;
use super::rng::Rng;
use super::runtime::{Scope, locked, now};
use crate::raft::{Entry, LogId};

/// Lines that are kept for the report of a failure.
const KEPT_LINES: usize = 300;

/// The world. Clones share it.
#[derive(Clone)]
pub(super) struct World {
    inner: Arc<Mutex<Inner>>,
    net: Net,
    pub(super) plan: Arc<Plan>,
    /// Where all disks are: its name differs from run to run, and has no place in a trace.
    dir: Arc<str>,
}

struct Inner {
    places: BTreeMap<u64, Place>,
    oracle: Oracle,
    history: History,
    failure: Option<String>,
    lines: VecDeque<String>,
    digest: u64,
    stopping: bool,
    rng: Rng,
    faults: Counts,
}

/// A machine, with or without a node that runs on it.
struct Place {
    disk: Arc<Disk>,
    node: Option<Node>,
    starting: bool,
    behaviour: Behaviour,
    drift_permille: i64,
    starts: u64,
    /// Why it will never run again: its log was spoiled.
    lost: Option<String>,
    /// Up to where the node's state was looked at.
    seen: Option<u64>,
    /// The newest checkpoint that was noticed.
    durable: Option<u64>,
}

impl World {
    pub(super) fn new(plan: Plan, net: Net, dir: &Path) -> World {
        let rng = Rng::new(plan.seed).fork(11);
        let inner = Inner {
            places: BTreeMap::new(),
            oracle: Oracle::default(),
            history: History::default(),
            failure: None,
            lines: VecDeque::new(),
            digest: 0,
            stopping: false,
            rng,
            faults: Counts::new(),
        };
        World { inner: Arc::new(Mutex::new(inner)), net, plan: Arc::new(plan), dir: dir.to_string_lossy().into() }
    }

    pub(super) fn net(&self) -> Net {
        self.net.clone()
    }

    // ── what happened ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Writes a line into the run's trace.
    pub(super) fn note(&self, line: impl FnOnce() -> String) {
        let mut inner = locked(&self.inner);
        let mut text = String::new();
        write!(text, "{:>9.3} ", now().as_micros() as f64 / 1000.0).expect("a string takes everything");
        text.push_str(&line().replace(&*self.dir, ""));
        for byte in text.bytes() {
            inner.digest = (inner.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.plan.verbose {
            println!("{text}");
        }
        if inner.lines.len() == KEPT_LINES {
            inner.lines.pop_front();
        }
        inner.lines.push_back(text);
    }

    /// Keeps the first failure.
    pub(super) fn fail(&self, what: String) {
        self.note(|| format!("FAILED: {what}"));
        locked(&self.inner).failure.get_or_insert(what);
    }

    /// The same outside of the runtime, where there is no time.
    pub(super) fn fail_untimed(&self, what: String) {
        locked(&self.inner).failure.get_or_insert(what);
    }

    pub(super) fn must(&self, result: Result<(), String>) {
        if let Err(what) = result {
            self.fail(what);
        }
    }

    pub(super) fn failure(&self) -> Option<String> {
        locked(&self.inner).failure.clone()
    }

    /// The last lines of the trace.
    pub(super) fn lines(&self) -> Vec<String> {
        locked(&self.inner).lines.iter().cloned().collect()
    }

    pub(super) fn digest(&self) -> u64 {
        let (messages, sent) = self.net.digest();
        locked(&self.inner).digest ^ sent.rotate_left(17) ^ messages
    }

    /// What clients did and saw.
    pub(super) fn history<T>(&self, work: impl FnOnce(&mut History) -> T) -> T {
        work(&mut locked(&self.inner).history)
    }

    /// Something went wrong on purpose.
    pub(super) fn count(&self, fault: Fault) {
        *locked(&self.inner).faults.entry(fault).or_default() += 1;
    }

    pub(super) fn faults(&self) -> Counts {
        locked(&self.inner).faults.clone()
    }

    pub(super) fn oracle<T>(&self, work: impl FnOnce(&Oracle) -> T) -> T {
        work(&locked(&self.inner).oracle)
    }

    pub(super) fn stop(&self) {
        locked(&self.inner).stopping = true;
    }

    pub(super) fn stopping(&self) -> bool {
        let inner = locked(&self.inner);
        inner.stopping || inner.failure.is_some()
    }

    // ── nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Brings in a new, empty machine.
    pub(super) fn add_machine(&self, id: u64, dir: &Path) {
        let mut inner = locked(&self.inner);
        let dir = dir.join(format!("n{id}"));
        std::fs::create_dir_all(&dir).expect("the run's directory can be written");
        // Crystals are better than that, but some machines are not machines.
        let most = if inner.rng.chance(200) { 100 } else { 20 };
        let drift_permille = inner.rng.between(0, 2 * most) as i64 - most as i64;
        if drift_permille.abs() > 20 {
            *inner.faults.entry(Fault::Drift).or_default() += 1;
        }
        let behaviour = Behaviour { wall_skew_ms: 0, sync_us: self.plan.sync_us };
        let disk = Arc::new(Disk::new(dir));
        inner.places.insert(
            id,
            Place {
                disk,
                node: None,
                starting: false,
                behaviour,
                drift_permille,
                starts: 0,
                lost: None,
                seen: None,
                durable: None,
            },
        );
    }

    /// Starts the node on a machine. A node that cannot start has lost something.
    pub(super) async fn start(&self, id: u64) {
        let (setup, starts) = {
            let mut inner = locked(&self.inner);
            let compact_entries = self.plan.compact_entries;
            let rng = Rng::new(self.plan.seed).fork(100 + id);
            let free = |place: &&mut Place| place.node.is_none() && !place.starting && place.lost.is_none();
            let Some(place) = inner.places.get_mut(&id).filter(free) else { return };
            place.starts += 1;
            place.starting = true;
            let rng = rng.fork(place.starts);
            let (disk, behaviour, drift_permille) = (place.disk.clone(), place.behaviour, place.drift_permille);
            (Setup { id, disk, rng, drift_permille, behaviour, compact_entries }, place.starts)
        };
        let world = self.clone();
        let drift = setup.drift_permille;
        let scope = Scope::new(drift, move |what| world.fail(format!("a task of n{id} panicked: {what}")));
        let (sender, started) = tokio::sync::oneshot::channel();
        let world = self.clone();
        let inside = scope.clone();
        // Within the scope, so that what openraft spawns belongs to the node.
        scope.spawn(async move { drop(sender.send(Node::start(setup, inside, world).await)) });
        let started = started.await;
        if let Some(place) = locked(&self.inner).places.get_mut(&id) {
            place.starting = false;
        }
        match started {
            Ok(Ok(node)) => {
                self.note(|| format!("n{id} start {starts} at {:?}", node.state.view().applied.map(|id| id.index)));
                self.net.join(id, node.peer());
                let node_durable = node.state.durable().0.map(|id| id.index);
                if let Some(place) = locked(&self.inner).places.get_mut(&id) {
                    place.node = Some(node);
                    place.seen = None;
                    place.durable = node_durable;
                }
                self.look(id);
            }
            // Without a snapshot alone a node goes on: it writes another one.
            Ok(Err(why))
                if self.plan.damage.is_some_and(|damage| !matches!(damage, Damage::Row | Damage::Snapshot))
                    && self.is_damaged(id) =>
            {
                self.note(|| format!("n{id} is lost: {why}"));
                if let Some(place) = locked(&self.inner).places.get_mut(&id) {
                    place.lost = Some(why);
                }
            }
            Ok(Err(why)) => self.fail(format!("n{id} cannot start: {why}")),
            Err(_) => self.fail(format!("n{id} ended while it started")),
        }
    }

    /// The machine loses power: the node is gone, and what was not synced may be.
    pub(super) fn crash(&self, id: u64) {
        let (node, disk, mut rng) = {
            let mut inner = locked(&self.inner);
            let draw = inner.rng.next();
            let Some(place) = inner.places.get_mut(&id) else { return };
            let Some(node) = place.node.take() else { return };
            (node, place.disk.clone(), Rng::new(draw))
        };
        self.note(|| format!("n{id} crash at {}", node.state.view().applied_index()));
        self.net.leave(id);
        self.count(Fault::Crash);
        // The disk first: what the tasks do while they are dropped must not reach it.
        if disk.crash(&mut rng) {
            self.count(Fault::CrashInMerge);
            self.note(|| format!("n{id} was merging packs"));
        }
        node.scope.kill();
    }

    /// Takes a machine away for good.
    pub(super) fn remove_machine(&self, id: u64) {
        self.crash(id);
        let place = locked(&self.inner).places.remove(&id);
        drop(place);
    }

    fn is_damaged(&self, id: u64) -> bool {
        locked(&self.inner).places.get(&id).is_some_and(|place| place.disk.is_damaged())
    }

    /// Machines that refuse to start, because what they had is spoiled.
    pub(super) fn lost(&self) -> Vec<u64> {
        let inner = locked(&self.inner);
        inner.places.iter().filter(|(_, place)| place.lost.is_some()).map(|(id, _)| *id).collect()
    }

    pub(super) fn node(&self, id: u64) -> Option<Node> {
        locked(&self.inner).places.get(&id)?.node.clone()
    }

    pub(super) fn machines(&self) -> Vec<u64> {
        locked(&self.inner).places.keys().copied().collect()
    }

    pub(super) fn running(&self) -> Vec<Node> {
        locked(&self.inner).places.values().filter_map(|place| place.node.clone()).collect()
    }

    /// Changes how a machine behaves, now and after restarts.
    pub(super) fn behave(&self, id: u64, change: impl Fn(&mut Behaviour)) {
        let node = {
            let mut inner = locked(&self.inner);
            let Some(place) = inner.places.get_mut(&id) else { return };
            change(&mut place.behaviour);
            place.node.clone()
        };
        if let Some(node) = node {
            node.behave(change);
        }
    }

    /// The node that leads in the newest term, as far as it knows itself.
    pub(super) fn leader(&self) -> Option<Node> {
        let leads = |node: &Node| {
            let metrics = node.raft.metrics().borrow_watched().clone();
            (metrics.current_leader == Some(node.id)).then_some(metrics.current_term)
        };
        let leaders = self.running().into_iter().filter_map(|node| Some((leads(&node)?, node)));
        leaders.max_by_key(|(term, node)| (*term, node.id)).map(|(_, node)| node)
    }

    // ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Compares what a node has applied since the last look with what the log says.
    pub(super) fn look(&self, id: u64) {
        let Some(node) = self.node(id) else { return };
        let view = node.state.view();
        let Some(applied) = view.applied else { return };
        let seen = {
            let mut inner = locked(&self.inner);
            let Some(place) = inner.places.get_mut(&id) else { return };
            let durable = node.state.durable().0.map(|id| id.index);
            // By a checkpoint, or a snapshot that was installed: both sync all packs and uploads before they commit.
            if durable != place.durable && !mutants::is_on(Mutant::UnsyncedPacks) {
                place.disk.checkpointed();
            }
            place.durable = durable;
            place.seen.replace(applied.index)
        };
        if seen == Some(applied.index) {
            return;
        }
        let result = (|| {
            if seen.is_some_and(|seen| seen > applied.index) {
                return Err(format!("n{id} went back from index {seen:?} to {}", applied.index));
            }
            let entries = entries(&node, seen.map_or(0, |seen| seen + 1), applied);
            let mut inner = locked(&self.inner);
            let oracle = &mut inner.oracle;
            entries.iter().try_for_each(|entry| oracle.learn(id, entry))?;
            let moment = oracle.at(applied.index).ok_or_else(|| {
                format!("n{id} has applied index {}, of which no log entry was ever seen", applied.index)
            })?;
            clock_keeps_pace::check(id, &view, now())?;
            replicas_equal::check(id, &view, moment)?;
            refs_follow_log::check(id, &view, moment)?;
            oracle.check_records(id, &node.state, seen, applied.index)?;
            Ok(())
        })();
        if let Err(what) = result {
            self.fail(what);
        }
        self.note(|| format!("n{id} applied {} {}", applied.index, hex::encode(&view.hash[..4])));
    }
}

/// The entries of this range as the node applied them; none if it came here by a snapshot, when its log may still hold what was never
/// committed. A log that has the last of them has all of them: that is what Raft promises, and what other nodes are compared with.
fn entries(node: &Node, first: u64, last: LogId) -> Vec<Entry> {
    let entries = node.log.look(first, last.index + 1).unwrap_or_default();
    if entries.last().is_some_and(|entry| entry.log_id == last) { entries } else { Vec::new() }
}
