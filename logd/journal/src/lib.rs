//! A durable journal: records with numbers that never repeat, kept until every named subscriber has passed them.
//!
//! Many threads append ([`Journal::append_batch`]); one sync serves all that wait. Readers ([`Reader`]) see only what is on disk, in order, each record
//! checked, and are told in place of the records when some are missing. Positions and checkpoints are sequence numbers, so no repair can shift
//! them; they carry the journal's [`Uuid`], so that a wiped or exchanged journal is noticed.
//!
//! What always holds, whatever is killed, cut off or full at any instant:
//! * what was acknowledged as safe is there, whole and in order, until its subscribers have passed it or `max_backlog` dropped it, counted;
//! * a batch with notes is there whole, with them, or not at all;
//! * a number is never given to two records;
//! * damage and loss are counted and said, to the reader and at open; nothing is skipped silently;
//! * one writer per directory; others look from beside ([`View`]).
//!
//! Left out on purpose: compression (the transport does it; here it would cost the reader's random access), async (callers that need it wait
//! on a thread of theirs), reading what is not synced yet.
//!
//! The bytes are described in `layout` and [`record`].

mod commit;
mod error;
mod flusher;
pub mod fs;
mod journal;
mod layout;
mod notes;
mod open;
mod options;
mod reader;
pub mod record;
mod recovery;
mod retention;
mod room;
mod status;
mod subscribers;
mod tail;
#[cfg(test)]
mod tests;
mod view;
mod walker;

pub use commit::Stats;
pub use error::{JournalError, Result};
pub use journal::Journal;
pub use layout::Uuid;
pub use notes::Notes;
pub use options::{AtLimit, Durability, Event, Listener, Options};
pub use reader::{Gap, Item, Lost, Position, Reader};
pub use record::{Batch, Record};
pub use retention::{Dropped, Keep, Removed};
pub use status::{Check, Lag, SegmentStatus, Status};
pub use subscribers::{MAX_NAME_BYTES, Subscriber};
pub use view::View;
