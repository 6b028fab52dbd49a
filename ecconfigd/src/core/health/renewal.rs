//! Replacing the whole state by a snapshot of the leader's, as a node gets that is far behind.
//!
//! The snapshot must be newer than all that this node has, or Raft would not install it. So this node takes no entries from the moment it is
//! out for its state (see `peers.rs`), and the leader writes one of its own where nothing else does: that the leader can, is what the
//! majority that took this node out is good for.

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::Snapshot;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::Core;
use crate::commit::Propose as _;
use crate::core::{catchup, peers};
use crate::peer::{Bulk, Method, Refusal, RefusalCode};
use crate::raft::command::Op;
use crate::raft::wire;
use crate::state::Manifest;

/// A piece of the snapshot.
const PIECE_BYTES: usize = 256 << 10;
/// Entries that the leader writes at most until it is where the snapshot shall be.
const MAX_TICKS: usize = 8;

/// The question of [`Method::FRESH_SNAPSHOT`].
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    /// The entry that must be in the snapshot.
    min_index: u64,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Fetches and installs. An error says why not; what is here is as before then.
pub(super) async fn renew(core: &Core) -> Result<(), String> {
    let inner = &core.inner;
    let alone = "there is nobody to take it from. A restart makes the database again from its snapshot and log; where they are damaged, too, \
                 restore the data directory from a backup";
    let client = inner.client.as_ref().ok_or(alone)?;
    let from = core.other_members();
    if from.is_empty() {
        return Err(alone.into());
    }
    let metrics = inner.proposer.raft.metrics().borrow_watched().clone();
    let leader = metrics.current_leader.filter(|leader| *leader != inner.raft_id).ok_or("no other node leads")?;
    let node = metrics.membership_config.membership().get_node(&leader).cloned().ok_or("the leader is not known")?;
    let ask = Ask { min_index: metrics.last_log_index.unwrap_or(0) + 1 };
    let head = serde_json::to_vec(&ask).map_err(text)?;
    let target = peers::target(leader, &node);
    let mut stream = client.open(&target, Method::FRESH_SNAPSHOT, head.into()).await.map_err(text)?;
    let described = stream.next().await.map_err(text)?.ok_or("the leader sent nothing")?;
    let (vote, meta) = wire::read_snapshot_head(described).map_err(text)?;
    let state = &inner.proposer.state;
    let file = receive(&inner.options.data, &mut stream).await?;
    catchup::bring_objects(state, client, &from, file.try_clone().map_err(text)?).await?;
    state.renew_with_next_snapshot(true);
    let snapshot = Snapshot { meta, snapshot: Manifest { file } };
    let installed = inner.proposer.raft.install_full_snapshot(vote, snapshot).await;
    let not_taken = state.waits_for_renewal();
    state.renew_with_next_snapshot(false);
    installed.map_err(text)?;
    if not_taken { Err("the log went on in the meantime".into()) } else { Ok(()) }
}

/// Into a file without a name: whatever happens, nothing is left of it.
async fn receive(data: &std::path::Path, stream: &mut Bulk) -> Result<std::fs::File, String> {
    let mut file = tokio::fs::File::from_std(tempfile::tempfile_in(data).map_err(text)?);
    while let Some(piece) = stream.next().await.map_err(text)? {
        file.write_all(&piece).await.map_err(text)?;
    }
    file.flush().await.map_err(text)?;
    file.rewind().await.map_err(text)?;
    Ok(file.into_std().await)
}

/// Answers [`Method::FRESH_SNAPSHOT`].
pub(in crate::core) async fn serve(core: &Core, head: Bytes, stream: &mut Bulk) -> Result<(), Refusal> {
    let ask: Ask = serde_json::from_slice(&head).map_err(Refusal::bad)?;
    let not_now = |words: String| Refusal::new(RefusalCode::NotNow, words);
    let proposer = &core.inner.proposer;
    if let Some(why) = core.out() {
        return Err(not_now(why));
    }
    for _ in 0..MAX_TICKS {
        if proposer.state.view().applied_index() >= ask.min_index {
            break;
        }
        proposer.one(Op::Tick).await.map_err(not_now_because)?;
    }
    let vote = proposer.raft.metrics().borrow_watched().vote;
    if !proposer.raft.is_leader() || proposer.state.view().applied_index() < ask.min_index {
        return Err(not_now("this node does not lead, or has not got there yet".into()));
    }
    let state = proposer.state.clone();
    let built = tokio::task::spawn_blocking(move || state.build_snapshot());
    let (meta, manifest) = built.await.map_err(Refusal::failed)?.map_err(Refusal::failed)?;
    stream.send(wire::snapshot_head(&vote, &meta)).await.map_err(Refusal::failed)?;
    let mut file = tokio::fs::File::from_std(manifest.file);
    loop {
        let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
        if file.read_buf(&mut piece).await.map_err(Refusal::failed)? == 0 {
            break;
        }
        stream.send(piece.freeze()).await.map_err(Refusal::failed)?;
    }
    stream.finish().await.map_err(Refusal::failed)
}

fn not_now_because(error: crate::error::Error) -> Refusal {
    Refusal::new(RefusalCode::NotNow, error)
}
