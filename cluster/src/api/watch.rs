//! Being told: an event per revision of a repository, and the target of a node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Head;

/// `main` of a repository moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WatchEvent {
    /// The repository.
    pub repo: String,
    /// The revision it moved to.
    pub revision: u64,
    /// The commit it moved to, in hex.
    pub commit: String,
    /// `Name <mail>` of who moved it: for a push, whoever pushed; the commits keep their own authors.
    pub author: String,
    /// The newest commit's message.
    pub message: String,
    /// When it moved.
    pub time: String,
    /// The changed paths.
    pub paths: Vec<String>,
    /// True when there were more changed paths than an event carries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paths_truncated: bool,
}

/// What a node shall have, numbered by its own serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Target {
    /// Goes up by one whenever the target changes.
    pub serial: u64,
    /// Repository name → revision and commit: the node's subcluster and `global`.
    pub repos: BTreeMap<String, Head>,
    /// Those of the repositories that are frozen: nodes keep the revision of them that they have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<String>,
}

impl Target {
    /// Keeps what a node has of the frozen repositories. Those that it has nothing of yet come as they are.
    pub fn hold(&mut self, has: &BTreeMap<String, Head>) {
        for name in &self.frozen {
            if let (Some(head), Some(has)) = (self.repos.get_mut(name), has.get(name)) {
                *head = has.clone();
            }
        }
    }
}
