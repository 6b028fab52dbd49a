//! A commit that was refused for good, or of which a node said that nothing was done, is in nobody's history.

use std::collections::BTreeSet;

use super::super::oracle::Revision;

pub(crate) fn check<'a>(
    refused: &BTreeSet<String>,
    mut revisions: impl Iterator<Item = &'a Revision>,
) -> Result<(), String> {
    match revisions.find(|revision| refused.contains(&revision.message)) {
        Some(revision) => Err(format!("it was refused and happened all the same: {revision:?}")),
        None => Ok(()),
    }
}
