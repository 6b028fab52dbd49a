//! Sinks: a node's logs into engines that are made for more than files, each under a subscriber of its own.
//!
//! A sink runs on every node and reads the node's own journals, so it grows with the cluster and needs no manager. Delivery is at least once: a
//! checkpoint follows the sink's confirmation, and what was not confirmed is sent again. Every record carries its journal and number as an id, by
//! which a sink that can (JetStream, within its window) drops what came before.
//!
//! What a sink is lies behind [`Outlet`]: something that takes records and at times confirms all it was given. An object store would gather
//! records until `confirm` and put them as one object; OTLP would export with every `put`.

mod aside;
mod connect;
mod feed;
mod nats;
mod nkey;
mod syslog;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use cluster::documents::schema::logd::{Sink as Settings, SinkUrl};
use cluster::identity::ReloadingIdentity;
use futures::future::BoxFuture;
use logd_journal::JournalError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::{Log, Logs};
use crate::path::Names;

/// How long a stop may take: a sink is not waited for, only what is being written to the journal's subscriber.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A record on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    /// Never the same for two records.
    id: String,
    /// Its number in the journal.
    sequence: u64,
    time_us: u64,
    payload: Vec<u8>,
}

/// A connection to a sink.
///
/// Any of the futures may be dropped half-way: the connection is then not used again, and what was not confirmed is sent on the next one.
trait Outlet: Send {
    /// Sends records, in order.
    fn put<'a>(&'a mut self, messages: &'a [Message]) -> BoxFuture<'a, Result<Put, SinkError>>;

    /// Ends well when the sink has everything that was put.
    fn confirm(&mut self) -> BoxFuture<'_, Result<(), SinkError>>;

    /// True when nothing more can be put, because the confirmation was the end of the connection.
    fn is_spent(&self) -> bool {
        false
    }

    /// How long a put may go unconfirmed. Where a confirmation is dear, this is what a failure sends twice.
    fn confirm_every(&self) -> Duration;

    /// Looks after a connection that has nothing to send; ends when it broke. Dropping it half-way does no harm.
    fn idle(&mut self) -> BoxFuture<'_, SinkError>;
}

/// What became of records that were put.
#[derive(Debug, PartialEq, Eq)]
enum Put {
    /// They were sent.
    All,
    /// Those before one that is longer than the sink ever takes, and why; what is behind it is to be put again.
    Before { place: usize, why: String },
}

/// Why a sink could not take records.
#[derive(Debug, thiserror::Error)]
enum SinkError {
    #[error("cannot reach {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("it said {0:?}")]
    Protocol(String),
    #[error("it refused a record: {0}")]
    Refused(String),
    #[error("a line is too long for it and waits: {0}")]
    TooLarge(String),
    #[error("cannot put a line aside that is too long for it, in {}", path.display())]
    Aside { path: PathBuf, source: std::io::Error },
    #[error("its credentials: {0}")]
    Credentials(&'static str),
    #[error("no confirmation in time")]
    Silent,
    #[error("TLS cannot be used: {0}")]
    Tls(String),
    #[error("cannot read {}", path.display())]
    Secret { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What sinks need to know of the node.
#[derive(Debug, Clone)]
pub struct Context {
    /// Node and subcluster.
    pub names: Names,
    /// Proves the node where a sink wants a certificate, and whose CA is trusted where the sink has none of its own.
    pub identity: Option<Arc<ReloadingIdentity>>,
    /// The daemon's state: lines that are too long for a sink are put aside there.
    pub data: PathBuf,
    /// Node-local files of each sink: `NAME` with credentials, `NAME.ca.pem`. Whoever may commit configuration does not thereby read secrets.
    pub secrets: PathBuf,
}

/// Figures of one log's way into one sink since it was configured.
#[derive(Debug, Default)]
pub struct Figures {
    /// Records that the sink has confirmed.
    pub confirmed: AtomicU64,
    /// Connections and batches that failed.
    pub failures: AtomicU64,
    /// Records that were too long for it and lie in a file of the node.
    pub aside: AtomicU64,
    /// True while records wait for a sink that cannot be reached or refuses them.
    pub waiting: AtomicBool,
}

impl Figures {
    /// What people should know, in few words; nothing while all is well.
    pub fn state(&self) -> Option<String> {
        match (self.waiting.load(Relaxed), self.aside.load(Relaxed)) {
            (false, 0) => None,
            (true, 0) => Some("waits".into()),
            (false, aside) => Some(format!("{aside} aside")),
            (true, aside) => Some(format!("waits, {aside} aside")),
        }
    }
}

/// Every sink's and log's figures.
pub type AllFigures = Vec<((String, String), Arc<Figures>)>;

/// Sink and log.
type Pair = (String, String);

struct Running {
    settings: Settings,
    figures: Arc<Figures>,
    stop: CancellationToken,
}

/// The sinks of this node.
#[derive(Default)]
pub struct Sinks {
    running: BTreeMap<Pair, Running>,
    tasks: TaskTracker,
}

impl Sinks {
    /// Sees to it that the journals keep their records for the sinks. Before anything else changes: it may fail.
    pub fn subscribe(wanted: &BTreeMap<String, Settings>, logs: &Logs) -> Result<(), JournalError> {
        pairs(wanted, logs)
            .into_iter()
            .try_for_each(|(_, (settings, log))| log.journal().ensure_subscriber(&settings.subscriber))
    }

    /// Takes a new configuration: sinks that stay as they are are not touched.
    pub fn configure(&mut self, wanted: &BTreeMap<String, Settings>, logs: &Logs, context: &Context) {
        let pairs = pairs(wanted, logs);
        self.running.retain(|pair, running| {
            let stays = pairs.get(pair).is_some_and(|(wanted, _)| *wanted == running.settings);
            if !stays {
                running.stop.cancel();
            }
            stays
        });
        for (pair, (settings, log)) in pairs {
            if self.running.contains_key(&pair) {
                continue;
            }
            let (stop, figures) = (CancellationToken::new(), Arc::new(Figures::default()));
            let feed = feed::Feed {
                sink: pair.0.clone(),
                settings: settings.clone(),
                log,
                context: context.clone(),
                figures: figures.clone(),
                stop: stop.clone(),
            };
            self.tasks.spawn(feed.run());
            self.running.insert(pair, Running { settings, figures, stop });
        }
    }

    /// Every sink's and log's figures.
    pub fn figures(&self) -> AllFigures {
        self.running.iter().map(|(pair, running)| (pair.clone(), running.figures.clone())).collect()
    }

    /// Ends all of them; what was not confirmed is sent by the next start.
    pub async fn stop(&mut self) {
        self.running.values().for_each(|running| running.stop.cancel());
        self.running.clear();
        self.tasks.close();
        let _ = tokio::time::timeout(STOP_PATIENCE, self.tasks.wait()).await;
    }
}

/// Which logs go where. A log that is no longer configured is still drained by whoever was subscribed.
fn pairs(wanted: &BTreeMap<String, Settings>, logs: &Logs) -> BTreeMap<Pair, (Settings, Arc<Log>)> {
    let mut pairs = BTreeMap::new();
    for (name, settings) in wanted {
        for log in logs.all().into_iter().filter(|log| settings.takes(log.name())) {
            pairs.insert((name.clone(), log.name().to_owned()), (settings.clone(), log));
        }
    }
    pairs
}

/// Connects to a sink.
async fn open(sink: &str, settings: &Settings, names: &Names, context: &Context) -> Result<Box<dyn Outlet>, SinkError> {
    let way = connect::Way { sink, secrets: &context.secrets, identity: context.identity.as_ref() };
    match &settings.url {
        SinkUrl::Nats(address) => Ok(Box::new(nats::Nats::connect(address, false, &way, settings, names).await?)),
        SinkUrl::NatsTls(address) => Ok(Box::new(nats::Nats::connect(address, true, &way, settings, names).await?)),
        SinkUrl::SyslogTls(address) => Ok(Box::new(syslog::Syslog::connect(address, &way, names).await?)),
    }
}

/// The usual place of sinks' node-local files.
pub fn usual_secrets() -> &'static Path {
    Path::new("/etc/eccluster/sinks")
}
