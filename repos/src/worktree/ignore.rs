//! Which unknown files git would not show.
//!
//! `.gitignore` files of the tree and `.git/info/exclude`. The user's personal exclude file is not read: what a node
//! sees must not depend on who looks.

use std::collections::HashMap;
use std::path::PathBuf;

use gix::bstr::ByteSlice;
use gix::glob::pattern::Case;
use gix::ignore::Search;
use gix::ignore::search::Ignore;

use super::fsx::{self, DirCursor};
use super::tree::TreeMount;

pub(crate) struct Ignored {
    cursor: DirCursor,
    exclude: Search,
    /// Per directory, its `.gitignore` if it has one.
    files: HashMap<Vec<u8>, Option<Search>>,
    /// What was found out about directories.
    dirs: HashMap<Vec<u8>, bool>,
}

const PARSE: Ignore = Ignore { support_precious: false };

impl Ignored {
    pub(crate) fn new(mount: &TreeMount) -> Ignored {
        let exclude =
            fsx::try_read_at(&mount.git, b"info/exclude").ok().flatten().map(|data| parse(&data)).unwrap_or_default();
        Ignored { cursor: mount.cursor(), exclude, files: HashMap::new(), dirs: HashMap::new() }
    }

    /// True if git ignores the file: it, or a directory above it, is excluded.
    pub(crate) fn contains(&mut self, path: &[u8]) -> bool {
        for dir in fsx::ancestors(path) {
            let known = self.dirs.get(dir).copied();
            let ignored = match known {
                Some(ignored) => ignored,
                None => {
                    let ignored = self.matches(dir, true);
                    self.dirs.insert(dir.to_vec(), ignored);
                    ignored
                }
            };
            if ignored {
                return true;
            }
        }
        self.matches(path, false)
    }

    /// The last pattern that matches decides; deeper files come after those above them.
    fn matches(&mut self, path: &[u8], is_dir: bool) -> bool {
        let mut dir = fsx::split(path).0.to_vec();
        loop {
            let relative = if dir.is_empty() { path } else { &path[dir.len() + 1..] };
            if let Some(search) = self.file(&dir)
                && let Some(negative) = decide(search, relative, is_dir)
            {
                return !negative;
            }
            if dir.is_empty() {
                break;
            }
            dir = fsx::split(&dir).0.to_vec();
        }
        decide(&self.exclude, path, is_dir).is_some_and(|negative| !negative)
    }

    fn file(&mut self, dir: &[u8]) -> Option<&Search> {
        if !self.files.contains_key(dir) {
            let data = self.cursor.dir(dir).ok().and_then(|fd| fsx::try_read_at(fd, b".gitignore").ok().flatten());
            self.files.insert(dir.to_vec(), data.map(|data| parse(&data)));
        }
        self.files.get(dir)?.as_ref()
    }
}

fn parse(data: &[u8]) -> Search {
    let mut search = Search::default();
    // Without a root, the patterns are relative to whatever they are asked about.
    if let Err(err) = search.add_patterns_buffer(data, PathBuf::from(".gitignore"), None, PARSE) {
        tracing::debug!(%err, "cannot parse ignore patterns");
    }
    search
}

fn decide(search: &Search, path: &[u8], is_dir: bool) -> Option<bool> {
    let found = search.pattern_matching_relative_path(path.as_bstr(), Some(is_dir), Case::Sensitive)?;
    Some(found.pattern.is_negative())
}
