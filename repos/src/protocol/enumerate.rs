//! Which objects a client lacks, given which commits it lacks.
//!
//! Cost follows the change, not the repository. A commit's tree is compared with the trees of its parents, which the
//! client has or will have when it has unpacked; only what differs is looked into. A clone, where the client has
//! nothing, visits each tree once instead. A commit whose parents are withheld (the edge of a shallow history)
//! is compared with what the client said it has.
//!
//! The list may name a few objects that the client has: one that an older commit had and this one has again, or a copy
//! of a file at another place. It never lacks one. Filters (partial clone) will go where [`Enumeration::compare`]
//! decides about an entry.

use std::collections::HashSet;

use super::graph;
use super::objects::{EntryKind, Objects, Tree, TreeEntry};
use super::{Error, Result};
use crate::{ObjectKind, Oid};

/// A client's trees to compare with where parents are missing. One would do; of several, the nearest is not known.
const MAX_BASES: usize = 4;

/// What a client asked for and what it has.
#[derive(Debug, Default)]
pub(crate) struct Question {
    /// Objects of any kind.
    pub(crate) wants: Vec<Oid>,
    /// Objects that we have, too.
    pub(crate) haves: Vec<Oid>,
    /// Commits whose parents do not count, neither as wanted nor as known.
    pub(crate) cut: HashSet<Oid>,
    /// Tags to send along if what they name is sent.
    pub(crate) include_tags: Vec<Oid>,
    /// More objects are an error.
    pub(crate) max_objects: usize,
}

/// The objects to send: commits newest first, then everything else, each one once.
pub(crate) fn enumerate(objects: &Objects, question: &Question) -> Result<Vec<Oid>> {
    let mut list = Enumeration {
        objects,
        max: question.max_objects,
        sent: Vec::new(),
        seen: HashSet::new(),
        known: HashSet::new(),
    };
    let (haves, _) = list.peel_all(&question.haves, false)?;
    let (commits, others) = list.peel_all(&question.wants, true)?;

    let lacking = graph::lacking(objects, &commits, &haves, &question.cut)?;
    for id in &lacking {
        list.send(*id)?;
    }
    let bases = base_trees(objects, &haves)?;
    // Parents before children: what a child shares with its parent has been listed by then.
    for id in lacking.iter().rev() {
        list.commit(*id, &haves, &bases, &question.cut)?;
    }
    for (id, kind) in others {
        match kind {
            ObjectKind::Tree => list.tree(id, &bases)?,
            _ => list.send(id)?,
        }
    }
    for tag in &question.include_tags {
        list.include_tag(*tag)?;
    }
    Ok(list.sent)
}

/// The trees of the newest commits that the client has.
fn base_trees(objects: &Objects, haves: &[Oid]) -> Result<Vec<Oid>> {
    let mut by_time = haves.iter().map(|id| objects.links(*id)).collect::<Result<Vec<_>>>()?;
    by_time.sort_by_key(|links| std::cmp::Reverse(links.time_s));
    Ok(by_time.iter().take(MAX_BASES).map(|links| links.tree).collect())
}

struct Enumeration<'a> {
    objects: &'a Objects,
    max: usize,
    sent: Vec<Oid>,
    seen: HashSet<Oid>,
    /// Tags, trees and blobs that the client named as known.
    known: HashSet<Oid>,
}

impl Enumeration<'_> {
    fn send(&mut self, id: Oid) -> Result<()> {
        if !self.known.contains(&id) && self.seen.insert(id) {
            if self.sent.len() >= self.max {
                return Err(Error::TooLarge { what: "the pack would have too many objects", limit: self.max as u64 });
            }
            self.sent.push(id);
        }
        Ok(())
    }

    /// Sorts ids into commits and others. Tags on the way are sent if they are wanted, known if they are not.
    #[allow(clippy::type_complexity)]
    fn peel_all(&mut self, ids: &[Oid], wanted: bool) -> Result<(Vec<Oid>, Vec<(Oid, ObjectKind)>)> {
        let (mut commits, mut others) = (Vec::new(), Vec::new());
        for id in ids {
            let Some((tags, end, kind)) = self.objects.peel(*id)? else {
                return Err(Error::store(crate::Error::Missing { id: *id }));
            };
            for tag in tags {
                if wanted {
                    self.send(tag)?;
                } else {
                    self.known.insert(tag);
                }
            }
            match kind {
                ObjectKind::Commit => commits.push(end),
                _ if wanted => others.push((end, kind)),
                _ => drop(self.known.insert(end)),
            }
        }
        Ok((commits, others))
    }

    fn commit(&mut self, id: Oid, haves: &[Oid], bases: &[Oid], cut: &HashSet<Oid>) -> Result<()> {
        let links = self.objects.links(id)?;
        // Without anything to hide every tree is new the first time it is seen, and comparing would only cost.
        if haves.is_empty() {
            return self.tree(links.tree, &[]);
        }
        if links.parents.is_empty() || cut.contains(&id) {
            return self.tree(links.tree, bases);
        }
        let mut olds = Vec::with_capacity(links.parents.len() + bases.len());
        for parent in &links.parents {
            olds.push(self.objects.links(*parent)?.tree);
        }
        // What goes back to what the client has is not new either.
        olds.extend(bases);
        olds.sort_unstable();
        olds.dedup();
        self.tree(links.tree, &olds)
    }

    /// Lists what `root` has and none of `olds` has in the same place, or in a place where it is no longer.
    fn tree(&mut self, root: Oid, olds: &[Oid]) -> Result<()> {
        if olds.contains(&root) {
            return Ok(());
        }
        let mut change = Change::default();
        let mut pending = vec![(root, olds.to_vec())];
        while let Some((id, olds)) = pending.pop() {
            if self.seen.contains(&id) || self.known.contains(&id) {
                continue;
            }
            self.send(id)?;
            self.compare(id, &olds, &mut change, &mut pending)?;
        }
        let Change { gone, blobs, mut trees } = change;
        for id in blobs {
            if !gone.contains(&id) {
                self.send(id)?;
            }
        }
        trees.retain(|id| !gone.contains(id));
        while let Some(id) = trees.pop() {
            if self.seen.contains(&id) || self.known.contains(&id) {
                continue;
            }
            self.send(id)?;
            for entry in &self.objects.tree(id)?.entries {
                match entry.kind {
                    EntryKind::Tree => trees.push(entry.id),
                    EntryKind::Blob => self.send(entry.id)?,
                    EntryKind::Submodule => {}
                }
            }
        }
        Ok(())
    }

    /// One directory against the same directory of the other trees.
    fn compare(
        &mut self,
        id: Oid,
        olds: &[Oid],
        change: &mut Change,
        pending: &mut Vec<(Oid, Vec<Oid>)>,
    ) -> Result<()> {
        let tree = self.objects.tree(id)?;
        let olds = olds.iter().map(|old| self.objects.tree(*old)).collect::<Result<Vec<_>>>()?;
        let mut cursors: Vec<Cursor<'_>> = olds.iter().map(|old| Cursor { tree: old, at: 0 }).collect();
        for entry in &tree.entries {
            let mut counterparts = Vec::new();
            let mut same = false;
            for cursor in &mut cursors {
                if let Some(old) = cursor.advance(&tree, entry, &mut change.gone) {
                    same |= old.id == entry.id;
                    counterparts.push(old.id);
                }
            }
            if same {
                continue;
            }
            change.gone.extend(&counterparts);
            match entry.kind {
                EntryKind::Tree if counterparts.is_empty() => change.trees.push(entry.id),
                EntryKind::Tree => pending.push((entry.id, counterparts)),
                EntryKind::Blob => change.blobs.push(entry.id),
                EntryKind::Submodule => {}
            }
        }
        for cursor in &cursors {
            change.gone.extend(cursor.tree.entries[cursor.at..].iter().map(|entry| entry.id));
        }
        Ok(())
    }
}

/// What comparing trees found.
#[derive(Default)]
struct Change {
    /// What the old trees have in places where the new one has something else: it may turn up elsewhere.
    gone: HashSet<Oid>,
    /// Blobs that are new in their place.
    blobs: Vec<Oid>,
    /// Directories in places where none was.
    trees: Vec<Oid>,
}

/// A position in an old tree, moving along with the new one.
struct Cursor<'a> {
    tree: &'a Tree,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The entry in the place of `entry`, if there is one. What is passed over exists in the old tree only.
    fn advance(&mut self, new: &Tree, entry: &TreeEntry, gone: &mut HashSet<Oid>) -> Option<&'a TreeEntry> {
        while let Some(old) = self.tree.entries.get(self.at) {
            match self.tree.order(old, new, entry) {
                std::cmp::Ordering::Less => drop(gone.insert(old.id)),
                std::cmp::Ordering::Equal => {
                    self.at += 1;
                    return Some(old);
                }
                std::cmp::Ordering::Greater => return None,
            }
            self.at += 1;
        }
        None
    }
}

impl Enumeration<'_> {
    /// Sends a tag if what it names is sent.
    fn include_tag(&mut self, id: Oid) -> Result<()> {
        if let Some((tags, end, _)) = self.objects.peel(id)?
            && self.seen.contains(&end)
        {
            for tag in tags {
                self.send(tag)?;
            }
        }
        Ok(())
    }
}
