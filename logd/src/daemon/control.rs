//! What commands on this machine ask the daemon.
//!
//! The daemon speaks to the other nodes for them: it has the identity, they need none.

use std::sync::{Arc, Mutex, PoisonError};

use cluster::control::{Failure, Parts, Router};
use cluster::documents::schema::cluster::Cluster;
use cluster::documents::schema::logd::{Logd, PathPattern};
use cluster::telemetry::Metrics;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{PROGRAM, Running, metrics};
use crate::manager::writer::Figures;
use crate::manager::{Home, address_of};
use crate::node::Logs;
use crate::wire::protocol::{Answer, LogStatus, Request};
use crate::wire::service::{Change, Service};
use crate::wire::{Link, LinkError};

/// The configuration in use.
#[derive(Debug, Default)]
pub(crate) struct Current {
    pub(super) logd: Logd,
    pub(super) cluster: Cluster,
    pub(super) figures: Option<Arc<Figures>>,
    pub(super) sinks: crate::sink::AllFigures,
}

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) logs: Arc<Logs>,
    pub(super) service: Arc<Service>,
    home: Home,
    current: Arc<Mutex<Current>>,
}

impl Shared {
    fn of(running: &Running) -> Self {
        Self {
            logs: running.logs.clone(),
            service: running.service.clone(),
            home: running.home().clone(),
            current: running.current.clone(),
        }
    }

    pub(super) fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The journals of one node, or why they cannot be seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeLogs {
    /// The node.
    pub node: String,
    /// Its logs.
    pub logs: Vec<LogStatus>,
    /// Why there are none.
    pub error: Option<String>,
}

/// What changes a subscriber.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubscriberArgs {
    /// `add` or `remove`.
    pub action: String,
    /// Its name.
    pub subscriber: String,
    /// The logs; none: all.
    #[serde(default)]
    pub logs: Vec<String>,
    /// The nodes; none: all.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// For `add`: from now on.
    #[serde(default)]
    pub at_end: bool,
}

/// Which nodes to ask.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogsArgs {
    /// Every node of the cluster instead of this one.
    #[serde(default)]
    pub all: bool,
    /// These nodes.
    #[serde(default)]
    pub nodes: Vec<String>,
}

pub(super) fn router(running: &Running) -> Router {
    let shared = Shared::of(running);
    let console = Console::new(running);
    let [of_logs, of_subscriber, of_files, of_glimpse] = std::array::from_fn(|_| shared.clone());
    Router::new()
        .command("logs", "the journals of this node or of all, and who is behind", move |args, _| {
            logs(of_logs.clone(), args)
        })
        .command("subscriber", "add or remove a subscriber on every node", move |args, parts| {
            subscriber(of_subscriber.clone(), args, parts)
        })
        .command("files", "where this node's manager writes", move |_, _| files(of_files.clone()))
        .command("glimpse", "have another node look at a file of check-mount", move |args, _| {
            glimpse(of_glimpse.clone(), args)
        })
        .command("metrics", "figures in the format of Prometheus", move |_, _| {
            let console = console.clone();
            async move { console.metrics().await.map(Value::String) }
        })
}

/// What HTTP reads: the same as commands do.
#[derive(Clone)]
pub struct Console {
    shared: Shared,
    process: Metrics,
}

impl Console {
    pub(super) fn new(running: &Running) -> Self {
        let shared = Shared::of(running);
        let process = Metrics::new(PROGRAM, &shared.home.node);
        Self { shared, process }
    }

    /// The journals of this node, or of every node.
    pub(crate) async fn journals(&self, all: bool) -> Result<Value, Failure> {
        let args = serde_json::to_value(LogsArgs { all, nodes: Vec::new() });
        logs(self.shared.clone(), args.map_err(|error| Failure::new(error.to_string()))?).await
    }

    /// The figures in the format of Prometheus.
    pub(crate) async fn metrics(&self) -> Result<String, Failure> {
        let this = self.clone();
        let rendered = tokio::task::spawn_blocking(move || metrics::render(&this.shared, &this.process)).await;
        rendered.map_err(|error| Failure::new(error.to_string()))
    }

    /// Where this node's manager writes.
    pub(crate) fn pattern(&self) -> Option<PathPattern> {
        let current = self.shared.current();
        current.logd.managers.get(&self.shared.home.node).map(|manager| manager.logfile.clone())
    }

    /// The logs of the configuration.
    pub(crate) fn log_names(&self) -> Vec<String> {
        self.shared.current().logd.logs.keys().cloned().collect()
    }

    /// True for a node that aggregates.
    pub(crate) fn is_manager(&self, node: &str) -> bool {
        self.shared.service.is_manager(node)
    }
}

fn arguments<T: for<'a> Deserialize<'a>>(args: Value) -> Result<T, Failure> {
    serde_json::from_value(args).map_err(|error| Failure::new(format!("wrong arguments: {error}")).code("bad-request"))
}

/// The nodes to ask, this one as `None`, and their addresses.
fn targets(shared: &Shared, all: bool, named: &[String]) -> Result<Vec<(String, Option<String>)>, Failure> {
    let current = shared.current();
    let me = &shared.home.node;
    let mut targets = Vec::new();
    for (name, node) in &current.cluster.nodes {
        let wanted = if named.is_empty() { all || name == me } else { named.contains(name) };
        if !wanted {
            continue;
        }
        let address = node.address.as_ref().map(|host| address_of(&host.to_string(), node.ports.logd));
        if name == me {
            targets.push((name.clone(), None));
        } else {
            targets.push((name.clone(), Some(address.unwrap_or_default())));
        }
    }
    let here = named.is_empty() || named.contains(me);
    if here && !targets.iter().any(|(name, _)| name == me) {
        targets.push((me.clone(), None));
    }
    match named.iter().find(|name| !targets.iter().any(|(target, _)| target == *name)) {
        Some(unknown) => Err(Failure::new(format!("cluster.toml names no node {unknown}")).code("not-found")),
        None => Ok(targets),
    }
}

async fn ask(shared: &Shared, node: &str, address: &str, request: Request) -> Result<Answer, LinkError> {
    if address.is_empty() {
        let why = "cluster.toml has no address of it".to_owned();
        return Err(LinkError::Connect { node: node.into(), address: "nowhere".into(), why });
    }
    let link = Link::connect(&shared.home.trust, &shared.home.node, node, address).await?;
    link.ask(request).await
}

async fn logs(shared: Shared, args: Value) -> Result<Value, Failure> {
    let args: LogsArgs = if args.is_null() { LogsArgs::default() } else { arguments(args)? };
    let targets = targets(&shared, args.all, &args.nodes)?;
    let asked = targets.into_iter().map(|(node, address)| {
        let shared = shared.clone();
        async move {
            let result = match address {
                Some(address) => match ask(&shared, &node, &address, Request::Status).await {
                    Ok(Answer::Status(logs)) => Ok(logs),
                    Ok(_) => Err("an answer of another kind came".to_owned()),
                    Err(error) => Err(cluster::error::Chain(&error).to_string()),
                },
                None => {
                    let service = shared.service.clone();
                    match tokio::task::spawn_blocking(move || service.status()).await {
                        Ok(Ok(logs)) => Ok(logs),
                        Ok(Err(error)) => Err(cluster::error::Chain(&error).to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                }
            };
            let (logs, error) = result.map_or_else(|error| (Vec::new(), Some(error)), |logs| (logs, None));
            NodeLogs { node, logs, error }
        }
    });
    let nodes = join_all(asked).await;
    serde_json::to_value(nodes).map_err(|error| Failure::new(error.to_string()))
}

async fn subscriber(shared: Shared, args: Value, parts: Parts) -> Result<Value, Failure> {
    let SubscriberArgs { action, subscriber, logs, nodes, at_end } = arguments(args)?;
    let mut failed = Vec::new();
    for (node, address) in targets(&shared, true, &nodes)? {
        let request = match action.as_str() {
            "add" => Request::Subscribe { subscriber: subscriber.clone(), logs: logs.clone(), at_end },
            "remove" => Request::Unsubscribe { subscriber: subscriber.clone(), logs: logs.clone() },
            other => return Err(Failure::new(format!("{other} is neither add nor remove")).code("bad-request")),
        };
        let result = match address {
            Some(address) => match ask(&shared, &node, &address, request).await {
                Ok(Answer::Done { changed }) => Ok(changed),
                Ok(_) => Err("an answer of another kind came".to_owned()),
                Err(error) => Err(cluster::error::Chain(&error).to_string()),
            },
            None => {
                let (service, subscriber, logs) = (shared.service.clone(), subscriber.clone(), logs.clone());
                let change = match action.as_str() {
                    "add" => Change::Add { subscriber, logs, at_end },
                    _ => Change::Remove { subscriber, logs },
                };
                let done = tokio::task::spawn_blocking(move || service.change_subscriber(&change)).await;
                done.unwrap_or_else(|error| Err(error.to_string()))
            }
        };
        let part = match result {
            Ok(changed) => json!({ "node": node, "changed": changed }),
            Err(error) => {
                failed.push(node.clone());
                json!({ "node": node, "error": error })
            }
        };
        parts.send(part).await?;
    }
    match failed.is_empty() {
        true => Ok(Value::Null),
        false => Err(Failure::new(format!("not done on {}", failed.join(", ")))
            .hint("repeat the command; what is done already stays")),
    }
}

/// Which node is to look at which file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GlimpseArgs {
    /// The node.
    pub node: String,
    /// The file's path, here and there.
    pub path: String,
}

/// What it saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GlimpseAnswer {
    /// Somebody holds the file's lock.
    pub held: bool,
    /// Its first bytes.
    pub content: Vec<u8>,
}

async fn glimpse(shared: Shared, args: Value) -> Result<Value, Failure> {
    let GlimpseArgs { node, path } = arguments(args)?;
    let named = [node];
    let Some((node, Some(address))) = targets(&shared, false, &named)?.into_iter().next() else {
        return Err(Failure::new(format!("{} is this node", named[0])).code("bad-request"));
    };
    let answer = ask(&shared, &node, &address, Request::Glimpse { path }).await;
    match answer.map_err(|error| Failure::new(cluster::error::Chain(&error).to_string()))? {
        Answer::Glimpsed { held, content } => {
            serde_json::to_value(GlimpseAnswer { held, content }).map_err(|error| Failure::new(error.to_string()))
        }
        _ => Err(Failure::new("an answer of another kind came")),
    }
}

async fn files(shared: Shared) -> Result<Value, Failure> {
    let current = shared.current();
    match current.logd.managers.get(&shared.home.node) {
        Some(manager) => {
            let logs: Vec<&String> = current.logd.logs.keys().collect();
            Ok(json!({ "pattern": manager.logfile.to_string(), "logs": logs }))
        }
        None => Err(Failure::new(format!("{} is no manager", shared.home.node)).code("no-manager")),
    }
}
