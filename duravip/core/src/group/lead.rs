//! A leader's office: who it hears, how long it leads, what a majority has, and the beats that say so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::election::Candidate;
use super::{Effect, Group, Mine, Promise, Role};
use crate::action::Notice;
use crate::assign::Unit;
use crate::config::Timing;
use crate::ids::{Incarnation, MemberId, Term, Version};
use crate::message::{Ack, Beat, Body, Report, Standing};
use crate::rules::{Rule, kept};
use crate::table::{History, Orders, Table};
use crate::time::Time;

/// Beats whose sending is remembered, to lead on from when a majority acknowledges one. Beats go out every h and after
/// changes; older ones than this would prolong nothing.
const BEATS_REMEMBERED: usize = 128;

/// Reports that may get lost one after the other: each beat is answered with one until one arrived.
const REPORTS: u32 = 4;

/// Between an event that decided something and the next plan, and for each address that it decided about: what others answer
/// to that comes before the next plan, which takes longer the more addresses there are.
const BREATH: Duration = Duration::from_micros(20);
const BREATH_FOR_EACH: Duration = Duration::from_nanos(500);

/// A leader's office.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Lead {
    pub(crate) term: Term,
    /// It leads until then, unless a majority acknowledges another beat.
    pub(crate) until: Time,
    pub(super) won_at: Time,
    /// The times that leases are given by: those of the newest table that is committed.
    pub(super) granting: Timing,
    /// The version that set the table's times.
    pub(super) timing_since: Version,
    /// Since when no lease is given by longer times than `granting`.
    pub(super) granting_since: Time,
    beat: u64,
    // Bounded by BEATS_REMEMBERED; the oldest goes first.
    sent: VecDeque<(u64, Time)>,
    next_beat: Time,
    beat_due: bool,
    pub(super) dirty: bool,
    pub(super) plan_at: Time,
    /// Not before then: what was decided or agreed on leaves first.
    pub(super) hold_until: Time,
    pub(super) peers: BTreeMap<MemberId, Peer>,
    pub(super) mine: Standing,
    pub(super) my_report: Option<Arc<Report>>,
    /// Addresses that were taken from a member, until it said that they are off at that version.
    pub(super) leaving: BTreeMap<IpAddr, (MemberId, Version)>,
    /// Where units are on their way to.
    pub(super) going: BTreeMap<IpAddr, MemberId>,
    pub(super) history: History,
    pub(super) units: Arc<Vec<Unit>>,
    pub(super) departed_at: BTreeMap<MemberId, Time>,
    pub(super) rebalance_ordered: bool,
    /// Orders that the next version will carry.
    pub(super) orders: Option<Orders>,
    /// The version that carried the last ones.
    pub(super) orders_since: Version,
    /// When an address that somebody answered for is tried again (a member alone, that probes).
    pub(super) retry_at: BTreeMap<IpAddr, Time>,
    /// Addresses in conflict that an operator wants all the same.
    pub(super) take: BTreeSet<IpAddr>,
}

/// What a leader knows of a member.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Peer {
    pub(super) incarnation: Incarnation,
    /// When it was last heard.
    pub(super) seen: Option<Time>,
    /// Its lease ends before this.
    pub(super) bound: Time,
    /// No lease from its last acknowledgement may be longer: `bound` was set by this. A configuration with longer
    /// leases would otherwise prolong one that is already counted as ended.
    most: Duration,
    /// Its lease has ended, and it has not been heard since.
    pub(super) lapsed: bool,
    /// Until it has applied this version, it may hold what nobody here knows of.
    pub(super) settle_at: Version,
    /// Since when it has been heard without a gap.
    pub(super) here_since: Option<Time>,
    /// Its report should be here by then, once it was heard.
    pub(super) report_due: Option<Time>,
    heard: Option<u64>,
    beat: u64,
    pub(super) standing: Standing,
    pub(super) report: Option<Arc<Report>>,
    sent: Option<(Version, Time)>,
}

impl Peer {
    pub(super) fn unheard(bound: Time, settle_at: Version) -> Self {
        Self {
            incarnation: Incarnation(0),
            seen: None,
            bound,
            most: Duration::ZERO,
            lapsed: false,
            settle_at,
            here_since: None,
            report_due: None,
            heard: None,
            beat: 0,
            standing: Standing::NONE,
            report: None,
            sent: None,
        }
    }

    /// Whether everything that it may hold is in the table or being taken from it.
    pub(super) fn is_settled(&self) -> bool {
        self.lapsed || self.standing.applied >= self.settle_at
    }

    pub(super) fn is_here(&self, now: Time, timing: Timing) -> bool {
        !self.lapsed && self.seen.is_some_and(|seen| now.since(seen) < timing.lease())
    }

    /// Its run is over: what it held is off the network, and what it said is void.
    fn end_run(&mut self) {
        self.heard = None;
        self.standing = Standing::NONE;
        self.report = None;
        self.settle_at = Version::ZERO;
        self.here_since = None;
        self.report_due = None;
        self.sent = None;
    }
}

impl Lead {
    #[allow(clippy::too_many_arguments, reason = "what one election hands over")]
    pub(super) fn new(
        now: Time,
        term: Term,
        won: &Candidate,
        longest: Timing,
        timing: Timing,
        table: &Table,
        gone: Option<MemberId>,
        me: MemberId,
    ) -> Self {
        let first = Version { term, step: 0 };
        let wait = match (won.early, kept(Rule::WaitForInherited)) {
            (_, false) => Duration::ZERO,
            (true, true) => longest.silence(),
            (false, true) => longest.inherited(),
        };
        let mut members: BTreeSet<MemberId> = table.header.electorate.everyone();
        members.extend(table.spec.members.keys());
        members.extend(table.entries.values().filter_map(|entry| entry.owner));
        members.remove(&me);
        let mut peers = BTreeMap::new();
        for member in members {
            let mut peer = Peer::unheard(now + wait, first);
            if let Some(vote) = won.votes.get(&member) {
                peer.incarnation = vote.incarnation;
                peer.standing.have = vote.have;
            } else if gone == Some(member) {
                peer.bound = now;
            }
            peers.insert(member, peer);
        }
        let mut history = History::default();
        history.push(table.version, BTreeSet::new(), false);
        Self {
            term,
            until: won.stood_at + won.promise,
            won_at: now,
            granting: timing,
            timing_since: first,
            granting_since: now,
            beat: 0,
            sent: VecDeque::new(),
            next_beat: now,
            beat_due: true,
            dirty: true,
            plan_at: now,
            hold_until: Time::ZERO,
            peers,
            mine: Standing::NONE,
            my_report: None,
            leaving: BTreeMap::new(),
            going: BTreeMap::new(),
            history,
            units: Arc::new(crate::assign::units(&table.spec)),
            departed_at: BTreeMap::new(),
            rebalance_ordered: false,
            orders: None,
            orders_since: Version::ZERO,
            retry_at: BTreeMap::new(),
            take: BTreeSet::new(),
        }
    }

    pub(super) fn wake_at(&self) -> Time {
        if self.beat_due {
            return Time::ZERO;
        }
        let bounds = self.peers.values().filter(|peer| !peer.lapsed).map(|peer| peer.bound);
        let plan = if self.dirty { Time::ZERO } else { bounds.fold(self.plan_at, Time::min) };
        plan.max(self.hold_until).min(self.until).min(self.next_beat)
    }

    pub(super) fn member_gone(&mut self, now: Time, member: MemberId, incarnation: Incarnation) {
        if let Some(peer) = self.peers.get_mut(&member)
            && (peer.incarnation <= incarnation || !kept(Rule::GoneNamesRun))
        {
            peer.end_run();
            peer.seen = None;
            peer.bound = now;
            self.leaving.retain(|_, (leaver, _)| *leaver != member);
            self.dirty = true;
        }
    }

    pub(super) fn member_restarted(&mut self, now: Time, member: MemberId, incarnation: Incarnation) {
        if let Some(peer) = self.peers.get_mut(&member)
            && peer.incarnation < incarnation
        {
            let first_word = peer.incarnation == Incarnation(0);
            peer.incarnation = incarnation;
            if !first_word {
                peer.end_run();
                self.leaving.retain(|_, (leaver, _)| *leaver != member);
                self.departed_at.insert(member, now);
                self.dirty = true;
            }
        }
    }

    /// Leads on from the newest beat that a majority acknowledged.
    fn prolong(&mut self, me: MemberId, table: &Table) {
        let beat_of = |member| match self.peers.get(&member) {
            Some(peer) => peer.beat,
            None if member == me => self.beat,
            None => 0,
        };
        let Some(agreed) = table.header.electorate.agreed(beat_of) else { return };
        while self.sent.front().is_some_and(|(number, _)| *number < agreed) {
            self.sent.pop_front();
        }
        if let Some((_, at)) = self.sent.front().filter(|(number, _)| *number == agreed) {
            self.until = self.until.max(*at + self.granting.promise());
        }
    }

    /// What a majority has of this term's table.
    fn committed(&self, me: MemberId, table: &Table) -> Option<Version> {
        let steps = |member| {
            let have = match self.peers.get(&member) {
                Some(peer) => peer.standing.have,
                None if member == me => table.version,
                None => Version::ZERO,
            };
            if have.term == self.term { have.step + 1 } else { 0 }
        };
        let agreed = table.header.electorate.agreed(steps)?;
        agreed.checked_sub(1).map(|step| Version { term: self.term, step })
    }

    /// Whether this leader has something to finish before it may leave: addresses on their way, or a table that no
    /// majority has.
    pub(crate) fn is_busy(&self, commit: Version, table: &Table) -> bool {
        !self.leaving.is_empty() || commit < table.version || self.dirty
    }

    /// The numbers of the reports that the others gave.
    pub(crate) fn reports(&self) -> Vec<(MemberId, u64)> {
        let number = |peer: &Peer| peer.report.as_ref().map_or(0, |report| report.number);
        self.peers.iter().map(|(member, peer)| (*member, number(peer))).collect()
    }

    /// Whether moves that nothing forces are made.
    pub(crate) fn is_rebalancing(&self, table: &Table) -> bool {
        table.spec.rebalance == crate::config::Rebalance::Auto || self.rebalance_ordered
    }

    pub(crate) fn situation<'a>(
        &'a self,
        now: Time,
        me: MemberId,
        table: &'a Table,
    ) -> Option<(crate::assign::Situation<'a>, Arc<Vec<Unit>>)> {
        Some((super::plan::situation(now, me, self, table), self.units.clone()))
    }

    /// How long leases given now run: as long as usual, but never past what a successor waits for.
    fn lease(&self, now: Time) -> Duration {
        let left = self.until.since(now);
        let tied = left + (self.granting.lease() - self.granting.promise());
        if kept(Rule::LeaseTiedToLeadership) { self.granting.lease().min(tied) } else { self.granting.lease() }
    }
}

impl Group {
    /// A leader that no majority acknowledged in time leads no more.
    pub(super) fn step_down_in_time(&mut self, now: Time, fx: &mut Vec<Effect>) {
        let Some(lead) = self.lead() else { return };
        if now < lead.until {
            return;
        }
        fx.push(Effect::Notice(Notice::Deposed(lead.term)));
        self.role = Role::Follower;
        self.following = None;
        // The others have waited for as long and hear each other better.
        self.stand_after = now + self.random_part(self.timing().promise(), 15, 40);
    }

    pub(super) fn on_ack(&mut self, now: Time, from: MemberId, incarnation: Incarnation, ack: &Ack) {
        let longest = self.longest();
        let mut silence = longest.silence();
        if !kept(Rule::WaitForSilence) {
            silence = longest.lease() / 2;
        }
        let Role::Leader(lead) = &mut self.role else { return };
        if ack.term != lead.term || !lead.peers.contains_key(&from) {
            return;
        }
        lead.member_restarted(now, from, incarnation);
        let Some(peer) = lead.peers.get_mut(&from) else { return };
        if peer.heard.is_some_and(|heard| heard >= ack.number) {
            return;
        }
        let before = (peer.standing, peer.here_since.is_some());
        peer.heard = Some(ack.number);
        peer.seen = Some(now);
        peer.bound = now + silence;
        peer.most = longest.lease();
        // Back again: it lacks what was decided meanwhile.
        lead.beat_due |= std::mem::take(&mut peer.lapsed);
        peer.beat = peer.beat.max(ack.beat);
        peer.standing = ack.standing;
        // Who was here all along is not newer here than the leader, by whichever beat its first word comes.
        let stayed =
            self.table.header.view.get(&from).is_some_and(|seen| seen.present && seen.incarnation == incarnation)
                && now < lead.won_at + lead.granting.lease();
        peer.here_since.get_or_insert(if stayed { lead.won_at } else { now });
        peer.report_due.get_or_insert(now + lead.granting.heartbeat() * REPORTS);
        lead.dirty |= before != (peer.standing, true);
        lead.prolong(self.me, &self.table);
    }

    pub(super) fn on_report(&mut self, from: MemberId, term: Term, report: Arc<Report>) {
        let Role::Leader(lead) = &mut self.role else { return };
        if term != lead.term {
            return;
        }
        if let Some(peer) = lead.peers.get_mut(&from)
            && peer.report.as_ref().is_none_or(|known| known.number < report.number)
        {
            peer.report = Some(report);
            lead.dirty = true;
        }
    }

    /// Plans if something changed, notes what a majority has, and beats if it is time or there is something to say.
    pub(super) fn finish_leading(&mut self, now: Time, mine: Mine<'_>, fx: &mut Vec<Effect>) {
        let Role::Leader(lead) = &mut self.role else { return };
        if lead.mine != mine.standing || lead.my_report.as_ref() != Some(mine.report) {
            lead.mine = mine.standing;
            lead.my_report = Some(mine.report.clone());
            lead.dirty = true;
        }
        lead.prolong(self.me, &self.table);
        if self.note_commit(now) {
            self.hold_plans(now, 0);
        }
        self.plan_if_due(now, mine, fx);
        // Alone, a leader is its own majority.
        self.note_commit(now);
        self.beat_if_due(now, fx);
        self.hand_over_if_removed(fx);
        if mine.config.stranger {
            self.hand_over_to_who_knows(now, fx);
        }
        if let Role::Leader(lead) = &self.role
            && self.commit.term == lead.term
        {
            fx.push(Effect::Lease(lead.until + (lead.granting.lease() - lead.granting.promise())));
        }
    }

    /// A leader that votes no more goes on until nothing depends on it; its silence makes the others elect.
    fn hand_over_if_removed(&mut self, fx: &mut Vec<Effect>) {
        let Role::Leader(lead) = &self.role else { return };
        let header = &self.table.header;
        let out = !header.electorate.contains(self.me) && !self.table.spec.members.contains_key(&self.me);
        // In this order: the owners are looked for in the whole table.
        if !out || self.table.owned_by(self.me).next().is_some() || lead.is_busy(self.commit, &self.table) {
            return;
        }
        fx.push(Effect::Notice(Notice::Deposed(lead.term)));
        self.role = Role::Follower;
        self.following = None;
    }

    /// A leader that knows no configuration brought the others' tables up to date, which none of them could: whoever had the
    /// newest of them could not win against this voter. Now they can. It elects nobody before its own leadership would
    /// have ended, for the leases that it gave last as long as that allows.
    fn hand_over_to_who_knows(&mut self, now: Time, fx: &mut Vec<Effect>) {
        let Role::Leader(lead) = &self.role else { return };
        let witness = |member: &MemberId| self.table.spec.members.get(member).is_some_and(|spec| spec.witness);
        let mut others = lead.peers.iter().filter(|(member, _)| !witness(member));
        let ready = |peer: &Peer| peer.standing.have == self.table.version && peer.is_here(now, lead.granting);
        if lead.is_busy(self.commit, &self.table) || !others.any(|(_, peer)| ready(peer)) {
            return;
        }
        fx.push(Effect::Notice(Notice::Deposed(lead.term)));
        self.promise = Some(Promise { to: self.me, until: lead.until, void: false });
        self.stand_after = lead.until + self.timing().lease();
        self.role = Role::Follower;
        self.following = None;
    }

    /// Whether a majority has more than it had.
    fn note_commit(&mut self, now: Time) -> bool {
        let Role::Leader(lead) = &mut self.role else { return false };
        let Some(committed) = lead.committed(self.me, &self.table) else { return false };
        // What came before the voters changed is counted with that change: the new voters alone say nothing about it.
        if committed <= self.commit || committed < self.table.header.electorate_since {
            return false;
        }
        self.commit = committed;
        lead.beat_due = true;
        lead.dirty = true;
        let timing = self.table.header.timing;
        if committed >= lead.timing_since
            && let Some(timing) = timing.filter(|timing| *timing != lead.granting)
        {
            lead.granting = timing;
            lead.granting_since = now;
        }
        true
    }

    /// The next plan waits until what follows from this event has left. With thousands of addresses a plan takes
    /// milliseconds, and whoever was just given some would wait for it.
    pub(super) fn hold_plans(&mut self, now: Time, decided: usize) {
        if let Role::Leader(lead) = &mut self.role {
            lead.hold_until = now + BREATH + BREATH_FOR_EACH * decided as u32;
        }
    }

    fn beat_if_due(&mut self, now: Time, fx: &mut Vec<Effect>) {
        let Role::Leader(lead) = &mut self.role else { return };
        if !lead.beat_due && now < lead.next_beat {
            return;
        }
        lead.beat_due = false;
        lead.next_beat = now + lead.granting.heartbeat();
        lead.beat += 1;
        if lead.sent.len() == BEATS_REMEMBERED {
            lead.sent.pop_front();
        }
        lead.sent.push_back((lead.beat, now));
        // A lone leader acknowledges itself.
        lead.prolong(self.me, &self.table);
        let lease = if self.commit.term == lead.term { lead.lease(now) } else { Duration::ZERO };
        for (member, peer) in &mut lead.peers {
            let beat = Beat {
                term: lead.term,
                number: lead.beat,
                table: self.table.version,
                commit: self.commit,
                heard: peer.heard,
                lease: if kept(Rule::LeaseAsCounted) { lease.min(peer.most) } else { lease },
                promise: lead.granting.promise(),
                report: peer.report.as_ref().map_or(0, |report| report.number),
            };
            let beat = Effect::Send(*member, Body::Beat(beat));
            let again = lead.granting.heartbeat();
            let sent = peer.sent.is_some_and(|(sent, at)| sent == self.table.version && now.since(at) < again);
            // Who is gone hears nothing, and a table of thousands of addresses takes a while to write.
            let known = !peer.lapsed && (peer.heard.is_some() || peer.standing.have != Version::ZERO);
            if peer.standing.have == self.table.version || !known || sent {
                fx.push(beat);
                continue;
            }
            peer.sent = Some((self.table.version, now));
            let update = lead.history.update_from(peer.standing.have, &self.table);
            let table = Effect::Send(*member, Body::Table(lead.term, update));
            // Who does not follow this leader yet takes no table of it; everybody else acknowledges both with one word.
            let follows = peer.heard.is_some();
            fx.extend(if follows { [table, beat] } else { [beat, table] });
        }
    }

    /// Something changed: say so with the next beat, at once.
    pub(super) fn beat_soon(&mut self) {
        if let Role::Leader(lead) = &mut self.role {
            lead.beat_due = true;
        }
    }
}
