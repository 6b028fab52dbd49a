//! `cidr run`: the daemon, from its options to its end.

pub mod control;
pub mod deliver;
pub mod inputs;
pub mod logs;
pub mod maintenance;
pub mod queries;
pub mod windows;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use cluster::accounts::Accounts;
use cluster::control::Server as ControlServer;
use cluster::documents::schema::values::HostPort;
use cluster::identity::ReloadingIdentity;
use cluster::shutdown::{Drained, Shutdown};
use cluster::subscription::{Daemon, DaemonOptions};
use tokio_util::sync::CancellationToken;

use crate::http;
use crate::metrics::Meters;
use crate::outbox::Outbox;
use crate::peers::Peers;
use crate::service::{QueryLimits, Service};
use crate::settings::{self, Settings};

const PROGRAM: &str = "cidr";
/// Windows are written, queries and senders end, within this time.
const DRAIN: Duration = Duration::from_secs(20);

/// Count, keep and answer until told to stop.
#[derive(Debug, Args)]
pub struct RunOptions {
    #[command(flatten)]
    daemon: DaemonOptions,
    /// Where HTTP is served: plain on loopback addresses, TLS with the node's identity elsewhere; repeat it for more
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9000")]
    listen: Vec<HostPort>,
    /// Where events are taken over UDP, which knows no senders [default: the loopback address of --listen]
    #[arg(long, value_name = "ADDR:PORT")]
    udp: Vec<HostPort>,
    /// The unix socket for events [default: cidr-events.sock beside the control socket]
    #[arg(long, value_name = "PATH")]
    events: Option<PathBuf>,
    /// Where logd keeps its journals, a directory per log
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// A file that gets one line per address once the daemon listens
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
    #[command(flatten)]
    limits: QueryLimits,
}

/// Runs until a signal ends it.
pub async fn run(options: RunOptions) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let shutdown = Shutdown::on_signals()?;
    let Daemon { node, subcluster, data, identity, client, cluster_key, mut subscription, lock } =
        options.daemon.open(PROGRAM, settings::wanted()?, &shutdown).await?;
    let identity = match (identity, &cluster_key) {
        (None, Some(key)) => {
            let subcluster = subcluster.as_deref().unwrap_or("default");
            Some(key.identity(&node, subcluster, &data.join("members"))?)
        }
        (identity, _) => identity,
    };
    // First: whoever else serves this socket is named before anything is opened.
    let control = ControlServer::bind(&cluster::control::ServerOptions::new(PROGRAM, &node))?;
    let outbox = Outbox::open(&data.join("outbox"), &node)?;
    let peers = Peers::new(identity.clone());
    let (service, finished) = Service::new(node.clone(), data, options.limits, outbox, peers, Meters::new(&node));

    let sockets = Sockets::bind(&options, identity.as_ref()).await?;
    sockets.write_port_file(options.port_file.as_deref())?;
    let writer = {
        let (service, hurry) = (service.clone(), CancellationToken::new());
        let giving_up = hurry.clone();
        let thread = std::thread::Builder::new().name("windows".into());
        (thread.spawn(move || windows::write(&service, &finished, &giving_up))?, hurry)
    };
    let accounts = Accounts::new(identity, client);
    let inputs = sockets.serve(&service, accounts, &shutdown);
    let stop = shutdown.token();
    shutdown.spawn(windows::cut(service.clone(), stop.clone()));
    shutdown.spawn(windows::sort(service.clone(), stop.clone()));
    shutdown.spawn(deliver::deliver(service.clone(), stop.clone()));
    shutdown.spawn(maintenance::rounds(service.clone(), stop.clone()));
    shutdown.spawn(maintenance::save_monitors(service.clone(), stop.clone()));
    let logs = options.logs.unwrap_or_else(|| PathBuf::from("/var/lib/eccluster/logd").join(&node).join("journal"));
    shutdown.spawn(logs::follow(service.clone(), logs, stop.clone()));
    shutdown.spawn(control.serve(control::router(service.clone()), stop.clone()));

    while let Some(snapshot) = subscription.next().await {
        let read = tokio::task::block_in_place(|| {
            let settings = Settings::read(&snapshot, &node, &service.settings())?;
            service.apply(settings)?;
            maintenance::restore(&service);
            Ok::<_, String>(())
        });
        match read {
            Ok(()) => snapshot.applied().await,
            Err(reason) => snapshot.refused(reason).await,
        }
    }
    let drained = leave(&shutdown, &service, inputs, writer).await;
    drop((service, lock));
    match drained {
        Drained::Clean => Ok(()),
        unfinished => Err(unfinished.to_string().into()),
    }
}

/// Inputs end first, so that what they brought is in the last windows; those are written before the process ends.
async fn leave(
    shutdown: &Shutdown,
    service: &Arc<Service>,
    inputs: Vec<tokio::task::JoinHandle<()>>,
    (writer, hurry): (std::thread::JoinHandle<()>, CancellationToken),
) -> Drained {
    for input in inputs {
        let _ = tokio::time::timeout(Duration::from_secs(5), input).await;
    }
    service.finish();
    let written = tokio::task::spawn_blocking(move || writer.join());
    if tokio::time::timeout(DRAIN / 2, written).await.is_err() {
        hurry.cancel();
    }
    shutdown.run(DRAIN).await
}

/// Everything that is bound before anything is served.
struct Sockets {
    http: Vec<http::Listener>,
    udp: Vec<tokio::net::UdpSocket>,
    events: tokio::net::UnixListener,
    events_path: PathBuf,
}

impl Sockets {
    async fn bind(
        options: &RunOptions,
        identity: Option<&Arc<ReloadingIdentity>>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut http = Vec::new();
        for socket in cluster::listen::inherited()? {
            http.push(http::Listener::new(tokio::net::TcpListener::from_std(socket)?, identity)?);
        }
        // Inherited sockets stand for the usual address, not beside it.
        let usual = options.listen.len() == 1 && options.listen[0].to_string() == "127.0.0.1:9000";
        if http.is_empty() || !usual {
            for address in &options.listen {
                let socket = tokio::net::TcpListener::bind(address.to_string()).await;
                let socket = socket.map_err(|error| format!("cannot listen on {address}: {error}"))?;
                http.push(http::Listener::new(socket, identity)?);
            }
        }
        let mut udp = Vec::new();
        let addresses: Vec<SocketAddr> = match options.udp.as_slice() {
            [] => {
                http.iter().map(http::Listener::address).filter(|address| address.ip().is_loopback()).take(1).collect()
            }
            chosen => resolve(chosen).await?,
        };
        for address in addresses {
            let socket = inputs::bind_udp(address).await;
            udp.push(socket.map_err(|error| format!("cannot take UDP on {address}: {error}"))?);
        }
        let events_path = options.events.clone().unwrap_or_else(default_events);
        let events = inputs::bind_unix(&events_path);
        let events = events.map_err(|error| format!("cannot listen on {}: {error}", events_path.display()))?;
        Ok(Self { http, udp, events, events_path })
    }

    fn write_port_file(&self, path: Option<&std::path::Path>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(path) = path else { return Ok(()) };
        let http = self.http.iter().map(|listener| listener.address().to_string());
        let udp = self.udp.iter().filter_map(|socket| Some(format!("udp:{}", socket.local_addr().ok()?)));
        let lines: Vec<String> = http.chain(udp).collect();
        Ok(cluster::files::write_atomic(path, (lines.join("\n") + "\n").as_bytes(), 0o644)?)
    }

    /// Serves them; the tasks end with the process's stop.
    fn serve(
        self,
        service: &Arc<Service>,
        accounts: Option<Accounts>,
        shutdown: &Shutdown,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        let stop = shutdown.token();
        let router = http::router(service.clone(), accounts);
        let mut tasks = Vec::new();
        for listener in self.http {
            tracing::info!(address = %listener.address(), tls = listener.is_secure(), "listening");
            tasks.push(shutdown.spawn(listener.serve(router.clone(), stop.clone())));
        }
        for socket in self.udp {
            tasks.push(shutdown.spawn(inputs::udp(service.clone(), socket, stop.clone())));
        }
        tracing::info!(path = %self.events_path.display(), "taking events");
        tasks.push(shutdown.spawn(inputs::unix(service.clone(), self.events, stop)));
        tasks
    }
}

/// The unix socket for events.
pub fn default_events() -> PathBuf {
    cluster::control::run_dir().join("cidr-events.sock")
}

async fn resolve(chosen: &[HostPort]) -> Result<Vec<SocketAddr>, std::io::Error> {
    let mut found = Vec::new();
    for address in chosen {
        found.extend(tokio::net::lookup_host(address.to_string()).await?.next());
    }
    Ok(found)
}
