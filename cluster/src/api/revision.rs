//! Where a repository stands, and how people name a point of its history.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a repository's `main` stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Head {
    /// How often `main` has moved.
    pub revision: u64,
    /// The commit id in hex.
    pub commit: String,
}

/// A revision as people name it: `47`, `r47`, or a commit id of at least seven hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RevisionSpec {
    /// The repository's revision number.
    Number(u64),
    /// A commit id or an unambiguous prefix of one, lower case.
    Commit(String),
}

/// The text is neither a revision number nor a commit id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a revision (47, r47) nor a commit id of 7 to 40 hex digits")]
pub struct BadRevision(pub String);

impl FromStr for RevisionSpec {
    type Err = BadRevision;

    /// All-digit text is a number unless it has the full length of a commit id, or begins with a zero and has the length of an abbreviated one.
    fn from_str(text: &str) -> Result<Self, BadRevision> {
        let bad = || BadRevision(text.chars().take(64).collect());
        let hex = text.len() <= 40 && !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        if let Some(number) = text.strip_prefix('r') {
            return digits(number).map(Self::Number).ok_or_else(bad);
        }
        let zeros = text.len() >= 7 && text.starts_with('0');
        if text.len() != 40
            && !zeros
            && let Some(number) = digits(text)
        {
            return Ok(Self::Number(number));
        }
        if hex && text.len() >= 7 { Ok(Self::Commit(text.to_ascii_lowercase())) } else { Err(bad()) }
    }
}

/// `u64::from_str` without its leniency towards signs.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for RevisionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Commit(id) => f.write_str(id),
        }
    }
}

impl From<u64> for RevisionSpec {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl Serialize for RevisionSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Commit(id) => serializer.serialize_str(id),
        }
    }
}

impl<'de> Deserialize<'de> for RevisionSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(number) => Ok(Self::Number(number)),
            Raw::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for RevisionSpec {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
        let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^(r?[0-9]+|[0-9a-fA-F]{7,40})$"));
        let both = OneOfBuilder::new().item(number).item(text);
        Schema::OneOf(
            both.description(Some("A revision: 47, \"r47\", or a commit id of at least seven hex digits.")).build(),
        )
        .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for RevisionSpec {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_a_number_or_a_commit() {
        assert_eq!("47".parse(), Ok(RevisionSpec::Number(47)));
        assert_eq!("r47".parse(), Ok(RevisionSpec::Number(47)));
        assert_eq!("12345678".parse(), Ok(RevisionSpec::Number(12_345_678)));
        assert_eq!("0123456".parse(), Ok(RevisionSpec::Commit("0123456".into())));
        assert_eq!("ABCDEF0".parse(), Ok(RevisionSpec::Commit("abcdef0".into())));
        let full = "1".repeat(40);
        assert_eq!(full.parse(), Ok(RevisionSpec::Commit(full.clone())));
        for bad in ["", "r", "rr1", "-1", "+1", "abc", "main", "r1x", &"a".repeat(41), "é"] {
            assert_eq!(bad.parse::<RevisionSpec>(), Err(BadRevision(bad.into())), "{bad:?}");
        }
    }
}
