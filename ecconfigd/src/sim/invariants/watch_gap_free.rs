//! A subscriber sees every revision that matches its globs once and in order, also when it goes on at another node.

use super::super::oracle::Revision;
use crate::state::RepoName;
use crate::watch::Globs;

/// What a subscriber was sent, over all nodes it was connected to.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) repo: RepoName,
    pub(crate) globs: Globs,
    pub(crate) events: Vec<Revision>,
}

/// Compares it with the log. `whole`: the subscriber had time to see everything.
pub(crate) fn check<'a>(
    received: &Received,
    revisions: impl Iterator<Item = &'a Revision>,
    whole: bool,
) -> Result<(), String> {
    let matching =
        |revision: &&Revision| revision.repo == received.repo && received.globs.matches(&revision.paths, false);
    let mut expected = revisions.filter(matching);
    for (at, event) in received.events.iter().enumerate() {
        let next = expected.next();
        if next != Some(event) {
            return Err(format!(
                "event {at} of a subscriber of {} {:?} should be {next:?}, it is {event:?}",
                received.repo,
                received.globs.patterns()
            ));
        }
    }
    match expected.next() {
        Some(missing) if whole => Err(format!("a subscriber of {} was never told of {missing:?}", received.repo)),
        _ => Ok(()),
    }
}
