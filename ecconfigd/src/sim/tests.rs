#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Instant;

use super::damage::Damage;
use super::faults::{Counts, Fault};
use super::mutants::Mutant;
use super::net::Weather;
use super::plan::Plan;
use super::run::{Report, run};

/// Seeds of one test in CI; four tests share the work, so that both cores have something to do.
const SEEDS: u64 = 500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn describe(report: &Report) -> String {
    let what = report.failure.as_deref().unwrap_or("nothing");
    format!(
        "\n{}\n\nseed {}: {what}\nreplay it with ECC_SIM_SEED={} cargo test -p ecconfigd --lib sim::tests::one_seed -- --nocapture\n",
        report.lines.join("\n"),
        report.seed,
        report.seed
    )
}

fn passes(seed: u64) -> Report {
    let report = run(Plan::new(seed), None);
    assert!(report.failure.is_none(), "{}", describe(&report));
    report
}

/// Every fourth seed from `first` on.
fn seeds(first: u64) {
    let start = number("ECC_SIM_START").unwrap_or(0);
    let count = number("ECC_SIM_SEEDS").map_or(SEEDS, |all| all.div_ceil(4));
    let (began, mut acks, mut reads, mut events, mut virtual_ms) = (Instant::now(), 0, 0, 0, 0);
    let mut faults = Counts::new();
    for seed in (0..count).map(|at| start + at * 4 + first) {
        let report = passes(seed);
        acks += report.acks;
        reads += report.reads;
        events += report.events;
        virtual_ms += report.virtual_ms;
        report.faults.into_iter().for_each(|(fault, times)| *faults.entry(fault).or_default() += times);
    }
    println!(
        "{count} seeds in {:.1} s: {} s of cluster time, {acks} commits acknowledged, {reads} fresh reads, {events} events",
        began.elapsed().as_secs_f64(),
        virtual_ms / 1000
    );
    println!("{faults:?}");
    let never: Vec<_> = Fault::COMMON.into_iter().filter(|fault| !faults.contains_key(fault)).collect();
    assert!(never.is_empty() || count < SEEDS, "these faults never happened: {never:?}");
}

#[test]
fn seeds_0() {
    seeds(0);
}

#[test]
fn seeds_1() {
    seeds(1);
}

#[test]
fn seeds_2() {
    seeds(2);
}

#[test]
fn seeds_3() {
    seeds(3);
}

/// Every kind of damage strikes, and is survived.
#[test]
fn every_damage_is_survived() {
    for damage in Damage::ALL {
        let plan =
            |seed| Plan { damage: Some(damage), objects: damage == Damage::Pack, busy_ms: 900, ..Plan::new(seed) };
        let struck = (0..20).find(|seed| {
            let report = run(plan(*seed), None);
            assert!(report.failure.is_none(), "{damage:?}: {}", describe(&report));
            report.faults.contains_key(&damage.fault())
        });
        println!("{damage:?} strikes with seed {struck:?}");
        assert!(struck.is_some(), "{damage:?} never struck");
    }
}

/// A seed by hand, with everything that happens.
#[test]
fn one_seed() {
    let Some(seed) = number("ECC_SIM_SEED") else { return };
    let mutant = std::env::var("ECC_SIM_MUTANT").ok();
    let mutant = mutant.map(|name| Mutant::ALL.into_iter().find(|m| format!("{m:?}") == name).unwrap());
    let plan = mutant.map_or_else(|| Plan::new(seed), |mutant| with_a_bug(seed, mutant));
    let report = run(Plan { verbose: true, ..plan }, mutant);
    println!("digest {:016x}", report.digest);
    assert!(report.failure.is_none(), "{}", describe(&report));
}

/// The same seed is the same run, to the nanosecond and the byte.
#[test]
fn a_seed_replays() {
    for seed in 0..16 {
        let (first, second) = (run(Plan::new(seed), None), run(Plan::new(seed), None));
        let differs = first.lines.iter().zip(&second.lines).find(|(a, b)| a != b);
        assert_eq!(first.digest, second.digest, "seed {seed} differs, first in {differs:?}");
    }
}

/// Longer than usual, and with what the bug is about: it is looked for once, and the first seeds should find it.
fn with_a_bug(seed: u64, mutant: Mutant) -> Plan {
    let plan = Plan { busy_ms: 1500, ..Plan::new(seed) };
    match mutant {
        Mutant::UnsyncedPacks | Mutant::MergesUnsynced | Mutant::RemovesFirst => Plan { objects: true, ..plan },
        Mutant::TrustsPacks => Plan { objects: true, damage: Some(Damage::Pack), ..plan },
        Mutant::TrustsPages => Plan { damage: Some(Damage::Database), ..plan },
        Mutant::TrustsSnapshots => Plan { damage: Some(Damage::Snapshot), ..plan },
        // Answers have to get lost.
        Mutant::RepeatsAll | Mutant::TooSure => {
            Plan { weather: Weather { loss_permille: 150, ..plan.weather.clone() }, ..plan }
        }
        Mutant::NeverDoubts => Plan { damage: Some(Damage::Row), ..plan },
        _ => plan,
    }
}

/// Every bug is found within the seeds of CI.
#[test]
fn every_mutant_is_caught() {
    let only = std::env::var("ECC_SIM_MUTANT").ok();
    for mutant in Mutant::ALL {
        if only.as_ref().is_some_and(|only| *only != format!("{mutant:?}")) {
            continue;
        }
        let began = Instant::now();
        let caught = (0..4 * SEEDS).find_map(|seed| {
            let report = run(with_a_bug(seed, mutant), Some(mutant));
            report.failure.map(|what| (seed, what))
        });
        let (seed, what) = caught.unwrap_or_else(|| panic!("{mutant:?} was not caught by any seed"));
        println!("{mutant:?} caught by seed {seed} in {:.1} s: {what}", began.elapsed().as_secs_f64());
    }
}
