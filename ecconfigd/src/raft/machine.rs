//! openraft's state machine: hands entries to [`State`] and answers back.
//!
//! Applying blocks (it writes packs and a database), so it runs outside the async threads, in batches that are bounded in number and size. A
//! commit of usual size is applied sooner than another thread would have begun, and is not sent there.

use std::io;
use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};

use super::{Applied, Entry, Group, LogId, SnapshotMeta, StoredMembership};
use crate::state::{Manifest, State, StateError};

/// Entries of one transaction: enough to replay quickly, little enough to answer soon.
const BATCH_ENTRIES: usize = 64;
/// Bytes of one transaction; an entry may have a pack of 4 MiB.
const BATCH_BYTES: usize = 8 << 20;

/// What is applied without a change of threads, if the state finds nothing in it that takes long.
const BRIEF_ENTRIES: usize = 4;
/// … and their bytes.
const BRIEF_BYTES: usize = 64 << 10;

/// The state machine of this node.
#[derive(Clone)]
pub struct Machine {
    state: Arc<State>,
}

impl Machine {
    /// On this state.
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&State) -> Result<T, StateError> + Send + 'static,
    ) -> io::Result<T> {
        let state = self.state.clone();
        self.state.outside().blocking(move || work(&state)).await?.map_err(fatal)
    }

    /// Applies entries: brief ones here, unless somebody holds them up, and all others on another thread.
    async fn apply_batch(&self, batch: Vec<Entry>, bytes: usize) -> io::Result<Vec<Applied>> {
        let batch = Arc::new(batch);
        if batch.len() <= BRIEF_ENTRIES && bytes <= BRIEF_BYTES {
            let (state, batch) = (self.state.clone(), batch.clone());
            if let Some(done) = self.state.outside().here(move || state.try_apply(&batch)).await? {
                return done.map_err(fatal);
            }
        }
        self.blocking(move |state| state.apply(&batch)).await
    }
}

fn fatal(error: StateError) -> io::Error {
    tracing::error!("{error}; this node stops");
    io::Error::other(error)
}

/// What an entry weighs, roughly.
pub(super) fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        _ => 0,
    }
}

impl<C: Group> RaftStateMachine<C> for Machine {
    type SnapshotData = Manifest;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let view = self.state.view();
        Ok((view.applied, view.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<C>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let (entry, responder) = first?;
            let mut bytes = weight(&entry);
            let (mut batch, mut responders) = (vec![entry], vec![responder]);
            while batch.len() < BATCH_ENTRIES && bytes < BATCH_BYTES {
                let Some(Some(next)) = entries.next().now_or_never() else { break };
                let (entry, responder) = next?;
                bytes += weight(&entry);
                batch.push(entry);
                responders.push(responder);
            }
            let answers = self.apply_batch(batch, bytes).await?;
            for (responder, answer) in responders.into_iter().zip(answers) {
                if let Some(responder) = responder {
                    responder.send(answer);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: Manifest) -> Result<(), io::Error> {
        self.blocking(move |state| state.install_snapshot(snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<openraft::alias::SnapshotOf<C, Manifest>>, io::Error> {
        let found = self.blocking(State::sound_snapshot).await?;
        Ok(found.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

impl<C: Group> RaftSnapshotBuilder<C> for Machine {
    type SnapshotData = Manifest;

    async fn build_snapshot(&mut self) -> Result<openraft::alias::SnapshotOf<C, Manifest>, io::Error> {
        let (meta, snapshot) = self.blocking(State::build_snapshot).await?;
        Ok(Snapshot { meta, snapshot })
    }
}
