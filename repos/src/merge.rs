//! Three-way merges of trees.
//!
//! Ours rather than gix's, because conflicts here are answers to people: every one has a path and a kind, and each mode has a
//! fixed result for each kind. The lines of a file are merged by `gix-merge`. Directories that both sides have alike are
//! never opened, so merging costs what differs. No attribute in a tree selects another way to merge.
//!
//! Renames are never followed: a file that one side moved and the other edited is a conflict. Lines are compared
//! with the histogram algorithm, as `git merge-tree -c diff.algorithm=histogram` does.

use std::collections::HashSet;

use gix::diff::blob::{Algorithm, InternedInput};
use gix::merge::blob::Resolution;
use gix::merge::blob::builtin_driver::text;

use crate::diff::{directory_of, file_of, is_binary, parsed};
use crate::draft::{Draft, id_of};
use crate::path::join_bytes;
use crate::reader::{Mode, ObjectKind};
use crate::{Error, Oid, RepoPath, Result, tree};

/// What to do where both sides changed the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeMode {
    /// Report the conflicts and make no tree.
    Refuse,
    /// Take our side of every conflict.
    Ours,
    /// Take their side of every conflict.
    Theirs,
    /// Make a tree with conflict markers in the files, and report the conflicts.
    Markers {
        /// What stands at the markers.
        labels: Labels,
    },
}

/// The words at conflict markers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// At `<<<<<<<`.
    pub ours: String,
    /// At `|||||||`.
    pub base: String,
    /// At `>>>>>>>`.
    pub theirs: String,
}

/// What a merge came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// The merged tree; `None` only under [`MergeMode::Refuse`] with conflicts.
    pub tree: Option<Oid>,
    /// Where both sides disagreed, by path. Under `Ours` and `Theirs`: what was decided that way.
    pub conflicts: Vec<Conflict>,
}

/// A path on which both sides disagreed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The path.
    pub path: RepoPath,
    /// How they disagreed.
    pub kind: ConflictKind,
}

/// How two sides can disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConflictKind {
    /// Both edited the same lines.
    Content,
    /// Both edited a file that cannot be merged by lines: binary, a symbolic link, too large.
    Binary,
    /// Both added the path, with different content.
    AddAdd,
    /// We edited what they deleted.
    ModifyDelete,
    /// We deleted what they edited.
    DeleteModify,
    /// Both changed the mode, differently.
    Mode,
    /// One has a directory where the other has a file.
    DirectoryFile,
    /// One has a file where the other has a symbolic link.
    Type,
}

/// Larger files are not merged line by line: that would take more memory and time than a commit may.
const MAX_TEXT_BYTES: u64 = 16 << 20;

impl Draft {
    /// Merges what `ours` and `theirs` changed since `base` (`None`: they have nothing in common).
    pub fn merge(&mut self, base: Option<Oid>, ours: Oid, theirs: Oid, mode: &MergeMode) -> Result<Merge> {
        let mark = self.reader_mut().fresh.get_mut().mark();
        let mut merger = Merger { draft: self, mode, conflicts: Vec::new() };
        let tree = merger.directory(base, Some(ours), Some(theirs), &[])?;
        let mut conflicts = merger.conflicts;
        conflicts.sort();
        conflicts.dedup();
        if *mode == MergeMode::Refuse && !conflicts.is_empty() {
            self.reader_mut().fresh.get_mut().roll_back(mark);
            return Ok(Merge { tree: None, conflicts });
        }
        let tree = match tree {
            Some(tree) => tree,
            None => self.write(ObjectKind::Tree, bytes::Bytes::new())?,
        };
        Ok(Merge { tree: Some(tree), conflicts })
    }
}

type Item = (Mode, Oid);

/// The three versions of something.
#[derive(Clone, Copy)]
struct Versions {
    base: Option<Item>,
    ours: Option<Item>,
    theirs: Option<Item>,
}

struct Merger<'a> {
    draft: &'a mut Draft,
    mode: &'a MergeMode,
    conflicts: Vec<Conflict>,
}

impl Merger<'_> {
    /// Merges three versions of a directory; `None` where it does not exist. Answers the merged one, if anything is in it.
    fn directory(
        &mut self,
        base: Option<Oid>,
        ours: Option<Oid>,
        theirs: Option<Oid>,
        path: &[u8],
    ) -> Result<Option<Oid>> {
        if ours == theirs || base == theirs {
            return Ok(ours);
        }
        if base == ours {
            return Ok(theirs);
        }
        let data = [base, ours, theirs].map(|id| id.map_or_else(|| Ok(Vec::new()), |id| self.draft.tree_data(id)));
        let [base_data, ours_data, theirs_data] = data;
        let (base_data, ours_data, theirs_data) = (base_data?, ours_data?, theirs_data?);
        let mut sides = [parsed(base, &base_data)?, parsed(ours, &ours_data)?, parsed(theirs, &theirs_data)?]
            .map(|entries| entries.into_iter().peekable());
        let mut merged = Merged::default();
        while let Some(name) = sides.iter_mut().filter_map(|side| side.peek().map(|(name, _)| *name)).min() {
            let [base, ours, theirs] =
                sides.each_mut().map(|side| side.next_if(|entry| entry.0 == name).map(|(_, item)| item));
            self.entry(Versions { base, ours, theirs }, name, path, &mut merged)?;
        }
        self.write_tree(merged.named(), [ours, theirs])
    }

    /// Writes a tree unless it is one of `known`.
    fn write_tree(&mut self, mut entries: Vec<(Vec<u8>, Item)>, known: [Option<Oid>; 2]) -> Result<Option<Oid>> {
        if entries.is_empty() {
            return Ok(None);
        }
        entries.sort_by(|(a, (a_mode, _)), (b, (b_mode, _))| {
            tree::order(a, *a_mode == Mode::Dir, b, *b_mode == Mode::Dir)
        });
        let mut out = Vec::with_capacity(entries.len() * 48);
        entries.iter().for_each(|(name, (mode, id))| tree::push_entry(&mut out, *mode, name, *id));
        let id = id_of(ObjectKind::Tree, &out)?;
        if !known.contains(&Some(id)) {
            self.draft.remember(id, ObjectKind::Tree, out.into());
        }
        Ok(Some(id))
    }

    fn entry(&mut self, all: Versions, name: &[u8], directory: &[u8], merged: &mut Merged) -> Result<()> {
        let Versions { base, ours, theirs } = all;
        let simple = if ours == theirs || base == theirs {
            Some(ours)
        } else if base == ours {
            Some(theirs)
        } else {
            None
        };
        if let Some(item) = simple {
            merged.entries.extend(item.map(|item| (name.to_vec(), item)));
            return Ok(());
        }
        let path = join_bytes(directory, name);
        let conflicts_before = self.conflicts.len();
        let inside = self.directory(directory_of(base), directory_of(ours), directory_of(theirs), &path)?;
        let files = Versions { base: file_of(base), ours: file_of(ours), theirs: file_of(theirs) };
        let beside = self.file(files, &path)?;
        match (inside, beside.first()) {
            (Some(inside), Some(_)) => {
                // What was in conflict inside or about the file is moot where one of the two goes as a whole.
                if matches!(self.mode, MergeMode::Ours | MergeMode::Theirs) {
                    self.conflicts.truncate(conflicts_before);
                }
                self.report(&path, ConflictKind::DirectoryFile);
                self.directory_or_file(all, inside, beside, name, merged);
            }
            (Some(inside), None) => merged.entries.push((name.to_vec(), (Mode::Dir, inside))),
            (None, _) => beside.into_iter().for_each(|(suffix, item)| merged.push(name, &suffix, item)),
        }
        Ok(())
    }

    /// A name that is a directory on one side and a file on the other, and stays both.
    fn directory_or_file(
        &mut self,
        all: Versions,
        inside: Oid,
        beside: Vec<(String, Item)>,
        name: &[u8],
        merged: &mut Merged,
    ) {
        let ours_is_file = file_of(all.ours).is_some();
        let (chosen, suffix) = match self.mode {
            MergeMode::Ours => (Some(all.ours), None),
            MergeMode::Theirs => (Some(all.theirs), None),
            MergeMode::Refuse => (None, None),
            MergeMode::Markers { labels } => (None, Some(if ours_is_file { &labels.ours } else { &labels.theirs })),
        };
        let wants_file = chosen.is_some_and(|item| file_of(item).is_some());
        if wants_file {
            merged.entries.extend(chosen.flatten().map(|item| (name.to_vec(), item)));
            return;
        }
        merged.entries.push((name.to_vec(), (Mode::Dir, inside)));
        // With markers nothing is lost: the file steps aside.
        if let Some(label) = suffix {
            for (suffix, item) in beside {
                merged.push(name, if suffix.is_empty() { label } else { &suffix }, item);
            }
        }
    }

    fn report(&mut self, path: &[u8], kind: ConflictKind) {
        self.conflicts.push(Conflict { path: RepoPath::from_tree(path.to_vec()), kind });
    }

    /// What the mode prescribes where nothing can be merged. With markers, `kept` stays.
    fn decide(&mut self, all: Versions, kept: Option<Item>, path: &[u8], kind: ConflictKind) -> Vec<(String, Item)> {
        self.report(path, kind);
        let item = match self.mode {
            MergeMode::Ours | MergeMode::Refuse => all.ours,
            MergeMode::Theirs => all.theirs,
            MergeMode::Markers { .. } => kept,
        };
        item.into_iter().map(|item| (String::new(), item)).collect()
    }

    /// Merges three versions of a file or link. Answers what there is to be; with a label, what has to step aside.
    fn file(&mut self, all: Versions, path: &[u8]) -> Result<Vec<(String, Item)>> {
        let Versions { base, ours, theirs } = all;
        let plain = |item: Option<Item>| Ok(item.into_iter().map(|item| (String::new(), item)).collect());
        if ours == theirs || base == theirs {
            return plain(ours);
        }
        if base == ours {
            return plain(theirs);
        }
        match (ours, theirs) {
            (None, None) => Ok(Vec::new()),
            (Some(_), None) => Ok(self.decide(all, ours, path, ConflictKind::ModifyDelete)),
            (None, Some(_)) => Ok(self.decide(all, theirs, path, ConflictKind::DeleteModify)),
            (Some(ours), Some(theirs)) if ours.0.is_file() && theirs.0.is_file() => {
                self.content(all, ours, theirs, path)
            }
            (Some(ours), Some(theirs)) if ours.0 == theirs.0 => {
                let kind = if base.is_some() { ConflictKind::Binary } else { ConflictKind::AddAdd };
                Ok(self.decide(all, Some(ours), path, kind))
            }
            (Some(_), Some(theirs)) => {
                let mut kept = self.decide(all, ours, path, ConflictKind::Type);
                if let MergeMode::Markers { labels } = self.mode {
                    kept.push((labels.theirs.clone(), theirs));
                }
                Ok(kept)
            }
        }
    }

    /// Merges two files that differ from each other and from the base.
    fn content(&mut self, all: Versions, ours: Item, theirs: Item, path: &[u8]) -> Result<Vec<(String, Item)>> {
        // A base of another type has no lines in common with a file.
        let base_id = all.base.filter(|(mode, _)| mode.is_file()).map(|(_, id)| id);
        let mode = self.file_mode(all.base.map(|(mode, _)| mode), ours.0, theirs.0, path);
        let id = if ours.1 == theirs.1 || base_id == Some(theirs.1) {
            ours.1
        } else if base_id == Some(ours.1) {
            theirs.1
        } else {
            match self.texts(base_id, ours.1, theirs.1)? {
                Some([base, ours, theirs]) => self.lines(&base, &ours, &theirs, base_id.is_some(), path)?,
                None => {
                    let kind = if base_id.is_some() { ConflictKind::Binary } else { ConflictKind::AddAdd };
                    self.report(path, kind);
                    if *self.mode == MergeMode::Theirs { theirs.1 } else { ours.1 }
                }
            }
        };
        Ok(vec![(String::new(), (mode, id))])
    }

    fn file_mode(&mut self, base: Option<Mode>, ours: Mode, theirs: Mode, path: &[u8]) -> Mode {
        if ours == theirs || base == Some(theirs) {
            ours
        } else if base == Some(ours) {
            theirs
        } else {
            self.report(path, ConflictKind::Mode);
            if *self.mode == MergeMode::Theirs { theirs } else { ours }
        }
    }

    /// The three texts, if all of them are texts of a bearable size. A missing base is empty.
    fn texts(&self, base: Option<Oid>, ours: Oid, theirs: Oid) -> Result<Option<[Vec<u8>; 3]>> {
        let mut texts = [Vec::new(), Vec::new(), Vec::new()];
        for (text, id) in texts.iter_mut().zip([base, Some(ours), Some(theirs)]) {
            let Some(id) = id else { continue };
            match self.draft.blob(id, MAX_TEXT_BYTES) {
                Ok(data) if !is_binary(&data) => *text = data,
                Ok(_) | Err(Error::TooLarge { .. }) => return Ok(None),
                Err(err) => return Err(err),
            }
        }
        Ok(Some(texts))
    }

    fn lines(&mut self, base: &[u8], ours: &[u8], theirs: &[u8], has_base: bool, path: &[u8]) -> Result<Oid> {
        let mut input = InternedInput::new(&b""[..], &b""[..]);
        let merge = text::Merge::new(&mut input, ours, base, theirs, Algorithm::Histogram);
        let mut out = Vec::new();
        let resolution = merge.run(&mut out, text::Labels::default(), text::Conflict::default());
        if resolution == Resolution::Conflict {
            self.report(path, if has_base { ConflictKind::Content } else { ConflictKind::AddAdd });
            let (conflict, labels) = match self.mode {
                MergeMode::Ours | MergeMode::Refuse => (text::Conflict::ResolveWithOurs, text::Labels::default()),
                MergeMode::Theirs => (text::Conflict::ResolveWithTheirs, text::Labels::default()),
                MergeMode::Markers { labels } => (text::Conflict::default(), labels.for_text()),
            };
            merge.run(&mut out, labels, conflict);
        }
        self.draft.write(ObjectKind::Blob, out.into())
    }
}

impl Labels {
    fn for_text(&self) -> text::Labels<'_> {
        text::Labels {
            ancestor: Some(self.base.as_str().into()),
            current: Some(self.ours.as_str().into()),
            other: Some(self.theirs.as_str().into()),
        }
    }
}

/// The entries of a directory as they come out of a merge.
#[derive(Default)]
struct Merged {
    entries: Vec<(Vec<u8>, Item)>,
    /// What stepped aside: the name that was wanted, the label to put behind it.
    aside: Vec<(Vec<u8>, String, Item)>,
}

impl Merged {
    /// Adds an entry; with a label, one that has to step aside.
    fn push(&mut self, name: &[u8], label: &str, item: Item) {
        if label.is_empty() {
            self.entries.push((name.to_vec(), item));
        } else {
            self.aside.push((name.to_vec(), fit_for_a_name(label), item));
        }
    }

    /// All of them, what stepped aside under names that nothing else has: `name~label`, `name~label_1` and so on.
    fn named(mut self) -> Vec<(Vec<u8>, Item)> {
        let mut taken: HashSet<Vec<u8>> = match self.aside.len() {
            0 => return self.entries,
            _ => self.entries.iter().map(|(name, _)| name.clone()).collect(),
        };
        for (name, label, item) in self.aside {
            let wanted = [&name, &b"~"[..], label.as_bytes()].concat();
            let numbered = (1..).map(|n| [&wanted, format!("_{n}").as_bytes()].concat());
            let free = std::iter::once(wanted.clone()).chain(numbered).find(|name| !taken.contains(name));
            let free = free.expect("there are more numbers than entries");
            taken.insert(free.clone());
            self.entries.push((free, item));
        }
        self.entries
    }
}

fn fit_for_a_name(label: &str) -> String {
    label.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).take(80).collect()
}
