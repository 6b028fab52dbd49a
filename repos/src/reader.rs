//! Reading objects.
//!
//! A [`Reader`] is one thread's view of a store: it sees every pack that was installed before the call, also ones
//! that came after the reader was made, and goes on while packs are consolidated. On top of the store it may see
//! objects that exist only in memory, those of a [`Draft`](crate::Draft). What is read is held against its name: a spoiled disk makes
//! errors, never other content.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gix::objs::Find;
use serde::{Deserialize, Serialize};

use crate::draft::Fresh;
use crate::object::{self, Links};
use crate::path::join_bytes;
use crate::recent::Recent;
use crate::tree;
use crate::{Error, Oid, RepoPath, Result};

/// What a tree entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A file, 100644.
    File,
    /// An executable file, 100755.
    Exec,
    /// A symbolic link, 120000.
    Symlink,
    /// A directory, 40000.
    Dir,
    /// A commit of another repository, 160000.
    Submodule,
}

/// The four kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum ObjectKind {
    Commit,
    Tree,
    Blob,
    Tag,
}

/// A whole object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its content, without git's header.
    pub data: Vec<u8>,
}

/// Who did something, and when.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signature {
    /// The name; characters that git cannot store are dropped when it is written.
    pub name: String,
    /// The mail address, likewise.
    pub email: String,
    /// Seconds since 1970 UTC.
    pub time_s: i64,
    /// The time zone, in minutes east of UTC.
    pub offset_min: i32,
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// Its id.
    pub id: Oid,
    /// The root tree.
    pub tree: Oid,
    /// Its parents, the first one first.
    pub parents: Vec<Oid>,
    /// Who made the change.
    pub author: Signature,
    /// Who made the commit.
    pub committer: Signature,
    /// The message, as it is stored; not UTF-8 is replaced.
    pub message: String,
}

/// An entry of a tree, with its path from the root that was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path.
    pub path: RepoPath,
    /// What it is.
    pub mode: Mode,
    /// Its object.
    pub id: Oid,
}

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// `File`, `Exec` or `Symlink`.
    pub mode: Mode,
    /// The blob.
    pub id: Oid,
    /// Its content; for a symbolic link, its target.
    pub data: Vec<u8>,
}

/// One thread's view of a store. Cheap to make; `Send`, but not shared between threads.
pub struct Reader {
    /// What a draft made, found first.
    pub(crate) fresh: RefCell<Fresh>,
    /// What a quarantine holds.
    received: Option<gix::odb::HandleArc>,
    odb: gix::odb::HandleArc,
    store: Arc<gix::odb::Store>,
    /// What came lately and is in no pack yet.
    recent: Arc<Recent>,
    /// Shared with the store: how often something was not what its name says.
    damaged_reads: Arc<AtomicU64>,
    /// Commits that are taken to have no parents: where a shallow history ends.
    shallow: HashSet<Oid>,
}

/// Deltas lean on the same few bases, mostly trees: keeping some of them unpacked is what makes walking fast.
const PACK_CACHE_BYTES: usize = 8 << 20;

/// A symbolic link or the name of a tag is never longer.
const TAG_LIMIT_BYTES: u64 = 1 << 20;
/// Tags that name tags are followed so far.
const MAX_TAG_DEPTH: usize = 16;

impl Mode {
    /// Git's number: 0o100644 and so on.
    pub fn to_git(self) -> u32 {
        match self {
            Mode::File => 0o100644,
            Mode::Exec => 0o100755,
            Mode::Symlink => 0o120000,
            Mode::Dir => 0o040000,
            Mode::Submodule => 0o160000,
        }
    }

    /// The mode for git's number; odd permission bits of files are rounded as git does.
    pub fn from_git(number: u32) -> Option<Mode> {
        Some(match number & 0o170000 {
            0o100000 if number & 0o100 != 0 => Mode::Exec,
            0o100000 => Mode::File,
            0o120000 => Mode::Symlink,
            0o040000 => Mode::Dir,
            0o160000 => Mode::Submodule,
            _ => return None,
        })
    }

    /// True for `File` and `Exec`.
    pub fn is_file(self) -> bool {
        matches!(self, Mode::File | Mode::Exec)
    }

    /// True for what has a blob: files and symbolic links.
    pub fn is_blob(self) -> bool {
        matches!(self, Mode::File | Mode::Exec | Mode::Symlink)
    }
}

/// Six octal digits, as git prints a mode.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06o}", self.to_git())
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    /// Six octal digits: `100644`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = u32::from_str_radix(text, 8).ok();
        number
            .and_then(|number| Mode::from_git(number).filter(|mode| mode.to_git() == number))
            .ok_or_else(|| format!("“{text}” is not a mode: 100644, 100755 or 120000 is wanted"))
    }
}

impl ObjectKind {
    /// Git's word.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectKind::Commit => "commit",
            ObjectKind::Tree => "tree",
            ObjectKind::Blob => "blob",
            ObjectKind::Tag => "tag",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<gix::objs::Kind> for ObjectKind {
    fn from(kind: gix::objs::Kind) -> Self {
        match kind {
            gix::objs::Kind::Commit => ObjectKind::Commit,
            gix::objs::Kind::Tree => ObjectKind::Tree,
            gix::objs::Kind::Blob => ObjectKind::Blob,
            gix::objs::Kind::Tag => ObjectKind::Tag,
        }
    }
}

impl From<ObjectKind> for gix::objs::Kind {
    fn from(kind: ObjectKind) -> Self {
        match kind {
            ObjectKind::Commit => gix::objs::Kind::Commit,
            ObjectKind::Tree => gix::objs::Kind::Tree,
            ObjectKind::Blob => gix::objs::Kind::Blob,
            ObjectKind::Tag => gix::objs::Kind::Tag,
        }
    }
}

/// Reading through gix, for its own algorithms: drafts and quarantines included.
impl Find for Reader {
    fn try_find<'a>(&self, id: &gix::hash::oid, buffer: &'a mut Vec<u8>) -> gix::Result<Option<gix::objs::Data<'a>>> {
        match self.find(Oid::from(id), buffer) {
            Ok(Some(kind)) => {
                Ok(Some(gix::objs::Data { kind: kind.into(), object_hash: gix::hash::Kind::Sha1, data: buffer }))
            }
            Ok(None) => Ok(None),
            Err(err) => Err(gix::Error::from_error(err)),
        }
    }
}

impl Reader {
    pub(crate) fn of(store: Arc<gix::odb::Store>, recent: Arc<Recent>, damaged_reads: Arc<AtomicU64>) -> Reader {
        let odb = handle(&store);
        Reader { fresh: RefCell::default(), received: None, odb, store, recent, damaged_reads, shallow: HashSet::new() }
    }

    /// Looks into `received`, too.
    pub(crate) fn with_received(mut self, received: &Arc<gix::odb::Store>) -> Reader {
        let mut received = handle(received);
        // It holds one pack that is there from the beginning.
        received.refresh_never();
        self.received = Some(received);
        self
    }

    /// Takes these commits to have no parents, as a shallow clone does. Their `parents` are still shown.
    pub fn with_shallow(mut self, commits: impl IntoIterator<Item = Oid>) -> Reader {
        self.shallow.extend(commits);
        self
    }

    /// True if the object is here. The empty tree always is.
    pub fn contains(&self, id: Oid) -> bool {
        id == Oid::EMPTY_TREE || self.fresh.borrow().get(id).is_some() || self.is_stored(id)
    }

    fn is_stored(&self, id: Oid) -> bool {
        if self.recent.header(id).is_some() {
            return true;
        }
        let exists = |odb: &gix::odb::HandleArc| Ok(gix::objs::Exists::exists(odb, id.as_ref()));
        let odbs = self.received.iter().chain([&self.odb]);
        odbs.into_iter().any(|odb| self.guarded(id, || exists(odb)).unwrap_or(false))
    }

    /// Runs the object database, which is not ours and maps files that a disk may have spoiled: should it panic, that ends this call alone.
    fn guarded<T>(&self, id: Oid, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = catch_unwind(AssertUnwindSafe(work));
        let done = done.unwrap_or_else(|_| Err(damaged(id, "what holds it cannot be understood")));
        done.inspect_err(|_| {
            self.damaged_reads.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Finds an object in a database, and holds it against its name.
    fn find_in(&self, odb: &gix::odb::HandleArc, id: Oid, buffer: &mut Vec<u8>) -> Result<Option<ObjectKind>> {
        self.guarded(id, || {
            let found = Find::try_find(odb, id.as_ref(), buffer).map_err(odb_error(id))?;
            let Some(kind) = found.map(|data| data.kind) else { return Ok(None) };
            let name = gix::objs::compute_hash(gix::hash::Kind::Sha1, kind, buffer).map_err(odb_error(id))?;
            if Oid::from(name) == id { Ok(Some(kind.into())) } else { Err(damaged(id, "its content has another name")) }
        })
    }

    /// Puts the object's content into `buffer`; `None` if it is not here.
    pub(crate) fn find(&self, id: Oid, buffer: &mut Vec<u8>) -> Result<Option<ObjectKind>> {
        buffer.clear();
        if let Some((kind, data)) = self.fresh.borrow().get(id) {
            buffer.extend_from_slice(data);
            return Ok(Some(kind));
        }
        if let Some(received) = &self.received
            && let Some(kind) = self.find_in(received, id, buffer)?
        {
            return Ok(Some(kind));
        }
        // Before the packs: what is not here any more is in one of them.
        if let Some((kind, data)) = self.recent.get(id) {
            buffer.extend_from_slice(&data);
            return Ok(Some(kind));
        }
        if let Some(kind) = self.find_in(&self.odb, id, buffer)? {
            return Ok(Some(kind));
        }
        if id == Oid::EMPTY_TREE {
            return Ok(Some(ObjectKind::Tree));
        }
        // gix says "not there", too, if the pack it was about to open went away in a consolidation. A fresh handle
        // knows the pack that took its place.
        self.find_in(&handle(&self.store), id, buffer)
    }

    /// Like `find`, but the object must be here and of this kind.
    pub(crate) fn expect(&self, id: Oid, expected: ObjectKind, buffer: &mut Vec<u8>) -> Result<()> {
        match self.find(id, buffer)? {
            Some(kind) if kind == expected => Ok(()),
            Some(actual) => Err(Error::WrongKind { id, expected, actual }),
            None => Err(Error::Missing { id }),
        }
    }

    /// The bytes of a tree.
    pub(crate) fn tree_data(&self, id: Oid) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        self.expect(id, ObjectKind::Tree, &mut data)?;
        Ok(data)
    }

    /// What walking history needs of a commit. Where history is shallow, no parents.
    pub(crate) fn links(&self, id: Oid, buffer: &mut Vec<u8>) -> Result<Links> {
        self.expect(id, ObjectKind::Commit, buffer)?;
        let mut links = object::links(buffer).ok_or_else(|| damaged(id, "it is not a commit"))?;
        if self.shallow.contains(&id) {
            links.parents.clear();
        }
        Ok(links)
    }

    /// Any object, if it is here and not larger than `limit_bytes`.
    pub fn object(&self, id: Oid, limit_bytes: u64) -> Result<Object> {
        if limit_bytes < u64::MAX
            && let Some((_, size_bytes)) = self.header(id)?
            && size_bytes > limit_bytes
        {
            return Err(Error::TooLarge { id, size_bytes, limit_bytes });
        }
        let mut data = Vec::new();
        let kind = self.find(id, &mut data)?.ok_or(Error::Missing { id })?;
        Ok(Object { kind, data })
    }

    /// Kind and size of an object, without decoding it; `None` if it is not here.
    pub fn header(&self, id: Oid) -> Result<Option<(ObjectKind, u64)>> {
        if let Some((kind, data)) = self.fresh.borrow().get(id) {
            return Ok(Some((kind, data.len() as u64)));
        }
        if let Some(header) = self.recent.header(id) {
            return Ok(Some(header));
        }
        for odb in self.received.iter().chain([&self.odb]) {
            let header = || gix::odb::Header::try_header(odb, id.as_ref()).map_err(odb_error(id));
            if let Some(header) = self.guarded(id, header)? {
                return Ok(Some((header.kind().into(), header.size())));
            }
        }
        Ok((id == Oid::EMPTY_TREE).then_some((ObjectKind::Tree, 0)))
    }

    /// Follows annotated tags from `id` to what they name. An object that is no tag is its own end.
    pub fn peel(&self, id: Oid) -> Result<(Oid, ObjectKind)> {
        let mut at = id;
        for _ in 0..MAX_TAG_DEPTH {
            let (kind, _) = self.header(at)?.ok_or(Error::Missing { id: at })?;
            if kind != ObjectKind::Tag {
                return Ok((at, kind));
            }
            let tag = self.object(at, TAG_LIMIT_BYTES)?;
            at = object::tag_target(&tag.data).ok_or_else(|| damaged(at, "it is not a tag"))?.0;
        }
        Err(damaged(id, "tags that name tags without an end"))
    }

    /// A commit.
    pub fn commit(&self, id: Oid) -> Result<CommitInfo> {
        let mut data = Vec::new();
        self.expect(id, ObjectKind::Commit, &mut data)?;
        object::commit_info(id, &data).ok_or_else(|| damaged(id, "it is not a commit"))
    }

    /// The root tree of a commit.
    pub fn tree_of(&self, commit: Oid) -> Result<Oid> {
        Ok(self.links(commit, &mut Vec::new())?.tree)
    }

    /// What `path` is in `tree`.
    pub fn entry(&self, tree: Oid, path: &RepoPath) -> Result<Option<Entry>> {
        let mut buffer = Vec::new();
        let mut at = (Mode::Dir, tree);
        for name in path.components() {
            if at.0 != Mode::Dir {
                return Ok(None);
            }
            self.expect(at.1, ObjectKind::Tree, &mut buffer)?;
            match find_entry(at.1, &buffer, name)? {
                Some(found) => at = found,
                None => return Ok(None),
            }
        }
        Ok(Some(Entry { path: path.clone(), mode: at.0, id: at.1 }))
    }

    /// The entries below `prefix` (`None`: the root), in the order of git's trees. Empty if `prefix` does not exist;
    /// the one entry itself if it is a file. With `recursive`, directories are replaced by what they contain.
    pub fn list(&self, tree: Oid, prefix: Option<&RepoPath>, recursive: bool) -> Result<Vec<Entry>> {
        let mut out = Vec::new();
        let (root, directory) = match prefix {
            None => (tree, Vec::new()),
            Some(prefix) => match self.entry(tree, prefix)? {
                None => return Ok(out),
                Some(entry) if entry.mode != Mode::Dir => return Ok(vec![entry]),
                Some(entry) => (entry.id, prefix.as_bytes().to_vec()),
            },
        };
        self.list_into(root, &directory, recursive, &mut out)?;
        Ok(out)
    }

    fn list_into(&self, tree: Oid, directory: &[u8], recursive: bool, out: &mut Vec<Entry>) -> Result<()> {
        let data = self.tree_data(tree)?;
        for entry in tree::entries(&data) {
            let (entry, mode) = checked(tree, entry)?;
            let path = join_bytes(directory, entry.name);
            if recursive && mode == Mode::Dir {
                self.list_into(entry.id, &path, true, out)?;
            } else {
                out.push(Entry { path: RepoPath::from_tree(path), mode, id: entry.id });
            }
        }
        Ok(())
    }

    /// The content of a blob.
    pub fn blob(&self, id: Oid, limit_bytes: u64) -> Result<Vec<u8>> {
        let object = self.object(id, limit_bytes)?;
        match object.kind {
            ObjectKind::Blob => Ok(object.data),
            actual => Err(Error::WrongKind { id, expected: ObjectKind::Blob, actual }),
        }
    }

    /// The file (or symbolic link) at `path` in a commit; `None` if there is nothing or a directory.
    pub fn read(&self, commit: Oid, path: &RepoPath, limit_bytes: u64) -> Result<Option<File>> {
        match self.entry(self.tree_of(commit)?, path)? {
            Some(entry) if entry.mode.is_blob() => {
                Ok(Some(File { mode: entry.mode, id: entry.id, data: self.blob(entry.id, limit_bytes)? }))
            }
            _ => Ok(None),
        }
    }

    /// The commit whose id begins with these hexadecimal digits, if there is exactly one such commit.
    pub fn commit_by_prefix(&self, hex: &str) -> Result<Option<Oid>> {
        if let Ok(id) = hex.parse::<Oid>() {
            return Ok(self.header(id)?.filter(|(kind, _)| *kind == ObjectKind::Commit).map(|_| id));
        }
        let Ok(prefix) = gix::hash::Prefix::from_hex(hex) else { return Ok(None) };
        let lately = self.recent.commits_with_prefix(hex);
        let mut candidates = HashSet::new();
        let lookup = || self.odb.lookup_prefix(prefix, Some(&mut candidates)).map_err(odb_error(Oid::NULL));
        self.guarded(Oid::NULL, lookup)?;
        let mut found = None;
        let candidates: HashSet<Oid> = candidates.into_iter().map(Oid::from).chain(lately).collect();
        for id in candidates {
            if self.header(id)?.is_some_and(|(kind, _)| kind == ObjectKind::Commit) && found.replace(id).is_some() {
                return Ok(None);
            }
        }
        Ok(found)
    }
}

fn handle(store: &Arc<gix::odb::Store>) -> gix::odb::HandleArc {
    store
        .to_cache_arc()
        .with_pack_cache(|| Box::new(gix_pack::cache::lru::StaticLinkedList::<64>::new(PACK_CACHE_BYTES)))
}

pub(crate) fn odb_error(id: Oid) -> impl Fn(gix::Error) -> Error {
    move |err| Error::Odb { id, source: err.to_string().into() }
}

pub(crate) fn damaged(id: Oid, reason: &str) -> Error {
    Error::Damaged { id, reason: reason.to_owned() }
}

/// An entry of a tree that is known to be sound, or the error that says it is not.
pub(crate) fn checked<'a>(
    tree: Oid,
    entry: Result<tree::RawEntry<'a>, tree::Malformed>,
) -> Result<(tree::RawEntry<'a>, Mode)> {
    let entry = entry.map_err(|_| damaged(tree, "it is not a tree"))?;
    let mode = entry.mode().ok_or_else(|| damaged(tree, "an entry has an unknown mode"))?;
    Ok((entry, mode))
}

fn find_entry(tree: Oid, data: &[u8], name: &[u8]) -> Result<Option<(Mode, Oid)>> {
    for entry in tree::entries(data) {
        let (entry, mode) = checked(tree, entry)?;
        if entry.name == name {
            return Ok(Some((mode, entry.id)));
        }
    }
    Ok(None)
}
