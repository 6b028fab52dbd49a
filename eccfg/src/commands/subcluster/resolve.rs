//! `eccfg subcluster resolve`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Thaw a subcluster that is in CONFLICT
///
/// Commits go on, and every node takes what it has missed.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The subcluster
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let info = super::server(cx, Need::Person).await?.freeze(&args.name, false).await?;
    super::show(&info, format!("{} goes on at revision {}", info.name, info.revision), cx)
}
