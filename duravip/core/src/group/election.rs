//! Elections. A member that wants to lead asks first whether it could win (so that one that cannot hear raises no
//! terms), then asks for votes. A voter refuses while it is promised to another, and whoever has an older table: with
//! the newest table among a majority, the winner knows every ownership that anybody can act on.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Effect, Group, Lead, Role};
use crate::action::Notice;
use crate::electorate::Electorate;
use crate::ids::{Incarnation, MemberId, Term, Version};
use crate::message::{Body, Candidacy, Refusal};
use crate::rules::{Rule, kept};
use crate::time::Time;

/// Asks whether it could win.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PreCandidate {
    pub(super) retry_at: Time,
    round: u64,
    /// Who would elect it, with the highest term each knows.
    yes: BTreeMap<MemberId, u64>,
    /// The highest term that anybody knows.
    term: u64,
}

/// Asks for votes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Candidate {
    pub(super) retry_at: Time,
    pub(super) stood_at: Time,
    pub(super) promise: Duration,
    term: u64,
    pub(super) votes: BTreeMap<MemberId, Vote>,
    pub(super) early: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Vote {
    pub(super) incarnation: Incarnation,
    pub(super) have: Version,
}

impl Group {
    /// When this voter stands, if it hears nothing.
    pub(super) fn stand_at(&self) -> Time {
        if !self.table.header.electorate.contains(self.me) {
            return Time::NEVER;
        }
        let free_at = match self.promise {
            Some(promise) if promise.to != self.me && !promise.void => promise.until,
            _ => Time::ZERO,
        };
        free_at.max(self.stand_after).max(self.silent_until) + self.stagger()
    }

    /// The members stand one after the other, so that the first wins undisturbed: those in the view by id, without the
    /// leader that fell silent, then the rest; witnesses last, they should vote rather than work.
    fn stagger(&self) -> Duration {
        let header = &self.table.header;
        let key = |member: MemberId| {
            let witness = self.table.spec.members.get(&member).is_some_and(|spec| spec.witness);
            let absent = header.view.get(&member).is_none_or(|seen| !seen.present);
            (witness, absent, member)
        };
        let mine = key(self.me);
        let old = self.promise.map(|promise| promise.to);
        let before =
            header.electorate.everyone().into_iter().filter(|member| Some(*member) != old && key(*member) < mine);
        self.timing().heartbeat() / 2 * before.count() as u32
    }

    fn candidacy(&self) -> Candidacy {
        Candidacy {
            round: self.round,
            have: self.table.version,
            voters: self.table.header.electorate.clone(),
            voters_since: self.table.header.electorate_since,
            promise: self.timing().promise(),
        }
    }

    /// Asks whether it could win.
    pub(super) fn ask(&mut self, now: Time, fx: &mut Vec<Effect>) {
        self.round += 1;
        self.following = None;
        // Tries that failed are repeated at a random time: two that collided do not collide again.
        let retry_at = now + self.random_part(self.timing().promise(), 15, 40);
        let yes = BTreeMap::from([(self.me, self.term)]);
        self.role = Role::PreCandidate(PreCandidate { retry_at, round: self.round, yes, term: self.term });
        let question = Body::MayI(self.candidacy());
        fx.extend(self.everyone_else().map(|member| Effect::Send(member, question.clone())));
        self.stand_if_possible(now, fx);
    }

    pub(super) fn on_may_i(&mut self, now: Time, from: MemberId, candidacy: Candidacy, fx: &mut Vec<Effect>) {
        let round = candidacy.round;
        let refusal = self.refusal(now, from, &candidacy);
        if self.lead().is_none() {
            self.take_voters(candidacy.voters, candidacy.voters_since, fx);
        }
        if refusal == Some(Refusal::Behind) && matches!(self.role, Role::Follower) {
            // Nobody but somebody with this table can win: there is nothing to wait for.
            self.stand_after = Time::ZERO;
            if now >= self.stand_at() - self.stagger() {
                self.ask(now, fx);
            }
        }
        fx.push(Effect::Send(from, Body::YouMay { round, term: self.term, refusal }));
    }

    /// Newer voters, learnt from another voter: the same as hearing late from the leader that named them.
    fn take_voters(&mut self, voters: Electorate, since: Version, fx: &mut Vec<Effect>) -> bool {
        let header = &mut self.table.header;
        let newer = since > header.electorate_since;
        if newer {
            header.electorate = voters;
            header.electorate_since = since;
            self.persist(fx);
        }
        newer
    }

    /// What stands against electing this candidate.
    fn refusal(&self, now: Time, from: MemberId, candidacy: &Candidacy) -> Option<Refusal> {
        let header = &self.table.header;
        if candidacy.voters_since < header.electorate_since {
            return Some(Refusal::Voters(header.electorate.clone(), header.electorate_since));
        }
        if candidacy.have < self.table.version {
            return Some(Refusal::Behind);
        }
        if now < self.silent_until && kept(Rule::Silence) {
            return Some(Refusal::Wait(self.silent_until.since(now)));
        }
        if let Some(lead) = self.lead() {
            return Some(Refusal::Wait(lead.until.since(now)));
        }
        match self.promise {
            Some(made) if made.to != from && !made.void && now < made.until && kept(Rule::Promise) => {
                Some(Refusal::Wait(made.until.since(now)))
            }
            _ => None,
        }
    }

    pub(super) fn on_you_may(
        &mut self,
        now: Time,
        from: MemberId,
        round: u64,
        term: u64,
        refusal: Option<Refusal>,
        fx: &mut Vec<Effect>,
    ) {
        let breath = self.timing().heartbeat() / 16;
        let Role::PreCandidate(candidate) = &mut self.role else {
            return;
        };
        if candidate.round != round {
            return;
        }
        candidate.term = candidate.term.max(term);
        match refusal {
            None => {
                candidate.yes.insert(from, term);
            }
            Some(Refusal::Wait(wait)) => candidate.retry_at = candidate.retry_at.min(now + wait + breath),
            Some(Refusal::Behind) => {}
            Some(Refusal::Voters(voters, since)) => {
                if self.take_voters(voters, since, fx) {
                    self.ask(now, fx);
                }
                return;
            }
        }
        self.stand_if_possible(now, fx);
    }

    fn stand_if_possible(&mut self, now: Time, fx: &mut Vec<Effect>) {
        let Role::PreCandidate(candidate) = &self.role else {
            return;
        };
        if self.table.header.electorate.majority(|member| candidate.yes.contains_key(&member)) {
            let term = candidate.term;
            self.stand(now, term, fx);
        }
    }

    /// Asks for votes in the term after `term`.
    pub(super) fn stand(&mut self, now: Time, term: u64, fx: &mut Vec<Effect>) {
        let early = self.early(now) || self.lead().is_some();
        self.term = self.term.max(term) + 1;
        self.voted = Some(self.me);
        self.following = None;
        self.persist(fx);
        let vote = Vote { incarnation: self.stored.incarnation, have: self.table.version };
        let promise = self.timing().promise();
        let retry_at = now + self.random_part(promise, 15, 40);
        let votes = BTreeMap::from([(self.me, vote)]);
        self.role = Role::Candidate(Candidate { retry_at, stood_at: now, promise, term: self.term, votes, early });
        let question = Body::Elect { term: self.term, candidacy: self.candidacy() };
        fx.extend(self.everyone_else().map(|member| Effect::Send(member, question.clone())));
        self.win_if_elected(now, fx);
    }

    pub(super) fn on_elect(
        &mut self,
        now: Time,
        from: MemberId,
        term: u64,
        candidacy: Candidacy,
        fx: &mut Vec<Effect>,
    ) {
        if term <= self.term || self.refusal(now, from, &candidacy).is_some() {
            return;
        }
        let early = self.early(now);
        self.term = term;
        self.voted = Some(from);
        // A candidacy of its own is over with this: two elections never count the same voter.
        self.role = Role::Follower;
        self.following = None;
        self.promise_to(now, from, candidacy.promise);
        self.persist(fx);
        fx.push(Effect::Send(from, Body::Elected { term, have: self.table.version, early }));
    }

    /// Whether leases may run that the usual wait of a new leader does not cover: those of a leader whose leadership
    /// was cut short, or of a part.
    fn early(&self, now: Time) -> bool {
        self.apart || self.promise.is_some_and(|promise| promise.void && now < promise.until)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message, and what every handler takes")]
    pub(super) fn on_elected(
        &mut self,
        now: Time,
        from: MemberId,
        incarnation: Incarnation,
        term: u64,
        have: Version,
        early: bool,
        fx: &mut Vec<Effect>,
    ) {
        let Role::Candidate(candidate) = &mut self.role else {
            return;
        };
        if candidate.term != term {
            return;
        }
        candidate.early |= early;
        candidate.votes.insert(from, Vote { incarnation, have });
        self.win_if_elected(now, fx);
    }

    fn win_if_elected(&mut self, now: Time, fx: &mut Vec<Effect>) {
        let Role::Candidate(candidate) = &self.role else {
            return;
        };
        // Late votes may have come for a candidacy whose promises are nearly over.
        let elected = self.table.header.electorate.majority(|member| candidate.votes.contains_key(&member));
        if !elected || now >= candidate.stood_at + candidate.promise {
            return;
        }
        let term = Term { number: candidate.term, leader: self.me };
        let longest = self.longest();
        let gone = self.gone.filter(|(_, known)| known + 1 == term.number).map(|(member, _)| member);
        let lead = Lead::new(now, term, candidate, longest, self.timing(), &self.table, gone, self.me);
        self.table.version = Version { term, step: 0 };
        self.role = Role::Leader(Box::new(lead));
        self.promise = None;
        fx.push(Effect::Notice(Notice::Leading(term)));
    }

    /// A member left this leader's term behind: it voted in a higher one that nobody won. Only a higher term brings it
    /// back. The other voters are promised to this leader and elect it again at once.
    pub(super) fn on_stale(&mut self, now: Time, from: MemberId, term: u64, fx: &mut Vec<Effect>) {
        let behind = self.lead().is_some_and(|lead| lead.term.number < term);
        if behind && self.table.header.electorate.contains(from) {
            if let Some(lead) = self.lead() {
                fx.push(Effect::Notice(Notice::Deposed(lead.term)));
            }
            self.stand(now, term, fx);
        }
    }
}
