//! The one place where commits are made.

mod types;

pub use types::{CommitAnswer, CommitRequest, Committed, PushCommand, PushOutcome, PushRequest, RepoChange};
