//! A commit's tree as [`cluster::documents`] wants to see files: the bridge between git objects and documents, for the gate and for
//! whoever asks for an effective document.
//!
//! Symbolic links are listed and have no content: the gate refuses documents that are links, so nothing needs to follow them.

use std::borrow::Borrow;
use std::cell::OnceCell;

use cluster::documents::files::MAX_DOCUMENT_BYTES;
use cluster::documents::{Files, FilesError};
use repos::{Oid, Reader, RepoPath, Store};

/// The files of one tree, through a reader of its own or somebody else's.
pub struct TreeFiles<R = Reader> {
    reader: R,
    tree: Oid,
}

impl<R: Borrow<Reader>> TreeFiles<R> {
    /// The files of this tree.
    pub fn new(reader: R, tree: Oid) -> Self {
        Self { reader, tree }
    }

    /// The files of a commit; of none for [`Oid::NULL`].
    pub fn of_commit(reader: R, commit: Oid) -> Result<Self, repos::Error> {
        let tree = if commit.is_null() { Oid::EMPTY_TREE } else { reader.borrow().tree_of(commit)? };
        Ok(Self { reader, tree })
    }
}

impl<R: Borrow<Reader>> Files for TreeFiles<R> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        // A path that git would not take is no file of a tree.
        let Ok(name) = RepoPath::new(path) else { return Ok(None) };
        let reader: &Reader = self.reader.borrow();
        let read = || match reader.entry(self.tree, &name)? {
            Some(entry) if entry.mode.is_file() => reader.blob(entry.id, MAX_DOCUMENT_BYTES).map(Some),
            _ => Ok(None),
        };
        read().map_err(|error: repos::Error| FilesError::new(path, error))
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        let directory = directory.trim_end_matches('/');
        let prefix = if directory.is_empty() { None } else { RepoPath::new(directory).ok() };
        if prefix.is_none() && !directory.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.reader.borrow().list(self.tree, prefix.as_ref(), true);
        let entries = entries.map_err(|error| FilesError::new(directory, error))?;
        let files = entries.iter().filter(|entry| entry.mode.is_blob() && Some(&entry.path) != prefix.as_ref());
        let mut names: Vec<String> = files.filter_map(|entry| entry.path.as_str().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }
}

/// The files of a commit that are probably not asked for: nothing is opened before.
pub struct LazyFiles {
    store: Store,
    commit: Oid,
    opened: OnceCell<Box<TreeFiles>>,
}

impl LazyFiles {
    /// The files of a commit in a store.
    pub fn new(store: Store, commit: Oid) -> Self {
        Self { store, commit, opened: OnceCell::new() }
    }

    fn open(&self, path: &str) -> Result<&TreeFiles, FilesError> {
        if self.opened.get().is_none() {
            let open = || TreeFiles::of_commit(self.store.reader()?, self.commit);
            let files = open().map_err(|error| FilesError::new(path, error))?;
            // Only this thread has the cell, so nobody else can have filled it.
            let _ = self.opened.set(Box::new(files));
        }
        Ok(self.opened.get().expect("it was just filled"))
    }
}

impl Files for LazyFiles {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        self.open(path)?.read(path)
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        self.open(directory)?.list(directory)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use repos::{Content, Draft, Mode, TreeChange};

    use super::*;

    #[test]
    fn files_are_read_and_links_are_only_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::init(&dir.path().join("r.git")).unwrap();
        let mut draft = Draft::new(&store).unwrap();
        let put = |path: &str, mode, text: &'static str| TreeChange::Put {
            path: RepoPath::new(path).unwrap(),
            mode: Some(mode),
            content: Content::Bytes(Bytes::from_static(text.as_bytes())),
        };
        let changes = [put("d/file", Mode::File, "content"), put("d/link", Mode::Symlink, "file")];
        let tree = draft.apply(Oid::EMPTY_TREE, &changes).unwrap();
        let files = TreeFiles::<&Reader>::new(&draft, tree);
        assert_eq!(files.read("d/file").unwrap().as_deref(), Some(b"content".as_slice()));
        for absent in ["d/link", "d", "none", "../x", ""] {
            assert_eq!(files.read(absent).unwrap(), None, "{absent:?}");
        }
        assert_eq!(files.list("").unwrap(), ["d/file", "d/link"]);
        assert_eq!(files.list("d/").unwrap(), ["d/file", "d/link"]);
        assert_eq!(files.list("d/file").unwrap(), [] as [&str; 0]);
        let nothing = LazyFiles::new(store, Oid::NULL);
        assert_eq!(nothing.list("").unwrap(), [] as [&str; 0]);
    }
}
