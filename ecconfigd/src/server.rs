//! The whole server as a library: start it, learn where it listens, stop it.
//!
//! Start takes the data directory's lock, binds, opens the core and serves at once; `/readyz` says when the core has caught up. Stop goes
//! the other way round: no new connections and watches, what runs is finished within its deadline, then the core is closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cluster::documents::schema::ecconfigd::{Ecconfigd, Limits as Settings};
use cluster::documents::schema::values::{Host, HostPort};
use cluster::documents::{LocalError, load_local};
use cluster::error::Chain;
use cluster::identity::{IdentityError, KeyRequest, ReloadingIdentity};
use cluster::lock::{DirLock, LockError, Owner};
use cluster::shutdown::Drained;
use cluster::telemetry::Metrics as Registry;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::accounts::Accounts;
use crate::core::{Certifier, Core, CoreLimits, CoreOptions, Readiness};
use crate::http::connection::Acceptor;
use crate::http::metrics::Metrics;
use crate::http::web::Web;
use crate::http::{App, Issued, Question};
use crate::init::{self, CONFIG_FILE, IDENTITY_DIR};
use crate::limits::{AllPlaces, Limits, Live};
use crate::state::NodeName;

/// How often the server looks whether its certificate shall be renewed.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);
/// How soon it tries again when that failed, where the certificate holds long enough.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);
/// The shortest time between two renewals, however short certificates live.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);
/// Connections that the kernel holds until we accept them: a herd that reconnects at once fits.
const BACKLOG: i32 = 4096;

/// What to start.
#[derive(Debug, Default)]
pub struct Options {
    /// The data directory that `init` or `join` made.
    pub data: PathBuf,
    /// Where to listen instead of where `ecconfigd.toml` says.
    pub listen: Vec<HostPort>,
    /// Where other servers are, by node, whatever the cluster remembers: for servers that have all moved.
    pub peers: BTreeMap<String, String>,
    /// Sockets that listen already. With any of these, addresses of the file are not bound.
    pub inherited: Vec<std::net::TcpListener>,
    /// Settings instead of those of the file, for tests.
    pub settings: Option<Settings>,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no cluster in the data directory.
    #[error("{} holds no cluster", data.display())]
    NoCluster {
        /// The data directory.
        data: PathBuf,
    },
    /// Another process has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// `ecconfigd.toml`.
    #[error(transparent)]
    Config(#[from] LocalError),
    /// The node's identity, or the CA.
    #[error("the node's identity cannot be used")]
    Identity(#[from] IdentityError),
    /// An address.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The core.
    #[error("the replicated state cannot be opened")]
    Core(#[from] crate::error::Error),
    /// Something else that is needed.
    #[error("{0}")]
    Other(String),
}

/// Why a server cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The process should end.
    ForGood(String),
    /// A write failed on a full disk. It still answers what it has, and should be started anew when there is room.
    OutOfRoom(String),
}

/// A server that runs.
pub struct Server {
    addresses: Vec<SocketAddr>,
    app: Arc<App>,
    acceptor: Arc<Acceptor<Web>>,
    readiness: watch::Receiver<Readiness>,
    /// What `ecconfigd.toml` said and is in force.
    config: Mutex<Ecconfigd>,
    _lock: DirLock,
}

impl Server {
    /// Starts a server on the current runtime.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let (lock, identity, config) = local(&options)?;
        let settings = options.settings.unwrap_or_else(|| config.limits.clone());
        let in_force = Ecconfigd { limits: settings.clone(), ..config.clone() };
        let limits = Limits::from(&settings);
        let wanted = if options.listen.is_empty() { config.listen } else { options.listen };
        let listeners = listeners(options.inherited, &wanted).await?;
        let addresses: Vec<SocketAddr> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let first = addresses.first().ok_or_else(|| StartError::Other("there is no address to listen on".into()))?;
        let listen = HostPort { host: Host::Ip(first.ip()), port: first.port() };
        let address = init::advertised(&listen, config.advertise.as_ref()).to_string();
        let wanted_core = CoreOptions {
            data: options.data.clone(),
            node: node_name(&identity)?,
            address,
            peers: options.peers,
            limits: core_limits(&settings),
        };
        let core = Core::open_with(wanted_core, identity.clone()).await?;
        let app = application(core, limits, identity)?;
        let tls = tls(&app.identity)?;
        let acceptor = Acceptor::new(
            Arc::new(tls),
            Web::new(app.clone()),
            app.limits.clone(),
            app.connections.clone(),
            app.draining.clone(),
        )
        .with_peers(app.core.peers().clone());
        for listener in listeners {
            tokio::spawn(acceptor.clone().listen(listener));
        }
        // Tracked: when the server has stopped, nothing holds its state open any more.
        acceptor.tasks.spawn(app.identity.clone().watch(app.draining.clone()));
        acceptor.tasks.spawn(renew(app.clone(), certificate_names(&wanted, config.advertise.as_ref())));
        let readiness = app.core.watch_readiness();
        tracing::info!(node = %app.core.node_name(), cluster = app.cluster(), ?addresses, "serving");
        Ok(Self { addresses, app, acceptor, readiness, config: Mutex::new(in_force), _lock: lock })
    }

    /// What to log, where `ecconfigd.toml` says so.
    pub fn log(&self) -> Option<String> {
        self.config().log.clone()
    }

    /// Reads `ecconfigd.toml` again and puts what may change while the server runs in force. With an error everything stays as it is.
    pub fn reread(&self) -> Result<Reread, LocalError> {
        let fresh = load_local::<Ecconfigd>(&self.app.core.data_dir().join(CONFIG_FILE))?.unwrap_or_default();
        let mut config = self.config();
        let limits = at_run_time(&config.limits, &fresh.limits);
        let mut reread = Reread { changed: config.limits.changed(&limits), at_start: limits.changed(&fresh.limits) };
        reread.at_start.extend((config.listen != fresh.listen).then_some("listen"));
        reread.at_start.extend((config.advertise != fresh.advertise).then_some("advertise"));
        reread.changed.extend((config.log != fresh.log).then_some("log"));
        self.app.limits.set(Limits::from(&limits));
        self.app.core.adjust(&core_limits(&limits));
        (config.limits, config.log) = (limits, fresh.log);
        Ok(reread)
    }

    fn config(&self) -> MutexGuard<'_, Ecconfigd> {
        self.config.lock().expect("no code panics while it holds this lock")
    }

    /// Where it listens, in the order of the settings.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What the handlers share.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Ends with the reason when the server cannot go on; until then it waits.
    pub async fn failed(&self) -> Failure {
        let mut readiness = self.readiness.clone();
        loop {
            match &*readiness.borrow_and_update() {
                Readiness::Failed(why) => return Failure::ForGood(why.clone()),
                Readiness::OutOfRoom(why) => return Failure::OutOfRoom(why.clone()),
                _ => {}
            }
            if readiness.changed().await.is_err() {
                return Failure::ForGood("the core is gone".into());
            }
        }
    }

    /// Stops: nothing new, what runs is finished within the deadline, watches end at once.
    pub async fn shutdown(self) -> Drained {
        self.app.draining.cancel();
        let tasks = &self.acceptor.tasks;
        tasks.close();
        let drained = match tokio::time::timeout(self.app.limits.now().shutdown_time, tasks.wait()).await {
            Ok(()) => Drained::Clean,
            Err(_) => Drained::DeadlinePassed { unfinished: tasks.len() },
        };
        self.app.core.shutdown().await;
        tracing::info!(outcome = %drained, "stopped");
        drained
    }
}

impl StartError {
    /// Whether room on the disk may be all that is missing.
    pub fn is_for_want_of_room(&self) -> bool {
        matches!(self, Self::Core(_) | Self::Lock(_) | Self::Identity(_))
    }
}

/// Whether the disk has the room that a server needs to begin.
pub async fn has_room(data: &Path) -> bool {
    let config = load_local::<Ecconfigd>(&data.join(CONFIG_FILE)).ok().flatten().unwrap_or_default();
    crate::core::has_room(data, config.limits.min_free_bytes.bytes()).await
}

/// What came of reading `ecconfigd.toml` again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reread {
    /// The keys whose new values are in force now.
    pub changed: Vec<&'static str>,
    /// Those that wait for the next start.
    pub at_start: Vec<&'static str>,
}

/// The new limits, but for those by which queues and threads were laid out at the start.
fn at_run_time(old: &Settings, new: &Settings) -> Settings {
    Settings {
        requests: old.requests,
        queue: old.queue,
        queue_timeout: old.queue_timeout,
        watchers: old.watchers,
        git_transfers: old.git_transfers,
        git_pushes: old.git_pushes,
        password_checks: old.password_checks,
        commit_queue: old.commit_queue,
        commit_size: old.commit_size,
        commit_paths: old.commit_paths,
        file_size: old.file_size,
        log_entries: old.log_entries,
        ..new.clone()
    }
}

/// What lies in the data directory.
fn local(options: &Options) -> Result<(DirLock, Arc<ReloadingIdentity>, Ecconfigd), StartError> {
    let data = &options.data;
    let no_cluster = || StartError::NoCluster { data: data.clone() };
    let config = load_local::<Ecconfigd>(&data.join(CONFIG_FILE))?.ok_or_else(no_cluster)?;
    let identity = ReloadingIdentity::load(data.join(IDENTITY_DIR))?;
    let lock = DirLock::acquire(data, &Owner::current("ecconfigd", identity.current().node()))?;
    Ok((lock, identity, config))
}

/// TLS for clients and for other members, who choose their own protocol.
pub(crate) fn tls(identity: &Arc<ReloadingIdentity>) -> Result<rustls::ServerConfig, IdentityError> {
    let mut config = cluster::tls::server_config(identity.clone(), identity.current().ca_pem())?;
    config.alpn_protocols.push(crate::peer::ALPN.to_vec());
    Ok(config)
}

fn node_name(identity: &ReloadingIdentity) -> Result<NodeName, StartError> {
    identity.current().node().parse().map_err(|error: crate::state::BadName| StartError::Other(error.to_string()))
}

fn core_limits(settings: &Settings) -> CoreLimits {
    CoreLimits {
        max_commit_bytes: settings.commit_size.bytes(),
        commit_queue: settings.commit_queue as usize,
        max_watchers: settings.watchers as usize,
        gate: settings.into(),
        compact_entries: settings.log_entries.into(),
        min_free_bytes: Some(settings.min_free_bytes.bytes().into()),
        catch_up_bytes_per_s: settings.catch_up_bytes_per_s.bytes().into(),
        scrub_interval_ms: settings.scrub_interval.as_millis().into(),
        scrub_bytes_per_s: settings.scrub_bytes_per_s.bytes().into(),
        ..CoreLimits::default()
    }
}

fn application(core: Core, limits: Limits, identity: Arc<ReloadingIdentity>) -> Result<Arc<App>, StartError> {
    let accounts = Accounts::new(core.clone(), limits.password_checks);
    let live = Live::new(limits.clone());
    let registry = Registry::new("ecconfigd", core.node_name().as_str());
    core.register_metrics(&registry);
    let app = Arc::new(App {
        accounts: accounts.map_err(|error| StartError::Other(error.to_string()))?,
        places: AllPlaces::new(&limits),
        connections: crate::limits::ConnectionGate::new(&live),
        metrics: Metrics::new(registry),
        cluster: identity.current().cluster_name(),
        draining: CancellationToken::new(),
        core,
        limits: live,
        identity,
    });
    let certifier: Arc<dyn Certifier> = app.clone();
    app.core.set_certifier(Arc::downgrade(&certifier));
    Ok(app)
}

/// Sockets that were handed to us, and the addresses bound now. An address that is taken by the very socket that was handed over
/// (systemd's way) counts as bound; in a network namespace of its own the server binds it once more, inside.
async fn listeners(inherited: Vec<std::net::TcpListener>, wanted: &[HostPort]) -> Result<Vec<TcpListener>, StartError> {
    let mut listeners = Vec::new();
    let mut handed = Vec::new();
    for listener in inherited {
        let failed = |source| StartError::Listen { address: "an inherited socket".into(), source };
        handed.push(listener.local_addr().map_err(failed)?);
        listener.set_nonblocking(true).map_err(failed)?;
        listeners.push(TcpListener::from_std(listener).map_err(failed)?);
    }
    for address in wanted {
        let failed = |source| StartError::Listen { address: address.to_string(), source };
        for resolved in tokio::net::lookup_host(address.to_string()).await.map_err(failed)? {
            match bind(resolved) {
                Ok(listener) => listeners.push(listener),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && handed.contains(&resolved) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
    Ok(listeners)
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG as u32)
}

/// The names that this server's own certificate covers.
fn certificate_names(listen: &[HostPort], advertise: Option<&HostPort>) -> Vec<String> {
    let mut names: Vec<String> = listen.iter().chain(advertise).map(ToString::to_string).collect();
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    names.extend(host.filter(|host| host.parse::<cluster::documents::schema::values::Host>().is_ok()));
    names
}

/// Renews the server's own certificate when two thirds of its life are over or it does not cover the names it is reached by (the
/// settings or the host's name were changed), for as long as the server runs.
async fn renew(app: Arc<App>, names: Vec<String>) {
    // What is issued is also written into the state, which takes a server that has caught up.
    let mut readiness = app.core.watch_readiness();
    let ready = readiness.wait_for(|readiness| *readiness == Readiness::Ready);
    if !matches!(app.draining.run_until_cancelled(ready).await, Some(Ok(_))) {
        return;
    }
    // A program that shares the identity may renew it, too, and does not know every name.
    let mut changes = app.identity.changes();
    // Names that were asked for and not given (they are another node's) are not asked for all the time.
    let mut names_due = Instant::now();
    loop {
        let present = app.identity.current();
        let left = until(present.peer().renewal_due());
        let mut pause = left.clamp(RENEWAL_PAUSE, RENEWAL_CHECK);
        if left.is_zero() || (names_due <= Instant::now() && !present.covers(&names)) {
            let Some(renewed) = app.draining.run_until_cancelled(renew_now(&app, &names)).await else { return };
            changes.borrow_and_update();
            names_due = Instant::now() + RENEWAL_CHECK;
            match renewed {
                // Looked at again: the next one is due when the new certificate says so.
                Ok(()) => pause = RENEWAL_PAUSE,
                Err(error) => {
                    tracing::error!(error = %Chain(error.as_ref()), "the server's certificate was not renewed");
                    pause = RENEWAL_RETRY.min(until(present.peer().not_after) / 4).max(RENEWAL_PAUSE);
                    names_due = Instant::now();
                }
            }
        }
        let wait = async {
            if tokio::time::timeout(pause, changes.changed()).await.is_ok() {
                tokio::time::sleep(RENEWAL_PAUSE).await;
                return true;
            }
            false
        };
        match app.draining.run_until_cancelled(wait).await {
            None => return,
            Some(true) => names_due = Instant::now(),
            Some(false) => {}
        }
    }
}

fn until(moment: OffsetDateTime) -> Duration {
    Duration::try_from(moment - OffsetDateTime::now_utc()).unwrap_or_default()
}

/// Gets the server a fresh certificate, from its own copy of the CA or from a voter, and uses it at once.
pub async fn renew_now(app: &App, names: &[String]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let node = app.core.node_name();
    let key = KeyRequest::generate(node.as_str())?;
    let question = Question::Renew { node: node.clone(), csr_pem: key.csr_pem().to_owned(), names: names.to_vec() };
    let issued = app.certify(question).await.map_err(|error| error.lines().join("; "))?;
    let Issued::Renew(fresh) = issued else { return Err("another certificate than the one asked for".into()) };
    let (identity, fresh) = (app.identity.clone(), key.certified(&fresh.certificate_pem, &fresh.ca_pem)?);
    // Several files, each of them synced.
    tokio::task::spawn_blocking(move || identity.replace(&fresh)).await??;
    tracing::info!(until = %app.identity.current().peer().not_after, "the server's certificate is renewed");
    Ok(())
}
