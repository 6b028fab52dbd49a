//! How a daemon gets its configuration, and tells what became of it.
//!
//! ```no_run
//! # use cluster::{shutdown::Shutdown, subscription::{DaemonOptions, Wanted}, documents::schema::duravip::Duravip};
//! # async fn run(options: DaemonOptions) -> Result<(), Box<dyn std::error::Error>> {
//! let shutdown = Shutdown::on_signals()?;
//! let mut daemon = options.open("duravip", Wanted::documents(["duravip.toml", "cluster.toml"]), &shutdown).await?;
//! while let Some(snapshot) = daemon.subscription.next().await {
//!     match snapshot.load::<Duravip>() {
//!         Ok(settings) => { /* use them */ snapshot.applied().await }
//!         Err(error) => snapshot.refused(error).await,
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! Two sources, one behaviour: a directory that is watched ([`Subscription::conf_dir`]), or the cluster's servers
//! ([`Subscription::server`]). What always holds:
//! * A snapshot is whole and does not change while it is looked at.
//! * Only a change of what is wanted yields a snapshot. Another commit moves the version on, silently, and is reported as applied.
//! * What was refused is not offered again until it changes (or somebody sends SIGHUP). The configuration in use stays.
//! * The last configuration that was applied is on disk. A daemon that starts without a server, or with a configuration that it has to
//!   refuse, is offered that one.
//!
//! Left out on purpose: what to do with a configuration. The daemon reads a snapshot whole, then decides.

mod cache;
mod conf_dir;
mod content;
mod options;
mod report;
mod server;
mod snapshot;
mod wanted;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use content::{Content, Version};
pub use options::{Daemon, DaemonError, DaemonOptions};
pub use report::Reporter;
pub use snapshot::Snapshot;
pub use wanted::{Wanted, WantedError};

use self::cache::Cache;
use self::conf_dir::ConfDir;
use self::server::Server;
use self::snapshot::Shared;
use crate::api::ReportState;
use crate::documents::{MemoryFiles, SearchPath};
use crate::http_client::ApiClient;

/// A daemon that starts waits this long for a server before it takes the configuration it had.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// What both kinds of subscription need to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program, as reports name it.
    pub program: String,
    /// The node whose configuration is followed.
    pub node: String,
    /// The node's subcluster as its certificate says; `cluster.toml` decides where there is none.
    pub subcluster: Option<String>,
    /// A directory of the program's own, for the last good configuration.
    pub data: PathBuf,
    /// What the program reads.
    pub wanted: Wanted,
    /// Replaces the node's search path; reported as such.
    pub search_path: Option<SearchPath>,
    /// Changes when everything shall be read again (SIGHUP).
    pub reloads: watch::Receiver<u64>,
    /// Ends the subscription.
    pub stop: CancellationToken,
}

/// What a source has to say.
#[derive(Debug)]
enum News {
    /// The files, as of a version.
    Files { files: MemoryFiles, version: Version },
    /// The configuration at this version cannot even be read.
    Unusable { version: Version, why: String },
    /// Nothing to be had at the moment.
    Away { why: String },
}

#[derive(Debug)]
enum Source {
    ConfDir(ConfDir),
    Server(Box<Server>),
}

impl Source {
    /// Cancel safe.
    async fn next(&mut self) -> News {
        match self {
            Self::ConfDir(source) => source.next().await,
            Self::Server(source) => source.next().await,
        }
    }

    fn read_again(&mut self) {
        match self {
            Self::ConfDir(source) => source.read_again(),
            Self::Server(source) => source.read_again(),
        }
    }
}

/// A daemon's view of its configuration. Dropping it ends the watching; the cache stays.
#[derive(Debug)]
pub struct Subscription {
    source: Source,
    shared: Arc<Shared>,
    reloads: watch::Receiver<u64>,
    stop: CancellationToken,
    /// The configuration of the last run, until it was offered or something better was applied.
    cached: Option<Arc<Content>>,
    /// When to stop waiting for a better one; only while nothing was offered.
    patience: Option<Instant>,
    /// The last complaint, so that the same one is not logged again and again.
    complaint: String,
}

impl Subscription {
    /// Follows a working copy, or a directory laid out like one.
    pub fn conf_dir(dir: impl Into<PathBuf>, settings: Settings) -> Self {
        let source = ConfDir::new(dir.into(), &settings);
        Self::new(Source::ConfDir(source), settings, None)
    }

    /// Follows the node's target at the cluster's servers, as the node.
    pub fn server(client: ApiClient, settings: Settings) -> Self {
        let source = Server::new(client.clone(), &settings);
        Self::new(Source::Server(Box::new(source)), settings, Some(client))
    }

    fn new(source: Source, settings: Settings, client: Option<ApiClient>) -> Self {
        let (reloads, stop) = (settings.reloads.clone(), settings.stop.clone());
        let cache = Cache::new(&settings.data);
        let cached = cache.load(&settings).map(Arc::new);
        let shared = Arc::new(Shared::new(settings, cache, client));
        let patience = Some(Instant::now() + FIRST_ANSWER);
        Self { source, shared, reloads, stop, cached, patience, complaint: String::new() }
    }

    /// The next configuration to apply or refuse; `None` when the program stops. Until the verdict on one, do not ask for the next.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Snapshot> {
        loop {
            if let Some(fallback) = self.fallback() {
                return Some(fallback);
            }
            let patience = self.patience.filter(|_| self.cached.is_some());
            let out_of_patience = async {
                match patience {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            let news = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                Ok(()) = self.reloads.changed() => {
                    self.shared.forget_refusal();
                    self.complaint.clear();
                    self.source.read_again();
                    continue;
                }
                news = self.source.next() => news,
                () = out_of_patience => {
                    self.patience = None;
                    continue;
                }
            };
            if let Some(snapshot) = self.judge(news) {
                self.patience = None;
                return Some(snapshot);
            }
        }
    }

    /// The version in use: changes also when a commit touched nothing that is wanted.
    pub fn versions(&self) -> watch::Receiver<Option<Version>> {
        self.shared.versions()
    }

    /// Reports about the configuration in use, such as that it proved healthy.
    pub fn reporter(&self) -> Reporter {
        Reporter::new(self.shared.clone())
    }

    /// What the last run applied, once it is clear that nothing better can be had now.
    fn fallback(&mut self) -> Option<Snapshot> {
        if self.shared.is_running() {
            self.cached = None;
            return None;
        }
        let waited = self.patience.is_none() || self.shared.has_refused();
        let cached = self.cached.take_if(|_| waited)?;
        if self.shared.refused_reason(&cached).is_some() {
            return None;
        }
        tracing::warn!(version = %cached.version(), "using the last good configuration");
        Some(Snapshot::new(cached, self.shared.clone()))
    }

    fn judge(&mut self, news: News) -> Option<Snapshot> {
        match news {
            News::Files { files, version } => match Content::new(self.shared.settings(), files, version.clone()) {
                Ok(content) => self.offer(content),
                Err(error) => self.unusable(version, error.to_string()),
            },
            News::Unusable { version, why } => self.unusable(version, why),
            News::Away { why } => {
                self.complain(format!("the configuration cannot be had: {why}"));
                // Nothing to wait for: the last good one is better than none.
                self.patience = None;
                None
            }
        }
    }

    fn offer(&mut self, content: Content) -> Option<Snapshot> {
        self.complaint.clear();
        if self.shared.is_same_as_running(&content) {
            self.shared.advance(content);
            return None;
        }
        if let Some(reason) = self.shared.refused_reason(&content) {
            self.shared.report(content.version(), ReportState::Refused, reason);
            return None;
        }
        Some(Snapshot::new(Arc::new(content), self.shared.clone()))
    }

    fn unusable(&mut self, version: Version, why: String) -> Option<Snapshot> {
        self.complain(format!("the configuration is refused: {why}"));
        self.shared.refuse_unread(version, why);
        None
    }

    fn complain(&mut self, words: String) {
        if self.complaint != words {
            let program = &self.shared.settings().program;
            if self.shared.is_running() {
                tracing::warn!(program, "{words}; the one in use stays");
            } else if self.cached.is_some() {
                tracing::warn!(program, "{words}");
            } else {
                tracing::error!(program, "{words}; waiting for one that can be used");
            }
            self.complaint = words;
        }
    }
}
