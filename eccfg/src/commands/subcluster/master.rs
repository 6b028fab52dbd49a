//! `eccfg subcluster master`.

use crate::commands::Context;
use crate::error::CommandError;

/// Print the node that leads
///
/// Every write of every subcluster goes through it. Fails while there is none.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The subcluster; one node leads them all
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let group = super::group(cx, args.name.as_deref()).await?;
    let leader = group.leader.ok_or_else(|| CommandError::failed("there is no leader now"))?;
    if cx.ui.json() {
        cx.ui.json_document(&serde_json::json!({ "master": leader, "override": group.pinned }))?;
    } else {
        cx.ui.line(&leader)?;
    }
    Ok(0)
}
