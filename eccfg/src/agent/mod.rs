//! The node agent: keeps this node's working copy at the node's target, and the services of `agent.toml` in step with it.
//!
//! It knows the target by watch and falls back to polling; it survives the loss of every server, because all it needs to go on
//! serving is on disk. What it runs is decided by node-local files alone (`boot.toml`, `agent.toml`), never by the
//! repository. One loop drives everything: what changed (a target, a signal, time) is looked at once, and one update
//! runs at a time. Where this goes for one target is [`pursue`]'s business.

mod command;
mod config;
pub mod fault;
mod follow;
pub mod isolate;
mod pursue;
mod record;
mod report;
mod services;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster::api::{NodeReport, Target};
use cluster::control;
use cluster::documents::schema::boot::Autoupdate;
use cluster::http_client::{ApiClient, Backoff};
use cluster::identity::{IdentityError, ReloadingIdentity, Renewer};
use cluster::lock::{DirLock, LockError, Owner};
use cluster::shutdown::Shutdown;
use cluster::watch_dir::DirWatch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use repos::worktree::{CreateOptions, Mount, Scan, WorkingCopy, WorktreeError};

use crate::place::{self, CopyInfo};
use crate::server::Server;
use crate::update;

use config::{Config, ConfigError};
use pursue::{Outcome, Updater};
use record::RecordFile;
use report::Reporter;
use services::Service;

/// What the agent is started with; what is not named here comes from `boot.toml` or has a default.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name; it must be the one in the certificate.
    pub node: Option<String>,
    /// Servers to try in order.
    pub servers: Vec<String>,
    /// The working copy.
    pub wc: PathBuf,
    /// Where `boot.toml` and `agent.toml` are.
    pub config: PathBuf,
    /// Where the agent keeps what it must remember; by default below `/var/lib/eccluster`.
    pub data: Option<PathBuf>,
    /// The node's key, certificate and CA.
    pub identity: PathBuf,
}

/// Why the agent cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The node-local files.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The node's key and certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another agent runs with this data directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The name that was asked for is not the certificate's.
    #[error("the certificate in {identity} is of node {certified}, not {asked}", identity = .identity.display())]
    OtherNode {
        /// Where the certificate is.
        identity: PathBuf,
        /// Whose it is.
        certified: String,
        /// Whom the options or `boot.toml` name.
        asked: String,
    },
    /// `boot.toml` names another subcluster than the certificate.
    #[error("boot.toml says that this node is in subcluster {said}, its certificate says {certified}")]
    OtherSubcluster {
        /// What the file says.
        said: String,
        /// What the cluster certified.
        certified: String,
    },
    /// The HTTP client cannot be set up.
    #[error("cannot speak to the servers")]
    Client(#[source] cluster::http_client::ClientError),
    /// The working copy cannot be used, and waiting will not change that.
    #[error(transparent)]
    Worktree(#[from] WorktreeError),
    /// What the agent remembers cannot be read.
    #[error("cannot read what the agent remembers")]
    Record(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The control socket or the signals cannot be set up.
    #[error("cannot start")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What the control socket shows of a running agent.
#[derive(Clone, Debug, Default, serde::Serialize)]
struct Shown {
    node: String,
    target: Option<Target>,
    report: Option<NodeReport>,
    trouble: Option<String>,
}

/// Runs the agent until `shutdown` asks it to end; an update that is under way is brought to its end first.
pub async fn run(options: Options, shutdown: Shutdown) -> Result<(), AgentError> {
    // Watched before they are read: no change falls between the two.
    let files = watch_files(&options.config);
    let config = Config::load(&options.config)?;
    let identity = ReloadingIdentity::load(&options.identity)?;
    let node = agree_on_node(&options, &config, &identity)?;
    let data = options.data.clone().unwrap_or_else(|| PathBuf::from("/var/lib/eccluster/agent").join(&node));
    cluster::files::create_dirs(&data, 0o700).map_err(|error| AgentError::Start(Box::new(error)))?;
    let _lock = acquire(&data, &node).await?;
    let record = RecordFile::open(&data).map_err(|error| AgentError::Record(Box::new(error)))?;
    let client = ApiClient::as_node(config.servers(&options.servers, &options.config)?, Arc::clone(&identity))
        .map_err(AgentError::Client)?;

    let stop = shutdown.token();
    let (poll, polls) = watch::channel(config.boot.poll.get());
    let (targets, following) = follow::follow(client.clone(), &node, polls, stop.clone());
    let (reporter, reporting) = Reporter::new(client.clone(), node.clone());
    shutdown.spawn(following);
    shutdown.spawn(reporting);
    shutdown.spawn(Arc::clone(&identity).watch(stop.clone()));
    if let Some(report) = &record.get().report {
        // It may not have reached a server before the last run ended.
        reporter.send(report.clone());
    }
    shutdown.spawn(Renewer::new(Arc::clone(&identity)).run(client.clone(), stop.clone()));

    let shown =
        Arc::new(Mutex::new(Shown { node: node.clone(), report: record.get().report.clone(), ..Shown::default() }));
    let socket = control::Server::bind(&control::ServerOptions::new(PROGRAM, &node))
        .map_err(|error| AgentError::Start(Box::new(error)))?;
    shutdown.spawn(socket.serve(router(&shown, &shutdown), stop));
    let server = Server::new(client, identity.current().ca_pem().to_owned());
    let agent = Agent {
        node,
        config,
        identity,
        server,
        targets,
        poll,
        reporter,
        reloads: shutdown.reloads(),
        files,
        stop: shutdown.token(),
        shown,
        options,
    };
    agent.run(record).await
}

/// The data directory's lock. That of an agent which was killed a moment ago may still be held by a command that it was about to start: a
/// new process has its parent's descriptors until its program is loaded. So one attempt is not enough to believe that another agent runs.
async fn acquire(data: &std::path::Path, node: &str) -> Result<DirLock, LockError> {
    const ATTEMPTS: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(100);
    for _ in 1..ATTEMPTS {
        match DirLock::acquire(data, &Owner::current(PROGRAM, node)) {
            Err(LockError::Held { .. }) => tokio::time::sleep(PAUSE).await,
            other => return other,
        }
    }
    DirLock::acquire(data, &Owner::current(PROGRAM, node))
}

/// Tells of changes to the node-local files; where that cannot be had, SIGHUP is the way.
fn watch_files(dir: &std::path::Path) -> Option<DirWatch> {
    let warn = |error: &_| {
        tracing::warn!(
            error = in_words(error),
            "boot.toml and agent.toml are not watched; SIGHUP makes the agent read them"
        );
    };
    // Changes are told of the directory itself, not of a link to it.
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    DirWatch::files(&dir, config::FILES).inspect_err(warn).ok()
}

/// The name of the control socket, and what reports call this program.
const PROGRAM: &str = "agent";

/// What `eccfg` on the same machine may ask a running agent.
fn router(shown: &Arc<Mutex<Shown>>, shutdown: &Shutdown) -> control::Router {
    let (shown, shutdown) = (Arc::clone(shown), shutdown.clone());
    control::Router::new()
        .command("status", "what this node shall have, and how far it got", move |_, _| {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
            async move { serde_json::to_value(shown).map_err(|error| control::Failure::of(&error)) }
        })
        .command("update", "look at the target, the working copy and the node-local files again now", move |_, _| {
            shutdown.reload();
            async { Ok(serde_json::Value::Null) }
        })
}

/// The certificate decides who this node is; files and options that say otherwise are refused.
fn agree_on_node(options: &Options, config: &Config, identity: &ReloadingIdentity) -> Result<String, AgentError> {
    let identity = identity.current();
    let certified = identity.node().to_owned();
    let asked = options.node.clone().or(config.boot.node.clone()).unwrap_or_else(|| certified.clone());
    if asked != certified {
        return Err(AgentError::OtherNode { identity: options.identity.clone(), certified, asked });
    }
    let subcluster = &identity.peer().subcluster;
    match &config.boot.subcluster {
        Some(said) if said != subcluster => {
            Err(AgentError::OtherSubcluster { said: said.clone(), certified: subcluster.clone() })
        }
        _ => Ok(certified),
    }
}

/// The loop and what it needs.
struct Agent {
    options: Options,
    node: String,
    config: Config,
    identity: Arc<ReloadingIdentity>,
    server: Server,
    targets: follow::Targets,
    /// How often the follower asks where it is not told; sending also tells it that the servers may be others.
    poll: watch::Sender<Duration>,
    reporter: Reporter,
    reloads: watch::Receiver<u64>,
    /// `boot.toml` and `agent.toml`.
    files: Option<DirWatch>,
    stop: CancellationToken,
    shown: Arc<Mutex<Shown>>,
}

/// What the loop is woken by.
enum Wake {
    /// There may be a new target.
    Target,
    /// Time to look at the working copy again: local edits may have gone, somebody may have pulled by hand.
    Time,
    /// SIGHUP: somebody wants the node-local files to be read.
    Reread,
    /// The node-local files have changed.
    Changed,
    /// The agent shall end.
    Stop,
}

impl Agent {
    async fn run(mut self, record: RecordFile) -> Result<(), AgentError> {
        let Some(wc) = self.open_or_create().await? else { return Ok(()) };
        let mut updater = Updater {
            wc,
            node: self.node.clone(),
            services: self.config.services.clone(),
            record,
            reporter: self.reporter.clone(),
            only_unchanged: self.config.boot.autoupdate == Autoupdate::IfUnchanged,
            reload: self.config.boot.reload_config_on_update,
        };
        updater.watch();
        let mut backoff = Backoff::default();
        let mut recent = Recent::default();
        let mut scan = Scan::Full;
        loop {
            let mut wait = self.config.boot.poll.get();
            match self.attempt(&mut updater, &mut recent).await {
                Ok(None) => {
                    backoff.reset();
                    self.show(&updater, None);
                }
                Ok(Some(debounce)) => wait = debounce,
                Err(trouble) => {
                    wait = backoff.next_delay();
                    tracing::warn!(trouble, "this update is tried again");
                    self.show(&updater, Some(trouble));
                }
            }
            // Beside the waiting: what is done now need not be done when the next target comes.
            let tending = updater.tend(std::mem::replace(&mut scan, Scan::Watched));
            let woken = self.wake(wait).await;
            updater.tended(tending).await;
            match woken {
                Wake::Target => {}
                Wake::Time => {
                    updater.look_again();
                    scan = Scan::Full;
                }
                woken @ (Wake::Reread | Wake::Changed) => {
                    if self.reread(&woken) {
                        self.instruct(&mut updater);
                    }
                }
                Wake::Stop => return Ok(()),
            }
        }
    }

    async fn wake(&mut self, wait: Duration) -> Wake {
        tokio::select! {
            // Told to end, the agent begins nothing new; told to read its files, it reads them before it acts on a target.
            biased;
            () = self.stop.cancelled() => Wake::Stop,
            reload = self.reloads.changed() => if reload.is_ok() { Wake::Reread } else { Wake::Stop },
            () = changed(&mut self.files) => Wake::Changed,
            changed = self.targets.changed() => if changed.is_ok() { Wake::Target } else { Wake::Stop },
            () = tokio::time::sleep(wait) => Wake::Time,
        }
    }

    /// Takes the newest target as far as it goes now. The answer is how long to wait where a service was reloaded a moment
    /// ago, or what went wrong.
    async fn attempt(&mut self, updater: &mut Updater, recent: &mut Recent) -> Result<Option<Duration>, String> {
        recent.note(&updater.interrupted());
        updater.resume().await.map_err(in_words)?;
        let Some(target) = self.goal(updater)? else { return Ok(None) };
        if updater.is_done_with(&target).map_err(in_words)? {
            if self.config.boot.autoupdate != Autoupdate::Never {
                updater.acknowledge(&target).map_err(in_words)?;
            }
            return Ok(None);
        }
        tracing::debug!(serial = target.serial, "a new target");
        let targets = update::targets_of(&updater.wc, &target.repos).map_err(in_words)?;
        update::fetch(&self.server, &updater.wc, &targets).await.map_err(in_words)?;
        tracing::debug!(serial = target.serial, "its objects are here");
        fault::point("agent.fetched");
        let concerned = updater.concerned(&target).map_err(in_words)?;
        if let Some(wait) = recent.wait(&concerned) {
            return Ok(Some(wait));
        }
        let outcome = updater.pursue(&target).await.map_err(in_words)?;
        recent.note(&concerned);
        match outcome {
            Outcome::Healthy => tracing::info!(serial = target.serial, repos = ?target.repos, "at target"),
            Outcome::GivenUp => {}
        }
        Ok(None)
    }

    /// What the node shall have. With `autoupdate = false` that is what somebody has put there: its services still follow.
    fn goal(&mut self, updater: &Updater) -> Result<Option<Target>, String> {
        let newest = self.targets.borrow_and_update().clone();
        let repos = updater.base().map_err(in_words)?;
        if self.config.boot.autoupdate != Autoupdate::Never {
            return Ok(newest.map(|mut target| {
                target.hold(&repos);
                target
            }));
        }
        let serial = newest.map_or(0, |target| target.serial);
        Ok((!repos.is_empty()).then_some(Target { serial, repos, frozen: Vec::new() }))
    }

    /// Reads the node-local files; false when they cannot be used, and what they said before stays in force.
    fn reread(&mut self, woken: &Wake) -> bool {
        match self.usable_files(woken) {
            Ok(config) => {
                self.config = config;
                self.poll.send_replace(self.config.boot.poll.get());
                tracing::info!("read boot.toml and agent.toml again");
                true
            }
            Err(error) => {
                tracing::error!(error = in_words(error), "boot.toml and agent.toml stay as they were");
                false
            }
        }
    }

    /// All of them or none: nothing is changed before all is known to be in order.
    fn usable_files(&self, woken: &Wake) -> Result<Config, AgentError> {
        let config = Config::load(&self.options.config)?;
        if let (Wake::Changed, Some(gone)) = (woken, config.lacks(&self.config)) {
            return Err(ConfigError::Gone(gone).into());
        }
        // The same node as at the start, or none.
        agree_on_node(&self.options, &config, &self.identity)?;
        let servers = config.servers(&self.options.servers, &self.options.config)?;
        self.server.client().set_servers(servers).map_err(AgentError::Client)?;
        Ok(config)
    }

    /// What the node-local files mean for updates.
    fn instruct(&self, updater: &mut Updater) {
        updater.services = self.config.services.clone();
        updater.reload = self.config.boot.reload_config_on_update;
        updater.only_unchanged = self.config.boot.autoupdate == Autoupdate::IfUnchanged;
        updater.look_again();
        self.keep_known(&updater.wc);
    }

    fn show(&self, updater: &Updater, trouble: Option<String>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.target.clone_from(&self.targets.borrow());
        shown.report.clone_from(&updater.record.get().report);
        shown.trouble = trouble;
    }

    /// The working copy; a node's first start makes one, as soon as a server says what belongs into it.
    async fn open_or_create(&mut self) -> Result<Option<WorkingCopy>, AgentError> {
        if let Some(above) = self.options.wc.parent() {
            cluster::files::create_dirs(above, 0o755).map_err(|error| AgentError::Start(Box::new(error)))?;
        }
        match WorkingCopy::open(&self.options.wc) {
            Err(WorktreeError::NotAWorkingCopy(_)) => {}
            opened => {
                let wc = opened?;
                if CopyInfo::load(&wc).is_ok_and(|info| info.servers.is_empty()) {
                    // Its making was interrupted, or it was made by other means.
                    self.make_known(&wc);
                }
                return Ok(Some(wc));
            }
        }
        loop {
            let target = self.targets.borrow_and_update().clone();
            if let Some(target) = target {
                // The loop shall see it too.
                self.targets.mark_changed();
                return Ok(Some(self.create(&target)?));
            }
            match self.wake(Duration::MAX).await {
                Wake::Target | Wake::Time => {}
                // It may be the servers that were wrong.
                woken @ (Wake::Reread | Wake::Changed) => drop(self.reread(&woken)),
                Wake::Stop => return Ok(None),
            }
        }
    }

    fn create(&self, target: &Target) -> Result<WorkingCopy, AgentError> {
        let origin = self.server.name();
        let mount = |repo: &String| Mount {
            name: repo.clone(),
            at: if repo == GLOBAL { GLOBAL.to_owned() } else { String::new() },
            remote_url: format!("{}/{repo}.git", origin.trim_end_matches('/')),
            ca: None,
        };
        let mut mounts: Vec<Mount> = target.repos.keys().map(mount).collect();
        mounts.sort_by(|a, b| a.at.cmp(&b.at));
        let options = CreateOptions { mounts, ownership: self.config.ownership };
        let wc = WorkingCopy::create(&self.options.wc, options)?;
        fault::point("agent.created");
        self.make_known(&wc);
        tracing::info!(path = %self.options.wc.display(), "made the working copy");
        Ok(wc)
    }

    /// `eccfg` in a working copy of the agent's goes where the agent goes; what a person chose at `bootstrap` is left alone.
    fn keep_known(&self, wc: &WorkingCopy) {
        if let Ok(mut info) = CopyInfo::load(wc)
            && info.node.is_some()
            && info.username.is_none()
            && info.servers != self.servers()
        {
            info.servers = self.servers();
            if let Err(error) = info.store(wc, self.server.ca_pem().as_bytes()) {
                tracing::warn!(error = in_words(error), "eccfg will have to be told how to reach the servers");
            }
        }
    }

    fn servers(&self) -> Vec<String> {
        self.server.client().servers().iter().map(ToString::to_string).collect()
    }

    /// Lets `eccfg` and plain git in the working copy find and trust the servers.
    fn make_known(&self, wc: &WorkingCopy) {
        let servers = self.servers();
        let subcluster = wc.mounts().first().map(|mount| mount.name.clone()).unwrap_or_default();
        let info = CopyInfo { servers, subcluster, node: Some(self.node.clone()), username: None };
        if let Err(error) = info.store(wc, self.server.ca_pem().as_bytes()) {
            tracing::warn!(error = in_words(error), "eccfg will have to be told how to reach the servers");
        }
        let ca = place::ca_file(wc);
        for mount in wc.mounts() {
            if let Err(error) = wc.set_remote(&mount.name, &mount.remote_url, Some(&ca)) {
                tracing::warn!(error = in_words(error), "plain git will have to be told what to trust");
            }
        }
    }
}

/// Never, where nothing is watched.
async fn changed(files: &mut Option<DirWatch>) {
    match files {
        Some(files) => files.changed().await,
        None => std::future::pending().await,
    }
}

/// The repository that every working copy shows below a directory of its name.
const GLOBAL: &str = "global";

/// When services were last updated.
#[derive(Debug, Default)]
struct Recent(BTreeMap<String, Instant>);

impl Recent {
    /// How long the most impatient of these services still has to be left alone.
    fn wait(&self, services: &[Service]) -> Option<Duration> {
        let now = Instant::now();
        let left = |service: &Service| {
            self.0.get(&service.name).map(|last| (*last + service.debounce).saturating_duration_since(now))
        };
        services.iter().filter_map(left).max().filter(|left| !left.is_zero())
    }

    fn note(&mut self, services: &[Service]) {
        let now = Instant::now();
        self.0.extend(services.iter().map(|service| (service.name.clone(), now)));
    }
}

/// An error with its causes, in one line.
fn in_words(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
