//! Where lines come from.
//!
//! Every log has a unix socket of its own for `logd send` and for services that want acknowledgements; `input` in `logd.toml` adds another source.
//! What each promises until a line is in the journal is in docs/logs.md; from the journal on, every line is written exactly once.

mod fifo;
mod file;
mod journald;
pub mod lines;
mod listen;
mod syslog;
mod syslog_net;
pub mod unix;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cluster::documents::schema::logd::{Input, Log as Settings};
use cluster::identity::ReloadingIdentity;
use logd_journal::Batch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::node::Log;
use crate::path::{Names, now_us, render_now};

/// What inputs need to know of the node.
#[derive(Debug, Clone)]
pub struct Context {
    /// The daemon's state.
    pub data: PathBuf,
    /// Where the logs' own sockets are.
    pub sockets: PathBuf,
    /// Node and subcluster.
    pub names: Names,
    /// For syslog over TLS.
    pub identity: Option<Arc<ReloadingIdentity>>,
}

/// The inputs of a log.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    /// Takes nothing more, and waits until what was taken is on disk.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What every input works with.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    pub(crate) log: Arc<Log>,
    pub(crate) max_line_bytes: usize,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// Starts what feeds a log. An input that cannot start (a port in use) says so and tries again.
pub fn start(log: &Arc<Log>, settings: &Settings, context: &Context) -> Running {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let max_line_bytes = usize::try_from(settings.max_line.bytes()).unwrap_or(usize::MAX);
    let feed = Feed { log: Arc::clone(log), max_line_bytes, stop: stop.clone(), tasks: tasks.clone() };
    let names = Names { log: log.name().into(), ..context.names.clone() };
    let own = context.sockets.join(log.name());
    let path = |pattern| render_now(pattern, &names);
    // One lock of clients for both sockets of the log.
    let clients = unix::Clients::default();
    match &settings.input {
        None => {}
        Some(Input::Unix(pattern)) if path(pattern) == own => {}
        Some(Input::Unix(pattern)) => unix::start(&feed, path(pattern), clients.clone()),
        Some(Input::File(pattern)) => file::start(&feed, path(pattern)),
        Some(Input::Fifo(pattern)) => fifo::start(&feed, path(pattern)),
        Some(Input::SyslogUdp(address)) => syslog_net::start_udp(&feed, *address),
        Some(Input::SyslogTcp(address)) => syslog_net::start_tcp(&feed, *address, None),
        Some(Input::SyslogTls(address)) => syslog_net::start_tls(&feed, *address, context.identity.clone()),
        Some(Input::SyslogUnix(pattern)) => syslog_net::start_unix(&feed, path(pattern), &names.node),
        Some(Input::Journald) => journald::start(&feed),
    }
    unix::start(&feed, own, clients);
    Running { stop, tasks }
}

impl Feed {
    /// Adds a line; one that a journal cannot hold cannot get past the limit of `max_line`.
    pub(crate) fn push(&self, batch: &mut Batch, time_us: u64, line: &[u8]) {
        if let Err(error) = batch.push(time_us, line) {
            tracing::error!(log = self.log.name(), %error, "a line is lost");
        }
    }

    /// Counts lines that were cut, and says so.
    pub(crate) fn count_cut(&self, cut: u64) {
        if cut > 0 && self.log.counters.cut_lines.fetch_add(cut, Ordering::Relaxed) == 0 {
            tracing::warn!(log = self.log.name(), "lines longer than max_line are cut; each says so at its end");
        }
    }

    /// Runs something that is to be waited for before the log can be closed.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }
}

/// Lines of one piece of input as a batch.
pub(crate) fn batch_of(feed: &Feed, lines: &mut lines::Lines, bytes: &[u8]) -> Batch {
    let (mut batch, now) = (Batch::new(), now_us());
    // Lines of the usual 200 bytes become records an eighth larger.
    batch.reserve(bytes.len() + bytes.len() / 8);
    let found = lines.feed(bytes, |line| feed.push(&mut batch, now, line));
    feed.count_cut(found.cut);
    batch
}
