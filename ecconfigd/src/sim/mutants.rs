//! Bugs to order: what proves that the invariants can fail.
//!
//! A mutant is on for the thread that runs a seed, never in a build of the product: each place that asks is under `cfg(test)`.

use std::cell::Cell;

/// One bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The log says that it is on the disk before the sync.
    AckBeforeSync,
    /// A follower that got nothing is counted among those that have the entry.
    AckBeforeQuorum,
    /// Apply does not look whether `old` still holds.
    NoStaleCheck,
    /// Apply puts this node's wall clock into a record.
    LocalClock,
    /// Apply does not remember idempotency keys.
    NoKeys,
    /// The hub drops an event now and then.
    DroppedEvent,
    /// A watcher that resumes begins one too late.
    ResumesLate,
    /// A checkpoint does not sync packs and uploads.
    UnsyncedPacks,
    /// A snapshot leaves the remembered keys out.
    ThinSnapshot,
    /// Packs are merged, and the merged one is not synced before the others go.
    MergesUnsynced,
    /// Packs are merged, and the others go before the merged one is there.
    RemovesFirst,
    /// A node that differs from the others does not care.
    NeverDoubts,
    /// Packs are not compared with their checksums when a node starts.
    TrustsPacks,
    /// The pages of the database are not compared with their checksums when a node starts.
    TrustsPages,
    /// A snapshot is not compared with its checksum.
    TrustsSnapshots,
    /// The cluster's clock goes by the leader's wall clock.
    WallClock,
    /// A node hands over again what may have happened, whether it has a key or not.
    RepeatsAll,
    /// A node that handed something over and lost the answer says that nothing was done.
    TooSure,
    /// A node answers reads without asking the others.
    StaleRead,
}

impl Mutant {
    pub(super) const ALL: [Mutant; 19] = [
        Mutant::AckBeforeSync,
        Mutant::AckBeforeQuorum,
        Mutant::NoStaleCheck,
        Mutant::LocalClock,
        Mutant::NoKeys,
        Mutant::DroppedEvent,
        Mutant::ResumesLate,
        Mutant::UnsyncedPacks,
        Mutant::ThinSnapshot,
        Mutant::MergesUnsynced,
        Mutant::RemovesFirst,
        Mutant::NeverDoubts,
        Mutant::TrustsPacks,
        Mutant::TrustsPages,
        Mutant::TrustsSnapshots,
        Mutant::WallClock,
        Mutant::RepeatsAll,
        Mutant::TooSure,
        Mutant::StaleRead,
    ];
}

thread_local! {
    static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether this bug is on.
pub(crate) fn is_on(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

/// Turns a bug on until the answer is dropped.
pub(super) fn switch_on(mutant: Option<Mutant>) -> impl Drop {
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            ON.set(None);
        }
    }
    ON.set(mutant);
    Off
}
