//! `eccfg node token`.

use cluster::api::{NodeTokenRequest, NodeTokenResponse};
use cluster::identity::JoinToken;
use cluster::units::HumanDuration;

use crate::commands::{Context, Need};
use crate::error::CommandError;

/// Print a one-time token for a new node
///
/// The token and nothing else. It is good for one `ecconfigd join` or `eccfg node enroll`, and carries the fingerprint of the
/// cluster's CA, so that the new node needs no other secret.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The subcluster that the node will belong to
    #[arg(long, value_name = "NAME", default_value = "default")]
    subcluster: String,
    /// How long it is good for, such as 1h [default: the server's]
    #[arg(long, value_name = "DURATION")]
    ttl: Option<HumanDuration>,
}

/// The answer, and what the token carries.
#[derive(serde::Serialize)]
struct Shown {
    #[serde(flatten)]
    answer: NodeTokenResponse,
    ca_fingerprint: String,
}

/// Runs the command.
pub async fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let wc = cx.working_copy_if_any()?;
    let server = cx.server(wc.as_ref(), Need::Person).await?;
    let request = NodeTokenRequest { subcluster: args.subcluster.clone(), ttl: args.ttl.map(|ttl| ttl.to_string()) };
    let answer = server.node_token(&request).await?;
    if cx.ui.json() {
        let token = answer.token.parse::<JoinToken>();
        let token = token.map_err(|error| CommandError::because("the server's token cannot be read", error))?;
        cx.ui.json_document(&Shown { answer, ca_fingerprint: token.ca_fingerprint().to_string() })?;
    } else {
        cx.ui.line(&answer.token)?;
    }
    Ok(0)
}
