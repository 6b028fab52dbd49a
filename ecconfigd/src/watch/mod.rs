//! Telling those who wait that something changed.
#![allow(clippy::todo)]

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::state::{RepoName, RevisionRecord, TargetRecord};

/// One revision, with the JSON of its `WatchEvent` made once for all watchers.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision.
    pub record: RevisionRecord,
    /// The JSON of `cluster::api::WatchEvent`.
    pub json: Bytes,
}

/// A repository's revisions from a point on, without gaps or repeats.
///
/// Nothing is buffered per watcher: it holds its position and reads recent events from a ring shared by all, older ones from the state.
/// A watcher that was live and then fell further behind than the ring is ended (`None`); it resumes from its last revision.
pub struct Watch {
    _repo: RepoName,
}

impl Watch {
    /// The next revision whose paths match; waits for it. `None`: the server is stopping, or this watcher was too slow. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        todo!()
    }

    /// The last revision looked at, matching or not: where to resume.
    pub fn position(&self) -> u64 {
        todo!()
    }
}

impl futures::Stream for Watch {
    type Item = Arc<Event>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        todo!()
    }
}

/// A subcluster's target, with the JSON of `cluster::api::Target` made once for all.
#[derive(Debug, PartialEq, Eq)]
pub struct TargetEvent {
    /// The target.
    pub record: TargetRecord,
    /// Its JSON.
    pub json: Bytes,
}

/// The targets of a node from a serial on, in order. A target that was replaced before it was read is passed over: only the newest counts.
pub struct TargetWatch {}

impl TargetWatch {
    /// The next target with a higher serial; waits for it. `None`: the server is stopping or the node is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<TargetEvent>> {
        todo!()
    }
}

impl futures::Stream for TargetWatch {
    type Item = Arc<TargetEvent>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        todo!()
    }
}
