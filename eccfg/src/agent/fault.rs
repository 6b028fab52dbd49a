//! Places where a test can kill the agent, besides those of the working copy (`repos::worktree::fault`, which says how).

/// Every point of an update that goes well, in the order in which they are passed.
pub const POINTS: &[&str] = &[
    "agent.fetched",
    "agent.staged",
    "agent.checked",
    "agent.begun",
    "agent.exchanged",
    "agent.reloaded",
    "agent.verified",
    "agent.activated",
    "agent.recorded",
];

/// Every point that is passed besides when an update is taken back.
pub const BACK_POINTS: &[&str] =
    &["agent.failed", "agent.back-staged", "agent.back-exchanged", "agent.back-activated", "agent.given-up"];

/// Every point of an agent's first start.
pub const CREATE_POINTS: &[&str] = &["agent.created"];

/// Passes the point `name`, or dies there if a test asked for it.
#[inline]
pub(crate) fn point(name: &'static str) {
    debug_assert!(
        [POINTS, BACK_POINTS, CREATE_POINTS].iter().any(|points| points.contains(&name)),
        "{name} is missing in the lists"
    );
    repos::worktree::fault::die_if_asked(name);
}
