//! What comes in over sockets, as pure functions: bytes to counted events.

mod binary;
mod text;

pub use binary::{BatchError, BatchWriter, MAX_BATCH_BYTES, feed_batch};
pub use text::{Fed, Line, LineError, MAX_AMOUNT, MAX_LINE_BYTES, feed_text, parse_line};
