//! Catching up without the log: a snapshot names everything and holds no objects, so they are fetched from whoever has them.
//!
//! What always holds: a snapshot counts as installed only when the objects of all its refs are on this node's disk. They are fetched slice by
//! slice along the history of `main`, each slice a pack that is installed and synced: whatever interrupts it, what is here stays here, and
//! the next attempt asks only for the rest. The sender holds itself to a rate, so that a node that is far behind does not take the leader's
//! network and disk from the commits.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use repos::protocol::client::{FetchRequest, fetch_request, read_fetch_response};
use repos::protocol::upload_pack::{self, UploadLimits, WantPolicy};
use repos::protocol::{Advertised, Version};
use repos::{Oid, PackLimits, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::peer::{Bulk, Client, Method, Refusal, RefusalCode, Target};
use crate::state::{Need, RepoName, State};

/// Pieces between the network and the thread that reads or writes packs: a few, so that neither waits for the other at every piece.
const PIECES: usize = 8;
/// A piece of a pack.
const PIECE_BYTES: usize = 128 << 10;
/// What is offered as present. The tips of the branches are what counts; a repository with more of them gets a larger pack.
const MAX_HAVES: usize = 10_000;

/// The question of [`Method::OBJECTS`].
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    repo: String,
    wants: Vec<String>,
    haves: Vec<String>,
}

/// Fetches what a snapshot's refs need and this node lacks, from the first of these members that has it.
pub(super) async fn bring_objects(
    state: &Arc<State>,
    client: &Client,
    from: &[Target],
    snapshot: File,
) -> Result<(), String> {
    let needs = tokio::task::spawn_blocking(move || State::needs_of(&snapshot));
    let needs = needs.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    for need in needs {
        bring(state, client, from, need).await?;
    }
    Ok(())
}

/// Fetches what the refs of this node's own state need: after damage, or an install of an older build.
pub(super) async fn bring_missing(state: &Arc<State>, client: &Client, from: &[Target]) -> Result<(), String> {
    for (repo, tips) in state.missing_objects() {
        bring(state, client, from, Need { repo, slices: vec![tips] }).await?;
    }
    Ok(())
}

/// Fetches objects with all that they reach, counting on nothing that is here: packs that were set aside leave holes anywhere.
pub(super) async fn bring_again(
    state: &Arc<State>,
    client: &Client,
    from: &[Target],
    repo: &RepoName,
    wants: &[Oid],
) -> Result<(), String> {
    let store = state.view().repos.get(repo).map(|repo| repo.store.clone());
    let store = store.ok_or_else(|| format!("there is no repository {repo}"))?;
    fetch(client, from, repo, &store, wants, &[]).await
}

async fn bring(state: &Arc<State>, client: &Client, from: &[Target], need: Need) -> Result<(), String> {
    let known = state.view().repos.get(&need.repo).cloned();
    let store = match &known {
        Some(repo) => repo.store.clone(),
        None => {
            let (state, name) = (state.clone(), need.repo.clone());
            let made = tokio::task::spawn_blocking(move || state.make_store(&name));
            made.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?
        }
    };
    let mut tips: BTreeSet<Oid> = known.iter().flat_map(|repo| repo.refs.values().copied()).collect();
    let begin = Instant::now();
    let mut packs = 0;
    for slice in need.slices {
        let (slice, absent) = split(&store, slice).await?;
        tips.extend(slice);
        if absent.is_empty() {
            continue;
        }
        let haves = present(&store, &tips).await?;
        fetch(client, from, &need.repo, &store, &absent, &haves).await?;
        tips.extend(absent);
        packs += 1;
    }
    if packs > 0 {
        let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(repo = %need.repo, packs, took_ms, "fetched objects from other members");
    }
    Ok(())
}

/// Those that are here, and those that are not.
async fn split(store: &Store, ids: Vec<Oid>) -> Result<(Vec<Oid>, Vec<Oid>), String> {
    let store = store.clone();
    let split = tokio::task::spawn_blocking(move || {
        let reader = store.reader().map_err(|error| error.to_string())?;
        Ok(ids.into_iter().partition(|id| reader.contains(*id)))
    });
    split.await.map_err(|error| error.to_string())?
}

async fn present(store: &Store, tips: &BTreeSet<Oid>) -> Result<Vec<Oid>, String> {
    let (mut here, _) = split(store, tips.iter().copied().collect()).await?;
    here.truncate(MAX_HAVES);
    Ok(here)
}

async fn fetch(
    client: &Client,
    from: &[Target],
    repo: &RepoName,
    store: &Store,
    wants: &[Oid],
    haves: &[Oid],
) -> Result<(), String> {
    let mut why = "there is nobody to ask".to_owned();
    for target in from {
        match fetch_from(client, target, repo, store, wants, haves).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::info!(%repo, peer = target.node, error, "objects could not be fetched from this member");
                why = error;
            }
        }
    }
    Err(format!("objects of {repo} could not be fetched: {why}"))
}

async fn fetch_from(
    client: &Client,
    target: &Target,
    repo: &RepoName,
    store: &Store,
    wants: &[Oid],
    haves: &[Oid],
) -> Result<(), String> {
    let text = |ids: &[Oid]| ids.iter().map(ToString::to_string).collect();
    let ask = Ask { repo: repo.to_string(), wants: text(wants), haves: text(haves) };
    let head = serde_json::to_vec(&ask).map_err(|error| error.to_string())?;
    let mut stream = client.open(target, Method::OBJECTS, head.into()).await.map_err(|error| error.to_string())?;
    let (pieces, incoming) = mpsc::channel(PIECES);
    let store = store.clone();
    let taking = tokio::task::spawn_blocking(move || {
        let mut input = PieceReader { pieces: incoming, rest: Bytes::new() };
        read_fetch_response(&mut input, &store, &PackLimits::unlimited(), &mut |_| {}).map_err(chain)?;
        store.sync().map_err(chain)
    });
    let received = receive(&mut stream, pieces).await;
    let taken = taking.await.map_err(|error| error.to_string())?;
    // What the other end says is the better reason, where it said something.
    received.and(taken)
}

fn chain(error: impl std::error::Error) -> String {
    cluster::error::Chain(&error).to_string()
}

async fn receive(stream: &mut Bulk, pieces: mpsc::Sender<Bytes>) -> Result<(), String> {
    while let Some(piece) = stream.next().await.map_err(|error| error.to_string())? {
        if pieces.send(piece).await.is_err() {
            // The reader gave up and says why.
            break;
        }
    }
    Ok(())
}

/// Answers [`Method::OBJECTS`], at most at this rate.
pub(super) async fn serve_objects(
    state: &Arc<State>,
    head: Bytes,
    stream: &mut Bulk,
    bytes_per_s: u64,
) -> Result<(), Refusal> {
    let ask: Ask = serde_json::from_slice(&head).map_err(Refusal::bad)?;
    let ids = |texts: &[String]| texts.iter().map(|id| id.parse::<Oid>()).collect::<Result<Vec<_>, _>>();
    let (wants, haves) = (ids(&ask.wants).map_err(Refusal::bad)?, ids(&ask.haves).map_err(Refusal::bad)?);
    let name: RepoName = ask.repo.parse().map_err(Refusal::bad)?;
    let not_here = || Refusal::new(RefusalCode::NotNow, format!("{name} is not complete here"));
    let repo = state.view().repos.get(&name).cloned().ok_or_else(not_here)?;
    let (_, absent) = split(&repo.store, wants.clone()).await.map_err(Refusal::failed)?;
    if !absent.is_empty() {
        return Err(not_here());
    }
    let (pieces, mut outgoing) = mpsc::channel(PIECES);
    let giving = tokio::task::spawn_blocking(move || {
        let body = fetch_request(&FetchRequest { wants: &wants, haves: &haves, ..FetchRequest::default() });
        // A branch that was deleted since the snapshot is still wanted by it.
        let limits = UploadLimits {
            max_request_bytes: u64::MAX,
            max_wants: usize::MAX,
            max_haves: usize::MAX,
            max_objects: usize::MAX,
            max_visited_commits: usize::MAX,
            wants: WantPolicy::Any,
            ..UploadLimits::default()
        };
        let shown = Advertised { refs: &repo.refs, head: &repo.record.head_ref };
        let mut out = PieceWriter { pieces, buffer: BytesMut::new() };
        upload_pack::serve(&repo.store, shown, Version::V2, &mut body.as_slice(), &mut out, &limits).map_err(chain)?;
        out.flush().map_err(|error| error.to_string())
    });
    let mut pace = Pace { since: Instant::now(), sent_bytes: 0, bytes_per_s };
    while let Some(piece) = outgoing.recv().await {
        pace.wait(piece.len()).await;
        stream.send(piece).await.map_err(Refusal::failed)?;
    }
    giving.await.map_err(Refusal::failed)?.map_err(Refusal::failed)?;
    stream.finish().await.map_err(Refusal::failed)
}

/// Holds a sender to an average rate.
struct Pace {
    since: Instant,
    sent_bytes: u64,
    bytes_per_s: u64,
}

impl Pace {
    async fn wait(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
        let due = Duration::from_secs_f64(self.sent_bytes as f64 / self.bytes_per_s.max(1) as f64);
        if let Some(early) = due.checked_sub(self.since.elapsed()) {
            tokio::time::sleep(early).await;
        }
    }
}

/// Writes on a thread that may block what the network sends.
struct PieceWriter {
    pieces: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.pieces.blocking_send(piece).map_err(|_| io::Error::other("nobody takes it any more"))
    }
}

/// Reads on a thread that may block what the network brings.
struct PieceReader {
    pieces: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
