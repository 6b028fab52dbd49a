//! `no_quorum = "serve"` and `"probe"`: what parts do, and that a healed cluster has one owner again.

use std::sync::Arc;

use super::single::{calm, owned, until_owned};
use super::world::{World, address, config, timing};
use crate::*;

fn policy(members: usize, no_quorum: NoQuorum) -> Config {
    let mut config = config(1, members, 0, 6, timing(200, 25));
    config.spec.no_quorum = no_quorum;
    config
}

fn all() -> Vec<std::net::IpAddr> {
    (1..=6).map(address).collect()
}

fn split(world: &mut World, side: &[usize]) {
    for a in 0..world.hosts.len() {
        for b in 0..world.hosts.len() {
            if side.contains(&a) != side.contains(&b) {
                world.net.cut.insert((a, b));
            }
        }
    }
}

/// Every address is answered for by exactly one of these.
fn served_by(world: &World, part: &[usize]) -> Result<(), String> {
    for address in all() {
        let here: Vec<usize> = world.owners(address).into_iter().filter(|node| part.contains(node)).collect();
        if here.len() != 1 {
            return Err(format!("{address} has {here:?} in {part:?}"));
        }
    }
    Ok(())
}

#[test]
fn every_part_serves_and_a_heal_leaves_one_owner() {
    for seed in 0..12 {
        for (members, side) in [(4, vec![0, 1]), (5, vec![1, 3]), (2, vec![0]), (3, vec![2])] {
            let mut world = calm(seed, policy(members, NoQuorum::Serve));
            world.watch.overlap_allowed = true;
            let other: Vec<usize> = (0..members).filter(|node| !side.contains(node)).collect();
            split(&mut world, &side);
            world.run_ms(1_500);
            served_by(&world, &side).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            served_by(&world, &other).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            assert!(world.watch.overlaps > 0, "both sides should serve");
            let apart = (0..members).filter(|node| world.hosts[*node].core.as_ref().unwrap().serves_apart().is_some());
            assert!(apart.count() >= side.len().min(other.len()), "status says two owners are possible");
            world.net.cut.clear();
            world.run_ms(1_500);
            let everyone: Vec<usize> = (0..members).collect();
            world.covered(&everyone).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            world.watch.overlap_allowed = false;
            world.run_ms(2_000);
            world.verdict().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
    }
}

#[test]
fn a_survivor_keeps_its_own_without_a_gap() {
    let mut world = calm(3, policy(2, NoQuorum::Serve));
    let own = owned(&world, 0);
    world.crash(1);
    world.watch.changed.clear();
    until_owned(&mut world, &all());
    assert!(!world.watch.changed.iter().any(|(_, address)| own.contains(address)), "its own never went off");
    world.verdict().unwrap();
}

/// Lets time pass while these hosts see other stations on their network.
fn run_seeing(world: &mut World, ms: u64, seeing: &[usize]) {
    for _ in 0..ms / 20 {
        for node in seeing {
            world.event(*node, Event::NetworkSeen);
        }
        world.run_ms(20);
    }
}

#[test]
fn of_two_the_survivor_takes_what_nobody_answers_for() {
    for seed in 0..12 {
        let mut world = calm(seed, policy(2, NoQuorum::Probe));
        let own = owned(&world, 0);
        world.watch.changed.clear();
        world.crash(1);
        run_seeing(&mut world, 1_000, &[0]);
        served_by(&world, &[0]).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert!(!world.watch.changed.iter().any(|(_, address)| own.contains(address)), "its own never went off");
        world.start(1);
        run_seeing(&mut world, 4_000, &[0, 1]);
        world.covered(&[0, 1]).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        world.verdict().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn of_two_that_lost_each_other_on_one_segment_neither_takes_the_others() {
    let mut world = calm(7, policy(2, NoQuorum::Probe));
    let (first, second) = (owned(&world, 0), owned(&world, 1));
    // Their packets to each other are lost, but each answers for its addresses on the segment.
    world.net.cut = [(0, 1), (1, 0)].into();
    world.probes_cross_cuts = true;
    run_seeing(&mut world, 2_000, &[0, 1]);
    assert_eq!((owned(&world, 0), owned(&world, 1)), (first, second));
    world.net.cut.clear();
    run_seeing(&mut world, 2_000, &[0, 1]);
    world.covered(&[0, 1]).unwrap();
    world.verdict().unwrap();
}

#[test]
fn one_that_lost_everybody_releases_everything() {
    let mut world = calm(9, policy(2, NoQuorum::Probe));
    world.net.cut = [(0, 1), (1, 0)].into();
    run_seeing(&mut world, 1_500, &[1]);
    assert!(world.hosts[0].on.is_empty(), "it sees nobody");
    served_by(&world, &[1]).unwrap();
    world.verdict().unwrap();
}

#[test]
fn nobody_serves_apart_who_was_not_told_to() {
    let mut world = calm(11, policy(4, NoQuorum::Stop));
    split(&mut world, &[0, 1]);
    world.run_ms(2_000);
    assert!(world.hosts.iter().all(|host| host.on.is_empty()));
    let mut one = World::new(1, 1, Arc::new(policy(1, NoQuorum::Stop)));
    one.start(0);
    one.run_ms(2_000);
    served_by(&one, &[0]).unwrap();
}
