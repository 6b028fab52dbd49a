//! What operators do to whole repositories: freeze, thaw, copy with history, and pin the leadership.
//!
//! A copy travels as two names. Every replica has the source's objects already, so it links its own packs; refs and revisions are copied row
//! by row, which makes the new repository equal on all replicas, like everything else here.

use std::sync::Arc;

use super::{Applying, open_store};
use crate::raft::command::Outcome;
use crate::state::db::StateError;
use crate::state::keys;
use crate::state::model::{RevisionRecord, TargetRecord};
use crate::state::names::{NodeName, RepoName};
use crate::state::view::RepoView;
use crate::watch::Event;

impl Applying<'_, '_> {
    /// Counts as a move, so that every node that follows the repository is told.
    pub(super) fn freeze(&mut self, name: &RepoName, frozen: bool) -> Result<Outcome, StateError> {
        let Some(repo) = Arc::make_mut(&mut self.view.repos).get_mut(name) else { return Ok(Outcome::NotFound) };
        if repo.record.frozen != frozen {
            let record = Arc::make_mut(&mut repo.record);
            record.frozen = frozen;
            self.tables.put_record(&keys::repo(name), record)?;
            self.moved.insert(name.clone());
        }
        Ok(Outcome::Done)
    }

    /// The copy is not frozen, whatever its source is.
    pub(super) fn copy_repo(&mut self, from: &RepoName, to: &RepoName) -> Result<Outcome, StateError> {
        let Some(source) = self.view.repos.get(from).cloned() else { return Ok(Outcome::NotFound) };
        if self.view.repos.contains_key(to) {
            return Ok(Outcome::Exists);
        }
        let store = open_store(&self.state.data, to)?;
        store.link_packs_of(&source.store).map_err(|source| StateError::Repo { repo: to.clone(), source })?;
        let mut record = source.record.as_ref().clone();
        (record.frozen, record.created_time_ms) = (false, self.proposal.time_ms);
        self.tables.put_record(&keys::repo(to), &record)?;
        for (name, id) in source.refs.iter() {
            self.tables.put_record(&keys::reference(to, name), id)?;
        }
        let newest = self.copy_revisions(from, to)?;
        let copy = RepoView { record: Arc::new(record), refs: source.refs.clone(), store };
        Arc::make_mut(&mut self.view.repos).insert(to.clone(), copy);
        self.pending.refs.insert(to.clone());
        self.pending.packs.insert(to.clone());
        if !to.is_global() && !self.view.targets.contains_key(to) {
            self.set_target(to, TargetRecord { serial: 0, repos: Default::default() })?;
        }
        if let Some(newest) = newest {
            self.effects.events.push(Event::new(newest));
            self.moved.insert(to.clone());
        }
        Ok(Outcome::Done)
    }

    /// The newest of them.
    fn copy_revisions(&mut self, from: &RepoName, to: &RepoName) -> Result<Option<RevisionRecord>, StateError> {
        let mut newest = None;
        for (_, record) in self.tables.scan::<RevisionRecord>(&keys::revisions(from))? {
            let record = RevisionRecord { repo: to.clone(), ..record };
            self.tables.put_record(&keys::revision(to, record.revision), &record)?;
            self.tables.put_record(&keys::commit(to, record.commit), &record.revision)?;
            newest = Some(record);
        }
        Ok(newest)
    }

    pub(super) fn pin(&mut self, node: &NodeName) -> Result<Outcome, StateError> {
        match &self.view.pin {
            Some(pinned) if pinned == node => return Ok(Outcome::Done),
            Some(_) => return Ok(Outcome::Exists),
            None => {}
        }
        if self.view.raft_id(node).is_none() {
            return Ok(Outcome::NotFound);
        }
        self.tables.put_record(keys::PIN, node)?;
        self.view.pin = Some(node.clone());
        Ok(Outcome::Done)
    }

    pub(super) fn unpin(&mut self, node: &NodeName) -> Result<Outcome, StateError> {
        if self.view.pin.as_ref() != Some(node) {
            return Ok(Outcome::NotFound);
        }
        self.tables.remove(keys::PIN)?;
        self.view.pin = None;
        Ok(Outcome::Done)
    }
}
