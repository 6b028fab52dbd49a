//! The gate's view of a git tree.

use std::cell::OnceCell;

use cluster::gate::{Files, FilesError};
use repos::{Mode, Oid, Reader, RepoPath, Store};

/// Links inside the tree are followed so often; more is a circle.
const MAX_LINKS: usize = 8;
/// The gate reads nothing larger; what is larger is refused by its own limits before.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// Where a tree's objects are.
pub(super) enum Source<'a> {
    /// A reader that is there: a draft's or a quarantine's.
    Reader(&'a Reader),
    /// A store that is opened only when the gate asks.
    Store(Store, OnceCell<Reader>),
}

impl Source<'_> {
    pub(super) fn store(store: Store) -> Self {
        Source::Store(store, OnceCell::new())
    }

    fn reader(&self) -> repos::Result<&Reader> {
        match self {
            Source::Reader(reader) => Ok(reader),
            Source::Store(store, cell) => {
                if cell.get().is_none() {
                    // Only this thread has the cell, so nobody else can have filled it.
                    let _ = cell.set(store.reader()?);
                }
                Ok(cell.get().expect("it was just filled"))
            }
        }
    }
}

/// A tree as the gate reads it.
pub(super) struct TreeFiles<'a> {
    pub(super) source: Source<'a>,
    pub(super) tree: Oid,
}

impl TreeFiles<'_> {
    fn find(&self, path: &RepoPath, links: usize) -> repos::Result<Option<Oid>> {
        let reader = self.source.reader()?;
        let Some(entry) = reader.entry(self.tree, path)? else { return Ok(None) };
        match entry.mode {
            Mode::File | Mode::Exec => Ok(Some(entry.id)),
            Mode::Symlink if links < MAX_LINKS => {
                let target = reader.blob(entry.id, 4096)?;
                match follow(path, &target) {
                    Some(next) => self.find(&next, links + 1),
                    None => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }
}

/// Where a link inside the tree leads; `None` if out of it.
fn follow(link: &RepoPath, target: &[u8]) -> Option<RepoPath> {
    if target.starts_with(b"/") {
        return None;
    }
    let parent = link.parent();
    let mut parts: Vec<&[u8]> =
        parent.as_ref().map_or(Vec::new(), |dir| dir.as_bytes().split(|b| *b == b'/').collect());
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    RepoPath::new(parts.join(&b'/')).ok()
}

impl Files for TreeFiles<'_> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        let Ok(checked) = RepoPath::new(path) else { return Ok(None) };
        let read = || {
            let Some(id) = self.find(&checked, 0)? else { return Ok(None) };
            self.source.reader()?.blob(id, MAX_DOCUMENT_BYTES).map(Some)
        };
        read().map_err(|error: repos::Error| FilesError::new(path, error))
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        let directory = directory.trim_end_matches('/');
        let prefix = match directory {
            "" => None,
            name => match RepoPath::new(name) {
                Ok(prefix) => Some(prefix),
                Err(_) => return Ok(Vec::new()),
            },
        };
        let list = || self.source.reader()?.list(self.tree, prefix.as_ref(), true);
        let entries = list().map_err(|error: repos::Error| FilesError::new(directory, error))?;
        let below = |path: &RepoPath| prefix.as_ref().is_none_or(|prefix| path != prefix);
        let mut paths: Vec<String> = entries
            .into_iter()
            .filter(|entry| entry.mode.is_blob() && below(&entry.path))
            .filter_map(|entry| String::from_utf8(entry.path.as_bytes().to_vec()).ok())
            .collect();
        paths.sort();
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn links_stay_inside() {
        let link = RepoPath::new("a/b/link").unwrap();
        let to = |target: &str| follow(&link, target.as_bytes()).map(|path| path.to_string());
        assert_eq!(to("c").as_deref(), Some("a/b/c"));
        assert_eq!(to("../c").as_deref(), Some("a/c"));
        assert_eq!(to("../../x/./y").as_deref(), Some("x/y"));
        assert_eq!(to("../../../x"), None);
        assert_eq!(to("/etc/passwd"), None);
    }
}
