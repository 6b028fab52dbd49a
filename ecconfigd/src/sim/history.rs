//! What clients asked, were answered and saw.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use repos::RefName;

use super::linear;
use crate::commit::PushCommand;
use crate::state::{Head, RepoName};

/// A commit that a client was told about.
#[derive(Debug, Clone)]
pub(super) struct Ack {
    pub(super) repo: RepoName,
    pub(super) head: Head,
    /// The commit's message, which no other commit has.
    pub(super) message: String,
}

/// A push that was answered.
#[derive(Debug, Clone)]
pub(super) struct Push {
    pub(super) repo: RepoName,
    pub(super) commands: Vec<PushCommand>,
    /// What the client was told of each.
    pub(super) results: Vec<(RefName, Result<(), String>)>,
}

/// All of it.
#[derive(Default)]
pub(super) struct History {
    pub(super) acks: Vec<Ack>,
    pub(super) pushes: Vec<Push>,
    /// Messages of commits that were refused for good.
    pub(super) refused: BTreeSet<String>,
    /// Messages of commits without an answer, and when they were asked for.
    pub(super) unknown: BTreeMap<String, Duration>,
    /// Reads and writes of heads with their intervals.
    pub(super) heads: Vec<(RepoName, linear::Op<repos::Oid>)>,
    /// Requests, for the statistics.
    pub(super) requests: u64,
    pub(super) reads: u64,
    pub(super) events: u64,
}

/// An interval in virtual time.
pub(super) fn interval(invoked: Duration, answered: Duration) -> linear::Interval {
    linear::Interval { invoked_ns: invoked.as_nanos() as u64, answered_ns: answered.as_nanos() as u64 }
}
