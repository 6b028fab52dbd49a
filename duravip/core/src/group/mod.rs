//! One group of voters: its elections, its leader's leases, its table. The cluster is a group; so is, where parts may
//! serve without a majority, each part.
//!
//! What always holds:
//! * A leader leads until (the sending of a beat that a majority acknowledged) + P, and every voter of that majority
//!   elects nobody else before. So two leaders never lead at once.
//! * A member's lease runs from the sending of its own acknowledgement, and never past the leadership + (L − P). So a
//!   leader that heard nothing for L, or a new one after L − P, knows that it has ended.
//! * Leases are given only once a majority has the leader's table, so every later leader knows of every owner.

mod election;
mod lead;
mod order;
mod plan;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::action::{Notice, Stored};
use crate::config::{Config, Timing};
use crate::ids::{Incarnation, MemberId, Term, Version};
use crate::message::{Ack, Beat, Body, GroupTag, Report, Standing};
use crate::rules::{Rule, kept};
use crate::table::{Entry, Table};
use crate::time::Time;

use election::{Candidate, PreCandidate};
pub(crate) use lead::Lead;

/// Acknowledgements whose sending is remembered, to start a lease from. An echo comes back within a round trip; one
/// that took longer than this many acknowledgements is older than any lease.
const ACKS_REMEMBERED: usize = 128;

/// What a group wants done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub(crate) enum Effect {
    Persist(Arc<Stored>),
    Send(MemberId, Body),
    Lease(Time),
    Notice(Notice),
}

/// What a member says about itself.
#[derive(Clone, Copy)]
pub(crate) struct Mine<'a> {
    pub(crate) standing: Standing,
    pub(crate) report: &'a Arc<Report>,
    pub(crate) config: &'a Arc<Config>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub(crate) enum Role {
    Follower,
    PreCandidate(PreCandidate),
    Candidate(Candidate),
    Leader(Box<Lead>),
}

/// Whom this voter will elect nobody instead of, and until when.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Promise {
    to: MemberId,
    until: Time,
    /// The one it was made to is known to be gone.
    void: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Following {
    term: Term,
    incarnation: Incarnation,
    beat: u64,
    /// The report that the leader has.
    report: u64,
    report_sent: bool,
    ack_due: bool,
    told: Standing,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Group {
    pub(crate) me: MemberId,
    pub(crate) tag: GroupTag,
    pub(crate) table: Table,
    pub(crate) commit: Version,
    /// The newest table that a beat named: with less, this member takes nothing.
    latest: Version,
    pub(crate) role: Role,
    /// What is on disk. A part's group is volatile and never persists.
    stored: Arc<Stored>,
    durable: bool,
    /// This voter's state, ahead of the disk only within one event.
    term: u64,
    voted: Option<MemberId>,
    following: Option<Following>,
    promise: Option<Promise>,
    silent_until: Time,
    mute: bool,
    stand_after: Time,
    round: u64,
    seed: u64,
    // Bounded by ACKS_REMEMBERED; the oldest goes first.
    acks: VecDeque<(u64, Time)>,
    next_ack: u64,
    /// The leader that is known to be gone, and the highest term at that time. A successor of the very next term knows
    /// that nobody gave that member a lease since; of any other member, or later, its next run may have one.
    gone: Option<(MemberId, u64)>,
    /// The times of this member's own configuration, until a table says otherwise.
    timing: Timing,
    /// This member may hold addresses by another authority: a leader of this group must wait for a whole lease.
    pub(crate) apart: bool,
    /// This group is one member that must probe before it takes anything.
    pub(crate) probing: bool,
}

impl Group {
    pub(crate) fn new(
        me: MemberId,
        tag: GroupTag,
        stored: Arc<Stored>,
        timing: Timing,
        silent_until: Time,
        mute: bool,
        seed: u64,
    ) -> Self {
        let mut table = Table::empty();
        table.header.electorate = stored.electorate.clone();
        table.header.electorate_since = stored.electorate_version;
        table.header.orders = stored.orders.clone();
        table.header.longest = stored.longest;
        Self {
            me,
            tag,
            table,
            commit: Version::ZERO,
            latest: Version::ZERO,
            role: Role::Follower,
            term: stored.term,
            voted: stored.voted,
            durable: tag == GroupTag::Cluster,
            stored,
            following: None,
            promise: None,
            silent_until,
            mute,
            stand_after: Time::ZERO,
            round: 0,
            seed,
            acks: VecDeque::new(),
            next_ack: 1,
            gone: None,
            timing,
            apart: false,
            probing: false,
        }
    }

    /// Takes the times of a new configuration; they hold only until a table says otherwise.
    pub(crate) fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// The times in force here.
    pub(crate) fn timing(&self) -> Timing {
        self.table.header.timing.unwrap_or(self.timing)
    }

    /// The longest times that a lease or promise of this group may have been given by.
    fn longest(&self) -> Timing {
        let timing = self.timing();
        match self.table.header.longest {
            Some(longest) if kept(Rule::LongestLease) => longest.longer(timing),
            _ => timing,
        }
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    /// A new leader of the cluster that served apart goes on from that table.
    pub(crate) fn inherit(&mut self, part: &Table) {
        let Role::Leader(lead) = &mut self.role else { return };
        for (address, entry) in &mut self.table.entries {
            if let Some(theirs) = part.entries.get(address)
                && theirs.owner.is_some()
            {
                *entry = Entry { owner: theirs.owner, since: self.table.version, ..*entry };
            }
        }
        // What differs from the old table has no step that says so: everybody gets the whole.
        lead.history = crate::table::History::default();
    }

    pub(crate) fn lead(&self) -> Option<&Lead> {
        match &self.role {
            Role::Leader(lead) => Some(lead),
            _ => None,
        }
    }

    /// The leadership that this member acts under, its own or another's.
    pub(crate) fn leadership(&self) -> Option<Term> {
        self.lead().map(|lead| lead.term).or(self.following.map(|following| following.term))
    }

    /// Whether this table is as new as what the leader last named: only then may addresses be taken by it.
    pub(crate) fn is_current(&self) -> bool {
        self.table.version >= self.latest || !kept(Rule::FreshTable)
    }

    /// Whether the owner of this entry may take the address: a majority has the version that says so, and its leader
    /// knows that nobody else may hold it. An entry of an earlier term may be older than what voters knew that have lost
    /// their tables since; it waits until every member has applied this leader's table or has no lease any more.
    pub(crate) fn may_take(&self, entry: &Entry) -> bool {
        let version = self.table.version;
        let settled = entry.since.term == version.term || self.table.header.settled == version.term.number;
        let committed = entry.since <= self.commit || !kept(Rule::CommitFirst);
        committed && (settled || !kept(Rule::SettleFirst))
    }

    pub(crate) fn receive(
        &mut self,
        now: Time,
        from: MemberId,
        incarnation: Incarnation,
        body: Body,
        fx: &mut Vec<Effect>,
    ) {
        // After losing its disk a voter hears and says nothing until whatever it may have said before is over.
        if self.mute && now < self.silent_until && kept(Rule::Silence) {
            return;
        }
        self.step_down_in_time(now, fx);
        match body {
            Body::MayI(candidacy) => self.on_may_i(now, from, candidacy, fx),
            Body::YouMay { round, term, refusal } => self.on_you_may(now, from, round, term, refusal, fx),
            Body::Elect { term, candidacy } => self.on_elect(now, from, term, candidacy, fx),
            Body::Elected { term, have, early } => self.on_elected(now, from, incarnation, term, have, early, fx),
            Body::Stale { term } => self.on_stale(now, from, term, fx),
            Body::Beat(beat) => self.on_beat(now, from, incarnation, beat, fx),
            Body::Table(term, update) => self.on_table(from, term, &update, fx),
            Body::Ack(ack) => self.on_ack(now, from, incarnation, &ack),
            Body::Report(term, report) => self.on_report(from, term, report),
        }
    }

    pub(crate) fn tick(&mut self, now: Time, fx: &mut Vec<Effect>) {
        self.step_down_in_time(now, fx);
        let due = match &self.role {
            Role::Follower => now >= self.stand_at(),
            Role::PreCandidate(candidate) => now >= candidate.retry_at,
            Role::Candidate(candidate) => now >= candidate.retry_at,
            Role::Leader(_) => false,
        };
        if due {
            self.ask(now, fx);
        }
    }

    /// What follows from an event, once the member has done its part: acknowledgements, or a leader's plan and beats.
    pub(crate) fn finish(&mut self, now: Time, mine: Mine<'_>, fx: &mut Vec<Effect>) {
        match &self.role {
            Role::Leader(_) => self.finish_leading(now, mine, fx),
            _ => self.acknowledge(now, mine, fx),
        }
    }

    pub(crate) fn wake_at(&self) -> Time {
        match &self.role {
            Role::Follower => self.stand_at(),
            Role::PreCandidate(candidate) => candidate.retry_at,
            Role::Candidate(candidate) => candidate.retry_at,
            Role::Leader(lead) => lead.wake_at(),
        }
    }

    /// A member's run is over, and nothing of it is left on the network.
    pub(crate) fn on_gone(&mut self, now: Time, member: MemberId, incarnation: Incarnation) {
        if let Role::Leader(lead) = &mut self.role {
            lead.member_gone(now, member, incarnation);
        }
        let over = |run: Incarnation| run <= incarnation || !kept(Rule::GoneNamesRun);
        if self.following.is_some_and(|following| following.term.leader == member && over(following.incarnation)) {
            self.following = None;
            self.gone = Some((member, self.term));
            if let Some(promise) = self.promise.as_mut().filter(|promise| promise.to == member) {
                promise.void = true;
            }
            self.stand_after = now;
        }
    }

    /// A member's new run spoke: the old one ended, and cleaned up before the new one started.
    pub(crate) fn on_new_run(&mut self, now: Time, member: MemberId, incarnation: Incarnation) {
        if let Role::Leader(lead) = &mut self.role {
            lead.member_restarted(now, member, incarnation);
        }
    }

    fn on_beat(&mut self, now: Time, from: MemberId, incarnation: Incarnation, beat: Beat, fx: &mut Vec<Effect>) {
        if beat.term.leader != from {
            return;
        }
        if beat.term.number < self.term && kept(Rule::RefuseStale) {
            fx.push(Effect::Send(from, Body::Stale { term: self.term }));
            return;
        }
        if let Role::Leader(lead) = &self.role {
            if lead.term.number == beat.term.number {
                fx.push(Effect::Notice(Notice::TwoLeaders(beat.term)));
            }
            fx.push(Effect::Notice(Notice::Deposed(lead.term)));
        }
        self.role = Role::Follower;
        if beat.term.number > self.term {
            self.term = beat.term.number;
            self.voted = None;
            self.persist(fx);
        }
        let followed = self.following.filter(|following| following.term == beat.term);
        if followed.is_none() {
            fx.push(Effect::Notice(Notice::Following(beat.term)));
        }
        self.promise_to(now, from, beat.promise);
        let following = self.following.insert(followed.unwrap_or(Following {
            term: beat.term,
            incarnation,
            beat: 0,
            report: 0,
            report_sent: false,
            ack_due: true,
            told: Standing::NONE,
        }));
        following.incarnation = incarnation;
        self.latest = self.latest.max(beat.table);
        following.beat = following.beat.max(beat.number);
        following.report = beat.report;
        following.report_sent = false;
        following.ack_due = true;
        self.commit = self.commit.max(beat.commit);
        let echoed = beat.heard.and_then(|number| self.acks.iter().find(|(sent, _)| *sent == number));
        if let Some((_, sent_at)) = echoed
            && !beat.lease.is_zero()
        {
            fx.push(Effect::Lease(*sent_at + beat.lease));
        }
    }

    fn promise_to(&mut self, now: Time, to: MemberId, promise: Duration) {
        // The clock of a voter may run faster than the leader's: a little more than it asked for.
        let until = now + promise + promise / 250;
        match &mut self.promise {
            Some(made) if made.to == to && !made.void => made.until = made.until.max(until),
            made => *made = Some(Promise { to, until, void: false }),
        }
    }

    fn on_table(&mut self, from: MemberId, term: Term, update: &crate::table::Update, fx: &mut Vec<Effect>) {
        let Some(following) = self.following.as_mut().filter(|following| following.term == term) else {
            return;
        };
        if term.leader != from || update.version <= self.table.version {
            return;
        }
        if !self.table.take(update) {
            following.ack_due = true;
            return;
        }
        self.persist(fx);
    }

    /// Acknowledges, after a beat or when what there is to say changed.
    fn acknowledge(&mut self, now: Time, mine: Mine<'_>, fx: &mut Vec<Effect>) {
        let Some(following) = self.following.as_mut() else {
            return;
        };
        if following.ack_due || following.told != mine.standing {
            following.ack_due = false;
            following.told = mine.standing;
            let number = self.next_ack;
            self.next_ack += 1;
            if self.acks.len() == ACKS_REMEMBERED {
                self.acks.pop_front();
            }
            self.acks.push_back((number, now));
            let ack = Ack { term: following.term, beat: following.beat, number, standing: mine.standing };
            fx.push(Effect::Send(following.term.leader, Body::Ack(ack)));
        }
        if following.report != mine.report.number && !following.report_sent {
            following.report_sent = true;
            fx.push(Effect::Send(following.term.leader, Body::Report(following.term, mine.report.clone())));
        }
    }

    /// Puts on disk what must be there before the next message leaves.
    fn persist(&mut self, fx: &mut Vec<Effect>) {
        if !self.durable {
            return;
        }
        let header = &self.table.header;
        let same = self.stored.term == self.term
            && self.stored.voted == self.voted
            && self.stored.electorate_version == header.electorate_since
            && self.stored.electorate == header.electorate
            && self.stored.orders == header.orders
            && self.stored.longest == header.longest;
        if same {
            return;
        }
        let remember = kept(Rule::PersistVote);
        self.stored = Arc::new(Stored {
            incarnation: self.stored.incarnation,
            term: if remember { self.term } else { 0 },
            voted: self.voted.filter(|_| remember),
            electorate: header.electorate.clone(),
            electorate_version: header.electorate_since,
            orders: header.orders.clone(),
            longest: header.longest,
        });
        fx.push(Effect::Persist(self.stored.clone()));
    }

    fn everyone_else(&self) -> impl Iterator<Item = MemberId> + use<> {
        let me = self.me;
        self.table.header.electorate.everyone().into_iter().filter(move |member| *member != me)
    }

    /// A number from the seed (splitmix64).
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.seed;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// A part of a span between two percentages.
    fn random_part(&mut self, span: Duration, from: u32, to: u32) -> Duration {
        let spread = self.random() % u64::from((to - from) * 100);
        span * (from * 100 + spread as u32) / 10_000
    }
}
