//! A read of a head that asked for the newest sees every commit that was acknowledged before it began, and never goes back.

use std::collections::BTreeMap;

use super::super::{history::History, linear};

pub(crate) fn check(history: &History) -> Result<(), String> {
    let mut repos: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (repo, op) in &history.heads {
        repos.entry(repo).or_default().push(op.clone());
    }
    for (repo, ops) in repos {
        linear::check(&ops).map_err(|error| format!("the head of {repo} is not linearizable: {error}"))?;
    }
    Ok(())
}
