//! What a seed means: everything about a run that is decided before it begins.

use super::damage::Damage;
use super::net::Weather;
use super::rng::Rng;

/// A run.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Prints the trace while it happens.
    pub(super) verbose: bool,
    /// Voters at the beginning.
    pub(super) voters: u64,
    /// Commits with real objects through the Committer; otherwise change sets that name objects nobody has.
    pub(super) objects: bool,
    pub(super) clients: u64,
    /// How long faults and clients go on.
    pub(super) busy_ms: u64,
    /// A client's pause between two requests.
    pub(super) think_us: (u64, u64),
    pub(super) weather: Weather,
    pub(super) sync_us: (u64, u64),
    /// The log is compacted after so many entries.
    pub(super) compact_entries: u64,
    /// The pause between two faults.
    pub(super) calm_ms: (u64, u64),
    /// Members come and go.
    pub(super) membership: bool,
    /// What one of the disks holds is spoiled once.
    pub(super) damage: Option<Damage>,
}

impl Plan {
    pub(super) fn new(seed: u64) -> Plan {
        let mut rng = Rng::new(seed).fork(1);
        let objects = rng.chance(80);
        let slow_net = rng.chance(200);
        let low_us = if slow_net { 2_000 } else { 200 };
        Plan {
            seed,
            verbose: false,
            voters: if rng.chance(150) { 5 } else { 3 },
            objects,
            clients: rng.between(2, 4),
            busy_ms: rng.between(150, 900),
            think_us: (1_000, rng.between(20_000, 80_000)),
            weather: Weather {
                loss_permille: *rng.pick(&[0, 0, 10, 50]).unwrap_or(&0),
                duplicate_permille: *rng.pick(&[0, 20, 200]).unwrap_or(&0),
                delay_us: (low_us, low_us * rng.between(2, 6)),
            },
            sync_us: (100, *rng.pick(&[500, 2_000, 10_000]).unwrap_or(&500)),
            compact_entries: rng.between(6, 40),
            calm_ms: (20, rng.between(60, 300)),
            membership: rng.chance(350),
            damage: Damage::of(seed, objects),
        }
    }
}
