//! `eccfg node demote`.

use cluster::api::{ClusterMember, NodeRole};

use super::Waiting;
use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Take a server's vote away
///
/// It keeps every repository and goes on serving. Waits until it has lost it: until then its vote may be needed. Again is harmless.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The node
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy_if_any()?;
    let server = cx.server(wc.as_ref(), Need::Person).await?;
    server.demote(&args.node).await?;
    let voter = |member: &ClusterMember| member.node == args.node && member.role == NodeRole::Voter;
    args.waiting.until(&server, |info| !info.members.iter().any(voter)).await?;
    cx.ui.progress(format!("{} does not vote any more", args.node))?;
    Ok(0)
}
