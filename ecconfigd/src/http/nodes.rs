//! The cluster and its nodes: membership, what each node is, what it reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::Response;
use cluster::api::{ClusterInfo, ClusterMember, MemberState, NodeInfo, NodeReport, NodeRole, Problem};
use cluster::documents::SearchPath;
use cluster::documents::schema::cluster::{Cluster, Node};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::effective::named_nodes;
use super::extract::{Json, Path, Payload, Query};
use super::problem::{ApiError, Code};
use super::read::stamped;
use super::repositories::Min;
use super::trust::now_ms;
use crate::accounts::{Action, Caller, authorize};
use crate::core::{Core, Group};
use crate::state::{Head, NodeKind, NodeName, NodeRecord, RepoName, ReportRecord, rfc3339};

/// What is kept of a command's output: the end, where errors are.
const OUTPUT_MAX_BYTES: usize = 16 << 10;
/// Steps of one report.
const STEPS_MAX: usize = 200;

impl Payload for NodeReport {}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(cluster_info))
        .routes(routes!(member_states))
        .routes(routes!(list))
        .routes(routes!(one))
        .routes(routes!(report))
        .routes(routes!(promote))
        .routes(routes!(demote))
        .routes(routes!(remove))
}

/// The Raft group as this server sees it.
#[utoipa::path(get, path = "/api/v1/cluster", tag = "nodes", operation_id = "getCluster", responses(
    (status = 200, description = "Members, leader, applied state", body = ClusterInfo),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn cluster_info(State(app): State<Arc<App>>, caller: Caller) -> Result<JsonBody<ClusterInfo>, ApiError> {
    authorize(&caller, Action::SeeCluster)?;
    let group = app.core.group();
    let members = group.members.into_iter().map(|member| ClusterMember {
        id: member.raft_id,
        node: member.node,
        address: member.address,
        role: if member.voter { NodeRole::Voter } else { NodeRole::Learner },
        matched: member.matched,
        out: member.out,
    });
    Ok(JsonBody(ClusterInfo {
        cluster: group.cluster,
        node: app.core.node_name().to_string(),
        leader: group.leader,
        term: group.term,
        pinned: group.pinned,
        applied: group.applied,
        members: members.collect(),
        read_only: app.core.read_only(),
        version: env!("CARGO_PKG_VERSION").into(),
    }))
}

/// How every member of the Raft group is, asked at this moment.
#[utoipa::path(get, path = "/api/v1/cluster/members", tag = "nodes", operation_id = "listMembers", responses(
    (status = 200, description = "The members", body = Vec<MemberState>),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn member_states(State(app): State<Arc<App>>, caller: Caller) -> Result<JsonBody<Vec<MemberState>>, ApiError> {
    authorize(&caller, Action::SeeCluster)?;
    Ok(JsonBody(app.core.member_states().await))
}

/// Every node that joined, enrolled, or is named in `global/cluster.toml`.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "nodes", operation_id = "listNodes", params(Min), responses(
    (status = 200, description = "The nodes by name", body = Vec<NodeInfo>,
        headers(("X-Revision" = u64, description = "The revision of global, whose cluster.toml was read"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<Arc<App>>, caller: Caller, Query(min): Query<Min>) -> Result<Response, ApiError> {
    let asked = app.asked(caller, min.min_revision).await?;
    app.blocking(move || Ok(stamped(asked.head, JsonBody(asked.all()?)))).await
}

/// One node.
#[utoipa::path(get, path = "/api/v1/nodes/{node}", tag = "nodes", operation_id = "getNode", params(
    ("node" = String, Path, description = "The node"), Min,
), responses(
    (status = 200, description = "The node", body = NodeInfo,
        headers(("X-Revision" = u64, description = "The revision of global, whose cluster.toml was read"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn one(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(node): Path<NodeName>,
    Query(min): Query<Min>,
) -> Result<Response, ApiError> {
    let asked = app.asked(caller, min.min_revision).await?;
    app.blocking(move || Ok(stamped(asked.head, JsonBody(asked.one(&node)?)))).await
}

/// A program on a node tells what it did with its target. The newest report of each program is kept.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/report", tag = "nodes", operation_id = "report", params(
    ("node" = String, Path, description = "The node"),
), request_body = NodeReport, responses(
    (status = 204, description = "Kept"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn report(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(node): Path<NodeName>,
    Json(mut report): Json<NodeReport>,
) -> Result<StatusCode, ApiError> {
    authorize(&caller, Action::Report(&node))?;
    app.core.node(&node)?;
    check(&mut report)?;
    report.time = Some(rfc3339(now_ms()));
    let json = serde_json::to_vec(&report).map_err(|error| ApiError::internal(&error))?;
    app.core.report(ReportRecord { node, program: report.program, json }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The member shall vote. It does once it has caught up.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/promote", tag = "nodes", operation_id = "promoteNode", params(
    ("node" = String, Path, description = "The member"),
), responses(
    (status = 204, description = "Recorded"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn promote(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(node): Path<NodeName>,
) -> Result<StatusCode, ApiError> {
    app.set_voter(&caller, &node, true).await
}

/// The member shall not vote any more. It keeps everything and goes on serving.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/demote", tag = "nodes", operation_id = "demoteNode", params(
    ("node" = String, Path, description = "The member"),
), responses(
    (status = 204, description = "Recorded"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn demote(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(node): Path<NodeName>,
) -> Result<StatusCode, ApiError> {
    app.set_voter(&caller, &node, false).await
}

/// The node leaves for good, dead or alive. Its certificate is worth nothing any more.
#[utoipa::path(delete, path = "/api/v1/nodes/{node}", tag = "nodes", operation_id = "removeNode", params(
    ("node" = String, Path, description = "The node"),
), responses(
    (status = 204, description = "Removed"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(node): Path<NodeName>,
) -> Result<StatusCode, ApiError> {
    authorize(&caller, Action::ManageNodes)?;
    app.core.remove_node(&node).await?;
    tracing::info!(by = caller.name(), %node, "a node was removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses what is no report, cuts what is too long.
fn check(report: &mut NodeReport) -> Result<(), ApiError> {
    let word = |text: &str| {
        (1..=32).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if !word(&report.program) {
        return Err(ApiError::new(Code::Invalid, "program: a word of a-z, 0-9 and '-', at most 32 characters"));
    }
    report.steps.truncate(STEPS_MAX);
    keep_end(&mut report.detail);
    report.steps.iter_mut().for_each(|step| keep_end(&mut step.output));
    Ok(())
}

fn keep_end(text: &mut String) {
    if text.len() > OUTPUT_MAX_BYTES {
        let mut from = text.len() - OUTPUT_MAX_BYTES;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text.replace_range(..from, "…");
    }
}

impl App {
    async fn set_voter(&self, caller: &Caller, node: &NodeName, voter: bool) -> Result<StatusCode, ApiError> {
        authorize(caller, Action::ManageNodes)?;
        self.core.set_voter(node, voter).await?;
        tracing::info!(by = caller.name(), %node, voter, "a member's vote was changed");
        Ok(StatusCode::NO_CONTENT)
    }

    /// Who asks about nodes, and what they are shown.
    async fn asked(&self, caller: Caller, min: Option<u64>) -> Result<Asked, ApiError> {
        authorize(&caller, Action::SeeCluster)?;
        let global = RepoName::global();
        self.reached(&global, min).await?;
        let (group, head) = (self.core.group(), self.core.head(&global)?);
        Ok(Asked { core: self.core.clone(), caller, group, head })
    }

    /// Where a node is reached, as far as the state or `cluster.toml` say.
    pub(super) async fn node_address(&self, node: &NodeName) -> Option<String> {
        if let Some(address) = self.core.node(node).ok().and_then(|record| record.address.clone()) {
            return Some(address);
        }
        let head = self.core.head(&RepoName::global()).ok()?;
        let named = self.named_nodes(head).await.ok()?;
        Some(named.nodes.get(node.as_str())?.address.as_ref()?.to_string())
    }
}

/// Nodes, as one caller may see them at one moment: those of the state, and those that `cluster.toml` names in advance. What the others shall
/// have and what their commands printed is no business of a node that only holds a working copy. All of it blocks.
struct Asked {
    core: Core,
    caller: Caller,
    group: Group,
    head: Head,
}

impl Asked {
    /// Every node, by name.
    fn all(&self) -> Result<Vec<NodeInfo>, ApiError> {
        let mut infos = BTreeMap::new();
        for record in self.core.nodes() {
            infos.insert(record.name.to_string(), self.registered(&record)?);
        }
        for node in self.named().nodes.into_values() {
            let info = infos.entry(node.name.clone()).or_insert_with(|| only_named(&node));
            add_named(info, node);
        }
        Ok(infos.into_values().collect())
    }

    fn one(&self, name: &NodeName) -> Result<NodeInfo, ApiError> {
        let registered = self.core.node(name).ok().map(|record| self.registered(&record)).transpose()?;
        let named = self.named().nodes.into_values().find(|node| node.name == name.as_str());
        let mut info = registered
            .or_else(|| named.as_ref().map(only_named))
            .ok_or_else(|| ApiError::not_found(format!("no such node: {name}")))?;
        if let Some(node) = named {
            add_named(&mut info, node);
        }
        Ok(info)
    }

    /// A `cluster.toml` that cannot be read must not hide the nodes that exist.
    fn named(&self) -> Cluster {
        named_nodes(&self.core, self.head).unwrap_or_default()
    }

    fn registered(&self, record: &NodeRecord) -> Result<NodeInfo, ApiError> {
        let whole = authorize(&self.caller, Action::SeeReports(&record.name)).is_ok();
        let reports = if whole { self.core.reports(&record.name)? } else { Vec::new() };
        let reports = reports.iter().filter_map(|report| serde_json::from_slice(&report.json).ok()).collect();
        Ok(NodeInfo {
            name: record.name.to_string(),
            subcluster: record.subcluster.to_string(),
            role: Some(role(record, &self.group)),
            address: record.address.clone(),
            labels: Vec::new(),
            groups: Vec::new(),
            witness: false,
            search_path: SearchPath::of_node(record.name.as_str(), &[]).directories().to_vec(),
            target: if whole { self.core.target(&record.name).ok().map(|event| event.api()) } else { None },
            reports,
        })
    }
}

/// What `cluster.toml` says about a node.
fn add_named(info: &mut NodeInfo, node: Node) {
    info.address = info.address.take().or(node.address.map(|host| host.to_string()));
    info.search_path = SearchPath::of_node(&node.name, &node.groups).directories().to_vec();
    (info.labels, info.groups, info.witness) = (node.labels.into_iter().collect(), node.groups, node.witness);
}

fn only_named(node: &Node) -> NodeInfo {
    NodeInfo {
        name: node.name.clone(),
        subcluster: node.subcluster.clone(),
        role: None,
        address: None,
        labels: Vec::new(),
        groups: Vec::new(),
        witness: false,
        search_path: Vec::new(),
        target: None,
        reports: Vec::new(),
    }
}

/// What a node is to the cluster now.
fn role(record: &NodeRecord, group: &Group) -> NodeRole {
    match record.kind {
        NodeKind::Client => NodeRole::Client,
        NodeKind::Server => {
            let member = group.members.iter().find(|member| member.node == record.name.as_str());
            if member.is_some_and(|member| member.voter) { NodeRole::Voter } else { NodeRole::Learner }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_keeps_its_end() {
        let mut text = "ü".repeat(OUTPUT_MAX_BYTES);
        text.push_str("the error");
        keep_end(&mut text);
        assert!(text.len() <= OUTPUT_MAX_BYTES + 4 && text.starts_with('…') && text.ends_with("the error"));
    }
}
