//! The agreed table: which address belongs to whom. There is one author per term and one history per author, so a
//! version names a content; members exchange versions all the time and contents only when they lack one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{Spec, Timing};
use crate::electorate::Electorate;
use crate::ids::{ConfigId, Incarnation, MemberId, Version};

/// Steps that a leader can still describe as a difference. A member further behind gets the whole table; at one step
/// per heartbeat that is a member that missed more than its lease.
const HISTORY_STEPS: usize = 64;

/// The table.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Table {
    /// Which state of it.
    pub version: Version,
    /// Everything that is not one address.
    pub header: Header,
    /// Which configuration it was made from.
    pub config: ConfigId,
    /// What it was made from.
    pub spec: Arc<Spec>,
    /// The addresses.
    pub entries: BTreeMap<IpAddr, Entry>,
}

/// Everything in the table that is not one address.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Header {
    /// Who votes.
    pub electorate: Electorate,
    /// The version that said so.
    pub electorate_since: Version,
    /// The times that leases and promises are given by once this version is committed. None in the empty table.
    pub timing: Option<Timing>,
    /// The longest times that a lease which still runs may have been given by.
    pub longest: Option<Timing>,
    /// The number of the term whose leader knows of every holder: entries of earlier terms may be acted on again.
    pub settled: u64,
    /// The members that take part.
    pub view: BTreeMap<MemberId, Seen>,
    /// What operators said.
    pub orders: Orders,
}

/// A member in the view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Whether it is there now.
    pub present: bool,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// How often it left lately. It comes with the table, so that a new leader damps a flapping member like the old one.
    pub departures: u32,
}

/// What operators said; kept until they say otherwise.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Orders {
    /// Addresses that stay with one member while it may have them.
    pub pins: BTreeMap<IpAddr, MemberId>,
    /// Members that get no addresses.
    pub drained: BTreeSet<MemberId>,
    /// Counts requests that every owner announces what it has.
    pub announce: u64,
}

/// An address in the table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Who may have it.
    pub owner: Option<MemberId>,
    /// The version that said so. The owner acts on it when a majority has that version.
    pub since: Version,
    /// Nobody had it before: its owner looks first whether somebody else on the segment answers for it.
    pub fresh: bool,
    /// Somebody outside answers for it, says this member. Nobody gets it until an operator says so.
    pub conflict: Option<MemberId>,
}

impl Table {
    /// Before everything.
    pub fn empty() -> Self {
        Self {
            version: Version::ZERO,
            header: Header::default(),
            config: ConfigId::NONE,
            spec: Arc::new(Spec::default()),
            entries: BTreeMap::new(),
        }
    }

    /// Who may have the address.
    pub fn owner(&self, address: IpAddr) -> Option<MemberId> {
        self.entries.get(&address)?.owner
    }

    /// What a member may have.
    pub fn owned_by(&self, member: MemberId) -> impl Iterator<Item = (IpAddr, &Entry)> {
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.owner == Some(member))
            .map(|(address, entry)| (*address, entry))
    }

    /// Everything, for a member that has nothing to build on.
    pub fn whole(&self) -> Update {
        Update {
            base: None,
            version: self.version,
            header: self.header.clone(),
            config: self.config,
            spec: Some(self.spec.clone()),
            entries: self.entries.iter().map(|(address, entry)| (*address, Some(*entry))).collect(),
        }
    }

    /// Takes an update over. False, and nothing changes, if this is not a version that it builds on: its base, or one
    /// between its base and itself, of which it repeats the changes.
    #[must_use]
    pub fn take(&mut self, update: &Update) -> bool {
        let between = |base| base < self.version && self.version.term == update.version.term;
        match update.base {
            None => self.entries.clear(),
            Some(base) if base == self.version || between(base) => {}
            Some(_) => return false,
        }
        for (address, entry) in &update.entries {
            match entry {
                Some(entry) => self.entries.insert(*address, *entry),
                None => self.entries.remove(address),
            };
        }
        self.version = update.version;
        self.header = update.header.clone();
        self.config = update.config;
        if let Some(spec) = &update.spec {
            self.spec = spec.clone();
        }
        true
    }
}

/// A table, or what makes one out of an older one.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Update {
    /// What it builds on; nothing: it is a whole table.
    pub base: Option<Version>,
    /// What it leads to.
    pub version: Version,
    /// The header, always whole: it is small.
    pub header: Header,
    /// The configuration.
    pub config: ConfigId,
    /// What it says, if it is new since the base.
    pub spec: Option<Arc<Spec>>,
    /// Changed entries; `None` is one that is gone.
    pub entries: Vec<(IpAddr, Option<Entry>)>,
}

/// The last steps of a leader's table, to describe differences.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct History {
    // Bounded by HISTORY_STEPS; the oldest step goes first, and who needs it gets the whole table.
    steps: VecDeque<Step>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Step {
    from: Version,
    changed: BTreeSet<IpAddr>,
    new_spec: bool,
}

impl History {
    /// Notes the step that leads away from a version.
    pub fn push(&mut self, from: Version, changed: BTreeSet<IpAddr>, new_spec: bool) {
        if self.steps.len() == HISTORY_STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(Step { from, changed, new_spec });
    }

    /// What a member at `base` needs to come to the table.
    pub fn update_from(&self, base: Version, table: &Table) -> Update {
        let Some(first) = self.steps.iter().position(|step| step.from == base) else {
            return table.whole();
        };
        let mut changed = BTreeSet::new();
        let mut new_spec = false;
        for step in self.steps.iter().skip(first) {
            changed.extend(step.changed.iter().copied());
            new_spec |= step.new_spec;
        }
        Update {
            base: Some(base),
            version: table.version,
            header: table.header.clone(),
            config: table.config,
            spec: new_spec.then(|| table.spec.clone()),
            entries: changed.into_iter().map(|address| (address, table.entries.get(&address).copied())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::Term;
    use proptest::prelude::*;

    fn version(step: u64) -> Version {
        Version { term: Term { number: 1, leader: MemberId(1) }, step }
    }

    proptest! {
        #[test]
        fn differences_and_whole_tables_lead_to_the_same(
            steps in proptest::collection::vec(proptest::collection::vec((0u8..12, 0u64..4), 0..5), 1..90),
            behind in 0usize..90,
            meanwhile in 0usize..3,
        ) {
            let mut table = Table::empty();
            let mut history = History::default();
            let mut past = vec![table.clone()];
            for (number, changes) in steps.iter().enumerate() {
                let mut changed = BTreeSet::new();
                let from = table.version;
                for (last, owner) in changes {
                    let address = IpAddr::from([10, 0, 0, *last]);
                    changed.insert(address);
                    if *owner == 0 {
                        table.entries.remove(&address);
                    } else {
                        table.entries.insert(address, Entry { owner: Some(MemberId(*owner)), ..Entry::default() });
                    }
                }
                table.version = version(number as u64);
                history.push(from, changed, false);
                past.push(table.clone());
            }
            let mut member = past[past.len().saturating_sub(1 + behind)].clone();
            let update = history.update_from(member.version, &table);
            // Another update may have come first.
            let later = past.iter().position(|table| table.version == member.version).unwrap() + meanwhile;
            if member.version != Version::ZERO && later < past.len() {
                member = past[later].clone();
            }
            prop_assert!(update.base.is_none() || steps.len() <= HISTORY_STEPS || behind <= HISTORY_STEPS);
            prop_assert!(member.take(&update));
            prop_assert_eq!(member, table);
        }
    }

    #[test]
    fn a_difference_to_something_else_is_not_taken() {
        let mut member = Table::empty();
        let mut update = member.whole();
        update.base = Some(version(7));
        let before = member.clone();
        assert!(!member.take(&update));
        assert_eq!(member, before);
    }
}
