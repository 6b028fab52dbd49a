//! `eccfg subcluster create`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Create a subcluster
///
/// Its repository begins with the packaged templates.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The new subcluster: a single lower-case word
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let info = super::server(cx, Need::Person).await?.create_repo(&args.name).await?;
    super::show(&info, format!("Created {} at revision {}", info.name, info.revision), cx)
}
