//! There is one log, and one record per revision: what one node applied at an index, all apply there.

use super::super::oracle::{Moment, Revision};
use crate::raft::LogId;
use crate::state::State;

/// The node's entry is the one that another node applied at this index.
pub(crate) fn same_entry(node: u64, id: LogId, payload: &[u8], known: &Moment) -> Result<(), String> {
    if id == known.id && payload == known.payload {
        return Ok(());
    }
    Err(format!("n{node} applied {id}, where others applied {}: there are two histories", known.id))
}

/// The node's record of a revision is what the log says.
pub(crate) fn check_record(node: u64, state: &State, expected: &Revision) -> Result<(), String> {
    let (repo, number) = (&expected.repo, expected.head.revision);
    let found = state.revision(repo, number).map_err(|error| error.to_string())?;
    let found = found.map(|record| Revision {
        repo: record.repo,
        head: crate::state::Head { revision: record.revision, commit: record.commit },
        message: record.message,
        paths: record.paths,
    });
    if found.as_ref() == Some(expected) {
        return Ok(());
    }
    Err(format!("n{node} has {found:?} as r{number} of {repo}, the log says {expected:?}"))
}
