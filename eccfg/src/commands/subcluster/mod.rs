//! `eccfg subcluster …`: whole subclusters, their repositories and the leadership.

pub mod clusters;
pub mod conflict;
pub mod copy;
pub mod create;
pub mod master;
pub mod pin;
pub mod resolve;
pub mod resume;
pub mod slaves;

use cluster::api::{ClusterInfo, RepoInfo};

use crate::commands::{Context, Need};
use crate::error::CommandError;
use crate::server::Server;

/// Manage subclusters: list, create, copy, freeze, and say which node leads
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: SubclusterCommand,
}

#[derive(clap::Subcommand, Debug)]
enum SubclusterCommand {
    Clusters(clusters::Args),
    Create(create::Args),
    Copy(copy::Args),
    Master(master::Args),
    Slaves(slaves::Args),
    #[command(name = "override")]
    Override(pin::Args),
    Resume(resume::Args),
    Conflict(conflict::Args),
    Resolve(resolve::Args),
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    match &args.command {
        SubclusterCommand::Clusters(args) => clusters::run(args, cx).await,
        SubclusterCommand::Create(args) => create::run(args, cx).await,
        SubclusterCommand::Copy(args) => copy::run(args, cx).await,
        SubclusterCommand::Master(args) => master::run(args, cx).await,
        SubclusterCommand::Slaves(args) => slaves::run(args, cx).await,
        SubclusterCommand::Override(args) => pin::run(args, cx).await,
        SubclusterCommand::Resume(args) => resume::run(args, cx).await,
        SubclusterCommand::Conflict(args) => conflict::run(args, cx).await,
        SubclusterCommand::Resolve(args) => resolve::run(args, cx).await,
    }
}

/// The servers, spoken to as whoever may do `need`.
async fn server(cx: &mut Context<'_>, need: Need) -> Result<Server, CommandError> {
    let wc = cx.working_copy_if_any()?;
    cx.server(wc.as_ref(), need).await
}

/// Fails if there is no such subcluster; one group leads them all, so the answers about leadership do not depend on which.
async fn must_exist(server: &Server, name: &str) -> Result<(), CommandError> {
    server.head(name).await?;
    Ok(())
}

/// The group, after looking at the name if one was given.
async fn group(cx: &mut Context<'_>, name: Option<&str>) -> Result<ClusterInfo, CommandError> {
    let server = server(cx, Need::Reader).await?;
    if let Some(name) = name {
        must_exist(&server, name).await?;
    }
    Ok(server.cluster().await?)
}

/// Prints what became of a repository.
fn show(info: &RepoInfo, words: String, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    if cx.ui.json() {
        cx.ui.json_document(info)?;
    } else {
        cx.ui.progress(words)?;
    }
    Ok(0)
}
