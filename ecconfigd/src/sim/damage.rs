//! What spoils what was safe on a disk: bits that flip in the log, the database or a pack, and a row that no entry wrote.
//!
//! One node of a run is struck, once: that much a group of three can bear. It has to notice by itself, step aside, and be as the others in the
//! end; or, where its log is spoiled, to refuse to start with words, and then it is taken out.

use std::sync::atomic::Ordering;

use super::cluster::World;
use super::disk::{Disk, files};
use super::faults::Fault;
use super::node::Node;
use super::rng::Rng;
use super::runtime::sleep_us;

/// What is spoiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// A row appears in the table of a node that runs.
    Row,
    /// A bit of the database's file flips.
    Database,
    /// A bit of the log flips, before the group that was synced last.
    Log,
    /// A bit of the newest snapshot flips.
    Snapshot,
    /// A bit of the database and one of the newest snapshot flip.
    Both,
    /// A bit of a pack or its index flips.
    Pack,
}

impl Damage {
    /// The last one needs packs.
    pub(super) const ALL: [Damage; 6] =
        [Damage::Row, Damage::Database, Damage::Log, Damage::Snapshot, Damage::Both, Damage::Pack];

    /// Nodes that have what is to be spoiled.
    fn victims(self, world: &World) -> Vec<Node> {
        let leader = world.leader().map(|node| node.id);
        let possible = |node: &Node| match self {
            // A snapshot of a leader that has not noticed yet would bring its row to others.
            Damage::Row => Some(node.id) != leader,
            Damage::Snapshot | Damage::Both => node.disk.dir.join("snapshot").exists(),
            Damage::Database | Damage::Log | Damage::Pack => true,
        };
        let sound = world.running().into_iter().filter(|node| !node.disk.volume().is_broken());
        sound.filter(possible).collect()
    }

    pub(super) fn fault(self) -> Fault {
        match self {
            Damage::Row => Fault::Row,
            Damage::Database => Fault::Database,
            Damage::Log => Fault::Log,
            Damage::Snapshot => Fault::Snapshot,
            Damage::Both => Fault::Both,
            Damage::Pack => Fault::Pack,
        }
    }

    /// What happens in a run; in most nothing.
    pub(super) fn of(seed: u64, objects: bool) -> Option<Damage> {
        let mut rng = Rng::new(seed).fork(9);
        if !rng.chance(if objects { 500 } else { 120 }) {
            return None;
        }
        let all = Damage::ALL;
        rng.pick(if objects { &all } else { &all[..5] }).copied()
    }
}

/// Strikes once while the run is busy.
pub(super) async fn strike(world: World) {
    let Some(damage) = world.plan.damage else { return };
    let mut rng = Rng::new(world.plan.seed).fork(6);
    sleep_us(rng.between(world.plan.busy_ms / 4, world.plan.busy_ms) * 1000).await;
    let victim = loop {
        if world.stopping() {
            return;
        }
        if let Some(victim) = rng.pick(&damage.victims(&world)).cloned() {
            break victim;
        }
        sleep_us(20_000).await;
    };
    let (id, disk) = (victim.id, victim.disk.clone());
    if damage == Damage::Row {
        disk.damaged.store(true, Ordering::Relaxed);
        victim.state.spoil_table();
        world.count(Fault::Row);
        return world.note(|| format!("n{id} has a row that nobody wrote"));
    }
    drop(victim);
    world.crash(id);
    let what = disk.flip(damage, &mut rng);
    if disk.is_damaged() {
        world.count(damage.fault());
    }
    world.note(|| format!("n{id}: {what}"));
    sleep_us(rng.between(5, 300) * 1000).await;
    if !world.stopping() {
        world.start(id).await;
    }
}

impl Disk {
    /// Flips a bit; answers where.
    fn flip(&self, damage: Damage, rng: &mut Rng) -> String {
        let what = match damage {
            Damage::Row => None,
            Damage::Database => self.volume().flip(rng).map(|at| format!("the database at {at}")),
            Damage::Log => self.flip_log(rng),
            Damage::Snapshot => self.flip_snapshot(rng),
            Damage::Both => {
                let database = self.volume().flip(rng).map(|at| format!("the database at {at}"));
                let snapshot = self.flip_snapshot(rng);
                database.map(|database| [database].into_iter().chain(snapshot).collect::<Vec<_>>().join(" and "))
            }
            Damage::Pack => self.flip_pack(rng),
        };
        self.damaged.store(what.is_some(), Ordering::Relaxed);
        what.map_or_else(|| "nothing to flip".into(), |what| format!("a bit flips in {what}"))
    }

    /// Where it is told from a torn write: some later group says that this was synced.
    fn flip_log(&self, rng: &mut Rng) -> Option<String> {
        let (segment, end) = self.log_synced_before();
        let path = self.dir.join("raft").join(format!("{segment:016}.seg"));
        let at = rng.between(32, end.checked_sub(1).filter(|last| *last > 32)?);
        flip_file(&path, at, rng)?;
        Some(format!("segment {segment} of the log at {at}"))
    }

    fn flip_snapshot(&self, rng: &mut Rng) -> Option<String> {
        let path = self.dir.join("snapshot");
        let at = rng.between(0, std::fs::metadata(&path).ok()?.len().checked_sub(1)?);
        flip_file(&path, at, rng)?;
        Some(format!("the snapshot at {at}"))
    }

    fn flip_pack(&self, rng: &mut Rng) -> Option<String> {
        let stores = files(&self.dir.join("repos"));
        let packs: Vec<_> = stores.iter().flat_map(|store| files(&store.join("objects/pack"))).collect();
        let path = rng.pick(&packs)?;
        let at = rng.between(0, std::fs::metadata(path).ok()?.len().checked_sub(1)?);
        flip_file(path, at, rng)?;
        Some(format!("{} at {at}", path.file_name()?.to_str()?))
    }
}

fn flip_file(path: &std::path::Path, at: u64, rng: &mut Rng) -> Option<()> {
    let mut bytes = std::fs::read(path).ok()?;
    *bytes.get_mut(usize::try_from(at).ok()?)? ^= 1 << rng.between(0, 7);
    // A file of its own: merged packs are linked elsewhere.
    std::fs::remove_file(path).ok()?;
    std::fs::write(path, bytes).ok()
}
