//! What a tree holds.
//!
//! A manifest has, sorted by path as git sorts its index, every path that upstream has at the base or that the tree
//! has on disk. Comparing a tree with its manifest costs one `lstat` per file; comparing two manifests costs
//! nothing. The file form is a cache: if it is missing or damaged, it is rebuilt from the base commit and the
//! files.
//!
//! ```text
//! "ECMAN4\n\0" · boot id 16 · taken_ns i64 · base commit 20 · index sig · n_entries u32 · entries · n_dirs u32 · dirs · n_staged u32 · staged · crc32 u32
//! entry: path_len u16 · path · flags u8 (1 base, 2 held, 4 content known, 8 shared) · [base: mode u8, oid 20] · [held: sig 56 · oid 20]
//! dir:   path_len u16 · path · mode u32 · uid u32 · gid u32 · ino u64 · mtime_ns i64
//! staged: path_len u16 · path · flags u8 (1 present, 2 intent to add) · [mode u8 · oid 20]
//! ```
//! Everything little-endian.

use std::sync::Arc;

use super::fsx::{Kind, Sig};
use super::sync::boot_id;
use crate::{Mode, Oid};

/// A path inside one repository. Shared, because two trees and every update have the same ten thousand of them.
pub(crate) type PathKey = Arc<[u8]>;

/// A file as git knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub mode: Mode,
    pub oid: Oid,
}

/// A file as the disk has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub sig: Sig,
    /// The content, if somebody needed to know it.
    pub oid: Option<Oid>,
    /// The same inode is in the other tree: nobody versions this file.
    pub shared: bool,
}

impl Held {
    pub(crate) fn kind(&self) -> Kind {
        self.sig.kind()
    }

    pub(crate) fn leaf(&self) -> Option<Leaf> {
        Some(Leaf { mode: self.kind().mode()?, oid: self.oid? })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub path: PathKey,
    /// What upstream has at the base.
    pub base: Option<Leaf>,
    /// What is in this tree.
    pub held: Option<Held>,
}

impl Entry {
    /// True if the tree differs from upstream here.
    pub(crate) fn is_dirty(&self) -> bool {
        match (&self.base, &self.held) {
            (Some(base), Some(held)) => held.leaf() != Some(*base),
            (None, None) => false,
            _ => true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirMeta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Together they tell whether names were added or removed; zero if nobody looked.
    pub ino: u64,
    pub mtime_ns: i64,
}

impl DirMeta {
    pub(crate) fn of(stat: &rustix::fs::Stat) -> DirMeta {
        let sig = Sig::of(stat);
        DirMeta { mode: sig.perm(), uid: sig.uid, gid: sig.gid, ino: sig.ino, mtime_ns: sig.mtime_ns }
    }

    /// A directory that is wanted, and not there yet.
    pub(crate) fn wanted(mode: u32, uid: u32, gid: u32) -> DirMeta {
        DirMeta { mode, uid, gid, ino: 0, mtime_ns: 0 }
    }

    /// The same permissions and owner.
    pub(crate) fn is_like(&self, other: &DirMeta) -> bool {
        (self.mode, self.uid, self.gid) == (other.mode, other.uid, other.gid)
    }

    /// The same directory with the same names in it.
    pub(crate) fn has_same_names(&self, other: &DirMeta) -> bool {
        self.ino != 0 && (self.ino, self.mtime_ns) == (other.ino, other.mtime_ns)
    }
}

/// An index entry that differs from the commit that HEAD names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staged {
    pub path: PathKey,
    /// `None`: removed from the index.
    pub leaf: Option<Leaf>,
    pub intent_to_add: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Manifest {
    /// The commit that the `base` sides come from.
    pub commit: Option<Oid>,
    /// When the signatures were taken; a file younger than that may have changed without showing it.
    pub taken_ns: i64,
    /// Shared, because a manifest is remembered, staged and compared in several places at once.
    pub entries: Arc<Vec<Entry>>,
    /// Every directory, sorted; the root is the empty path.
    pub dirs: Arc<Vec<(PathKey, DirMeta)>>,
    /// The git index file that `staged` was read from.
    pub index_sig: Option<Sig>,
    pub staged: Vec<Staged>,
}

/// Clocks of file systems tick as slowly as this: two writes within it may leave the same times.
const RACY_NS: i64 = 20_000_000;

impl Manifest {
    pub(crate) fn position(&self, path: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|e| (*e.path).cmp(path))
    }

    pub(crate) fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.position(path).ok().map(|i| &self.entries[i])
    }

    pub(crate) fn base(&self, path: &[u8]) -> Option<Leaf> {
        self.get(path)?.base
    }

    /// The entries strictly below a directory.
    pub(crate) fn below(&self, dir: &[u8]) -> &[Entry] {
        if dir.is_empty() {
            return &self.entries;
        }
        let start = self.entries.partition_point(|e| (*e.path) < *dir);
        let mut from = start;
        // Between `a` and `a/…` sort names like `a-b` and `a.b`.
        let mut slash = dir.to_vec();
        slash.push(b'/');
        from += self.entries[from..].partition_point(|e| (*e.path) < *slash);
        let len = self.entries[from..].partition_point(|e| e.path.starts_with(&slash));
        &self.entries[from..from + len]
    }

    pub(crate) fn dir(&self, path: &[u8]) -> Option<DirMeta> {
        self.dirs.binary_search_by(|(p, _)| (**p).cmp(path)).ok().map(|i| self.dirs[i].1)
    }

    /// A signature that equals the recorded one proves nothing if the file was written when it was taken.
    pub(crate) fn is_racy(&self, sig: &Sig) -> bool {
        self.is_young(sig.mtime_ns.max(sig.ctime_ns))
    }

    /// Too young to be trusted.
    pub(crate) fn is_young(&self, time_ns: i64) -> bool {
        time_ns.saturating_add(RACY_NS) > self.taken_ns
    }

    /// Replaces, adds or (with neither side left) drops entries. `changes` is sorted by path.
    pub(crate) fn patch(&mut self, changes: Vec<Entry>) {
        if changes.is_empty() {
            return;
        }
        let old = &self.entries;
        let mut out = Vec::with_capacity(old.len() + changes.len());
        let mut changes = changes.into_iter().peekable();
        for entry in old.iter() {
            while let Some(change) = changes.next_if(|c| c.path < entry.path) {
                out.push(change);
            }
            match changes.next_if(|c| c.path == entry.path) {
                Some(change) => out.push(change),
                None => out.push(entry.clone()),
            }
        }
        out.extend(changes);
        out.retain(|e| e.base.is_some() || e.held.is_some());
        self.entries = Arc::new(out);
    }

    /// The positions of the directories strictly below `dir` within `range`, which holds all that are.
    pub(crate) fn dirs_below(&self, dir: &[u8], range: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let slash = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
        let part = &self.dirs[range.clone()];
        let from = if dir.is_empty() {
            part.partition_point(|(p, _)| p.is_empty())
        } else {
            part.partition_point(|(p, _)| **p < *slash)
        };
        let len = part[from..].partition_point(|(p, _)| p.starts_with(&slash));
        range.start + from..range.start + from + len
    }

    /// True if anything on disk lies below `dir`.
    pub(crate) fn holds_below(&self, dir: &[u8]) -> bool {
        self.below(dir).iter().any(|e| e.held.is_some())
    }
}

const MAGIC: &[u8; 8] = b"ECMAN4\n\0";

impl Manifest {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.entries.len() * 160);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(boot_id());
        out.extend_from_slice(&self.taken_ns.to_le_bytes());
        out.extend_from_slice(self.commit.unwrap_or(Oid::NULL).as_bytes());
        put_sig(&mut out, &self.index_sig.unwrap_or_default());
        put_u32(&mut out, self.entries.len() as u32);
        for entry in self.entries.iter() {
            put_path(&mut out, &entry.path);
            let held = entry.held.as_ref();
            let flags = u8::from(entry.base.is_some())
                | u8::from(held.is_some()) << 1
                | u8::from(held.is_some_and(|h| h.oid.is_some())) << 2
                | u8::from(held.is_some_and(|h| h.shared)) << 3;
            out.push(flags);
            if let Some(leaf) = &entry.base {
                put_leaf(&mut out, leaf);
            }
            if let Some(held) = held {
                put_sig(&mut out, &held.sig);
                out.extend_from_slice(held.oid.unwrap_or(Oid::NULL).as_bytes());
            }
        }
        put_u32(&mut out, self.dirs.len() as u32);
        for (path, meta) in self.dirs.iter() {
            put_path(&mut out, path);
            put_u32(&mut out, meta.mode);
            put_u32(&mut out, meta.uid);
            put_u32(&mut out, meta.gid);
            out.extend_from_slice(&meta.ino.to_le_bytes());
            out.extend_from_slice(&meta.mtime_ns.to_le_bytes());
        }
        put_u32(&mut out, self.staged.len() as u32);
        for staged in &self.staged {
            put_path(&mut out, &staged.path);
            out.push(u8::from(staged.leaf.is_some()) | u8::from(staged.intent_to_add) << 1);
            if let Some(leaf) = &staged.leaf {
                put_leaf(&mut out, leaf);
            }
        }
        let mut crc = flate2::Crc::new();
        crc.update(&out);
        put_u32(&mut out, crc.sum());
        out
    }

    /// `None` if the bytes are not a whole manifest, or one from before the machine was started: what was not synced then may be gone,
    /// and signatures do not show it.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Manifest> {
        Manifest::decode(bytes).filter(|(boot, _)| boot == boot_id()).map(|(_, manifest)| manifest)
    }

    /// A whole manifest, however old, and which run of the machine it is from.
    pub(crate) fn decode(bytes: &[u8]) -> Option<([u8; 16], Manifest)> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        let mut crc = flate2::Crc::new();
        crc.update(body);
        if crc.sum() != u32::from_le_bytes(*sum) {
            return None;
        }
        let mut from = Cursor(body);
        if from.take(8)? != MAGIC {
            return None;
        }
        let boot = from.array()?;
        let taken_ns = from.i64()?;
        let commit = Some(from.oid()?).filter(|oid| !oid.is_null());
        let index_sig = Some(from.sig()?).filter(|sig| *sig != Sig::default());
        let mut manifest = Manifest { commit, taken_ns, index_sig, ..Manifest::default() };
        let mut entries = Vec::new();
        for _ in 0..from.u32()? {
            let path = from.path()?;
            let flags = from.u8()?;
            let base = if flags & 1 != 0 { Some(from.leaf()?) } else { None };
            let held = if flags & 2 != 0 {
                let sig = from.sig()?;
                let oid = Some(from.oid()?).filter(|_| flags & 4 != 0);
                Some(Held { sig, oid, shared: flags & 8 != 0 })
            } else {
                None
            };
            entries.push(Entry { path, base, held });
        }
        let mut dirs = Vec::new();
        for _ in 0..from.u32()? {
            let path = from.path()?;
            let (mode, uid, gid) = (from.u32()?, from.u32()?, from.u32()?);
            dirs.push((path, DirMeta { mode, uid, gid, ino: from.u64()?, mtime_ns: from.i64()? }));
        }
        (manifest.entries, manifest.dirs) = (Arc::new(entries), Arc::new(dirs));
        for _ in 0..from.u32()? {
            let path = from.path()?;
            let flags = from.u8()?;
            let leaf = if flags & 1 != 0 { Some(from.leaf()?) } else { None };
            manifest.staged.push(Staged { path, leaf, intent_to_add: flags & 2 != 0 });
        }
        from.0.is_empty().then_some((boot, manifest))
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_path(out: &mut Vec<u8>, path: &[u8]) {
    // Paths are far below 64 KiB: the kernel takes 4096 bytes at once, git 65,535.
    out.extend_from_slice(&(path.len().min(u16::MAX as usize) as u16).to_le_bytes());
    out.extend_from_slice(&path[..path.len().min(u16::MAX as usize)]);
}

fn put_leaf(out: &mut Vec<u8>, leaf: &Leaf) {
    out.push(match leaf.mode {
        Mode::File => 0,
        Mode::Exec => 1,
        Mode::Symlink => 2,
        Mode::Dir => 3,
        Mode::Submodule => 4,
    });
    out.extend_from_slice(leaf.oid.as_bytes());
}

fn put_sig(out: &mut Vec<u8>, sig: &Sig) {
    out.extend_from_slice(&sig.ino.to_le_bytes());
    out.extend_from_slice(&sig.size.to_le_bytes());
    out.extend_from_slice(&sig.mtime_ns.to_le_bytes());
    out.extend_from_slice(&sig.ctime_ns.to_le_bytes());
    put_u32(out, sig.mode);
    put_u32(out, sig.uid);
    put_u32(out, sig.gid);
    out.extend_from_slice(&sig.dev.to_le_bytes());
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn oid(&mut self) -> Option<Oid> {
        self.array().map(Oid::from_bytes)
    }

    fn path(&mut self) -> Option<PathKey> {
        let len = u16::from_le_bytes(self.array()?);
        Some(self.take(len.into())?.into())
    }

    fn leaf(&mut self) -> Option<Leaf> {
        let mode = match self.u8()? {
            0 => Mode::File,
            1 => Mode::Exec,
            2 => Mode::Symlink,
            3 => Mode::Dir,
            4 => Mode::Submodule,
            _ => return None,
        };
        Some(Leaf { mode, oid: self.oid()? })
    }

    fn sig(&mut self) -> Option<Sig> {
        Some(Sig {
            ino: self.u64()?,
            size: self.u64()?,
            mtime_ns: self.i64()?,
            ctime_ns: self.i64()?,
            mode: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            dev: self.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(path: &str, base: Option<u8>, held: Option<u8>) -> Entry {
        let leaf = |n: u8| Leaf { mode: Mode::File, oid: Oid::from_bytes([n; 20]) };
        Entry {
            path: path.as_bytes().into(),
            base: base.map(leaf),
            held: held.map(|n| Held {
                sig: Sig { mode: 0o100644, ino: n.into(), ..Sig::default() },
                oid: Some(leaf(n).oid),
                shared: n == 9,
            }),
        }
    }

    fn sample() -> Manifest {
        let entries = vec![
            entry("a", Some(1), Some(1)),
            entry("b-c", None, Some(9)),
            entry("b/x", Some(2), None),
            entry("b/y", Some(3), Some(4)),
        ];
        let meta = DirMeta { mode: 0o755, uid: 1, gid: 2, ino: 3, mtime_ns: 4 };
        Manifest {
            commit: Some(Oid::from_bytes([7; 20])),
            taken_ns: 5,
            entries: Arc::new(entries),
            dirs: Arc::new(vec![(b""[..].into(), meta), (b"b"[..].into(), meta)]),
            index_sig: None,
            staged: vec![Staged { path: b"b/x"[..].into(), leaf: None, intent_to_add: false }],
        }
    }

    #[test]
    fn bytes_and_back() {
        let manifest = sample();
        let bytes = manifest.to_bytes();
        let back = Manifest::from_bytes(&bytes).unwrap();
        assert_eq!(
            (back.entries, back.dirs, back.staged, back.commit),
            (manifest.entries, manifest.dirs, manifest.staged, manifest.commit)
        );
        for cut in 0..bytes.len() {
            assert!(Manifest::from_bytes(&bytes[..cut]).is_none());
        }
        // The sum is over the boot id too; a manifest from another boot is whole, and not to be believed.
        let mut other = bytes.clone();
        other[8] ^= 1;
        let mut crc = flate2::Crc::new();
        crc.update(&other[..other.len() - 4]);
        let end = other.len() - 4;
        other[end..].copy_from_slice(&crc.sum().to_le_bytes());
        assert!(Manifest::from_bytes(&other).is_none() && Manifest::decode(&other).is_some());
        let mut flipped = bytes.clone();
        flipped[30] ^= 1;
        assert!(Manifest::from_bytes(&flipped).is_none());
    }

    #[test]
    fn below_skips_neighbours() {
        let manifest = sample();
        let names = |dir: &[u8]| {
            manifest.below(dir).iter().map(|e| String::from_utf8_lossy(&e.path).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(b"b"), ["b/x", "b/y"]);
        assert_eq!(names(b"a"), Vec::<String>::new());
        assert_eq!(names(b"").len(), 4);
    }

    #[test]
    fn patch_merges_sorted_lists() {
        let mut manifest = sample();
        manifest.patch(vec![
            entry("0", None, Some(1)),
            entry("a", None, None),
            entry("b/x", Some(2), Some(2)),
            entry("c", Some(1), None),
        ]);
        let paths: Vec<_> = manifest.entries.iter().map(|e| String::from_utf8_lossy(&e.path).into_owned()).collect();
        assert_eq!(paths, ["0", "b-c", "b/x", "b/y", "c"]);
        assert!(!manifest.get(b"b/x").unwrap().is_dirty());
    }
}
