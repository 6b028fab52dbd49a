//! `eccfg subcluster override`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Pin the leadership to a node
///
/// It leads for as long as it is healthy, over restarts too, until `resume`. One node leads all subclusters, so a second, different
/// override is refused (exit status 3).
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The subcluster
    #[arg(value_name = "NAME")]
    name: String,
    /// The node
    #[arg(value_name = "NODE")]
    node: String,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let server = super::server(cx, Need::Person).await?;
    super::must_exist(&server, &args.name).await?;
    server.pin(&args.node, true).await?;
    cx.ui.progress(format!("{} leads whenever it is healthy", args.node))?;
    Ok(0)
}
