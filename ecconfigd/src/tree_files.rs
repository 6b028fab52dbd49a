//! A commit's tree as [`cluster::documents`] wants to see files: the bridge between git objects and documents.

use cluster::documents::files::MAX_DOCUMENT_BYTES;
use cluster::documents::{Files, FilesError};
use repos::{Oid, Reader, RepoPath};

/// The files of one tree. Symbolic links count as files whose content is their target; nothing follows them.
pub struct TreeFiles {
    reader: Reader,
    tree: Oid,
}

impl TreeFiles {
    /// The files of this tree.
    pub fn new(reader: Reader, tree: Oid) -> Self {
        Self { reader, tree }
    }

    /// The files of a commit.
    pub fn of_commit(reader: Reader, commit: Oid) -> Result<Self, repos::Error> {
        let tree = reader.tree_of(commit)?;
        Ok(Self { reader, tree })
    }
}

impl Files for TreeFiles {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        let failed = |error: repos::Error| FilesError::new(path, error);
        // A path that git would not take is no file of a tree.
        let Ok(name) = RepoPath::new(path) else { return Ok(None) };
        match self.reader.entry(self.tree, &name).map_err(failed)? {
            Some(entry) if entry.mode.is_file() => {
                self.reader.blob(entry.id, MAX_DOCUMENT_BYTES).map(Some).map_err(failed)
            }
            _ => Ok(None),
        }
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        let directory = directory.trim_end_matches('/');
        let failed = |error: repos::Error| FilesError::new(directory, error);
        let prefix = if directory.is_empty() { None } else { RepoPath::new(directory).ok() };
        if prefix.is_none() && !directory.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.reader.list(self.tree, prefix.as_ref(), true).map_err(failed)?;
        let names = entries.iter().filter(|entry| Some(&entry.path) != prefix.as_ref());
        let mut names: Vec<String> = names.filter_map(|entry| entry.path.as_str().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }
}
