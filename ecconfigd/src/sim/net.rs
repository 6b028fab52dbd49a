//! The network between nodes: delays, losses, duplicates and cuts, link by link and in each direction.
//!
//! A call is a request and an answer, each with a fate of its own. A duplicate arrives later than it might, so requests overtake each other;
//! a request that was under way when its target restarted reaches the new incarnation. Nothing here knows what the messages mean, but for
//! snapshots, whose files and objects have to be carried.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, AsyncRuntime as _, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2, Snapshot};
use openraft_rt_sim::SimRuntime;
use tokio::sync::oneshot;

use super::health::Packs;
use super::mutants::{self, Mutant};
use super::rng::Rng;
use super::runtime::{Scheduler, Scope, SimConfig, locked, now, sleep_us};
use crate::commit::{Proposer, Queue};
use crate::core::health::Part;
use crate::raft::{Raft, RaftNode, SnapshotMeta, Vote};
use crate::state::{Manifest, State};

/// A node that can be called.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) raft: Raft<SimConfig>,
    pub(super) state: Arc<State>,
    pub(super) scope: Arc<Scope>,
    pub(super) disk: Arc<super::disk::Disk>,
    pub(super) proposer: Proposer<SimConfig>,
    pub(super) queue: Queue,
}

/// How the network behaves at the moment.
#[derive(Debug, Clone)]
pub(super) struct Weather {
    pub(super) loss_permille: u64,
    pub(super) duplicate_permille: u64,
    pub(super) delay_us: (u64, u64),
}

/// The network. Clones share it.
#[derive(Clone)]
pub(super) struct Net {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    rng: Rng,
    peers: BTreeMap<u64, Peer>,
    /// Directed links that carry nothing.
    cut: BTreeSet<(u64, u64)>,
    weather: Weather,
    messages: u64,
    digest: u64,
}

/// Why a call has no answer.
pub(super) enum Lost {
    Refused,
    Timeout(Duration),
}

impl Net {
    pub(super) fn new(rng: Rng, weather: Weather) -> Net {
        let inner = Inner { rng, peers: BTreeMap::new(), cut: BTreeSet::new(), weather, messages: 0, digest: 0 };
        Net { inner: Arc::new(Mutex::new(inner)) }
    }

    pub(super) fn join(&self, id: u64, peer: Peer) {
        locked(&self.inner).peers.insert(id, peer);
    }

    pub(super) fn leave(&self, id: u64) {
        let gone = locked(&self.inner).peers.remove(&id);
        drop(gone);
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        locked(&self.inner).weather = weather;
    }

    /// Cuts exactly these links.
    pub(super) fn cut(&self, links: BTreeSet<(u64, u64)>) {
        locked(&self.inner).cut = links;
    }

    /// Messages so far and a digest of their times and fates.
    pub(super) fn digest(&self) -> (u64, u64) {
        let inner = locked(&self.inner);
        (inner.messages, inner.digest)
    }

    /// How long a message between these two takes; `None` if it is lost.
    fn fate(&self, from: u64, to: u64) -> Option<u64> {
        let mut inner = locked(&self.inner);
        inner.messages += 1;
        let (low, high) = inner.weather.delay_us;
        let lost_permille = inner.weather.loss_permille;
        let mut us = inner.rng.between(low, high);
        // One in fifty takes ten times as long.
        if inner.rng.chance(20) {
            us *= 10;
        }
        let lost = inner.rng.chance(lost_permille) || inner.cut.contains(&(from, to));
        let note = now().as_nanos() as u64 ^ (from << 56) ^ (to << 48) ^ u64::from(lost);
        inner.digest = (inner.digest.rotate_left(5) ^ note).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (!lost).then_some(us)
    }

    /// A delay for a client's message.
    pub(super) fn client_delay_us(&self) -> u64 {
        let mut inner = locked(&self.inner);
        let (low, high) = inner.weather.delay_us;
        inner.rng.between(low, high)
    }

    fn duplicated(&self) -> bool {
        let mut inner = locked(&self.inner);
        let permille = inner.weather.duplicate_permille;
        inner.rng.chance(permille)
    }

    fn peer(&self, id: u64) -> Option<Peer> {
        locked(&self.inner).peers.get(&id).cloned()
    }

    /// Calls a node: `work` runs there, and now and then a second time.
    pub(super) async fn call<T, W>(&self, link: (u64, u64), ttl: Duration, work: W) -> Result<T, Lost>
    where
        T: Send + 'static,
        W: FnOnce(Peer) -> BoxFuture<'static, Option<T>> + Clone + Send + 'static,
    {
        let copies = if self.duplicated() { 2 } else { 1 };
        self.call_with(copies, link, ttl, work).await
    }

    /// The same at most once, as over a connection.
    pub(super) async fn call_once<T, W>(&self, link: (u64, u64), ttl: Duration, work: W) -> Result<T, Lost>
    where
        T: Send + 'static,
        W: FnOnce(Peer) -> BoxFuture<'static, Option<T>> + Clone + Send + 'static,
    {
        self.call_with(1, link, ttl, work).await
    }

    async fn call_with<T, W>(&self, copies: usize, (from, to): (u64, u64), ttl: Duration, work: W) -> Result<T, Lost>
    where
        T: Send + 'static,
        W: FnOnce(Peer) -> BoxFuture<'static, Option<T>> + Clone + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let answer = Arc::new(Mutex::new(Some(answer)));
        for _ in 0..copies {
            let Some(us) = self.fate(from, to) else { continue };
            let (net, work, answer) = (self.clone(), work.clone(), answer.clone());
            // A message under way belongs to nobody: it arrives even if its sender crashes.
            drop(SimRuntime::spawn(async move {
                sleep_us(us).await;
                let Some(peer) = net.peer(to) else {
                    // Nobody listens: the sender is told.
                    let sender = locked(&answer).take();
                    drop(sender.map(|sender| sender.send(Err(Lost::Refused))));
                    return;
                };
                let scope = peer.scope.clone();
                scope.spawn(async move {
                    let Some(done) = work(peer).await else { return };
                    let Some(us) = net.fate(to, from) else { return };
                    // The answer, too, belongs to nobody while it is under way.
                    drop(SimRuntime::spawn(async move {
                        sleep_us(us).await;
                        let sender = locked(&answer).take();
                        drop(sender.map(|sender| sender.send(Ok(done))));
                    }));
                });
            }));
        }
        drop(answer);
        match Scheduler::timeout(ttl, answered).await {
            Ok(Ok(done)) => done,
            // Every copy is lost; nobody says so, the time just passes.
            Ok(Err(_)) => {
                Scheduler::sleep(ttl).await;
                Err(Lost::Timeout(ttl))
            }
            Err(_) => Err(Lost::Timeout(ttl)),
        }
    }
}

/// Makes connections for one node.
#[derive(Clone)]
pub(super) struct Links {
    pub(super) net: Net,
    pub(super) from: u64,
}

impl RaftNetworkFactory<SimConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &RaftNode) -> Link {
        Link { net: self.net.clone(), from: self.from, to: target }
    }
}

/// A connection from one node to another.
pub(super) struct Link {
    net: Net,
    from: u64,
    to: u64,
}

impl Link {
    fn error(&self, action: RPCTypes, lost: Lost) -> RPCError<SimConfig> {
        match lost {
            Lost::Refused => Unreachable::new(&AnyError::error("connection refused")).into(),
            Lost::Timeout(timeout) => Timeout { action, id: self.from, target: self.to, timeout }.into(),
        }
    }
}

impl RaftNetworkV2<SimConfig> for Link {
    type SnapshotData = Manifest;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<SimConfig>, RPCError<SimConfig>> {
        let work = move |peer: Peer| -> BoxFuture<'static, _> {
            Box::pin(async move {
                // Its state is being replaced.
                if !rpc.entries.is_empty() && peer.disk.out() == Some(Part::State) {
                    return None;
                }
                peer.raft.append_entries(rpc).await.ok()
            })
        };
        let done = self.net.call((self.from, self.to), option.hard_ttl(), work).await;
        match done {
            Err(_) if mutants::is_on(Mutant::AckBeforeQuorum) => Ok(AppendEntriesResponse::Success),
            done => done.map_err(|lost| self.error(RPCTypes::AppendEntries, lost)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<SimConfig>, RPCError<SimConfig>> {
        let work =
            move |peer: Peer| -> BoxFuture<'static, _> { Box::pin(async move { peer.raft.vote(rpc).await.ok() }) };
        let done = self.net.call((self.from, self.to), option.hard_ttl(), work).await;
        done.map_err(|lost| self.error(RPCTypes::Vote, lost))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<SimConfig>, RPCError<SimConfig>> {
        let work =
            move |peer: Peer| -> BoxFuture<'static, _> { Box::pin(async move { peer.raft.pre_vote(rpc).await.ok() }) };
        let done = self.net.call((self.from, self.to), option.hard_ttl(), work).await;
        done.map_err(|lost| self.error(RPCTypes::Vote, lost))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<SimConfig, Manifest>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<SimConfig>, StreamingError<SimConfig>> {
        let parcel = Arc::new(Parcel::pack(snapshot, self.net.peer(self.from).as_ref()));
        let work = move |peer: Peer| -> BoxFuture<'static, _> { Box::pin(receive(peer, vote, parcel)) };
        let done = self.net.call((self.from, self.to), option.hard_ttl() * 4, work).await;
        done.map_err(|lost| match lost {
            Lost::Refused => Unreachable::new(&AnyError::error("connection refused")).into(),
            Lost::Timeout(timeout) => {
                Timeout { action: RPCTypes::InstallSnapshot, id: self.from, target: self.to, timeout }.into()
            }
        })
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<SimConfig>, RPCError<SimConfig>> {
        let work = move |peer: Peer| -> BoxFuture<'static, _> {
            Box::pin(async move { peer.raft.handle_transfer_leader(req).await.ok() })
        };
        let done = self.net.call((self.from, self.to), option.hard_ttl(), work).await;
        done.map_err(|lost| self.error(RPCTypes::TransferLeader, lost))
    }
}

/// A snapshot as bytes, with the objects its refs need.
pub(super) struct Parcel {
    pub(super) meta: SnapshotMeta,
    manifest: Vec<u8>,
    packs: Packs,
}

impl Parcel {
    pub(super) fn pack(mut snapshot: openraft::alias::SnapshotOf<SimConfig, Manifest>, from: Option<&Peer>) -> Parcel {
        let mut manifest = Vec::new();
        snapshot.snapshot.file.read_to_end(&mut manifest).expect("the manifest can be read");
        Parcel { meta: snapshot.meta, manifest, packs: from.map(Parcel::packs).unwrap_or_default() }
    }

    /// All packs of a member.
    pub(super) fn packs(from: &Peer) -> Packs {
        let mut packs = Vec::new();
        for (name, repo) in from.state.view().repos.iter() {
            repo.store.write_held().expect("the simulated machine writes");
            for pack in repo.store.packs().expect("packs can be listed") {
                packs.push((name.clone(), std::fs::read(&pack.path).expect("a pack can be read")));
            }
        }
        packs
    }

    /// For good: what a snapshot names is there when it is installed.
    pub(super) fn install(packs: &Packs, peer: &Peer) -> Result<(), String> {
        for (name, pack) in packs {
            let known = peer.state.view().repos.get(name).map(|repo| repo.store.clone());
            let store = known.unwrap_or_else(|| peer.state.make_store(name).expect("a store can be made"));
            store.install_pack(pack).map_err(|error| format!("a pack of another node: {error}"))?;
            store.sync().expect("the simulated machine syncs");
            peer.disk.packs_synced(name);
        }
        Ok(())
    }

    /// Objects first.
    pub(super) fn unpack(&self, peer: &Peer) -> Result<Manifest, String> {
        Parcel::install(&self.packs, peer)?;
        let mut file = tempfile::tempfile_in(&peer.disk.dir).expect("a temporary file can be made");
        file.write_all(&self.manifest).expect("the file can be written");
        std::io::Seek::rewind(&mut file).expect("a file can be rewound");
        Ok(Manifest { file })
    }
}

async fn receive(peer: Peer, vote: Vote, parcel: Arc<Parcel>) -> Option<SnapshotResponse<SimConfig>> {
    let manifest = parcel.unpack(&peer).ok()?;
    // As the product does before it fetches objects: a damaged one is refused, and openraft never sees it.
    let file = manifest.file.try_clone().ok()?;
    State::needs_of(&file).ok()?;
    let snapshot = Snapshot { meta: parcel.meta.clone(), snapshot: manifest };
    peer.raft.install_full_snapshot(vote, snapshot).await.ok()
}
