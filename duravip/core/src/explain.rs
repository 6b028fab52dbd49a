//! Why an address is where it is, and what would happen without a node: the assignment itself, asked for its reasons.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::assign::{self, Presence, Situation, Unit, Verdict, Why};
use crate::ids::MemberId;
use crate::message::Difference;
use crate::table::Entry;

/// Why an address is where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The address.
    pub address: IpAddr,
    /// The address it follows, or itself.
    pub lead: IpAddr,
    /// Who may have it, by the table.
    pub owner: Option<MemberId>,
    /// Where it belongs.
    pub target: Option<MemberId>,
    /// Why there.
    pub why: Why,
    /// What each member is to it.
    pub verdicts: Vec<(MemberId, Verdict)>,
    /// Whether members disagree about it.
    pub difference: Option<Difference>,
}

/// A change that an imagined event would bring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// The address.
    pub address: IpAddr,
    /// Its owner now.
    pub from: Option<MemberId>,
    /// Its owner then.
    pub to: Option<MemberId>,
    /// Why.
    pub why: Why,
}

/// What is wrong with an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Somebody outside answered for it, or members prefer different owners.
    Conflict,
    /// Members disagree which services live on it: still managed.
    Unsafe,
    /// Members disagree about its name: refused.
    Broken,
}

impl Trouble {
    /// From the table, and from what members say.
    pub fn of(entry: Option<&Entry>, difference: Option<Difference>) -> Option<Self> {
        match (entry.and_then(|entry| entry.conflict), difference) {
            (Some(_), _) => Some(Self::Conflict),
            (None, Some(Difference::Name)) => Some(Self::Broken),
            (None, Some(Difference::Services)) => Some(Self::Unsafe),
            (None, Some(Difference::Preference)) => Some(Self::Conflict),
            (None, None) => None,
        }
    }
}

/// The addresses with which something is wrong.
pub fn troubles(situation: &Situation<'_>) -> BTreeMap<IpAddr, Trouble> {
    let conflicts = situation.entries.iter().filter(|(_, entry)| entry.conflict.is_some());
    let here = situation.members.iter().filter(|member| member.presence == Presence::Here);
    let differing = here.filter_map(|member| member.report).flat_map(|report| report.differs.keys());
    let addresses = conflicts.map(|(address, _)| address).chain(differing);
    let of = |address: &IpAddr| {
        let trouble = Trouble::of(situation.entries.get(address), situation.difference(*address))?;
        Some((*address, trouble))
    };
    addresses.filter_map(of).collect()
}

/// Why an address is where it is; nothing if there is no such address.
pub fn explain(situation: &Situation<'_>, units: &[Unit], address: IpAddr) -> Option<Explanation> {
    let unit = units.iter().position(|unit| unit.addresses.contains(&address))?;
    let target = *situation.place(units).get(unit)?;
    Some(explanation(situation, &units[unit], target, address))
}

/// Why every address is where it is.
pub fn explain_all(situation: &Situation<'_>, units: &[Unit]) -> Vec<Explanation> {
    let placed = units.iter().zip(situation.place(units));
    let addresses =
        placed.flat_map(|(unit, target)| unit.addresses.iter().map(move |address| (unit, target, *address)));
    addresses.map(|(unit, target, address)| explanation(situation, unit, target, address)).collect()
}

fn explanation(situation: &Situation<'_>, unit: &Unit, target: assign::Target, address: IpAddr) -> Explanation {
    let member_of = |member: &assign::Ability<'_>| (member.id, situation.verdict(member, address));
    Explanation {
        address,
        lead: unit.lead,
        owner: situation.entries.get(&address).and_then(|entry| entry.owner),
        target: target.owner,
        why: target.why,
        verdicts: situation.members.iter().map(member_of).collect(),
        difference: situation.difference(address),
    }
}

/// Whether everything is where it belongs, and time alone will move nothing: no member is silent whose addresses would
/// have to go, and with `rebalancing` none has only just come back, who would be given some.
pub fn at_rest(situation: &Situation<'_>, units: &[Unit], rebalancing: bool) -> bool {
    let at_rest = |member: &assign::Ability<'_>| match member.presence {
        Presence::Here => member.ripe || !rebalancing,
        Presence::Limbo => false,
        Presence::Gone => true,
    };
    let owner = |unit: &Unit| situation.entries.get(&unit.lead).and_then(|entry| entry.owner);
    let targets = situation.place(units);
    let placed = |(target, unit): (&assign::Target, &Unit)| target.owner == owner(unit) && target.why != Why::Limbo;
    situation.members.iter().all(at_rest)
        && targets.iter().zip(units).all(placed)
        && (!rebalancing || situation.rebalance(units, 1).is_empty())
}

/// What would move if a member were gone.
pub fn without(situation: &Situation<'_>, units: &[Unit], gone: MemberId) -> Vec<Change> {
    let mut imagined = situation.clone();
    for member in &mut imagined.members {
        if member.id == gone {
            member.presence = Presence::Gone;
        }
    }
    let before = situation.place(units);
    let after = imagined.place(units);
    let pairs = units.iter().zip(before.iter().zip(&after));
    pairs
        .filter(|(_, (before, after))| before.owner != after.owner)
        .flat_map(|(unit, (before, after))| {
            unit.addresses.iter().map(|address| Change {
                address: *address,
                from: before.owner,
                to: after.owner,
                why: after.why,
            })
        })
        .collect()
}
