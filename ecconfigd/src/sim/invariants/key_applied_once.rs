//! A request that was repeated under its idempotency key made one revision per repository. Every request has a message of its own, which its
//! repeats share, so a message twice in one repository is a request that was applied twice.

use super::super::oracle::Revision;

/// Looks whether new revisions repeat older ones.
pub(crate) fn check<'a>(known: impl Iterator<Item = &'a Revision>, new: &[Revision]) -> Result<(), String> {
    for old in known {
        if let Some(again) = new.iter().find(|new| new.repo == old.repo && new.message == old.message) {
            return Err(format!("one request was applied twice: as {old:?} and as {again:?}"));
        }
    }
    Ok(())
}

/// The same in a node's own records, whatever the log says.
pub(crate) fn check_node(node: u64, state: &crate::state::State) -> Result<(), String> {
    for (name, repo) in state.view().repos.iter() {
        let records = state.revisions(name, 1, repo.record.head.revision).map_err(|error| error.to_string())?;
        let mut seen = std::collections::BTreeMap::new();
        for record in records {
            if let Some(before) = seen.insert(record.message.clone(), record.revision) {
                let (message, again) = (record.message, record.revision);
                return Err(format!("n{node} applied {message:?} to {name} twice: as r{before} and as r{again}"));
            }
        }
    }
    Ok(())
}
