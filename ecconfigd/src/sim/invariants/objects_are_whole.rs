//! Every member can read, at the end, everything that its refs reach, and every object is what its name says; no pack of it is damaged.

use std::collections::BTreeSet;

use crate::state::State;

pub(crate) fn check(node: u64, state: &State) -> Result<(), String> {
    for (name, repo) in state.view().repos.iter() {
        let tips: BTreeSet<repos::Oid> = repo.refs.values().copied().collect();
        let tips: Vec<repos::Oid> = tips.into_iter().collect();
        let problems = repo.store.verify(&tips).map_err(|error| format!("n{node}, {name}: {error}"))?;
        if let Some(first) = problems.first() {
            return Err(format!("n{node} does not have {name} whole, {} problems, first {first:?}", problems.len()));
        }
        let bad = repo.store.check_packs(&mut |_| true).map_err(|error| format!("n{node}, {name}: {error}"))?;
        if let Some(bad) = bad.first() {
            return Err(format!("n{node} goes on with a damaged pack of {name}: {bad:?}"));
        }
    }
    Ok(())
}
