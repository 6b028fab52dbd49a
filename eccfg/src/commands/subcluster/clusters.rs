//! `eccfg subcluster clusters`.

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// List the subclusters on one line
///
/// A `!` before a name says that it is in CONFLICT: it takes no commits and no node takes new revisions of it.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Runs the command.
pub async fn run(_args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let repos = super::server(cx, Need::Reader).await?.repos().await?;
    if cx.ui.json() {
        cx.ui.json_document(&repos)?;
        return Ok(0);
    }
    let names = repos.iter().map(|repo| format!("{}{}", if repo.frozen { "!" } else { "" }, repo.name));
    cx.ui.line(names.collect::<Vec<_>>().join(" "))?;
    Ok(0)
}
