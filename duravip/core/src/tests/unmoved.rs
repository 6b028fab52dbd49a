//! Deaths, one after the other, in worlds that were at rest, over networks at their worst: a leader's as often as not, with
//! or without a guard's word, and sleeps that cost a leader its office and nobody anything else.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::chaos::seeds;
use super::invariants::Owners;
use super::world::{Host, World, config, timing};
use crate::action::Notice;
use crate::rules::{Rule, broken};
use crate::*;

/// How a member falls silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Silence {
    Crash,
    Guard,
    Kill,
    Freeze,
    /// Shorter than a lease: whoever leads loses its office, and keeps its addresses.
    Nap,
}

fn leader(world: &World) -> Option<usize> {
    let leads = |host: &Host| !host.paused && host.core.as_ref().is_some_and(|core| core.cluster.lead().is_some());
    world.hosts.iter().position(leads)
}

/// Waits until the leader knows of nothing to move.
fn rest(world: &mut World) -> Result<(), String> {
    for _ in 0..300 {
        let resting = world.hosts.iter().enumerate().any(|(node, host)| {
            let core = host.core.as_ref().filter(|_| !host.paused);
            core.is_some_and(|core| core.at_rest(world.local(node)) == Some(true))
        });
        if resting {
            // What has been decided is still carried out.
            world.run_ms(100);
            return Ok(());
        }
        world.run_ms(20);
    }
    Err("it never comes to rest".to_owned())
}

/// One world with its deaths. How many were looked at: one in which a living member's lease ended means nothing.
fn deaths(seed: u64, log: bool) -> (World, Result<usize, String>) {
    let mut dice = World::new(seed, 1, Arc::new(config(1, 1, 0, 1, timing(200, 25))));
    let members = [3, 3, 4, 5, 7][dice.range(0, 5) as usize];
    let witnesses = usize::from(members > 3 && dice.percent(25));
    let addresses = dice.range(4, 25) as usize;
    let (lease, beat) = [(200, 25), (300, 40), (1500, 187)][dice.range(0, 3) as usize];
    let config = Arc::new(config(1, members, witnesses, addresses, timing(lease, beat)));
    let mut world = World::new(seed, members, config.clone());
    world.log = log.then(Vec::new);
    world.plumb_us = (50, 1000);
    (0..members).for_each(|node| world.start(node));
    world.run_ms(2_500 + lease * 2);
    let mut dead = BTreeSet::new();
    let mut looked_at = 0;
    // A majority stays.
    for _ in 0..(members - 1) / 2 {
        match death(&mut world, &config, lease, &mut dead) {
            Ok(true) => looked_at += 1,
            Ok(false) => break,
            Err(why) => return (world, Err(why)),
        }
    }
    (world, Ok(looked_at))
}

fn death(world: &mut World, config: &Config, lease: u64, dead: &mut BTreeSet<usize>) -> Result<bool, String> {
    rest(world)?;
    let before: Owners = world.sole_owners(config.spec.vips.keys().copied())?;
    world.watch.changed.clear();
    world.notices.clear();
    world.net.loss_percent = [0, 0, 5, 20][world.range(0, 4) as usize];
    world.net.delay_us.1 = [400, 2_000, 15_000][world.range(0, 3) as usize];
    let alive: Vec<usize> = (0..world.hosts.len()).filter(|node| !dead.contains(node)).collect();
    let any = alive[world.range(0, alive.len() as u64) as usize];
    let leader = leader(world).ok_or("nobody leads")?;
    let victim = if world.percent(60) { leader } else { any };
    let how = [Silence::Crash, Silence::Guard, Silence::Guard, Silence::Kill, Silence::Freeze, Silence::Nap];
    let how = how[world.range(0, 6) as usize];
    world.say(|| format!("== n{}: {how:?}", victim + 1));
    match how {
        Silence::Crash => world.crash(victim),
        Silence::Guard | Silence::Kill => world.kill(victim, how == Silence::Guard),
        Silence::Freeze | Silence::Nap => world.pause(victim),
    }
    if how == Silence::Nap {
        let nap_us = world.range(lease * 450, lease * 800);
        world.run_us(nap_us);
        world.resume(victim);
    } else {
        dead.insert(victim);
    }
    world.run_ms(lease * 2);
    world.net = super::world::Net::good();
    // Longer than until the balance looks at everything again.
    world.run_ms(1_500 + lease);
    rest(world)?;
    world.verdict()?;
    let lost =
        |(_, id, notice): &(u64, MemberId, Notice)| *notice == Notice::Lapsed && !dead.contains(&(id.0 as usize - 1));
    if world.notices.iter().any(lost) {
        return Ok(false);
    }
    world.unmoved(&before, dead).map(|()| true)
}

/// The first seed that finds something, and how many deaths were looked at.
fn run_seeds(count: u64) -> (Option<String>, usize) {
    let mut all = 0;
    for seed in 0..count {
        match deaths(seed, false).1 {
            Ok(looked_at) => all += looked_at,
            Err(why) => return (Some(format!("seed {seed}: {why}")), all),
        }
    }
    (None, all)
}

#[test]
fn deaths_move_what_the_dead_had_and_nothing_else() {
    if let Some(seed) = std::env::var("DURAVIP_SEED").ok().and_then(|seed| seed.parse().ok()) {
        let (world, result) = deaths(seed, true);
        world.log.unwrap_or_default().iter().for_each(|line| println!("{line}"));
        panic!("seed {seed}: {result:?}");
    }
    let count = seeds(300);
    let (found, all) = run_seeds(count);
    let replay = "replay it: DURAVIP_SEED=… cargo test -p duravip-core unmoved -- --nocapture";
    assert_eq!(found, None, "{replay}");
    assert!(all as u64 > count, "only {all} deaths in {count} worlds mean anything");
}

#[test]
fn choosing_owners_before_all_have_spoken_is_noticed() {
    let found = broken::with(Some(Rule::HearAllFirst), || run_seeds(seeds(300)).0);
    println!("noticed by {found:?}");
    assert!(found.is_some(), "no seed notices that a leader chooses before all have spoken");
}
