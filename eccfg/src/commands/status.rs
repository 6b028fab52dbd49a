//! `eccfg status`.

use std::collections::BTreeMap;

use cluster::api::{Head, MemberState, NodeInfo, NodeReport, NodeRole, ReportState};
use repos::worktree::{ChangeKind, MountStatus, Status, WorkingCopy};
use serde::Serialize;

use crate::commands::{Context, Need};
use crate::error::{CommandError, with_causes};
use crate::local_agent::{self, AgentStatus};
use crate::output::Style;

/// Show local edits, conflicts, and how far behind the repository this is
///
/// With a server also what the node's programs reported about their configuration, and what the commands of a step that failed
/// printed. Without one, only what is local.
///
/// Letters: M modified, X executable bit, A added, D deleted, ? unknown to git, ! vanished, C conflict.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Look at this node's reports instead of this machine's
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Ask no server
    #[arg(long, conflicts_with = "node")]
    local: bool,
    /// The output of every command, not only of those that failed
    #[arg(long)]
    output: bool,
}

/// Everything that is known.
#[derive(Serialize)]
struct Report {
    working_copy: String,
    #[serde(flatten)]
    local: Status,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    heads: BTreeMap<String, Head>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeInfo>,
    /// How the server on the node is, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<MemberState>,
    /// What this machine's agent says, asked when no server answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<AgentStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_error: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy()?;
    let local = cx.blocking({
        let wc = wc.clone();
        move || wc.status()
    });
    let mut report = Report {
        working_copy: wc.root().display().to_string(),
        local: local.await?,
        heads: BTreeMap::new(),
        node: None,
        server: None,
        agent: None,
        server_error: None,
    };
    if !args.local
        && let Err(error) = ask_server(args, &wc, &mut report, cx).await
    {
        report.server_error = Some(with_causes(&error));
        let node = cx.node(Some(&wc))?;
        report.agent = local_agent::status_of(&node).await;
    }
    if cx.ui.json() {
        cx.ui.json_document(&report)?;
    } else {
        print(args, &report, cx)?;
    }
    Ok(0)
}

async fn ask_server(
    args: &Args,
    wc: &WorkingCopy,
    report: &mut Report,
    cx: &mut Context<'_>,
) -> Result<(), CommandError> {
    let server = cx.server(Some(wc), Need::Reader).await?;
    for mount in wc.mounts() {
        report.heads.insert(mount.name.clone(), server.head(&mount.name).await?);
    }
    let named = args.node.is_some();
    let node = match &args.node {
        Some(node) => node.clone(),
        None => cx.node(Some(wc))?,
    };
    report.node = match server.node(&node).await {
        Ok(info) => Some(info),
        // A workstation's working copy belongs to no node.
        Err(error) if error.status() == Some(404) && !named => None,
        Err(error) => return Err(error.into()),
    };
    if report.node.as_ref().is_some_and(|info| matches!(info.role, Some(NodeRole::Voter | NodeRole::Learner))) {
        report.server = server.member_states().await?.into_iter().find(|state| state.node == node);
    }
    Ok(())
}

fn print(args: &Args, report: &Report, cx: &mut Context<'_>) -> Result<(), CommandError> {
    cx.ui.line(format!("Working copy {}", report.working_copy))?;
    for mount in &report.local.mounts {
        cx.ui.line(format!("{}: {}", mount.name, position(mount, report.heads.get(&mount.name))))?;
    }
    for mount in &report.local.mounts {
        print_local(mount, cx)?;
    }
    for saved in &report.local.saved {
        let place = saved.file.as_ref().map(|file| format!(", kept in {}", file.display())).unwrap_or_default();
        cx.ui.line(format!("Put aside: {} ({}{place})", saved.path, saved.reason))?;
    }
    if !report.local.saved.is_empty() {
        cx.ui.note("`eccfg resolve --put-aside FILE…` drops what was put aside, once it is not needed any more");
    }
    if let Some(node) = &report.node {
        print_node(args, node, cx)?;
    }
    if let Some(MemberState { node, trouble: Some(why), .. }) = &report.server {
        let label = cx.ui.styled(Style::Red, "not in order");
        cx.ui.line(format!("The server on {node} is {label}: {why}"))?;
    }
    if let Some(agent) = &report.agent {
        print_agent(args, agent, cx)?;
    }
    if let Some(error) = &report.server_error {
        cx.ui.note(format!("only what is local is known: {error}"));
    }
    Ok(())
}

/// Where a mount stands and how far that is behind.
fn position(mount: &MountStatus, head: Option<&Head>) -> String {
    let Some(base) = &mount.base else { return "not checked out yet".into() };
    let here = format!("revision {} ({})", base.revision, &base.commit.to_string()[..10]);
    match head {
        None => here,
        Some(head) if head.revision == base.revision => format!("{here}, up to date"),
        Some(head) if head.revision > base.revision => {
            let behind = head.revision - base.revision;
            let plural = if behind == 1 { "" } else { "s" };
            format!("{here}, {behind} revision{plural} behind {}", head.revision)
        }
        Some(head) => format!("{here}, the server is only at {}", head.revision),
    }
}

fn print_local(mount: &MountStatus, cx: &mut Context<'_>) -> Result<(), CommandError> {
    for conflict in &mount.conflicts {
        let letter = cx.ui.styled(Style::Red, "C");
        cx.ui.line(format!("{letter}  {} ({})", conflict.path, conflict.what))?;
    }
    let in_conflict = |path| mount.conflicts.iter().any(|conflict| &conflict.path == path);
    for change in mount.changes.iter().filter(|change| !in_conflict(&change.path)) {
        let (letter, style) = letter(change.kind);
        let letter = cx.ui.styled(style, letter);
        cx.ui.line(format!("{letter}  {}", change.path))?;
    }
    if !mount.local_commits.is_empty() {
        let count = mount.local_commits.len();
        let commits = if count == 1 { "commit" } else { "commits" };
        cx.ui.line(format!("{} has {count} local {commits} that upstream does not have", mount.name))?;
    }
    Ok(())
}

fn letter(kind: ChangeKind) -> (&'static str, Style) {
    match kind {
        ChangeKind::Modified => ("M", Style::Cyan),
        ChangeKind::Mode => ("X", Style::Cyan),
        ChangeKind::Added => ("A", Style::Green),
        ChangeKind::Deleted => ("D", Style::Red),
        ChangeKind::Untracked => ("?", Style::Yellow),
        ChangeKind::Missing => ("!", Style::Red),
    }
}

fn print_node(args: &Args, node: &NodeInfo, cx: &mut Context<'_>) -> Result<(), CommandError> {
    if node.reports.is_empty() {
        return Ok(cx.ui.line(format!("Node {}: nothing was reported", node.name))?);
    }
    let target = node.target.as_ref().map(|target| target.serial);
    cx.ui.line(format!(
        "Node {}{}:",
        node.name,
        target.map(|serial| format!(", target {serial}")).unwrap_or_default()
    ))?;
    for report in &node.reports {
        print_report(args, report, target, cx)?;
    }
    Ok(())
}

/// The last report, as the agent keeps it until a server takes it.
fn print_agent(args: &Args, agent: &AgentStatus, cx: &mut Context<'_>) -> Result<(), CommandError> {
    cx.ui.line(format!("The agent of {}:", agent.node))?;
    if let Some(report) = &agent.report {
        print_report(args, report, agent.target.as_ref().map(|target| target.serial), cx)?;
    }
    if let Some(trouble) = &agent.trouble {
        cx.ui.line(format!("  {trouble}"))?;
    }
    Ok(())
}

fn print_report(
    args: &Args,
    report: &NodeReport,
    target: Option<u64>,
    cx: &mut Context<'_>,
) -> Result<(), CommandError> {
    let (word, style) = state(report.state);
    let stale = if target.is_some_and(|target| target > report.serial) { ", an older target" } else { "" };
    let detail = report.detail.trim();
    let reason = detail.lines().next().map(|line| format!(": {line}")).unwrap_or_default();
    let word = cx.ui.styled(style, word);
    cx.ui.line(format!("  {} {word} {}{stale}{reason}", report.program, report.serial))?;
    for line in detail.lines().skip(1) {
        cx.ui.line(format!("    {line}"))?;
    }
    for step in &report.steps {
        let outcome = match (step.ok, step.exit) {
            (true, _) => "ok".to_owned(),
            (false, Some(exit)) => format!("failed with status {exit}"),
            (false, None) => "failed".to_owned(),
        };
        cx.ui.line(format!("    {} {}: {outcome} ({} ms)", step.service, step.step, step.duration_ms))?;
        if args.output || !step.ok {
            for line in step.output.trim_end().lines() {
                cx.ui.line(format!("      | {line}"))?;
            }
        }
    }
    Ok(())
}

fn state(state: ReportState) -> (&'static str, Style) {
    match state {
        ReportState::Fetched => ("fetched", Style::Yellow),
        ReportState::Checked => ("checked", Style::Yellow),
        ReportState::Applied => ("applied", Style::Green),
        ReportState::Healthy => ("healthy", Style::Green),
        ReportState::Refused => ("refused", Style::Red),
        ReportState::Failed => ("failed", Style::Red),
    }
}
