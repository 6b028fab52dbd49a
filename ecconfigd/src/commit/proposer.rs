//! Putting operations into the log.

use std::sync::Arc;

use bytes::Bytes;
use openraft::errors::{ClientWriteError, RaftError};
use repos::Store;

use super::CHUNK_BYTES;
use crate::error::{Error, Result};
use crate::raft::command::{Op, Outcome, UploadId};
use crate::raft::{Applied, Group, Proposal, Raft, RaftNode, TypeConfig};
use crate::state::State;

/// How often a chunk is sent whose answer is lost each time.
const CHUNK_ATTEMPTS: u32 = 5;

/// Proposes entries with the leader's clocks.
#[derive(Clone)]
pub(crate) struct Proposer<C: Group = TypeConfig> {
    pub(crate) raft: Raft<C>,
    pub(crate) state: Arc<State>,
}

impl<C: Group> Proposer<C> {
    /// The wall clock, which only people read.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.state.outside().wall_ms()
    }

    /// Proposes operations with a given time, for entries whose objects carry it too.
    pub(crate) async fn propose_at(&self, time_ms: u64, ops: Vec<Op>, attachments: Vec<Bytes>) -> Result<Vec<Outcome>> {
        let expected = ops.len();
        let proposal = Proposal { clock_ms: self.state.view().clock_now_ms(), time_ms, ops, attachments };
        let Applied(outcomes) = match self.raft.client_write(proposal.encode()).await {
            Ok(response) => response.data,
            Err(error) => return Err(unavailable(error)),
        };
        if outcomes.len() == expected {
            Ok(outcomes)
        } else {
            Err(Error::Internal(format!("{} outcomes for {expected} operations", outcomes.len())))
        }
    }
}

impl<C: Group> Propose for Proposer<C> {
    fn state(&self) -> &State {
        &self.state
    }

    async fn propose(&self, ops: Vec<Op>, attachments: Vec<Bytes>) -> Result<Vec<Outcome>> {
        self.propose_at(self.wall_ms(), ops, attachments).await
    }
}

/// Whoever can put operations into the log: the leader itself, or a node that hands them to it.
pub(crate) trait Propose: Sync {
    /// The state of this node.
    fn state(&self) -> &State;

    /// Proposes operations as one entry and answers what became of them, after they are applied here.
    fn propose(&self, ops: Vec<Op>, attachments: Vec<Bytes>) -> impl Future<Output = Result<Vec<Outcome>>> + Send;

    /// Proposes one operation.
    fn one(&self, op: Op) -> impl Future<Output = Result<Outcome>> + Send {
        async move {
            let mut outcomes = self.propose(vec![op], Vec::new()).await?;
            outcomes.pop().ok_or_else(|| Error::Internal("no outcome".into()))
        }
    }

    /// Waits until this node has applied all that was decided, so that it can tell whether something was. An error: it cannot.
    fn settle(&self) -> impl Future<Output = Result<()>> + Send {
        async { Err(Error::Unavailable("nobody else can be asked".into())) }
    }

    /// Brings a pack into the log in chunks, one entry after the other, so that other entries pass in between and memory holds one chunk.
    /// A chunk whose answer is lost, because the leader died, is looked for and sent again.
    fn upload(&self, mut next: impl ChunkSource) -> impl Future<Output = Result<UploadId>> + Send {
        async move {
            let upload = UploadId(self.state().outside().random().map_err(Error::internal)?);
            let mut offset = 0;
            loop {
                let chunk = next.chunk(offset, CHUNK_BYTES).await?;
                if chunk.is_empty() {
                    return Ok(upload);
                }
                let length = chunk.len() as u64;
                if let Err(error) = self.chunk(upload, offset, chunk).await {
                    tracing::warn!("a large pack was not taken: {error}");
                    self.drop_upload(upload).await;
                    return Err(error);
                }
                offset += length;
            }
        }
    }

    /// One chunk of an upload.
    fn chunk(&self, upload: UploadId, offset: u64, chunk: Bytes) -> impl Future<Output = Result<()>> + Send {
        async move {
            let end = offset + chunk.len() as u64;
            for attempt in 1.. {
                let op = Op::Chunk { upload, offset, attachment: 0 };
                let error = match self.propose(vec![op], vec![chunk.clone()]).await {
                    Ok(outcomes) => match outcomes.as_slice() {
                        [Outcome::Done] => return Ok(()),
                        [Outcome::Refused(_)] => Error::Overloaded { queue: "the list of uploads".into() },
                        other => return Err(Error::Internal(format!("a chunk was answered {other:?}"))),
                    },
                    Err(error @ Error::Unavailable(_)) if attempt < CHUNK_ATTEMPTS => {
                        if self.settle().await.is_err() {
                            return Err(error);
                        }
                        error
                    }
                    Err(error) => return Err(error),
                };
                // It may have come although nobody said so; one that came before is refused the second time.
                let so_far = self.state().upload_bytes(upload).map_err(Error::internal)?;
                match error {
                    _ if so_far == end => return Ok(()),
                    Error::Unavailable(_) if so_far == offset => {}
                    error => return Err(error),
                }
            }
            unreachable!("the last attempt ends it")
        }
    }

    /// Gives an upload up. If that fails, it expires.
    fn drop_upload(&self, upload: UploadId) -> impl Future<Output = ()> + Send {
        async move {
            if let Err(error) = self.one(Op::DropUpload { upload }).await {
                tracing::debug!("upload {upload} is left to expire: {error}");
            }
        }
    }
}

/// Where the chunks of an upload come from.
pub(crate) trait ChunkSource: Send {
    /// The bytes at this offset, at most so many; empty at the end.
    fn chunk(&mut self, offset: u64, bytes: usize) -> impl Future<Output = Result<Bytes>> + Send;
}

impl ChunkSource for Bytes {
    async fn chunk(&mut self, offset: u64, bytes: usize) -> Result<Bytes> {
        let start = usize::try_from(offset).map_err(Error::internal)?.min(self.len());
        Ok(self.slice(start..(start + bytes).min(self.len())))
    }
}

impl ChunkSource for tokio::fs::File {
    async fn chunk(&mut self, _offset: u64, bytes: usize) -> Result<Bytes> {
        use tokio::io::AsyncReadExt as _;
        let mut chunk = bytes::BytesMut::with_capacity(bytes);
        while chunk.len() < bytes && self.read_buf(&mut chunk).await.map_err(Error::internal)? > 0 {
            // A buffer that is full would grow; the loop's condition ends it first.
        }
        chunk.truncate(bytes);
        Ok(chunk.freeze())
    }
}

fn unavailable<C: Group>(error: RaftError<C, ClientWriteError<C>>) -> Error {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            Error::Unavailable(match forward.leader_node {
                Some(RaftNode { name, .. }) => format!("this node does not lead, {name} does"),
                None => "there is no leader at the moment".into(),
            })
        }
        RaftError::APIError(error) => Error::internal(error),
        RaftError::Fatal(error) => Error::Unavailable(format!("this node has stopped: {error}")),
    }
}

/// The store of a repository that is about to be created: an empty one does no harm if it is not.
pub(super) fn store_of(state: &State, repo: &crate::state::RepoName) -> Result<Store> {
    state.make_store(repo).map_err(Error::internal)
}
