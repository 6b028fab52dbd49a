//! The one place where commits are made.
//!
//! The Committer is one task with a bounded queue. It drains what waits, builds all of it in memory (one draft per repository, each commit
//! on the head that the one before it will leave), asks the gate about each, and proposes ONE log entry with everything that passed; then it
//! answers all. So a burst of commits shares one sync, and since nobody else moves refs, what it judged is what is applied. A request that
//! fails leaves nothing behind: the pack holds only what the accepted commits reach.
//!
//! Left out on purpose: a second batch while one is in flight. It would have to see objects that are not applied yet, and to undo its work
//! when the first is refused; one batch at a time already shares the sync among all who wait.

mod build;
mod judge;
mod proposer;
mod push;
mod queue;
#[cfg(test)]
mod tests;
mod types;

#[cfg(test)]
pub(crate) use tests::noise_text;

pub(crate) use build::{Builder, NewRepo, Verdict};
#[cfg(test)]
pub(crate) use proposer::ChunkSource;
pub(crate) use proposer::{Propose, Proposer};
pub(crate) use push::{PushPack, large_pack};
pub(crate) use queue::{CommitterStats, Job, PushJob, Queue};
pub use types::{CommitAnswer, CommitRequest, Committed, PushCommand, PushOutcome, PushRequest, RepoChange};

/// The largest pack inside a log entry; larger ones travel as chunks.
pub const INLINE_PACK_BYTES: u64 = 4 << 20;
/// The size of a chunk: small enough that heartbeats and other commits pass between two of them.
pub const CHUNK_BYTES: usize = 1 << 20;
