//! A revision number of a repository was given once: no two clients were told different commits for it, and a node's records are numbered
//! from one without gaps.

use std::collections::BTreeMap;

use super::super::history::Ack;
use crate::state::State;

pub(crate) fn check_acks(acks: &[Ack]) -> Result<(), String> {
    let mut given = BTreeMap::new();
    for ack in acks {
        let before = given.insert((&ack.repo, ack.head.revision), ack);
        if let Some(before) = before.filter(|before| before.message != ack.message) {
            return Err(format!("one number was given twice: {before:?} and {ack:?}"));
        }
    }
    Ok(())
}

pub(crate) fn check_node(node: u64, state: &State) -> Result<(), String> {
    for (name, repo) in state.view().repos.iter() {
        let head = repo.record.head;
        let records = state.revisions(name, 1, u64::MAX).map_err(|error| error.to_string())?;
        let numbers: Vec<u64> = records.iter().map(|record| record.revision).collect();
        if numbers != (1..=head.revision).collect::<Vec<_>>() {
            return Err(format!("n{node} has {name} at r{} with the revisions {numbers:?}", head.revision));
        }
        if records.last().is_some_and(|last| last.commit != head.commit) {
            return Err(format!("n{node}: the newest record of {name} is not its head {head:?}"));
        }
    }
    Ok(())
}
