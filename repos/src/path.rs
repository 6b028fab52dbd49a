//! Paths inside a tree.
//!
//! A [`RepoPath`] can be joined to a directory and written without looking at it again: it is relative, has no
//! empty, `.` or `..` component, and nothing that any file system would take for `.git`. It is bytes, not text,
//! because git's names are.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A checked path below the root of a tree, with `/` between its components.
///
/// As text, and in serialised form, a path that is UTF-8 stands for itself; any other one is quoted as git quotes
/// it: `"a\377b"`. A path that itself begins with a quotation mark is quoted too, so nothing is ambiguous.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath(Vec<u8>);

/// Why a path is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("“{path}” is not an acceptable path: {reason}")]
pub struct PathError {
    /// The path as it was given, made printable.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The longest path we take: PATH_MAX of Linux, less room for the directory in which a tree is checked out.
pub(crate) const MAX_PATH_BYTES: usize = 3000;
/// Deeper trees are refused: they are walked by recursion, and nobody has them.
pub(crate) const MAX_DEPTH: usize = 128;
/// NAME_MAX of Linux.
const MAX_NAME_BYTES: usize = 255;

const PROTECTION: gix::validate::path::component::Options =
    gix::validate::path::component::Options { protect_windows: false, protect_hfs: true, protect_ntfs: true };

/// Checks one name of a tree entry; the reason why it is not acceptable otherwise.
pub(crate) fn check_name(name: &[u8], is_symlink: bool) -> Result<(), String> {
    if name.contains(&0) {
        return Err("it contains a NUL byte".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("a name is longer than {MAX_NAME_BYTES} bytes"));
    }
    let mode = is_symlink.then_some(gix::validate::path::component::Mode::Symlink);
    gix::validate::path::component(name.into(), mode, PROTECTION).map(|_| ()).map_err(|err| err.to_string())
}

impl RepoPath {
    /// Checks `path` and makes it a `RepoPath`.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let path = path.into();
        match check(&path) {
            Ok(()) => Ok(RepoPath(path)),
            Err(reason) => Err(PathError { path: printable(&path), reason }),
        }
    }

    /// A path that a stored tree already has. Trees are checked when they enter a store, not each time they are
    /// read; one that came another way must be readable as well, to be reported.
    pub(crate) fn from_tree(path: Vec<u8>) -> Self {
        RepoPath(path)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The path as the operating system wants it, to be joined to a directory.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }

    /// The names between the slashes, outermost first. There is at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// The last component.
    pub fn name(&self) -> &[u8] {
        self.components().next_back().unwrap_or(&self.0)
    }

    /// All but the last component; `None` directly below the root.
    pub fn parent(&self) -> Option<RepoPath> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(RepoPath(self.0[..slash].to_vec()))
    }

    /// This path, a slash, and `rest`.
    pub fn join(&self, rest: &RepoPath) -> RepoPath {
        RepoPath(join_bytes(&self.0, &rest.0))
    }

    /// True if the path equals `other` or lies below it.
    pub fn starts_with(&self, other: &RepoPath) -> bool {
        self.0.strip_prefix(other.0.as_slice()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    /// What remains below `directory`; `None` if the path does not lie below it.
    pub fn strip_prefix(&self, directory: &RepoPath) -> Option<RepoPath> {
        let rest = self.0.strip_prefix(directory.0.as_slice())?.strip_prefix(b"/")?;
        Some(RepoPath(rest.to_vec()))
    }
}

/// `directory/name`, or `name` alone at the root, where `directory` is empty.
pub(crate) fn join_bytes(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(directory.len() + 1 + name.len());
    out.extend_from_slice(directory);
    if !directory.is_empty() {
        out.push(b'/');
    }
    out.extend_from_slice(name);
    out
}

fn check(path: &[u8]) -> Result<(), String> {
    if path.is_empty() {
        return Err("it is empty".into());
    }
    if path[0] == b'/' {
        return Err("it is absolute".into());
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(format!("longer than {MAX_PATH_BYTES} bytes"));
    }
    if path.iter().filter(|byte| **byte == b'/').count() >= MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} directories deep"));
    }
    path.split(|byte| *byte == b'/').try_for_each(|name| check_name(name, false))
}

pub(crate) fn printable(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => text
            .chars()
            .take(400)
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect(),
        Err(_) => quote(&path[..path.len().min(400)]),
    }
}

/// Git's way of writing bytes in ASCII: quotation marks around, octal escapes inside.
pub(crate) fn quote(path: &[u8]) -> String {
    let mut out = String::from("\"");
    for byte in path {
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            0x20..=0x7e => out.push(char::from(*byte)),
            _ => out.push_str(&format!("\\{byte:03o}")),
        }
    }
    out.push('"');
    out
}

fn unquote(text: &str) -> Option<Vec<u8>> {
    let mut rest = text.strip_prefix('"')?.strip_suffix('"')?.bytes();
    let mut out = Vec::new();
    while let Some(byte) = rest.next() {
        if byte == b'"' {
            return None;
        }
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next()? {
            b'"' => b'"',
            b'\\' => b'\\',
            b'n' => b'\n',
            b't' => b'\t',
            first @ b'0'..=b'3' => {
                let (second, third) = (rest.next()?, rest.next()?);
                let octal = |digit: u8| (b'0'..=b'7').contains(&digit).then(|| digit - b'0');
                octal(first)? * 64 + octal(second)? * 8 + octal(third)?
            }
            _ => return None,
        });
    }
    Some(out)
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(text) if !text.starts_with('"') => f.write_str(text),
            _ => f.write_str(&quote(&self.0)),
        }
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for RepoPath {
    type Err = PathError;

    /// The opposite of `Display`: a text in quotation marks is unquoted.
    fn from_str(text: &str) -> Result<Self, PathError> {
        if !text.starts_with('"') {
            return RepoPath::new(text);
        }
        match unquote(text) {
            Some(bytes) => RepoPath::new(bytes),
            None => Err(PathError { path: text.to_owned(), reason: "wrongly quoted".into() }),
        }
    }
}

impl TryFrom<&str> for RepoPath {
    type Error = PathError;

    /// Takes the text as it is, quotation marks included.
    fn try_from(path: &str) -> Result<Self, PathError> {
        RepoPath::new(path)
    }
}

impl TryFrom<&[u8]> for RepoPath {
    type Error = PathError;

    fn try_from(path: &[u8]) -> Result<Self, PathError> {
        RepoPath::new(path)
    }
}

impl Serialize for RepoPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RepoPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_could_harm_a_checkout() {
        for path in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "./a",
            ".git",
            ".GIT",
            "a/.git/config",
            ".git ",
            ".git.",
            "git~1",
            "GIT~1/x",
            ".g\u{200c}it",
            ".git::$INDEX_ALLOCATION",
            "a\0b",
        ] {
            assert!(RepoPath::new(path).is_err(), "{path:?}");
        }
        assert!(RepoPath::new("x".repeat(256)).is_err());
    }

    #[test]
    fn accepts_ordinary_names() {
        for path in [
            "a",
            "a/b",
            ".gitignore",
            ".gitattributes",
            "a b",
            "con",
            "x:y",
            "back\\slash",
            "..a",
            "a..",
            "ü/é",
            "git~2",
            "a/.github/x",
        ] {
            assert!(RepoPath::new(path).is_ok(), "{path:?}");
        }
        assert!(RepoPath::new(&b"\xff\xfe"[..]).is_ok());
    }

    #[test]
    fn relations() {
        let path = RepoPath::new("a/b/c").unwrap();
        assert_eq!(path.parent().unwrap().to_string(), "a/b");
        assert_eq!(path.name(), b"c");
        assert!(path.starts_with(&RepoPath::new("a/b").unwrap()));
        assert!(!path.starts_with(&RepoPath::new("a/bb").unwrap()));
        assert!(!RepoPath::new("a/bc").unwrap().starts_with(&RepoPath::new("a/b").unwrap()));
        assert_eq!(path.strip_prefix(&RepoPath::new("a").unwrap()).unwrap().to_string(), "b/c");
        assert_eq!(path.strip_prefix(&path), None);
    }

    proptest! {
        #[test]
        fn text_form_loses_nothing(bytes in proptest::collection::vec(any::<u8>(), 1..20)) {
            if let Ok(path) = RepoPath::new(bytes) {
                prop_assert_eq!(path.to_string().parse::<RepoPath>().unwrap(), path);
            }
        }
    }
}
