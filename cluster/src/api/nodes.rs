//! Nodes, what they report, and the Raft group.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Head, Target};

/// What a node is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Runs ecconfigd and votes.
    Voter,
    /// Runs ecconfigd with the same repositories and does not vote.
    Learner,
    /// Holds a working copy only.
    Client,
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Client => "client",
        })
    }
}

/// One node, as the replicated state and `global/cluster.toml` know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The subcluster it belongs to.
    pub subcluster: String,
    /// Absent for a node that is named in `cluster.toml` and has not joined or enrolled yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<NodeRole>,
    /// Where the other nodes reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Labels of `cluster.toml`.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Peer groups of `cluster.toml`.
    #[serde(default)]
    pub groups: Vec<String>,
    /// True for a node that votes in duravip and never owns an address.
    #[serde(default)]
    pub witness: bool,
    /// The directories its documents are looked up in, most specific first.
    #[serde(default)]
    pub search_path: Vec<String>,
    /// What the node shall have, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The newest report of each program on the node.
    #[serde(default)]
    pub reports: Vec<NodeReport>,
}

/// How far a program got with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ReportState {
    /// The files are here.
    Fetched,
    /// The checks passed.
    Checked,
    /// The configuration is in use.
    Applied,
    /// In use and verified.
    Healthy,
    /// A check failed or the program could not apply it: the old configuration stays.
    Refused,
    /// Applying or verifying failed and the old configuration was put back.
    Failed,
}

/// What one program on a node did with its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    /// `agent`, `duravip`, `logd`, …
    pub program: String,
    /// The serial of the target that this is about.
    pub serial: u64,
    /// Repository name → what the program has or tried.
    #[serde(default)]
    pub repos: BTreeMap<String, Head>,
    /// How far it got.
    pub state: ReportState,
    /// Why not, or what was noticed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What each service of `agent.toml` said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepReport>,
    /// A local override of the search path, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_path: Option<Vec<String>>,
    /// The program's version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// When it was reported; the server fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// The outcome of one command on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StepReport {
    /// The service of `agent.toml`.
    pub service: String,
    /// `check`, `reload` or `verify`.
    pub step: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// The exit status, where the command ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// How long it took.
    #[serde(default)]
    pub duration_ms: u64,
    /// The end of what it printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// How a member is, as the server that was asked finds it at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MemberState {
    /// The node's name.
    pub node: String,
    /// Whether it leads.
    pub leads: bool,
    /// What is wrong with it: it does not answer, is read-only, is catching up. Absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The cluster as this server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ClusterInfo {
    /// The cluster's name.
    pub cluster: String,
    /// The node that answers.
    pub node: String,
    /// The leader, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The Raft term.
    pub term: u64,
    /// The node that the leadership is pinned to, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// The last log index applied here.
    pub applied: u64,
    /// The members of the Raft group.
    pub members: Vec<ClusterMember>,
    /// Why the node that answers writes nothing: its disk is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<String>,
    /// The server's version.
    pub version: String,
}

/// One member of the Raft group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ClusterMember {
    /// The member's number in the Raft group.
    pub id: u64,
    /// The node's name.
    pub node: String,
    /// Where others reach it.
    pub address: String,
    /// Voter or learner.
    pub role: NodeRole,
    /// The log index it is known to have, where this server is the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<u64>,
    /// Why the member has taken itself out: what it holds is damaged or differs from the others. It serves nothing and rebuilds itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
}
