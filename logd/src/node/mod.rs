//! The logs of this node: a journal each, a thread that writes it, and the table of them.

pub mod log;
pub mod logs;
pub mod text;

pub use log::{Chunk, Closed, Log, Receipt};
pub use logs::Logs;
