//! `eccfg subcluster slaves`.

use crate::commands::Context;
use crate::error::CommandError;

/// Print the nodes that follow the leader, on one line
///
/// Voters and learners: every node that holds all repositories and does not lead.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The subcluster; one node leads them all
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let group = super::group(cx, args.name.as_deref()).await?;
    let followers = group.members.iter().filter(|member| Some(&member.node) != group.leader.as_ref());
    let mut followers: Vec<&str> = followers.map(|member| member.node.as_str()).collect();
    followers.sort_unstable();
    if cx.ui.json() {
        cx.ui.json_document(&serde_json::json!({ "slaves": followers }))?;
    } else {
        cx.ui.line(followers.join(" "))?;
    }
    Ok(0)
}
