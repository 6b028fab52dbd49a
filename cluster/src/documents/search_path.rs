//! The directories in which a node looks for a file, and which of them wins.
//!
//! Node directory, then its groups, then `default/`, then `global/`: the first is the most specific and wins. (The
//! system that this one succeeds searched global, node, default.) `EC_CONF_SEARCH_PATH` overrides it on one machine.

use std::fmt;

use super::schema::names;

/// The environment variable that overrides a node's search path: colon-separated directories, most specific first,
/// in which `{NODENAME}` stands for the node's name.
pub const SEARCH_PATH_VARIABLE: &str = "EC_CONF_SEARCH_PATH";

/// Directories of a working copy, most specific first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SearchPath(Vec<String>);

/// A search path that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SearchPathError {
    /// Nothing in it.
    #[error("the search path is empty")]
    Empty,
    /// A directory that is not inside the working copy.
    #[error("\"{directory}\" in the search path is not a directory inside a working copy")]
    Directory {
        /// What was written.
        directory: String,
    },
}

impl SearchPath {
    /// The path of a node: its own directory, its groups in the given order, `default`, `global`.
    pub fn of_node(node: &str, groups: &[String]) -> Self {
        let mut directories = vec![node.to_owned()];
        directories.extend(groups.iter().cloned());
        directories.extend(["default".to_owned(), "global".to_owned()]);
        Self(without_repetitions(directories))
    }

    /// What every node of a subcluster shares: `default`, `global`.
    pub fn shared() -> Self {
        Self(vec!["default".to_owned(), "global".to_owned()])
    }

    /// Reads the form of [`SEARCH_PATH_VARIABLE`].
    pub fn parse(text: &str, node: &str) -> Result<Self, SearchPathError> {
        let mut directories = Vec::new();
        for part in text.split(':').filter(|part| !part.is_empty()) {
            let directory = part.replace("{NODENAME}", node);
            let directory = directory.trim_end_matches('/');
            if !directory.split('/').all(names::is_path_component) {
                return Err(SearchPathError::Directory { directory: part.to_owned() });
            }
            directories.push(directory.to_owned());
        }
        if directories.is_empty() {
            return Err(SearchPathError::Empty);
        }
        Ok(Self(without_repetitions(directories)))
    }

    /// The override from the environment, when there is one.
    pub fn from_env(node: &str) -> Option<Result<Self, SearchPathError>> {
        let text = std::env::var(SEARCH_PATH_VARIABLE).ok()?;
        Some(Self::parse(&text, node))
    }

    /// The directories, most specific first.
    pub fn directories(&self) -> &[String] {
        &self.0
    }

    /// The paths at which a file may exist, least specific first: the order in which layers are merged.
    pub fn layers_of<'a>(&'a self, file: &'a str) -> impl Iterator<Item = String> + 'a {
        self.0.iter().rev().map(move |directory| format!("{directory}/{file}"))
    }
}

impl fmt::Display for SearchPath {
    /// Colon-separated, most specific first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(":"))
    }
}

/// A directory named twice counts at its most specific place.
fn without_repetitions(directories: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(directories.len());
    for directory in directories {
        if !kept.contains(&directory) {
            kept.push(directory);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_nodes_path_and_its_override() {
        let path = SearchPath::of_node("n1", &["relays".into(), "eu".into()]);
        assert_eq!(path.to_string(), "n1:relays:eu:default:global");
        assert_eq!(
            path.layers_of("a.toml").collect::<Vec<_>>(),
            ["global/a.toml", "default/a.toml", "eu/a.toml", "relays/a.toml", "n1/a.toml"]
        );
        assert_eq!(
            SearchPath::parse("{NODENAME}:x/{NODENAME}/:default::x", "n1").unwrap().to_string(),
            "n1:x/n1:default:x"
        );
        for bad in ["", ":", "/etc", "../x", "a/../b", "a//b", ".git", "a/./b"] {
            assert!(SearchPath::parse(bad, "n1").is_err(), "{bad:?}");
        }
    }
}
