//! Where the other members are looked for.
//!
//! Four may say it, and are believed in this order: the member itself, when it called; the operator (`--peer`); another member, to whom it
//! said so; the log, which comes with the target. All of them can be out of date, so a place where nobody was found stands behind every other
//! one until those were tried, too. None of this is a matter of trust: who answers at an address is told by its certificate.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Target;

/// What is known about addresses; as much as there are members, see [`Addresses::keep`].
pub(super) struct Addresses {
    /// By name, from the operator.
    told: BTreeMap<String, String>,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    /// By number, from the members themselves.
    said: BTreeMap<u64, String>,
    /// By number, from others who had it from them.
    passed_on: HashMap<u64, String>,
    /// Where a member was not found, and the number of that attempt.
    in_vain: HashMap<(u64, String), u64>,
    attempts: u64,
}

impl Addresses {
    pub(super) fn new(told: BTreeMap<String, String>) -> Self {
        Self { told, heard: Mutex::default() }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member where it is to be looked for now.
    pub(super) fn found(&self, target: &Target) -> Target {
        let (heard, id) = (self.heard(), target.raft_id);
        let known = [heard.said.get(&id), self.told.get(&target.node), heard.passed_on.get(&id), Some(&target.address)];
        // Of equals the first: where nothing failed, the order above decides.
        let best = known.into_iter().flatten().min_by_key(|place| heard.in_vain.get(&(id, (*place).clone())));
        Target { address: best.unwrap_or(&target.address).clone(), ..target.clone() }
    }

    /// Somebody went there and found the member, or did not.
    pub(super) fn tried(&self, target: &Target, found: bool) {
        let mut heard = self.heard();
        heard.attempts += 1;
        let (place, attempt) = ((target.raft_id, target.address.clone()), heard.attempts);
        match found {
            true => heard.in_vain.remove(&place),
            false => heard.in_vain.insert(place, attempt),
        };
    }

    /// The member itself says where it is.
    pub(super) fn said(&self, raft_id: u64, address: &str) {
        let mut heard = self.heard();
        heard.said.insert(raft_id, address.to_owned());
        heard.in_vain.remove(&(raft_id, address.to_owned()));
    }

    /// What the members themselves said.
    pub(super) fn all_said(&self) -> BTreeMap<u64, String> {
        self.heard().said.clone()
    }

    /// Another member says where they told it they are.
    pub(super) fn pass_on(&self, places: BTreeMap<u64, String>) {
        self.heard().passed_on.extend(places);
    }

    /// Forgets who is not among these.
    pub(super) fn keep(&self, members: &[Target]) {
        let mut heard = self.heard();
        let stays = |id: u64| members.iter().any(|member| member.raft_id == id);
        heard.said.retain(|id, _| stays(*id));
        heard.passed_on.retain(|id, _| stays(*id));
        heard.in_vain.retain(|(id, _), _| stays(*id));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_are_tried_in_order_of_belief_and_then_in_turn() {
        let addresses = Addresses::new(BTreeMap::from([("b".into(), "told:1".into())]));
        let member = Target { raft_id: 2, node: "b".into(), address: "log:1".into() };
        let miss = || {
            let found = addresses.found(&member);
            addresses.tried(&found, false);
            found.address
        };
        addresses.pass_on(BTreeMap::from([(2, "passed:1".into()), (3, "other:1".into())]));
        assert_eq!([miss(), miss(), miss(), miss(), miss()], ["told:1", "passed:1", "log:1", "told:1", "passed:1"]);
        // What it says itself is tried next, and again once it was there.
        addresses.said(2, "own:1");
        assert_eq!([miss(), miss()], ["own:1", "log:1"]);
        addresses.tried(&Target { address: "own:1".into(), ..member.clone() }, true);
        assert_eq!(addresses.found(&member).address, "own:1");
        // Only first-hand words are handed on, and nothing stays of who has gone.
        assert_eq!(addresses.all_said(), BTreeMap::from([(2, "own:1".into())]));
        addresses.keep(&[]);
        assert_eq!(addresses.found(&member).address, "told:1");
    }
}
