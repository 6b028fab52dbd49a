//! `logd subscriber`: subscribers of the whole cluster.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use cluster::control::call_streaming;
use cluster::units::HumanDuration;

use super::{logs, print};
use crate::daemon::{LogsArgs, PROGRAM, SubscriberArgs};
use cluster::command_line::Failure;

/// How often a drain looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Add, remove or drain a subscriber on every node of the cluster.
///
/// Run it on a manager, or on a node that votes. To decommission a manager: take its subscriber off the lists in logd.toml, `drain` it, take it out of
/// `[managers]`, `remove` it.
#[derive(Debug, Subcommand)]
pub enum Subscriber {
    /// Add a subscriber; it gets everything that is still there
    Add(Add),
    /// Remove a subscriber and its checkpoints
    Remove(Where),
    /// Wait until a subscriber has read everything that was there when the command began, on every node
    Drain(Drain),
}

/// Which.
#[derive(Debug, Args)]
pub struct Where {
    /// The subscriber
    #[arg(value_name = "NAME")]
    name: String,
    /// Only these logs; repeat it
    #[arg(long, value_name = "LOG")]
    log: Vec<String>,
    /// Only on these nodes; repeat it
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
}

/// How to add.
#[derive(Debug, Args)]
pub struct Add {
    #[command(flatten)]
    r#where: Where,
    /// It gets what comes from now on instead
    #[arg(long)]
    at_end: bool,
}

/// How to drain.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    r#where: Where,
    /// Give up after this long
    #[arg(long, value_name = "DURATION")]
    timeout: Option<HumanDuration>,
    /// Remove it then
    #[arg(long)]
    remove: bool,
}

impl Subscriber {
    /// Runs it.
    pub async fn run(self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Add(Add { r#where, at_end }) => change("add", r#where, at_end, json).await,
            Self::Remove(r#where) => change("remove", r#where, false, json).await,
            Self::Drain(drain) => drain.run(json).await,
        }
    }
}

async fn change(action: &str, r#where: Where, at_end: bool, json: bool) -> Result<(), Failure> {
    let Where { name, log, node } = r#where;
    let args = SubscriberArgs { action: action.into(), subscriber: name, logs: log, nodes: node, at_end };
    let mut lines = String::new();
    let result = call_streaming(PROGRAM, "subscriber", args, |part| {
        let text = match (part["changed"].as_u64(), part["error"].as_str()) {
            _ if json => part.to_string(),
            (Some(changed), _) => format!("{}: {changed} logs changed", part["node"].as_str().unwrap_or_default()),
            (_, error) => format!("{}: {}", part["node"].as_str().unwrap_or_default(), error.unwrap_or_default()),
        };
        lines.push_str(&text);
        lines.push('\n');
    });
    let result = result.await;
    print(&lines)?;
    result.map(drop).map_err(Failure::from)
}

/// Node and log, and the number up to which it is to be read.
type Ends = BTreeMap<(String, String), u64>;

impl Drain {
    async fn run(self, json: bool) -> Result<(), Failure> {
        let begun = Instant::now();
        let goal = self.look(None).await?;
        if goal.is_empty() {
            return Err(Failure::new(format!("no log has a subscriber {}", self.r#where.name)));
        }
        let mut said = usize::MAX;
        loop {
            let behind = self.look(Some(&goal)).await?;
            if behind.is_empty() {
                break;
            }
            if self.timeout.is_some_and(|timeout| begun.elapsed() > timeout.get()) {
                let left: Vec<String> = behind.keys().map(|(node, log)| format!("{log} on {node}")).collect();
                return Err(Failure::new(format!("not drained in time: {}", left.join(", "))));
            }
            if behind.len() != said && !json {
                said = behind.len();
                tracing::info!(logs = said, "waiting for the subscriber to read them");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let name = &self.r#where.name;
        print(&match json {
            true => format!("{}\n", serde_json::json!({ "subscriber": name, "drained": goal.len() })),
            false => format!("{name} has read everything of {} logs\n", goal.len()),
        })?;
        match self.remove {
            true => change("remove", self.r#where, false, json).await,
            false => Ok(()),
        }
    }

    /// Where each log ends that has the subscriber; with a goal only those where it is not there yet.
    async fn look(&self, goal: Option<&Ends>) -> Result<Ends, Failure> {
        let Where { name, log, node } = &self.r#where;
        let nodes = logs::fetch(LogsArgs { all: true, nodes: node.clone() }).await?;
        let mut ends = Ends::new();
        for node in nodes {
            if let Some(error) = node.error {
                // A node that is away has lines too.
                return Err(Failure::new(format!("{}: {error}", node.node)).hint("--node leaves nodes out"));
            }
            for status in node.logs {
                if !log.is_empty() && !log.contains(&status.log) {
                    continue;
                }
                let Some(one) = status.subscribers.iter().find(|one| one.name == *name) else { continue };
                let key = (node.node.clone(), status.log.clone());
                let wanted = match goal {
                    None => Some(status.next),
                    Some(goal) => goal.get(&key).copied().filter(|end| one.next < *end),
                };
                ends.extend(wanted.map(|end| (key, end)));
            }
        }
        Ok(ends)
    }
}
