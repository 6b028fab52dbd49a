//! What people are shown, as JSON: made from a copy of the core, away from the loop.

use std::collections::BTreeMap;
use std::net::IpAddr;

use duravip_core::assign::{Verdict, Why};
use duravip_core::{Cannot, Difference, Explanation, Member, MemberId, Placement, Time, Trouble};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A question that only the leader can answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// Everything.
    Show,
    /// Why an address is where it is.
    Explain(IpAddr),
    /// What would move if a member were gone.
    Without(String),
}

/// The members' names; a number where a name is not known.
fn name(member: &Member, id: MemberId) -> String {
    let named = |spec: &duravip_core::Spec| spec.members.get(&id).map(|member| member.name.clone());
    named(&member.table().spec).unwrap_or_else(|| id.to_string())
}

/// Answers a question from a copy of the core, as far as this member knows.
pub fn answer(member: &Member, now: Time, question: &Question) -> Value {
    match question {
        Question::Show => show(member, now),
        Question::Explain(address) => explain(member, now, *address),
        Question::Without(gone) => without(member, now, gone),
    }
}

/// Whether this member can answer what only a leader knows.
pub fn leads(member: &Member) -> bool {
    member.leadership().is_some_and(|term| term.leader == member.id())
}

fn show(member: &Member, now: Time) -> Value {
    let table = member.table();
    let known = member.explain_all(now);
    let explained: BTreeMap<IpAddr, &Explanation> =
        known.iter().flatten().map(|explanation| (explanation.address, explanation)).collect();
    let vips: Vec<Value> =
        table.spec.vips.keys().map(|address| vip(member, *address, explained.get(address).copied())).collect();
    json!({
        "complete": known.is_some(),
        "at_rest": member.at_rest(now),
        "members": members(member),
        "vips": vips,
    })
}

/// The members as the table has them.
pub fn members(member: &Member) -> Vec<Value> {
    let table = member.table();
    let leader = member.leadership().map(|term| term.leader);
    let electorate = table.header.electorate.everyone();
    let one = |(id, spec): (&MemberId, &duravip_core::MemberSpec)| {
        let seen = table.header.view.get(id).copied().unwrap_or_default();
        json!({
            "name": spec.name,
            "present": seen.present,
            "leader": leader == Some(*id),
            "voter": electorate.contains(id),
            "witness": spec.witness,
            "drained": table.header.orders.drained.contains(id),
            "weight": spec.weight,
            "labels": spec.labels,
            "departures": seen.departures,
            "addresses": table.owned_by(*id).count(),
        })
    };
    table.spec.members.iter().map(one).collect()
}

fn vip(member: &Member, address: IpAddr, explained: Option<&Explanation>) -> Value {
    let table = member.table();
    let entry = table.entries.get(&address).copied().unwrap_or_default();
    let spec = &table.spec.vips[&address];
    let difference = explained.and_then(|explanation| explanation.difference);
    let state = state_text(Trouble::of(Some(&entry), difference));
    let candidates: Vec<String> = explained
        .iter()
        .flat_map(|explanation| &explanation.verdicts)
        .filter(|(_, verdict)| *verdict == Verdict::Candidate)
        .map(|(id, _)| name(member, *id))
        .collect();
    json!({
        "address": address,
        "name": spec.name,
        "owner": entry.owner.map(|owner| name(member, owner)),
        "state": state,
        "why": explained.map(|explanation| why_text(explanation.why)),
        "pinned": table.header.orders.pins.contains_key(&address),
        "candidates": candidates,
        "follows": match spec.placement { Placement::Follows(other) => Some(other), _ => None },
        "preference": match spec.placement { Placement::Preferred(other) => Some(name(member, other)), _ => None },
        "since": entry.since.to_string(),
        "here": member.holds(address),
    })
}

fn explain(member: &Member, now: Time, address: IpAddr) -> Value {
    let Some(explanation) = member.explain(now, address) else { return Value::Null };
    let verdicts: BTreeMap<String, String> =
        explanation.verdicts.iter().map(|(id, verdict)| (name(member, *id), verdict_text(verdict))).collect();
    json!({
        "address": address,
        "lead": explanation.lead,
        "owner": explanation.owner.map(|owner| name(member, owner)),
        "target": explanation.target.map(|target| name(member, target)),
        "why": why_text(explanation.why),
        "members": verdicts,
        "difference": explanation.difference.map(|difference| match difference {
            Difference::Name => "BROKEN: members disagree about its name",
            Difference::Services => "UNSAFE: members disagree about its services",
            Difference::Preference => "conflict: members prefer different nodes, so it is placed as if none were preferred",
        }),
    })
}

fn without(member: &Member, now: Time, gone: &str) -> Value {
    let Some(changes) = member.simulate_without(now, MemberId::of_name(gone)) else { return Value::Null };
    let change = |change: &duravip_core::Change| {
        json!({
            "address": change.address,
            "from": change.from.map(|id| name(member, id)),
            "to": change.to.map(|id| name(member, id)),
            "why": why_text(change.why),
        })
    };
    json!({ "without": gone, "moves": changes.iter().map(change).collect::<Vec<_>>() })
}

/// The state of an address, as commands and hooks say it.
pub fn state_text(trouble: Option<Trouble>) -> &'static str {
    match trouble {
        None => "safe",
        Some(Trouble::Unsafe) => "UNSAFE",
        Some(Trouble::Broken) => "BROKEN",
        Some(Trouble::Conflict) => "conflict",
    }
}

/// The reason in words.
pub fn why_text(why: Why) -> &'static str {
    match why {
        Why::Pinned => "moved there by an operator",
        Why::Preferred => "preferred there",
        Why::Stays => "it is there, and nothing asks for a move",
        Why::Limbo => "its owner is silent and may still have it",
        Why::Balance => "that member had the least for its weight",
        Why::NoCandidate => "no member may have it",
        Why::Conflict => "somebody outside answers for it",
        Why::Broken => "members disagree about its name",
    }
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Candidate => "candidate".into(),
        Verdict::Absent => "not there".into(),
        Verdict::Unreported => "has not said yet what it can do".into(),
        Verdict::NoMember => "not a member in the configuration".into(),
        Verdict::Witness => "a witness".into(),
        Verdict::Draining => "drained or leaving".into(),
        Verdict::Label(label) => format!("lacks the label {label}"),
        Verdict::Check(check) => format!("fails the check {check}"),
        Verdict::Cannot(why) => cannot_text(*why).into(),
    }
}

fn cannot_text(why: Cannot) -> &'static str {
    match why {
        Cannot::Unknown => "its configuration does not have it",
        Cannot::NoInterface => "the interface is missing or down",
        Cannot::NoSubnet => "the interface has no address of that family",
        Cannot::OwnAddress => "it is the node's own address",
        Cannot::Refused => "its kernel refused it",
        Cannot::Conflict => "it found somebody else answering for it",
    }
}
