//! What is wrong with a document, with the place to look at.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::place::{KeyPath, Place, Position};

/// One thing that makes a document unusable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Finding {
    /// The repository; empty when files are looked at without knowing theirs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repo: String,
    /// The file: from the repository's root when [`repo`](Self::repo) is known, else from the working copy's.
    pub file: String,
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// The column, from 1; 0 when the file as a whole is meant.
    pub column: u32,
    /// The key that is meant, as a dotted path; empty for the document as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// What is wrong, in one line.
    pub message: String,
    /// What may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The first node whose effective document is wrong; none when the file is wrong by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How many further nodes have the same mistake.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_nodes: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Finding {
    /// A mistake at a place in a file.
    pub fn at(file: &str, at: Position, message: impl Into<String>) -> Self {
        Self { line: at.line, column: at.column, ..Self::whole(file, message) }
    }

    /// A mistake of a file as a whole.
    pub fn whole(file: &str, message: impl Into<String>) -> Self {
        Self {
            repo: String::new(),
            file: file.to_owned(),
            line: 0,
            column: 0,
            key: String::new(),
            message: message.into(),
            hint: None,
            node: None,
            more_nodes: 0,
        }
    }

    /// A mistake at a place that was recorded when the document was read.
    pub fn at_place(place: &Place, message: impl Into<String>) -> Self {
        Self::at(&place.file, place.at, message)
    }

    /// Adds what may help.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the key that is meant.
    #[must_use]
    pub fn with_key(mut self, key: &KeyPath) -> Self {
        self.key = key.to_string();
        self
    }

    /// The path in a working copy: `global/cluster.toml` for the file `cluster.toml` of the repository `global`.
    pub fn shown_path(&self) -> String {
        match self.repo.as_str() {
            "" | "default" => self.file.clone(),
            "global" => format!("global/{}", self.file),
            repo => format!("{repo}: {}", self.file),
        }
    }
}

impl fmt::Display for Finding {
    /// `default/duravip.toml:12:3: message (node n1 and 4 more); hint: …`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown_path())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        match (&self.node, self.more_nodes) {
            (None, _) => {}
            (Some(node), 0) => write!(f, " (node {node})")?,
            (Some(node), more) => write!(f, " (node {node} and {more} more)")?,
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl From<Finding> for crate::api::Finding {
    fn from(finding: Finding) -> Self {
        let message = match (&finding.node, finding.more_nodes) {
            (None, _) => finding.message,
            (Some(node), 0) => format!("{} (node {node})", finding.message),
            (Some(node), more) => format!("{} (node {node} and {more} more)", finding.message),
        };
        Self {
            repo: finding.repo,
            file: finding.file,
            line: finding.line,
            column: finding.column,
            message,
            hint: finding.hint,
        }
    }
}

/// One or more findings as an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings(Vec<Finding>);

/// No document is worth more lines of complaint than this; the rest shows up after the first are mended.
pub const MAX_FINDINGS: usize = 100;

impl Findings {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one; beyond [`MAX_FINDINGS`] further ones are dropped.
    pub fn push(&mut self, finding: Finding) {
        if self.0.len() < MAX_FINDINGS {
            self.0.push(finding);
        }
    }

    /// Adds several.
    pub fn extend(&mut self, others: impl IntoIterator<Item = Finding>) {
        others.into_iter().for_each(|finding| self.push(finding));
    }

    /// True when nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// In the order in which they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.0.iter()
    }

    /// The value when nothing is wrong, else these findings.
    pub fn or<T>(self, value: T) -> Result<T, Findings> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Sorted by place, without repetitions.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.0.sort();
        self.0.dedup();
        self
    }
}

impl From<Finding> for Findings {
    fn from(finding: Finding) -> Self {
        Self(vec![finding])
    }
}

impl From<Vec<Finding>> for Findings {
    fn from(findings: Vec<Finding>) -> Self {
        let mut bounded = Self::new();
        bounded.extend(findings);
        bounded
    }
}

impl IntoIterator for Findings {
    type Item = Finding;
    type IntoIter = std::vec::IntoIter<Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Findings {
    type Item = &'a Finding;
    type IntoIter = std::slice::Iter<'a, Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Findings {
    /// One finding per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, finding) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Findings {}
