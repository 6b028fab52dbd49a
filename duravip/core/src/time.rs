//! Local time. The protocol compares no two nodes' clocks: it only assumes that they run at nearly the same rate, so a
//! point in time means nothing outside the process that read it and never travels in a message; durations do.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on this node's clock (CLOCK_BOOTTIME: it goes on while the machine sleeps).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(Duration);

impl Time {
    /// The clock's start.
    pub const ZERO: Self = Self(Duration::ZERO);
    /// Later than everything.
    pub const NEVER: Self = Self(Duration::MAX);

    /// So long after the clock's start.
    pub const fn from_start(since: Duration) -> Self {
        Self(since)
    }

    /// Milliseconds after the clock's start.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Since the clock's start.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// How long from `earlier` to here; nothing if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NEVER {
            return f.write_str("never");
        }
        let micros = self.0.as_micros();
        match micros % 1000 {
            0 => write!(f, "{}ms", micros / 1000),
            rest => write!(f, "{}.{rest:03}ms", micros / 1000),
        }
    }
}
