//! The gate over a whole working copy, without a server: `eccfg validate`, and daemons that follow a plain directory.

use std::collections::BTreeMap;

use super::{
    Change, ChangeKind, Files, FilesError, Finding, GLOBAL, GateLimits, Proposal, ProposedRepo, Report, check,
};

/// Judges every file of a tree that is laid out like a working copy of `subcluster`. Findings name files from the tree's
/// root. Nodes are those of `global/cluster.toml`.
pub fn check_tree(files: &dyn Files, subcluster: &str) -> Result<Report, FilesError> {
    let own = Part { files, prefix: "" };
    let global = Part { files, prefix: "global/" };
    let mut repos = BTreeMap::new();
    repos.insert(subcluster.to_owned(), ProposedRepo { files: &own, changes: everything(&own)? });
    repos.insert(GLOBAL.to_owned(), ProposedRepo { files: &global, changes: everything(&global)? });
    let unlimited = GateLimits { file_bytes: u64::MAX, commit_bytes: u64::MAX, commit_paths: usize::MAX };
    let report = check(&Proposal { repos, nodes: Vec::new() }, &unlimited)?;
    let mut findings: Vec<Finding> = report.findings.into_iter().map(from_root).collect();
    findings.sort();
    Ok(Report { findings, more: report.more })
}

fn everything(part: &Part<'_>) -> Result<Vec<Change>, FilesError> {
    let paths = part.list("")?;
    Ok(paths
        .into_iter()
        .map(|path| Change { path: path.into_bytes(), kind: ChangeKind::File { size: None } })
        .collect())
}

fn from_root(finding: Finding) -> Finding {
    let file = if finding.repo == GLOBAL { format!("global/{}", finding.file) } else { finding.file };
    Finding { repo: String::new(), file, ..finding }
}

/// One repository's part of a working copy.
struct Part<'a> {
    files: &'a dyn Files,
    /// `global/`, or nothing for all the rest.
    prefix: &'static str,
}

impl Files for Part<'_> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, FilesError> {
        self.files.read(&format!("{}{path}", self.prefix))
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, FilesError> {
        let found = self.files.list(&format!("{}{directory}", self.prefix))?;
        if self.prefix.is_empty() {
            return Ok(found.into_iter().filter(|path| !path.starts_with("global/")).collect());
        }
        Ok(found.into_iter().filter_map(|path| path.strip_prefix(self.prefix).map(str::to_owned)).collect())
    }
}
