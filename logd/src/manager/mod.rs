//! The manager: reads the logs of every node and writes files.
//!
//! It is the node of its name in `[managers]`. A new configuration starts and ends connections and changes names and modes of files; what is under
//! way is not touched. The state is one directory; a manager that comes back goes on where it was.

pub mod files;
pub mod janitor;
pub mod source;
pub mod state;
pub mod times;
pub mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use cluster::documents::schema::cluster::Cluster;
use cluster::documents::schema::logd::Manager as Settings;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use files::{Claims, Modes};
use janitor::Rules;
use source::{MAX_BLOCKS, Node, Shared};
use writer::{Figures, Target, Writer, WriterError};

use crate::wire::Trust;

/// The state, below the daemon's data directory.
pub const STATE: &str = "manager";

/// A running manager.
#[derive(Debug)]
pub struct Manager {
    shared: Shared,
    target: watch::Sender<Target>,
    rules: watch::Sender<Rules>,
    nodes: BTreeMap<String, (Node, CancellationToken)>,
    tasks: TaskTracker,
    stop: CancellationToken,
    stop_writer: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

/// What a manager needs to know of its node.
#[derive(Debug, Clone)]
pub struct Home {
    /// The node's name.
    pub node: String,
    /// The daemon's state.
    pub data: PathBuf,
    /// How it proves itself.
    pub trust: Trust,
    /// Where the node's own service is reached from here.
    pub own_address: Option<String>,
    /// Cancelled when the manager cannot go on.
    pub failed: CancellationToken,
}

impl Manager {
    /// Opens the state and starts the writer; nodes are read from the first [`Manager::configure`] on.
    pub fn start(home: &Home, settings: &Settings) -> Result<Self, WriterError> {
        let (target, target_seen) = watch::channel(target_of(settings));
        let (rules, rules_seen) = watch::channel(rules_of(settings));
        let claims = Claims::default();
        let (stop, stop_writer) = (CancellationToken::new(), CancellationToken::new());
        let dir = home.data.join(STATE);
        let (writer, thread) =
            Writer::start(&dir, &home.node, target_seen, claims.clone(), stop_writer.clone(), home.failed.clone())?;
        let tasks = TaskTracker::new();
        tasks.spawn(janitor::run(rules_seen, claims, stop.clone()));
        let blocks = Arc::new(Semaphore::new(MAX_BLOCKS));
        let shared = Shared { me: home.node.clone(), trust: home.trust.clone(), writer, blocks };
        Ok(Self { shared, target, rules, nodes: BTreeMap::new(), tasks, stop, stop_writer, thread })
    }

    /// Takes a new configuration.
    pub fn configure(&mut self, home: &Home, settings: &Settings, cluster: &Cluster) {
        self.target.send_replace(target_of(settings));
        self.rules.send_replace(rules_of(settings));
        let wanted = nodes_of(home, settings, cluster);
        self.nodes.retain(|name, (node, end)| {
            let stays = wanted.get(name) == Some(node);
            if !stays {
                end.cancel();
            }
            stays
        });
        for (name, node) in wanted {
            if !self.nodes.contains_key(&name) {
                let end = self.stop.child_token();
                self.tasks.spawn(source::follow(node.clone(), self.shared.clone(), end.clone()));
                self.nodes.insert(name, (node, end));
            }
        }
    }

    /// Figures since the start.
    pub fn figures(&self) -> &Arc<Figures> {
        &self.shared.writer.figures
    }

    /// Ends the streams, lets the writer finish its round, and closes the state.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.stop_writer.cancel();
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

fn target_of(settings: &Settings) -> Target {
    let modes = Modes {
        file: settings.file_mode.0,
        dir: settings.dir_mode.0,
        max_open: usize::try_from(settings.max_open).unwrap_or(usize::MAX),
        max_idle: settings.max_idle.get(),
    };
    Target { pattern: settings.logfile.clone(), modes }
}

fn rules_of(settings: &Settings) -> Rules {
    Rules {
        pattern: settings.logfile.clone(),
        compress: settings.compress,
        retention: settings.retention.map(|retention| retention.get()),
        file_mode: settings.file_mode.0,
    }
}

/// The nodes that this manager reads, and where they are reached.
fn nodes_of(home: &Home, settings: &Settings, cluster: &Cluster) -> BTreeMap<String, Node> {
    let mut nodes = BTreeMap::new();
    for (name, node) in &cluster.nodes {
        let special = settings.nodes.get(name);
        if special.is_some_and(|special| !special.pull) {
            continue;
        }
        let own = special.and_then(|special| special.subscriber.clone());
        let subscriber = own.unwrap_or_else(|| settings.subscriber.clone());
        let address = match (&node.address, &home.own_address) {
            (_, Some(own)) if *name == home.node => Some(own.clone()),
            (Some(host), _) => Some(address_of(&host.to_string(), node.ports.logd)),
            (None, _) => None,
        };
        // A node may be named before its address is known.
        if let Some(address) = address {
            nodes.insert(name.clone(), Node { name: name.clone(), address, subscriber });
        }
    }
    nodes
}

/// `host:port`, with brackets where the host has colons.
pub fn address_of(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
