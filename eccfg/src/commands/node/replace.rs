//! `eccfg node replace`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Let a new machine take the place of a dead one
///
/// Prints a one-time token and nothing else: `ecconfigd join --node NODE --token TOKEN` on the new machine takes over the name, and the
/// old machine is a member no longer.
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
    let answer = server.replace_node(&args.node).await?;
    if cx.ui.json() {
        cx.ui.json_document(&answer)?;
    } else {
        cx.ui.line(&answer.token)?;
    }
    Ok(0)
}
