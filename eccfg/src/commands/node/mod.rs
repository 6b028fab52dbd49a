//! `eccfg node …`: the machines of the cluster.

pub mod demote;
pub mod enroll;
pub mod list;
pub mod promote;
pub mod remove;
pub mod replace;
pub mod token;

use std::time::Duration;

use cluster::api::ClusterInfo;
use cluster::units::HumanDuration;

use crate::commands::Context;
use crate::error::CommandError;
use crate::server::Server;

/// How long a change of the group is waited for, unless said otherwise. It takes well under a second where nothing is wrong.
const WAIT: &str = "30s";
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// How long to wait for the group.
#[derive(clap::Args, Debug)]
pub struct Waiting {
    /// How long to wait until the servers have changed their group
    #[arg(long, value_name = "DURATION", default_value = WAIT)]
    wait: HumanDuration,
}

impl Waiting {
    /// Waits until a server says that the group is as was asked for. A record of what is wanted is not the deed: a machine that is switched
    /// off in between still counts among those that must agree.
    async fn until(&self, server: &Server, done: impl Fn(&ClusterInfo) -> bool) -> Result<(), CommandError> {
        let mut asked = Ok(());
        let look = async {
            loop {
                // Whoever cannot be asked now may be soon.
                match server.cluster().await {
                    Ok(info) if done(&info) => break,
                    Ok(_) => asked = Ok(()),
                    Err(error) => asked = Err(error),
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(self.wait.get(), look).await.is_ok() {
            return Ok(());
        }
        asked?;
        Err(CommandError::Failed {
            message: "it is written down, but the servers cannot go on without this node's vote yet".into(),
            hint: Some(
                "do not switch the node off until `eccfg node list` shows the change: a majority of the others has to answer; said again, this waits again"
                    .into(),
            ),
            source: None,
        })
    }
}

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
