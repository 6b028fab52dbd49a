//! Serving without a majority, for sites that ask for it. A member that finds no leader looks around: with
//! `no_quorum = "serve"` those that hear each other both ways form a group of their own, with its own elections, leases
//! and table, seeded from the last table of the cluster. With `"probe"` (two members, no witness) the survivor is such
//! a group alone, its lease runs only as long as the network around it answers, and it probes before it takes what it
//! did not have. Either way two owners are possible, and status says so.
//!
//! The cluster's group goes on beside it, untouched: what a part does is volatile and never reaches the cluster's
//! elections. As soon as the cluster has a leader again the part is over, its members act on the cluster's table, and
//! release what is not theirs there before they may take anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::action::{Action, Notice, Stored};
use crate::config::NoQuorum;
use crate::electorate::Electorate;
use crate::group::Group;
use crate::ids::{MemberId, Version};
use crate::member::Member;
use crate::message::{GroupTag, Message};
use crate::time::Time;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Apart {
    policy: NoQuorum,
    pub(crate) group: Option<Group>,
    /// When each member was last heard, and whether it said that it hears this one.
    heard: BTreeMap<MemberId, (Time, bool)>,
    leaderless_since: Option<Time>,
    next_hello: Time,
    /// Those who hear each other both ways, and since when it has been just these.
    around: (BTreeSet<MemberId>, Time),
    network_seen: Option<Time>,
    /// The highest term number of any part so far: versions of parts must not repeat.
    term: u64,
}

impl Apart {
    pub(crate) fn new(policy: NoQuorum) -> Self {
        Self {
            policy,
            group: None,
            heard: BTreeMap::new(),
            leaderless_since: None,
            next_hello: Time::ZERO,
            around: (BTreeSet::new(), Time::ZERO),
            network_seen: None,
            term: 0,
        }
    }

    pub(crate) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    pub(crate) fn configure(&mut self, now: Time, policy: NoQuorum) {
        if policy != self.policy {
            *self = Self { next_hello: now, term: self.term, ..Self::new(policy) };
        }
    }

    pub(crate) fn network_seen(&mut self, now: Time) {
        self.network_seen = Some(now);
    }

    pub(crate) fn hello(&mut self, now: Time, from: MemberId, me: MemberId, hears: &BTreeSet<MemberId>) {
        if self.policy == NoQuorum::Serve {
            self.heard.insert(from, (now, hears.contains(&me)));
        }
    }
}

impl Member {
    pub(crate) fn tick_apart(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.apart.policy == NoQuorum::Stop || self.leaving {
            return;
        }
        if self.cluster.leadership().is_some() {
            self.apart.leaderless_since = None;
            return;
        }
        let timing = self.cluster.timing();
        let since = *self.apart.leaderless_since.get_or_insert(now);
        self.look_around(now, out);
        // In time for a lease that still runs to go on; an election of the cluster is usually over by then. Alone, there
        // is nobody to wait for.
        let alone = self.apart.policy == NoQuorum::Probe;
        let sure = alone || now >= self.apart.around.1 + timing.heartbeat();
        let settled = now >= since + timing.promise() / 4 && sure;
        if settled && self.may_serve_apart(now) {
            self.serve_apart(now, out);
        }
        let mut fx = Vec::new();
        if let Some(group) = self.apart.group.as_mut() {
            group.tick(now, &mut fx);
            let tag = group.tag;
            self.run(now, tag, fx, out);
        }
    }

    pub(crate) fn wake_apart_at(&self) -> Time {
        if self.apart.policy == NoQuorum::Stop || self.cluster.leadership().is_some() {
            return Time::NEVER;
        }
        self.apart.group().map_or(Time::NEVER, Group::wake_at).min(self.apart.next_hello)
    }

    /// A lease by the network's word alone ends with it.
    pub(crate) fn limit_apart(&self, until: Time) -> Time {
        if self.apart.policy != NoQuorum::Probe || self.apart.group.is_none() {
            return until;
        }
        let seen = self.apart.network_seen.unwrap_or(Time::ZERO);
        until.min(seen + self.cluster.timing().lease())
    }

    /// Says hello, and sees who else does.
    fn look_around(&mut self, now: Time, out: &mut Vec<Action>) {
        let timing = self.cluster.timing();
        if now < self.apart.next_hello {
            return;
        }
        self.apart.next_hello = now + timing.heartbeat() / 2;
        let fresh = timing.heartbeat() * 3;
        let hears: BTreeSet<MemberId> =
            self.apart.heard.iter().filter(|(_, (at, _))| now.since(*at) <= fresh).map(|(member, _)| *member).collect();
        let mut around: BTreeSet<MemberId> = hears
            .iter()
            .filter(|member| self.apart.heard.get(member).is_some_and(|(_, mutual)| *mutual))
            .copied()
            .collect();
        around.insert(self.me);
        if around != self.apart.around.0 {
            self.apart.around = (around, now);
        }
        if self.apart.policy == NoQuorum::Serve {
            let everyone = self.cluster.table.header.electorate.everyone();
            let others = everyone.into_iter().filter(|member| *member != self.me);
            out.extend(others.map(|member| Action::Send(member, Message::Hello(hears.clone()))));
        }
    }

    /// Whether those around may serve: not while they can elect a leader of the cluster.
    fn may_serve_apart(&self, now: Time) -> bool {
        let around = &self.apart.around.0;
        let electorate = &self.cluster.table.header.electorate;
        let same = self.apart.group().is_some_and(|group| group.table.header.electorate.voters == *around);
        if same || !electorate.contains(self.me) || electorate.majority(|member| around.contains(&member)) {
            return false;
        }
        match self.apart.policy {
            NoQuorum::Stop => false,
            NoQuorum::Serve => true,
            NoQuorum::Probe => {
                let seen = self.apart.network_seen.is_some_and(|at| now < at + self.cluster.timing().lease());
                electorate.everyone().len() == 2 && seen
            }
        }
    }

    fn serve_apart(&mut self, now: Time, out: &mut Vec<Action>) {
        let around = self.apart.around.0.clone();
        let base = self.active();
        let mut table = base.table.clone();
        let commit = base.commit;
        table.header.electorate = Electorate::of(around.iter().copied());
        // Runs and parts come and go: a jump keeps their versions apart.
        self.apart.term = self.apart.term.max(self.cluster_term())
            + 1
            + (self.incarnation.0 ^ now.since_start().as_micros() as u64) % 65_521;
        if self.apart.policy == NoQuorum::Probe {
            let held: BTreeSet<_> = self.held().collect();
            for (address, entry) in &mut table.entries {
                entry.fresh |= !held.contains(address);
            }
        }
        let stored = Arc::new(Stored {
            incarnation: self.incarnation,
            term: self.apart.term,
            voted: None,
            electorate: table.header.electorate.clone(),
            electorate_version: Version::ZERO,
            orders: table.header.orders.clone(),
            longest: table.header.longest,
        });
        let tag = GroupTag::Part(number_of(&around));
        let timing = self.cluster.timing();
        let mut group = Group::new(self.me, tag, stored, timing, now, false, self.apart.term ^ self.me.0);
        table.header.electorate_since = Version::ZERO;
        group.table = table;
        group.commit = commit;
        group.apart = true;
        group.probing = self.apart.policy == NoQuorum::Probe;
        self.cluster.apart = true;
        self.apart.group = Some(group);
        self.table_changed();
        out.push(Action::Notice(Notice::ServingApart(around)));
    }

    /// The cluster has a leader again.
    pub(crate) fn rejoin(&mut self, out: &mut Vec<Action>) {
        self.apart.leaderless_since = None;
        self.cluster.apart = false;
        let Some(part) = self.apart.group.take() else { return };
        self.apart.term = self.apart.term.max(part.table.version.term.number);
        // A leader of the cluster that served goes on from there: its addresses need not move back and forth.
        self.cluster.inherit(&part.table);
        self.table_changed();
        out.push(Action::Notice(Notice::Rejoined));
    }
}

/// A number for a set of members (FNV-1a).
fn number_of(members: &BTreeSet<MemberId>) -> u64 {
    let bytes = members.iter().flat_map(|member| member.0.to_le_bytes());
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}
