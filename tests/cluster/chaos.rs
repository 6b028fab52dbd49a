//! Five machines under load while everything that breaks machines happens to them, at random, a minority at a time.
//!
//! `ECCLUSTER_CHAOS_SECONDS` says for how long (30 unless told), `ECCLUSTER_CHAOS_SEED` in which order. Real processes do not repeat to the
//! instant, but the same seed does the same things in the same order.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::{Lab, possible};
use crate::load::Load;

/// Xorshift: good enough to pick faults, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// What a machine suffers, and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Killed,
    Stopped,
    Unplugged,
    /// What it sends to another one is lost.
    Cut(String),
    DiskFull,
    /// No voter for a while.
    Demoted,
    /// Its machine burns down; a new one takes its name over.
    Burnt,
    /// It is sent away for good, and comes back as somebody else of the same name.
    Removed,
    Restarted,
}

struct Chaos {
    lab: Lab,
    dice: Dice,
    suffering: Vec<(String, Fault)>,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn a_minority_in_trouble_loses_nothing() {
    if !possible() {
        return;
    }
    let seconds = number("ECCLUSTER_CHAOS_SECONDS", 30);
    let seed = number("ECCLUSTER_CHAOS_SEED", 1).max(1);
    eprintln!("ECCLUSTER_CHAOS_SECONDS={seconds} ECCLUSTER_CHAOS_SEED={seed}");
    let mut lab = Lab::cluster(3);
    // One machine whose clock is two hours ahead, one with a small disk.
    let token = lab.token();
    lab.add("n4");
    lab.machine_mut("n4").clock = Some("+2h");
    lab.join_with("n4", &token, &[]);
    let token = lab.token();
    lab.add("n5");
    lab.mount("n5", 320);
    lab.join_with("n5", &token, &[]);
    for name in ["n4", "n5"] {
        lab.start(name);
        lab.wait_ready(name);
    }
    lab.wait_voters(5);

    let load = Load::start(&lab, 4);
    let mut chaos = Chaos { lab, dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)), suffering: Vec::new() };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        chaos.lab.restart_what_ended();
        chaos.step();
        let pause = 200 + chaos.dice.below(800) as u64;
        // The faults' own rhythm, not a wait for something.
        std::thread::sleep(Duration::from_millis(pause));
    }
    while !chaos.suffering.is_empty() {
        chaos.recover(0);
    }
    let mut lab = chaos.lab;
    crate::support::eventually("everybody is ready", || {
        lab.restart_what_ended();
        lab.names().iter().all(|name| lab.is_ready(name)).then_some(())
    });
    load.judge(&lab);
}

impl Chaos {
    /// Breaks something, or mends what was broken; never more than two of five at a time.
    fn step(&mut self) {
        if self.suffering.len() == 2 || (!self.suffering.is_empty() && self.dice.below(2) == 0) {
            let which = self.dice.below(self.suffering.len());
            return self.recover(which);
        }
        let names = self.lab.names();
        let well: Vec<&String> =
            names.iter().filter(|name| self.suffering.iter().all(|(other, _)| other != *name)).collect();
        let name = well[self.dice.below(well.len())].clone();
        // The leader is hit more often than chance would.
        let name = match self.lab.cluster_info().ok().and_then(|info| info.leader) {
            Some(leader) if self.dice.below(3) == 0 && well.contains(&&leader) => leader,
            _ => name,
        };
        let fault = match self.dice.below(9) {
            0 => Fault::Killed,
            1 => Fault::Stopped,
            2 => Fault::Unplugged,
            3 => {
                let others: Vec<&String> = names.iter().filter(|other| **other != name).collect();
                Fault::Cut(others[self.dice.below(others.len())].clone())
            }
            4 if name == "n5" => Fault::DiskFull,
            5 => Fault::Demoted,
            6 => Fault::Burnt,
            7 => Fault::Removed,
            _ => Fault::Restarted,
        };
        eprintln!("{name}: {fault:?}");
        self.inflict(&name, &fault);
        if fault != Fault::Restarted {
            self.suffering.push((name, fault));
        }
    }

    fn inflict(&mut self, name: &str, fault: &Fault) {
        let lab = &mut self.lab;
        match fault {
            Fault::Killed => lab.kill(name),
            Fault::Stopped => lab.signal(name, Signal::SIGSTOP),
            Fault::Unplugged => lab.link(name, false),
            Fault::Cut(other) => lab.cut(name, other),
            Fault::DiskFull => lab.fill(name),
            // It may be refused while there is no quorum to agree to it; then nothing happened.
            Fault::Demoted => drop(lab.eccfg(&["node", "demote", name])),
            Fault::Burnt => lab.burn(name),
            Fault::Removed => {
                let mut turns = 0..;
                crate::support::eventually("a removal", || {
                    let turn = turns.next()?;
                    let output = lab.eccfg_in_turn(turn, &["node", "remove", name]).output().unwrap();
                    // Said again after its answer was lost, it is refused: there is nobody of this name any more.
                    let gone = String::from_utf8_lossy(&output.stderr).contains("no such node");
                    (output.status.success() || gone).then_some(())
                });
                lab.burn(name);
            }
            Fault::Restarted => {
                lab.terminate(name);
                lab.start(name);
            }
        }
    }

    fn recover(&mut self, which: usize) {
        let (name, fault) = self.suffering.remove(which);
        eprintln!("{name}: no longer {fault:?}");
        let lab = &mut self.lab;
        match &fault {
            Fault::Killed | Fault::Restarted => lab.start(&name),
            Fault::Stopped => lab.signal(&name, Signal::SIGCONT),
            Fault::Unplugged => lab.link(&name, true),
            Fault::Cut(other) => lab.heal(&name, other),
            Fault::DiskFull => lab.free(&name),
            Fault::Burnt | Fault::Removed => {
                let token = if fault == Fault::Burnt { lab.replacement(&name) } else { lab.token() };
                lab.join_with(&name, &token, &[]);
                lab.start(&name);
                // Until it votes, the disk of another one more that burns could be one too many.
                lab.wait_vote(&name);
            }
            Fault::Demoted => {
                let mut turns = 0..;
                crate::support::eventually("a promotion", || {
                    let turn = turns.next()?;
                    let output = lab.eccfg_in_turn(turn, &["node", "promote", &name]).output().unwrap();
                    output.status.success().then_some(())
                });
            }
        }
    }
}
