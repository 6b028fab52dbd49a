//! Refusals, as RFC 9457 wants them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::control::Failure;

/// An error, as RFC 9457 wants it. `code` is stable; `title` and `detail` are for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:eccluster:problem:<code>`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What the status means, the same for every problem of this code.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What was wrong with this request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The stable name of the error, such as `conflict` or `refused`.
    #[serde(default)]
    pub code: String,
    /// What may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What the gate found (status 422).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// The paths in conflict (status 409).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<ConflictPath>,
    /// Certainly nothing was done (status 429 or 503): another server may be asked, whatever the request was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_done: bool,
    /// The request's id, for the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl Problem {
    /// A daemon's refusal, as it is answered over HTTP.
    pub fn of_failure(status: http::StatusCode, failure: Failure) -> Self {
        let Failure { message, hint, code } = failure;
        let code = if code.is_empty() { "failed".to_owned() } else { code };
        Self {
            kind: format!("urn:eccluster:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Failed").into(),
            status: status.as_u16(),
            detail: message,
            code,
            hint,
            ..Self::default()
        }
    }
}

/// A path that somebody else changed since the base.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ConflictPath {
    /// The repository.
    pub repo: String,
    /// The path from the repository's root.
    pub path: String,
    /// How the two changes collide.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// One thing the gate refuses, with the place to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Finding {
    /// The repository.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repo: String,
    /// The path from the repository's root.
    pub file: String,
    /// The line, from 1; 0 when the whole file is meant.
    pub line: u32,
    /// The column, from 1; 0 when unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl fmt::Display for Finding {
    /// `repo:file:line: message`, without the parts that are not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.repo.is_empty() {
            write!(f, "{}:", self.repo)?;
        }
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.message)
    }
}
