//! What all parts of the daemon share: counters, journal, store, settings. Every operation of the daemon is a method here or in a module
//! that extends it; HTTP, the control socket and the inputs only translate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use arc_swap::{ArcSwap, ArcSwapOption};
use cidr_engine::live::Limits;
use cidr_engine::{Address, Block, Owner, Stamp, Store, StoreOptions};
use cluster::control::Failure;
use cluster::error::Chain;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};

use crate::clock::Clock;
use crate::counting::{Counting, Finished, Now};
use crate::metrics::Meters;
use crate::outbox::Outbox;
use crate::peers::Peers;
use crate::settings::Settings;

/// Windows that wait for the disk. A full disk holds them up for an hour of minutes; then windows are lost, which is said and counted.
pub const FINISHED_QUEUE: usize = 64;

/// What a caller may use at most.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct QueryLimits {
    /// Queries that run at a time; the next ones wait two seconds and are then told to come back
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub max_queries: usize,
    /// Seconds that a query may take, the time of whoever reads its answer included
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub query_seconds: u64,
    /// Rows of an answer
    #[arg(long, value_name = "N", default_value_t = 20_000_000)]
    pub query_rows: u64,
    /// Memory of a query in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub query_memory_mib: usize,
}

/// The daemon.
pub struct Service {
    /// This node.
    pub node: String,
    /// Where its state is.
    pub data: PathBuf,
    /// What queries may use.
    pub limits: QueryLimits,
    /// Both clocks.
    pub clock: Clock,
    /// The journal of windows.
    pub outbox: Outbox,
    /// What is counted about ourselves.
    pub meters: Meters,
    /// Places for queries.
    pub query_places: Arc<Semaphore>,
    /// Other nodes.
    pub peers: Peers,
    /// Told when settings changed.
    pub reconfigured: Notify,
    counting: Mutex<Counting>,
    finished: Mutex<Option<mpsc::SyncSender<Finished>>>,
    /// Cuts whose windows are in the journal.
    written_cuts: AtomicU64,
    settings: ArcSwap<Settings>,
    store: ArcSwapOption<Store>,
}

/// What was counted lately for a block, over the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The sum.
    pub count: i64,
    /// What each node that answered counted.
    pub nodes: BTreeMap<String, i64>,
    /// Nodes that did not answer, with the reason: the sum lacks them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, String>,
}

impl Service {
    /// The daemon before its first configuration, and the receiver of its finished windows.
    pub fn new(
        node: String,
        data: PathBuf,
        limits: QueryLimits,
        outbox: Outbox,
        peers: Peers,
        meters: Meters,
    ) -> (Arc<Self>, mpsc::Receiver<Finished>) {
        let clock = Clock::start();
        let mut seed = [0; 8];
        // Without randomness whoever chooses addresses can choose collisions, and nothing worse.
        let _ = getrandom::fill(&mut seed);
        let counting = Counting::new(Limits::default(), u64::from_le_bytes(seed), 60, clock.now());
        let (sender, finished) = mpsc::sync_channel(FINISHED_QUEUE);
        let this = Self {
            node,
            data,
            limits,
            clock,
            outbox,
            meters,
            query_places: Arc::new(Semaphore::new(limits.max_queries.max(1))),
            peers,
            reconfigured: Notify::new(),
            counting: Mutex::new(counting),
            finished: Mutex::new(Some(sender)),
            written_cuts: AtomicU64::new(0),
            settings: ArcSwap::from_pointee(Settings::none()),
            store: ArcSwapOption::empty(),
        };
        (Arc::new(this), finished)
    }

    /// The configuration in use.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// The store, where this node is a CIDR server.
    pub fn store(&self) -> Option<Arc<Store>> {
        self.store.load_full()
    }

    /// The store, or a refusal that names those who have one.
    pub fn store_or_refusal(&self) -> Result<Arc<Store>, Failure> {
        self.store().ok_or_else(|| {
            let servers = self.settings().servers.join(", ");
            let hint =
                if servers.is_empty() { "no configuration was applied yet".into() } else { format!("ask {servers}") };
            Failure::new(format!("{} keeps no counts", self.node)).hint(hint).code("no-store")
        })
    }

    /// Uses a configuration, or says why not and goes on with the one before. Blocks for the disk.
    pub fn apply(&self, settings: Settings) -> Result<(), String> {
        if settings.servers.contains(&self.node) {
            self.open_store(settings.cidr.as_logger.base_dir.as_deref())?;
        } else if self.store.swap(None).is_some() {
            tracing::info!("no longer a CIDR server; what was kept stays on the disk");
        }
        self.outbox.set_servers(&settings.servers).map_err(|error| Chain(&error).to_string())?;
        self.peers.set(&settings.peers);
        self.counted(|counting, now| counting.configure(settings.interval_s(), settings.shapes(), now));
        self.settings.store(Arc::new(settings));
        self.reconfigured.notify_waiters();
        Ok(())
    }

    fn open_store(&self, base_dir: Option<&Path>) -> Result<(), String> {
        let dir = base_dir.map_or_else(|| self.data.join("windows"), Path::to_path_buf);
        if self.store().is_some_and(|store| store.dir() == dir) {
            return Ok(());
        }
        cluster::files::create_dirs(&dir, 0o755).map_err(|error| Chain(&error).to_string())?;
        let options = StoreOptions::owned_by(Owner::current("cidr", &self.node));
        let store = Store::open(&dir, options).map_err(|error| {
            let words = Chain(&error).to_string();
            match error {
                cidr_engine::Error::NoManifest { .. } => {
                    format!("{words}; cidr repair --dir {} makes one", dir.display())
                }
                _ => words,
            }
        })?;
        tracing::info!(dir = %dir.display(), "store of counts opened");
        self.store.store(Some(Arc::new(store)));
        Ok(())
    }

    fn counting(&self) -> MutexGuard<'_, Counting> {
        // A panic in the middle of counting leaves counters that are wrong by one event at most.
        self.counting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs something on the counters, and passes on the windows that ended meanwhile. Every event waits for it, on the threads that serve
    /// sockets and timers, too: nothing in there may sort. What copies the addresses of a window, or looks through them, does nothing else there.
    pub fn counted<T>(&self, run: impl FnOnce(&mut Counting, Now) -> T) -> T {
        let (result, finished) = {
            let mut counting = self.counting();
            let result = run(&mut counting, self.clock.now());
            (result, counting.take_finished())
        };
        for window in finished {
            self.pass_on(window);
        }
        result
    }

    fn pass_on(&self, window: Finished) {
        let sender = self.finished.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if sender.is_none_or(|sender| sender.try_send(window).is_err()) {
            self.meters.windows_lost.inc();
            tracing::error!("a window was lost: {FINISHED_QUEUE} others wait for the disk");
        }
    }

    /// How many cuts are durable: what was counted before one of them is in the journal.
    pub fn written_cuts(&self) -> u64 {
        self.written_cuts.load(Ordering::Acquire)
    }

    /// The windows of a cut are in the journal.
    pub fn cut_written(&self, cut: u64) {
        self.written_cuts.fetch_max(cut, Ordering::AcqRel);
    }

    /// Ends every window and then the line of windows: the last ones of this process.
    pub fn finish(&self) {
        self.counted(|counting, _| counting.end_all());
        *self.finished.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What this node counted for a block in the last `last_s` seconds. Takes as long as there are addresses.
    pub fn count_here(&self, series: &str, block: &Block, last_s: u64) -> Result<i64, Failure> {
        let asked = self.counted(|counting, now| counting.ask(series, block, last_s, now));
        let asked = asked.map_err(|error| Failure::of(&error).code("too-far-back"))?;
        Ok(asked.map(|question| question.answer()).unwrap_or_default())
    }

    /// The same on a thread that may take that long.
    pub async fn count_aside(self: &Arc<Self>, series: &str, block: &Block, last_s: u64) -> Result<i64, Failure> {
        let (this, series, block) = (self.clone(), series.to_owned(), *block);
        let counted = tokio::task::spawn_blocking(move || this.count_here(&series, &block, last_s)).await;
        counted.unwrap_or_else(|error| Err(Failure::of(&error)))
    }

    /// The same over the cluster: every node is asked at once.
    pub async fn count(self: &Arc<Self>, series: &str, block: &Block, last_s: u64) -> Result<Count, Failure> {
        let own = self.count_aside(series, block, last_s).await?;
        let (mut nodes, missing) = self.peers.count(series, block, last_s).await;
        nodes.insert(self.node.clone(), own);
        let count = nodes.values().copied().fold(0, i64::saturating_add);
        Ok(Count { count, nodes, missing })
    }

    /// Forgets an address here.
    pub fn remove_here(&self, series: &str, address: Address) {
        self.counted(|counting, now| counting.remove(series, address, now));
    }

    /// Forgets an address on every node; those that could not be told.
    pub async fn remove(&self, series: &str, address: Address) -> BTreeMap<String, String> {
        self.remove_here(series, address);
        self.peers.remove(series, address).await
    }

    /// The wall clock, which queries count back from.
    pub fn wall(&self) -> Stamp {
        self.clock.now().wall
    }
}
