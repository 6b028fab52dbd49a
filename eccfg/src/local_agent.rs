//! The agent that runs on this machine, if one does: woken after the working copy was moved by hand, and asked for its last
//! report when no server answers.
//!
//! Everything here is a courtesy: an agent that does not run or does not answer within [`PATIENCE`] is no error.

use std::time::Duration;

use cluster::api::{NodeReport, Target};
use cluster::control;
use serde::{Deserialize, Serialize};

/// The agent answers from memory; one that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(2);
/// The name of the agent's control socket.
const PROGRAM: &str = "agent";

/// What an agent says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its node.
    pub node: String,
    /// What the node shall have, as far as the agent knows.
    pub target: Option<Target>,
    /// How far it got.
    pub report: Option<NodeReport>,
    /// What keeps it from getting further.
    pub trouble: Option<String>,
}

/// Lets the agent look at the working copy now instead of at its next poll, so that services reload after a `pull` by hand.
pub async fn wake() {
    match tokio::time::timeout(PATIENCE, control::call(PROGRAM, "update", ())).await {
        Ok(Ok(_)) => tracing::debug!("the agent was woken"),
        Ok(Err(error)) => tracing::debug!(%error, "no agent to wake"),
        Err(_) => tracing::debug!("the agent does not answer"),
    }
}

/// What the agent of this machine says, if it is the agent of `node`.
pub async fn status_of(node: &str) -> Option<AgentStatus> {
    let answer = tokio::time::timeout(PATIENCE, control::call(PROGRAM, "status", ())).await.ok()?.ok()?;
    let status: AgentStatus = serde_json::from_value(answer).ok()?;
    (status.node == node).then_some(status)
}
