//! `eccluster up`: a cluster on this machine, for a first look and for development.
//!
//! Every node is what it would be on a machine of its own: a server, an agent that keeps a working copy at the node's
//! target, and a small web service that shows its configuration. Each program is a process, in a network namespace of
//! the node's own, wired to those of the others, where the machine allows it. Nothing here is simulated, and nothing here is needed to run a real cluster.
//! The first node makes the cluster, the others join it as they would anywhere.

mod launch;
mod layout;
mod node;
mod show;
mod web;
mod wires;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cluster::lock::{DirLock, Owner};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use layout::Layout;
use node::{Event, Means, Node, Role};

/// The smallest cluster that survives the loss of any node.
const DEFAULT_NODES: u8 = 3;
/// How many events of processes may wait to be printed; printing is quicker than any process can end, so this never fills.
const EVENT_QUEUE: usize = 64;

/// Starts a cluster on this machine and shows its commits as they arrive; Ctrl-C ends it, the same command resumes it
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many nodes [default: 3, or as many as the cluster has]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Option<u8>,
    /// Where the cluster lives [default: $XDG_STATE_HOME/eccluster/up, or ~/.local/state/eccluster/up]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What `up` calls itself for.
#[derive(clap::Subcommand)]
pub(crate) enum Internal {
    #[command(hide = true)]
    UpLaunch(launch::Options),
    #[command(hide = true)]
    UpWeb(web::Options),
}

/// Runs the cluster until SIGINT or SIGTERM.
pub(crate) fn main(options: Options) -> ExitCode {
    finish(runtime().and_then(|runtime| runtime.block_on(run(options))))
}

/// Runs an internal step.
pub(crate) fn internal(step: Internal) -> ExitCode {
    match step {
        Internal::UpLaunch(options) => launch::main(&options),
        Internal::UpWeb(options) => finish(runtime().and_then(|runtime| runtime.block_on(web::run(options)))),
    }
}

/// One thread: the children ask for a signal at the death of the thread that started them.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let layout = Layout::open(options.dir)?;
    let _lock = DirLock::acquire(layout.dir(), &Owner::current("eccluster up", "n1"))
        .map_err(|error| anyhow::anyhow!("{error}\nhint: end that one, or name another directory with --dir"))?;
    let mut ending = Ending::new()?;
    let count = count(options.nodes, layout.remembered_nodes()?)?;
    let means = node::means(&layout).await?;
    let opened = layout.open_ports(count, means.bridge.is_some())?;
    let servers: Vec<_> = opened.iter().map(|(ports, _)| ports.server_address()).collect();
    let mut nodes = Vec::new();
    for (number, opened) in (1..=count).zip(opened) {
        nodes.push(Arc::new(Node::prepare(&layout, number, opened, &servers, &means).await?));
    }
    layout.write_credentials(&servers)?;
    crate::links::install(&layout.dir().join("bin"))
        .map_err(|(path, cause)| anyhow::anyhow!("cannot make {}: {cause}", path.display()))?;
    let mut cluster = Cluster::start(nodes);
    let outcome = tokio::select! {
        outcome = show_everything(&layout, &means, &mut cluster) => outcome,
        () = ending.wait() => Ok(()),
    };
    show::line("Ending the cluster; the same command resumes it.");
    cluster.end().await;
    means.close().await;
    outcome
}

/// How many nodes to start. Fewer than the cluster has could be less than the majority that it needs.
fn count(asked: Option<u8>, has: u8) -> anyhow::Result<u8> {
    let count = asked.unwrap_or(if has == 0 { DEFAULT_NODES } else { has });
    anyhow::ensure!(
        count >= has,
        "this cluster has {has} nodes and cannot run with {count}\nhint: name another directory with --dir for a smaller one"
    );
    Ok(count)
}

/// Prints how to reach the cluster once it serves, then what happens in it.
async fn show_everything(layout: &Layout, means: &Means, cluster: &mut Cluster) -> anyhow::Result<()> {
    let client = show::Client::new(layout, &cluster.nodes)?;
    let mut pids = Vec::new();
    while pids.len() < cluster.nodes.len() * Role::ALL.len() {
        let Some((name, event)) = cluster.events.recv().await else { anyhow::bail!("every process ended") };
        match event {
            Event::Started(role, pid) => pids.push((name, role, pid)),
            other => show::event(&name, other)?,
        }
    }
    client.wait_ready(cluster.nodes.len()).await?;
    client.first_page().await?;
    let mut commits = client.follow_commits().await?;
    show::summary(layout, means, &cluster.nodes, &pids);
    loop {
        tokio::select! {
            Some((name, event)) = cluster.events.recv() => show::event(&name, event)?,
            Some(commit) = commits.recv() => show::line(&commit),
            else => return Ok(()),
        }
    }
}

/// The running programs of all nodes.
struct Cluster {
    nodes: Vec<Arc<Node>>,
    events: mpsc::Receiver<(String, Event)>,
    /// One switch per role, in the order in which they end: what depends on another ends before it.
    stops: Vec<watch::Sender<bool>>,
    tasks: Vec<JoinSet<()>>,
}

impl Cluster {
    fn start(nodes: Vec<Arc<Node>>) -> Cluster {
        let (events_in, events) = mpsc::channel(EVENT_QUEUE);
        let mut cluster = Cluster { nodes, events, stops: Vec::new(), tasks: Vec::new() };
        for role in Role::ALL {
            let (stop, stopped) = watch::channel(false);
            let mut tasks = JoinSet::new();
            for node in &cluster.nodes {
                let (node, stopped, events) = (Arc::clone(node), stopped.clone(), named(&node.name, events_in.clone()));
                tasks.spawn(async move { node.supervise(role, events, stopped).await });
            }
            cluster.stops.push(stop);
            cluster.tasks.push(tasks);
        }
        cluster
    }

    async fn end(mut self) {
        while let (Some(stop), Some(mut tasks)) = (self.stops.pop(), self.tasks.pop()) {
            let _ = stop.send(true);
            while tasks.join_next().await.is_some() {}
        }
        // Every task that shared a node has ended.
        for node in self.nodes.into_iter().filter_map(Arc::into_inner) {
            node.close().await;
        }
    }
}

/// Adds the node's name to the events of its programs.
fn named(name: &str, events: mpsc::Sender<(String, Event)>) -> mpsc::Sender<Event> {
    let (sender, mut receiver) = mpsc::channel(EVENT_QUEUE);
    let name = name.to_owned();
    tokio::spawn(async move {
        while let Some(event) = receiver.recv().await {
            // Nobody prints any more once the cluster ends; the programs must not wait for that.
            let _ = events.try_send((name.clone(), event));
        }
    });
    sender
}

/// SIGINT and SIGTERM end the cluster in order.
struct Ending {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Ending {
    fn new() -> anyhow::Result<Ending> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Ending { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
