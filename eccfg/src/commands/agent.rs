//! `eccfg agent`

use std::path::PathBuf;
use std::time::Duration;

use cluster::shutdown::Shutdown;
use cluster::telemetry::{self, TelemetryOptions};

use super::Context;
use crate::agent::{self, AgentError, Options};
use crate::error::CommandError;
use crate::place;

/// Where the node-local files are, unless --config says otherwise.
const DEFAULT_CONFIG: &str = "/etc/eccluster";
/// Where the node's key and certificate are, unless --identity says otherwise.
const DEFAULT_IDENTITY: &str = "/etc/eccluster/identity";
/// How long a last report may take; updates are finished before.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Keep this node's working copy at its target, and its services in step with it
///
/// Runs until SIGTERM. Follows the target that the cluster has for this node, checks a change on the staged tree with the
/// commands of agent.toml, puts it in place as a whole, reloads and verifies the services it concerns, and takes it back
/// when one of them fails. SIGHUP reads boot.toml and agent.toml again and tries again what local edits had blocked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// This node's name [default: the one in boot.toml, else the one in the certificate]
    #[arg(long)]
    node: Option<String>,
    /// Where boot.toml and agent.toml are
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// What must survive a restart [default: /var/lib/eccluster/agent/NODE]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The node's key, certificate and CA
    #[arg(long, value_name = "DIR", default_value = DEFAULT_IDENTITY)]
    identity: PathBuf,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    telemetry::init(&TelemetryOptions::from_env())
        .map_err(|error| CommandError::because("logging cannot start", error))?;
    let shutdown = Shutdown::on_signals().map_err(|error| CommandError::because("signals cannot be caught", error))?;
    let settings = cx.settings_without_login()?;
    let options = Options {
        node: args.node.clone(),
        servers: settings.servers.iter().map(ToString::to_string).collect(),
        wc: place::root_for_new(&settings, &cx.environment),
        config: cx.environment.absolute(&args.config),
        data: args.data.as_ref().map(|data| cx.environment.absolute(data)),
        identity: cx.environment.absolute(&args.identity),
    };
    let outcome = agent::run(options, shutdown.clone()).await;
    if !shutdown.token().is_cancelled() {
        // Twice would mean to hurry, and the last report is still on its way.
        shutdown.trigger(cluster::shutdown::Reason::Asked);
    }
    let _ = shutdown.drain(DRAIN_DEADLINE).await;
    telemetry::flush();
    outcome.map(|()| 0).map_err(in_words)
}

fn in_words(error: AgentError) -> CommandError {
    match error {
        AgentError::Worktree(error) => error.into(),
        other => CommandError::because("the agent cannot run", other),
    }
}
