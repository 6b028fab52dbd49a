//! Names of references, and the map that says where each one points.
//!
//! A [`RefName`] is always full (`refs/heads/main`) and follows git's rules, checked once when it is made.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Oid;

/// Where every reference of a repository points.
pub type RefMap = BTreeMap<RefName, Oid>;

/// The full name of a reference, like `refs/heads/main`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RefName(String);

/// A name that git would not accept for a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("“{name}” is not a reference name: {reason}")]
pub struct RefNameError {
    /// The name as it was given, made printable.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Longer names fail on most file systems once git unpacks them.
const MAX_LEN_BYTES: usize = 240;

impl RefName {
    /// `refs/heads/main`.
    pub fn main() -> Self {
        RefName("refs/heads/main".into())
    }

    /// `refs/heads/<name>`.
    pub fn branch(name: &str) -> Result<Self, RefNameError> {
        RefName::try_from(format!("refs/heads/{name}"))
    }

    /// `refs/tags/<name>`.
    pub fn tag(name: &str) -> Result<Self, RefNameError> {
        RefName::try_from(format!("refs/tags/{name}"))
    }

    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without `refs/heads/` or `refs/tags/`, for people.
    pub fn short(&self) -> &str {
        ["refs/heads/", "refs/tags/", "refs/"].iter().find_map(|prefix| self.0.strip_prefix(prefix)).unwrap_or(&self.0)
    }

    /// True below `refs/heads/`.
    pub fn is_branch(&self) -> bool {
        self.0.starts_with("refs/heads/")
    }

    /// True below `refs/tags/`.
    pub fn is_tag(&self) -> bool {
        self.0.starts_with("refs/tags/")
    }
}

fn check(name: &str) -> Result<(), String> {
    if !name.starts_with("refs/") {
        return Err("it must begin with refs/".into());
    }
    if name.len() > MAX_LEN_BYTES {
        return Err(format!("longer than {MAX_LEN_BYTES} bytes"));
    }
    gix::validate::reference::name(name.into()).map(|_| ()).map_err(|err| err.to_string())
}

impl TryFrom<String> for RefName {
    type Error = RefNameError;

    fn try_from(name: String) -> Result<Self, RefNameError> {
        match check(&name) {
            Ok(()) => Ok(RefName(name)),
            Err(reason) => Err(RefNameError { name: name.escape_debug().take(300).collect(), reason }),
        }
    }
}

impl TryFrom<&str> for RefName {
    type Error = RefNameError;

    fn try_from(name: &str) -> Result<Self, RefNameError> {
        RefName::try_from(name.to_owned())
    }
}

impl TryFrom<&[u8]> for RefName {
    type Error = RefNameError;

    fn try_from(name: &[u8]) -> Result<Self, RefNameError> {
        match std::str::from_utf8(name) {
            Ok(text) => RefName::try_from(text),
            Err(_) => Err(RefNameError { name: name.escape_ascii().to_string(), reason: "not UTF-8".into() }),
        }
    }
}

impl std::str::FromStr for RefName {
    type Err = RefNameError;

    fn from_str(name: &str) -> Result<Self, RefNameError> {
        RefName::try_from(name)
    }
}

impl From<RefName> for String {
    fn from(name: RefName) -> String {
        name.0
    }
}

impl Borrow<str> for RefName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for RefName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_git_accepts() {
        for name in ["refs/heads/main", "refs/tags/v1.0", "refs/heads/a/b-c", "refs/notes/x", "refs/heads/ü"] {
            assert!(RefName::try_from(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn refuses_what_git_refuses() {
        let long = format!("refs/heads/{}", "x".repeat(300));
        for name in [
            "",
            "HEAD",
            "main",
            "refs/",
            "refs/heads/",
            "refs/heads/.x",
            "refs/heads/x.lock",
            "refs/heads/a..b",
            "refs/heads/a b",
            "refs/heads/a~1",
            "refs/heads/a\\b",
            "refs/heads/a\0",
            "refs/heads/a\n",
            "refs/heads//a",
            "/refs/heads/a",
            "refs/heads/@{",
            "refs/../x",
            long.as_str(),
        ] {
            assert!(RefName::try_from(name).is_err(), "{name}");
        }
        assert!(RefName::try_from(&b"refs/heads/\xff"[..]).is_err());
    }

    #[test]
    fn short_names() {
        assert_eq!(RefName::main().short(), "main");
        assert!(RefName::main().is_branch());
        assert_eq!(RefName::tag("v1").map(|name| name.short().to_owned()), Ok("v1".into()));
    }
}
