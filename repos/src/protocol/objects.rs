//! What the protocol needs to know of objects, read through a [`Reader`] and remembered for one request.
//!
//! A fetch looks at few trees but at the same ones more than once: the tree of a commit and that of its child differ in
//! a handful of directories. So parsed trees are kept, up to a bound; the links of commits are small and are all kept,
//! up to the limit on visited commits.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use super::{Error, Result};
use crate::object::{self, Links};
use crate::{Mode, Object, ObjectKind, Oid, Reader, Store, tree};

/// The parsed trees of one request. 16 MB are the trees of some hundred thousand files; when it is full everything is
/// dropped, because the walk has moved on by then.
const TREE_CACHE_BYTES: usize = 16 << 20;
/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeEntry {
    pub(crate) kind: EntryKind,
    pub(crate) id: Oid,
    name: (u32, u32),
}

/// What an entry of a tree is, as far as sending it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Tree,
    Blob,
    /// A commit of another repository: never sent.
    Submodule,
}

/// A parsed tree.
#[derive(Debug)]
pub(crate) struct Tree {
    data: Vec<u8>,
    pub(crate) entries: Vec<TreeEntry>,
}

impl Tree {
    pub(crate) fn name(&self, entry: &TreeEntry) -> &[u8] {
        &self.data[entry.name.0 as usize..entry.name.1 as usize]
    }

    /// The order of entries in a tree, for entries of two trees.
    pub(crate) fn order(&self, entry: &TreeEntry, other: &Tree, other_entry: &TreeEntry) -> Ordering {
        let is_tree = |entry: &TreeEntry| entry.kind == EntryKind::Tree;
        tree::order(self.name(entry), is_tree(entry), other.name(other_entry), is_tree(other_entry))
    }
}

/// The objects of one store, as one request sees them.
pub(crate) struct Objects {
    store: Store,
    reader: Reader,
    links: RefCell<HashMap<Oid, Rc<Links>>>,
    trees: RefCell<TreeCache>,
    /// Reused from object to object.
    buffer: RefCell<Vec<u8>>,
    max_commits: usize,
}

#[derive(Default)]
struct TreeCache {
    by_id: HashMap<Oid, Rc<Tree>>,
    bytes: usize,
}

impl Objects {
    /// `max_commits` bounds the commits that may be looked at.
    pub(crate) fn new(store: &Store, max_commits: usize) -> Result<Self> {
        let reader = store.reader().map_err(Error::store)?;
        Ok(Objects {
            store: store.clone(),
            reader,
            links: RefCell::default(),
            trees: RefCell::default(),
            buffer: RefCell::default(),
            max_commits,
        })
    }

    /// The packs of the store and their sizes. Nothing if they cannot be listed: objects are found in other ways, too.
    pub(crate) fn packs(&self) -> Vec<(PathBuf, u64)> {
        let packs = self.store.packs().unwrap_or_default();
        packs.into_iter().map(|info| (info.path, info.bytes)).collect()
    }

    /// The kind of an object; `None` if it is not here.
    pub(crate) fn kind(&self, id: Oid) -> Result<Option<ObjectKind>> {
        match self.kind_at_hand(id)? {
            Some(kind) => Ok(Some(kind)),
            // Looking again takes longer, and finds what is moving from one pack to another right now.
            None => self.reader.find(id, &mut self.buffer.borrow_mut()).map_err(Error::store),
        }
    }

    /// The same at a glance: now and then an object is overlooked. Good enough for what clients offer, most of which
    /// is not here.
    pub(crate) fn kind_at_hand(&self, id: Oid) -> Result<Option<ObjectKind>> {
        if self.links.borrow().contains_key(&id) {
            return Ok(Some(ObjectKind::Commit));
        }
        Ok(self.reader.header(id).map_err(Error::store)?.map(|(kind, _)| kind))
    }

    /// What the commit `id` refers to. It is an error if there is no such commit.
    pub(crate) fn links(&self, id: Oid) -> Result<Rc<Links>> {
        if let Some(links) = self.links.borrow().get(&id) {
            return Ok(links.clone());
        }
        let links = self.reader.links(id, &mut self.buffer.borrow_mut()).map_err(Error::store)?;
        let links = Rc::new(links);
        let mut known = self.links.borrow_mut();
        if known.len() >= self.max_commits {
            return Err(Error::TooLarge { what: "the request spans too many commits", limit: self.max_commits as u64 });
        }
        known.insert(id, links.clone());
        Ok(links)
    }

    /// The entries of a tree.
    pub(crate) fn tree(&self, id: Oid) -> Result<Rc<Tree>> {
        if let Some(tree) = self.trees.borrow().by_id.get(&id) {
            return Ok(tree.clone());
        }
        let data = self.reader.tree_data(id).map_err(Error::store)?;
        let tree = Rc::new(parse_tree(data).ok_or_else(|| damaged(id, "tree"))?);
        let mut cache = self.trees.borrow_mut();
        let bytes = tree.data.len() + tree.entries.len() * size_of::<TreeEntry>() + 100;
        if cache.bytes + bytes > TREE_CACHE_BYTES {
            *cache = TreeCache::default();
        }
        cache.bytes += bytes;
        cache.by_id.insert(id, tree.clone());
        Ok(tree)
    }

    /// Follows tags. Yields the tags on the way, the outermost first, and what is at the end; `None` if something is
    /// not here.
    pub(crate) fn peel(&self, id: Oid) -> Result<Option<(Vec<Oid>, Oid, ObjectKind)>> {
        let mut tags = Vec::new();
        let mut at = id;
        loop {
            match self.kind(at)? {
                None => return Ok(None),
                Some(ObjectKind::Tag) => {
                    let mut buffer = self.buffer.borrow_mut();
                    self.reader.expect(at, ObjectKind::Tag, &mut buffer).map_err(Error::store)?;
                    let (target, _) = object::tag_target(&buffer).ok_or_else(|| damaged(at, "tag"))?;
                    tags.push(at);
                    at = target;
                }
                Some(kind) => return Ok(Some((tags, at, kind))),
            }
        }
    }

    /// What an annotated tag comes to; `None` for everything else.
    pub(crate) fn peeled(&self, id: Oid) -> Result<Option<Oid>> {
        if self.kind(id)? != Some(ObjectKind::Tag) {
            return Ok(None);
        }
        Ok(self.peel(id)?.map(|(_, end, _)| end))
    }

    /// An object as it is.
    pub(crate) fn whole(&self, id: Oid) -> Result<Object> {
        self.reader.object(id, u64::MAX).map_err(Error::store)
    }
}

fn damaged(id: Oid, kind: &str) -> Error {
    Error::store(crate::Error::Damaged { id, reason: format!("it is no readable {kind}") })
}

fn parse_tree(data: Vec<u8>) -> Option<Tree> {
    let start = data.as_ptr() as usize;
    let mut entries = Vec::with_capacity(data.len() / 36 + 1);
    for entry in tree::entries(&data) {
        let entry = entry.ok()?;
        let begin = u32::try_from(entry.name.as_ptr() as usize - start).ok()?;
        let end = begin + u32::try_from(entry.name.len()).ok()?;
        let kind = match Mode::from_git(entry.mode) {
            Some(Mode::Dir) => EntryKind::Tree,
            Some(Mode::Submodule) => EntryKind::Submodule,
            _ => EntryKind::Blob,
        };
        entries.push(TreeEntry { kind, id: entry.id, name: (begin, end) });
    }
    Some(Tree { data, entries })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree(entries: &[(&str, &str)]) -> Tree {
        let mut data = Vec::new();
        for (mode, name) in entries {
            data.extend_from_slice(format!("{mode} {name}\0").as_bytes());
            data.extend_from_slice(&[7; 20]);
        }
        parse_tree(data).unwrap()
    }

    #[test]
    fn trees_are_in_gits_order() {
        let one = tree(&[("100644", "a.b"), ("40000", "a"), ("100644", "a0"), ("160000", "b")]);
        for pair in one.entries.windows(2) {
            assert_eq!(one.order(&pair[0], &one, &pair[1]), Ordering::Less);
        }
        let kinds: Vec<_> = one.entries.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [EntryKind::Blob, EntryKind::Tree, EntryKind::Blob, EntryKind::Submodule]);
        assert_eq!(one.name(&one.entries[0]), b"a.b");
        // A file and a directory of the same name are not the same entry.
        let other = tree(&[("100644", "a")]);
        assert_ne!(one.order(&one.entries[1], &other, &other.entries[0]), Ordering::Equal);
    }

    #[test]
    fn damaged_trees() {
        assert!(parse_tree(b"100644 a\0short".to_vec()).is_none());
    }
}
