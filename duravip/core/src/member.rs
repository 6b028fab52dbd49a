//! A member: what it has on the network, and the groups that say what it may have.
//!
//! Between a group and the network stand three rules that no group can break. What is not this member's by its newest
//! table goes off at once; what is comes on only under a running lease, from a version that a majority has; and when a
//! lease ends, everything goes off, and is off, before another lease begins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::action::{Action, Event, Notice, Stored};
use crate::apart::Apart;
use crate::assign::Situation;
use crate::config::Config;
use crate::explain::{self, Change, Explanation, Trouble};
use crate::group::{Effect, Group, Mine};
use crate::holds::{Hold, Holds};
use crate::ids::{ConfigId, Incarnation, MemberId, Term, Version};
use crate::message::{Answer, Cannot, Difference, GroupTag, Message, Order, Report, Standing};
use crate::rules::{Rule, kept};
use crate::table::Table;
use crate::time::Time;

/// What the kernel would not take it may take after this long: memory that was short, a module that was missing.
const REFUSED: Duration = Duration::from_secs(30);

/// What a member starts from.
#[derive(Clone, Debug)]
pub struct Start {
    /// Which member.
    pub me: MemberId,
    /// What its last run left on disk; nothing if the disk is new or lost.
    pub stored: Option<Stored>,
    /// Larger than any run before it, if the disk was lost: the wall clock in milliseconds will do.
    pub incarnation: Incarnation,
    /// Its configuration.
    pub config: Arc<Config>,
    /// For random delays.
    pub seed: u64,
}

/// What of the table and of what is held was looked through, and has not changed since.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Looked {
    /// The table, and what of it a majority had.
    at: Option<(GroupTag, Version, Version)>,
    /// For what is held and belongs to others: only another table brings more of it.
    foreign: bool,
    /// For what belongs here and is not held: also what went off, and another report, bring more of it.
    due: bool,
    /// Whether everything that belongs here is held or cannot be.
    plumbed: bool,
}

impl Looked {
    const NEVER: Self = Self { at: None, foreign: false, due: false, plumbed: false };
}

/// One member's state.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    pub(crate) me: MemberId,
    pub(crate) incarnation: Incarnation,
    pub(crate) config: Arc<Config>,
    pub(crate) cluster: Group,
    pub(crate) apart: Apart,
    held: Holds,
    lease: Time,
    /// The lease ended, and not everything is off yet.
    lapsed: bool,
    unable: BTreeMap<IpAddr, Cannot>,
    refused: BTreeSet<IpAddr>,
    /// When it is tried again.
    retry_at: Time,
    conflicts: BTreeSet<IpAddr>,
    failing: BTreeSet<String>,
    report: Arc<Report>,
    /// The table that the report was made for, and the configuration of that table.
    reported_on: (Version, GroupTag, ConfigId),
    applied: Version,
    plumbed: Version,
    pub(crate) leaving: bool,
    left: bool,
    announced: u64,
    runs: BTreeMap<MemberId, Incarnation>,
    gone: BTreeMap<MemberId, Incarnation>,
    stale_report: bool,
    look: bool,
    looked: Looked,
}

impl Member {
    /// A new run. The shell has taken leftovers of earlier runs off the interfaces before it sends anything.
    pub fn new(now: Time, start: Start) -> (Self, Vec<Action>) {
        let Start { me, stored, incarnation, config, seed } = start;
        let fresh = Stored {
            incarnation,
            term: 0,
            voted: None,
            electorate: crate::electorate::Electorate::of(config.spec.members.keys().copied()),
            electorate_version: Version::ZERO,
            orders: crate::table::Orders::default(),
            longest: None,
        };
        let lost = stored.is_none();
        let mut stored = stored.unwrap_or(fresh);
        stored.incarnation = Incarnation(incarnation.0.max(stored.incarnation.0 + 1));
        // A vote is on disk, a promise is not: this voter waits until one that its last run made is over. Without the
        // disk it does not know what it voted either, and waits until whatever came of that is over.
        let longest = match stored.longest {
            Some(longest) if config.stranger => longest,
            Some(longest) => longest.longer(config.timing),
            None => config.timing,
        };
        let silent_until = match (kept(Rule::Silence), lost) {
            (false, _) => now,
            (true, false) => now + longest.promise() + longest.slack(),
            (true, true) => now + longest.silence(),
        };
        let stored = Arc::new(stored);
        let incarnation = stored.incarnation;
        let cluster = Group::new(me, GroupTag::Cluster, stored.clone(), config.timing, silent_until, lost, seed ^ me.0);
        let mut member = Self {
            me,
            incarnation,
            cluster,
            apart: Apart::new(config.spec.no_quorum),
            config,
            held: Holds::default(),
            lease: Time::ZERO,
            lapsed: false,
            unable: BTreeMap::new(),
            refused: BTreeSet::new(),
            retry_at: Time::NEVER,
            conflicts: BTreeSet::new(),
            failing: BTreeSet::new(),
            report: Arc::new(Report::default()),
            reported_on: (Version::ZERO, GroupTag::Cluster, ConfigId::NONE),
            applied: Version::ZERO,
            plumbed: Version::ZERO,
            leaving: false,
            left: false,
            announced: 0,
            runs: BTreeMap::new(),
            gone: BTreeMap::new(),
            stale_report: true,
            look: true,
            looked: Looked::NEVER,
        };
        let mut out = vec![Action::Persist(stored)];
        member.settle(now, &mut out);
        (member, out)
    }

    /// Handles one event. The caller carries the actions out in their order.
    pub fn handle(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        if self.left {
            return out;
        }
        // First of all: after a pause, the lease may have ended long ago.
        self.end_lease_in_time(now, &mut out);
        let mut fx = Vec::new();
        match event {
            Event::Tick => {
                self.cluster.tick(now, &mut fx);
                self.run(now, GroupTag::Cluster, fx, &mut out);
                self.tick_apart(now, &mut out);
                if now >= self.retry_at {
                    self.retry_at = Time::NEVER;
                    self.refused.clear();
                    self.stale_report = true;
                }
            }
            Event::Message(from, incarnation, message) => self.receive(now, from, incarnation, message, &mut out),
            Event::Config(config) => self.configure(now, config),
            Event::Plumbed(addresses) => self.note(&addresses, Hold::Plumbing, Some(Hold::On)),
            Event::Unplumbed(addresses) => self.note(&addresses, Hold::Releasing, None),
            Event::PlumbFailed(addresses) => {
                self.note(&addresses, Hold::Plumbing, None);
                self.refused.extend(addresses);
                self.retry_at = now + REFUSED;
                self.stale_report = true;
            }
            Event::Lost(addresses) => self.on_lost(now, &addresses, &mut out),
            Event::Probed(probed) => self.on_probed(now, &probed, &mut out),
            Event::Unable(unable) => {
                if self.unable != unable {
                    self.stale_report = true;
                    // What the kernel would not take on the interfaces as they were, it may take now.
                    self.refused.clear();
                    self.unable = unable;
                }
            }
            Event::Failing(failing) => {
                self.stale_report |= self.failing != failing;
                self.failing = failing;
            }
            Event::NetworkSeen => self.apart.network_seen(now),
            Event::Order(number, order) => self.on_order(now, number, order, None, &mut out),
            Event::Leave => self.leaving = true,
        }
        self.settle(now, &mut out);
        out
    }

    /// When the next tick is due, if nothing else happens before.
    pub fn wake_at(&self) -> Time {
        if self.left {
            return Time::NEVER;
        }
        let lease = if self.held.is_empty() || self.lapsed { Time::NEVER } else { self.lease };
        self.cluster.wake_at().min(lease).min(self.retry_at).min(self.wake_apart_at())
    }

    /// The group whose table this member acts on.
    pub(crate) fn active(&self) -> &Group {
        self.apart.group().unwrap_or(&self.cluster)
    }

    fn active_mut(&mut self) -> &mut Group {
        match self.apart.group.as_mut() {
            Some(group) => group,
            None => &mut self.cluster,
        }
    }

    pub(crate) fn group_mut(&mut self, tag: GroupTag) -> Option<&mut Group> {
        match tag {
            GroupTag::Cluster => Some(&mut self.cluster),
            part => self.apart.group.as_mut().filter(|group| group.tag == part),
        }
    }

    fn receive(
        &mut self,
        now: Time,
        from: MemberId,
        incarnation: Incarnation,
        message: Message,
        out: &mut Vec<Action>,
    ) {
        let known = self.runs.get(&from).copied().unwrap_or_default();
        let over = self.gone.get(&from).is_some_and(|gone| incarnation <= *gone);
        if let Message::Gone(run) = message {
            self.on_gone(now, from, run);
            return;
        }
        // The envelope keeps replays out; what is late from a run that ended is kept out here.
        if incarnation < known || over || from == self.me {
            return;
        }
        if incarnation > known {
            self.runs.insert(from, incarnation);
            self.cluster.on_new_run(now, from, incarnation);
            if let Some(part) = self.apart.group.as_mut() {
                part.on_new_run(now, from, incarnation);
            }
        }
        match message {
            Message::Group(tag, body) => {
                let mut fx = Vec::new();
                if let Some(group) = self.group_mut(tag) {
                    group.receive(now, from, incarnation, body, &mut fx);
                }
                self.look = true;
                self.run(now, tag, fx, out);
            }
            Message::Hello(hears) => self.apart.hello(now, from, self.me, &hears),
            Message::Order(number, order) => self.on_order(now, number, order, Some(from), out),
            Message::Answer(number, answer) => out.push(Action::Answer(number, answer)),
            Message::Gone(_) => {}
        }
    }

    fn on_gone(&mut self, now: Time, member: MemberId, run: Incarnation) {
        let known = self.runs.get(&member).copied().unwrap_or_default();
        if run < known && kept(Rule::GoneNamesRun) {
            return;
        }
        self.gone.insert(member, run);
        self.cluster.on_gone(now, member, run);
        if let Some(part) = self.apart.group.as_mut() {
            part.on_gone(now, member, run);
        }
    }

    fn configure(&mut self, now: Time, config: Arc<Config>) {
        self.cluster.set_timing(config.timing);
        self.apart.configure(now, config.spec.no_quorum);
        self.config = config;
        self.refused.clear();
        self.stale_report = true;
    }

    /// Carries out what a group wants. A lease counts only from the group whose table is acted on.
    pub(crate) fn run(&mut self, now: Time, tag: GroupTag, effects: Vec<Effect>, out: &mut Vec<Action>) {
        for effect in effects {
            match effect {
                Effect::Persist(stored) => out.push(Action::Persist(stored)),
                Effect::Send(to, body) => out.push(Action::Send(to, Message::Group(tag, body))),
                Effect::Notice(notice) => {
                    if tag == GroupTag::Cluster {
                        if matches!(notice, Notice::Following(_) | Notice::Leading(_)) {
                            self.rejoin(out);
                        }
                        out.push(Action::Notice(notice));
                    }
                }
                // A leader says it with every event: what is not news changes nothing.
                Effect::Lease(until) if tag != self.active().tag || !self.extend_lease(now, until, out) => continue,
                Effect::Lease(_) => {}
            }
            self.look = true;
        }
    }

    /// Whether that made the lease longer.
    fn extend_lease(&mut self, now: Time, until: Time, out: &mut Vec<Action>) -> bool {
        let until = self.limit_apart(until);
        let clean = self.held.is_clean();
        if until <= now || until <= self.lease || (self.lapsed && !clean && kept(Rule::LapseReleases)) {
            return false;
        }
        self.lapsed = false;
        self.lease = until;
        out.push(Action::Lease(until));
        true
    }

    fn end_lease_in_time(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.lapsed || now < self.lease || self.lease == Time::ZERO {
            return;
        }
        self.lapsed = true;
        if self.held.is_empty() {
            return;
        }
        out.push(Action::Notice(Notice::Lapsed));
        if kept(Rule::LapseReleases) {
            let all: Vec<IpAddr> = self.held.addresses().collect();
            self.release(all, out);
        }
    }

    /// Another group's table is acted on from here.
    pub(crate) fn table_changed(&mut self) {
        self.applied = Version::ZERO;
        self.plumbed = Version::ZERO;
        self.look = true;
        self.looked = Looked::NEVER;
    }

    pub(crate) fn cluster_term(&self) -> u64 {
        self.cluster.term()
    }

    /// Whether the lease runs.
    fn may_hold(&self, now: Time) -> bool {
        !self.lapsed && now < self.lease
    }

    fn release(&mut self, addresses: Vec<IpAddr>, out: &mut Vec<Action>) {
        let mut off = Vec::new();
        for address in addresses {
            match self.held.get(address) {
                Some(Hold::Probing) => self.drop_hold(address),
                Some(Hold::Plumbing | Hold::On) => {
                    self.held.set(address, Hold::Releasing);
                    off.push(address);
                }
                Some(Hold::Releasing) | None => {}
            }
        }
        if !off.is_empty() {
            out.push(Action::Unplumb(off));
        }
    }

    fn drop_hold(&mut self, address: IpAddr) {
        self.held.remove(address);
        (self.looked.due, self.looked.plumbed) = (false, false);
    }

    fn note(&mut self, addresses: &[IpAddr], expected: Hold, becomes: Option<Hold>) {
        for address in addresses {
            if self.held.get(*address) == Some(expected) {
                match becomes {
                    Some(hold) => self.held.set(*address, hold),
                    None => self.drop_hold(*address),
                }
            }
        }
        self.look = true;
    }

    /// Somebody took addresses away: those that belong here come back.
    fn on_lost(&mut self, now: Time, addresses: &[IpAddr], out: &mut Vec<Action>) {
        let mut again = Vec::new();
        for address in addresses {
            if self.held.get(*address) == Some(Hold::On) && self.may_hold(now) {
                self.held.set(*address, Hold::Plumbing);
                again.push(*address);
            }
        }
        if !again.is_empty() {
            out.push(Action::Plumb(again));
        }
    }

    fn on_probed(&mut self, now: Time, probed: &[(IpAddr, bool)], out: &mut Vec<Action>) {
        let mut free = Vec::new();
        for (address, answered) in probed {
            if self.held.get(*address) != Some(Hold::Probing) {
                continue;
            }
            if !answered && self.may_hold(now) {
                self.held.set(*address, Hold::Plumbing);
                free.push(*address);
                continue;
            }
            self.drop_hold(*address);
            if *answered {
                self.conflicts.insert(*address);
                self.stale_report = true;
            }
        }
        if !free.is_empty() {
            out.push(Action::Plumb(free));
        }
    }

    fn on_order(&mut self, now: Time, number: u64, order: Order, from: Option<MemberId>, out: &mut Vec<Action>) {
        let answer = self.active_mut().order(now, &order);
        let leader = self.active().leadership().map(|term| term.leader);
        match (answer, from, leader) {
            (Some(answer), None, _) => out.push(Action::Answer(number, answer)),
            (Some(answer), Some(from), _) => out.push(Action::Send(from, Message::Answer(number, answer))),
            // Forwarded once: a leader that changed meanwhile is the operator's to find.
            (None, None, Some(leader)) => out.push(Action::Send(leader, Message::Order(number, order))),
            (None, Some(from), _) => out.push(Action::Send(from, Message::Answer(number, Answer::NoLeader))),
            (None, None, None) => out.push(Action::Answer(number, Answer::NoLeader)),
        }
        self.look = true;
    }

    /// After every event: makes the network and the table agree, says so, and lets a leader plan, until nothing follows.
    pub(crate) fn settle(&mut self, now: Time, out: &mut Vec<Action>) {
        // Each round answers a change of the round before; a leader's plan is stable after its own changes. The bound
        // is for a defect in that reasoning: the next event goes on from here.
        for _ in 0..16 {
            self.apply(now, out);
            self.renew_report();
            let before = (self.active().table.version, self.active().commit);
            let tag = self.active().tag;
            let mut fx = Vec::new();
            let standing = self.standing();
            let (report, config) = (self.report.clone(), self.config.clone());
            self.active_mut().finish(now, Mine { standing, report: &report, config: &config }, &mut fx);
            self.run(now, tag, fx, out);
            self.look |= before != (self.active().table.version, self.active().commit);
            if !self.look {
                break;
            }
        }
        self.leave_if_done(out);
    }

    fn standing(&self) -> Standing {
        Standing {
            have: self.active().table.version,
            applied: self.applied,
            plumbed: self.plumbed,
            report: self.report.number,
            leaving: self.leaving,
        }
    }

    /// Makes the network agree with the table. It is asked at every event, and looks through the addresses only when what
    /// it would find can have changed.
    fn apply(&mut self, now: Time, out: &mut Vec<Action>) {
        if !std::mem::take(&mut self.look) {
            return;
        }
        let group = self.active();
        let (version, current) = (group.table.version, group.is_current());
        let at = Some((group.tag, version, group.commit));
        if self.looked.at != at {
            self.looked = Looked { at, ..Looked::NEVER };
        }
        if !self.looked.foreign {
            self.looked.foreign = true;
            self.release_foreign(out);
        }
        if !self.looked.due && self.may_hold(now) && current {
            self.looked.due = true;
            self.acquire(out);
        }
        if self.held.is_clean() || !kept(Rule::ReleaseBeforeAck) {
            self.applied = version;
        }
        if !self.looked.plumbed && self.held.is_all_on() {
            self.looked.plumbed = true;
            let settled = |address| self.held.contains(address) || self.report.cannot.contains_key(&address);
            if self.active().table.owned_by(self.me).all(|(address, _)| settled(address)) {
                self.plumbed = version;
            }
        }
        let announce = self.active().table.header.orders.announce;
        if announce > self.announced {
            self.announced = announce;
            let on: Vec<IpAddr> =
                self.held.iter().filter(|(_, hold)| *hold == Hold::On).map(|(address, _)| address).collect();
            if !on.is_empty() {
                out.push(Action::Announce(on));
            }
        }
    }

    fn release_foreign(&mut self, out: &mut Vec<Action>) {
        let table = &self.active().table;
        let foreign = self
            .held
            .iter()
            .filter(|(address, hold)| *hold != Hold::Releasing && table.owner(*address) != Some(self.me));
        let foreign: Vec<IpAddr> = foreign.map(|(address, _)| address).collect();
        self.release(foreign, out);
    }

    fn acquire(&mut self, out: &mut Vec<Action>) {
        let group = self.active();
        let due: Vec<(IpAddr, bool)> = group
            .table
            .owned_by(self.me)
            .filter(|(address, entry)| group.may_take(entry) && !self.held.contains(*address))
            .filter(|(address, _)| !self.report.cannot.contains_key(address))
            .map(|(address, entry)| (address, entry.fresh))
            .collect();
        let (mut probe, mut plumb) = (Vec::new(), Vec::new());
        self.looked.plumbed &= due.is_empty();
        for (address, fresh) in due {
            self.held.set(address, if fresh { Hold::Probing } else { Hold::Plumbing });
            if fresh { probe.push(address) } else { plumb.push(address) }
        }
        if !plumb.is_empty() {
            out.push(Action::Plumb(plumb));
        }
        if !probe.is_empty() {
            out.push(Action::Probe(probe));
        }
    }

    /// Says again what this member can do, if the table or something here changed.
    fn renew_report(&mut self) {
        let group = self.active();
        let on = (group.table.version, group.tag, group.table.config);
        let config_changed = self.report.config != self.config.id || self.report.number == 0;
        // What a report says depends on the table's addresses only where the configurations differ. One commit may mean
        // different things to two members: the table's configuration is looked at once, whichever it is.
        let other = on.2 != self.config.id || on.2 != self.reported_on.2;
        let moved = on != self.reported_on && (other || !self.conflicts.is_empty());
        if !self.stale_report && !config_changed && !moved {
            return;
        }
        self.stale_report = false;
        self.reported_on = on;
        let table = &self.apart.group().unwrap_or(&self.cluster).table;
        self.conflicts.retain(|address| {
            let mine = |owner| owner == Some(self.me);
            table.entries.get(address).is_some_and(|entry| entry.conflict.is_some() || entry.fresh && mine(entry.owner))
        });
        let mut cannot = BTreeMap::new();
        let mut differs = BTreeMap::new();
        for (address, said) in table.spec.vips.iter().filter(|_| !self.config.stranger) {
            match self.config.spec.vips.get(address).filter(|_| !self.config.foreign.contains(address)) {
                // The next configuration may have dropped it. What is on stays until the table drops it too.
                None if self.config.id.may_follow(table.config) && self.held.contains(*address) => {}
                None => {
                    cannot.insert(*address, Cannot::Unknown);
                }
                Some(mine) if mine.name != said.name => {
                    differs.insert(*address, Difference::Name);
                }
                Some(mine) if mine.services != said.services => {
                    differs.insert(*address, Difference::Services);
                }
                Some(mine) if mine.placement.differs_in_preference(said.placement) => {
                    differs.insert(*address, Difference::Preference);
                }
                Some(_) => {}
            }
        }
        cannot.extend(self.unable.iter().map(|(address, why)| (*address, *why)));
        cannot.extend(self.refused.iter().map(|address| (*address, Cannot::Refused)));
        cannot.extend(self.conflicts.iter().map(|address| (*address, Cannot::Conflict)));
        let number = self.report.number;
        let mut report = Report { number, config: self.config.id, cannot, failed: self.failing.clone(), differs };
        if number == 0 || report != *self.report {
            report.number += 1;
            self.report = Arc::new(report);
            self.look = true;
            (self.looked.due, self.looked.plumbed) = (false, false);
        }
    }

    /// A member that wants to leave ends when it has nothing and leads nothing that somebody needs.
    fn leave_if_done(&mut self, out: &mut Vec<Action>) {
        if !self.leaving || self.left || !self.held.is_empty() {
            return;
        }
        let group = self.active();
        let mine = group.table.owned_by(self.me).next().is_some();
        let busy = group.lead().is_some_and(|lead| lead.is_busy(group.commit, &group.table));
        if mine || busy {
            return;
        }
        self.left = true;
        let everyone = self.cluster.table.header.electorate.everyone();
        let everyone: BTreeSet<MemberId> =
            everyone.into_iter().chain(self.config.spec.members.keys().copied()).collect();
        for member in everyone.into_iter().filter(|member| *member != self.me) {
            out.push(Action::Send(member, Message::Gone(self.incarnation)));
        }
        out.push(Action::Left);
    }
}

/// A table's version, and the numbers of the leader's own report and of those that others gave.
pub type Known = (Version, u64, Vec<(MemberId, u64)>);

/// What people ask.
impl Member {
    /// This member.
    pub fn id(&self) -> MemberId {
        self.me
    }

    /// This run.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The table that this member acts on.
    pub fn table(&self) -> &Table {
        &self.active().table
    }

    /// What of it a majority has, as far as this member knows.
    pub fn commit(&self) -> Version {
        self.active().commit
    }

    /// The leadership that it acts under.
    pub fn leadership(&self) -> Option<Term> {
        self.active().leadership()
    }

    /// When its lease ends.
    pub fn lease(&self) -> Option<Time> {
        (!self.lapsed && self.lease != Time::ZERO).then_some(self.lease)
    }

    /// The part that it serves with, without a majority: two owners are possible.
    pub fn serves_apart(&self) -> Option<&BTreeSet<MemberId>> {
        self.apart.group().map(|group| &group.table.header.electorate.voters)
    }

    /// What it has on the network, or is putting there or taking off.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> {
        self.held.addresses()
    }

    /// Why an address is where it is; only the leader knows.
    pub fn explain(&self, now: Time, address: IpAddr) -> Option<Explanation> {
        let (situation, units) = self.situation(now)?;
        explain::explain(&situation, &units, address)
    }

    /// Why every address is where it is; only the leader knows.
    pub fn explain_all(&self, now: Time) -> Option<Vec<Explanation>> {
        let (situation, units) = self.situation(now)?;
        Some(explain::explain_all(&situation, &units))
    }

    /// The addresses with which something is wrong; only the leader knows.
    pub fn troubles(&self, now: Time) -> Option<BTreeMap<IpAddr, Trouble>> {
        let (situation, _) = self.situation(now)?;
        Some(explain::troubles(&situation))
    }

    /// The table, and which reports of the others a leader has: without a change here nothing is wrong that was not before.
    pub fn known(&self) -> Option<Known> {
        let group = self.active();
        Some((group.table.version, self.report.number, group.lead()?.reports()))
    }

    /// Whether every address is where it belongs, a majority has that, and nothing is on its way; only the leader knows.
    pub fn at_rest(&self, now: Time) -> Option<bool> {
        let group = self.active();
        let (situation, units) = self.situation(now)?;
        let lead = group.lead()?;
        let busy = lead.is_busy(group.commit, &group.table);
        Some(!busy && explain::at_rest(&situation, &units, lead.is_rebalancing(&group.table)))
    }

    /// Whether this member has the address on the network, or is on its way to.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.held.get(address).is_some_and(|hold| hold != Hold::Releasing)
    }

    /// The last report that this member gave, or would give.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What would move if a member were gone; only the leader knows.
    pub fn simulate_without(&self, now: Time, gone: MemberId) -> Option<Vec<Change>> {
        let (situation, units) = self.situation(now)?;
        Some(explain::without(&situation, &units, gone))
    }

    fn situation(&self, now: Time) -> Option<(Situation<'_>, Arc<Vec<crate::assign::Unit>>)> {
        let group = self.active();
        group.lead()?.situation(now, self.me, &group.table)
    }
}
