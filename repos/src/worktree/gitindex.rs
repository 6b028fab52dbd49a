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

use std::ops::Range;
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

/// Replaces these entries, which are sorted by path, in the bytes of an index, and answers what changed in it. `None`, and the bytes as they
/// were, if that is no plain index with exactly one entry for each of the paths: one that we wrote is.
pub(crate) fn patch(bytes: &mut [u8], entries: &[IndexEntry<'_>]) -> Option<Vec<Range<usize>>> {
    let end = bytes.len().checked_sub(CHECKSUM_BYTES)?;
    let number = |at: usize| bytes.get(at..at + 4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
    if !bytes.starts_with(b"DIRC") || number(4)? != 2 {
        return None;
    }
    let mut places = Vec::with_capacity(entries.len());
    let mut wanted = entries.iter().peekable();
    let mut at = HEAD_BYTES;
    for _ in 0..number(8)? {
        let entry = bytes.get(at..end)?;
        let flags = u16::from_be_bytes([*entry.get(FLAGS_AT)?, *entry.get(FLAGS_AT + 1)?]);
        // Nothing but what `put_entry` writes for an unconflicted file whose length fits.
        if flags >= LONG_PATH {
            return None;
        }
        let len = usize::from(flags);
        let path = entry.get(PATH_AT..PATH_AT + len)?;
        let next = at + padded(PATH_AT + len);
        if wanted.next_if(|wanted| wanted.path == path).is_some() {
            places.push(at..next);
        }
        at = next;
    }
    // Extensions would follow, and say things that are true no more.
    if at != end || wanted.next().is_some() {
        return None;
    }
    let mut new = Vec::new();
    for (place, entry) in places.iter().zip(entries) {
        new.clear();
        put_entry(&mut new, entry);
        // The same path, so as long as before.
        bytes[place.clone()].copy_from_slice(&new);
    }
    let sum = checksum(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum);
    places.push(end..end + CHECKSUM_BYTES);
    Some(places)
}

const HEAD_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 20;
const FLAGS_AT: usize = 60;
const PATH_AT: usize = 62;
/// From here on the flags do not hold the path's length, or say more than that.
const LONG_PATH: u16 = 0xfff;

/// At least one NUL ends an entry.
fn padded(len: usize) -> usize {
    (len + 8) & !7
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
    out.resize(start + padded(out.len() - start), 0);
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

    #[test]
    fn a_patched_index_is_the_one_that_would_be_written() {
        let leaf = |n| Leaf { mode: Mode::File, oid: Oid::from_bytes([n; 20]) };
        // Every length modulo 8, so that all paddings are met.
        let paths: Vec<String> = (1..20).map(|n| format!("{:02}{}", n, "x".repeat(n))).collect();
        let entry = |path, n| IndexEntry { path, leaf: leaf(n), stage: 0, sig: None, intent_to_add: false };
        let old: Vec<_> = paths.iter().map(|p| entry(p.as_bytes(), 1)).collect();
        let sig = Sig { mtime_ns: 7, ino: 8, ..Sig::default() };
        let changes = [3, 4, 18].map(|i: usize| IndexEntry { sig: Some(sig), ..entry(paths[i].as_bytes(), 2) });
        let mut new = old.clone();
        [3, 4, 18].iter().zip(&changes).for_each(|(i, change)| new[*i] = change.clone());
        let mut bytes = encode(old.clone(), 0);
        let before = bytes.clone();
        let places = patch(&mut bytes, &changes).unwrap();
        assert_eq!(bytes, encode(new, 0));
        let mut rest = before.clone();
        places.into_iter().for_each(|place| rest[place.clone()].copy_from_slice(&bytes[place]));
        assert_eq!(rest, bytes, "nothing else differs");

        let refused = |bytes: &[u8], change: &IndexEntry<'_>| {
            let mut copy = bytes.to_vec();
            let refused = patch(&mut copy, std::slice::from_ref(change)).is_none();
            refused && copy == bytes
        };
        assert!(refused(&before, &entry(b"zz", 2)), "a path that is not there");
        assert!(refused(&encode([IndexEntry { stage: 1, ..entry(b"a", 1) }], 0), &entry(b"a", 2)), "a conflict");
        assert!(refused(&encode([IndexEntry { intent_to_add: true, ..entry(b"a", 1) }], 0), &entry(b"a", 2)));
        let mut extended = before.clone();
        extended.splice(before.len() - 20..before.len() - 20, *b"TREE\0\0\0\0");
        assert!(refused(&extended, &changes[0]), "an extension");
        for len in 0..before.len() {
            assert!(refused(&before[..len], &changes[0]), "{len}");
        }
    }
}
