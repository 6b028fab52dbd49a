//! The gate: what stands between a change and everybody's configuration.
//!
//! Every write path (push, API, console, command line, mirror) hands its proposed trees to [`check`] before they are
//! accepted; `eccfg validate` hands a working copy to [`check_tree`] and runs the same code without a server. A change is
//! refused when a file it touches is not what its name says (syntax), when a document holds unknown keys or values of
//! the wrong kind, when the effective document of any node that the change affects would be refused by its daemon, or
//! when it is too large. A finding names file, line and column.
//!
//! The gate is pure: it sees [`Files`], not git; it decides nothing by clock or order of arrival, so every replica would
//! say the same. Its work is proportional to the change: files that were not touched are read only as layers of
//! documents that were, each once, and nodes with the same layers are judged once.
//!
//! Left out here, each with its own seam: names that could harm a checkout, submodules and links are refused where git
//! trees are read (`repos`); path rights belong to accounts; JSON Schema files under `.schemas/` and external validators
//! will be further stages that add to the same findings.

mod nodes;
mod paths;
mod syntax;
mod tree;

use std::collections::BTreeMap;
use std::fmt;

pub use crate::documents::{Files, FilesError, Finding};
pub use syntax::check_syntax;
pub use tree::check_tree;

/// The repository whose tree appears as `global/` in every working copy.
pub const GLOBAL: &str = "global";

/// Findings reported per change: who broke more than this will come back anyway.
pub const MAX_FINDINGS: usize = 100;

/// A change to one or several repositories, as it would be after the change.
pub struct Proposal<'a> {
    /// Every repository by name, also those that do not change: a change of `global` is checked against all
    /// subclusters. Those that the change does not affect are never read.
    pub repos: BTreeMap<String, ProposedRepo<'a>>,
    /// The nodes that have joined or enrolled, from the replicated state.
    pub nodes: Vec<RegisteredNode>,
}

/// One repository as it would be.
pub struct ProposedRepo<'a> {
    /// Its tree after the change; paths from the repository's root.
    pub files: &'a dyn Files,
    /// What is different from before; empty when nothing is.
    pub changes: Vec<Change>,
}

/// A path that is different from before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path from the repository's root, as git has it.
    pub path: Vec<u8>,
    /// What it is now.
    pub kind: ChangeKind,
}

/// What a changed path is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// A file.
    File {
        /// Its length, when it is known without reading it; without, only [`check_tree`] cares.
        size: Option<u64>,
    },
    /// A symbolic link. It is not followed.
    Symlink,
    /// Gone.
    Deleted,
}

/// A node of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredNode {
    /// Its name.
    pub name: String,
    /// The subcluster in its certificate.
    pub subcluster: String,
}

/// Bounds on a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// The largest file.
    pub file_bytes: u64,
    /// All files that a change puts, together, over all repositories.
    pub commit_bytes: u64,
    /// The most paths that a change touches.
    pub commit_paths: usize,
}

impl Default for GateLimits {
    fn default() -> Self {
        (&crate::documents::schema::ecconfigd::Limits::default()).into()
    }
}

impl From<&crate::documents::schema::ecconfigd::Limits> for GateLimits {
    fn from(limits: &crate::documents::schema::ecconfigd::Limits) -> Self {
        Self {
            file_bytes: limits.file_size.bytes(),
            commit_bytes: limits.commit_size.bytes(),
            commit_paths: limits.commit_paths as usize,
        }
    }
}

/// What the gate says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What is wrong, sorted by place, without repetitions, at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many more there were.
    pub more: usize,
}

impl Report {
    /// True when the change may pass.
    pub fn is_pass(&self) -> bool {
        self.findings.is_empty()
    }

    /// One line per finding, for a terminal or a git client.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.findings.iter().map(Finding::to_string).collect();
        if self.more > 0 {
            lines.push(format!("… and {} more", self.more));
        }
        lines
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

/// Judges a change. Blocks while it reads; the error is for trees that cannot be read, not for what they contain.
pub fn check(proposal: &Proposal<'_>, limits: &GateLimits) -> Result<Report, FilesError> {
    let mut gathered = Gathered::default();
    paths::check(proposal, limits, &mut gathered);
    if gathered.is_empty() {
        // Too large is too large to look into.
        syntax::check(proposal, &mut gathered)?;
        nodes::check(proposal, &mut gathered)?;
    }
    Ok(gathered.report())
}

/// Findings on their way into a report: the same mistake of many nodes is one.
#[derive(Default)]
struct Gathered {
    /// By everything except the node.
    findings: BTreeMap<Finding, Nodes>,
    more: usize,
}

#[derive(Default)]
struct Nodes {
    /// The file is wrong by itself, so that it says nothing to name the nodes that have it.
    by_itself: bool,
    first: Option<String>,
    more: u32,
}

/// Distinct findings held while a change is judged. Beyond, they are only counted.
const MAX_GATHERED: usize = 10 * MAX_FINDINGS;

impl Gathered {
    fn is_empty(&self) -> bool {
        self.findings.is_empty() && self.more == 0
    }

    /// Adds a finding about a file by itself.
    fn add(&mut self, finding: Finding) {
        if let Some(nodes) = self.entry(finding) {
            *nodes = Nodes { by_itself: true, ..Nodes::default() };
        }
    }

    /// Adds a finding about the effective document of some nodes.
    fn add_for(&mut self, finding: Finding, nodes: &[String]) {
        let Some(entry) = self.entry(finding).filter(|entry| !entry.by_itself) else { return };
        for node in nodes {
            match &mut entry.first {
                None => entry.first = Some(node.clone()),
                Some(first) => {
                    entry.more += 1;
                    if node < first {
                        first.clone_from(node);
                    }
                }
            }
        }
    }

    /// The entry of a finding; none when there are too many to keep.
    fn entry(&mut self, finding: Finding) -> Option<&mut Nodes> {
        if self.findings.len() >= MAX_GATHERED && !self.findings.contains_key(&finding) {
            self.more += 1;
            return None;
        }
        Some(self.findings.entry(finding).or_default())
    }

    fn report(self) -> Report {
        let total = self.findings.len() + self.more;
        let with_nodes =
            |(finding, nodes): (Finding, Nodes)| Finding { node: nodes.first, more_nodes: nodes.more, ..finding };
        let findings: Vec<Finding> = self.findings.into_iter().take(MAX_FINDINGS).map(with_nodes).collect();
        Report { more: total - findings.len(), findings }
    }
}
