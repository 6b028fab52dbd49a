//! What happened to the machines of a run, by kind: a kind that never happens tests nothing, however many seeds pass.

use std::collections::BTreeMap;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Crash,
    /// Power is lost while packs are merged.
    CrashInMerge,
    Cut,
    Pause,
    SlowDisk,
    BrokenDisk,
    Storm,
    HandOver,
    ClockAhead,
    ClockBehind,
    /// A machine whose clocks run at another pace by more than two parts in a hundred.
    Drift,
    Row,
    Database,
    Log,
    Snapshot,
    Both,
    Pack,
}

impl Fault {
    /// Those that have to happen within the seeds of one test; for damage there is a test of its own.
    pub(super) const COMMON: [Fault; 11] = [
        Fault::Crash,
        Fault::CrashInMerge,
        Fault::Cut,
        Fault::Pause,
        Fault::SlowDisk,
        Fault::BrokenDisk,
        Fault::Storm,
        Fault::HandOver,
        Fault::ClockAhead,
        Fault::ClockBehind,
        Fault::Drift,
    ];
}

/// How often each kind happened.
pub(super) type Counts = BTreeMap<Fault, u64>;
