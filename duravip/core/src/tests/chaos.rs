//! Faults by seed, several at once: times of chaos, then calm, then a look at what came of it.
//!
//! `DURAVIP_SEED=n` replays one seed with everything that happened; `DURAVIP_SEEDS=n` runs that many.

use std::sync::Arc;

use super::world::{World, address, config, timing};
use crate::*;

/// What may happen to a world.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Start(usize),
    Crash(usize),
    LoseDisk(usize),
    Kill(usize, bool),
    Pause(usize),
    Resume(usize),
    Cut(Vec<(usize, usize)>),
    Mend(Vec<(usize, usize)>),
    Loss(u64),
    Delay(u64),
    Leave(usize),
    Configure(usize, Arc<Config>),
    Order(usize, Order),
    Failing(usize, bool),
    Unable(usize, bool),
    Lost(usize),
}

/// Which faults a seed draws from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mix {
    /// Everything.
    Usual,
    /// Whole sets of voters change at once, between cuts.
    Voters,
    /// Leases become longer and shorter while members are cut off.
    Leases,
    /// Daemons die and come back at once, and their guards' word comes late.
    Guards,
    /// Some hear each other, some do not, and packets come late.
    Tangle,
}

impl Mix {
    pub(crate) fn of(seed: u64) -> Self {
        match seed % 8 {
            4 => Self::Voters,
            5 => Self::Leases,
            6 => Self::Guards,
            7 => Self::Tangle,
            _ => Self::Usual,
        }
    }
}

impl World {
    pub(crate) fn inflict(&mut self, fault: Fault) {
        self.say(|| format!("== {fault:?}"));
        match fault {
            Fault::Start(node) => self.start(node),
            Fault::Crash(node) => self.crash(node),
            Fault::LoseDisk(node) => {
                self.crash(node);
                self.hosts[node].disk = None;
            }
            Fault::Kill(node, guard) => self.kill(node, guard),
            Fault::Pause(node) => self.pause(node),
            Fault::Resume(node) => self.resume(node),
            Fault::Cut(links) => self.net.cut.extend(links),
            Fault::Mend(links) => links.iter().for_each(|link| {
                self.net.cut.remove(link);
            }),
            Fault::Loss(percent) => self.net.loss_percent = percent,
            Fault::Delay(most_us) => self.net.delay_us.1 = most_us,
            Fault::Leave(node) => self.event(node, Event::Leave),
            Fault::Configure(node, config) => self.configure(node, config),
            Fault::Order(node, order) => self.event(node, Event::Order(1, order)),
            Fault::Failing(node, yes) => {
                let checks = yes.then(|| "check".to_owned()).into_iter().collect();
                self.event(node, Event::Failing(checks));
            }
            Fault::Unable(node, yes) => {
                let unable = yes.then_some((address(1), Cannot::NoInterface)).into_iter().collect();
                self.event(node, Event::Unable(unable));
            }
            Fault::Lost(node) => {
                let on: Vec<_> = self.hosts[node].on.iter().copied().take(1).collect();
                for lost in &on {
                    self.hosts[node].on.remove(lost);
                }
                self.event(node, Event::Lost(on));
            }
        }
    }

    /// One random fault of a mix, with its end.
    fn mixed(&mut self, mix: Mix, within_us: u64, configs: &mut Configs) {
        let nodes = self.hosts.len() as u64;
        let node = self.range(0, nodes) as usize;
        let at = self.range(0, within_us);
        let hold = self.range(20_000, 600_000);
        if mix == Mix::Usual || self.percent(25) {
            return self.mischief(within_us, configs);
        }
        match mix {
            Mix::Usual => {}
            Mix::Voters | Mix::Leases => {
                if self.percent(50) {
                    let new = if mix == Mix::Voters { configs.voters(self) } else { configs.lease(self) };
                    for node in 0..self.hosts.len() {
                        let later = self.range(0, 60_000);
                        self.schedule(at + later, Fault::Configure(node, new.clone()));
                    }
                    // Cut in the middle of it.
                    let side = self.random();
                    let oneway = mix == Mix::Leases && self.percent(70);
                    let links = self.links(|a, b| {
                        let apart = (side >> a & 1) != (side >> b & 1);
                        if oneway { a == node } else { apart }
                    });
                    let before = self.range(0, 60_000);
                    let cut_at = (at + before).saturating_sub(20_000);
                    self.schedule(cut_at, Fault::Cut(links.clone()));
                    self.schedule(cut_at + hold, Fault::Mend(links));
                }
            }
            Mix::Guards => {
                self.schedule(at.saturating_sub(5_000), Fault::Delay(90_000));
                self.schedule(at, Fault::Kill(node, true));
                let back = self.range(8_000, 20_000);
                self.schedule(at + back - 1, Fault::Delay(300));
                self.schedule(at + back, Fault::Start(node));
            }
            Mix::Tangle => {
                let other = (node + 1 + self.range(0, nodes) as usize) % nodes as usize;
                let third = self.range(0, nodes) as usize;
                let mut links = vec![(node, other), (other, node)];
                if self.percent(40) {
                    links.push((node, third));
                }
                let late = self.range(20_000, 70_000);
                let lost = self.range(0, 60);
                self.schedule(at, Fault::Cut(links.clone()));
                self.schedule(at, Fault::Delay(late));
                self.schedule(at, Fault::Loss(lost));
                self.schedule(at + hold, Fault::Mend(links));
                self.schedule(at + hold, Fault::Loss(0));
                self.schedule(at + hold, Fault::Delay(400));
            }
        }
    }

    /// One random fault, with its end.
    fn mischief(&mut self, within_us: u64, configs: &mut Configs) {
        let nodes = self.hosts.len() as u64;
        let node = self.range(0, nodes) as usize;
        let at = self.range(0, within_us);
        let hold = self.range(5_000, 1_500_000);
        let short = self.range(5_000, 400_000);
        match self.range(0, 22) {
            0 | 1 => {
                self.schedule(at, Fault::Crash(node));
                self.schedule(at + hold, Fault::Start(node));
            }
            2 | 3 => {
                let guard = self.percent(60);
                self.schedule(at, Fault::Kill(node, guard));
                let back = if self.percent(50) { short } else { hold };
                self.schedule(at + back, Fault::Start(node));
            }
            4..=6 => {
                self.schedule(at, Fault::Pause(node));
                let back = if self.percent(50) { short } else { hold };
                self.schedule(at + back, Fault::Resume(node));
            }
            7..=9 => {
                let side = self.random();
                let apart = |a: usize, b: usize| (side >> a & 1) != (side >> b & 1);
                let links = self.links(apart);
                self.schedule(at, Fault::Cut(links.clone()));
                self.schedule(at + hold, Fault::Mend(links));
            }
            10..=12 => {
                let choice = self.random();
                let links = self.links(|a, b| choice >> (a * 7 + b) & 1 == 1 && choice >> 60 & 1 == 1 || a == node);
                let links = if self.percent(50) { links } else { links.into_iter().map(|(a, b)| (b, a)).collect() };
                self.schedule(at, Fault::Cut(links.clone()));
                self.schedule(at + hold, Fault::Mend(links));
            }
            13 => {
                let percent = self.range(5, 50);
                self.schedule(at, Fault::Loss(percent));
                self.schedule(at + hold, Fault::Loss(0));
            }
            14 => {
                let most = self.range(1_000, 80_000);
                self.schedule(at, Fault::Delay(most));
                self.schedule(at + hold, Fault::Delay(400));
            }
            15 => {
                self.schedule(at, Fault::Leave(node));
                self.schedule(at + 100_000 + hold, Fault::Start(node));
            }
            16 | 17 => {
                let new = configs.next(self);
                for node in 0..self.hosts.len() {
                    let later = self.range(0, 300_000);
                    if self.percent(85) {
                        self.schedule(at + later, Fault::Configure(node, new.clone()));
                    }
                }
            }
            18 => {
                let to = MemberId(self.range(1, nodes + 1));
                let order = match self.range(0, 4) {
                    0 => Order::Move(address(2), to),
                    1 => Order::Unpin(address(2)),
                    2 => Order::Drain(to),
                    _ => Order::Undrain(to),
                };
                self.schedule(at, Fault::Order(node, order));
            }
            19 => {
                self.schedule(at, Fault::Failing(node, true));
                self.schedule(at + hold, Fault::Failing(node, false));
            }
            20 => {
                self.schedule(at, Fault::Unable(node, true));
                self.schedule(at + hold, Fault::Unable(node, false));
            }
            _ => self.schedule(at, Fault::Lost(node)),
        }
    }

    fn links(&self, cut: impl Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
        let nodes = self.hosts.len();
        let all = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
        all.filter(|(a, b)| a != b && cut(*a, *b)).collect()
    }

    /// Everything is mended.
    pub(crate) fn calm(&mut self, newest: &Arc<Config>) {
        self.say(|| "== calm".to_owned());
        let plumb_us = self.plumb_us;
        self.net = super::world::Net::good();
        self.plumb_us = plumb_us;
        self.die_at_disk_percent = 0;
        self.forget_faults();
        for node in 0..self.hosts.len() {
            self.resume(node);
            if self.hosts[node].core.as_ref().is_some_and(|core| core.leaving) {
                self.crash(node);
            }
            self.start(node);
            self.configure(node, newest.clone());
            self.event(node, Event::Failing(Default::default()));
            self.event(node, Event::Unable(Default::default()));
        }
    }
}

/// The configurations of a world, one revision after the other.
struct Configs {
    newest: Arc<Config>,
    members: usize,
}

impl Configs {
    fn next(&mut self, world: &mut World) -> Arc<Config> {
        let mut next = self.revision();
        match world.range(0, 5) {
            0 => {
                let last = world.range(1, 9) as u8;
                if next.spec.vips.remove(&address(last)).is_none() {
                    next.spec.vips.insert(address(last), VipSpec::default());
                }
            }
            1 => {
                let leases = [(200, 25), (300, 40), (100, 12), (600, 60)];
                let (lease, beat) = leases[world.range(0, 4) as usize];
                next.timing = timing(lease, beat);
            }
            2 if self.members > 2 => {
                // One member more or less, never the last but one.
                let member = MemberId(world.range(1, self.members as u64 + 1));
                let known = self.full(&member);
                if next.spec.members.remove(&member).is_none() || next.spec.members.len() < 2 {
                    next.spec.members.insert(member, known);
                }
            }
            3 => {
                let preferred = MemberId(world.range(1, self.members as u64 + 1));
                for (number, vip) in next.spec.vips.values_mut().enumerate() {
                    vip.placement = if number % 2 == 0 { Placement::Preferred(preferred) } else { Placement::Elected };
                }
            }
            _ => {
                let checked = world.percent(50);
                for vip in next.spec.vips.values_mut() {
                    vip.checks = checked.then(|| "check".to_owned()).into_iter().collect();
                }
            }
        }
        self.newest = Arc::new(next);
        self.newest.clone()
    }

    /// Any set of voters.
    fn voters(&mut self, world: &mut World) -> Arc<Config> {
        let mut next = self.revision();
        let set = world.random();
        next.spec.members.clear();
        for number in 1..=self.members as u64 {
            let member = MemberId(number);
            if set >> number & 1 == 1 || number == 1 + set % self.members as u64 {
                next.spec.members.insert(member, self.full(&member));
            }
        }
        self.newest = Arc::new(next);
        self.newest.clone()
    }

    /// Much longer or much shorter leases.
    fn lease(&mut self, world: &mut World) -> Arc<Config> {
        let mut next = self.revision();
        let (lease, beat) = [(80, 10), (600, 60), (300, 40)][world.range(0, 3) as usize];
        next.timing = timing(lease, beat);
        self.newest = Arc::new(next);
        self.newest.clone()
    }

    fn revision(&self) -> Config {
        let mut next = (*self.newest).clone();
        let revision = next.id.revision + 1;
        next.id = ConfigId { revision, commit: [revision as u8; 32] };
        next
    }

    fn full(&self, member: &MemberId) -> MemberSpec {
        MemberSpec { name: member.to_string(), weight: 1, labels: Default::default(), witness: false }
    }
}

/// One world from beginning to end.
pub(crate) fn run(seed: u64, log: bool) -> (World, Result<(), String>) {
    let mut dice = World::new(seed, 1, Arc::new(config(1, 1, 0, 1, timing(200, 25))));
    let members = [3, 3, 3, 5, 4, 2, 7, 1, 6][dice.range(0, 9) as usize];
    let witnesses = usize::from(members > 1 && dice.percent(20));
    let (lease, beat) = [(200, 25), (300, 40), (80, 10)][dice.range(0, 3) as usize];
    let first = Arc::new(config(1, members, witnesses, 6, timing(lease, beat)));
    let mut configs = Configs { newest: first.clone(), members };
    let mut world = World::new(seed, members, first);
    world.strangers = seed.is_multiple_of(2) || Mix::of(seed) == Mix::Tangle;
    world.log = log.then(Vec::new);
    for node in 0..members {
        world.schedule(0, Fault::Start(node));
    }
    world.run_ms(1_500);
    let mut result = check(&mut world, "at the start");
    for round in 0..2 {
        if result.is_err() {
            break;
        }
        world.die_at_disk_percent = 3;
        // A minority of the voters may lose its disks; in this mix one member may be all of them.
        if members > 2 && Mix::of(seed) != Mix::Voters && world.percent(25) {
            let node = world.range(0, members as u64) as usize;
            world.schedule(100_000, Fault::LoseDisk(node));
            world.schedule(160_000, Fault::Start(node));
        }
        let mix = Mix::of(seed);
        for _ in 0..world.range(3, 9) {
            world.mixed(mix, 1_800_000, &mut configs);
        }
        world.run_ms(2_000);
        world.calm(&configs.newest);
        let longest: u64 = 600;
        world.run_ms(longest * 4 + 600);
        result = check(&mut world, &format!("after chaos {round}"));
    }
    (world, result)
}

/// The members of the newest configuration are covered, and nothing forbidden was seen.
fn check(world: &mut World, when: &str) -> Result<(), String> {
    world.verdict()?;
    let members: Vec<usize> = (0..world.hosts.len())
        .filter(|node| {
            let host = &world.hosts[*node];
            host.config.spec.members.contains_key(&host.id)
        })
        .collect();
    // A leader may be giving addresses back right now; that takes a moment each time, and ends.
    let mut last = Ok(());
    for _ in 0..40 {
        last = world.covered(&members);
        if last.is_ok() {
            break;
        }
        world.run_ms(37);
    }
    world.verdict()?;
    last.map_err(|why| format!("{when}: {why}"))
}

pub(crate) fn seeds(default: u64) -> u64 {
    std::env::var("DURAVIP_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

/// Runs a range of seeds and prints the first that fails, for replay.
fn run_seeds(from: u64, to: u64) {
    if let Some(seed) = std::env::var("DURAVIP_SEED").ok().and_then(|seed| seed.parse().ok()) {
        let (world, result) = run(seed, true);
        for line in world.log.unwrap_or_default() {
            println!("{line}");
        }
        panic!("seed {seed}: {result:?}");
    }
    let failed: Vec<String> =
        (from..to).filter_map(|seed| Some(format!("seed {seed}: {}", run(seed, false).1.err()?))).collect();
    let replay = "replay one: DURAVIP_SEED=… cargo test -p duravip-core chaos::one -- --nocapture";
    assert!(failed.is_empty(), "{} of {}, {replay}\n{}", failed.len(), to - from, failed.join("\n"));
}

#[test]
fn one() {
    run_seeds(0, seeds(400));
}

#[test]
fn two() {
    run_seeds(1_000_000, 1_000_000 + seeds(400));
}

#[test]
fn a_seed_is_one_history() {
    let log = |seed| run(seed, true).0.log.unwrap();
    for seed in [3, 17] {
        assert!(log(seed) == log(seed), "seed {seed} ran differently the second time");
    }
}
