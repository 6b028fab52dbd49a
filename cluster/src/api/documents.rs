//! Documents as one node sees them, with where each value was written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Head;

/// A document as one node sees it: every layer along its search path merged, the most specific last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EffectiveDocument {
    /// The node's subcluster.
    pub subcluster: String,
    /// The node.
    pub node: String,
    /// The file, relative to each directory of the search path.
    pub file: String,
    /// The directories that were searched, most specific first.
    pub search_path: Vec<String>,
    /// The merged document.
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub value: serde_json::Value,
    /// Dotted key → where its value comes from.
    pub origins: BTreeMap<String, Origin>,
    /// Repository name → the revision that was read.
    pub repos: BTreeMap<String, Head>,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Origin {
    /// The repository.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repo: String,
    /// The path in a working copy, such as `global/cluster.toml`.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
}
