//! Counting in memory: the window that is handed in next, and monitors that are asked at once.

mod counter;
mod monitor;
mod past;
mod table;

pub use counter::{Limits, LiveWindow, Refusal, SeriesId, Tally};
pub use monitor::Monitor;
pub use past::{Held, Past, Question, Sealed};
pub use table::{Full, MAX_COUNT};
