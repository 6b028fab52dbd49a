//! What may be applied where sockets and timers are served.
//!
//! As long as one async thread is held up, all of them may be. So what is applied there touches no file, waits for nobody, and is over in about
//! a millisecond: commits and reports of usual size are. What always holds: this decides where an entry is applied, never what comes of it.

use std::collections::HashMap;

use openraft::EntryPayload;
use repos::WholePack;

use super::{RepoName, View};
use crate::raft::command::{ChangeSet, Op, PackSource, RepoUpdate};
use crate::raft::{Entry, Proposal};
use crate::watch::Hub;

/// Targets that change with every move of `global`, each with a row of its own.
const TARGETS: usize = 64;

/// Paths times the globs that they are held against.
const LOOKS: usize = 4096;

/// Packs that were checked and unpacked before their entries are applied, by index and number of the attachment.
#[derive(Default)]
pub(super) struct Unpacked(HashMap<(u64, u32), WholePack>);

impl Unpacked {
    pub(super) fn get(&self, index: u64, attachment: u32) -> Option<&WholePack> {
        self.0.get(&(index, attachment))
    }
}

/// The packs of these entries, if applying them is brief.
pub(super) fn unpack(view: &View, hub: &Hub, entries: &[Entry]) -> Option<Unpacked> {
    let mut brief = Brief { view, hub, unpacked: Unpacked::default(), bytes: 0 };
    for entry in entries {
        if let EntryPayload::Normal(command) = &entry.payload {
            brief.add(entry.log_id.index, &command.decode().ok()?)?;
        }
    }
    Some(brief.unpacked)
}

struct Brief<'v> {
    view: &'v View,
    hub: &'v Hub,
    unpacked: Unpacked,
    /// What all packs take of memory.
    bytes: usize,
}

impl Brief<'_> {
    /// `None` if it is not.
    fn add(&mut self, index: u64, proposal: &Proposal) -> Option<()> {
        proposal.ops.iter().try_for_each(|op| match op {
            Op::Report(_) => Some(()),
            Op::Change(change) => (self.moves_few_targets(change) && self.concerns_few(change)).then_some(()),
            Op::Pack { repo, source: PackSource::Attachment(number) } => self.pack(repo, index, *number, proposal),
            _ => None,
        })
    }

    fn moves_few_targets(&self, change: &ChangeSet) -> bool {
        let all = change.updates.iter().any(|update| update.repo.is_global() && update.revision.is_some());
        !all || self.view.targets.len() <= TARGETS
    }

    /// Whether looking for the watchers of what it changes is soon done.
    fn concerns_few(&self, change: &ChangeSet) -> bool {
        let paths = |update: &RepoUpdate| update.revision.as_ref().map_or(0, |new| new.paths.len());
        change.updates.iter().all(|update| paths(update) * self.hub.groups(&update.repo) <= LOOKS)
    }

    fn pack(&mut self, repo: &RepoName, index: u64, number: u32, proposal: &Proposal) -> Option<()> {
        let store = &self.view.repos.get(repo)?.store;
        // What is wrong with a pack, whoever applies it says.
        let pack = WholePack::scan(proposal.attachments.get(number as usize)?).ok()??;
        self.bytes += pack.weight();
        self.unpacked.0.insert((index, number), pack);
        store.has_room(self.bytes).then_some(())
    }
}
