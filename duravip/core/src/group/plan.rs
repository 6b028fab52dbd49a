//! The leader's plan: from what it knows of the members to the next version of the table.
//!
//! An address passes through here in three steps that never overlap. It is *taken*: its entry names nobody, and it is
//! kept in `leaving` until the old owner said that it is off, or its lease has ended. It is *free* then, provided that
//! no member may hold anything unknown. It is *given*: the entry names the new owner, who acts when a majority has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::lead::{Lead, Peer};
use super::{Effect, Group, Mine, Role};
use crate::assign::{Ability, Presence, Situation, Target, Unit, Verdict, Why, units};
use crate::config::Config;
use crate::electorate::Electorate;
use crate::ids::{ConfigId, Incarnation, MemberId, Version};
use crate::message::{Cannot, GroupTag};
use crate::rules::{Rule, kept};
use crate::table::{Entry, Seen, Table};
use crate::time::Time;

/// Addresses that go back at a time. Small enough that a batch is off and on again before anybody notices.
const BATCH: usize = 64;
/// Addresses that an owner that answers hands over at a time, at least; of thousands a part of this size, so that neither a
/// part nor the number of parts takes long. An address is dark for as long as its part is on its way.
const HAND_OVER: usize = 64;
const HAND_OVER_PART: usize = 16;
/// A member that leaves again within this time is flapping.
const FLAP_WINDOW: Duration = Duration::from_secs(600);
/// However often it flapped, a member is trusted again after this long.
const LONGEST_MATURE: Duration = Duration::from_secs(300);

/// What the next version changes.
#[derive(Default)]
struct Draft {
    entries: BTreeSet<IpAddr>,
    header: bool,
    spec: bool,
}

impl Draft {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.header && !self.spec
    }
}

/// The situation as the leader sees it.
pub(super) fn situation<'a>(now: Time, me: MemberId, lead: &'a Lead, table: &'a Table) -> Situation<'a> {
    let mut ids: BTreeSet<MemberId> = lead.peers.keys().copied().collect();
    ids.insert(me);
    let members = ids.into_iter().map(|id| match lead.peers.get(&id) {
        Some(peer) => Ability {
            id,
            presence: presence(now, peer, lead),
            leaving: peer.standing.leaving,
            ripe: peer.here_since.is_some_and(|since| now >= since + mature(now, id, lead, table)),
            report: peer.report.as_deref(),
        },
        None => Ability {
            id,
            presence: Presence::Here,
            leaving: lead.mine.leaving,
            ripe: now >= lead.won_at + mature(now, id, lead, table),
            report: lead.my_report.as_deref(),
        },
    });
    let orders = lead.orders.as_ref().unwrap_or(&table.header.orders);
    Situation { spec: &table.spec, orders, members: members.collect(), entries: &table.entries, going: &lead.going }
}

fn presence(now: Time, peer: &Peer, lead: &Lead) -> Presence {
    match (peer.lapsed, peer.is_here(now, lead.granting)) {
        (true, _) => Presence::Gone,
        (false, true) => Presence::Here,
        (false, false) => Presence::Limbo,
    }
}

/// How long a member must have been here before addresses go back to it: longer with every departure.
fn mature(now: Time, member: MemberId, lead: &Lead, table: &Table) -> Duration {
    let departures = table.header.view.get(&member).map_or(0, |seen| seen.departures);
    let departed_at = lead.departed_at.get(&member).copied().unwrap_or(lead.won_at);
    if now.since(departed_at) >= FLAP_WINDOW {
        return table.spec.mature;
    }
    let doubled = table.spec.mature * (1 << departures.saturating_sub(1).min(10));
    doubled.min(LONGEST_MATURE.max(table.spec.mature))
}

impl Group {
    pub(super) fn plan_if_due(&mut self, now: Time, mine: Mine<'_>, fx: &mut Vec<Effect>) {
        let Role::Leader(lead) = &self.role else { return };
        let silent = lead.peers.values().any(|peer| !peer.lapsed && now >= peer.bound);
        if now >= lead.hold_until && (lead.dirty || silent || now >= lead.plan_at) {
            self.plan(now, mine, fx);
        }
    }

    fn plan(&mut self, now: Time, mine: Mine<'_>, fx: &mut Vec<Effect>) {
        let Role::Leader(lead) = &mut self.role else { return };
        let from = self.table.version;
        let next = Version { term: lead.term, step: from.step + 1 };
        let mut draft = Draft::default();
        let mut planner = Planner {
            now,
            me: self.me,
            next,
            lead,
            table: &mut self.table,
            commit: self.commit,
            draft: &mut draft,
            run: self.stored.incarnation,
            is_part: self.tag != GroupTag::Cluster,
            probing: self.probing,
        };
        planner.lead.dirty = false;
        planner.take_orders();
        planner.note_silence();
        planner.note_view();
        planner.adopt(mine.config);
        planner.change_electorate();
        planner.shorten_times();
        planner.note_reports();
        planner.end_departures();
        planner.place();
        let plan_at = planner.look_again_at();
        lead.plan_at = plan_at;
        if !draft.is_empty() {
            let decided = draft.entries.len();
            lead.history.push(from, draft.entries, draft.spec);
            self.table.version = next;
            lead.dirty = true;
            self.beat_soon();
            self.hold_plans(now, decided);
            self.persist(fx);
        }
    }
}

/// One planning: the office, the table, and what changes.
struct Planner<'a> {
    now: Time,
    me: MemberId,
    next: Version,
    lead: &'a mut Lead,
    table: &'a mut Table,
    commit: Version,
    draft: &'a mut Draft,
    /// The leader's own run.
    run: Incarnation,
    is_part: bool,
    probing: bool,
}

impl Planner<'_> {
    fn take_orders(&mut self) {
        if let Some(orders) = self.lead.orders.take()
            && orders != self.table.header.orders
        {
            self.table.header.orders = orders;
            self.lead.orders_since = self.next;
            self.draft.header = true;
        }
        for address in std::mem::take(&mut self.lead.take) {
            self.change(address, |entry| {
                entry.conflict = None;
                entry.fresh = false;
            });
        }
    }

    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.table.entries.get_mut(&address) {
            let before = *entry;
            change(entry);
            if *entry != before {
                self.draft.entries.insert(address);
            }
        }
    }

    /// Members that were silent for so long that nothing of theirs can still be on the network.
    fn note_silence(&mut self) {
        for (member, peer) in &mut self.lead.peers {
            if peer.lapsed || self.now < peer.bound {
                continue;
            }
            peer.lapsed = true;
            peer.here_since = None;
            peer.settle_at = peer.settle_at.max(self.next);
            let gone = *member;
            self.lead.leaving.retain(|_, (leaver, _)| *leaver != gone);
        }
    }

    /// Who is there, for people and for the order in which members stand.
    fn note_view(&mut self) {
        let mut view: BTreeMap<MemberId, (bool, Incarnation)> = self
            .lead
            .peers
            .iter()
            .filter(|(_, peer)| peer.seen.is_some() || peer.lapsed)
            .map(|(member, peer)| (*member, (!peer.lapsed && peer.here_since.is_some(), peer.incarnation)))
            .collect();
        view.insert(self.me, (true, self.run));
        for (member, (present, incarnation)) in view {
            let old = self.table.header.view.get(&member).copied().unwrap_or_default();
            let left = old.present && (!present || incarnation != old.incarnation && member != self.me);
            let mut seen = Seen { present, incarnation, departures: old.departures };
            if left {
                let departed_at = self.lead.departed_at.insert(member, self.now).unwrap_or(self.lead.won_at);
                let flapping = self.now.since(departed_at) < FLAP_WINDOW;
                seen.departures = if flapping { old.departures.saturating_add(1) } else { 1 };
            }
            if seen != old {
                self.table.header.view.insert(member, seen);
                self.draft.header = true;
            }
        }
    }

    /// Another configuration becomes the table's when most members that are here have it or a later revision. One that
    /// only this member has would name addresses that the others cannot serve. Witnesses do not count: they serve none,
    /// and one from another subcluster never has it.
    fn adopt(&mut self, config: &Arc<Config>) {
        if config.stranger || !config.id.may_follow(self.table.config) {
            return;
        }
        // Right after an election nobody else has said anything yet.
        let heard = |member| match self.lead.peers.get(&member) {
            Some(peer) => peer.is_here(self.now, self.lead.granting),
            None => member == self.me,
        };
        if self.table.config != ConfigId::NONE && !self.table.header.electorate.majority(heard) {
            return;
        }
        let witness = |member: &MemberId| config.spec.members.get(member).is_some_and(|spec| spec.witness);
        let here = self
            .lead
            .peers
            .iter()
            .filter(|(member, peer)| !witness(member) && peer.is_here(self.now, self.lead.granting));
        let own = usize::from(!witness(&self.me));
        let (mut all, mut have) = (own, own);
        for (_, peer) in here {
            all += 1;
            let has = |id: ConfigId| id == config.id || id.revision > config.id.revision;
            have += usize::from(peer.report.as_ref().is_some_and(|report| has(report.config)));
        }
        if have * 2 <= all && all > 0 {
            return;
        }
        self.table.config = config.id;
        self.draft.header = true;
        // A commit that says the same need not travel.
        if *self.table.spec != config.spec {
            self.table.spec = Arc::new(config.spec.clone());
            self.draft.spec = true;
            self.lead.units = Arc::new(units(&config.spec));
        }
        let header = &mut self.table.header;
        if header.timing != Some(config.timing) {
            let known = header.longest.or(header.timing).unwrap_or(config.timing);
            header.longest = Some(known.longer(config.timing));
            header.timing = Some(config.timing);
            self.lead.timing_since = self.next;
        }
        for address in config.spec.vips.keys() {
            if !self.table.entries.contains_key(address) {
                self.table.entries.insert(*address, Entry { fresh: true, ..Entry::default() });
                self.draft.entries.insert(*address);
            }
        }
        let settle_at = Version { term: self.lead.term, step: 0 };
        let bound = self.now + config.timing.longer(self.lead.granting).silence();
        for member in config.spec.members.keys().filter(|member| **member != self.me) {
            self.lead.peers.entry(*member).or_insert_with(|| Peer::unheard(bound, settle_at));
        }
    }

    /// The set of voters follows the configuration, one step at a time, each from a committed table.
    fn change_electorate(&mut self) {
        let header = &mut self.table.header;
        if self.is_part || self.commit < header.electorate_since {
            return;
        }
        let changed = match header.electorate.next.take() {
            Some(next) => {
                header.electorate = Electorate::of(next);
                true
            }
            None => {
                let wanted: BTreeSet<MemberId> = self.table.spec.members.keys().copied().collect();
                let differs = !wanted.is_empty() && wanted != header.electorate.voters;
                if differs && kept(Rule::JointElectorate) {
                    header.electorate.next = Some(wanted);
                } else if differs {
                    header.electorate = Electorate::of(wanted);
                }
                differs
            }
        };
        if changed {
            self.table.header.electorate_since = self.next;
            self.draft.header = true;
        }
        // A member that neither votes nor holds anything is told nothing any more.
        let (electorate, members) = (&self.table.header.electorate, &self.table.spec.members);
        let owners: BTreeSet<MemberId> = self.table.entries.values().filter_map(|entry| entry.owner).collect();
        let leaving: BTreeSet<MemberId> = self.lead.leaving.values().map(|(member, _)| *member).collect();
        self.lead.peers.retain(|member, peer| {
            let needed = electorate.contains(*member) || members.contains_key(member);
            needed || owners.contains(member) || leaving.contains(member) || !peer.is_settled()
        });
    }

    /// Longer times than those in force are forgotten when no lease and no promise by them can run any more.
    fn shorten_times(&mut self) {
        let header = &mut self.table.header;
        let (Some(longest), Some(timing)) = (header.longest, header.timing) else { return };
        let over = self.commit >= self.lead.timing_since
            && self.lead.granting == timing
            && self.now >= self.lead.granting_since + longest.silence() * 2;
        if longest != timing && over {
            header.longest = Some(timing);
            self.draft.header = true;
        }
    }

    /// Owners that have their addresses on the network, or found them elsewhere.
    fn note_reports(&mut self) {
        let fresh: Vec<IpAddr> =
            self.table.entries.iter().filter(|(_, entry)| entry.fresh).map(|(address, _)| *address).collect();
        for address in fresh {
            let Some(entry) = self.table.entries.get(&address).copied() else { continue };
            let Some(owner) = entry.owner else { continue };
            let (standing, report) = match self.lead.peers.get(&owner) {
                Some(peer) => (peer.standing, peer.report.as_deref()),
                None if owner == self.me => (self.lead.mine, self.lead.my_report.as_deref()),
                None => continue,
            };
            if report.is_some_and(|report| report.cannot.get(&address) == Some(&Cannot::Conflict)) {
                if self.probing {
                    self.lead.retry_at.insert(address, self.now + self.lead.granting.lease());
                    self.take(address, owner);
                } else {
                    self.change(address, |entry| entry.conflict = Some(owner));
                }
            } else if standing.plumbed >= entry.since
                && report.is_some_and(|report| !report.cannot.contains_key(&address))
            {
                self.change(address, |entry| entry.fresh = false);
            }
        }
    }

    /// Old owners that said that an address is off.
    fn end_departures(&mut self) {
        let (peers, mine, me) = (&self.lead.peers, self.lead.mine, self.me);
        self.lead.leaving.retain(|_, (member, since)| {
            let applied = match peers.get(member) {
                Some(peer) => peer.standing.applied,
                None if *member == me => mine.applied,
                None => return false,
            };
            applied < *since && kept(Rule::ReleaseBeforeAcquire)
        });
    }

    /// Whether no member may hold anything that is not in the table.
    fn is_settled(&self) -> bool {
        let first = Version { term: self.lead.term, step: 0 };
        self.lead.mine.applied >= first && self.lead.peers.values().all(Peer::is_settled)
    }

    /// At the first start, addresses wait a moment for members that are just coming up, or the first would get all.
    fn is_gathering(&self) -> bool {
        let untouched = self.table.entries.values().all(|entry| entry.fresh && entry.owner.is_none());
        let missing =
            self.table.spec.members.keys().any(|member| {
                *member != self.me && self.lead.peers.get(member).is_none_or(|peer| peer.report.is_none())
            });
        untouched && missing && self.now < self.lead.won_at + self.lead.granting.lease()
    }

    /// Whether a member that may own addresses has not said yet to this leader what it can do. A choice without it would
    /// give the others more than their shares, and the balance would move addresses that nobody had to touch. It says so
    /// with its first word; for one whose words are lost nobody waits longer than for a few heartbeats.
    fn is_awaiting_reports(&self) -> bool {
        let serves = |member: &MemberId| self.table.spec.members.get(member).is_some_and(|spec| !spec.witness);
        let awaited = |(member, peer): (&MemberId, &Peer)| {
            let silent = !peer.lapsed && peer.report.is_none();
            silent && serves(member) && peer.report_due.is_none_or(|due| self.now < due)
        };
        kept(Rule::HearAllFirst) && self.lead.peers.iter().any(awaited)
    }

    fn place(&mut self) {
        let units = self.lead.units.clone();
        let situation = situation(self.now, self.me, self.lead, self.table);
        let mut targets = situation.place(&units);
        // A member alone cannot have all of a unit's addresses when a follower cannot be there.
        let misfits = misfits(&situation, &units, &targets);
        let quiet = self.lead.leaving.is_empty() && self.commit == self.table.version && self.draft.is_empty();
        // What is not on yet must not become more with every part.
        let quiet = quiet && self.count_arriving() < BATCH;
        let awaiting = self.is_awaiting_reports();
        let quiet = quiet && !awaiting;
        let wanted = self.lead.is_rebalancing(self.table);
        let mut moves = Vec::new();
        if quiet
            && wanted
            && targets
                .iter()
                .zip(&units[..])
                .all(|(target, unit)| self.table.owner(unit.lead) == target.owner || target.owner.is_none())
        {
            moves = situation.rebalance(&units, BATCH);
            if moves.is_empty() {
                self.lead.rebalance_ordered = false;
            }
        }
        for moved in moves {
            if let Some(number) = units.iter().position(|unit| unit.lead == moved.lead) {
                targets[number] = Target { owner: Some(moved.to), why: moved.why };
            }
        }
        let settled = self.is_settled();
        if settled && self.table.header.settled != self.lead.term.number {
            self.table.header.settled = self.lead.term.number;
            self.draft.header = true;
        }
        let free = settled && !self.is_gathering();
        let part = HAND_OVER.max(self.table.entries.len() / HAND_OVER_PART);
        // One part leaves while the one before it arrives.
        let belongs = |(unit, target): (&Unit, &Target)| match self.table.owner(unit.lead) {
            None if target.owner.is_some() => unit.addresses.len(),
            _ => 0,
        };
        let ownerless: usize = units.iter().zip(&targets).map(belongs).sum();
        let mut room = (2 * part).saturating_sub(ownerless + self.count_arriving()).min(part);
        for (unit, target) in units.iter().zip(&targets) {
            if awaiting && target.why == Why::Balance {
                continue;
            }
            if self.is_handed_over(unit.lead, target.owner) {
                // Its turn comes when others have arrived; until then its owner goes on answering.
                if room == 0 || !target.owner.is_some_and(|to| self.knows_orders(to)) {
                    continue;
                }
                room = room.saturating_sub(unit.addresses.len());
            }
            for address in &unit.addresses {
                let wanted = target.owner.filter(|_| !misfits.contains(address));
                self.settle(*address, unit.lead, wanted, free);
            }
        }
        self.remove_unwanted(free);
    }

    /// Whether a majority, and this member, have the last orders on their disks. Nobody answers for an address while a
    /// disk is waited for.
    fn knows_orders(&self, member: MemberId) -> bool {
        let since = self.lead.orders_since;
        self.commit >= since && self.lead.peers.get(&member).is_none_or(|peer| peer.standing.have >= since)
    }

    /// Whether an owner that is there would have to give this up to another.
    fn is_handed_over(&self, lead_address: IpAddr, wanted: Option<MemberId>) -> bool {
        let Some(owner) = self.table.owner(lead_address) else { return false };
        wanted.is_some_and(|wanted| wanted != owner) && self.presence_of(owner) == Presence::Here
    }

    /// Addresses that were given to members which do not have them on the network yet.
    fn count_arriving(&self) -> usize {
        let plumbed = |owner| match self.lead.peers.get(&owner) {
            Some(peer) => peer.standing.plumbed,
            None if owner == self.me => self.lead.mine.plumbed,
            None => Version::ZERO,
        };
        // An entry of an earlier term was on before this leader was elected, or is on its way anew.
        let here = |owner: &MemberId| self.presence_of(*owner) == Presence::Here;
        let arriving = |entry: &&Entry| {
            entry.since.term == self.lead.term
                && entry.owner.filter(here).is_some_and(|owner| plumbed(owner) < entry.since)
        };
        self.table.entries.values().filter(arriving).count()
    }

    fn presence_of(&self, member: MemberId) -> Presence {
        match self.lead.peers.get(&member) {
            Some(peer) => presence(self.now, peer, self.lead),
            None if member == self.me => Presence::Here,
            None => Presence::Gone,
        }
    }

    /// One step of an address towards where it belongs.
    fn settle(&mut self, address: IpAddr, lead_address: IpAddr, wanted: Option<MemberId>, free: bool) {
        let Some(entry) = self.table.entries.get(&address).copied() else { return };
        match entry.owner {
            Some(owner) if Some(owner) == wanted => {
                if address == lead_address {
                    self.lead.going.remove(&lead_address);
                }
            }
            Some(owner) => {
                if self.inherit(address, owner, wanted, free) {
                    return;
                }
                // What nobody has to give up is on its way to nobody: where it belongs is asked once it can be given.
                if self.take(address, owner)
                    && self.lead.leaving.contains_key(&address)
                    && let Some(wanted) = wanted
                    && address == lead_address
                {
                    self.lead.going.insert(lead_address, wanted);
                }
                let gone = !self.lead.leaving.contains_key(&address);
                if gone && self.table.owner(address).is_none() {
                    self.give(address, lead_address, wanted, free);
                }
            }
            None => self.give(address, lead_address, wanted, free),
        }
    }

    /// What a member had that is gone goes on in one step: thousands of addresses may be in the same position.
    fn inherit(&mut self, address: IpAddr, owner: MemberId, wanted: Option<MemberId>, free: bool) -> bool {
        let waits = self.lead.leaving.contains_key(&address) || self.lead.retry_at.contains_key(&address);
        if wanted.is_none() || !free || waits || self.probing || self.presence_of(owner) != Presence::Gone {
            return false;
        }
        self.lead.going.remove(&address);
        let next = self.next;
        self.change(address, |entry| (entry.owner, entry.since) = (wanted, next));
        true
    }

    fn give(&mut self, address: IpAddr, lead_address: IpAddr, wanted: Option<MemberId>, free: bool) {
        if !free || self.lead.leaving.contains_key(&address) {
            return;
        }
        let Some(wanted) = wanted else { return };
        if self.lead.retry_at.get(&address).is_some_and(|at| self.now < *at) {
            return;
        }
        let next = self.next;
        let probing = self.probing;
        self.change(address, |entry| {
            entry.owner = Some(wanted);
            entry.since = next;
            entry.fresh |= probing;
        });
        if address == lead_address {
            self.lead.going.remove(&lead_address);
        }
    }

    /// Takes an address from its owner, unless that one is in limbo. From one that is gone nothing has to come back.
    fn take(&mut self, address: IpAddr, owner: MemberId) -> bool {
        let presence = self.presence_of(owner);
        if presence == Presence::Limbo {
            return false;
        }
        if presence == Presence::Here {
            self.lead.leaving.insert(address, (owner, self.next));
        }
        let next = self.next;
        self.change(address, |entry| {
            entry.owner = None;
            entry.since = next;
        });
        true
    }

    /// Addresses that the configuration does not name any more.
    fn remove_unwanted(&mut self, free: bool) {
        let unwanted = |address: &IpAddr| !self.table.spec.vips.contains_key(address);
        let addresses: Vec<IpAddr> = self.table.entries.keys().copied().filter(unwanted).collect();
        for address in addresses {
            if let Some(owner) = self.table.owner(address) {
                self.take(address, owner);
            }
            let off = self.table.owner(address).is_none() && !self.lead.leaving.contains_key(&address);
            if off && free {
                self.table.entries.remove(&address);
                self.draft.entries.insert(address);
                self.lead.going.remove(&address);
            }
        }
    }

    /// When time alone will change something.
    fn look_again_at(&self) -> Time {
        let mut times = Vec::new();
        for (member, peer) in &self.lead.peers {
            times.extend(peer.here_since.map(|since| since + mature(self.now, *member, self.lead, self.table)));
        }
        times.push(self.lead.won_at + mature(self.now, self.me, self.lead, self.table));
        times.push(self.lead.won_at + self.lead.granting.lease());
        times.extend(self.lead.retry_at.values().copied());
        let silent = self.lead.peers.values().filter(|peer| peer.report.is_none());
        times.extend(silent.filter_map(|peer| peer.report_due));
        if self.table.header.longest != self.table.header.timing
            && let Some(longest) = self.table.header.longest
        {
            times.push(self.lead.granting_since + longest.silence() * 2);
        }
        times.into_iter().filter(|time| *time > self.now).min().unwrap_or(Time::NEVER)
    }
}

/// Followers that cannot go where the address goes that they follow.
fn misfits(situation: &Situation<'_>, units: &[Unit], targets: &[Target]) -> BTreeSet<IpAddr> {
    let mut misfits = BTreeSet::new();
    for (unit, target) in units.iter().zip(targets).filter(|(unit, _)| unit.addresses.len() > 1) {
        let owner = target.owner.and_then(|owner| situation.members.iter().find(|member| member.id == owner));
        let Some(owner) = owner.filter(|owner| owner.presence == Presence::Here) else { continue };
        let cannot = |address: &&IpAddr| situation.verdict(owner, **address) != Verdict::Candidate;
        misfits.extend(unit.addresses.iter().skip(1).filter(cannot));
    }
    misfits
}
