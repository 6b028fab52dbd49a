//! The git index file of a tree.
//!
//! Read through `gix-index`, which knows every version and extension; written here, because a fresh version 2 or 3
//! file from a sorted list is simpler than editing one, and because nothing else of it has to survive: extensions
//! are caches.
//!
//! ```text
//! "DIRC" · version u32 · count u32 · entries · sha1 of all before
//! entry: ctime s,ns · mtime s,ns · dev · ino · mode · uid · gid · size (u32 each) · oid 20 · flags u16 · [flags2 u16] · path · 1–8 NUL
//! ```
//! Everything big-endian.

use std::os::fd::AsFd;
use std::path::Path;

use gix::index::entry::Flags;

use super::error::{Result, WorktreeError};
use super::fsx::{Sig, try_lstat_at};
use super::manifest::Leaf;
use crate::{Mode, Oid};

/// One entry, at stage 0 unless it is part of a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexEntry<'a> {
    pub path: &'a [u8],
    pub leaf: Leaf,
    /// 1 base, 2 ours, 3 theirs.
    pub stage: u8,
    /// What the tree holds, if it holds exactly this content.
    pub sig: Option<Sig>,
    pub intent_to_add: bool,
}

/// What an index says, with the signature of the file it was read from.
pub(crate) struct GitIndex {
    state: Option<gix::index::File>,
    pub sig: Option<Sig>,
}

impl GitIndex {
    /// Reads `index` in a `.git` directory; a missing one is empty. `git_path` is for messages only.
    pub(crate) fn read(git: impl AsFd, git_path: &Path) -> Result<GitIndex> {
        let git = git.as_fd();
        let damaged = |reason: String| WorktreeError::Damaged { path: git_path.join("index"), reason };
        let sig = try_lstat_at(git, b"index").map_err(|err| damaged(err.to_string()))?;
        if sig.is_none() {
            return Ok(GitIndex { state: None, sig: None });
        }
        // Through the descriptor: the path may lead to the other tree by now.
        let path = format!("/proc/self/fd/{}/index", std::os::fd::AsRawFd::as_raw_fd(&git));
        let file = gix::index::File::at(path, gix::hash::Kind::Sha1, true, Default::default())
            .map_err(|err| damaged(err.to_string()))?;
        if file.is_sparse() {
            return Err(damaged("sparse indexes are not supported (git sparse-checkout disable)".into()));
        }
        Ok(GitIndex { state: Some(file), sig })
    }

    /// All entries, sorted by path and stage.
    pub(crate) fn entries(&self) -> impl Iterator<Item = IndexEntry<'_>> {
        self.state.iter().flat_map(|file| {
            file.entries().iter().map(|e| IndexEntry {
                path: e.path(file),
                leaf: Leaf { mode: Mode::from_git(e.mode.bits()).unwrap_or(Mode::File), oid: Oid::from(e.id) },
                stage: e.stage_raw() as u8,
                sig: None,
                intent_to_add: e.flags.contains(Flags::INTENT_TO_ADD),
            })
        })
    }

    /// Paths with entries at other stages than 0.
    pub(crate) fn unmerged(&self) -> Vec<Vec<u8>> {
        let mut paths: Vec<_> = self.entries().filter(|e| e.stage != 0).map(|e| e.path.to_vec()).collect();
        paths.dedup();
        paths
    }
}

/// The bytes of an index with these entries, which are sorted by path and stage. `size_hint` is about how many bytes that will be.
pub(crate) fn encode<'a>(entries: impl IntoIterator<Item = IndexEntry<'a>>, size_hint: usize) -> Vec<u8> {
    let (mut extended, mut count) = (false, 0);
    let mut out = Vec::with_capacity(size_hint);
    out.extend_from_slice(b"DIRC");
    out.extend_from_slice(&[0; 8]);
    for entry in entries {
        extended |= entry.intent_to_add;
        count += 1;
        put_entry(&mut out, &entry);
    }
    let version: u32 = if extended { 3 } else { 2 };
    out[4..8].copy_from_slice(&version.to_be_bytes());
    out[8..12].copy_from_slice(&u32::to_be_bytes(count));
    let sum = checksum(&out);
    out.extend_from_slice(&sum);
    out
}

/// Plain SHA-1: nobody attacks an index with collisions, and looking for them takes five times as long.
fn checksum(bytes: &[u8]) -> [u8; 20] {
    use sha1::Digest;
    sha1::Sha1::digest(bytes).into()
}

fn put(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_entry(out: &mut Vec<u8>, entry: &IndexEntry<'_>) {
    let start = out.len();
    let sig = entry.sig.unwrap_or_default();
    for time_ns in [sig.ctime_ns, sig.mtime_ns] {
        put(out, time_ns.div_euclid(1_000_000_000) as u32);
        put(out, time_ns.rem_euclid(1_000_000_000) as u32);
    }
    put(out, sig.dev as u32);
    put(out, sig.ino as u32);
    put(out, entry.leaf.mode.to_git());
    put(out, sig.uid);
    put(out, sig.gid);
    put(out, sig.size as u32);
    out.extend_from_slice(entry.leaf.oid.as_bytes());
    let len = entry.path.len().min(0xfff) as u16;
    let extended = u16::from(entry.intent_to_add) << 14;
    out.extend_from_slice(&(len | extended | u16::from(entry.stage) << 12).to_be_bytes());
    if entry.intent_to_add {
        out.extend_from_slice(&(1u16 << 13).to_be_bytes());
    }
    out.extend_from_slice(entry.path);
    let padding = 8 - (out.len() - start) % 8;
    out.resize(out.len() + padding, 0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fsx::open_dir;
    use super::*;

    #[test]
    fn gix_reads_what_we_write() {
        let temp = tempfile::tempdir().unwrap();
        let leaf = |n| Leaf { mode: Mode::Exec, oid: Oid::from_bytes([n; 20]) };
        let sig = Sig { mtime_ns: 1_234_567_890_123_456_789, size: 5, ..Sig::default() };
        let long = vec![b'x'; 3000];
        let entries = vec![
            IndexEntry { path: b"a", leaf: leaf(1), stage: 0, sig: Some(sig), intent_to_add: false },
            IndexEntry { path: b"b\xff", leaf: leaf(2), stage: 1, sig: None, intent_to_add: false },
            IndexEntry { path: b"b\xff", leaf: leaf(3), stage: 3, sig: None, intent_to_add: false },
            IndexEntry { path: b"c", leaf: leaf(4), stage: 0, sig: None, intent_to_add: true },
            IndexEntry { path: &long, leaf: leaf(5), stage: 0, sig: None, intent_to_add: false },
        ];
        std::fs::write(temp.path().join("index"), encode(entries.clone(), 0)).unwrap();
        let index = GitIndex::read(open_dir(temp.path()).unwrap(), temp.path()).unwrap();
        let back: Vec<_> = index.entries().collect();
        let expected: Vec<_> = entries.into_iter().map(|e| IndexEntry { sig: None, ..e }).collect();
        assert_eq!(back, expected);
        assert_eq!(index.unmerged(), [b"b\xff".to_vec()]);
    }
}
