//! Counts per address and time window, kept for months and summed over any block at once.
//!
//! A window's counts are a file of sorted addresses. Finished days, runs of eight days and months are condensed into nodes with sums per
//! block of rows and per /24 (/48, /64), so that a roll-up touches few of them and a top-N skips what cannot win. Counts stay exact.
//!
//! What this crate never does: read a clock (callers say what time it is), open a socket, start a thread, or touch anything outside the
//! directory that it was given.

mod address;
mod error;
pub mod ingest;
mod key;
pub mod language;
pub mod lists;
pub mod live;
mod merge;
mod query;
mod segment;
mod store;
mod time;
mod work;

pub use dir_lock::{LockError, Owner};

pub use address::{Address, Block, BlockError, Family};
pub use error::{Error, Result};
pub use query::{DEFAULT_MEMORY_BYTES, Format, Outcome, QueryError, QueryOptions, Row, When};
pub use segment::Kind;
pub use store::disk::{Disk, Output, RealDisk};
pub use store::{Care, Committed, Counts, Dumped, Maintained, Origin, Repaired, Store, StoreOptions, Verified, Window};
pub use time::{DAY_S, Day, FIRST_STAMP, LAST_STAMP, Stamp, compact_stamp};
