//! Git, natively, and the only importer of `gix`.
//!
//! Everything the rest of the project needs of git is here in its own words: content-addressed [`Store`]s and
//! the [`Reader`]s over them, [`Draft`]s that build new objects in memory and hand them out as a pack, packs that
//! arrive from elsewhere and wait in a [`Quarantine`] until the log entry that names them commits, three-way
//! merges and differences, the wire protocol, and working copies.
//!
//! What always holds: nothing here knows Raft, HTTP or users; nothing shells out to `git`; nothing reads the
//! user's or the machine's git configuration; no call decides by a clock, so that what the leader built can be
//! replayed anywhere. Every call blocks: callers in async code go through `spawn_blocking`.
//!
//! Left out on purpose: references are not kept here. The authoritative map of references lives in the replicated
//! state; [`Store::project_refs`] writes a copy for plain `git`.

mod check;
mod consolidate;
mod diff;
mod draft;
mod edit;
mod error;
mod log;
mod merge;
mod object;
mod oid;
mod pack;
mod path;
pub mod protocol;
mod quarantine;
mod reader;
mod recent;
mod refs;
mod sound;
mod staging;
mod store;
mod tree;
pub mod worktree;

pub use check::{CheckError, Problem, ProblemKind, Refusal, TreeRules, Verified};
pub use consolidate::{ConsolidateOptions, Consolidated};
pub use diff::{Change, Patch, PatchOptions};
pub use draft::{ApplyError, ApplyProblem, Content, Draft, NewCommit, TreeChange};
pub use error::{Error, PackError, Result};
pub use log::LogOptions;
pub use merge::{Conflict, ConflictKind, Labels, Merge, MergeMode};
pub use oid::{Oid, PackId, ParseOidError};
pub use path::{PathError, RepoPath};
pub use quarantine::{PackLimits, Quarantine, Received};
pub use reader::{CommitInfo, Entry, File, Mode, Object, ObjectKind, Reader, Signature};
pub use recent::WholePack;
pub use refs::{RefMap, RefName, RefNameError};
pub use sound::BadPack;
pub use store::{PackInfo, Store};
