//! How openraft reaches another member: its calls over the peer protocol.
//!
//! Appends are pipelined: up to [`WINDOW`] are on their way, answers come back in order. Heartbeats take the lane for what is urgent, and
//! entries one of their own, so that 8 MiB of packs never stand in front of a lease. Whatever fails is "unreachable" to openraft, which then
//! waits a little; the words go to its log. `pre_vote` really asks: openraft's own default grants, which would undo what it is there for.
//!
//! A follower that is far behind gets one small append at a time, with a rest after each: disks and processors belong to the commits first,
//! as long as it gains on them.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered};
use futures::{FutureExt as _, Stream, StreamExt as _};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable as UnreachableError};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::{FAR_BEHIND, LogId, RaftNode, TypeConfig, Vote, wire};
use crate::peer::{Client, Lane, Method, PeerError, Target};
use crate::state::Manifest;

/// Appends on their way at a time …
const WINDOW: usize = 32;
/// … and their bytes: the follower's disk is the bottleneck, more would only wait in memory.
const WINDOW_BYTES: usize = 16 << 20;
/// After an append to a follower that is far behind nothing is sent for so many times as long as it took, so that most of the time is left to
/// others, …
const RESTS: u32 = 3;
/// … and at most for this long.
const LONGEST_REST: Duration = Duration::from_millis(100);
/// That holds while it gets entries so many times faster than the log grows: it shall not be behind for ever.
const GAINS: u64 = 4;
/// How long a follower may take to write entries to its disk. Heartbeats have openraft's own, short time.
const APPEND_WITHIN: Duration = Duration::from_secs(5);
/// A piece of a snapshot.
const PIECE_BYTES: usize = 256 << 10;

/// Makes connections to members. Without a client (a group of one that has no identity, as in tests) nobody can be reached.
#[derive(Clone, Default)]
pub struct Network {
    client: Option<Client>,
}

impl Network {
    /// Over this client.
    pub fn new(client: Option<Client>) -> Self {
        Self { client }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Member;

    async fn new_client(&mut self, target: u64, node: &RaftNode) -> Member {
        let target = Target { raft_id: target, node: node.name.clone(), address: node.address.clone() };
        Member { client: self.client.clone(), target, lane: Lane::Urgent }
    }
}

/// Another member, as one of openraft's tasks sees it.
pub struct Member {
    client: Option<Client>,
    target: Target,
    /// Urgent until the first entries are sent. Only a replication task ever sends any, and from then on order matters.
    lane: Lane,
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

fn unreachable(error: impl std::fmt::Display) -> RPCError<TypeConfig> {
    UnreachableError::from_string(error).into()
}

impl Member {
    fn client(&self) -> Rpc<Client> {
        self.client.clone().ok_or_else(|| unreachable(format!("{} cannot be reached: no identity", self.target.node)))
    }

    async fn urgent(&self, method: Method, body: Bytes, within: Duration) -> Rpc<Bytes> {
        let answer = self.client()?.call_on(Lane::Urgent, &self.target, method, body, within).await;
        answer.map_err(unreachable)
    }

    fn start_append(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Rpc<Started> {
        if !request.entries.is_empty() {
            self.lane = Lane::Log;
        }
        let (client, lane, target) = (self.client()?, self.lane, self.target.clone());
        let body = wire::append(&request);
        let bytes = body.len();
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let place = Place { sent: index(last), committed: index(request.leader_commit) };
        let far_behind = (place.sent + FAR_BEHIND < place.committed).then_some(place);
        let answer = async move {
            let answer =
                client.call_on(lane, &target, Method::APPEND, body, APPEND_WITHIN).await.map_err(unreachable)?;
            wire::read_appended(answer).map_err(unreachable)
        };
        Ok(Started { prev, last, bytes, far_behind, answer: answer.boxed() })
    }
}

/// How far a follower was sent entries, and the log had grown then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    sent: u64,
    committed: u64,
}

impl Place {
    /// How many times as long as an append took the rest after it is, for a follower that has come here from there.
    fn rests_since(self, from: Place) -> u32 {
        let (got, grown) = (self.sent.saturating_sub(from.sent), self.committed.saturating_sub(from.committed));
        match got {
            got if got >= GAINS * grown => RESTS,
            got if got >= 2 * grown => 1,
            _ => 0,
        }
    }
}

/// An append on its way.
struct Started {
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    /// The follower lacks much more than this, and where it is then.
    far_behind: Option<Place>,
    answer: BoxFuture<'static, Rpc<AppendEntriesResponse<TypeConfig>>>,
}

/// Appends on their way, in order.
struct Pipeline<'s, S> {
    member: &'s mut Member,
    input: S,
    input_ended: bool,
    /// Nothing is sent or answered after the first answer that is not a full success.
    over: bool,
    /// One at a time until the first success: there may be no connection yet, and the order on it must be ours.
    warm: bool,
    answers: FuturesOrdered<BoxFuture<'static, Rpc<AppendEntriesResponse<TypeConfig>>>>,
    /// Before, after and weight of each, in the order of `answers`.
    ranges: VecDeque<(Option<LogId>, Option<LogId>, usize)>,
    bytes: usize,
    /// Since when the one append to a follower that is far behind is on its way, and how long a rest it is worth.
    alone_since: Option<(Instant, u32)>,
    /// Where the follower was when it was first found far behind.
    fell_behind: Option<Place>,
    /// Nothing is sent before this.
    rest_until: Option<Instant>,
}

impl<S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin> Pipeline<'_, S> {
    fn has_room(&self) -> bool {
        let window = if self.warm && self.alone_since.is_none() { WINDOW } else { 1 };
        !self.input_ended
            && self.rest_until.is_none()
            && self.ranges.len() < window
            && (self.bytes < WINDOW_BYTES || self.ranges.is_empty())
    }

    async fn next(&mut self) -> Option<Rpc<StreamAppendResult<TypeConfig>>> {
        loop {
            if self.over || (self.input_ended && self.ranges.is_empty()) {
                return None;
            }
            tokio::select! {
                biased;
                Some(answer) = self.answers.next() => return Some(self.take(answer)),
                () = rest(self.rest_until) => self.rest_until = None,
                request = self.input.next(), if self.has_room() => match request {
                    None => self.input_ended = true,
                    Some(request) => {
                        if let Err(error) = self.start(request) {
                            self.over = true;
                            return Some(Err(error));
                        }
                    }
                },
            }
        }
    }

    fn start(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Rpc<()> {
        let mut started = self.member.start_append(request)?;
        self.fell_behind = started.far_behind.map(|now| self.fell_behind.unwrap_or(now));
        let rests = started.far_behind.zip(self.fell_behind).map(|(now, then)| now.rests_since(then));
        self.alone_since = rests.map(|rests| (Instant::now(), rests));
        // Polled at once, so that it stands in the connection's queue before the next one.
        let answer = match (&mut started.answer).now_or_never() {
            Some(ready) => futures::future::ready(ready).boxed(),
            None => started.answer,
        };
        self.answers.push_back(answer);
        self.ranges.push_back((started.prev, started.last, started.bytes));
        self.bytes += started.bytes;
        Ok(())
    }

    fn take(&mut self, answer: Rpc<AppendEntriesResponse<TypeConfig>>) -> Rpc<StreamAppendResult<TypeConfig>> {
        let (prev, last, bytes) = self.ranges.pop_front().expect("every answer has its range");
        self.bytes -= bytes;
        if let Some((since, rests)) = self.alone_since {
            self.rest_until = Some(Instant::now() + (since.elapsed() * rests).min(LONGEST_REST));
        }
        let answer = answer.inspect_err(|_| self.over = true)?;
        let whole = match &answer {
            AppendEntriesResponse::Success => true,
            AppendEntriesResponse::PartialSuccess(upto) => *upto == last,
            _ => false,
        };
        self.over = !whole;
        self.warm |= whole;
        // Nothing before the first entry cannot be in conflict.
        if matches!(answer, AppendEntriesResponse::Conflict) && prev.is_none() {
            return Err(unreachable("it finds a conflict before the first entry"));
        }
        Ok(answer.into_stream_result(prev, last))
    }
}

/// Until then; for ever without a time.
async fn rest(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl RaftNetworkV2<TypeConfig> for Member {
    type SnapshotData = Manifest;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        self.start_append(rpc)?.answer.await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let pipeline = Pipeline {
            member: self,
            input,
            input_ended: false,
            over: false,
            warm: false,
            answers: FuturesOrdered::new(),
            ranges: VecDeque::new(),
            bytes: 0,
            alone_since: None,
            fell_behind: None,
            rest_until: None,
        };
        let answers = futures::stream::unfold(pipeline, |mut pipeline| async move {
            let answer = pipeline.next().await?;
            Some((answer, pipeline))
        });
        async move { Ok(answers.boxed()) }.boxed()
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let answer = self.urgent(Method::VOTE, wire::vote(&rpc), option.hard_ttl()).await?;
        wire::read_voted(answer).map_err(unreachable)
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let answer = self.urgent(Method::PRE_VOTE, wire::vote(&rpc), option.hard_ttl()).await?;
        wire::read_voted(answer).map_err(unreachable)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, Manifest>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let client = self.client()?;
        tokio::select! {
            sent = send_snapshot(&client, &self.target, vote, snapshot) => {
                let vote = sent.map_err(UnreachableError::from_string)?;
                Ok(SnapshotResponse::new(vote))
            }
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        // The successor waits until its log is on its disk.
        let within = option.hard_ttl().max(Duration::from_secs(1));
        let answer = self.urgent(Method::TRANSFER_LEADER, wire::transfer(&req), within).await?;
        serde_json::from_slice(&answer).map_err(unreachable)
    }

    /// A member that is back shall be found soon; a connection that is refused costs next to nothing.
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(150))))
    }
}

/// Sends a snapshot and waits until it is installed there, with all objects.
async fn send_snapshot(
    client: &Client,
    target: &Target,
    vote: Vote,
    snapshot: openraft::alias::SnapshotOf<TypeConfig, Manifest>,
) -> Result<Vote, PeerError> {
    let head = wire::snapshot_head(&vote, &snapshot.meta);
    let mut stream = client.open(target, Method::SNAPSHOT, head).await?;
    let broken = |error: std::io::Error| PeerError::Unreachable { peer: target.node.clone(), why: error.to_string() };
    let mut file = tokio::fs::File::from_std(snapshot.snapshot.file);
    loop {
        let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
        if file.read_buf(&mut piece).await.map_err(broken)? == 0 {
            break;
        }
        stream.send(piece.freeze()).await?;
    }
    stream.finish().await?;
    // Pieces before the last say that it is still at work.
    let mut last = None;
    while let Some(piece) = stream.next().await? {
        last = Some(piece);
    }
    let lost = |why: String| PeerError::Lost { peer: target.node.clone(), why };
    let last = last.ok_or_else(|| lost("it did not say how it stands".into()))?;
    wire::read_only_vote(last).map_err(|error| lost(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_gain_on_the_log_gets_no_rests() {
        let from = Place { sent: 100, committed: 10_000 };
        let rests = |sent, committed| Place { sent, committed }.rests_since(from);
        assert_eq!(rests(100, 10_000), RESTS);
        assert_eq!(rests(1_100, 10_250), RESTS);
        assert_eq!(rests(1_100, 10_251), 1);
        assert_eq!(rests(1_100, 10_501), 0);
    }
}
