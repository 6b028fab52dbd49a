//! `logd run`: the node's logs, its service, and its manager, as the configuration says.
//!
//! One loop: a new configuration is applied whole, or refused and the old one stays. The order of a stop is the order in which lines travel: inputs,
//! then writers and their journals; streams of managers go on until the journals are closed.

mod behind;
pub use behind::far_behind;
mod control;
pub use control::{Console, GlimpseAnswer, GlimpseArgs, LogsArgs, NodeLogs, SubscriberArgs};
mod metrics;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use cluster::accounts::Accounts;
use cluster::control::{ControlError, Server as ControlServer, ServerOptions};
use cluster::documents::ConfError;
use cluster::documents::schema::cluster::Cluster;
use cluster::documents::schema::logd::Logd;
use cluster::files::FileError;
use cluster::shutdown::Shutdown;
use cluster::subscription::{Daemon, DaemonError, DaemonOptions, Snapshot, Wanted};
use logd_journal::JournalError;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::http::Http;
use crate::input::Context;
use crate::manager::writer::WriterError;
use crate::manager::{Home, Manager};
use crate::mount;
use crate::node::Logs;
use crate::path::Names;
use crate::sink::{self, Sinks};
use crate::wire::Trust;
use crate::wire::service::Service;

/// The name under which control sockets, reports and data directories know this program.
pub const PROGRAM: &str = "logd";
/// How long a stop may take: the last syncs on a busy disk.
const DRAIN: Duration = Duration::from_secs(20);

/// Run the log daemon of a node until it is told to stop.
///
/// Takes the lines of the node's services into journals, serves them to managers, and is a manager itself where `logd.toml` says so. SIGHUP reads
/// the configuration again, SIGTERM drains and ends it.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    daemon: DaemonOptions,
    /// Where managers connect [default: [::]:4802]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// A file that gets the address once the service listens
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
    /// Where sinks' credentials and CAs are: NAME and NAME.ca.pem
    #[arg(long, value_name = "DIR", default_value_os_t = sink::usual_secrets().to_path_buf())]
    sinks: PathBuf,
}

/// Why the daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its surroundings.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// What the cluster key makes.
    #[error(transparent)]
    Identity(#[from] cluster::identity::IdentityError),
    /// A journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The manager's state or files.
    #[error(transparent)]
    Writer(#[from] WriterError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The data directory's file system cannot be trusted with data.
    #[error(transparent)]
    Mount(#[from] mount::MountError),
    /// The service's address.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The port file.
    #[error(transparent)]
    PortFile(#[from] FileError),
    /// Signals.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    /// Something can no longer be written; it was logged.
    #[error("a journal or an aggregated file can no longer be written; the next start reads what is there")]
    Failed,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Conf(#[from] ConfError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Writer(#[from] WriterError),
}

/// What is running.
pub(crate) struct Running {
    pub(crate) logs: Arc<Logs>,
    pub(crate) service: Arc<Service>,
    home: Home,
    manager: Option<Manager>,
    sinks: Sinks,
    of_sinks: sink::Context,
    /// For commands: the configuration in use.
    pub(crate) current: Arc<std::sync::Mutex<control::Current>>,
}

impl Run {
    /// Runs until the end.
    pub async fn run(self) -> Result<(), RunError> {
        let shutdown = Shutdown::on_signals().map_err(RunError::Signals)?;
        let wanted = Wanted::documents(["logd.toml", "cluster.toml"]);
        let mut daemon = self.daemon.open(PROGRAM, wanted, &shutdown).await?;
        let data = daemon.data.clone();
        let checked = tokio::task::spawn_blocking(move || mount::check(&data)).await;
        checked.unwrap_or(Ok(()))?;
        let key = daemon.cluster_key.as_ref();
        let trust = Trust::new(daemon.identity.clone(), key, &daemon.node, &daemon.data.join("members"))?;
        let listener = self.listen(&trust).await?;
        let own = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        if let (Some(path), Some(address)) = (&self.port_file, own) {
            cluster::files::write_atomic(path, format!("{address}\n").as_bytes(), 0o644)?;
        }
        let Some(first) = daemon.subscription.next().await else { return Ok(()) };
        let subcluster = subcluster_of(&daemon, &first);
        let context = Context {
            data: daemon.data.clone(),
            sockets: cluster::control::run_dir().join("log"),
            names: Names { log: String::new(), node: daemon.node.clone(), subcluster: subcluster.clone() },
            identity: daemon.identity.clone(),
        };
        let opening = context.clone();
        let logs = Logs::open(opening)?;
        let service = Service::new(&daemon.node, &subcluster, logs.clone(), trust.clone());
        let failed = logs.failed().clone();
        let home = Home {
            node: daemon.node.clone(),
            data: daemon.data.clone(),
            trust,
            own_address: own.map(|own| reached_from_here(own).to_string()),
            failed: failed.clone(),
        };
        let of_sinks = sink::Context {
            names: context.names.clone(),
            identity: daemon.identity.clone(),
            data: daemon.data.clone(),
            secrets: self.sinks.clone(),
        };
        let (sinks, current) = (Sinks::default(), Arc::default());
        let mut running = Running { logs, service, home, manager: None, sinks, of_sinks, current };
        let accounts = Accounts::new(daemon.identity.clone(), daemon.client.clone());
        running.service.serve_http(Http::new(Console::new(&running), accounts));
        let ended = CancellationToken::new();
        let control = ControlServer::bind(&ServerOptions::new(PROGRAM, &daemon.node))?;
        tokio::spawn(control.serve(control::router(&running), ended.child_token()));
        let serving =
            listener.map(|listener| tokio::spawn(running.service.clone().serve(listener, ended.child_token())));
        tokio::spawn(behind::watch(running.service.clone(), ended.child_token()));
        running.take(first).await;
        crate::memory::forget_the_start();
        let outcome = running.follow(&mut daemon, &shutdown, &failed).await;
        running.stop().await;
        ended.cancel();
        if let Some(serving) = serving {
            // Streams hold journals, which end clean once nobody does.
            let _ = tokio::time::timeout(DRAIN, serving).await;
        }
        shutdown.trigger(cluster::shutdown::Reason::Asked);
        let _ = shutdown.drain(DRAIN).await;
        outcome
    }

    async fn listen(&self, trust: &Trust) -> Result<Option<TcpListener>, RunError> {
        if matches!(trust, Trust::Nobody) {
            tracing::warn!("neither an identity nor a cluster key: managers cannot connect");
            return Ok(None);
        }
        let port = cluster::documents::schema::cluster::Ports::default().logd;
        let bound = match self.listen {
            Some(address) => (TcpListener::bind(address).await, address),
            None => {
                let address = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
                match TcpListener::bind(address).await {
                    Ok(listener) => (Ok(listener), address),
                    // Machines without IPv6.
                    Err(_) => {
                        let address = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port));
                        (TcpListener::bind(address).await, address)
                    }
                }
            }
        };
        let (listener, address) = bound;
        Ok(Some(listener.map_err(|source| RunError::Listen { address, source })?))
    }
}

/// The loopback address where the service listens on all.
fn reached_from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        // A socket on all addresses of version 6 takes those of version 4 too.
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        other => other.ip(),
    };
    SocketAddr::new(ip, address.port())
}

fn subcluster_of(daemon: &Daemon, first: &Snapshot) -> String {
    let of_conf = || first.conf().map(|conf| conf.subcluster().to_owned()).ok();
    daemon.subcluster.clone().or_else(of_conf).unwrap_or_else(|| "default".into())
}

impl Running {
    /// Applies configurations until the daemon shall stop.
    async fn follow(
        &mut self,
        daemon: &mut Daemon,
        shutdown: &Shutdown,
        failed: &CancellationToken,
    ) -> Result<(), RunError> {
        loop {
            tokio::select! {
                biased;
                reason = shutdown.requested() => {
                    tracing::info!(%reason, "stopping");
                    return Ok(());
                }
                () = failed.cancelled() => return Err(RunError::Failed),
                next = daemon.subscription.next() => match next {
                    Some(snapshot) => self.take(snapshot).await,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn take(&mut self, snapshot: Snapshot) {
        match self.apply(&snapshot).await {
            Ok(()) => snapshot.applied().await,
            Err(refusal) => {
                let words = cluster::error::Chain(&refusal).to_string();
                tracing::error!(version = %snapshot.version(), error = words, "the configuration is refused");
                snapshot.refused(words).await;
            }
        }
    }

    async fn apply(&mut self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let logd: Logd = snapshot.load()?;
        let cluster: Cluster = snapshot.conf()?.cluster().clone();
        let settings = logd.managers.get(&self.home.node);
        // What can fail comes first.
        let started = match (&self.manager, settings) {
            (None, Some(settings)) => Some(Manager::start(&self.home, settings)?),
            _ => None,
        };
        self.logs.configure(&logd.logs).await?;
        Sinks::subscribe(&logd.sinks, &self.logs)?;
        self.sinks.configure(&logd.sinks, &self.logs, &self.of_sinks);
        self.service.configure(&logd, self.sinks.figures());
        match settings {
            Some(settings) => {
                let manager = self.manager.take().or(started);
                if let Some(mut manager) = manager {
                    manager.configure(&self.home, settings, &cluster);
                    self.manager = Some(manager);
                }
            }
            None => {
                if let Some(manager) = self.manager.take() {
                    manager.stop().await;
                }
            }
        }
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        current.figures = self.manager.as_ref().map(|manager| manager.figures().clone());
        current.sinks = self.sinks.figures();
        (current.logd, current.cluster) = (logd, cluster);
        Ok(())
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    async fn stop(&mut self) {
        self.sinks.stop().await;
        if let Some(manager) = self.manager.take() {
            manager.stop().await;
        }
        self.logs.stop().await;
    }
}
