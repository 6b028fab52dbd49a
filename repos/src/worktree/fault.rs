//! Places where a test can kill the process.
//!
//! Every step boundary of an update calls [`point`]. Without the feature `fault-points` it is an empty function.
//! With it, the process aborts at the point that the environment variable `ECCFG_FAULT` names, so that a test can
//! prove that the next run finds the old or the new tree and repairs the rest.

/// Every point, in the order in which an update passes them. Tests iterate over it.
pub const POINTS: &[&str] = &[
    "stage.locked",
    "stage.harvested",
    "stage.scanned",
    "stage.planned",
    "stage.journal-staging",
    "stage.patched-first",
    "stage.patched",
    "stage.git-mirrored",
    "stage.index-written",
    "stage.refs-written",
    "stage.base-written",
    "stage.synced",
    "stage.journal-ready",
    "exchange.locked",
    "exchange.before",
    "exchange.after",
    "exchange.synced",
    "settle.scanned",
    "settle.carried",
    "settle.git-carried",
    "settle.manifest-live",
    "settle.manifest-spare",
    "settle.journal-cleared",
    "flip.prepared",
    "flip.journal",
    "flip.renamed",
    "flip.journal-cleared",
];

/// Passes the point `name`, or dies there if a test asked for it.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn point(_name: &'static str) {}

/// Passes the point `name`, or dies there if a test asked for it.
#[cfg(feature = "fault-points")]
pub fn point(name: &'static str) {
    debug_assert!(POINTS.contains(&name), "{name} is missing in POINTS");
    if std::env::var_os("ECCFG_FAULT").is_some_and(|wanted| wanted == name) {
        // The nearest thing to kill -9 that a process can do to itself: no destructors, no flushing.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        std::process::abort();
    }
}
