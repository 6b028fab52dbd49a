//! `eccfg node remove`.

use std::collections::BTreeSet;

use cluster::http_client::ClientError;

use super::Waiting;
use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Remove a node for good
///
/// Dead or alive: it leaves the group, and its certificate is worth nothing any more. Its name is free again. Waits until the other servers go
/// on without it: until then its vote may be needed, and it shall not be switched off. Again is harmless.
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
    let members = server.cluster().await?.members;
    let ids: BTreeSet<u64> = members.iter().filter(|member| member.node == args.node).map(|member| member.id).collect();
    match server.remove_node(&args.node).await {
        // It was removed before, and the group could not go on without it yet.
        Err(ClientError::Api(error)) if error.status == 404 && !ids.is_empty() => {}
        removed => removed?,
    }
    args.waiting.until(&server, |info| info.members.iter().all(|member| !ids.contains(&member.id))).await?;
    cx.ui.progress(format!("Removed {}", args.node))?;
    Ok(0)
}
