//! Trees of files as the documents see them.
//!
//! A tree is laid out like a working copy: `default/duravip.toml`, `n1/logd.toml`, `global/cluster.toml`. Where it really
//! lives (a directory, two git commits, a cache) is the business of whoever implements [`Files`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// No document is larger; reading more would only feed an attacker. 10,240 addresses with all their settings need a
/// fifth of it.
pub const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// A file that exists could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}")]
pub struct FilesError {
    /// The file or directory.
    pub path: String,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl FilesError {
    /// An error for a path.
    pub fn new(path: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { path: path.to_owned(), source: source.into() }
    }
}

/// A tree of files, read-only, unchanging while it is looked at. Paths are relative, with `/`, without `.` and `..`.
pub trait Files {
    /// The content of a file; none when there is no such file (a directory is no file).
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError>;

    /// The paths of all files below a directory (`""` for all), sorted. None below a directory that does not exist.
    /// Names that are not UTF-8 are left out: no document can have one.
    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError>;
}

impl<F: Files + ?Sized> Files for &F {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        (**self).read(path)
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        (**self).list(directory)
    }
}

/// A directory on disk, such as a working copy. `.git` is not part of it.
#[derive(Debug, Clone)]
pub struct DirFiles {
    root: PathBuf,
}

impl DirFiles {
    /// The tree below a directory, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn walk(&self, directory: &str, found: &mut Vec<String>) -> Result<(), FilesError> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(FilesError::new(directory, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| FilesError::new(directory, error))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name == ".git" {
                continue;
            }
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            // A linked directory is listed as what it is, a link: following it could run in circles.
            match entry.file_type().map_err(|error| FilesError::new(&path, error))? {
                kind if kind.is_dir() => self.walk(&path, found)?,
                kind if kind.is_file() => found.push(path),
                kind if kind.is_symlink() && self.root.join(&path).is_file() => found.push(path),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Files for DirFiles {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        match fs::read(self.root.join(path)) {
            Ok(data) => Ok(Some(data)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(FilesError::new(path, error)),
        }
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        let mut found = Vec::new();
        self.walk(directory.trim_end_matches('/'), &mut found)?;
        found.sort();
        Ok(found)
    }
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory)
}

/// Files in memory, for tests and for snapshots that are small.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryFiles(pub BTreeMap<String, Vec<u8>>);

impl MemoryFiles {
    /// From pairs of path and text.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(texts.into_iter().map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec())).collect())
    }
}

impl Files for MemoryFiles {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        Ok(self.0.get(path).cloned())
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        Ok(self.0.keys().filter(|path| is_below(path, directory)).cloned().collect())
    }
}

fn is_below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// A subcluster's repository with the repository `global` mounted at `global/`: what a working copy shows.
#[derive(Debug, Clone)]
pub struct Mounted<S, G> {
    /// The subcluster's tree.
    pub subcluster: S,
    /// The tree of the repository `global`.
    pub global: G,
}

impl<S: Files, G: Files> Files for Mounted<S, G> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        match path.strip_prefix("global/") {
            Some(inner) => self.global.read(inner),
            None => self.subcluster.read(path),
        }
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        let directory = directory.trim_end_matches('/');
        let global = |inner: &str| -> Result<Vec<String>, FilesError> {
            Ok(self.global.list(inner)?.into_iter().map(|path| format!("global/{path}")).collect())
        };
        if directory == "global" {
            return global("");
        }
        if let Some(inner) = directory.strip_prefix("global/") {
            return global(inner);
        }
        let mut found = self.subcluster.list(directory)?;
        if directory.is_empty() {
            found.retain(|path| !path.starts_with("global/"));
            found.extend(global("")?);
            found.sort();
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_and_a_mounted_pair_look_alike() {
        let own = MemoryFiles::from_texts([("default/a.toml", "a"), ("n1/sub/b.toml", "b")]);
        let global = MemoryFiles::from_texts([("cluster.toml", "c"), ("x/y.toml", "y")]);
        let mounted = Mounted { subcluster: own, global };

        let dir = tempfile::tempdir().unwrap();
        for path in mounted.list("").unwrap() {
            let target = dir.path().join(&path);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(target, mounted.read(&path).unwrap().unwrap()).unwrap();
        }
        fs::create_dir_all(dir.path().join("global/.git")).unwrap();
        fs::write(dir.path().join("global/.git/HEAD"), "x").unwrap();
        let on_disk = DirFiles::new(dir.path());

        for directory in ["", "default", "global", "global/x", "n1", "n1/", "nothing", "defaul"] {
            assert_eq!(on_disk.list(directory).unwrap(), mounted.list(directory).unwrap(), "{directory:?}");
        }
        for path in ["default/a.toml", "global/x/y.toml", "default", "nothing", "default/a.toml/b"] {
            assert_eq!(on_disk.read(path).unwrap(), mounted.read(path).unwrap(), "{path:?}");
        }
        assert_eq!(
            mounted.list("").unwrap(),
            ["default/a.toml", "global/cluster.toml", "global/x/y.toml", "n1/sub/b.toml"]
        );
    }
}
