//! `eccfg node …`: the machines of the cluster.

pub mod demote;
pub mod enroll;
pub mod list;
pub mod promote;
pub mod remove;
pub mod replace;
pub mod token;

use crate::commands::Context;
use crate::error::CommandError;

/// Admit machines to the cluster, list them, say which vote, remove them
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(clap::Subcommand, Debug)]
enum NodeCommand {
    Token(token::Args),
    Enroll(enroll::Args),
    List(list::Args),
    Promote(promote::Args),
    Demote(demote::Args),
    Remove(remove::Args),
    Replace(replace::Args),
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    match &args.command {
        NodeCommand::Token(args) => token::run(args, cx).await,
        NodeCommand::Enroll(args) => enroll::run(args, cx).await,
        NodeCommand::List(args) => list::run(args, cx).await,
        NodeCommand::Promote(args) => promote::run(args, cx).await,
        NodeCommand::Demote(args) => demote::run(args, cx).await,
        NodeCommand::Remove(args) => remove::run(args, cx).await,
        NodeCommand::Replace(args) => replace::run(args, cx).await,
    }
}
