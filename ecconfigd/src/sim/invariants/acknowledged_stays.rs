//! A commit that was acknowledged is in every member's history at the end, under the revision and the commit id that the client was told.

use super::super::history::Ack;
use crate::state::State;

pub(crate) fn check(node: u64, state: &State, acks: &[Ack]) -> Result<(), String> {
    for ack in acks {
        let found = state.revision(&ack.repo, ack.head.revision).map_err(|error| error.to_string())?;
        let found = found.map(|record| (record.commit, record.message));
        if found.as_ref() != Some(&(ack.head.commit, ack.message.clone())) {
            return Err(format!("n{node} lost {ack:?}, which was acknowledged: it has {found:?}"));
        }
    }
    Ok(())
}

/// The same for objects: every acknowledged commit is reached from the head through its first parents.
pub(crate) fn check_objects(node: u64, state: &State, acks: &[Ack]) -> Result<(), String> {
    let missing = state.missing_objects();
    if !missing.is_empty() {
        return Err(format!("n{node} lacks objects that its refs name: {missing:?}"));
    }
    for (name, repo) in state.view().repos.iter() {
        let reader = repo.store.reader().map_err(|error| error.to_string())?;
        let mut chain = std::collections::BTreeSet::new();
        let mut at = repo.record.head.commit;
        while !at.is_null() && chain.insert(at) {
            let commit = reader.commit(at).map_err(|error| format!("n{node}, {name}, commit {at}: {error}"))?;
            at = commit.parents.first().copied().unwrap_or(repos::Oid::NULL);
        }
        let lost = acks.iter().find(|ack| ack.repo == *name && !chain.contains(&ack.head.commit));
        if let Some(lost) = lost {
            return Err(format!("n{node}: {lost:?} was acknowledged and is not in git's history of {name}"));
        }
    }
    Ok(())
}
