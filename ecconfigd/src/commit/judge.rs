//! Asking the gate about proposed trees.

use std::collections::BTreeMap;

use cluster::gate::{self, ChangeKind, GateLimits, ProposedRepo, RegisteredNode};
use repos::{Change, CheckError, Mode, Oid, Reader, Refusal, TreeRules};

use crate::error::{Error, Result};
use crate::state::{RepoName, View};
use crate::tree_files::{LazyFiles, TreeFiles};

/// Paths that a revision record carries; watchers of a longer list are woken without looking.
const MAX_PATHS: usize = 1000;
const MAX_PATHS_BYTES: usize = 64 << 10;

/// One repository as it would be.
pub(super) struct Proposed<'a> {
    pub(super) reader: &'a Reader,
    pub(super) tree: Oid,
    /// What differs from the tree before; empty when nothing does.
    pub(super) changes: &'a [Change],
}

/// The rules for trees of a repository: a working copy shows `global` under that name.
pub(super) fn rules(repo: &RepoName) -> TreeRules {
    let reserved = if repo.is_global() { vec![] } else { vec![gate::GLOBAL.to_owned()] };
    TreeRules { reserved_root_names: reserved, ..TreeRules::default() }
}

/// Judges a change. `proposed` holds the repositories that differ from the picture, all others are taken from there.
pub(super) fn judge(
    view: &View,
    proposed: &BTreeMap<RepoName, Proposed<'_>>,
    limits: &GateLimits,
) -> Result<gate::Report> {
    let mut files: BTreeMap<&RepoName, Box<dyn gate::Files + '_>> = BTreeMap::new();
    for (name, repo) in view.repos.iter() {
        files.insert(name, Box::new(LazyFiles::new(repo.store.clone(), repo.record.head.commit)));
    }
    let mut changes = BTreeMap::new();
    for (name, repo) in proposed {
        files.insert(name, Box::new(TreeFiles::new(repo.reader, repo.tree)));
        let changed = repo.changes.iter().map(|change| gate_change(repo.reader, change));
        changes.insert(name, changed.collect::<Result<Vec<_>>>()?);
    }
    let repos = files
        .iter()
        .map(|(name, files)| {
            let changes = changes.remove(name).unwrap_or_default();
            (name.to_string(), ProposedRepo { files: &**files, changes })
        })
        .collect();
    let nodes = view
        .nodes
        .values()
        .map(|node| RegisteredNode { name: node.name.to_string(), subcluster: node.subcluster.to_string() })
        .collect();
    gate::check(&gate::Proposal { repos, nodes }, limits).map_err(Error::internal)
}

fn gate_change(reader: &Reader, change: &Change) -> Result<gate::Change> {
    let kind = match change.new {
        None => ChangeKind::Deleted,
        Some((Mode::Symlink, _)) => ChangeKind::Symlink,
        Some((_, id)) => {
            let header = reader.header(id).map_err(Error::internal)?;
            ChangeKind::File { size: header.map(|(_, size_bytes)| size_bytes) }
        }
    };
    Ok(gate::Change { path: change.path.as_bytes().to_vec(), kind })
}

/// The gate's report as an error, if it refuses.
pub(super) fn refused(report: gate::Report) -> Result<()> {
    if report.is_pass() {
        return Ok(());
    }
    Err(Error::Refused { findings: report.findings.into_iter().map(Into::into).collect() })
}

/// Broken tree rules as an error.
pub(super) fn check_error(repo: &RepoName, error: CheckError) -> Error {
    match error {
        CheckError::Refused(refusals) => {
            Error::Refused { findings: refusals.into_iter().map(|refusal| finding(repo, refusal)).collect() }
        }
        CheckError::Failed(error) => Error::internal(error),
    }
}

fn finding(repo: &RepoName, refusal: Refusal) -> cluster::api::Finding {
    path_finding(repo, refusal.path, refusal.reason)
}

/// A finding about a path as a whole.
pub(super) fn path_finding(repo: &RepoName, file: String, message: String) -> cluster::api::Finding {
    cluster::api::Finding { repo: repo.to_string(), file, line: 0, column: 0, message, hint: None }
}

/// The changed paths for a revision record, and whether there are more.
pub(super) fn record_paths(changes: &[Change]) -> (Vec<String>, bool) {
    let mut paths = Vec::new();
    let mut bytes = 0;
    for change in changes {
        let path = change.path.to_string();
        bytes += path.len();
        if paths.len() == MAX_PATHS || bytes > MAX_PATHS_BYTES {
            return (paths, true);
        }
        paths.push(path);
    }
    (paths, false)
}
