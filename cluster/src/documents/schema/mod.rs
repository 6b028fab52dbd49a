//! The documents that our programs read.
//!
//! Each has a raw form, which is what may be written (every key optional, so that it also fits a single layer), and a
//! real one, which is what is meant: complete, with defaults, names resolved and contradictions refused. A raw form
//! already holds checked values (an address is an address); rules that need the whole document, or the cluster's
//! nodes, are checked on the way to the real form.

pub mod agent;
pub mod boot;
pub mod cidr;
pub mod cluster;
pub mod duravip;
pub mod eccfg;
pub mod ecconfigd;
pub mod log_input;
pub mod log_sink;
pub mod logd;
pub mod names;
pub mod path_pattern;
pub mod values;

use std::collections::BTreeSet;
use std::fmt;

use serde::de::DeserializeOwned;

use self::cluster::Cluster;
use super::decode;
use super::effective::Effective;
use super::finding::{Finding, Findings};
use super::parse::Document;
use super::place::{KeyPath, Place, Position};

/// The documents that have a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentKind {
    /// `global/cluster.toml`: the nodes.
    Cluster,
    /// `duravip.toml`: virtual addresses.
    Duravip,
    /// `logd.toml`: journals and managers.
    Logd,
    /// `cidr.toml`: series.
    Cidr,
    /// Node-local `boot.toml`: how the working copy is kept.
    Boot,
    /// Node-local `agent.toml`: services to check and reload.
    Agent,
    /// Node-local `ecconfigd.toml`: the server.
    Ecconfigd,
    /// `~/.config/eccluster/eccfg.toml`: one person's servers and credentials.
    Eccfg,
}

impl DocumentKind {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Cluster, Self::Duravip, Self::Logd, Self::Cidr, Self::Boot, Self::Agent, Self::Ecconfigd, Self::Eccfg];

    /// Those that live in repositories.
    pub const IN_REPOSITORIES: [Self; 4] = [Self::Cluster, Self::Duravip, Self::Logd, Self::Cidr];

    /// The name of its file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster.toml",
            Self::Duravip => "duravip.toml",
            Self::Logd => "logd.toml",
            Self::Cidr => "cidr.toml",
            Self::Boot => "boot.toml",
            Self::Agent => "agent.toml",
            Self::Ecconfigd => "ecconfigd.toml",
            Self::Eccfg => "eccfg.toml",
        }
    }

    /// The document with this file name.
    pub fn of_file_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.file_name() == name)
    }

    /// True for what belongs to one machine and is never read from a repository.
    pub fn is_node_local(self) -> bool {
        !Self::IN_REPOSITORIES.contains(&self)
    }

    /// Checks one layer by itself: keys and values must be right, nothing needs to be complete.
    pub fn check_layer(self, document: &Document) -> Findings {
        match self {
            Self::Cluster => check_layer::<Cluster>(document),
            Self::Duravip => check_layer::<duravip::Duravip>(document),
            Self::Logd => check_layer::<logd::Logd>(document),
            Self::Cidr => check_layer::<cidr::Cidr>(document),
            Self::Boot => check_layer::<boot::Boot>(document),
            Self::Agent => check_layer::<agent::Agent>(document),
            Self::Ecconfigd => check_layer::<ecconfigd::Ecconfigd>(document),
            Self::Eccfg => check_layer::<eccfg::Eccfg>(document),
        }
    }

    /// Checks a whole document: everything that a program would refuse when it reads it.
    pub fn check_effective(self, effective: &Effective, context: &Context<'_>) -> Findings {
        match self {
            Self::Cluster => check_effective::<Cluster>(effective, context),
            Self::Duravip => check_effective::<duravip::Duravip>(effective, context),
            Self::Logd => check_effective::<logd::Logd>(effective, context),
            Self::Cidr => check_effective::<cidr::Cidr>(effective, context),
            Self::Boot => check_effective::<boot::Boot>(effective, context),
            Self::Agent => check_effective::<agent::Agent>(effective, context),
            Self::Ecconfigd => check_effective::<ecconfigd::Ecconfigd>(effective, context),
            Self::Eccfg => check_effective::<eccfg::Eccfg>(effective, context),
        }
    }
}

impl fmt::Display for DocumentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}

/// A document in its real form.
pub trait Schema: Sized {
    /// Which document.
    const KIND: DocumentKind;

    /// What may be written.
    type Raw: DeserializeOwned;

    /// What is meant. Contradictions go to the checker; where there was one, any value will do, as nobody sees it.
    fn resolve(raw: Self::Raw, context: &Context<'_>, check: &mut Checker<'_>) -> Self;
}

/// What a document may refer to: the nodes, and whose document it is.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The cluster's nodes.
    pub cluster: &'a Cluster,
    /// The subcluster whose document it is.
    pub subcluster: &'a str,
    /// The node whose document it is; none for one that is shared.
    pub node: Option<&'a str>,
}

impl Context<'_> {
    /// True for the nodes that a document may name: those of `cluster.toml`, and the node itself. Where `cluster.toml`
    /// names nobody, as on a cluster of one machine, there is nothing to compare with and every name will do.
    pub fn knows(&self, node: &str) -> bool {
        self.cluster.nodes.is_empty() || self.node == Some(node) || self.cluster.nodes.contains_key(node)
    }

    /// All of these names.
    pub fn known_nodes(&self) -> BTreeSet<&str> {
        self.cluster.nodes.keys().map(String::as_str).chain(self.node).collect()
    }

    /// True for the nodes of another subcluster.
    pub fn is_foreign(&self, node: &str) -> bool {
        self.node != Some(node) && self.cluster.nodes.get(node).is_some_and(|known| known.subcluster != self.subcluster)
    }
}

/// Collects what is wrong with an effective document, each thing at its key.
pub struct Checker<'a> {
    effective: &'a Effective,
    findings: Findings,
}

impl<'a> Checker<'a> {
    /// Nothing found yet.
    pub fn new(effective: &'a Effective) -> Self {
        Self { effective, findings: Findings::new() }
    }

    /// Refuses the value at a path.
    pub fn refuse(&mut self, path: &KeyPath, message: impl Into<String>) {
        self.findings.push(self.effective.finding(path, message));
    }

    /// Refuses the value at a path and says what may help.
    pub fn refuse_with_hint(&mut self, path: &KeyPath, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.push(self.effective.finding(path, message).with_hint(hint));
    }

    /// Refuses a missing key of the table at a path.
    pub fn missing(&mut self, table: &KeyPath, key: &str) {
        let finding = self.effective.finding(table, format!("the key \"{key}\" is missing"));
        self.findings.push(finding.with_key(&table.key(key)));
    }

    /// Refuses the name of a node that is not known.
    pub fn unknown_node(&mut self, path: &KeyPath, node: &str, context: &Context<'_>) {
        let hint = super::hint::nearest(node, context.known_nodes())
            .map_or("nodes are named in global/cluster.toml".to_owned(), |near| format!("did you mean \"{near}\"?"));
        self.refuse_with_hint(path, format!("no node is called \"{}\"", super::place::shortened(node)), hint);
    }

    /// What was found.
    pub fn finish(self) -> Findings {
        self.findings.sorted()
    }
}

/// Checks one layer against a schema.
pub fn check_layer<S: Schema>(document: &Document) -> Findings {
    let anchor = Place { file: document.file.clone(), at: Position::START };
    decode::check_layer::<S::Raw>(&document.root, &anchor)
}

/// Reads an effective document into its real form.
pub fn resolve<S: Schema>(effective: &Effective, context: &Context<'_>) -> Result<S, Findings> {
    let raw = effective.decode::<S::Raw>()?;
    let mut checker = Checker::new(effective);
    let real = S::resolve(raw, context, &mut checker);
    checker.finish().or(real)
}

fn check_effective<S: Schema>(effective: &Effective, context: &Context<'_>) -> Findings {
    match resolve::<S>(effective, context) {
        Ok(_) => Findings::new(),
        Err(findings) => findings,
    }
}

/// A finding for a document in a place where none may be.
pub(crate) fn misplaced(kind: DocumentKind, path: &str) -> Option<Finding> {
    let name = kind.file_name();
    if kind.is_node_local() {
        let message = format!("{name} belongs to one machine and is never read from a repository");
        return Some(
            Finding::whole(path, message).with_hint(format!("keep it in /etc/eccluster on the node as {name}")),
        );
    }
    if kind == DocumentKind::Cluster && path != "global/cluster.toml" {
        let message = "cluster.toml is read from the repository \"global\" only";
        return Some(Finding::whole(path, message).with_hint("move its content to global/cluster.toml"));
    }
    None
}
