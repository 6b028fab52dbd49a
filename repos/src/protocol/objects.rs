//! What the protocol needs to know of objects, read through a [`Reader`] and remembered for one request.
//!
//! A fetch looks at few trees but at the same ones more than once: the tree of a commit and that of its child differ in
//! a handful of directories. So parsed trees are kept, up to a bound; the links of commits are small and are all kept,
//! up to the limit on visited commits.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use gix::objs::{CommitRefIter, TagRefIter, TreeRefIter};

use super::{Error, Result};
use crate::{Object, ObjectKind, Oid, Reader, Store};

/// The parsed trees of one request. 16 MB are the trees of some hundred thousand files; when it is full everything is
/// dropped, because the walk has moved on by then.
const TREE_CACHE_BYTES: usize = 16 << 20;
/// Commits, trees and tags came in through the limits of a push; this one only keeps a damaged store from taking all memory.
const MAX_OBJECT_BYTES: u64 = 1 << 30;

/// What a commit refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Links {
    pub(crate) tree: Oid,
    pub(crate) parents: Vec<Oid>,
    /// The committer's time, which orders walks.
    pub(crate) time_s: i64,
}

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

    /// The order of entries in a tree: by name, as if those of directories ended in a slash.
    pub(crate) fn order(&self, entry: &TreeEntry, other: &Tree, other_entry: &TreeEntry) -> std::cmp::Ordering {
        let (a, b) = (self.name(entry), other.name(other_entry));
        let common = a.len().min(b.len());
        let end = |name: &[u8], kind| name.get(common).copied().or((kind == EntryKind::Tree).then_some(b'/'));
        a[..common].cmp(&b[..common]).then_with(|| end(a, entry.kind).cmp(&end(b, other_entry.kind)))
    }
}

/// The objects of one store, as one request sees them.
pub(crate) struct Objects {
    store: Store,
    reader: Reader,
    links: RefCell<HashMap<Oid, Rc<Links>>>,
    trees: RefCell<TreeCache>,
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
        Ok(Objects { store: store.clone(), reader, links: RefCell::default(), trees: RefCell::default(), max_commits })
    }

    /// The packs of the store and their sizes. Nothing if they cannot be listed: objects are found in other ways, too.
    pub(crate) fn packs(&self) -> Vec<(PathBuf, u64)> {
        let packs = self.store.packs().unwrap_or_default();
        packs.into_iter().map(|info| (info.path, info.bytes)).collect()
    }

    /// The kind of an object; `None` if it is not here.
    pub(crate) fn kind(&self, id: Oid) -> Result<Option<ObjectKind>> {
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
        let data = self.data(id, ObjectKind::Commit)?;
        let links = Rc::new(parse_commit(&data).ok_or_else(|| damaged(id, "commit"))?);
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
        let data = if id == Oid::EMPTY_TREE { Vec::new() } else { self.data(id, ObjectKind::Tree)? };
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
                    let data = self.data(at, ObjectKind::Tag)?;
                    let target = TagRefIter::from_bytes(&data, gix::hash::Kind::Sha1)
                        .target_id()
                        .map_err(|_| damaged(at, "tag"))?;
                    tags.push(at);
                    at = target.into();
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
        if id == Oid::EMPTY_TREE {
            return Ok(Object { kind: ObjectKind::Tree, data: Vec::new() });
        }
        self.reader.object(id, MAX_OBJECT_BYTES).map_err(Error::store)
    }

    fn data(&self, id: Oid, expected: ObjectKind) -> Result<Vec<u8>> {
        let object = self.reader.object(id, MAX_OBJECT_BYTES).map_err(Error::store)?;
        if object.kind != expected {
            return Err(Error::store(crate::Error::WrongKind { id, expected, actual: object.kind }));
        }
        Ok(object.data)
    }
}

fn damaged(id: Oid, kind: &str) -> Error {
    Error::store(crate::Error::Damaged { id, reason: format!("it is no readable {kind}") })
}

fn parse_commit(data: &[u8]) -> Option<Links> {
    let mut iter = CommitRefIter::from_bytes(data, gix::hash::Kind::Sha1);
    let tree = iter.tree_id().ok()?.into();
    let parents = iter.clone().parent_ids().map(Oid::from).collect();
    // A time that cannot be read only costs order.
    let time_s = iter.committer().ok().and_then(|who| who.time().ok()).map_or(0, |time| time.seconds);
    Some(Links { tree, parents, time_s })
}

fn parse_tree(data: Vec<u8>) -> Option<Tree> {
    let start = data.as_ptr() as usize;
    let mut entries = Vec::with_capacity(data.len() / 36 + 1);
    for entry in TreeRefIter::from_bytes(&data, gix::hash::Kind::Sha1) {
        let entry = entry.ok()?;
        let offset = u32::try_from(entry.filename.as_ptr() as usize - start).ok()?;
        let kind = match entry.mode.kind() {
            gix::objs::tree::EntryKind::Tree => EntryKind::Tree,
            gix::objs::tree::EntryKind::Commit => EntryKind::Submodule,
            _ => EntryKind::Blob,
        };
        entries.push(TreeEntry {
            kind,
            id: entry.oid.into(),
            name: (offset, offset + u32::try_from(entry.filename.len()).ok()?),
        });
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
            assert_eq!(one.order(&pair[0], &one, &pair[1]), std::cmp::Ordering::Less);
        }
        let kinds: Vec<_> = one.entries.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [EntryKind::Blob, EntryKind::Tree, EntryKind::Blob, EntryKind::Submodule]);
        assert_eq!(one.name(&one.entries[0]), b"a.b");
        // A file and a directory of the same name are not the same entry.
        let other = tree(&[("100644", "a")]);
        assert_ne!(one.order(&one.entries[1], &other, &other.entries[0]), std::cmp::Ordering::Equal);
    }

    #[test]
    fn commits() {
        let text = "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nparent 4b825dc642cb6eb9a060e54bf8d69288fbee4905\n\
                    author A <a@b> 5 +0000\ncommitter A <a@b> 1700000000 +0100\n\nhello\n";
        let links = parse_commit(text.as_bytes()).unwrap();
        assert_eq!((links.tree, links.parents.len(), links.time_s), (Oid::EMPTY_TREE, 1, 1_700_000_000));
        assert!(parse_commit(b"blob").is_none());
        assert!(parse_tree(b"100644 a\0short".to_vec()).is_none());
    }
}
