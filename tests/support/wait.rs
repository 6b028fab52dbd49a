//! Waiting for what real processes do: for a condition, never for a time.
#![allow(dead_code, reason = "not every test program needs all of it")]

use std::time::{Duration, Instant};

/// The binary under test.
pub const ECCLUSTER: &str = env!("CARGO_BIN_EXE_eccluster");
/// Far longer than anything here takes on a busy machine; only there to end a hopeless wait.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
