//! Names and sizes of what a change touches.

use super::{Change, ChangeKind, Finding, GLOBAL, GateLimits, Gathered, Proposal, nodes};
use crate::documents::files::MAX_DOCUMENT_BYTES;
use crate::documents::schema::names;
use crate::units::HumanSize;

pub(super) fn check(proposal: &Proposal<'_>, limits: &GateLimits, gathered: &mut Gathered) {
    let mut bytes = 0_u64;
    let mut paths = 0_usize;
    for (repo, proposed) in &proposal.repos {
        paths += proposed.changes.len();
        for change in &proposed.changes {
            if let ChangeKind::File { size: Some(size) } = change.kind {
                bytes = bytes.saturating_add(size);
                check_size(repo, change, size, limits, gathered);
            }
            if change.kind != ChangeKind::Deleted {
                check_name(repo, change, gathered);
            }
        }
    }
    if paths > limits.commit_paths {
        gathered.add(whole_change(
            proposal,
            format!("the change touches {paths} paths; at most {} are allowed", limits.commit_paths),
        ));
    }
    if bytes > limits.commit_bytes {
        let message = format!(
            "the change puts {} of files; at most {} are allowed",
            rounded(bytes),
            HumanSize::from_bytes(limits.commit_bytes)
        );
        gathered.add(whole_change(proposal, message).with_hint("split it into several commits"));
    }
}

fn check_size(repo: &str, change: &Change, size: u64, limits: &GateLimits, gathered: &mut Gathered) {
    if size > limits.file_bytes {
        let limit = HumanSize::from_bytes(limits.file_bytes);
        let message = format!("the file has {}; at most {limit} are allowed", rounded(size));
        gathered.add(finding(repo, change, message));
    } else if size > MAX_DOCUMENT_BYTES && is_document(repo, change) {
        let limit = HumanSize::from_bytes(MAX_DOCUMENT_BYTES);
        gathered.add(finding(repo, change, format!("a document has at most {limit}")));
    }
}

fn is_document(repo: &str, change: &Change) -> bool {
    std::str::from_utf8(&change.path).is_ok_and(|path| nodes::layer_of(repo, path).is_some())
}

/// `global/` of a working copy is another repository: an entry of that name would be hidden by it.
fn check_name(repo: &str, change: &Change, gathered: &mut Gathered) {
    let first = change.path.split(|byte| *byte == b'/').next().unwrap_or_default();
    if repo != GLOBAL && first == GLOBAL.as_bytes() {
        let message = "\"global\" at the root of a working copy is the repository \"global\"";
        gathered.add(finding(repo, change, message.into()).with_hint("commit it to the repository \"global\" instead"));
    }
    let components = change.path.split(|byte| *byte == b'/');
    let mut text = components.map(|component| std::str::from_utf8(component).unwrap_or("not-utf-8"));
    if !text.all(names::is_path_component) {
        gathered.add(finding(repo, change, "a file cannot have this name in a working copy".into()));
    }
}

fn finding(repo: &str, change: &Change, message: String) -> Finding {
    let path = String::from_utf8_lossy(&change.path);
    Finding { repo: repo.to_owned(), ..Finding::whole(&path, message) }
}

fn whole_change(proposal: &Proposal<'_>, message: String) -> Finding {
    let changed = proposal.repos.iter().find(|(_, proposed)| !proposed.changes.is_empty());
    let repo = changed.map(|(repo, _)| repo.clone()).unwrap_or_default();
    Finding { repo, ..Finding::whole(".", message) }
}

/// A size that people can read: whole MiB where that says enough.
fn rounded(bytes: u64) -> HumanSize {
    if bytes < 10 << 20 { HumanSize::from_bytes(bytes) } else { HumanSize::from_mib(bytes >> 20) }
}
