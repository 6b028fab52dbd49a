//! Editing a tree that is not in memory.
//!
//! Only the directories on the way to an edit are read, and only those that changed are written again. A directory keeps
//! the bytes it was read from, and edits beside them: a change to one file of ten thousand copies bytes, it does not
//! build ten thousand entries. Directories that become empty disappear, as git cannot store them.

use std::collections::BTreeMap;

use crate::draft::ApplyProblem;
use crate::reader::{Mode, ObjectKind, Reader, checked};
use crate::{Error, Oid, RepoPath, Result, tree};

/// Why an edit failed. Which path it failed on, the caller knows.
#[derive(Debug)]
pub(crate) enum EditFailure {
    Problem(ApplyProblem),
    Store(Error),
}

impl From<Error> for EditFailure {
    fn from(err: Error) -> Self {
        EditFailure::Store(err)
    }
}

impl From<ApplyProblem> for EditFailure {
    fn from(problem: ApplyProblem) -> Self {
        EditFailure::Problem(problem)
    }
}

/// A tree being edited.
pub(crate) struct TreeEditor<'a> {
    reader: &'a Reader,
    root: Node,
}

/// A directory that was opened.
struct Node {
    /// As it was read.
    data: Vec<u8>,
    /// Where each of its entries begins in `data`.
    offsets: Vec<u32>,
    /// What differs from that, by name; `None` is deleted.
    edits: BTreeMap<Vec<u8>, Option<Item>>,
}

enum Item {
    /// Something that is not opened: a file, or a directory as a whole.
    Leaf(Mode, Oid),
    /// An opened directory.
    Open(Box<Node>),
}

impl<'a> TreeEditor<'a> {
    pub(crate) fn new(reader: &'a Reader, tree: Oid) -> Result<TreeEditor<'a>> {
        Ok(TreeEditor { reader, root: Node::read(reader, tree)? })
    }

    /// True if the blob is here.
    pub(crate) fn has_blob(&self, id: Oid) -> Result<bool> {
        Ok(self.reader.header(id)?.is_some_and(|(kind, _)| kind == ObjectKind::Blob))
    }

    /// Answers whether the content is another than what was there.
    pub(crate) fn put(&mut self, path: &RepoPath, mode: Option<Mode>, id: Oid) -> Result<bool, EditFailure> {
        let node = self.directory_of(path, true)?;
        let old = node.get(path.name())?;
        if old.is_some_and(|(mode, _)| mode == Mode::Dir) {
            return Err(ApplyProblem::IsADirectory.into());
        }
        let mode = mode.or(old.map(|(mode, _)| mode)).unwrap_or(Mode::File);
        if !mode.is_blob() {
            return Err(ApplyProblem::Mode(mode).into());
        }
        node.set(path.name(), Some(Item::Leaf(mode, id)));
        Ok(old.is_none_or(|(_, old)| old != id))
    }

    pub(crate) fn chmod(&mut self, path: &RepoPath, mode: Mode) -> Result<(), EditFailure> {
        let node = self.directory_of(path, false)?;
        match node.get(path.name())? {
            None => Err(ApplyProblem::NotFound.into()),
            Some((Mode::Dir, _)) => Err(ApplyProblem::IsADirectory.into()),
            Some((old, id)) if old.is_file() && mode.is_file() => {
                node.set(path.name(), Some(Item::Leaf(mode, id)));
                Ok(())
            }
            Some(_) => Err(ApplyProblem::Mode(mode).into()),
        }
    }

    /// Removes what is at `path`, and answers it.
    pub(crate) fn delete(&mut self, path: &RepoPath) -> Result<Removed, EditFailure> {
        let node = self.directory_of(path, false)?;
        let removed = node.take(path.name())?.ok_or(ApplyProblem::NotFound)?;
        Ok(Removed(removed))
    }

    pub(crate) fn rename(&mut self, from: &RepoPath, to: &RepoPath) -> Result<(), (RepoPath, EditFailure)> {
        let on = |path: &RepoPath| {
            let path = path.clone();
            move |failure: EditFailure| (path, failure)
        };
        if to != from && to.starts_with(from) {
            return Err(on(from)(ApplyProblem::IntoItself.into()));
        }
        let node = self.directory_of(from, false).map_err(on(from))?;
        if node.get(from.name()).map_err(|err| on(from)(err.into()))?.is_none() {
            return Err(on(from)(ApplyProblem::NotFound.into()));
        }
        let target = self.directory_of(to, true).map_err(on(to))?;
        if target.get(to.name()).map_err(|err| on(to)(err.into()))?.is_some() {
            return Err(on(to)(ApplyProblem::Exists.into()));
        }
        let Removed(item) = self.delete(from).map_err(on(from))?;
        self.directory_of(to, true).map_err(on(to))?.set(to.name(), Some(item));
        Ok(())
    }

    /// The id of the edited tree, and the bytes of every tree in it that was written anew, innermost first.
    pub(crate) fn finish(self) -> (Oid, Vec<Vec<u8>>) {
        let mut trees = Vec::new();
        let was_empty = self.root.data.is_empty();
        let root = match self.root.write(&mut trees) {
            Some(id) => id,
            None => {
                if !was_empty {
                    trees.push(Vec::new());
                }
                Oid::EMPTY_TREE
            }
        };
        (root, trees)
    }

    /// The opened directory that `path` lies in. With `create`, missing ones are made (they vanish again if they stay empty).
    fn directory_of(&mut self, path: &RepoPath, create: bool) -> Result<&mut Node, EditFailure> {
        let mut node = &mut self.root;
        let mut names = path.components();
        names.next_back();
        for name in names {
            match node.get(name)? {
                Some((Mode::Dir, _)) => {}
                Some(_) => return Err(ApplyProblem::NotADirectory(prefix_ending_in(path, name)).into()),
                None if create => {}
                None => return Err(ApplyProblem::NotFound.into()),
            }
            node = node.open(self.reader, name)?;
        }
        Ok(node)
    }
}

/// What [`TreeEditor::delete`] took out.
pub(crate) struct Removed(Item);

/// The part of `path` up to the component `name`, which is one of its components by address.
fn prefix_ending_in(path: &RepoPath, name: &[u8]) -> RepoPath {
    let end = name.as_ptr() as usize + name.len() - path.as_bytes().as_ptr() as usize;
    RepoPath::from_tree(path.as_bytes()[..end].to_vec())
}

impl Node {
    fn read(reader: &Reader, tree: Oid) -> Result<Node> {
        Node::parse(tree, reader.tree_data(tree)?)
    }

    fn parse(id: Oid, data: Vec<u8>) -> Result<Node> {
        let mut offsets = Vec::new();
        let mut entries = tree::entries(&data);
        loop {
            let start = entries.position_in(&data) as u32;
            let Some(entry) = entries.next() else { break };
            checked(id, entry)?;
            offsets.push(start);
        }
        Ok(Node { data, offsets, edits: BTreeMap::new() })
    }

    fn empty() -> Node {
        Node { data: Vec::new(), offsets: Vec::new(), edits: BTreeMap::new() }
    }

    fn stored(&self, at: usize) -> tree::RawEntry<'_> {
        let start = self.offsets[at] as usize;
        tree::entries(&self.data[start..])
            .next()
            .and_then(Result::ok)
            .expect("every entry was read when the node was made")
    }

    /// The entry as it was read. Names are sorted as if directories ended in a slash, hence two searches.
    fn find_stored(&self, name: &[u8]) -> Option<(Mode, Oid)> {
        [false, true].into_iter().find_map(|as_dir| {
            let order = |start: &u32| {
                let entry = tree::entries(&self.data[*start as usize..]).next().and_then(Result::ok);
                let entry = entry.expect("every entry was read when the node was made");
                tree::order(entry.name, entry.mode() == Some(Mode::Dir), name, as_dir)
            };
            let at = self.offsets.binary_search_by(order).ok()?;
            let entry = self.stored(at);
            Some((entry.mode().expect("modes were checked when the node was made"), entry.id))
        })
    }

    /// What is at `name`. The id of an opened directory is not known and is null.
    fn get(&self, name: &[u8]) -> Result<Option<(Mode, Oid)>> {
        Ok(match self.edits.get(name) {
            Some(None) => None,
            Some(Some(Item::Leaf(mode, id))) => Some((*mode, *id)),
            Some(Some(Item::Open(node))) => (!node.is_empty()).then_some((Mode::Dir, Oid::NULL)),
            None => self.find_stored(name),
        })
    }

    fn set(&mut self, name: &[u8], item: Option<Item>) {
        self.edits.insert(name.to_vec(), item);
    }

    fn take(&mut self, name: &[u8]) -> Result<Option<Item>> {
        let Some((mode, id)) = self.get(name)? else { return Ok(None) };
        let edited = self.edits.insert(name.to_vec(), None).flatten();
        Ok(Some(edited.unwrap_or(Item::Leaf(mode, id))))
    }

    /// Opens the directory `name`, or makes it.
    fn open(&mut self, reader: &Reader, name: &[u8]) -> Result<&mut Node> {
        if !matches!(self.edits.get(name), Some(Some(Item::Open(_)))) {
            let node = match self.get(name)? {
                Some((Mode::Dir, id)) => Node::read(reader, id)?,
                _ => Node::empty(),
            };
            self.edits.insert(name.to_vec(), Some(Item::Open(Box::new(node))));
        }
        match self.edits.get_mut(name) {
            Some(Some(Item::Open(node))) => Ok(node),
            _ => unreachable!("it was opened just now"),
        }
    }

    /// True if nothing would be written for it.
    fn is_empty(&self) -> bool {
        let is_there = |item: &Option<Item>| match item {
            None => false,
            Some(Item::Leaf(..)) => true,
            Some(Item::Open(node)) => !node.is_empty(),
        };
        if self.edits.values().any(is_there) {
            return false;
        }
        (0..self.offsets.len()).all(|at| self.edits.contains_key(self.stored(at).name))
    }

    /// Adds the bytes of this tree and of the changed ones in it; answers its id, or `None` if it is empty.
    fn write(self, trees: &mut Vec<Vec<u8>>) -> Option<Oid> {
        let mut edited: Vec<(Vec<u8>, Mode, Oid)> = Vec::new();
        let mut gone = BTreeMap::new();
        for (name, item) in self.edits {
            match item {
                None => {}
                Some(Item::Leaf(mode, id)) => edited.push((name.clone(), mode, id)),
                Some(Item::Open(node)) => edited.extend(node.write(trees).map(|id| (name.clone(), Mode::Dir, id))),
            }
            gone.insert(name, ());
        }
        edited.sort_by(|a, b| tree::order(&a.0, a.1 == Mode::Dir, &b.0, b.1 == Mode::Dir));
        let mut out = Vec::with_capacity(self.data.len() + edited.len() * 64);
        let mut edited = edited.into_iter().peekable();
        for (at, start) in self.offsets.iter().enumerate() {
            let end = self.offsets.get(at + 1).map_or(self.data.len(), |next| *next as usize);
            let bytes = &self.data[*start as usize..end];
            let entry =
                tree::entries(bytes).next().and_then(Result::ok).expect("every entry was read when the node was made");
            if !gone.is_empty() && gone.contains_key(entry.name) {
                continue;
            }
            let is_dir = entry.mode() == Some(Mode::Dir);
            while let Some((name, mode, id)) =
                edited.next_if(|new| tree::order(&new.0, new.1 == Mode::Dir, entry.name, is_dir).is_lt())
            {
                tree::push_entry(&mut out, mode, &name, id);
            }
            out.extend_from_slice(bytes);
        }
        edited.for_each(|(name, mode, id)| tree::push_entry(&mut out, mode, &name, id));
        if out.is_empty() {
            return None;
        }
        let id = gix::objs::compute_hash(gix::hash::Kind::Sha1, gix::objs::Kind::Tree, &out)
            .expect("hashing our own bytes finds no collision");
        if out != self.data {
            trees.push(out);
        }
        Some(Oid::from(id))
    }
}
