//! Keeps the leadership where it is pinned to.
//!
//! Only the leader acts: it hands over to the pinned node as soon as that node is a voter, answers heartbeats, has the log to its end, and
//! says that nothing is wrong with it. While the node is away, behind or out of disk the leadership stays where elections put it. A node
//! that loses it again and again, for whatever reason, is given it more and more seldom: each change costs the cluster an election.

use std::time::Duration;

use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio_util::sync::CancellationToken;

use super::peers;
use crate::commit::Proposer;
use crate::peer;
use crate::raft::TypeConfig;

/// How often the leader looks. A hand-over costs a few milliseconds without a leader, so it is not tried in a tight loop.
const LOOK: Duration = Duration::from_millis(500);
/// Log entries that the pinned node may lack: a hand-over waits for it to get them.
const MAX_LAG: u64 = 64;
/// How long ago the node may have answered last.
const ANSWERED: Duration = Duration::from_millis(500);

/// The time between two hand-overs by the same leader, doubled with each that comes within [`KEPT`] of the one before …
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A node that has kept the leadership for so long can have it back at once.
const KEPT: Duration = Duration::from_secs(120);

type Metrics = openraft::RaftMetrics<TypeConfig>;

/// When the leadership was last handed over from here, and how long to wait until the next time.
#[derive(Default)]
struct HandOvers {
    to: u64,
    last: Option<Duration>,
    pause: Duration,
}

impl HandOvers {
    /// Whether it is time for one. `now` is the time since some point.
    fn is_due(&self, to: u64, now: Duration) -> bool {
        self.to != to || self.last.is_none_or(|last| now.saturating_sub(last) >= self.pause)
    }

    fn note(&mut self, to: u64, now: Duration) {
        let again = self.to == to && self.last.is_some_and(|last| now.saturating_sub(last) < KEPT);
        let pause = if again { (self.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        *self = Self { to, last: Some(now), pause };
    }
}

/// Runs until the core stops.
pub(super) async fn keep(proposer: Proposer, raft_id: u64, client: Option<peer::Client>, stopping: CancellationToken) {
    let mut unwell = String::new();
    let (began, mut hand_overs) = (tokio::time::Instant::now(), HandOvers::default());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stopping.cancelled() => return,
        }
        let view = proposer.state.view();
        let Some(node) = &view.pin else { continue };
        let metrics = proposer.raft.metrics().borrow_watched().clone();
        let Some(to) = view.raft_id(node) else { continue };
        if to == raft_id || !fit(&metrics, raft_id, to) || !hand_overs.is_due(to, began.elapsed()) {
            continue;
        }
        if let Err(why) = well(&metrics, client.as_ref(), to).await {
            if why != unwell {
                tracing::warn!(%node, "the leadership is not handed to the node that it is pinned to: {why}");
            }
            unwell = why;
            continue;
        }
        unwell.clear();
        hand_overs.note(to, began.elapsed());
        tracing::info!(%node, "handing the leadership to the node that it is pinned to");
        if let Err(error) = proposer.raft.trigger().transfer_leader(to).await {
            tracing::warn!(%node, "the leadership could not be handed over: {error}");
        }
    }
}

/// Whether this node leads and the other one can take over now.
fn fit(metrics: &Metrics, raft_id: u64, to: u64) -> bool {
    let voter = metrics.membership_config.voter_ids().any(|id| id == to);
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&to).copied().flatten());
    let caught_up = matched.is_some_and(|id| id.index + MAX_LAG >= metrics.last_log_index.unwrap_or(0));
    let answered = metrics.heartbeat.as_ref().and_then(|all| all.get(&to).copied().flatten());
    let alive = answered.is_some_and(|at| at.elapsed() < ANSWERED);
    metrics.current_leader == Some(raft_id) && voter && caught_up && alive
}

/// Whether the other node would do a leader's work, in its own words.
async fn well(metrics: &Metrics, client: Option<&peer::Client>, to: u64) -> Result<(), String> {
    let node = metrics.membership_config.membership().get_node(&to);
    let (Some(client), Some(node)) = (client, node) else { return Ok(()) };
    let status = peers::status(client, &peers::target(to, node), peers::Places::new(), ANSWERED).await;
    let status = status.map_err(|error| error.to_string())?;
    status.trouble.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_keep_it_is_given_it_more_and_more_seldom() {
        let (mut hand_overs, mut now, mut given) = (HandOvers::default(), Duration::ZERO, 0);
        // It comes back a second after every hand-over, for an hour.
        while now < Duration::from_secs(3600) {
            if hand_overs.is_due(3, now) {
                hand_overs.note(3, now);
                given += 1;
            }
            now += Duration::from_secs(1);
        }
        assert!((60..75).contains(&given), "{given} times");
        assert!(hand_overs.is_due(4, now), "another node has nothing to do with it");
        // After a long while it is as at first: once, and again a moment later.
        now += KEPT;
        hand_overs.note(3, now);
        assert!(!hand_overs.is_due(3, now) && hand_overs.is_due(3, now + FIRST_PAUSE));
    }
}
