//! Differences between trees, and between files as patches.
//!
//! Subtrees that are equal are never opened, so comparing costs what differs. Renames are not detected: a rename is
//! a deletion and an addition, here as everywhere else in this project.

use gix::diff::blob::{Algorithm, Diff, InternedInput};

use crate::path::join_bytes;
use crate::reader::{Mode, Reader, checked};
use crate::tree;
use crate::{Oid, RepoPath, Result};

/// One file that differs. Directories are never listed, only what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub path: RepoPath,
    /// What it was; `None` if it is new.
    pub old: Option<(Mode, Oid)>,
    /// What it is; `None` if it is gone.
    pub new: Option<(Mode, Oid)>,
}

/// How [`Reader::patch`] writes.
#[derive(Debug, Clone)]
pub struct PatchOptions {
    /// Unchanged lines around each change.
    pub context: u32,
    /// Stop before the text grows beyond this.
    pub limit_bytes: usize,
    /// Files larger than this are treated as binary.
    pub max_file_bytes: u64,
    /// Only this file or directory.
    pub path: Option<RepoPath>,
}

impl Default for PatchOptions {
    fn default() -> Self {
        PatchOptions { context: 3, limit_bytes: 1 << 20, max_file_bytes: 4 << 20, path: None }
    }
}

/// A difference as text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patch {
    /// The text, which `git apply` takes (binary files are only noted). Not necessarily UTF-8.
    pub text: Vec<u8>,
    /// The limit was reached, files are missing at the end.
    pub truncated: bool,
    /// How many files differ, also those that are missing in the text.
    pub files: usize,
}

/// What git looks at to tell binary files from text.
const BINARY_PROBE_BYTES: usize = 8000;

impl Reader {
    /// What differs between two trees, in the order of git's index. `None` stands for nothing at all.
    pub fn changes(&self, old_tree: Option<Oid>, new_tree: Oid) -> Result<Vec<Change>> {
        let mut out = Vec::new();
        self.compare(old_tree, Some(new_tree), &[], &mut out)?;
        out.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(out)
    }

    fn compare(&self, old: Option<Oid>, new: Option<Oid>, directory: &[u8], out: &mut Vec<Change>) -> Result<()> {
        if old == new {
            return Ok(());
        }
        let (old_data, new_data) = (self.tree_or_nothing(old)?, self.tree_or_nothing(new)?);
        let (old_entries, new_entries) = (parsed(old, &old_data)?, parsed(new, &new_data)?);
        let (mut old_rest, mut new_rest) = (&old_entries[..], &new_entries[..]);
        // Both are in the order of names as bytes, so equal names meet whatever they stand for.
        loop {
            let (name, old_item, new_item) = match (old_rest.first(), new_rest.first()) {
                (None, None) => return Ok(()),
                (Some(old), Some(new)) if old.0 == new.0 => (old.0, Some(old.1), Some(new.1)),
                (Some(old), Some(new)) if old.0 > new.0 => (new.0, None, Some(new.1)),
                (Some(old), _) => (old.0, Some(old.1), None),
                (None, Some(new)) => (new.0, None, Some(new.1)),
            };
            old_rest = &old_rest[usize::from(old_item.is_some())..];
            new_rest = &new_rest[usize::from(new_item.is_some())..];
            if old_item == new_item {
                continue;
            }
            let path = join_bytes(directory, name);
            self.compare(directory_of(old_item), directory_of(new_item), &path, out)?;
            let (old, new) = (file_of(old_item), file_of(new_item));
            if old != new {
                out.push(Change { path: RepoPath::from_tree(path), old, new });
            }
        }
    }

    fn tree_or_nothing(&self, tree: Option<Oid>) -> Result<Vec<u8>> {
        tree.map_or_else(|| Ok(Vec::new()), |id| self.tree_data(id))
    }

    /// The difference between two trees as a unified diff with git's headers.
    pub fn patch(&self, old_tree: Option<Oid>, new_tree: Oid, options: &PatchOptions) -> Result<Patch> {
        let mut changes = self.changes(old_tree, new_tree)?;
        if let Some(path) = &options.path {
            changes.retain(|change| change.path.starts_with(path));
        }
        let mut patch = Patch { files: changes.len(), ..Patch::default() };
        for change in &changes {
            let text = self.file_patch(change, options)?;
            if patch.text.len() + text.len() > options.limit_bytes {
                patch.truncated = true;
                break;
            }
            patch.text.extend_from_slice(&text);
        }
        Ok(patch)
    }

    fn file_patch(&self, change: &Change, options: &PatchOptions) -> Result<Vec<u8>> {
        match (change.old, change.new) {
            // Git shows a change of type as a deletion and an addition.
            (Some(old), Some(new)) if old.0.is_file() != new.0.is_file() => {
                let mut text = self.file_patch(&Change { new: None, ..change.clone() }, options)?;
                text.extend(self.file_patch(&Change { old: None, ..change.clone() }, options)?);
                Ok(text)
            }
            (old, new) => self.same_type_patch(&change.path, old, new, options),
        }
    }

    fn same_type_patch(
        &self,
        path: &RepoPath,
        old: Option<(Mode, Oid)>,
        new: Option<(Mode, Oid)>,
        options: &PatchOptions,
    ) -> Result<Vec<u8>> {
        let (a, b) = (prefixed("a/", path), prefixed("b/", path));
        let mut text = format!("diff --git {a} {b}\n");
        match (old, new) {
            (None, Some((mode, _))) => text.push_str(&format!("new file mode {mode}\n")),
            (Some((mode, _)), None) => text.push_str(&format!("deleted file mode {mode}\n")),
            (Some((was, _)), Some((is, _))) if was != is => text.push_str(&format!("old mode {was}\nnew mode {is}\n")),
            _ => {}
        }
        let id_of = |side: Option<(Mode, Oid)>| side.map_or(Oid::NULL, |(_, id)| id);
        if id_of(old) == id_of(new) {
            return Ok(text.into_bytes());
        }
        let mode_after = match (old, new) {
            (Some((was, _)), Some((is, _))) if was == is => format!(" {is}"),
            _ => String::new(),
        };
        text.push_str(&format!("index {}..{}{mode_after}\n", id_of(old).short(), id_of(new).short()));
        let (Some(before), Some(after)) = (self.text(old, options)?, self.text(new, options)?) else {
            let side = |name: &str, side: Option<(Mode, Oid)>| {
                if side.is_some() { name.to_owned() } else { "/dev/null".into() }
            };
            text.push_str(&format!("Binary files {} and {} differ\n", side(&a, old), side(&b, new)));
            return Ok(text.into_bytes());
        };
        let hunks = Reader::hunks(&before, &after, options.context);
        if !hunks.is_empty() {
            // A name with a space gets a tab behind it, so that patch knows where it ends.
            let end = |name: &str| if name.contains(' ') && !name.starts_with('"') { "\t\n" } else { "\n" };
            text.push_str("--- ");
            text.push_str(&if old.is_some() { format!("{a}{}", end(&a)) } else { "/dev/null\n".into() });
            text.push_str("+++ ");
            text.push_str(&if new.is_some() { format!("{b}{}", end(&b)) } else { "/dev/null\n".into() });
        }
        let mut text = text.into_bytes();
        text.extend(hunks);
        Ok(text)
    }

    /// The content of one side; `None` if it is binary or too large to be shown.
    fn text(&self, side: Option<(Mode, Oid)>, options: &PatchOptions) -> Result<Option<Vec<u8>>> {
        match side {
            None => Ok(Some(Vec::new())),
            Some((Mode::Submodule, id)) => Ok(Some(format!("Subproject commit {id}\n").into_bytes())),
            Some((_, id)) => match self.blob(id, options.max_file_bytes) {
                Ok(data) => Ok((!is_binary(&data)).then_some(data)),
                Err(crate::Error::TooLarge { .. }) => Ok(None),
                Err(err) => Err(err),
            },
        }
    }

    /// The difference between two texts as the hunks of a unified diff, without headers.
    pub fn hunks(old: &[u8], new: &[u8], context: u32) -> Vec<u8> {
        let input = InternedInput::new(old, new);
        let mut diff = Diff::compute(Algorithm::Histogram, &input);
        diff.postprocess_lines(&input);
        let mut out = Vec::new();
        let mut group: Vec<Span> = Vec::new();
        for hunk in diff.hunks() {
            let span = Span { old: (hunk.before.start, hunk.before.end), new: (hunk.after.start, hunk.after.end) };
            if group.last().is_some_and(|last| span.old.0 - last.old.1 > 2 * context) {
                write_group(&mut out, &input, &group, context);
                group.clear();
            }
            group.push(span);
        }
        write_group(&mut out, &input, &group, context);
        out
    }
}

/// Lines that differ: from, and up to but not including, in both texts.
struct Span {
    old: (u32, u32),
    new: (u32, u32),
}

fn write_group(out: &mut Vec<u8>, input: &InternedInput<&[u8]>, group: &[Span], context: u32) {
    let (Some(first), Some(last)) = (group.first(), group.last()) else { return };
    let old_len = input.before.len() as u32;
    let before = context.min(first.old.0);
    let after = context.min(old_len - last.old.1);
    let old = (first.old.0 - before, last.old.1 + after);
    let new = (first.new.0 - before, last.new.1 + after);
    out.extend_from_slice(format!("@@ -{} +{} @@\n", range(old), range(new)).as_bytes());
    let mut at = old.0;
    for span in group {
        lines(out, b' ', input, &input.before[at as usize..span.old.0 as usize]);
        lines(out, b'-', input, &input.before[span.old.0 as usize..span.old.1 as usize]);
        lines(out, b'+', input, &input.after[span.new.0 as usize..span.new.1 as usize]);
        at = span.old.1;
    }
    lines(out, b' ', input, &input.before[at as usize..old.1 as usize]);
}

/// `start,count`, counted from one; nothing at all is `start-1,0`.
fn range((start, end): (u32, u32)) -> String {
    match end - start {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        count => format!("{},{count}", start + 1),
    }
}

fn lines(out: &mut Vec<u8>, sign: u8, input: &InternedInput<&[u8]>, tokens: &[gix::diff::blob::Token]) {
    for token in tokens {
        let line = input.interner[*token];
        out.push(sign);
        out.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            out.extend_from_slice(b"\n\\ No newline at end of file\n");
        }
    }
}

/// True if git would not show the file as text.
pub(crate) fn is_binary(data: &[u8]) -> bool {
    data[..data.len().min(BINARY_PROBE_BYTES)].contains(&0)
}

/// A path behind `a/` or `b/`, quoted as a whole where git would quote it.
fn prefixed(prefix: &str, path: &RepoPath) -> String {
    let mut bytes = prefix.as_bytes().to_vec();
    bytes.extend_from_slice(path.as_bytes());
    let plain = bytes.iter().all(|byte| (0x20..0x7f).contains(byte) && !matches!(byte, b'"' | b'\\'));
    if plain { String::from_utf8_lossy(&bytes).into_owned() } else { crate::path::quote(&bytes) }
}

type Item = (Mode, Oid);

/// The entries of a tree in the order of their names.
pub(crate) fn parsed(id: Option<Oid>, data: &[u8]) -> Result<Vec<(&[u8], Item)>> {
    let mut out = Vec::new();
    for entry in tree::entries(data) {
        let (entry, mode) = checked(id.unwrap_or(Oid::NULL), entry)?;
        out.push((entry.name, (mode, entry.id)));
    }
    // Sorted already but for directories beside names that continue theirs.
    out.sort_unstable_by_key(|(name, _)| *name);
    Ok(out)
}

pub(crate) fn directory_of(item: Option<Item>) -> Option<Oid> {
    item.filter(|(mode, _)| *mode == Mode::Dir).map(|(_, id)| id)
}

pub(crate) fn file_of(item: Option<Item>) -> Option<Item> {
    item.filter(|(mode, _)| *mode != Mode::Dir)
}
