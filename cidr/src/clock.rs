//! The two clocks, read in one place.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cidr_engine::Stamp;

use crate::counting::Now;

/// A wall clock that ran this far ahead of the steady one since the start is not believed when it comes to removing days.
const BELIEVED_AHEAD_S: i64 = 86_400;

/// The clocks of this process.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    began_wall: Stamp,
}

impl Clock {
    /// Begins the steady clock.
    pub fn start() -> Self {
        Self { began: Instant::now(), began_wall: wall() }
    }

    /// Both.
    pub fn now(&self) -> Now {
        Now { wall: wall(), steady: self.began_wall + self.began.elapsed().as_secs() as i64 }
    }

    /// True when the wall clock jumped ahead by more than a day: a mistake, or a machine that slept, and nobody can tell which.
    pub fn has_jumped(&self) -> bool {
        let now = self.now();
        now.wall - now.steady > BELIEVED_AHEAD_S
    }
}

/// Seconds since 1970; 0 before.
fn wall() -> Stamp {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
