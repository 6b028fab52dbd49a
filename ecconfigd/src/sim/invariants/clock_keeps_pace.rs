//! The cluster's clock is never ahead of the time that has passed, but for the drift of the machines that led; whatever wall clocks say.

use std::time::Duration;

use crate::state::View;

/// The fastest clock of a machine runs at so many thousandths of the right pace.
const FASTEST_PERMILLE: u128 = 1100;

pub(crate) fn check(node: u64, view: &View, passed: Duration) -> Result<(), String> {
    let bound_ms = passed.as_millis() * FASTEST_PERMILLE / 1000 + 1;
    if u128::from(view.clock_ms) <= bound_ms {
        return Ok(());
    }
    let (clock_ms, passed_ms) = (view.clock_ms, passed.as_millis());
    Err(format!("n{node} shows {clock_ms} ms on the cluster's clock after {passed_ms} ms"))
}
