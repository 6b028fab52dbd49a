//! Names, checked once. A name of these types is safe as a path component, a URL segment and a table key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name; it becomes a directory, a certificate's subject and part of a DNS-like label.
const MAX_NAME_BYTES: usize = 63;

/// The text cannot be the name of a repository or node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: one word of a-z, 0-9, '-' and '_', starting with a letter or digit, at most 63 characters"
)]
pub struct BadName(pub String);

fn check(text: &str) -> Result<(), BadName> {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
    if first && rest && text.len() <= MAX_NAME_BYTES { Ok(()) } else { Err(BadName(text.chars().take(80).collect())) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A repository, which is also the name of a subcluster, or `global`.
    RepoName
);
name!(
    /// A node.
    NodeName
);

impl RepoName {
    /// The repository that is mapped into every working copy.
    pub fn global() -> Self {
        Self("global".into())
    }

    /// Whether this is `global`.
    pub fn is_global(&self) -> bool {
        self.0 == "global"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_is_one_safe_word() {
        for good in ["default", "n1", "east-1", "a_b", "0"] {
            assert_eq!(good.parse::<RepoName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "_a", "A", "a.b", "a/b", "..", "a b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<RepoName>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<NodeName>("\"..\"").is_err());
    }
}
