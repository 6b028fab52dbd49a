//! What a daemon reads: documents along its search path, and files by pattern.

use std::collections::BTreeSet;

use globset::{GlobSet, GlobSetBuilder};

use crate::documents::schema::values::PathGlob;
use crate::documents::{NodeConf, SearchPath};

/// The documents and files that a daemon reads; nothing else wakes it.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    documents: BTreeSet<String>,
    /// The documents as every node of the subcluster has them, not this one alone.
    everybodys: bool,
    globs: Vec<PathGlob>,
    set: GlobSet,
}

/// A pattern that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WantedError(String);

impl Wanted {
    /// Documents by their names relative to each directory of the search path, such as `duravip.toml`.
    pub fn documents<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { documents: names.into_iter().map(str::to_owned).collect(), ..Self::default() }
    }

    /// The documents also as the other nodes of the subcluster have them: what is in their layers is there, and wakes.
    pub fn everybodys(self) -> Self {
        Self { everybodys: true, ..self }
    }

    /// Adds files whose path in a working copy matches one of the patterns, such as `default/nginx/**`.
    pub fn files<'a>(mut self, patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, WantedError> {
        for pattern in patterns {
            self.globs.push(pattern.parse().map_err(|error| WantedError(format!("{error}")))?);
        }
        let mut set = GlobSetBuilder::new();
        for glob in &self.globs {
            set.add(glob.glob().clone());
        }
        self.set = set.build().map_err(|error| WantedError(error.to_string()))?;
        Ok(self)
    }

    /// The wanted documents.
    pub(super) fn document_names(&self) -> impl Iterator<Item = &str> {
        self.documents.iter().map(String::as_str)
    }

    /// Where `cluster.toml` may be: it decides the search path, so it is always read.
    pub(super) fn cluster_layers() -> Vec<String> {
        SearchPath::shared().layers_of("cluster.toml").collect()
    }

    /// Every path at which a wanted document may have a layer, with this search path for the node itself.
    pub(super) fn layers(&self, search_path: &SearchPath, conf: &NodeConf<'_>) -> BTreeSet<String> {
        let others = self.others(conf);
        let paths = others.iter().map(NodeConf::search_path).chain([search_path]);
        paths.flat_map(|path| self.documents.iter().flat_map(|name| path.layers_of(name))).collect()
    }

    /// The views of the nodes whose documents are wanted besides.
    pub(super) fn others<'a>(&self, conf: &NodeConf<'a>) -> Vec<NodeConf<'a>> {
        let nodes =
            conf.cluster().nodes_of(conf.subcluster()).filter(|node| self.everybodys && node.name != conf.node());
        nodes.map(|node| conf.of(&node.name)).collect()
    }

    /// True for a path that a pattern asks for.
    pub(super) fn matches(&self, path: &str) -> bool {
        self.set.is_match(path)
    }

    /// The directories below which the patterns can match, the shortest set of them.
    pub(super) fn roots(&self) -> Vec<String> {
        let mut roots: Vec<String> = self.globs.iter().map(|glob| fixed_part(&glob.to_string())).collect();
        roots.sort();
        roots.dedup_by(|later, earlier| is_below(later, earlier));
        roots
    }
}

/// The directories before the first component that holds a wildcard; a pattern without one is looked for in its directory.
fn fixed_part(pattern: &str) -> String {
    let components: Vec<&str> = pattern.split('/').collect();
    let special = |component: &&str| component.contains(['*', '?', '[', '{', '\\']);
    let fixed = components.iter().position(special).unwrap_or(components.len() - 1);
    components[..fixed].join("/")
}

/// True for the directory itself and everything below it.
pub(super) fn is_below(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns_know_where_to_look() {
        let wanted = Wanted::default()
            .files(["default/nginx/**", "default/nginx/sites/*", "n1/a.conf", "default/ngin?x", "global/{a,b}/c"])
            .unwrap();
        assert_eq!(wanted.roots(), ["default", "global", "n1"]);
        assert!(wanted.matches("default/nginx/deep/er") && wanted.matches("n1/a.conf") && wanted.matches("global/b/c"));
        assert!(!wanted.matches("n1/b.conf") && !wanted.matches("default/other"));
        assert_eq!(Wanted::default().files(["**/x"]).unwrap().roots(), [""]);
        assert!(Wanted::documents(["a.toml"]).roots().is_empty());
        assert!(Wanted::default().files(["a["]).is_err());
    }
}
