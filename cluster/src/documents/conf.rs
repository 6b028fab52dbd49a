//! The configuration of one node: what a daemon reads.
//!
//! ```
//! # use cluster::documents::{MemoryFiles, NodeConf, schema::duravip::Duravip};
//! let files = MemoryFiles::from_texts([
//!     ("global/cluster.toml", "[node.n1]\naddress = \"10.0.0.11\"\ngroups = [\"relays\"]"),
//!     ("default/duravip.toml", "dead_after = \"300ms\""),
//!     ("relays/duravip.toml", "dead_after = \"500ms\""),
//! ]);
//! let conf = NodeConf::read(&files, "n1", None)?;
//! assert_eq!(conf.search_path().to_string(), "n1:relays:default:global");
//! let duravip: Duravip = conf.load()?;
//! assert_eq!(duravip.dead_after.to_string(), "500ms");
//! # Ok::<(), cluster::documents::ConfError>(())
//! ```

use sha2::{Digest, Sha256};

use super::effective::{self, Effective, EffectiveError, EffectiveFile};
use super::files::{Files, FilesError};
use super::finding::Findings;
use super::schema::cluster::Cluster;
use super::schema::{self, Context, DocumentKind, Schema, misplaced};
use super::search_path::{SearchPath, SearchPathError};

/// Why a node's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A file could not be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The documents are wrong. One finding per line.
    #[error("{0}")]
    Refused(Findings),
    /// `EC_CONF_SEARCH_PATH` is wrong.
    #[error("EC_CONF_SEARCH_PATH: {0}")]
    SearchPath(#[from] SearchPathError),
}

impl From<EffectiveError> for ConfError {
    fn from(error: EffectiveError) -> Self {
        match error {
            EffectiveError::Files(error) => Self::Files(error),
            EffectiveError::Refused(findings) => Self::Refused(findings),
        }
    }
}

impl From<Findings> for ConfError {
    fn from(findings: Findings) -> Self {
        Self::Refused(findings)
    }
}

/// A node's view of a tree of files.
pub struct NodeConf<'a> {
    files: &'a dyn Files,
    node: String,
    subcluster: String,
    search_path: SearchPath,
    cluster: Cluster,
}

impl<'a> NodeConf<'a> {
    /// Reads `global/cluster.toml` and with it the node's groups. `subcluster` is what the node's certificate says; without
    /// one it is what `cluster.toml` says, else `default`. A `cluster.toml` that says otherwise than the certificate is
    /// refused.
    pub fn read(files: &'a dyn Files, node: &str, subcluster: Option<&str>) -> Result<Self, ConfError> {
        let cluster = read_cluster(files)?;
        let named = cluster.nodes.get(node).map(|node| node.subcluster.as_str());
        if let (Some(named), Some(certified)) = (named, subcluster)
            && named != certified
        {
            return Err(other_subcluster(files, node, named, certified)?.into());
        }
        let subcluster = subcluster.or(named).unwrap_or("default").to_owned();
        let search_path = SearchPath::of_node(node, cluster.groups_of(node));
        Ok(Self { files, node: node.to_owned(), subcluster, search_path, cluster })
    }

    /// Uses the search path of `EC_CONF_SEARCH_PATH` instead, when the variable is set. The second value says whether it
    /// was, which a node reports.
    pub fn with_env_override(mut self) -> Result<(Self, bool), ConfError> {
        match SearchPath::from_env(&self.node) {
            None => Ok((self, false)),
            Some(search_path) => {
                self.search_path = search_path?;
                Ok((self, true))
            }
        }
    }

    /// Uses a search path of the caller's choice.
    pub fn with_search_path(mut self, search_path: SearchPath) -> Self {
        self.search_path = search_path;
        self
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The node's subcluster.
    pub fn subcluster(&self) -> &str {
        &self.subcluster
    }

    /// Another node's view of the same files. Only what is really among them counts: a subscription has what was wanted.
    pub fn of(&self, node: &str) -> NodeConf<'a> {
        let subcluster = self.cluster.nodes.get(node).map_or("default", |node| node.subcluster.as_str()).to_owned();
        let search_path = SearchPath::of_node(node, self.cluster.groups_of(node));
        NodeConf { files: self.files, node: node.to_owned(), subcluster, search_path, cluster: self.cluster.clone() }
    }

    /// The files that a document of this node is merged from, the least specific first.
    pub fn layers(&self, name: &str) -> Result<Vec<String>, ConfError> {
        let mut there = Vec::new();
        for path in self.search_path.layers_of(name) {
            if self.files.read(&path)?.is_some() {
                there.push(path);
            }
        }
        Ok(there)
    }

    /// The cluster's nodes.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Where the node looks for files.
    pub fn search_path(&self) -> &SearchPath {
        &self.search_path
    }

    /// The effective file of any name.
    pub fn file(&self, name: &str) -> Result<EffectiveFile, ConfError> {
        Ok(effective::effective(self.files, &self.search_path, name)?)
    }

    /// The effective document of a kind; an empty one when no layer exists.
    pub fn document(&self, kind: DocumentKind) -> Result<Effective, ConfError> {
        // The nodes are the same for everybody, whatever a search path says.
        let shared = SearchPath::shared();
        let search_path = if kind == DocumentKind::Cluster { &shared } else { &self.search_path };
        Ok(effective::document(self.files, search_path, kind.file_name())?)
    }

    /// A document in its real form, checked whole. Without any layer it is the one with all defaults.
    pub fn load<S: Schema>(&self) -> Result<S, ConfError> {
        Ok(schema::resolve(&self.document(S::KIND)?, &self.context())?)
    }

    /// What the node's documents may refer to.
    pub fn context(&self) -> Context<'_> {
        Context { cluster: &self.cluster, subcluster: &self.subcluster, node: Some(&self.node) }
    }
}

/// Reads `global/cluster.toml`; without it there are no nodes.
pub fn read_cluster(files: &dyn Files) -> Result<Cluster, ConfError> {
    let document = effective::document(files, &SearchPath::shared(), DocumentKind::Cluster.file_name())?;
    if let Some(finding) = document
        .layers()
        .iter()
        .filter(|layer| layer.exists)
        .find_map(|layer| misplaced(DocumentKind::Cluster, &layer.path))
    {
        return Err(ConfError::Refused(finding.into()));
    }
    let nobody = Cluster::default();
    Ok(schema::resolve(&document, &Context { cluster: &nobody, subcluster: "default", node: None })?)
}

fn other_subcluster(files: &dyn Files, node: &str, named: &str, certified: &str) -> Result<Findings, ConfError> {
    let document = effective::document(files, &SearchPath::shared(), DocumentKind::Cluster.file_name())?;
    let path = super::place::KeyPath::keys(["node", node, "subcluster"]);
    let message = format!("the node {node} belongs to the subcluster \"{certified}\", not \"{named}\"");
    let hint = "a node's subcluster is part of its certificate; enrol it again to move it";
    Ok(document.finding(&path, message).with_hint(hint).into())
}

/// The identity of a configuration that no commit names: a hash of the effective documents of all nodes that
/// `cluster.toml` names, and of `node`. Equal trees have equal hashes on every machine; comments, order of keys and
/// files that are no documents do not count. 40 hexadecimal digits, like a commit.
pub fn hash(files: &dyn Files, node: &str) -> Result<String, ConfError> {
    let cluster = read_cluster(files)?;
    let mut nodes: Vec<&str> = cluster.nodes.keys().map(String::as_str).collect();
    if !nodes.contains(&node) {
        nodes.push(node);
    }
    nodes.sort_unstable();
    let mut hash = Sha256::new();
    let mut add = |name: &str, document: &Effective| {
        let text = canonical(document.to_json()).to_string();
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name);
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    add("cluster.toml", &effective::document(files, &SearchPath::shared(), "cluster.toml")?);
    for node in nodes {
        let search_path = SearchPath::of_node(node, cluster.groups_of(node));
        for kind in [DocumentKind::Duravip, DocumentKind::Logd, DocumentKind::Cidr] {
            let document = effective::document(files, &search_path, kind.file_name())?;
            add(&format!("{node}/{}", kind.file_name()), &document);
        }
    }
    Ok(hex::encode(&hash.finalize()[..20]))
}

/// The same value with the keys of every object sorted.
pub(crate) fn canonical(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(entries) => {
            let mut entries: Vec<_> = entries.into_iter().map(|(key, value)| (key, canonical(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            serde_json::Value::Object(entries.into_iter().collect())
        }
        serde_json::Value::Array(items) => items.into_iter().map(canonical).collect(),
        other => other,
    }
}
