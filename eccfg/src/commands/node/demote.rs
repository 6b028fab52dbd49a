//! `eccfg node demote`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Take a server's vote away
///
/// It keeps every repository and goes on serving. Again is harmless.
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
    server.demote(&args.node).await?;
    cx.ui.progress(format!("{} does not vote any more", args.node))?;
    Ok(0)
}
