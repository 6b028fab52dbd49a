//! A small state space, searched exhaustively: three members, one address, every way to lose or delay a few packets
//! around every moment at which one member crashes or stands still. The members are the real ones.
//!
//! Bounded by a budget of faults per history and by a horizon; what is left out is more faults at once, which the seeds
//! do. Time goes from one alarm to the next, and packets that are neither lost nor late arrive in between.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::world::{address, config, timing};
use crate::rules::{Rule, broken};
use crate::*;

#[derive(Clone, Hash)]
struct State {
    now: Time,
    hosts: Vec<Host>,
    // In the order of sending; bounded because nothing is sent while time stands still.
    flying: VecDeque<(usize, usize, Message)>,
    late: Vec<(usize, usize, Message)>,
    losses: u8,
    delays: u8,
    stops: u8,
    /// No more faults are tried after this; the history only runs on.
    frozen: bool,
}

#[derive(Clone, Hash)]
struct Host {
    core: Option<Member>,
    paused: bool,
    backlog: Vec<Event>,
    on: bool,
    fence: Time,
}

impl State {
    fn start(owner: u64) -> Self {
        let mut config = config(1, 3, 0, 1, timing(80, 13));
        config.spec.vips.get_mut(&address(1)).unwrap().placement = Placement::Preferred(MemberId(owner));
        let config = Arc::new(config);
        let mut state = Self {
            now: Time::from_millis(1000),
            hosts: Vec::new(),
            flying: VecDeque::new(),
            late: Vec::new(),
            losses: 0,
            delays: 0,
            stops: 0,
            frozen: true,
        };
        for number in 1..=3 {
            let start = Start {
                me: MemberId(number),
                stored: None,
                incarnation: Incarnation(1),
                config: config.clone(),
                seed: number,
            };
            let (core, _) = Member::new(state.now, start);
            state.hosts.push(Host {
                core: Some(core),
                paused: false,
                backlog: Vec::new(),
                on: false,
                fence: Time::ZERO,
            });
        }
        state
    }

    fn event(&mut self, node: usize, event: Event) {
        let host = &mut self.hosts[node];
        if host.paused {
            host.backlog.push(event);
            return;
        }
        let Some(core) = host.core.as_mut() else { return };
        let actions = core.handle(self.now, event);
        for action in actions {
            match action {
                Action::Send(to, message) => self.flying.push_back((node, to.0 as usize - 1, message)),
                Action::Lease(until) => self.hosts[node].fence = until,
                Action::Plumb(addresses) => {
                    self.hosts[node].on = true;
                    self.event(node, Event::Plumbed(addresses));
                }
                Action::Unplumb(addresses) => {
                    self.hosts[node].on = false;
                    self.event(node, Event::Unplumbed(addresses));
                }
                Action::Probe(addresses) => {
                    for address in addresses {
                        self.event(node, Event::Probed(vec![(address, false)]));
                    }
                }
                _ => {}
            }
        }
    }

    fn deliver(&mut self, (from, to, message): (usize, usize, Message)) {
        if self.hosts[from].core.is_some() || !matches!(message, Message::Gone(_)) {
            self.event(to, Event::Message(MemberId(from as u64 + 1), Incarnation(1), message));
        }
    }

    /// To the next alarm.
    fn pass_time(&mut self) {
        let alarms =
            self.hosts.iter().filter(|host| !host.paused).filter_map(|host| Some(host.core.as_ref()?.wake_at()));
        let at = alarms.min().unwrap_or(Time::NEVER);
        self.now = at.max(self.now + Duration::from_millis(1));
        self.flying.extend(std::mem::take(&mut self.late));
        for node in 0..self.hosts.len() {
            let due = self.hosts[node].core.as_ref().is_some_and(|core| core.wake_at() <= self.now);
            if due && !self.hosts[node].paused {
                self.event(node, Event::Tick);
            }
        }
    }

    fn resume(&mut self, node: usize) {
        self.hosts[node].paused = false;
        let backlog = std::mem::take(&mut self.hosts[node].backlog);
        self.event(node, Event::Tick);
        for event in backlog {
            self.event(node, event);
        }
    }

    fn owners(&self) -> usize {
        self.hosts.iter().filter(|host| host.on && self.now < host.fence).count()
    }

    /// Every way on from here.
    fn next(&self) -> Vec<Self> {
        let mut ways = Vec::new();
        let mut usual = self.clone();
        if let Some(message) = usual.flying.pop_front() {
            if !self.frozen && self.losses > 0 {
                let mut lost = usual.clone();
                lost.losses -= 1;
                ways.push(lost);
            }
            if !self.frozen && self.delays > 0 {
                let mut late = usual.clone();
                late.delays -= 1;
                late.late.push(message.clone());
                ways.push(late);
            }
            usual.deliver(message);
            ways.push(usual);
            return ways;
        }
        if !self.frozen && self.stops > 0 {
            for node in 0..3 {
                let mut crashed = self.clone();
                crashed.stops -= 1;
                // Its kernel goes on answering until the fence closes.
                crashed.hosts[node].core = None;
                ways.push(crashed);
                let mut paused = self.clone();
                paused.stops -= 1;
                paused.hosts[node].paused = true;
                ways.push(paused);
            }
        }
        for node in (0..3).filter(|node| self.hosts[*node].paused) {
            let mut resumed = self.clone();
            resumed.resume(node);
            ways.push(resumed);
        }
        usual.pass_time();
        ways.push(usual);
        ways
    }
}

/// Searches everything within the budgets, from a calm cluster on. The number of states, or what went wrong.
fn explore(owner: u64, losses: u8, delays: u8, stops: u8, horizon_ms: u64) -> Result<usize, String> {
    let most = 3_000_000;
    let mut calm = State::start(owner);
    while calm.now < Time::from_millis(2500) || calm.owners() != 1 {
        match calm.flying.pop_front() {
            Some(message) => calm.deliver(message),
            None => calm.pass_time(),
        }
        if calm.now > Time::from_millis(9000) {
            return Err("it never comes to rest".to_owned());
        }
    }
    (calm.losses, calm.delays, calm.stops, calm.frozen) = (losses, delays, stops, false);
    let end = calm.now + Duration::from_millis(horizon_ms);
    let mut seen = HashSet::new();
    let mut open = vec![calm];
    while let Some(state) = open.pop() {
        if state.owners() > 1 {
            return Err(format!("two owners at {}", state.now));
        }
        if state.now >= end {
            if state.owners() != 1
                && state.hosts.iter().all(|host| !host.paused)
                && state.now < end + Duration::from_millis(400)
            {
                // Given quiet, somebody has it again.
                let mut quiet = state;
                quiet.frozen = true;
                for _ in 0..100_000 {
                    match quiet.flying.pop_front() {
                        Some(message) => quiet.deliver(message),
                        None => quiet.pass_time(),
                    }
                    if quiet.owners() == 1 || quiet.now > end + Duration::from_millis(600) {
                        break;
                    }
                }
                if quiet.owners() != 1 {
                    return Err(format!("{} owners long after the last fault, at {}", quiet.owners(), quiet.now));
                }
            }
            continue;
        }
        for next in state.next() {
            let mut hasher = DefaultHasher::new();
            next.hash(&mut hasher);
            if seen.insert(hasher.finish()) {
                open.push(next);
            }
        }
        if seen.len() > most {
            return Err(format!("more than {most} states"));
        }
    }
    Ok(seen.len())
}

/// The address is a follower's, or the leader's own.
fn both(losses: u8, delays: u8, stops: u8, horizon_ms: u64) {
    for owner in [2, 1] {
        let states = explore(owner, losses, delays, stops, horizon_ms).unwrap();
        println!("{states} states");
        assert!(states > 2_000, "the search is too small to mean anything: {states}");
    }
}

#[test]
fn no_history_of_a_stop_and_a_lost_packet_has_two_owners() {
    both(1, 0, 1, 110);
}

#[test]
fn no_history_of_a_stop_and_a_late_packet_has_two_owners() {
    both(0, 1, 1, 110);
}

#[test]
fn no_history_of_two_lost_packets_has_two_owners() {
    both(2, 0, 0, 110);
}

#[test]
fn the_search_notices_broken_rules() {
    for (rule, owner) in [(Rule::WaitForSilence, 2), (Rule::WaitForInherited, 1)] {
        let found = broken::with(Some(rule), || explore(owner, 0, 0, 1, 150));
        println!("{rule:?}: {found:?}");
        assert!(found.is_err(), "{rule:?} is broken, and no history shows it");
    }
}
