//! What is looked at before objects are trusted, and again when somebody doubts them.
//!
//! New commits are checked for what a checkout could suffer from, and for being complete. Only what is new is walked: a
//! tree, or an entry of one, that a parent commit had at the same place was checked when that came in.
//!
//! A symbolic link must stay in its tree. Its target may climb only at its beginning (`../../x`), and no further than the
//! link lies deep: then it stays inside whatever other links it meets on its way, because each of them does.

use std::collections::{HashMap, HashSet};

use crate::draft::Draft;
use crate::log::Walk;
use crate::object;
use crate::path::{MAX_DEPTH, MAX_PATH_BYTES, check_name, join_bytes};
use crate::reader::{Mode, ObjectKind, Reader, damaged};
use crate::tree::{self, RawEntry};
use crate::{Error, Oid, RepoPath, Result, Store};

/// What trees must keep to beyond the rules that always hold.
#[derive(Debug, Clone)]
pub struct TreeRules {
    /// Names that no entry of a root tree may have, such as `global`.
    pub reserved_root_names: Vec<String>,
    /// How many files a new tree may unfold to. A few small trees that contain each other many times are a bomb.
    pub max_files: u64,
}

impl Default for TreeRules {
    fn default() -> Self {
        TreeRules { reserved_root_names: Vec::new(), max_files: 1_000_000 }
    }
}

/// A path that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The path, made printable: it may be one that `RepoPath` would not take.
    pub path: String,
    /// Which rule, in words.
    pub reason: String,
}

/// Why new commits are not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Something in them breaks a rule. Never empty; at most a hundred are listed.
    #[error("{}", .0.iter().map(|r| format!("{}: {}", r.path, r.reason)).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// An object that they need is missing or damaged, or the store failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Something wrong in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub id: Oid,
    /// What is wrong with it.
    pub kind: ProblemKind,
    /// The commit, tree or tag that refers to it, if it is not a tip.
    pub referrer: Option<Oid>,
}

/// What can be wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProblemKind {
    /// It is not there.
    Missing,
    /// It does not decode, or its content does not have its name.
    Damaged(String),
}

/// More would not fit on anybody's screen.
const MAX_REFUSALS: usize = 100;
const MAX_PROBLEMS: usize = 1000;
/// A link is a path, and no path is longer.
const MAX_LINK_BYTES: u64 = 4096;
/// Files that git itself reads from a working tree, and refuses to read through a link.
const NEVER_LINKS: [&[u8]; 4] = [b".gitmodules", b".gitattributes", b".gitignore", b".mailmap"];

impl Reader {
    /// Checks what `new_tips` bring that `old_tips` did not have; see [`Quarantine::check_new`](crate::Quarantine::check_new).
    pub fn check_new(&self, old_tips: &[Oid], new_tips: &[Oid], rules: &TreeRules) -> Result<(), CheckError> {
        let mut old = Vec::new();
        for id in old_tips.iter().filter(|id| !id.is_null()) {
            // An old tip that names no commit hides nothing.
            old.extend(self.peel(*id).ok().filter(|(_, kind)| *kind == ObjectKind::Commit).map(|(commit, _)| commit));
        }
        let mut checker = Checker::new(self, rules);
        let mut commits = Vec::new();
        for id in new_tips.iter().filter(|id| !id.is_null()) {
            match self.peel(*id)? {
                (commit, ObjectKind::Commit) => commits.push(commit),
                // A tag may name a tree or a blob directly: unusual, and harmless if the tree is.
                (tree, ObjectKind::Tree) => checker.root(&[], tree)?,
                (_, ObjectKind::Blob | ObjectKind::Tag) => {}
            }
        }
        let mut walk = Walk::new(self, &commits, &old, false)?;
        let mut buffer = Vec::new();
        while let Some((id, links)) = walk.next()? {
            self.expect(id, ObjectKind::Commit, &mut buffer)?;
            if let Err(err) = gix::objs::CommitRef::from_bytes(&buffer, gix::hash::Kind::Sha1) {
                return Err(damaged(id, &err.to_string()).into());
            }
            let parents = links.parents.iter().map(|parent| self.tree_of(*parent)).collect::<Result<Vec<_>>>()?;
            checker.root(&parents, links.tree)?;
        }
        checker.verdict()
    }
}

impl Draft {
    /// Checks everything in `tree` that is not in `base` against the rules that pushed trees are checked against.
    pub fn check_tree(&self, base: Option<Oid>, tree: Oid, rules: &TreeRules) -> Result<(), CheckError> {
        let mut checker = Checker::new(self, rules);
        checker.root(base.as_slice(), tree)?;
        checker.verdict()
    }
}

struct Checker<'a> {
    reader: &'a Reader,
    rules: &'a TreeRules,
    refusals: Vec<Refusal>,
    /// Trees that were checked, with the depth they were at, and how many files they unfold to.
    seen: HashMap<(Oid, usize), u64>,
}

impl<'a> Checker<'a> {
    fn new(reader: &'a Reader, rules: &'a TreeRules) -> Self {
        Checker { reader, rules, refusals: Vec::new(), seen: HashMap::new() }
    }

    fn verdict(self) -> Result<(), CheckError> {
        if self.refusals.is_empty() { Ok(()) } else { Err(CheckError::Refused(self.refusals)) }
    }

    fn refuse(&mut self, path: &[u8], reason: impl Into<String>) {
        let refusal = Refusal { path: RepoPath::from_tree(path.to_vec()).to_string(), reason: reason.into() };
        if self.refusals.len() < MAX_REFUSALS && !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }

    fn root(&mut self, parents: &[Oid], tree: Oid) -> Result<()> {
        if parents.contains(&tree) {
            return Ok(());
        }
        let files = self.tree(parents, tree, &[], 0)?;
        if files > self.rules.max_files {
            self.refuse(b"/", format!("the tree unfolds to more than {} files", self.rules.max_files));
        }
        Ok(())
    }

    /// Checks a tree that none of `parents` is, and answers how many files it unfolds to.
    fn tree(&mut self, parents: &[Oid], id: Oid, path: &[u8], depth: usize) -> Result<u64> {
        if let Some(files) = self.seen.get(&(id, depth)) {
            return Ok(*files);
        }
        let data = self.reader.tree_data(id)?;
        let parent_data = parents.iter().map(|parent| self.reader.tree_data(*parent)).collect::<Result<Vec<_>>>()?;
        let known: Vec<HashMap<&[u8], RawEntry<'_>>> = parent_data.iter().map(|data| by_name(data)).collect();
        let mut names = HashSet::new();
        let mut previous: Option<(&[u8], bool)> = None;
        let mut files = 0u64;
        for entry in tree::entries(&data) {
            let Ok(entry) = entry else {
                self.refuse(path, "the tree is malformed");
                break;
            };
            let entry_path = join_bytes(path, entry.name);
            let is_dir = entry.mode() == Some(Mode::Dir);
            if !names.insert(entry.name) {
                self.refuse(&entry_path, "the name is in the tree twice");
            } else if previous.is_some_and(|(name, was_dir)| tree::order(name, was_dir, entry.name, is_dir).is_ge()) {
                self.refuse(&entry_path, "the tree is not sorted");
            }
            previous = Some((entry.name, is_dir));
            let before: Vec<RawEntry<'_>> = known.iter().filter_map(|known| known.get(entry.name).copied()).collect();
            let unchanged = before.iter().any(|old| (old.mode, old.id) == (entry.mode, entry.id));
            files = files.saturating_add(if unchanged { 1 } else { self.entry(&before, entry, &entry_path, depth)? });
        }
        self.seen.insert((id, depth), files);
        Ok(files)
    }

    fn entry(&mut self, before: &[RawEntry<'_>], entry: RawEntry<'_>, path: &[u8], depth: usize) -> Result<u64> {
        let mode = entry.mode();
        if let Err(reason) = check_name(entry.name, mode == Some(Mode::Symlink)) {
            self.refuse(path, reason);
            return Ok(1);
        }
        if depth == 0 && self.rules.reserved_root_names.iter().any(|name| name.as_bytes() == entry.name) {
            self.refuse(path, "the name is reserved at the root of this repository");
        }
        if path.len() > MAX_PATH_BYTES {
            self.refuse(&path[..200], format!("a path is longer than {MAX_PATH_BYTES} bytes"));
            return Ok(1);
        }
        if depth >= MAX_DEPTH {
            self.refuse(&path[..200.min(path.len())], format!("a path is more than {MAX_DEPTH} directories deep"));
            return Ok(1);
        }
        if !entry.mode_is_canonical {
            self.refuse(path, "its mode is written with a leading zero");
        }
        match mode {
            Some(Mode::Dir) => {
                let parents: Vec<Oid> =
                    before.iter().filter(|old| old.mode() == Some(Mode::Dir)).map(|old| old.id).collect();
                return self.tree(&parents, entry.id, path, depth + 1);
            }
            Some(Mode::File | Mode::Exec) => self.blob(entry.id)?,
            Some(Mode::Symlink) => {
                self.blob(entry.id)?;
                self.symlink(entry, path, depth)?;
            }
            Some(Mode::Submodule) => self.refuse(path, "submodules are not supported"),
            None => self.refuse(path, format!("mode {:o} does not exist", entry.mode)),
        }
        Ok(1)
    }

    fn blob(&self, id: Oid) -> Result<()> {
        match self.reader.header(id)? {
            Some((ObjectKind::Blob, _)) => Ok(()),
            Some((actual, _)) => Err(Error::WrongKind { id, expected: ObjectKind::Blob, actual }),
            None => Err(Error::Missing { id }),
        }
    }

    fn symlink(&mut self, entry: RawEntry<'_>, path: &[u8], depth: usize) -> Result<()> {
        let name = entry.name.trim_ascii_end().to_ascii_lowercase();
        if NEVER_LINKS.contains(&name.as_slice()) {
            self.refuse(path, "git does not read this file through a symbolic link");
        }
        match self.reader.blob(entry.id, MAX_LINK_BYTES) {
            Ok(target) => {
                if let Err(reason) = check_link(&target, depth) {
                    self.refuse(path, format!("the symbolic link to {}: {reason}", crate::path::printable(&target)));
                }
                Ok(())
            }
            Err(Error::TooLarge { .. }) => {
                self.refuse(path, format!("a symbolic link has more than {MAX_LINK_BYTES} bytes"));
                Ok(())
            }
            Err(err) => Err(err),
        }
    }
}

fn by_name(data: &[u8]) -> HashMap<&[u8], RawEntry<'_>> {
    tree::entries(data).filter_map(Result::ok).map(|entry| (entry.name, entry)).collect()
}

/// Checks where a link leads that lies `depth` directories below the root.
fn check_link(target: &[u8], depth: usize) -> Result<(), &'static str> {
    if target.is_empty() {
        return Err("it leads nowhere");
    }
    if target[0] == b'/' {
        return Err("it is absolute");
    }
    if target.contains(&0) {
        return Err("it contains a NUL byte");
    }
    let mut climbs = 0;
    let mut went_down = false;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if went_down => return Err("“..” may stand only at its beginning"),
            b".." => climbs += 1,
            _ if check_name(component, false).is_err() => return Err("it leads into .git or has an unacceptable name"),
            _ => went_down = true,
        }
    }
    if climbs > depth { Err("it leaves the tree") } else { Ok(()) }
}

/// How far [`Store::verify_while`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verified {
    /// Objects that were read.
    pub objects: u64,
    /// Their contents together.
    pub bytes: u64,
}

impl Store {
    /// Reads everything that `tips` reach. At most a thousand problems are listed.
    pub fn verify(&self, tips: &[Oid]) -> Result<Vec<Problem>> {
        self.verify_while(tips, &mut |_| true)
    }

    /// The same, telling `go_on` after every object how far it is; false ends it, with what was found so far.
    pub fn verify_while(&self, tips: &[Oid], go_on: &mut dyn FnMut(Verified) -> bool) -> Result<Vec<Problem>> {
        let reader = self.reader()?;
        let mut seen: HashSet<Oid> = tips.iter().copied().collect();
        let mut todo: Vec<(Oid, Option<Oid>)> = seen.iter().map(|id| (*id, None)).collect();
        let mut problems = Vec::new();
        let mut buffer = Vec::new();
        let mut so_far = Verified::default();
        while let Some((id, referrer)) = todo.pop() {
            if problems.len() >= MAX_PROBLEMS {
                break;
            }
            match verified(&reader, id, &mut buffer) {
                Ok(next) => {
                    todo.extend(next.into_iter().filter(|next| seen.insert(*next)).map(|next| (next, Some(id))))
                }
                Err(kind) => problems.push(Problem { id, kind, referrer }),
            }
            so_far.objects += 1;
            so_far.bytes += buffer.len() as u64;
            if !go_on(so_far) {
                break;
            }
        }
        problems.sort_unstable_by_key(|problem| problem.id);
        Ok(problems)
    }
}

/// Reads an object, which holds it against its name, and answers what it refers to.
fn verified(reader: &Reader, id: Oid, buffer: &mut Vec<u8>) -> Result<Vec<Oid>, ProblemKind> {
    let damaged = |reason: &str| ProblemKind::Damaged(reason.to_owned());
    let kind = reader.find(id, buffer).map_err(|err| match err {
        Error::Damaged { reason, .. } => ProblemKind::Damaged(reason),
        other => ProblemKind::Damaged(other.to_string()),
    })?;
    let kind = kind.ok_or(ProblemKind::Missing)?;
    match kind {
        ObjectKind::Blob => Ok(Vec::new()),
        ObjectKind::Tag => Ok(vec![object::tag_target(buffer).ok_or_else(|| damaged("it is not a tag"))?.0]),
        ObjectKind::Commit => {
            let links = object::links(buffer).ok_or_else(|| damaged("it is not a commit"))?;
            Ok([links.tree].into_iter().chain(links.parents).collect())
        }
        ObjectKind::Tree => tree::entries(buffer)
            .map(|entry| entry.map_err(|_| damaged("it is not a tree")))
            .filter(|entry| !matches!(entry, Ok(entry) if entry.mode() == Some(Mode::Submodule)))
            .map(|entry| entry.map(|entry| entry.id))
            .collect(),
    }
}
