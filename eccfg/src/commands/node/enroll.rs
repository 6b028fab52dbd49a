//! `eccfg node enroll`.

use std::path::PathBuf;

use cluster::identity::{Identity, JoinToken, check_node_name, enroll};

use crate::commands::Context;
use crate::error::CommandError;
use crate::settings::read_secret;

/// Make this machine a node of the cluster
///
/// Turns a token of `eccfg node token` into a key and a certificate. The token leaves this machine only after the server has proved
/// to belong to the cluster that made the token.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The node's name: a single lower-case word
    #[arg(long, value_name = "NAME")]
    node: String,
    /// The token of `eccfg node token` (or --token-file)
    #[arg(long, value_name = "TOKEN", required_unless_present = "token_file")]
    token: Option<String>,
    /// A file whose first line is the token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Where to keep the key, the certificate and the CA [default: /etc/eccluster/identity]
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// Replace an identity that is there
    #[arg(long)]
    replace: bool,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    check_node_name(&args.node).map_err(|_| {
        CommandError::usage(format!("{:?} cannot be a node's name", args.node), "a name is a single lower-case word")
    })?;
    let token = token(args, cx)?;
    let dir = args.identity.as_ref().map_or_else(|| cx.environment.identity(), |dir| cx.environment.absolute(dir));
    if !args.replace
        && let Ok(present) = Identity::load(&dir)
    {
        return Err(CommandError::failed(format!(
            "{} holds the identity of {} already",
            dir.display(),
            present.node()
        ))
        .or_hint("--replace replaces it"));
    }
    let servers = cx.settings_without_login()?.servers;
    if servers.is_empty() {
        return Err(CommandError::NoServer);
    }
    let identity = enroll(servers, &token, &args.node)
        .await
        .map_err(|error| CommandError::because(format!("{} is not enrolled", args.node), error))?;
    identity
        .store(&dir)
        .map_err(|error| CommandError::because("the identity cannot be kept; the token is used up", error))?;
    let subcluster = &identity.peer().subcluster;
    if cx.ui.json() {
        let result = serde_json::json!({ "node": args.node, "subcluster": subcluster, "identity": dir });
        cx.ui.json_document(&result)?;
    } else {
        cx.ui.progress(format!(
            "Enrolled {} into the subcluster {subcluster}; its identity is in {}",
            args.node,
            dir.display()
        ))?;
    }
    Ok(0)
}

fn token(args: &Args, cx: &Context<'_>) -> Result<JoinToken, CommandError> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.trim().to_owned(),
        (None, Some(file)) => read_secret(&cx.environment.absolute(file), "token")?.expose().to_owned(),
        (None, None) => {
            return Err(CommandError::usage(
                "no token was given",
                "`eccfg node token` on a machine of the cluster prints one",
            ));
        }
    };
    text.parse().map_err(|error| {
        CommandError::because("this is not a token for nodes", error)
            .or_hint("`eccfg node token` on a machine of the cluster prints one")
    })
}
