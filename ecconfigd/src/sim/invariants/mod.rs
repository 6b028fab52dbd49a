//! What must hold, whatever happens: one file each. `Err` says what was seen.

pub(super) mod acknowledged_stays;
pub(super) mod clock_keeps_pace;
pub(super) mod key_applied_once;
pub(super) mod objects_are_whole;
pub(super) mod one_commit_per_revision;
pub(super) mod one_history;
pub(super) mod pushes_as_told;
pub(super) mod reads_are_linearizable;
pub(super) mod refs_follow_log;
pub(super) mod refused_never_happens;
pub(super) mod replicas_equal;
pub(super) mod right_nodes_stay;
pub(super) mod watch_gap_free;
