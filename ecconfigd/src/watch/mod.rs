//! Telling those who wait that something changed.
//!
//! What always holds: a watcher sees every matching revision of its repository once, in order, from any revision on; a commit wakes only the
//! watchers whose globs match it; nothing is buffered per watcher. A watcher holds a position. It reads recent events from a ring shared by all
//! and older ones from the state, so a slow one costs nothing but its connection; one that was live and then fell behind the ring is ended
//! and resumes from its last revision. Watchers with the same globs share one matcher and one wake-up.

mod globs;
mod hub;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use globs::{BadGlob, Globs};
pub use hub::Hub;
use hub::{Group, Seat};

#[cfg(test)]
use crate::sim::mutants::{self, Mutant};
use crate::state::{RepoName, RevisionRecord, State, TargetRecord};

/// Old revisions that are read from the state at a time.
const READ_REVISIONS: u64 = 256;

/// One revision, with the JSON of its `WatchEvent` made once for all watchers.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision.
    pub record: RevisionRecord,
    /// The JSON of `cluster::api::WatchEvent`.
    pub json: Bytes,
}

impl Event {
    /// Makes the JSON.
    pub fn new(record: RevisionRecord) -> Arc<Event> {
        let json = serde_json::to_vec(&record.event()).expect("an event is JSON").into();
        Arc::new(Event { record, json })
    }
}

/// A subcluster's target, with the JSON of `cluster::api::Target` made once for all.
#[derive(Debug, PartialEq, Eq)]
pub struct TargetEvent {
    /// The target.
    pub record: TargetRecord,
    /// Those of its repositories whose new revisions nobody takes for now.
    pub frozen: Vec<RepoName>,
    /// Its JSON.
    pub json: Bytes,
}

impl TargetEvent {
    /// Makes the JSON.
    pub fn new(record: TargetRecord, frozen: Vec<RepoName>) -> Arc<TargetEvent> {
        let json = serde_json::to_vec(&record.api(&frozen)).expect("a target is JSON").into();
        Arc::new(TargetEvent { record, frozen, json })
    }

    /// The target as the API shows it.
    pub fn api(&self) -> cluster::api::Target {
        self.record.api(&self.frozen)
    }
}

/// A repository's revisions from a point on, without gaps or repeats.
pub struct Watch {
    state: Arc<State>,
    repo: RepoName,
    /// Every revision up to this one was looked at.
    position: u64,
    /// Whether it once had caught up.
    live: bool,
    group: Arc<Group>,
    wake: watch::Receiver<u64>,
    closed: CancellationToken,
    _seat: Seat,
}

/// What looking for the next event came to.
enum Look {
    Found(Arc<Event>),
    /// Nothing up to the newest revision.
    Nothing,
    /// More to look at.
    Again,
    TooSlow,
}

impl Watch {
    pub(crate) fn new(state: Arc<State>, repo: RepoName, after: Option<u64>, globs: Globs) -> Result<Watch, hub::Full> {
        let seat = state.hub().seat()?;
        let (group, wake, newest) = state.hub().join(&repo, globs);
        let closed = state.hub().closed();
        let position = after.unwrap_or(newest);
        #[cfg(test)]
        let position = position + u64::from(position > 0 && mutants::is_on(Mutant::ResumesLate));
        Ok(Watch { state, repo, position, live: false, group, wake, closed, _seat: seat })
    }

    /// The next revision whose paths match; waits for it. `None`: the server is stopping, or this watcher was too slow. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            if self.closed.is_cancelled() {
                return None;
            }
            // Marked as seen before looking, so that what comes while looking wakes again.
            self.wake.borrow_and_update();
            match self.look().await {
                Look::Found(event) => return Some(event),
                Look::Again => continue,
                Look::TooSlow => return None,
                Look::Nothing => self.live = true,
            }
            tokio::select! {
                changed = self.wake.changed() => changed.ok()?,
                () = self.closed.cancelled() => return None,
            }
        }
    }

    /// The last revision looked at, matching or not: where to resume.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The events as a stream; it ends where [`Watch::next`] answers `None`.
    pub fn into_stream(self) -> impl Stream<Item = Arc<Event>> + Send + 'static {
        futures::stream::unfold(self, |mut watch| async move { watch.next().await.map(|event| (event, watch)) })
    }

    async fn look(&mut self) -> Look {
        match self.state.hub().look(&self.repo, &self.group, self.position) {
            hub::Recent::Found(event) => {
                self.position = event.record.revision;
                Look::Found(event)
            }
            hub::Recent::Nothing { newest } => {
                self.position = self.position.max(newest);
                Look::Nothing
            }
            hub::Recent::Older { upto: _ } if self.live => Look::TooSlow,
            hub::Recent::Older { upto } => self.look_in_state(upto).await,
        }
    }

    /// Looks through one stretch of old revisions.
    async fn look_in_state(&mut self, upto: u64) -> Look {
        let (state, repo, group) = (self.state.clone(), self.repo.clone(), self.group.clone());
        let from = self.position + 1;
        let to = upto.min(self.position + READ_REVISIONS);
        let read = self.state.outside().blocking(move || {
            let records = state.revisions(&repo, from, to)?;
            Ok::<_, crate::state::StateError>(records.into_iter().find(|record| group.matches(record)))
        });
        match read.await {
            Ok(Ok(Some(record))) => {
                self.position = record.revision;
                Look::Found(Event::new(record))
            }
            Ok(Ok(None)) => {
                self.position = to;
                Look::Again
            }
            Ok(Err(error)) => {
                tracing::error!(repo = %self.repo, "a watcher could not read old revisions: {error}");
                Look::TooSlow
            }
            // The runtime is going down.
            Err(_) => Look::TooSlow,
        }
    }
}

/// The targets of a node from a serial on, in order. A target that was replaced before it was read is passed over: only the newest counts.
pub struct TargetWatch {
    after: u64,
    /// Whether a first answer that differs from `after`, in either direction, is due.
    first: bool,
    targets: watch::Receiver<Arc<TargetEvent>>,
    closed: CancellationToken,
    _seat: Seat,
}

impl TargetWatch {
    pub(crate) fn new(hub: &Arc<Hub>, subcluster: &RepoName, after: u64) -> Result<Option<TargetWatch>, hub::Full> {
        let seat = hub.seat()?;
        let Some(targets) = hub.targets(subcluster) else { return Ok(None) };
        Ok(Some(TargetWatch { after, first: true, targets, closed: hub.closed(), _seat: seat }))
    }

    /// The next target with another serial; waits for it. `None`: the server is stopping. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<TargetEvent>> {
        loop {
            if self.closed.is_cancelled() {
                return None;
            }
            let target = self.targets.borrow_and_update().clone();
            let serial = target.record.serial;
            // A caller that is ahead of us followed a cluster that is no more, or another subcluster; it must not wait for the numbers to meet.
            // (Whether it is only this node that is behind was looked at before.)
            if serial > self.after || (self.first && serial != self.after) {
                self.after = serial;
                self.first = false;
                return Some(target);
            }
            self.first = false;
            tokio::select! {
                changed = self.targets.changed() => changed.ok()?,
                () = self.closed.cancelled() => return None,
            }
        }
    }

    /// The targets as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Arc<TargetEvent>> + Send + 'static {
        futures::stream::unfold(self, |mut watch| async move { watch.next().await.map(|target| (target, watch)) })
    }
}
