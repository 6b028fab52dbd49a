//! A switch for tests: breaks one rule of the protocol, to see that the simulation notices. Outside tests no rule can
//! be broken; the compiler removes the questions.

/// A rule that can be broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Rule {
    /// An owner whose lease ended takes everything off before it takes a new lease.
    LapseReleases,
    /// A silent member's addresses are given away only when its lease must have ended.
    WaitForSilence,
    /// A new leader waits for leases of its predecessor.
    WaitForInherited,
    /// An address is taken only from a version that a majority has.
    CommitFirst,
    /// No lease outlives what a successor waits for.
    LeaseTiedToLeadership,
    /// A member says "released" only when the kernel did it.
    ReleaseBeforeAck,
    /// An address that moves is given away only when the old owner said "released".
    ReleaseBeforeAcquire,
    /// A voter elects nobody else during its promise.
    Promise,
    /// A voter that voted in a term follows nobody of an older one.
    RefuseStale,
    /// A voter remembers its vote on disk.
    PersistVote,
    /// A voter that lost its disk, or its promise in a crash, is silent at first.
    Silence,
    /// A set of voters changes through a step that needs both majorities.
    JointElectorate,
    /// After longer leases a leader waits for the longer ones.
    LongestLease,
    /// What an earlier term gave is taken only when the leader knows of every holder.
    SettleFirst,
    /// A lease is never longer than what the leader counted by when it heard the acknowledgement it runs from.
    LeaseAsCounted,
    /// A member acts only on a table as new as the beat that carried its lease.
    FreshTable,
    /// Word that a run is over concerns that run only.
    GoneNamesRun,
    /// A new leader chooses owners among all who are there, not among those who happened to speak first.
    HearAllFirst,
}

/// Whether the rule is kept.
#[inline]
pub(crate) fn kept(rule: Rule) -> bool {
    #[cfg(test)]
    return !broken::is(rule);
    #[cfg(not(test))]
    {
        let _ = rule;
        true
    }
}

#[cfg(test)]
pub(crate) mod broken {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Runs with one rule broken.
    pub(crate) fn with<T>(rule: Option<Rule>, run: impl FnOnce() -> T) -> T {
        let before = BROKEN.replace(rule);
        let result = run();
        BROKEN.set(before);
        result
    }

    pub(super) fn is(rule: Rule) -> bool {
        BROKEN.get() == Some(rule)
    }
}
