//! Writing: commits to one repository, and to several at once.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::RevisionSpec;

/// A commit to one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// The revision the changes were made against.
    pub base: RevisionSpec,
    /// The commit message.
    pub message: String,
    /// What to change, applied in order.
    pub changes: Vec<ChangeRequest>,
}

/// One change of a commit: exactly one of `content`, `content_base64`, `delete`, `rename_to`, or a `mode` alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// The path from the repository's root. One that is not UTF-8, or begins with a quotation mark, is written as git quotes it:
    /// `"caf\351"`, quotation marks included.
    pub path: String,
    /// The file's new text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The file's new bytes in standard base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<String>,
    /// git's mode: `100644` (default), `100755` or `120000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// True deletes the file, or the directory with all it holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete: bool,
    /// Renames the file or directory; written like `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rename_to: Option<String>,
}

impl ChangeRequest {
    /// Writes a file; text stays readable in the request, anything else becomes base64.
    pub fn put(path: impl Into<String>, data: Vec<u8>) -> Self {
        let mut change = Self { path: path.into(), ..Self::default() };
        match String::from_utf8(data) {
            Ok(text) => change.content = Some(text),
            Err(not_text) => change.content_base64 = Some(BASE64.encode(not_text.as_bytes())),
        }
        change
    }

    /// The same change with git's mode (`100755`, `120000`).
    pub fn with_mode(mut self, mode: impl Into<String>) -> Self {
        self.mode = Some(mode.into());
        self
    }

    /// Deletes a file or directory.
    pub fn delete(path: impl Into<String>) -> Self {
        Self { path: path.into(), delete: true, ..Self::default() }
    }

    /// Renames a file or directory.
    pub fn rename(from: impl Into<String>, to: impl Into<String>) -> Self {
        Self { path: from.into(), rename_to: Some(to.into()), ..Self::default() }
    }
}

/// A commit to several repositories at once: all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MultiCommitRequest {
    /// The commit message, the same in every repository.
    pub message: String,
    /// Repository name → base and changes.
    pub repos: BTreeMap<String, RepoChanges>,
}

/// One repository's part of a [`MultiCommitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RepoChanges {
    /// The revision the changes were made against.
    pub base: RevisionSpec,
    /// What to change, applied in order.
    pub changes: Vec<ChangeRequest>,
}

/// The answer to a [`CommitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CommitResponse {
    /// The revision the repository stands at with this commit.
    pub revision: u64,
    /// The commit id in hex.
    pub commit: String,
    /// True when the changes made no difference: nothing was committed, this is the current head.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
}

/// The answer to a [`MultiCommitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MultiCommitResponse {
    /// Repository name → where it stands now.
    pub repos: BTreeMap<String, CommitResponse>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_base_may_be_number_or_text() {
        let number: CommitRequest = serde_json::from_str(r#"{"base":47,"message":"m","changes":[]}"#).unwrap();
        let text: CommitRequest = serde_json::from_str(r#"{"base":"r47","message":"m","changes":[]}"#).unwrap();
        assert_eq!(number, text);
        assert_eq!(serde_json::to_value(&number).unwrap()["base"], 47);
    }

    #[test]
    fn a_misspelt_change_is_refused() {
        let error = serde_json::from_str::<ChangeRequest>(r#"{"path":"a","deleted":true}"#).unwrap_err().to_string();
        assert!(error.contains("deleted"), "{error}");
    }

    #[test]
    fn bytes_that_are_not_text_travel_as_base64() {
        assert_eq!(ChangeRequest::put("a", b"x".to_vec()).content.as_deref(), Some("x"));
        let change = ChangeRequest::put("a", vec![0xff]);
        assert_eq!((change.content, change.content_base64.as_deref()), (None, Some("/w==")));
    }
}
