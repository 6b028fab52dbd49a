//! `eccfg node remove`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Remove a node for good
///
/// Dead or alive: it leaves the group, and its certificate is worth nothing any more. Its name is free again.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The node
    #[arg(value_name = "NODE")]
    node: String,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy_if_any()?;
    let server = cx.server(wc.as_ref(), Need::Person).await?;
    server.remove_node(&args.node).await?;
    cx.ui.progress(format!("Removed {}", args.node))?;
    Ok(0)
}
