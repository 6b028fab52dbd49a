//! A disk that fills up: the node stops writing while it still can, says so, and goes on reading.
//!
//! Why ahead of time: a write that fails leaves a log and a state that nobody can trust, and the node has to stop. So there is a reserve. Below
//! it this node takes no entries (the others go on without it), gives the leadership away and does not ask for it; heartbeats, votes and
//! reads of what it has go on. When there is room again it catches up like any node that was away.
//!
//! A disk that fills faster than it is looked at makes a write fail all the same. Then the log and the state take nothing more, as after any
//! failed write, and the core is opened anew when there is room: that is the recovery which a kill at any moment needs anyway.

use std::path::Path;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::options::{Adjustable, CoreLimits};
use crate::commit::Proposer;

/// How often the room is looked at: at 100 MiB/s a disk fills by half the reserve in between.
const LOOK: Duration = Duration::from_millis(300);
/// Beyond a log segment: what the state, packs and a snapshot may take while the last entries are applied.
const SLACK_BYTES: u64 = 32 << 20;

/// The room on the disk below which a node writes nothing more.
pub(super) fn reserve_bytes(limits: &CoreLimits) -> u64 {
    limits.min_free_bytes.as_ref().map_or(limits.segment_bytes + SLACK_BYTES, Adjustable::get)
}

/// The room that is left for this process.
pub(super) fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let found = nix::sys::statvfs::statvfs(path)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// What to say if there is so little room that this failure needs no other reason.
pub(super) async fn no_room(data: &Path, limits: &CoreLimits, failure: &str) -> Option<String> {
    // ENOSPC and EDQUOT: quotas and inodes do not show in the room that is left.
    let told = failure.contains("os error 28") || failure.contains("os error 122");
    let (path, reserve) = (data.to_owned(), reserve_bytes(limits));
    let free = tokio::task::spawn_blocking(move || free_bytes(&path)).await.ok()?.ok();
    let known = free.is_some_and(|free| free < reserve);
    (told || known).then(|| words(free.unwrap_or(0), reserve))
}

/// Whether there is room enough to begin again. What cannot be known shall not keep a node away.
pub(crate) async fn has_room(data: &Path, reserve: u64) -> bool {
    let path = data.to_owned();
    let free = tokio::task::spawn_blocking(move || free_bytes(&path)).await;
    !matches!(free, Ok(Ok(free)) if free < enough(reserve))
}

/// Some way above the reserve, so that a node does not come and go with every segment.
fn enough(reserve: u64) -> u64 {
    reserve.saturating_add(reserve / 4)
}

fn words(free: u64, reserve: u64) -> String {
    format!("the disk is full: {} MiB are left, {} are kept in reserve", free >> 20, reserve >> 20)
}

/// Watches the room until the core stops. `full` says why nothing is written, where that is so.
pub(super) async fn keep(
    proposer: Proposer,
    data: std::path::PathBuf,
    limits: CoreLimits,
    full: watch::Sender<Option<String>>,
    stopping: CancellationToken,
) {
    loop {
        look(&proposer, &data, &limits, &full).await;
        if stopping.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
            return;
        }
    }
}

/// Looks once. A node does so before it answers others: on a full disk it shall not begin with a snapshot.
pub(super) async fn look(proposer: &Proposer, data: &Path, limits: &CoreLimits, full: &watch::Sender<Option<String>>) {
    // The setting may have changed.
    let reserve = reserve_bytes(limits);
    let path = data.to_owned();
    match tokio::task::spawn_blocking(move || free_bytes(&path)).await {
        Ok(Ok(free)) => note(proposer, full, free, reserve).await,
        Ok(Err(error)) => tracing::warn!("the room on the disk is not known: {error}"),
        Err(_) => {}
    }
}

async fn note(proposer: &Proposer, full: &watch::Sender<Option<String>>, free: u64, reserve: u64) {
    let was_full = full.borrow().is_some();
    let is_full = free < if was_full { enough(reserve) } else { reserve };
    if is_full != was_full {
        let words = words(free, reserve);
        if is_full {
            tracing::error!("{words}; this node is read-only until there is room");
        } else {
            tracing::info!("there is room on the disk again: this node takes part again");
        }
        full.send_replace(is_full.then_some(words));
        proposer.raft.runtime_config().elect(!is_full);
    }
    if is_full {
        give_leadership_away(proposer, "the disk is full", |_| true).await;
    }
}

/// To the voter that has most of the log. Alone there is nobody to give it to.
pub(super) async fn give_leadership_away(proposer: &Proposer, why: &str, may_lead: impl Fn(u64) -> bool) {
    let metrics = proposer.raft.metrics().borrow_watched().clone();
    let own = *proposer.raft.node_id();
    if metrics.current_leader != Some(own) {
        return;
    }
    let voters: Vec<u64> = metrics.membership_config.voter_ids().filter(|id| *id != own && may_lead(*id)).collect();
    let matched = metrics.replication.iter().flatten().filter(|(id, _)| voters.contains(id));
    if let Some((next, _)) = matched.max_by_key(|(_, matched)| **matched) {
        tracing::info!(successor = next, "handing the leadership over: {why}");
        if let Err(error) = proposer.raft.trigger().transfer_leader(*next).await {
            tracing::warn!("the leadership could not be handed over: {error}");
        }
    }
}
