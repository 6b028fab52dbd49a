//! `eccfg node list`.

use cluster::api::{MemberState, NodeInfo, ReportState};
use serde::Serialize;

use crate::commands::{Context, Need};
use crate::error::CommandError;
use crate::output::columns;

/// List the nodes of the cluster
///
/// With each node's subcluster, role and address, how the server on it is at this moment, and how far its programs got with their
/// configuration.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only the nodes of this subcluster
    #[arg(long, value_name = "NAME")]
    subcluster: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy_if_any()?;
    let server = cx.server(wc.as_ref(), Need::Reader).await?;
    let mut nodes = server.nodes().await?;
    let states = server.member_states().await?;
    let leaving = leaving(&nodes, &states);
    nodes.retain(|node| args.subcluster.as_ref().is_none_or(|wanted| &node.subcluster == wanted));
    if cx.ui.json() {
        let shown: Vec<_> = nodes.iter().map(|node| Shown { node, server: of(node, &states) }).collect();
        cx.ui.json_document(&shown)?;
        return Ok(0);
    }
    let heading = ["NODE", "SUBCLUSTER", "ROLE", "ADDRESS", "CONFIGURATION", "SERVER"].map(str::to_owned).to_vec();
    let rows = nodes.iter().map(|node| row(node, of(node, &states)));
    let leaving = leaving.into_iter().filter(|_| args.subcluster.is_none());
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).chain(leaving).collect();
    for line in columns(&rows) {
        cx.ui.line(line)?;
    }
    Ok(0)
}

/// A node and how the server on it is, where there is one.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    node: &'a NodeInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a MemberState>,
}

fn of<'a>(node: &NodeInfo, states: &'a [MemberState]) -> Option<&'a MemberState> {
    states.iter().find(|state| state.node == node.name)
}

fn row(node: &NodeInfo, state: Option<&MemberState>) -> Vec<String> {
    let role = node.role.map_or_else(|| "not joined".to_owned(), |role| role.to_string());
    let address = node.address.clone().unwrap_or_else(|| "-".to_owned());
    vec![node.name.clone(), node.subcluster.clone(), role, address, configuration(node), server(state)]
}

/// Members that are no nodes any more: they were removed, and the group cannot do without them yet.
fn leaving(nodes: &[NodeInfo], states: &[MemberState]) -> Vec<Vec<String>> {
    let gone = states.iter().filter(|state| !nodes.iter().any(|node| node.name == state.node));
    let row =
        |state: &MemberState| [&state.node, "-", "leaving", "-", "-", &server(Some(state))].map(str::to_owned).to_vec();
    gone.map(row).collect()
}

/// `leads`, `follows`, or what is wrong.
fn server(state: Option<&MemberState>) -> String {
    let Some(state) = state else { return "-".to_owned() };
    match (&state.trouble, state.leads) {
        (None, true) => "leads".to_owned(),
        (None, false) => "follows".to_owned(),
        (Some(why), true) => format!("leads, {why}"),
        (Some(why), false) => why.clone(),
    }
}

/// `agent healthy, logd refused`; programs that are at an older target say so.
fn configuration(node: &NodeInfo) -> String {
    let target = node.target.as_ref().map_or(0, |target| target.serial);
    let reports = node.reports.iter().map(|report| {
        let old = if report.serial < target { " (older)" } else { "" };
        format!("{} {}{old}", report.program, word(report.state))
    });
    let text = reports.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "-".to_owned() } else { text }
}

fn word(state: ReportState) -> &'static str {
    match state {
        ReportState::Fetched => "fetched",
        ReportState::Checked => "checked",
        ReportState::Applied => "applied",
        ReportState::Healthy => "healthy",
        ReportState::Refused => "refused",
        ReportState::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_removed_is_listed_until_the_group_can_do_without_it() {
        let state = |node: &str, trouble: Option<&str>| MemberState {
            node: node.into(),
            leads: false,
            trouble: trouble.map(str::to_owned),
        };
        let json = r#"[{"name":"n1","subcluster":"default"}]"#;
        let nodes: Vec<NodeInfo> = serde_json::from_str(json).expect("a node");
        let rows = leaving(&nodes, &[state("n1", None), state("n2", None), state("n3", Some("does not answer"))]);
        assert_eq!(
            rows,
            [["n2", "-", "leaving", "-", "-", "follows"], ["n3", "-", "leaving", "-", "-", "does not answer"]]
        );
    }
}
