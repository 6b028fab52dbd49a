//! A node's refs and heads at an index are what the log up to there makes of them, and nothing else.

use super::super::oracle::Moment;
use crate::state::View;

pub(crate) fn check(node: u64, view: &View, moment: &Moment) -> Result<(), String> {
    let index = moment.id.index;
    if !view.repos.keys().eq(moment.repos.keys()) {
        let (has, says) = (view.repos.keys().collect::<Vec<_>>(), moment.repos.keys().collect::<Vec<_>>());
        return Err(format!("n{node} has the repositories {has:?} at index {index}, the log says {says:?}"));
    }
    for (name, expected) in moment.repos.iter() {
        let Some(found) = view.repos.get(name) else { continue };
        if found.record.head != expected.head {
            let (has, says) = (found.record.head, expected.head);
            return Err(format!("n{node} has {name} at {has:?} at index {index}, the log says {says:?}"));
        }
        if !found.refs.iter().eq(expected.refs.iter()) {
            let (has, says) = (&found.refs, &expected.refs);
            return Err(format!("n{node} has other refs of {name} at index {index}: {has:?}, the log says {says:?}"));
        }
    }
    Ok(())
}
