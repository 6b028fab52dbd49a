//! What is local: for people (`status`), for `commit`, for `diff`.

use bytes::Bytes;

use super::error::{At, Result, WorktreeError};
use super::fsx::{self, Kind};
use super::ignore::Ignored;
use super::inner::Inner;
use super::manifest::{Entry, Held, Leaf};
use super::plan::MAX_FILE_BYTES;
use super::survey::{Look, Survey};
use super::types::{Base, ChangeKind, LocalChange, MountStatus, Status};
use crate::{Content, Draft, LogOptions, Oid, Patch, PatchOptions, RepoPath, TreeChange};

/// More local commits than this are not counted.
const MAX_LOCAL_COMMITS: usize = 1000;

/// A local change with what is needed to send it.
pub(crate) struct Found {
    pub change: LocalChange,
    /// Inside the repository.
    pub path: super::manifest::PathKey,
    pub base: Option<Leaf>,
    pub held: Option<Held>,
}

impl Inner {
    pub(crate) fn status(&self) -> Result<Status> {
        let survey = self.survey(Look::Read)?;
        let mut mounts = Vec::new();
        for (i, mount) in self.mounts().iter().enumerate() {
            let (found, ignored) = self.local(&survey, i);
            let state = &survey.states[i];
            let unmerged = &survey.unmerged[i];
            let conflicts = state.conflicts.iter().filter(|c| unmerged.contains(&c.path_bytes()));
            mounts.push(MountStatus {
                name: mount.name.clone(),
                at: mount.at.clone(),
                base: state.base.clone(),
                changes: found.into_iter().map(|f| f.change).collect(),
                ignored,
                conflicts: conflicts.map(|c| c.public(self.full_path(i, &c.path_bytes()))).collect(),
                local_commits: self.local_commits(&survey, i)?,
            });
        }
        Ok(Status { mounts, saved: self.with_saved(|s| s.list())? })
    }

    fn local_commits(&self, survey: &Survey, mount: usize) -> Result<Vec<Oid>> {
        let (Some(main), false) = (survey.lines[mount].main, survey.lines[mount].unchanged) else {
            return Ok(Vec::new());
        };
        let hide = survey.states[mount].base.iter().map(|b| b.commit).collect();
        let options = LogOptions { limit: MAX_LOCAL_COMMITS, hide, ..LogOptions::default() };
        Ok(survey.readers[mount].log(main, &options)?.into_iter().map(|c| c.id).collect())
    }

    /// The local changes of a mount, sorted, and the number of ignored files.
    pub(crate) fn local(&self, survey: &Survey, mount: usize) -> (Vec<Found>, usize) {
        let manifest = &survey.manifests[mount];
        let line = &survey.lines[mount];
        let mut ignored = Ignored::new(&survey.tree.mounts[mount]);
        let mut ignored_count = 0;
        let mut found = Vec::new();
        for entry in manifest.entries.iter().filter(|e| e.is_dirty()) {
            let staged =
                manifest.staged.binary_search_by(|s| s.path.cmp(&entry.path)).ok().map(|i| &manifest.staged[i]);
            let head = line.head(manifest, &entry.path);
            // What plain git has in its index here.
            let in_index = match staged {
                Some(staged) => staged.leaf,
                None => head,
            };
            let Some(kind) = kind_of(entry, in_index.is_some()) else { continue };
            if kind == ChangeKind::Untracked && !is_plain(entry) {
                continue;
            }
            if kind == ChangeKind::Untracked && ignored.contains(&entry.path) {
                ignored_count += 1;
                continue;
            }
            let held = entry.held.as_ref().and_then(Held::leaf);
            let is_staged = match kind {
                ChangeKind::Untracked | ChangeKind::Missing => false,
                ChangeKind::Deleted => true,
                _ => staged.is_some_and(|s| s.leaf == held && !s.intent_to_add),
            };
            let change = LocalChange { path: self.full_path(mount, &entry.path), kind, staged: is_staged };
            found.push(Found { change, path: entry.path.clone(), base: entry.base, held: entry.held });
        }
        (found, ignored_count)
    }

    pub(crate) fn local_changes(
        &self,
        mount: &str,
        wanted: &mut dyn FnMut(&LocalChange) -> bool,
    ) -> Result<(Base, Vec<TreeChange>)> {
        let i = self.mount_index(mount)?;
        let survey = self.survey(Look::Read)?;
        if !survey.unmerged[i].is_empty() {
            return Err(WorktreeError::Unresolved {
                paths: survey.unmerged[i].iter().map(|p| self.full_path(i, p)).collect(),
            });
        }
        let Some(base) = survey.states[i].base.clone() else {
            return Err(WorktreeError::BadPath {
                path: mount.into(),
                reason: "nothing has been fetched into it yet".into(),
            });
        };
        let chosen: Vec<Found> = self.local(&survey, i).0.into_iter().filter(|f| wanted(&f.change)).collect();
        let changes = self.tree_changes(&survey, i, &chosen)?;
        Ok((base, changes))
    }

    /// The changes as edits of the base's tree: deletions first, so that a file may become a directory.
    fn tree_changes(&self, survey: &Survey, mount: usize, chosen: &[Found]) -> Result<Vec<TreeChange>> {
        let mut changes = Vec::new();
        for found in chosen.iter().filter(|f| f.held.is_none() && f.base.is_some()) {
            changes.push(TreeChange::Delete { path: RepoPath::from_tree(found.path.to_vec()) });
        }
        let mut cursor = survey.tree.mounts[mount].cursor();
        for found in chosen.iter().filter(|f| f.held.is_some()) {
            let bad =
                |reason: &str| WorktreeError::BadPath { path: found.change.path.to_string(), reason: reason.into() };
            let path = RepoPath::new(found.path.to_vec()).map_err(|err| bad(&err.reason))?;
            let at = self.root.join(found.change.path.as_path());
            let (dir, name) = cursor.parent(&found.path).at("open", &at)?;
            let (sig, data) = match fsx::read_content_at(dir, name) {
                Err(err) if err.kind() == std::io::ErrorKind::InvalidInput => {
                    return Err(bad("is neither a file nor a symbolic link"));
                }
                other => other.at("read", &at)?,
            };
            if data.len() as u64 > MAX_FILE_BYTES {
                return Err(bad("is too large"));
            }
            let mode = sig.kind().mode();
            changes.push(match found.base {
                Some(base)
                    if found.change.kind == ChangeKind::Mode && found.held.and_then(|h| h.oid) == Some(base.oid) =>
                {
                    TreeChange::Chmod { path, mode: mode.unwrap_or(base.mode) }
                }
                _ => TreeChange::Put { path, mode, content: Content::Bytes(Bytes::from(data)) },
            });
        }
        Ok(changes)
    }

    pub(crate) fn diff(&self, paths: &[RepoPath], options: &PatchOptions) -> Result<Patch> {
        let survey = self.survey(Look::Read)?;
        let mut patch = Patch::default();
        for (i, mount) in self.mounts().iter().enumerate() {
            let chosen: Vec<Found> = self
                .local(&survey, i)
                .0
                .into_iter()
                .filter(|f| f.change.kind != ChangeKind::Untracked)
                .filter(|f| f.held.is_none_or(|h| h.kind() != Kind::Special))
                .filter(|f| paths.is_empty() || paths.iter().any(|p| f.change.path.starts_with(p)))
                .collect();
            if chosen.is_empty() {
                continue;
            }
            let changes = self.tree_changes(&survey, i, &chosen)?;
            let mut draft = Draft::new(&self.stores[i])?;
            let old = match &survey.states[i].base {
                Some(base) => draft.tree_of(base.commit)?,
                None => Oid::EMPTY_TREE,
            };
            // Below the directory of a nested repository, so that paths are relative to the working copy.
            let (old, changes) = match mount.at.as_str() {
                "" => (old, changes),
                at => self.moved_below(&mut draft, &survey, i, at, &chosen, changes)?,
            };
            let new = draft
                .apply(old, &changes)
                .map_err(|err| WorktreeError::Damaged { path: self.root.clone(), reason: err.to_string() })?;
            let left = options.limit_bytes.saturating_sub(patch.text.len());
            let part = draft.patch(Some(old), new, &PatchOptions { limit_bytes: left, ..options.clone() })?;
            patch.text.extend_from_slice(&part.text);
            patch.truncated |= part.truncated;
            patch.files += part.files;
        }
        Ok(patch)
    }

    /// A small tree with the old sides of the chosen files at their paths below the mount's directory.
    fn moved_below(
        &self,
        draft: &mut Draft,
        _survey: &Survey,
        _mount: usize,
        at: &str,
        chosen: &[Found],
        changes: Vec<TreeChange>,
    ) -> Result<(Oid, Vec<TreeChange>)> {
        let at = RepoPath::from_tree(at.as_bytes().to_vec());
        let below = |path: &RepoPath| at.join(path);
        let old: Vec<TreeChange> = chosen
            .iter()
            .filter_map(|f| {
                let base = f.base?;
                let path = below(&RepoPath::from_tree(f.path.to_vec()));
                Some(TreeChange::Put { path, mode: Some(base.mode), content: Content::Blob(base.oid) })
            })
            .collect();
        let tree = draft
            .apply(Oid::EMPTY_TREE, &old)
            .map_err(|err| WorktreeError::Damaged { path: self.root.clone(), reason: err.to_string() })?;
        let changes = changes
            .into_iter()
            .map(|change| match change {
                TreeChange::Put { path, mode, content } => TreeChange::Put { path: below(&path), mode, content },
                TreeChange::Delete { path } => TreeChange::Delete { path: below(&path) },
                TreeChange::Chmod { path, mode } => TreeChange::Chmod { path: below(&path), mode },
                TreeChange::Rename { from, to } => TreeChange::Rename { from: below(&from), to: below(&to) },
            })
            .collect();
        Ok((tree, changes))
    }
}

fn kind_of(entry: &Entry, in_index: bool) -> Option<ChangeKind> {
    Some(match (&entry.base, &entry.held) {
        (None, None) => return None,
        (None, Some(_)) if in_index => ChangeKind::Added,
        (None, Some(_)) => ChangeKind::Untracked,
        (Some(_), None) if in_index => ChangeKind::Missing,
        (Some(_), None) => ChangeKind::Deleted,
        (Some(base), Some(held)) => match held.leaf() {
            Some(leaf) if leaf.oid == base.oid && leaf.mode.is_file() && base.mode.is_file() => ChangeKind::Mode,
            _ => ChangeKind::Modified,
        },
    })
}

/// Git shows files and links, but neither sockets nor what is inside another repository.
fn is_plain(entry: &Entry) -> bool {
    let inside = entry.path.split(|b| *b == b'/').any(|name| name == b".git");
    !inside && entry.held.as_ref().is_some_and(|h| matches!(h.kind(), Kind::File | Kind::Exec | Kind::Symlink))
}
