//! Reading objects.
//!
//! A [`Reader`] is one thread's view of a store: it sees every pack that was installed before the call, also ones
//! that came after the reader was made, and goes on while packs are consolidated. On top of the store it may see
//! objects that exist only in memory, those of a [`Draft`](crate::Draft).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Oid, RepoPath, Result};

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
    _todo: (),
}

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

impl Reader {
    /// True if the object is here. The empty tree always is.
    pub fn contains(&self, _id: Oid) -> bool {
        todo!()
    }

    /// Any object, if it is here and not larger than `limit_bytes`.
    pub fn object(&self, _id: Oid, _limit_bytes: u64) -> Result<Object> {
        todo!()
    }

    /// Kind and size of an object, without decoding it; `None` if it is not here.
    pub fn header(&self, _id: Oid) -> Result<Option<(ObjectKind, u64)>> {
        todo!()
    }

    /// Follows annotated tags from `id` to what they name. An object that is no tag is its own end.
    pub fn peel(&self, _id: Oid) -> Result<(Oid, ObjectKind)> {
        todo!()
    }

    /// A commit.
    pub fn commit(&self, _id: Oid) -> Result<CommitInfo> {
        todo!()
    }

    /// The root tree of a commit.
    pub fn tree_of(&self, _commit: Oid) -> Result<Oid> {
        todo!()
    }

    /// What `path` is in `tree`.
    pub fn entry(&self, _tree: Oid, _path: &RepoPath) -> Result<Option<Entry>> {
        todo!()
    }

    /// The entries below `prefix` (`None`: the root), in the order of their paths as bytes within each directory.
    /// Empty if `prefix` does not exist; the one entry itself if it is a file. With `recursive`, directories
    /// are replaced by what they contain.
    pub fn list(&self, _tree: Oid, _prefix: Option<&RepoPath>, _recursive: bool) -> Result<Vec<Entry>> {
        todo!()
    }

    /// The content of a blob.
    pub fn blob(&self, _id: Oid, _limit_bytes: u64) -> Result<Vec<u8>> {
        todo!()
    }

    /// The file (or symbolic link) at `path` in a commit; `None` if there is nothing or a directory.
    pub fn read(&self, _commit: Oid, _path: &RepoPath, _limit_bytes: u64) -> Result<Option<File>> {
        todo!()
    }

    /// The commit whose id begins with these hexadecimal digits, if there is exactly one such object and it is a commit.
    pub fn commit_by_prefix(&self, _hex: &str) -> Result<Option<Oid>> {
        todo!()
    }
}
