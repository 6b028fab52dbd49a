//! `eccfg subcluster resume`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// End an override
///
/// The leadership is decided by elections again.
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
    server.pin(&args.node, false).await?;
    cx.ui.progress("elections decide who leads")?;
    Ok(0)
}
