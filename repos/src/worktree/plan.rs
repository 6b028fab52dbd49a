//! Deciding what a mount shall hold after an update. Reads, decides, writes nothing.
//!
//! Per path there are up to five versions: base (upstream before), head (the local branch), staged (the index),
//! held (the live tree) and upstream (the new commit). Almost always all of them are equal.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use super::error::{At, Result, WorktreeError};
use super::fsx::{self, Kind};
use super::gitdir::ConflictRecord;
use super::manifest::{DirMeta, Entry, Held, Leaf, Manifest, PathKey, Staged};
use super::objects::blob_oid;
use super::threeway::{self, Contents, Merged, Outcome, Side};
use super::tree::{Line, TreeMount, leaf_of};
use super::twins::Common;
use super::types::{Base, OnOverlap, Ownership};
use crate::{Oid, Reader, RepoPath};

/// A file larger than this is not merged or checked out. Nothing that belongs into a configuration is.
pub(crate) const MAX_FILE_BYTES: u64 = 2 << 30;

/// Where the content of a wanted file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The object store.
    Store,
    /// A copy of the live tree's file.
    Live,
    /// A hard link to the live tree's file: nobody versions it.
    Share,
    /// Made by a merge.
    Bytes(Vec<u8>),
}

/// A file that the new tree shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Want {
    /// What it is, unless nobody needs to know.
    pub leaf: Option<Leaf>,
    pub source: Source,
    /// Permissions and owner; for links the permissions mean nothing.
    pub meta: DirMeta,
}

#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub path: PathKey,
    /// What upstream has.
    pub base: Option<Leaf>,
    pub want: Option<Want>,
}

/// What a mount shall be.
pub(crate) struct MountPlan {
    pub base: Option<Base>,
    pub old_commit: Option<Oid>,
    /// Sorted by path.
    pub files: Vec<Planned>,
    /// `files` are only those in which the second tree differs from what it shall be; all others it has already.
    pub only_concerned: bool,
    pub dirs: Vec<(PathKey, DirMeta)>,
    /// The local branch on top of the new base.
    pub line: Line,
    pub old_main: Option<Oid>,
    /// There are local commits that upstream does not have: the new branch is a merge commit, yet to be made.
    pub merges_branch: bool,
    pub staged: Vec<Staged>,
    pub conflicts: Vec<ConflictRecord>,
    /// Files that differ from the live tree, sorted.
    pub changed: Vec<PathKey>,
    /// Where local edits and update overlap. Under `Refuse`, the reason to stop.
    pub overlap: Vec<PathKey>,
    /// Local files that are given up as a whole.
    pub lost: Vec<PathKey>,
    /// Contents that no store has yet and that the index or the branch will name.
    pub contents: BTreeMap<Oid, Vec<u8>>,
}

impl MountPlan {
    pub(crate) fn commit(&self) -> Option<Oid> {
        self.base.as_ref().map(|b| b.commit)
    }
}

/// What a plan is made from.
pub(crate) struct Planner<'a> {
    pub tree: &'a TreeMount,
    pub reader: &'a Reader,
    /// The live tree as it is now; what it learns about contents is noted.
    pub live: &'a mut Manifest,
    pub line: Line,
    /// Conflicts that are recorded and still unmerged. Only without a new upstream.
    pub conflicts: Vec<ConflictRecord>,
    pub own: Ownership,
    pub how: OnOverlap,
    /// What the second tree has in common with the live one, if that is known.
    pub common: Option<&'a Common>,
    /// Directories of other repositories, which upstream must not have.
    pub reserved: &'a [String],
}

/// Contents of local files that were read, and of the store.
struct Known<'a> {
    reader: &'a Reader,
    local: RefCell<HashMap<Oid, Vec<u8>>>,
}

impl Contents for Known<'_> {
    fn content(&self, oid: Oid) -> Result<Vec<u8>> {
        if let Some(data) = self.local.borrow().get(&oid) {
            return Ok(data.clone());
        }
        Ok(self.reader.blob(oid, MAX_FILE_BYTES)?)
    }
}

type Upstream = BTreeMap<PathKey, Side>;

impl Planner<'_> {
    pub(crate) fn plan(mut self, old: Option<&Base>, new: Option<Base>) -> Result<MountPlan> {
        let upstream = self.upstream(old, new.as_ref())?;
        let known = Known { reader: self.reader, local: RefCell::default() };
        let concerned = self.concerned(&upstream);
        self.learn(&upstream, &known)?;
        let mut plan = MountPlan {
            old_commit: old.map(|b| b.commit),
            base: new,
            files: Vec::new(),
            only_concerned: concerned.is_some(),
            dirs: Vec::new(),
            old_main: self.line.main,
            merges_branch: false,
            line: Line { unchanged: true, ..Line::default() },
            staged: Vec::new(),
            conflicts: std::mem::take(&mut self.conflicts),
            changed: Vec::new(),
            overlap: Vec::new(),
            lost: Vec::new(),
            contents: BTreeMap::new(),
        };
        match concerned {
            Some(paths) => self.few(&paths, &upstream, &known, &mut plan)?,
            None => {
                self.files(&upstream, &known, &mut plan)?;
                self.nested(&upstream, &mut plan);
            }
        }
        self.branch(&upstream, &known, &mut plan)?;
        self.staging(&known, &mut plan)?;
        self.directories(&mut plan);
        plan.changed = self.changed(&upstream, &plan);
        plan.overlap.sort();
        plan.overlap.dedup();
        plan.lost.sort();
        plan.lost.dedup();
        Ok(plan)
    }

    /// The paths that this update is about, if all others are in the second tree what they shall be.
    fn concerned(&self, upstream: &Upstream) -> Option<Vec<PathKey>> {
        let common = self.common.filter(|_| self.line.unchanged && self.conflicts.is_empty())?;
        common.concerned(self.live, upstream)
    }

    /// Paths that differ between the old and the new upstream commit, with what they are now.
    fn upstream(&self, old: Option<&Base>, new: Option<&Base>) -> Result<Upstream> {
        let Some(new) = new.filter(|new| old.map(|b| b.commit) != Some(new.commit)) else { return Ok(Upstream::new()) };
        if !self.reader.contains(new.commit) {
            return Err(WorktreeError::NoSuchCommit { repo: new.repo.clone(), commit: new.commit });
        }
        let old_tree = old.map(|b| self.reader.tree_of(b.commit)).transpose()?;
        let mut upstream = Upstream::new();
        for change in self.reader.changes(old_tree, self.reader.tree_of(new.commit)?)? {
            if change.new.is_some() {
                self.check(&change)?;
            }
            upstream.insert(change.path.as_bytes().into(), leaf_of(change.new));
        }
        Ok(upstream)
    }

    /// Refuses what must never be written to a disk, whoever let it into the repository.
    fn check(&self, change: &crate::Change) -> Result<()> {
        let refuse = |reason: String| Err(WorktreeError::BadPath { path: change.path.to_string(), reason });
        if let Err(err) = RepoPath::new(change.path.as_bytes()) {
            return refuse(format!("upstream has a path that cannot be checked out: {}", err.reason));
        }
        if change.new.is_some_and(|(mode, _)| !mode.is_blob()) {
            return refuse("upstream has a submodule here, which working copies do not support".into());
        }
        let first = change.path.components().next().unwrap_or_default();
        if self.reserved.iter().any(|at| at.as_bytes() == first) {
            return refuse("upstream has an entry where another repository is mounted".into());
        }
        Ok(())
    }

    /// Reads the local files that have to be merged or compared.
    fn learn(&mut self, upstream: &Upstream, known: &Known<'_>) -> Result<()> {
        let mut cursor = self.tree.cursor();
        let mut updates = Vec::new();
        for path in upstream.keys() {
            let Some(entry) = self.live.get(path).filter(|e| e.is_dirty()) else { continue };
            let Some(held) = &entry.held else { continue };
            if held.kind() == Kind::Special {
                continue;
            }
            let at = self.tree.path.join(RepoPath::from_tree(path.to_vec()).as_path());
            let (dir, name) = cursor.parent(path).at("open", &at)?;
            let (sig, data) = fsx::read_content_at(dir, name).at("read", &at)?;
            let oid = blob_oid(&data);
            known.local.borrow_mut().insert(oid, data);
            // `shared` stays: whether the inode is in both trees has not changed by reading it.
            updates.push(Entry { held: Some(Held { sig, oid: Some(oid), shared: held.shared }), ..entry.clone() });
        }
        self.live.patch(updates);
        Ok(())
    }

    /// Only these paths. In both trees they are tracked files, so nothing can come to lie above or below one.
    fn few(&self, paths: &[PathKey], upstream: &Upstream, known: &Known<'_>, plan: &mut MountPlan) -> Result<()> {
        for entry in paths.iter().filter_map(|path| self.live.get(path)) {
            match upstream.get(&entry.path) {
                Some(theirs) => self.merge(entry, *theirs, known, plan)?,
                None => plan.files.push(kept(entry)),
            }
        }
        Ok(())
    }

    /// Every path of the live tree and of the new upstream, merged.
    fn files(&self, upstream: &Upstream, known: &Known<'_>, plan: &mut MountPlan) -> Result<()> {
        plan.files.reserve(self.live.entries.len() + upstream.len());
        let mut changes = upstream.iter().peekable();
        for entry in self.live.entries.iter() {
            while let Some((path, theirs)) = changes.next_if(|(path, _)| **path < entry.path) {
                plan.files.push(self.added(path, *theirs));
            }
            match changes.next_if(|(path, _)| **path == entry.path) {
                Some((_, theirs)) => self.merge(entry, *theirs, known, plan)?,
                None => plan.files.push(kept(entry)),
            }
        }
        for (path, theirs) in changes {
            plan.files.push(self.added(path, *theirs));
        }
        Ok(())
    }

    fn added(&self, path: &PathKey, theirs: Side) -> Planned {
        Planned { path: PathKey::clone(path), base: theirs, want: theirs.map(|leaf| self.theirs(leaf, None)) }
    }

    fn merge(&self, entry: &Entry, theirs: Side, known: &Known<'_>, plan: &mut MountPlan) -> Result<()> {
        let held = entry.held.as_ref();
        let merged = match held {
            // A socket or fifo: cannot be compared with anything.
            Some(held) if held.leaf().is_none() => match theirs {
                None if entry.base.is_none() => Merged { outcome: Outcome::Ours, conflict: None },
                _ => threeway::whole(self.how, "both modified", Outcome::Ours),
            },
            _ => threeway::merge(entry.base, held.and_then(Held::leaf), theirs, self.how, known)?,
        };
        if let Some(what) = merged.conflict {
            plan.overlap.push(PathKey::clone(&entry.path));
            if self.how == OnOverlap::Manual {
                plan.conflicts.push(self.record(entry, theirs, what));
                if let Some(leaf) = held.and_then(Held::leaf) {
                    plan.contents.insert(leaf.oid, known.content(leaf.oid)?);
                }
            }
            if self.how == OnOverlap::Theirs && merged.outcome == Outcome::Theirs && held.is_some() {
                plan.lost.push(PathKey::clone(&entry.path));
            }
        }
        let want = match merged.outcome {
            Outcome::Ours => held.map(|h| match (h.leaf(), theirs) {
                // Untracked here, the same upstream: now it is tracked, and needs an inode of its own.
                (Some(leaf), Some(theirs)) if leaf == theirs => Want { source: Source::Live, ..ours(entry, h) },
                _ => ours(entry, h),
            }),
            Outcome::Theirs => theirs.map(|leaf| self.theirs(leaf, held)),
            Outcome::Content(mode, data) => {
                let leaf = Leaf { mode, oid: blob_oid(&data) };
                Some(Want { source: Source::Bytes(data), ..self.theirs(leaf, held) })
            }
        };
        plan.files.push(Planned { path: PathKey::clone(&entry.path), base: theirs, want });
        Ok(())
    }

    fn record(&self, entry: &Entry, theirs: Side, what: &str) -> ConflictRecord {
        let side = |leaf: Side| leaf.map(|leaf| (leaf.mode.to_string(), leaf.oid));
        let our_leaf = entry.held.as_ref().and_then(Held::leaf);
        ConflictRecord {
            path: hex::encode(&entry.path),
            what: what.into(),
            sides: [side(entry.base), side(our_leaf), side(theirs)],
        }
    }

    /// Upstream's file, with the permissions that the live tree's file has, if there is one.
    fn theirs(&self, leaf: Leaf, held: Option<&Held>) -> Want {
        let held = held.filter(|h| h.kind().is_file());
        let exec = leaf.mode == crate::Mode::Exec;
        let meta = match held {
            Some(held) => {
                let perm = held.sig.perm() & 0o777;
                let mode = match (exec, held.kind() == Kind::Exec) {
                    (true, false) => perm | (perm & 0o444) >> 2 | 0o100,
                    (false, true) => perm & !0o111,
                    _ => perm,
                };
                DirMeta::wanted(mode, held.sig.uid, held.sig.gid)
            }
            None => new_file(&self.own, exec),
        };
        Want { leaf: Some(leaf), source: Source::Store, meta }
    }

    /// A file on one side where the other has a directory.
    fn nested(&self, upstream: &Upstream, plan: &mut MountPlan) {
        if upstream.is_empty() {
            return;
        }
        let is_local = |p: &Planned| p.base.is_none();
        let mut drop_local = Vec::new();
        let mut drop_upstream = Vec::new();
        let positions: Vec<usize> = (0..plan.files.len())
            .filter(|i| {
                let file = &plan.files[*i];
                file.want.is_some() && (is_local(file) || upstream.contains_key(&file.path))
            })
            .collect();
        for i in positions {
            let file = &plan.files[i];
            for j in below(&plan.files, &file.path) {
                let inner = &plan.files[j];
                if inner.want.is_none() || is_local(file) == is_local(inner) && is_local(file) {
                    continue;
                }
                let (local, theirs) = if is_local(inner) { (j, i) } else { (i, j) };
                drop_local.push(local);
                drop_upstream.push(theirs);
            }
        }
        for (local, theirs) in drop_local.into_iter().zip(drop_upstream) {
            plan.overlap.push(PathKey::clone(&plan.files[local].path));
            if self.how == OnOverlap::Theirs {
                plan.lost.push(PathKey::clone(&plan.files[local].path));
                plan.files[local].want = None;
                continue;
            }
            let upstream = &mut plan.files[theirs];
            if self.how == OnOverlap::Manual && upstream.want.is_some() {
                let side = upstream.base.map(|leaf| (leaf.mode.to_string(), leaf.oid));
                let what = "added upstream where a local file or directory is".into();
                plan.conflicts.push(ConflictRecord {
                    path: hex::encode(&upstream.path),
                    what,
                    sides: [None, None, side],
                });
            }
            upstream.want = None;
        }
    }

    /// The local branch on top of the new upstream.
    fn branch(&mut self, upstream: &Upstream, known: &Known<'_>, plan: &mut MountPlan) -> Result<()> {
        plan.line.main = plan.commit();
        let Some(main) = self.line.main.filter(|_| !self.line.unchanged) else { return Ok(()) };
        let forward = match plan.commit() {
            Some(commit) => self.reader.is_ancestor(main, commit)?,
            None => false,
        };
        if forward {
            return Ok(());
        }
        for (path, ours) in &self.line.diff {
            let base = self.live.base(path);
            let theirs = upstream.get(path).copied().unwrap_or(base);
            let merged = threeway::merge(base, *ours, theirs, self.how, known)?;
            let conflict = merged.conflict.is_some();
            if conflict {
                plan.overlap.push(PathKey::clone(path));
            }
            let leaf = match merged.outcome {
                // The conflict is in the working file; the branch takes the side that is not disputed any more.
                _ if conflict && self.how == OnOverlap::Manual => theirs,
                Outcome::Ours => *ours,
                Outcome::Theirs => theirs,
                Outcome::Content(mode, data) => {
                    let oid = blob_oid(&data);
                    known.local.borrow_mut().insert(oid, data);
                    Some(Leaf { mode, oid })
                }
            };
            if leaf != theirs {
                plan.line.diff.insert(PathKey::clone(path), leaf);
            }
        }
        plan.line.unchanged = plan.line.diff.is_empty() && !self.line_is_untouched(plan);
        plan.merges_branch = !plan.line.unchanged && !self.line_is_untouched(plan);
        if self.line_is_untouched(plan) {
            plan.line.main = Some(main);
        }
        let local = known.local.borrow();
        for leaf in plan.line.diff.values().flatten() {
            if let Some(data) = local.get(&leaf.oid) {
                plan.contents.insert(leaf.oid, data.clone());
            }
        }
        Ok(())
    }

    /// No new upstream: the branch stays what it is.
    fn line_is_untouched(&self, plan: &MountPlan) -> bool {
        plan.commit() == plan.old_commit
    }

    /// What was staged stays staged, where it still differs from HEAD.
    fn staging(&self, known: &Known<'_>, plan: &mut MountPlan) -> Result<()> {
        for staged in &self.live.staged {
            let path = &staged.path;
            let old_head = self.line.head(self.live, path);
            let planned = find(&plan.files, path);
            let new_head = plan.line.diff.get(path).copied().unwrap_or_else(|| planned.and_then(|p| p.base));
            let held = self.live.get(path).and_then(|e| e.held.as_ref()).and_then(Held::leaf);
            let in_conflict = plan.conflicts.iter().any(|c| c.path_bytes() == **path);
            let leaf = if old_head == new_head {
                staged.leaf
            } else if in_conflict {
                new_head
            } else if staged.leaf == held {
                planned.and_then(|p| p.want.as_ref()).and_then(|w| w.leaf)
            } else {
                match threeway::merge(old_head, staged.leaf, new_head, self.how, known)? {
                    Merged { conflict: Some(_), outcome } => {
                        plan.overlap.push(PathKey::clone(path));
                        if outcome == Outcome::Ours { staged.leaf } else { new_head }
                    }
                    Merged { outcome: Outcome::Ours, .. } => staged.leaf,
                    // A merge of what is only in the index would need an object; the file has it, unstaged.
                    Merged { .. } => new_head,
                }
            };
            if leaf != new_head {
                plan.staged.push(Staged { leaf, ..staged.clone() });
            }
        }
        Ok(())
    }

    /// Directories that have a file in them, and those that are empty because somebody wants them so.
    fn directories(&self, plan: &mut MountPlan) {
        if plan.only_concerned {
            // Contents changed, and nothing else.
            plan.dirs.clone_from(&self.live.dirs);
            return;
        }
        let mut wanted: BTreeMap<PathKey, ()> = BTreeMap::new();
        wanted.insert(b""[..].into(), ());
        let mut last: &[u8] = b"";
        for file in plan.files.iter().filter(|f| f.want.is_some()) {
            let dir = fsx::split(&file.path).0;
            if dir != last {
                for ancestor in fsx::ancestors(&file.path).filter(|a| !fsx::is_at_or_below(last, a)) {
                    wanted.insert(ancestor.into(), ());
                }
                last = dir;
            }
        }
        for (dir, _) in self.live.dirs.iter().filter(|(dir, _)| !wanted.contains_key(dir)).cloned().collect::<Vec<_>>()
        {
            let is_file = |path: &[u8]| find(&plan.files, path).is_some_and(|f| f.want.is_some());
            if self.live.holds_below(&dir) || is_file(&dir) || fsx::ancestors(&dir).any(is_file) {
                continue;
            }
            for ancestor in fsx::ancestors(&dir) {
                wanted.insert(ancestor.into(), ());
            }
            wanted.insert(dir, ());
        }
        let new = new_dir(&self.own);
        plan.dirs = wanted.into_keys().map(|dir| (PathKey::clone(&dir), self.live.dir(&dir).unwrap_or(new))).collect();
    }

    /// Only what upstream touched, or what had to give way to it, can differ from the live tree.
    fn changed(&self, upstream: &Upstream, plan: &MountPlan) -> Vec<PathKey> {
        let differs = |path: &&PathKey| {
            let held = self.live.get(path).and_then(|e| e.held.as_ref());
            match (find(&plan.files, path).and_then(|f| f.want.as_ref()), held) {
                (None, None) => false,
                (Some(want), Some(held)) => match want.source {
                    Source::Live | Source::Share => false,
                    Source::Store | Source::Bytes(_) => want.leaf != held.leaf(),
                },
                _ => true,
            }
        };
        let mut paths: Vec<_> = upstream.keys().chain(&plan.overlap).filter(differs).cloned().collect();
        paths.sort();
        paths.dedup();
        paths
    }
}

/// A path that the update does not touch.
pub(crate) fn kept(entry: &Entry) -> Planned {
    Planned { path: PathKey::clone(&entry.path), base: entry.base, want: entry.held.map(|held| ours(entry, &held)) }
}

/// The live tree's file, carried along.
fn ours(entry: &Entry, held: &Held) -> Want {
    let meta = DirMeta::wanted(held.sig.perm(), held.sig.uid, held.sig.gid);
    let leaf = held.leaf();
    let source = if leaf.is_none() || entry.base.is_none() {
        Source::Share
    } else if leaf == entry.base {
        Source::Store
    } else {
        Source::Live
    };
    Want { leaf, source, meta }
}

pub(crate) fn new_file(own: &Ownership, exec: bool) -> DirMeta {
    let mode = if exec { 0o777 } else { 0o666 } & !own.umask;
    // The owner must be able to read it, and git reads the executable bit there.
    DirMeta::wanted(mode | if exec { 0o500 } else { 0o400 }, own.uid.unwrap_or(u32::MAX), own.gid.unwrap_or(u32::MAX))
}

pub(crate) fn new_dir(own: &Ownership) -> DirMeta {
    DirMeta::wanted(0o777 & !own.umask | 0o700, own.uid.unwrap_or(u32::MAX), own.gid.unwrap_or(u32::MAX))
}

pub(crate) fn find<'a>(files: &'a [Planned], path: &[u8]) -> Option<&'a Planned> {
    files.binary_search_by(|f| (*f.path).cmp(path)).ok().map(|i| &files[i])
}

/// The positions of what is strictly below a path.
fn below(files: &[Planned], path: &[u8]) -> std::ops::Range<usize> {
    let slash = [path, b"/"].concat();
    let from = files.partition_point(|f| (*f.path) < *slash);
    let len = files[from..].partition_point(|f| f.path.starts_with(&slash));
    from..from + len
}
