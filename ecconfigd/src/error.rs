//! What the replicated core can say no with.
//!
//! Every variant here is shared by all replicas and goes to the client; what hits this node alone (a full disk, a failed fsync) stops the
//! node and reaches callers as [`Error::Unavailable`]. `http/` turns these into status and stable code, nowhere else.

use std::borrow::Cow;

use cluster::api::{ConflictPath, Finding};
use serde::{Deserialize, Serialize};

use crate::state::{NodeName, RepoName};

/// Why the core did not do what it was asked. Travels between nodes, so that a client is told the same wherever it asked.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// Somebody else changed the same place since the base (409).
    #[error("{} path(s) were changed by somebody else since the base", paths.len())]
    Conflict {
        /// The places, in order.
        paths: Vec<ConflictPath>,
    },
    /// The gate or a path rule refuses the result (422).
    #[error("refused: {} finding(s)", findings.len())]
    Refused {
        /// What was found, in order.
        findings: Vec<Finding>,
    },
    /// A thing named in the request does not exist (404).
    #[error("no such {kind}: {name}")]
    NotFound {
        /// What kind of thing: `repository`, `revision`, `node`, `user`, `token`, …
        kind: Cow<'static, str>,
        /// Its name as asked for.
        name: String,
    },
    /// The thing to create exists (409).
    #[error("{kind} exists already: {name}")]
    Exists {
        /// What kind of thing.
        kind: Cow<'static, str>,
        /// Its name.
        name: String,
    },
    /// The request cannot mean anything here (400): a bad path, a base that is no ancestor, a key used for another request.
    #[error("{0}")]
    Invalid(String),
    /// Permanently over a limit (413).
    #[error("{what} is over the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What is too large.
        what: Cow<'static, str>,
        /// The limit.
        limit_bytes: u64,
    },
    /// A queue is full (429 or 503 with Retry-After): nothing was done.
    #[error("too busy: {queue} is full, try again")]
    Overloaded {
        /// Which queue.
        queue: Cow<'static, str>,
    },
    /// This node cannot serve it now (503): not caught up, no leader, stopping, or stopped by a failure of its own. A write may or may not
    /// have happened; repeat it under the same idempotency key.
    #[error("not available: {0}")]
    Unavailable(String),
    /// The same where certainly nothing was done (503): whoever asked may ask another server, whatever the request was.
    #[error("not available, and nothing was done: {0}")]
    NotDone(String),
    /// A bug or a damaged repository (500).
    #[error("internal error: {0}")]
    Internal(String),
    /// The request is fine, and the cluster is in a state that does not allow it (409): the last voter cannot go.
    #[error("{0}")]
    NotPossible(String),
}

/// The core's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// No such repository.
    pub fn no_repo(repo: &RepoName) -> Self {
        Self::NotFound { kind: "repository".into(), name: repo.to_string() }
    }

    /// No such node.
    pub fn no_node(node: &NodeName) -> Self {
        Self::NotFound { kind: "node".into(), name: node.to_string() }
    }

    /// Something below failed that no request should be able to make fail.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }
}
