//! `eccfg subcluster conflict`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Freeze a subcluster
///
/// It takes no commits, and no node takes new revisions of it; others go on. `resolve` ends it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The subcluster
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let info = super::server(cx, Need::Person).await?.freeze(&args.name, true).await?;
    super::show(&info, format!("{} is in CONFLICT at revision {}", info.name, info.revision), cx)
}
