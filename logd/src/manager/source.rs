//! The logs of one node: a connection that is made again and again, and a stream for each log.
//!
//! A stream pulls a block while the one before is being written. It goes on from what it has handed to the writer, begins from what is committed, and
//! tells the node to forget only what is committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster::documents::schema::logd::MASTER;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::state::SourceKey;
use super::writer::{Work, WriterHandle};
use crate::wire::protocol::{Answer, BLOCK_BYTES, Place, Request};
use crate::wire::{Link, LinkError, Trust};

/// Blocks of [`BLOCK_BYTES`] that all streams together may hold, pulled and not yet written. Streams beyond it wait.
pub const MAX_BLOCKS: usize = 96;
/// What a stream without such a place may pull: enough for what comes while it waits.
const SMALL_BYTES: u32 = 64 << 10;
/// How long a pull waits for records.
const PULL_WAIT_MS: u32 = 10_000;
/// The same while the node is to be told of a commit.
const CHECK_WAIT_MS: u32 = 250;
/// How long a list waits for a change.
const LIST_WAIT_MS: u32 = 10_000;
/// How often a node is told what it may forget. Each time costs it two syncs.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Between attempts to reach a node.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);
/// Blocks of a stream that are being written while the next one is pulled: a round of the writer then has enough to make its syncs worth while.
const BLOCKS_UNDER_WAY: usize = 4;

/// A node to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `host:port` of its log service.
    pub address: String,
    /// The subscriber that the manager reads as there.
    pub subscriber: String,
}

/// What all nodes' tasks share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// This node.
    pub me: String,
    /// How it proves itself.
    pub trust: Trust,
    /// The writer.
    pub writer: WriterHandle,
    /// See [`MAX_BLOCKS`].
    pub blocks: Arc<Semaphore>,
}

/// Reads a node until `stop`.
pub async fn follow(node: Node, shared: Shared, stop: CancellationToken) {
    let mut pause = RETRY.start;
    let mut complaint = String::new();
    while !stop.is_cancelled() {
        let connecting = Link::connect(&shared.trust, &shared.me, &node.name, &node.address);
        let Some(connected) = stop.run_until_cancelled(connecting).await else { return };
        match connected {
            Ok(link) => {
                tracing::info!(node = node.name, "connected");
                complaint.clear();
                pause = RETRY.start;
                serve(&Arc::new(link), &node, &shared, &stop).await;
                if !stop.is_cancelled() {
                    tracing::info!(node = node.name, "the connection ended");
                }
            }
            Err(error) => {
                let words = cluster::error::Chain(&error).to_string();
                if words != complaint {
                    tracing::warn!(node = node.name, error = words, "its logs wait");
                    complaint = words;
                }
            }
        }
        let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        pause = (pause * 2).min(RETRY.end);
    }
}

/// The streams of one connection.
struct Streams {
    link: Arc<Link>,
    shared: Shared,
    /// By log: the subscriber that it is read as, and what ends it.
    open: BTreeMap<String, (String, CancellationToken)>,
    tasks: TaskTracker,
    last_stream: u32,
    ended: CancellationToken,
}

async fn serve(link: &Arc<Link>, node: &Node, shared: &Shared, stop: &CancellationToken) {
    let mut streams = Streams {
        link: Arc::clone(link),
        shared: shared.clone(),
        open: BTreeMap::new(),
        tasks: TaskTracker::new(),
        last_stream: 0,
        ended: stop.child_token(),
    };
    let mut known = 0;
    loop {
        let asked = link.ask(Request::List { known, wait_ms: LIST_WAIT_MS });
        let answer = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = link.ended() => break,
            answer = asked => answer,
        };
        match answer {
            Ok(Answer::Logs { known: now, logs }) => {
                known = now;
                streams.match_logs(node, &logs).await;
            }
            Ok(other) => {
                tracing::warn!(node = node.name, error = %link.unexpected(&other), "its logs wait");
                break;
            }
            Err(error) => {
                tracing::warn!(node = node.name, %error, "its logs wait");
                break;
            }
        }
    }
    streams.ended.cancel();
    streams.tasks.close();
    streams.tasks.wait().await;
}

impl Streams {
    /// Opens a stream for each log that has a subscriber for this manager, its own or else `master`, and ends those that have none any more.
    async fn match_logs(&mut self, node: &Node, logs: &[(String, Vec<String>)]) {
        let mut wanted = BTreeMap::new();
        for (log, subscribers) in logs {
            let names = [node.subscriber.as_str(), MASTER];
            let name = names.into_iter().find(|name| subscribers.iter().any(|one| one == name));
            wanted.extend(name.map(|name| (log.clone(), name.to_owned())));
        }
        self.open.retain(|log, (subscriber, end)| {
            let stays = wanted.get(log) == Some(subscriber) && !end.is_cancelled();
            if !stays {
                end.cancel();
            }
            stays
        });
        for (log, subscriber) in wanted {
            if self.open.contains_key(&log) {
                continue;
            }
            self.last_stream += 1;
            let end = self.ended.child_token();
            let stream = Stream {
                link: Arc::clone(&self.link),
                shared: self.shared.clone(),
                number: self.last_stream,
                source: SourceKey { node: node.name.clone(), log: log.clone() },
                subscriber: subscriber.clone(),
                end: end.clone(),
            };
            self.tasks.spawn(stream.run());
            self.open.insert(log, (subscriber, end));
        }
    }
}

struct Stream {
    link: Arc<Link>,
    shared: Shared,
    number: u32,
    source: SourceKey,
    subscriber: String,
    end: CancellationToken,
}

impl Stream {
    async fn run(self) {
        let mut complaint = String::new();
        while !self.end.is_cancelled() {
            let Some(result) = self.end.run_until_cancelled(self.read()).await else { break };
            match result {
                Ok(()) => {}
                Err(LinkError::Gone { .. }) => break,
                Err(error) => {
                    let words = error.to_string();
                    if words != complaint {
                        tracing::warn!(log = self.source.log, error = words, "a log waits");
                        complaint = words;
                    }
                }
            }
            let _ = self.end.run_until_cancelled(tokio::time::sleep(RETRY.start * 10)).await;
        }
        // The next stream of this log has another number; a connection that is gone has none.
        let _ = tokio::time::timeout(RETRY.end, self.link.ask(Request::Close { stream: self.number })).await;
    }

    /// Opens the stream and reads until something goes wrong.
    async fn read(&self) -> Result<(), LinkError> {
        let committed = self.shared.writer.places.borrow().get(&self.source).copied();
        let open = Request::Open {
            stream: self.number,
            log: self.source.log.clone(),
            subscriber: self.subscriber.clone(),
            from: committed,
        };
        let answer = self.link.ask(open).await?;
        let Answer::Opened { place, moved } = answer else { return Err(self.link.unexpected(&answer)) };
        if let Some(why) = &moved {
            tracing::error!(
                node = self.source.node,
                log = self.source.log,
                why,
                "the journal is another one: reading from where the subscriber stands"
            );
        }
        let mut jump = moved.is_some();
        let mut place = place;
        // What was committed before may not have reached the node.
        let told = if committed.is_some() { 0 } else { place.next };
        let mut checkpointed = (told, Instant::now());
        let mut under_way: Vec<oneshot::Receiver<()>> = Vec::new();
        let mut more = false;
        loop {
            if !settle(&mut under_way).await {
                return Ok(());
            }
            // Until the first block of another journal is committed, what is noted is of the one before.
            let committed = if jump { 0 } else { self.committed(place) };
            if committed > checkpointed.0 && checkpointed.1.elapsed() >= CHECKPOINT_EVERY {
                self.link.ask(Request::Checkpoint { stream: self.number, next: committed }).await?;
                checkpointed = (committed, Instant::now());
            }
            let permit = match more {
                true => Arc::clone(&self.shared.blocks).acquire_owned().await.ok(),
                false => None,
            };
            let (max_bytes, wait_ms) = match more {
                true => (BLOCK_BYTES, 0),
                // With something to tell the node, the wait is short.
                false if checkpointed.0 < place.next => (SMALL_BYTES, CHECK_WAIT_MS),
                false => (SMALL_BYTES, PULL_WAIT_MS),
            };
            let answer = self.link.ask(Request::Pull { stream: self.number, max_bytes, wait_ms }).await?;
            let Answer::Records(block) = answer else { return Err(self.link.unexpected(&answer)) };
            more = block.more;
            let to = Place { next: block.next, made_us: block.made_us, ..place };
            if block.records > 0 || to.next != place.next {
                let Some(receipt) = self.hand_in(block, place, jump, permit).await? else { return Ok(()) };
                place = to;
                if !std::mem::take(&mut jump) {
                    under_way.push(receipt);
                } else if receipt.await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// How far the writer has committed what this stream reads.
    fn committed(&self, place: Place) -> u64 {
        let places = self.shared.writer.places.borrow();
        places.get(&self.source).filter(|committed| committed.uuid == place.uuid).map_or(0, |committed| committed.next)
    }

    /// Gives a block to the writer; `None` when it is gone.
    async fn hand_in(
        &self,
        block: crate::wire::protocol::Block,
        from: Place,
        jump: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Option<oneshot::Receiver<()>>, LinkError> {
        for gap in &block.gaps {
            self.shared.writer.figures.missing_records.fetch_add(gap.records, Ordering::Relaxed);
            let SourceKey { node, log } = &self.source;
            tracing::error!(node, log, records = gap.records, what = gap.words, "lines are missing");
        }
        let refused = |message: String| LinkError::Refused { node: self.source.node.clone(), message };
        let to = Place { next: block.next, made_us: block.made_us, ..from };
        let unpacked = tokio::task::spawn_blocking(move || block.unpack()).await;
        let raw = unpacked.map_err(|error| refused(error.to_string()))?.map_err(|error| refused(error.to_string()))?;
        let (done, receipt) = oneshot::channel();
        let subcluster = self.link.subcluster().to_owned();
        let work = Work { source: self.source.clone(), subcluster, from, to, jump, raw, done, permit };
        Ok(self.shared.writer.work.send(work).await.is_ok().then_some(receipt))
    }
}

/// Waits while [`BLOCKS_UNDER_WAY`] are: the writer works on some while the next is pulled. False when a block was not written.
async fn settle(under_way: &mut Vec<oneshot::Receiver<()>>) -> bool {
    while under_way.len() >= BLOCKS_UNDER_WAY {
        if under_way.remove(0).await.is_err() {
            return false;
        }
    }
    let mut written = true;
    under_way.retain_mut(|receipt| match receipt.try_recv() {
        Ok(()) => false,
        Err(oneshot::error::TryRecvError::Empty) => true,
        Err(oneshot::error::TryRecvError::Closed) => {
            written = false;
            false
        }
    });
    written
}
