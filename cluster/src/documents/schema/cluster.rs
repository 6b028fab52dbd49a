//! `global/cluster.toml`: the nodes, where they are reached, and what they belong to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::values::Host;
use super::{Checker, Context, DocumentKind, Schema, names};
use crate::documents::place::KeyPath;

/// What may be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCluster {
    /// The nodes by name.
    pub node: Option<BTreeMap<String, RawNode>>,
}

/// What may be written about a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNode {
    /// Where the other nodes reach it.
    pub address: Option<Host>,
    /// The subcluster it belongs to.
    pub subcluster: Option<String>,
    /// Words to choose nodes by.
    pub labels: Option<Vec<String>>,
    /// Peer directories in its search path.
    pub groups: Option<Vec<String>>,
    /// Votes in duravip and never owns an address.
    pub witness: Option<bool>,
    /// Where its daemons listen, when not at the usual ports.
    pub ports: Option<RawPorts>,
}

/// What may be written about ports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPorts {
    /// ecconfigd.
    pub ecconfigd: Option<u16>,
    /// The log service.
    pub logd: Option<u16>,
    /// DuraVIP's members.
    pub duravip: Option<u16>,
    /// The CIDR server.
    pub cidr: Option<u16>,
}

/// The cluster's nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// By name.
    pub nodes: BTreeMap<String, Node>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where the other nodes reach it; a node may be named before that is known.
    pub address: Option<Host>,
    /// The subcluster it belongs to.
    pub subcluster: String,
    /// Words to choose nodes by.
    pub labels: BTreeSet<String>,
    /// Peer directories in its search path, the more specific first.
    pub groups: Vec<String>,
    /// Votes in duravip and never owns an address.
    pub witness: bool,
    /// Where its daemons listen.
    pub ports: Ports,
}

/// The ports of a node's daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// ecconfigd.
    pub ecconfigd: u16,
    /// The log service.
    pub logd: u16,
    /// DuraVIP's members.
    pub duravip: u16,
    /// The CIDR server.
    pub cidr: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { ecconfigd: 2027, logd: 4802, duravip: 4803, cidr: 9000 }
    }
}

impl Cluster {
    /// The groups of a node; none for one that is not named.
    pub fn groups_of(&self, node: &str) -> &[String] {
        self.nodes.get(node).map_or(&[], |node| &node.groups)
    }

    /// The nodes of a subcluster.
    pub fn nodes_of<'a>(&'a self, subcluster: &'a str) -> impl Iterator<Item = &'a Node> {
        self.nodes.values().filter(move |node| node.subcluster == subcluster)
    }

    /// DuraVIP's members in a subcluster: its nodes, and the witnesses of the whole cluster.
    pub fn members_of<'a>(&'a self, subcluster: &'a str) -> impl Iterator<Item = &'a Node> {
        self.nodes.values().filter(move |node| node.witness || node.subcluster == subcluster)
    }
}

impl Schema for Cluster {
    const KIND: DocumentKind = DocumentKind::Cluster;
    type Raw = RawCluster;

    fn resolve(raw: RawCluster, _: &Context<'_>, check: &mut Checker<'_>) -> Self {
        let raw_nodes = raw.node.unwrap_or_default();
        let names: BTreeSet<String> = raw_nodes.keys().cloned().collect();
        let mut nodes = BTreeMap::new();
        for (name, raw) in raw_nodes {
            let path = KeyPath::keys(["node", &name]);
            let node = resolve_node(&name, raw, &path, &names, check);
            nodes.insert(name, node);
        }
        Self { nodes }
    }
}

fn resolve_node(name: &str, raw: RawNode, path: &KeyPath, names: &BTreeSet<String>, check: &mut Checker<'_>) -> Node {
    if let Some(reason) = names::refuse_node_name(name) {
        check.refuse(
            path,
            format!("a node cannot be called \"{}\": {reason}", crate::documents::place::shortened(name)),
        );
    }
    let subcluster = raw.subcluster.unwrap_or_else(|| "default".to_owned());
    if let Some(reason) = names::refuse_subcluster_name(&subcluster) {
        check.refuse(&path.key("subcluster"), reason);
    }
    let groups = raw.groups.unwrap_or_default();
    check_groups(&groups, &path.key("groups"), names, check);
    let labels = raw.labels.unwrap_or_default();
    for (index, label) in labels.iter().enumerate() {
        if let Some(reason) = names::refuse_item_name(label) {
            check.refuse(&path.key("labels").index(index), reason);
        }
    }
    Node {
        name: name.to_owned(),
        address: raw.address,
        subcluster,
        labels: labels.into_iter().collect(),
        groups,
        witness: raw.witness.unwrap_or(false),
        ports: resolve_ports(raw.ports.unwrap_or_default(), &path.key("ports"), check),
    }
}

fn check_groups(groups: &[String], path: &KeyPath, names: &BTreeSet<String>, check: &mut Checker<'_>) {
    for (index, group) in groups.iter().enumerate() {
        let path = path.index(index);
        if let Some(reason) = names::refuse_node_name(group) {
            check.refuse(
                &path,
                format!("a group cannot be called \"{}\": {reason}", crate::documents::place::shortened(group)),
            );
        } else if names.contains(group) {
            check.refuse_with_hint(
                &path,
                format!("the group \"{group}\" has the name of a node"),
                "groups and nodes share their directories",
            );
        } else if groups[..index].contains(group) {
            check.refuse(&path, format!("the group \"{group}\" is named twice"));
        }
    }
}

fn resolve_ports(raw: RawPorts, path: &KeyPath, check: &mut Checker<'_>) -> Ports {
    let usual = Ports::default();
    let mut port = |key: &str, written: Option<u16>, usual: u16| match written {
        Some(0) => {
            check.refuse(&path.key(key), "0 is not a port");
            usual
        }
        written => written.unwrap_or(usual),
    };
    Ports {
        ecconfigd: port("ecconfigd", raw.ecconfigd, usual.ecconfigd),
        logd: port("logd", raw.logd, usual.logd),
        duravip: port("duravip", raw.duravip, usual.duravip),
        cidr: port("cidr", raw.cidr, usual.cidr),
    }
}
