//! The node's side: records for managers, one reader per subscriber, and what commands ask.
//!
//! A stream is bound to its connection; when that ends, the subscriber is free. A manager that comes back takes its own stream over from a connection
//! whose end was not noticed; another node is refused as long as the first shows signs of life.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use cluster::documents::schema::logd::{Logd, MASTER};
use logd_journal::{Item, JournalError, Position, Reader, Uuid};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::protocol::{self, Answer, BLOCK_BYTES, BlockBuilder, LogStatus, Place, Request, SubscriberStatus, VERSION};
use super::trust::{Proved, Trust};
use crate::http::{self, Http};
use crate::mount::{self, Glimpse, Seen};
use crate::node::{Log, Logs};
use crate::path::now_us;
use crate::sink::AllFigures;

/// Managers and commands that may be connected at once; a cluster has a handful of managers.
const MAX_CONNECTIONS: usize = 256;
/// Streams of one connection: a node has some tens of logs.
const MAX_STREAMS: usize = 4096;
/// Answers that wait to be sent. Streams wait when the other side does not read: at most this many blocks are held.
const ANSWERS: usize = 4;
/// Blocks of one connection that are made or wait to be sent, [`BLOCK_BYTES`] each at most: the next one is ready when one is out. Streams beyond
/// it wait, so that a manager that reads slowly costs a node 1 MiB, however many logs are behind.
const BLOCKS_PER_CONNECTION: usize = 2;
/// Blocks that are being made at once for everybody: that is work for a processor and half a dozen buffers.
const BLOCKS_AT_ONCE: usize = 2;
/// Requests that wait for their stream. A manager has two under way.
const STREAM_REQUESTS: usize = 4;
/// A connection that says nothing for this long is dead; a manager's pulls and lists come more often.
const SILENCE: Duration = Duration::from_secs(60);
/// The time for handshake and greeting.
const GREETING: Duration = Duration::from_secs(10);
/// A reader that shows no life for this long loses its subscriber to another node.
const LEASE: Duration = Duration::from_secs(30);
/// The longest that a pull or list waits, whatever it asks.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// What the service serves.
#[derive(Debug)]
pub struct Service {
    node: String,
    subcluster: String,
    logs: Arc<Logs>,
    conf: ArcSwap<Logd>,
    /// What `logd logs` says of sinks beside their names.
    sinks: ArcSwap<AllFigures>,
    trust: Trust,
    leases: Mutex<HashMap<(String, String), Lease>>,
    /// For those who speak HTTP instead; set once the daemon has it.
    http: OnceLock<Http>,
    /// See [`BLOCKS_AT_ONCE`].
    making: Semaphore,
    /// What blocks are made with, while nobody does.
    builders: Mutex<Vec<BlockBuilder>>,
}

/// Who reads as a subscriber.
#[derive(Debug, Clone)]
struct Lease {
    node: String,
    /// Ends the stream that holds it.
    lost: CancellationToken,
    seen: Instant,
}

impl Service {
    /// A service of the node's logs.
    pub fn new(node: &str, subcluster: &str, logs: Arc<Logs>, trust: Trust) -> Arc<Self> {
        let conf = ArcSwap::from_pointee(Logd::default());
        Arc::new(Self {
            node: node.into(),
            subcluster: subcluster.into(),
            logs,
            conf,
            sinks: ArcSwap::default(),
            trust,
            leases: Mutex::default(),
            http: OnceLock::new(),
            making: Semaphore::new(BLOCKS_AT_ONCE),
            builders: Mutex::default(),
        })
    }

    /// Takes a new configuration, which says who the managers are, and how its sinks fare.
    pub fn configure(&self, conf: &Logd, sinks: AllFigures) {
        self.conf.store(Arc::new(conf.clone()));
        self.sinks.store(Arc::new(sinks));
    }

    /// Serves reading over HTTP as well.
    pub fn serve_http(&self, http: Http) {
        // Set before anybody can connect, and once.
        let _ = self.http.set(http);
    }

    /// True for a node that aggregates.
    pub(crate) fn is_manager(&self, node: &str) -> bool {
        self.conf.load().managers.contains_key(node)
    }

    /// Serves until `stop`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tasks = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!(%from, "too many connections: one is refused");
                continue;
            };
            let acceptor = match self.trust.acceptor() {
                Ok(acceptor) => acceptor,
                Err(error) => {
                    tracing::error!(error = %cluster::error::Chain(&error), "a connection is refused");
                    continue;
                }
            };
            let (service, stop) = (Arc::clone(&self), stop.clone());
            tasks.spawn(async move {
                let served = service.connection(stream, acceptor, &stop);
                if let Err(why) = served.await {
                    tracing::debug!(%from, why, "a connection ended");
                }
                drop(place);
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        keep_alive(&stream);
        let handshake = tokio::time::timeout(GREETING, acceptor.accept(stream)).await;
        let mut stream = handshake.map_err(|_| "no handshake in time")?.map_err(|error| error.to_string())?;
        if stream.get_ref().1.alpn_protocol() == Some(http::PROTOCOL) {
            let peer = self.trust.proved(stream.get_ref().1);
            if let Some(http) = self.http.get() {
                http.serve(stream, peer, stop).await;
            }
            return Ok(());
        }
        let proved = self.trust.proved(stream.get_ref().1).ok_or("it has no certificate of this cluster")?;
        let greeting = tokio::time::timeout(GREETING, greeting(&mut stream)).await;
        let (number, node) = greeting.map_err(|_| "no greeting in time")??;
        let caller = match proved {
            Proved::Node { node: certified, .. } if certified != node => {
                return Err(format!("{certified} calls itself {node}"));
            }
            proved => Caller { node, proved },
        };
        tracing::debug!(node = caller.node, "connected");
        let (reader, writer) = tokio::io::split(stream);
        let (answers, queue) = mpsc::channel::<Frame>(ANSWERS);
        let welcome =
            Answer::Welcome { version: VERSION, node: self.node.clone(), subcluster: self.subcluster.clone() };
        let ended = stop.child_token();
        let writing = tokio::spawn(write(writer, queue, ended.clone()));
        let mut connection = Connection {
            service: self,
            caller,
            answers,
            blocks: Arc::new(Semaphore::new(BLOCKS_PER_CONNECTION)),
            streams: HashMap::new(),
            ended: ended.clone(),
            tasks: TaskTracker::new(),
        };
        connection.answer(number, &welcome).await;
        connection.read(reader).await;
        ended.cancel();
        let Connection { tasks, streams, answers, .. } = connection;
        drop((streams, answers));
        tasks.close();
        tasks.wait().await;
        let _ = writing.await;
        Ok(())
    }

    /// True when the node may read this log as this subscriber.
    fn may_read(&self, caller: &Caller, subscriber: &str) -> bool {
        let conf = self.conf.load();
        let Some(manager) = conf.managers.get(&caller.node) else { return false };
        let special = manager.nodes.get(&self.node);
        let own = special.and_then(|special| special.subscriber.as_ref()).unwrap_or(&manager.subscriber);
        special.is_none_or(|special| special.pull) && (own == subscriber || subscriber == MASTER)
    }

    /// True when the node may change subscribers.
    fn may_change(&self, caller: &Caller) -> bool {
        let is_manager = self.conf.load().managers.contains_key(&caller.node);
        let trusted = matches!(caller.proved, Proved::Node { voter: true, .. } | Proved::Member);
        is_manager || trusted || caller.node == self.node
    }

    /// Makes a stream the reader of a subscriber, or says who is.
    fn take_lease(&self, log: &str, subscriber: &str, node: &str, lost: &CancellationToken) -> Result<(), String> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (log.to_owned(), subscriber.to_owned());
        if let Some(held) = leases.get(&key) {
            if held.node != node && !held.lost.is_cancelled() && held.seen.elapsed() < LEASE {
                return Err(format!("{} reads {log} as {subscriber}; one subscriber has one reader", held.node));
            }
            held.lost.cancel();
        }
        leases.insert(key, Lease { node: node.into(), lost: lost.clone(), seen: Instant::now() });
        Ok(())
    }

    fn renew_lease(&self, log: &str, subscriber: &str) {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lease) = leases.get_mut(&(log.to_owned(), subscriber.to_owned())) {
            lease.seen = Instant::now();
        }
    }

    fn reader_of(&self, log: &str, subscriber: &str) -> Option<String> {
        if let Some(sink) = self.sink_of(log, subscriber) {
            let sinks = self.sinks.load();
            let figures = sinks.iter().find(|((of, to), _)| *of == sink && to == log);
            let state = figures.and_then(|(_, figures)| figures.state());
            return Some(state.map_or_else(|| format!("sink {sink}"), |state| format!("sink {sink} ({state})")));
        }
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = leases.get(&(log.to_owned(), subscriber.to_owned()))?;
        (!lease.lost.is_cancelled() && lease.seen.elapsed() < LEASE).then(|| lease.node.clone())
    }

    /// The sink that a log goes to under this subscriber.
    fn sink_of(&self, log: &str, subscriber: &str) -> Option<String> {
        let conf = self.conf.load();
        let mut sinks = conf.sinks.iter();
        let found = sinks.find(|(_, sink)| sink.subscriber == subscriber && sink.takes(log));
        found.map(|(name, _)| name.clone())
    }

    fn builder(&self) -> BlockBuilder {
        self.builders.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put_back(&self, builder: BlockBuilder) {
        self.builders.lock().unwrap_or_else(PoisonError::into_inner).push(builder);
    }

    /// What the node's journals hold and who is behind; reads the disk.
    pub fn status(&self) -> Result<Vec<LogStatus>, JournalError> {
        self.logs.all().iter().map(|log| self.status_of(log)).collect()
    }

    fn status_of(&self, log: &Log) -> Result<LogStatus, JournalError> {
        use std::sync::atomic::Ordering::Relaxed;
        let status = log.journal().status()?;
        let now = now_us();
        let subscribers = status.subscribers.iter().map(|lag| SubscriberStatus {
            name: lag.subscriber.name.clone(),
            next: lag.subscriber.next,
            records: lag.records,
            bytes: lag.bytes,
            seconds: lag.oldest_us.map_or(0, |oldest| now.saturating_sub(oldest) / 1_000_000),
            dropped: lag.subscriber.dropped_records,
            reader: self.reader_of(log.name(), &lag.subscriber.name),
        });
        Ok(LogStatus {
            log: log.name().into(),
            configured: log.settings().is_some(),
            bytes: status.bytes(),
            first: status.first,
            next: status.next,
            cut_lines: log.counters.cut_lines.load(Relaxed),
            full: log.counters.full.load(Relaxed),
            blocked: log.counters.blocked.load(Relaxed),
            max_backlog: log.settings().map_or(0, |settings| settings.max_backlog.bytes()),
            subscribers: subscribers.collect(),
        })
    }

    /// Adds or removes a subscriber; answers how many logs it changed.
    pub fn change_subscriber(&self, change: &Change) -> Result<u32, String> {
        let mut changed = 0;
        let (name, named) = match change {
            Change::Add { subscriber, logs, .. } | Change::Remove { subscriber, logs } => (subscriber, logs),
        };
        let all = self.logs.all();
        if let Some(missing) = named.iter().find(|name| !all.iter().any(|log| log.name() == *name)) {
            return Err(format!("{} has no log {missing}", self.node));
        }
        for log in all.iter().filter(|log| named.is_empty() || named.iter().any(|name| name == log.name())) {
            let journal = log.journal();
            let result = match change {
                Change::Add { at_end: true, .. } => journal.subscribe_at_end(name).map(drop),
                Change::Add { .. } => journal.subscribe(name).map(drop),
                Change::Remove { .. } => {
                    let wanted = log.settings().is_some_and(|settings| settings.subscribers.contains(name));
                    if wanted {
                        return Err(format!("logd.toml still names {name} as a subscriber of {}", log.name()));
                    }
                    if let Some(sink) = self.sink_of(log.name(), name) {
                        return Err(format!("logd.toml still names {name} as the subscriber of the sink {sink}"));
                    }
                    journal.unsubscribe(name).map(drop)
                }
            };
            match result {
                Ok(()) => changed += 1,
                Err(JournalError::SubscriberExists { .. } | JournalError::NoSubscriber { .. }) => {}
                Err(error) => return Err(cluster::error::Chain(&error).to_string()),
            }
        }
        if changed > 0 {
            self.logs.changed();
        }
        Ok(changed)
    }
}

/// What can be done with a subscriber.
#[derive(Debug, Clone)]
pub enum Change {
    /// See [`Request::Subscribe`].
    Add {
        /// Its name.
        subscriber: String,
        /// The logs.
        logs: Vec<String>,
        /// From now on.
        at_end: bool,
    },
    /// See [`Request::Unsubscribe`].
    Remove {
        /// Its name.
        subscriber: String,
        /// The logs.
        logs: Vec<String>,
    },
}

fn keep_alive(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    // A manager whose machine vanished is noticed within half a minute, also when nothing is to be sent.
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &10);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &5);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &4);
}

/// The first request: its number, and who calls. Another version is told so.
async fn greeting(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(u32, String), String> {
    let first = protocol::read::<Request>(stream).await.map_err(|error| error.to_string())?;
    let Some((number, Request::Hello { version, node })) = first else { return Err("no greeting".into()) };
    if version == VERSION {
        return Ok((number, node));
    }
    let message = protocol::other_version(version);
    let refused = protocol::encode(number, &Answer::Refused { message: message.clone() });
    let refused = refused.map_err(|error| error.to_string())?;
    stream.write_all(&refused).await.map_err(|error| error.to_string())?;
    Err(message)
}

async fn write(
    mut writer: impl tokio::io::AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Frame>,
    ended: CancellationToken,
) {
    let work = async {
        while let Some(Frame { bytes, place }) = queue.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
            drop((bytes, place));
            if queue.is_empty() && writer.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = ended.cancelled() => {}
    }
    ended.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), writer.shutdown()).await;
}

/// An answer, with the place among the connection's blocks that it takes until it is sent.
struct Frame {
    bytes: Vec<u8>,
    place: Option<OwnedSemaphorePermit>,
}

struct Caller {
    node: String,
    proved: Proved,
}

struct Connection {
    service: Arc<Service>,
    caller: Caller,
    answers: mpsc::Sender<Frame>,
    /// See [`BLOCKS_PER_CONNECTION`].
    blocks: Arc<Semaphore>,
    streams: HashMap<u32, mpsc::Sender<(u32, Request)>>,
    ended: CancellationToken,
    tasks: TaskTracker,
}

async fn answer(answers: &mpsc::Sender<Frame>, number: u32, message: &Answer) {
    answer_in(answers, number, message, None).await;
}

async fn answer_in(answers: &mpsc::Sender<Frame>, number: u32, message: &Answer, place: Option<OwnedSemaphorePermit>) {
    match protocol::encode(number, message) {
        // The connection has ended otherwise.
        Ok(bytes) => drop(answers.send(Frame { bytes, place }).await),
        Err(error) => tracing::error!(%error, "an answer cannot be sent"),
    }
}

fn refused(message: impl Into<String>) -> Answer {
    Answer::Refused { message: message.into() }
}

impl Connection {
    async fn answer(&self, number: u32, message: &Answer) {
        answer(&self.answers, number, message).await;
    }

    async fn read(&mut self, mut reader: impl tokio::io::AsyncRead + Unpin) {
        loop {
            let read = tokio::time::timeout(SILENCE, protocol::read::<Request>(&mut reader));
            match self.ended.run_until_cancelled(read).await {
                Some(Ok(Ok(Some((number, request))))) => self.handle(number, request).await,
                Some(Ok(Err(error))) => return tracing::debug!(%error, node = self.caller.node, "a connection ended"),
                _ => return,
            }
        }
    }

    async fn handle(&mut self, number: u32, request: Request) {
        match request {
            Request::Hello { .. } => self.answer(number, &refused("greeted already")).await,
            Request::List { known, wait_ms } => self.list(number, known, wait_ms),
            Request::Open { stream, log, subscriber, from } => {
                let opened = self.open(stream, &log, &subscriber, from).await;
                self.answer(number, &opened.unwrap_or_else(refused)).await;
            }
            Request::Pull { stream, .. } | Request::Checkpoint { stream, .. } => {
                let sent = match self.streams.get(&stream) {
                    Some(queue) => queue.try_send((number, request)).is_ok(),
                    None => false,
                };
                if !sent {
                    self.answer(number, &refused("the stream is not open")).await;
                }
            }
            Request::Close { stream } => {
                self.streams.remove(&stream);
                self.answer(number, &Answer::Done { changed: 0 }).await;
            }
            Request::Status => {
                let service = Arc::clone(&self.service);
                self.blocking(number, move || match service.status() {
                    Ok(status) => Answer::Status(status),
                    Err(error) => refused(cluster::error::Chain(&error).to_string()),
                });
            }
            Request::Subscribe { subscriber, logs, at_end } => {
                self.change(number, Change::Add { subscriber, logs, at_end }).await;
            }
            Request::Glimpse { path } => self.blocking(number, move || match mount::glimpse(path.as_ref()) {
                Ok(Glimpse { seen, content }) => Answer::Glimpsed { held: seen == Seen::Held, content },
                Err(error) => refused(format!("{path}: {error}")),
            }),
            Request::Unsubscribe { subscriber, logs } => self.change(number, Change::Remove { subscriber, logs }).await,
        }
    }

    async fn change(&self, number: u32, change: Change) {
        if !self.service.may_change(&self.caller) {
            let message = format!("{} is neither a manager nor a voter", self.caller.node);
            return self.answer(number, &refused(message)).await;
        }
        tracing::info!(node = self.caller.node, ?change, "subscribers change");
        let service = Arc::clone(&self.service);
        self.blocking(number, move || match service.change_subscriber(&change) {
            Ok(changed) => Answer::Done { changed },
            Err(message) => refused(message),
        });
    }

    /// Answers with what a function that reads the disk says.
    fn blocking(&self, number: u32, work: impl FnOnce() -> Answer + Send + 'static) {
        let answers = self.answers.clone();
        self.tasks.spawn(async move {
            let done = tokio::task::spawn_blocking(work).await;
            answer(&answers, number, &done.unwrap_or_else(|_| refused("an error inside logd"))).await;
        });
    }

    fn list(&self, number: u32, known: u64, wait_ms: u32) {
        let (answers, logs, ended) = (self.answers.clone(), Arc::clone(&self.service.logs), self.ended.clone());
        self.tasks.spawn(async move {
            let mut changes = logs.changes();
            let wait = Duration::from_millis(wait_ms.into()).min(LONGEST_WAIT);
            let changed = tokio::time::timeout(wait, changes.wait_for(|now| *now != known));
            let _ = ended.run_until_cancelled(changed).await;
            let known = *changes.borrow();
            let listing = tokio::task::spawn_blocking(move || {
                let named = logs.all().into_iter().map(|log| {
                    let subscribers = log.journal().subscribers()?;
                    Ok((log.name().to_owned(), subscribers.into_iter().map(|one| one.name).collect()))
                });
                named.collect::<Result<Vec<_>, JournalError>>()
            });
            let message = match listing.await {
                Ok(Ok(logs)) => Answer::Logs { known, logs },
                Ok(Err(error)) => refused(cluster::error::Chain(&error).to_string()),
                Err(_) => refused("an error inside logd"),
            };
            answer(&answers, number, &message).await;
        });
    }

    async fn open(&mut self, stream: u32, log: &str, subscriber: &str, from: Option<Place>) -> Result<Answer, String> {
        if !self.service.may_read(&self.caller, subscriber) {
            return Err(format!("logd.toml does not let {} read {log} as {subscriber} here", self.caller.node));
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err("too many streams".into());
        }
        let found = self.service.logs.get(log).ok_or_else(|| format!("there is no log {log}"))?;
        let lost = self.ended.child_token();
        let (of, name) = (Arc::clone(&found), subscriber.to_owned());
        let started = tokio::task::spawn_blocking(move || start(&of, &name, from)).await;
        let (position, moved) = started.map_err(|_| "an error inside logd")?.map_err(|error| error.to_string())?;
        self.service.take_lease(log, subscriber, &self.caller.node, &lost)?;
        let (queue, requests) = mpsc::channel(STREAM_REQUESTS);
        self.streams.insert(stream, queue);
        let reader = found.journal().reader(position.next);
        let served = Stream {
            service: Arc::clone(&self.service),
            log: found,
            subscriber: subscriber.into(),
            reader: Some(reader),
            lost,
            answers: self.answers.clone(),
            blocks: self.blocks.clone(),
        };
        self.tasks.spawn(served.serve(requests));
        let made_us = from.filter(|_| moved.is_none()).map_or(0, |from| from.made_us);
        Ok(Answer::Opened { place: Place { uuid: position.uuid.0, next: position.next, made_us }, moved })
    }
}

/// Where a stream begins, and why that is not where the manager stood. Reads the disk.
fn start(log: &Log, subscriber: &str, from: Option<Place>) -> Result<(Position, Option<String>), JournalError> {
    let journal = log.journal();
    let subscribers = journal.subscribers()?;
    let Some(found) = subscribers.iter().find(|one| one.name == subscriber) else {
        return Err(JournalError::NoSubscriber { path: log.dir().into(), name: subscriber.into() });
    };
    let own = Position { uuid: journal.uuid(), next: found.next.max(1) };
    let Some(from) = from else { return Ok((own, None)) };
    let wanted = Position { uuid: Uuid(from.uuid), next: from.next };
    match journal.reader_at(wanted) {
        Ok(_) => {
            let made_us = journal.made_us_before(from.next)?;
            let other = from.made_us != 0 && made_us.is_some_and(|made_us| made_us != from.made_us);
            let words = || format!("record {} is another one: an older copy was put here", from.next - 1);
            Ok(if other { (own, Some(words())) } else { (wanted, None) })
        }
        Err(JournalError::Position { what, .. }) => Ok((own, Some(what))),
        Err(error) => Err(error),
    }
}

struct Stream {
    service: Arc<Service>,
    log: Arc<Log>,
    subscriber: String,
    /// Away while it is being read.
    reader: Option<Reader>,
    lost: CancellationToken,
    answers: mpsc::Sender<Frame>,
    blocks: Arc<Semaphore>,
}

impl Stream {
    async fn serve(mut self, mut requests: mpsc::Receiver<(u32, Request)>) {
        loop {
            let next = self.lost.run_until_cancelled(requests.recv()).await;
            let Some(Some((number, request))) = next else { break };
            self.service.renew_lease(self.log.name(), &self.subscriber);
            let (message, place) = match request {
                Request::Pull { max_bytes, wait_ms, .. } => self.pull(max_bytes, wait_ms).await,
                Request::Checkpoint { next, .. } => (self.checkpoint(next).await, None),
                _ => (refused("not for a stream"), None),
            };
            answer_in(&self.answers, number, &message, place).await;
        }
        self.lost.cancel();
        // Whoever still asks is told.
        requests.close();
        while let Ok((number, _)) = requests.try_recv() {
            answer(&self.answers, number, &refused("another connection reads as this subscriber now")).await;
        }
    }

    async fn pull(&mut self, max_bytes: u32, wait_ms: u32) -> (Answer, Option<OwnedSemaphorePermit>) {
        let Some(reader) = self.reader.take() else { return (refused("the stream is broken"), None) };
        let next = reader.position().next;
        let mut synced = self.log.synced();
        let wait = Duration::from_millis(wait_ms.into()).min(LONGEST_WAIT);
        let arrival = tokio::time::timeout(wait, synced.wait_for(|synced| *synced > next));
        let _ = self.lost.run_until_cancelled(arrival).await;
        let place = self.lost.run_until_cancelled(self.blocks.clone().acquire_owned()).await;
        let making = self.lost.run_until_cancelled(self.service.making.acquire()).await;
        if self.lost.is_cancelled() {
            return (refused("another connection reads as this subscriber now"), None);
        }
        let journal = Arc::clone(self.log.journal());
        let max_bytes = max_bytes.min(BLOCK_BYTES) as usize;
        let service = Arc::clone(&self.service);
        let filled = tokio::task::spawn_blocking(move || {
            let mut reader = reader;
            let mut builder = service.builder();
            let block = fill(&mut builder, &mut reader, max_bytes).map(|()| {
                let next = reader.position().next;
                let made_us = journal.made_us_before(next).ok().flatten().unwrap_or(0);
                builder.finish(next, made_us, journal.synced() > next)
            });
            if block.is_ok() {
                service.put_back(builder);
            }
            (reader, block)
        });
        let filled = filled.await;
        drop(making);
        let message = match filled {
            Ok((reader, Ok(block))) => {
                self.reader = Some(reader);
                Answer::Records(block)
            }
            Ok((_, Err(error))) => refused(cluster::error::Chain(&error).to_string()),
            Err(_) => refused("an error inside logd"),
        };
        (message, place.and_then(Result::ok))
    }

    async fn checkpoint(&self, next: u64) -> Answer {
        let (log, subscriber) = (Arc::clone(&self.log), self.subscriber.clone());
        let done = tokio::task::spawn_blocking(move || log.journal().checkpoint(&subscriber, next).map(drop)).await;
        match done {
            Ok(Ok(())) => Answer::Done { changed: 1 },
            Ok(Err(error)) => refused(cluster::error::Chain(&error).to_string()),
            Err(_) => refused("an error inside logd"),
        }
    }
}

/// Records up to a size; one more than fits, so that a long one gets through.
fn fill(builder: &mut BlockBuilder, reader: &mut Reader, max_bytes: usize) -> Result<(), JournalError> {
    while builder.bytes() < max_bytes {
        match reader.next_item()? {
            Some(Item::Record(record)) => builder.push(record.time_us, record.payload),
            Some(Item::Gap(gap)) => builder.push_gap(gap.to - gap.from, gap.to_string()),
            None => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn another_version_is_told_so() {
        let (mut here, mut there) = tokio::io::duplex(4096);
        let hello = |version| protocol::encode(7, &Request::Hello { version, node: "n1".into() }).unwrap();
        there.write_all(&hello(VERSION)).await.unwrap();
        assert_eq!(greeting(&mut here).await.unwrap(), (7, "n1".into()));
        there.write_all(&hello(9)).await.unwrap();
        let refused = greeting(&mut here).await.unwrap_err();
        assert!(refused.contains("version 2") && refused.contains("speaks 9"), "{refused}");
        let (number, answer) = protocol::read::<Answer>(&mut there).await.unwrap().unwrap();
        assert!(number == 7 && matches!(answer, Answer::Refused { message } if message == refused));
    }
}
