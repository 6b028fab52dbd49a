//! Building objects in memory.
//!
//! A [`Draft`] stands on a store and sees its objects and its own. Several commits can be chained in one draft;
//! nothing is written until [`Draft::into_pack`] hands out exactly what the draft made, so a draft that is dropped leaves no
//! trace.
//!
//! Whether the store happens to have an object already is not asked. A store also holds what nothing refers to any more, and
//! another replica, which got its objects another way, may not: a pack has to bring all that its commits newly use. What an edit
//! leaves as it was is not made again, so only the content of a file that existed before somewhere else is sent twice.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::edit::{EditFailure, TreeEditor};
use crate::object;
use crate::pack::PackWriter;
use crate::reader::{Mode, ObjectKind, Reader, Signature, checked, damaged, odb_error};
use crate::tree;
use crate::{Error, Oid, PackError, RepoPath, Result, Store};

/// One edit of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeChange {
    /// Create or replace a file; directories on the way are made. A directory in its place is an error.
    Put {
        /// The file.
        path: RepoPath,
        /// `File`, `Exec` or `Symlink`. `None` keeps the mode of the file that is there, or makes a `File`.
        mode: Option<Mode>,
        /// What is in it; for a symbolic link, its target.
        content: Content,
    },
    /// Remove a file, or a directory with all that is in it.
    Delete {
        /// What to remove; it must exist.
        path: RepoPath,
    },
    /// Move a file or a directory. The target must not exist.
    Rename {
        /// Where it is.
        from: RepoPath,
        /// Where it goes.
        to: RepoPath,
    },
    /// Change the mode of a file and keep its content.
    Chmod {
        /// The file.
        path: RepoPath,
        /// `File` or `Exec`.
        mode: Mode,
    },
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// A blob that the draft can see.
    Blob(Oid),
}

/// A commit to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCommit {
    /// The root tree.
    pub tree: Oid,
    /// The parents, the first one first.
    pub parents: Vec<Oid>,
    /// Who made the change.
    pub author: Signature,
    /// Who makes the commit.
    pub committer: Signature,
    /// The message; a newline is added at its end if it has none.
    pub message: String,
}

/// Why a change could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The change does not fit the tree.
    #[error("{path}: {problem}")]
    Change {
        /// The path that the change names.
        path: RepoPath,
        /// What is wrong.
        problem: ApplyProblem,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// What can be wrong with a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyProblem {
    /// Nothing is there to delete, rename or change.
    #[error("there is no such file or directory")]
    NotFound,
    /// A file was expected.
    #[error("is a directory")]
    IsADirectory,
    /// A directory on the way is a file.
    #[error("{0} is a file, not a directory")]
    NotADirectory(RepoPath),
    /// The target of a rename exists.
    #[error("exists already")]
    Exists,
    /// A directory cannot be moved into itself.
    #[error("cannot be moved into itself")]
    IntoItself,
    /// A file cannot have this mode.
    #[error("mode {0} is not for files")]
    Mode(Mode),
    /// The blob that the change names is not here.
    #[error("blob {0} is missing")]
    MissingBlob(Oid),
}

/// Objects in memory on top of a store. Dereferences to a [`Reader`] that sees them.
pub struct Draft {
    reader: Reader,
}

/// The objects that a draft made.
#[derive(Default)]
pub(crate) struct Fresh {
    objects: HashMap<Oid, (ObjectKind, Bytes)>,
    /// In the order in which they were made, so that the same draft always makes the same pack.
    order: Vec<Oid>,
}

impl Fresh {
    pub(crate) fn get(&self, id: Oid) -> Option<(ObjectKind, &Bytes)> {
        self.objects.get(&id).map(|(kind, data)| (*kind, data))
    }

    /// How many objects there are, to come back to.
    pub(crate) fn mark(&self) -> usize {
        self.order.len()
    }

    /// Forgets what was made since the mark was taken.
    pub(crate) fn roll_back(&mut self, mark: usize) {
        for id in self.order.drain(mark..) {
            self.objects.remove(&id);
        }
    }
}

impl std::ops::Deref for Draft {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Draft {
    /// An empty draft on a store.
    pub fn new(store: &Store) -> Result<Draft> {
        Ok(Draft::over(store.reader()?))
    }

    /// An empty draft on what a reader sees (a quarantine's, for instance).
    pub fn over(reader: Reader) -> Draft {
        Draft { reader }
    }

    pub(crate) fn reader_mut(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// Stores a blob.
    pub fn write_blob(&mut self, data: &[u8]) -> Result<Oid> {
        self.write(ObjectKind::Blob, Bytes::copy_from_slice(data))
    }

    pub(crate) fn write(&mut self, kind: ObjectKind, data: Bytes) -> Result<Oid> {
        let id = id_of(kind, &data)?;
        self.remember(id, kind, data);
        Ok(id)
    }

    pub(crate) fn remember(&mut self, id: Oid, kind: ObjectKind, data: Bytes) {
        let fresh = self.reader.fresh.get_mut();
        if let Entry::Vacant(place) = fresh.objects.entry(id) {
            place.insert((kind, data));
            fresh.order.push(id);
        }
    }

    /// Applies the changes one after the other and answers the new tree. `tree` may be [`Oid::EMPTY_TREE`].
    /// If one does not fit, none is applied.
    pub fn apply(&mut self, tree: Oid, changes: &[TreeChange]) -> Result<Oid, ApplyError> {
        let mut editor = TreeEditor::new(&self.reader, tree)?;
        let mut blobs = Vec::new();
        for change in changes {
            apply_one(&mut editor, change, &mut blobs)?;
        }
        let (root, trees) = editor.finish();
        for (id, data) in blobs {
            self.remember(id, ObjectKind::Blob, data);
        }
        for data in trees {
            self.write(ObjectKind::Tree, data.into())?;
        }
        Ok(root)
    }

    /// Makes a commit.
    pub fn commit(&mut self, commit: &NewCommit) -> Result<Oid> {
        self.write(ObjectKind::Commit, object::write_commit(commit).into())
    }

    /// A self-contained pack of exactly the objects that the draft made. `None` if there are none. Objects that no commit came
    /// to use are in it as well.
    pub fn into_pack(self) -> Result<Option<Vec<u8>>> {
        let fresh = self.reader.fresh.borrow();
        pack(&fresh, &fresh.order)
    }

    /// Like [`Draft::into_pack`], but only what `tips` reach, and without consuming the draft: candidates that were
    /// refused leave nothing behind.
    pub fn pack_of(&self, tips: &[Oid]) -> Result<Option<Vec<u8>>> {
        let fresh = self.reader.fresh.borrow();
        let reached = reach(&fresh, tips)?;
        let wanted: Vec<Oid> = fresh.order.iter().copied().filter(|id| reached.contains(id)).collect();
        pack(&fresh, &wanted)
    }
}

/// The name that an object with this content has.
pub(crate) fn id_of(kind: ObjectKind, data: &[u8]) -> Result<Oid> {
    gix::objs::compute_hash(gix::hash::Kind::Sha1, kind.into(), data).map(Oid::from).map_err(odb_error(Oid::NULL))
}

/// The fresh objects that `tips` reach. What is not fresh was in the store before, and so was all that it reaches.
fn reach(fresh: &Fresh, tips: &[Oid]) -> Result<HashSet<Oid>> {
    let mut reached = HashSet::new();
    let mut todo = tips.to_vec();
    while let Some(id) = todo.pop() {
        let Some((kind, data)) = fresh.get(id) else { continue };
        if !reached.insert(id) {
            continue;
        }
        match kind {
            ObjectKind::Commit => {
                let links = object::links(data).ok_or_else(|| damaged(id, "it is not a commit"))?;
                todo.push(links.tree);
                todo.extend(links.parents);
            }
            ObjectKind::Tree => {
                for entry in tree::entries(data) {
                    todo.push(checked(id, entry)?.0.id);
                }
            }
            ObjectKind::Tag => todo.extend(object::tag_target(data).map(|(target, _)| target)),
            ObjectKind::Blob => {}
        }
    }
    Ok(reached)
}

fn pack(fresh: &Fresh, wanted: &[Oid]) -> Result<Option<Vec<u8>>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let storing = |source| Error::Pack(PackError::Io { action: "write", source });
    let mut writer = PackWriter::new(Vec::new(), wanted.len() as u32).map_err(storing)?;
    // Commits first, as git orders its packs: walking history then reads the pack from front to back.
    for kind in [ObjectKind::Commit, ObjectKind::Tag, ObjectKind::Tree, ObjectKind::Blob] {
        for (kind, data) in wanted.iter().filter_map(|id| fresh.get(*id)).filter(|(is, _)| *is == kind) {
            writer.object(kind, data).map_err(storing)?;
        }
    }
    Ok(Some(writer.finish().map_err(storing)?.1))
}

fn apply_one(
    editor: &mut TreeEditor<'_>,
    change: &TreeChange,
    blobs: &mut Vec<(Oid, Bytes)>,
) -> Result<(), ApplyError> {
    let at = |path: &RepoPath| {
        let path = path.clone();
        move |failure: EditFailure| match failure {
            EditFailure::Problem(problem) => ApplyError::Change { path, problem },
            EditFailure::Store(err) => ApplyError::Store(err),
        }
    };
    match change {
        TreeChange::Put { path, mode, content: Content::Bytes(data) } => {
            let id = id_of(ObjectKind::Blob, data)?;
            if editor.put(path, *mode, id).map_err(at(path))? {
                blobs.push((id, data.clone()));
            }
            Ok(())
        }
        TreeChange::Put { path, mode, content: Content::Blob(id) } => {
            if !editor.has_blob(*id)? {
                return Err(at(path)(EditFailure::Problem(ApplyProblem::MissingBlob(*id))));
            }
            editor.put(path, *mode, *id).map(|_| ()).map_err(at(path))
        }
        TreeChange::Delete { path } => editor.delete(path).map(|_| ()).map_err(at(path)),
        TreeChange::Rename { from, to } => editor.rename(from, to).map_err(|(path, failure)| at(&path)(failure)),
        TreeChange::Chmod { path, mode } => editor.chmod(path, *mode).map_err(at(path)),
    }
}
