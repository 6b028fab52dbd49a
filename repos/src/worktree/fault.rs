//! Places where a test can kill the process.
//!
//! Every step boundary of an update calls [`point`]. In a release it is an empty function. With debug assertions, which
//! every test has, the process kills itself at the point that the environment variable `ECCFG_FAULT` names, so that a
//! test can prove that the next run finds the old or the new tree and repairs the rest. No cargo feature: what must be
//! asked for is not run.

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
    "stage.journal-ready",
    "stage.synced",
    "exchange.locked",
    "exchange.before",
    "exchange.after",
    "settle.scanned",
    "settle.carried",
    "settle.git-carried",
    "settle.manifest-live",
    "settle.manifest-spare",
    "settle.journal-cleared",
    "settle.pruned",
    "flip.prepared",
    "flip.journal",
    "flip.renamed",
    "flip.journal-cleared",
];

/// Places in the making of a working copy.
pub const CREATE_POINTS: &[&str] = &["create.stores", "create.laid-out", "create.settings", "create.root-removed"];

/// Passes the point `name`, or dies there if a test asked for it.
#[inline]
pub fn point(name: &'static str) {
    debug_assert!(POINTS.contains(&name) || CREATE_POINTS.contains(&name), "{name} is missing in POINTS");
    #[cfg(debug_assertions)]
    HOOK.with_borrow_mut(|hook| hook.iter_mut().for_each(|hook| hook(name)));
    die_if_asked(name);
}

/// What a test does at the points that a thread passes.
#[cfg(debug_assertions)]
pub type Hook = Box<dyn FnMut(&'static str)>;

#[cfg(debug_assertions)]
thread_local! {
    static HOOK: std::cell::RefCell<Option<Hook>> = const { std::cell::RefCell::new(None) };
}

/// Has `hook` called at every point that this thread passes while it does `work`: somebody who interferes at exactly that moment.
#[cfg(debug_assertions)]
pub fn interfering<T>(hook: impl FnMut(&'static str) + 'static, work: impl FnOnce() -> T) -> T {
    HOOK.set(Some(Box::new(hook)));
    let result = work();
    HOOK.set(None);
    result
}

/// Dies if `ECCFG_FAULT` is `name`; for other crates' points. `name#2` lets the first pass go by.
#[cfg(not(debug_assertions))]
#[inline]
pub fn die_if_asked(_name: &'static str) {}

/// Dies if `ECCFG_FAULT` is `name`; for other crates' points. `name#2` lets the first pass go by.
#[cfg(debug_assertions)]
pub fn die_if_asked(name: &'static str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSES: AtomicU32 = AtomicU32::new(0);
    let Ok(asked) = std::env::var("ECCFG_FAULT") else { return };
    let (wanted, pass) = asked.split_once('#').unwrap_or((&asked, "1"));
    if wanted == name && pass.parse() == Ok(PASSES.fetch_add(1, Ordering::SeqCst) + 1) {
        // The nearest thing to kill -9 that a process can do to itself: no destructors, no flushing.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        std::process::abort();
    }
}

/// As if the user could watch no more than `ECCFG_WATCH_LIMIT` directories.
#[cfg(debug_assertions)]
pub(crate) fn watch_limit(watched: usize) -> Result<(), ()> {
    let limit = std::env::var("ECCFG_WATCH_LIMIT").ok().and_then(|limit| limit.parse::<usize>().ok());
    if limit.is_some_and(|limit| watched >= limit) { Err(()) } else { Ok(()) }
}

/// A release knows the kernel's limits only.
#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn watch_limit(_watched: usize) -> Result<(), ()> {
    Ok(())
}

/// As if the machine had been started anew: `ECCFG_BOOT`, 32 hexadecimal digits.
#[cfg(debug_assertions)]
pub(crate) fn boot_id() -> Option<String> {
    std::env::var("ECCFG_BOOT").ok()
}

/// A release asks the kernel.
#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn boot_id() -> Option<String> {
    None
}
