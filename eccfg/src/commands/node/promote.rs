//! `eccfg node promote`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Let a server vote
///
/// It does as soon as it has caught up. Again is harmless.
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
    server.promote(&args.node).await?;
    cx.ui.progress(format!("{} votes as soon as it has caught up", args.node))?;
    Ok(0)
}
