//! Preparing the second tree, and putting it in place.
//!
//! ```text
//! lock → look at the live tree → plan → journal "staging" → patch the spare → .git → journal "ready" → sync
//!      → lock git's indexes → RENAME_EXCHANGE → (the caller goes on) → settle → sync
//! ```
//! Up to the exchange the live tree is only read. If nothing in the files differs, the spare is left alone and the
//! metadata is moved in place instead, by a redo log (`flip`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags};

use super::error::{At, Result, WorktreeError};
use super::fault;
use super::fsx::{self, Sig};
use super::gitdir::{self, ConflictRecord, GitFiles, MountState};
use super::gitindex::{self, IndexEntry};
use super::inner::{self, Inner, SPARE};
use super::journal::{self, Journal, Seen, Spare};
use super::lock::Lock;
use super::manifest::{Entry, Held, Leaf, Manifest, PathKey};
use super::objects::write_blob;
use super::patch::{Patcher, Steps, steps};
use super::plan::{MountPlan, Planner};
use super::survey::{Look, Survey};
use super::sync::Written;
use super::tree::Tree;
use super::twins::Ready;
use super::types::{Base, ConflictState, Durability, OnOverlap, SavedEdit, StageOptions, Targets};
use crate::{Content, Draft, NewCommit, Oid, RepoPath, Signature, TreeChange};

/// An update that is ready to be put in place.
pub(crate) struct Prepared {
    pub inner: Arc<Inner>,
    pub lock: Lock,
    pub options: StageOptions,
    pub survey: Survey,
    pub plans: Vec<MountPlan>,
    pub kind: Kind,
    pub changed: Vec<RepoPath>,
    pub conflicts: Vec<ConflictState>,
}

pub(crate) enum Kind {
    Noop,
    /// Only metadata.
    Flip,
    Swap(Box<Swap>),
}

/// The staged tree.
pub(crate) struct Swap {
    pub path: std::path::PathBuf,
    pub id: String,
    pub manifests: Vec<Manifest>,
    /// What the user's files in the live `.git` directories were.
    pub git_seen: Vec<GitFiles>,
    /// What they are in the staged ones.
    pub git_staged: Vec<GitFiles>,
}

impl Inner {
    pub(crate) fn stage(self: &Arc<Self>, targets: &Targets, options: &StageOptions) -> Result<Prepared> {
        let lock = self.lock(options.lock_wait)?;
        fault::point("stage.locked");
        self.recover()?;
        self.check_spare()?;
        let mut survey = self.survey(options.scan.into())?;
        fault::point("stage.scanned");
        let bases = self.new_bases(&survey, targets, options)?;
        let mut ready = self.ready(&survey)?;
        let mut plans = self.plan(&mut survey, bases.clone(), options, ready.as_ref())?;
        if ready.is_some() && plans.iter().all(|plan| plan.changed.is_empty()) {
            // The files stay where they are, and what is written then needs to know all of them.
            ready = None;
            plans = self.plan(&mut survey, bases, options, None)?;
        }
        fault::point("stage.planned");
        let changed = self.full_paths(plans.iter().map(|p| &p.changed));
        let conflicts = self.public_conflicts(&plans);
        let moves = plans.iter().any(|p| p.commit() != p.old_commit || p.old_main != p.line.main || p.merges_branch);
        let restages = plans.iter().zip(&survey.states).any(|(p, s)| p.base != s.base);
        let kind = if changed.is_empty() && !moves && !restages {
            Kind::Noop
        } else if changed.is_empty() && plans.iter().all(|p| p.lost.is_empty()) {
            Kind::Flip
        } else {
            Kind::Swap(Box::new(self.build(&survey, &plans, options, ready)?))
        };
        if matches!(kind, Kind::Flip) {
            for (i, plan) in plans.iter_mut().enumerate() {
                self.finish_branch(i, plan, options)?;
            }
        }
        Ok(Prepared {
            inner: Arc::clone(self),
            lock,
            options: options.clone(),
            survey,
            plans,
            kind,
            changed,
            conflicts,
        })
    }

    /// The base that each mount shall have.
    fn new_bases(&self, survey: &Survey, targets: &Targets, options: &StageOptions) -> Result<Vec<Option<Base>>> {
        for name in targets.keys() {
            self.mount_index(name)?;
        }
        let mut bases = Vec::new();
        for (i, mount) in self.mounts().iter().enumerate() {
            let old = survey.states[i].base.clone();
            let Some(target) = targets.get(&mount.name) else {
                bases.push(old);
                continue;
            };
            if old.as_ref().is_some_and(|b| (b.commit, b.revision) == (target.commit, target.revision)) {
                bases.push(old);
                continue;
            }
            survey.tree.mounts[i].require_main()?;
            let conflicts = &survey.unmerged[i];
            if !conflicts.is_empty() {
                return Err(WorktreeError::Unresolved {
                    paths: conflicts.iter().map(|p| self.full_path(i, p)).collect(),
                });
            }
            bases.push(Some(Base {
                repo: mount.name.clone(),
                revision: target.revision,
                commit: target.commit,
                server: options.server.clone(),
            }));
        }
        Ok(bases)
    }

    fn plan(
        &self,
        survey: &mut Survey,
        bases: Vec<Option<Base>>,
        options: &StageOptions,
        ready: Option<&Ready>,
    ) -> Result<Vec<MountPlan>> {
        let reserved: Vec<String> = self.mounts().iter().filter(|m| !m.at.is_empty()).map(|m| m.at.clone()).collect();
        let mut plans = Vec::new();
        for (i, base) in bases.into_iter().enumerate() {
            let conflicts = unresolved(survey, i)?;
            let planner = Planner {
                tree: &survey.tree.mounts[i],
                reader: &survey.readers[i],
                live: &mut survey.manifests[i],
                line: survey.lines[i].clone(),
                conflicts,
                own: self.settings.ownership,
                how: options.on_overlap,
                common: ready.map(|ready| &ready.common[i]),
                reserved: if self.mounts()[i].at.is_empty() { &reserved } else { &[] },
            };
            plans.push(planner.plan(survey.states[i].base.as_ref(), base)?);
        }
        if options.on_overlap == OnOverlap::Refuse {
            let paths = self.full_paths(plans.iter().map(|p| &p.overlap));
            if !paths.is_empty() {
                return Err(WorktreeError::Overlap { paths });
            }
        }
        Ok(plans)
    }

    pub(crate) fn full_paths<'a>(&self, lists: impl Iterator<Item = &'a Vec<PathKey>>) -> Vec<RepoPath> {
        let mut paths: Vec<_> =
            lists.enumerate().flat_map(|(i, list)| list.iter().map(move |p| self.full_path(i, p))).collect();
        paths.sort();
        paths
    }

    fn public_conflicts(&self, plans: &[MountPlan]) -> Vec<ConflictState> {
        let of = |(i, plan): (usize, &MountPlan)| {
            plan.conflicts.iter().map(|c| c.public(self.full_path(i, &c.path_bytes()))).collect::<Vec<_>>()
        };
        plans.iter().enumerate().filter(|(_, p)| p.commit() != p.old_commit).flat_map(of).collect()
    }

    /// The spare tree with its manifests, made anew if it cannot be trusted.
    pub(crate) fn spare(&self) -> Result<(Tree, Vec<Manifest>)> {
        let path = self.spare_path();
        if let Ok(tree) = Tree::open(&path, self.mounts())
            && let Some(id) = tree.id()?
        {
            let states = self.states(&tree)?;
            let cached = self.cache().spare.clone();
            let mut manifests = Vec::new();
            for (i, state) in states.iter().enumerate() {
                let commit = state.base.as_ref().map(|b| b.commit);
                let remembered = cached.as_ref().filter(|c| c.id == id).map(|c| c.manifests[i].clone());
                let loaded = match remembered {
                    Some(manifest) => Some(manifest),
                    None => self.load_manifest(&id, i)?,
                };
                manifests.extend(loaded.filter(|m| m.commit == commit));
            }
            if manifests.len() == self.mounts().len() {
                return Ok((tree, manifests));
            }
            self.rescue(&tree, &id, &|_, _| false)?;
        }
        self.fresh_spare()
    }

    /// An empty spare tree, in place of whatever there was.
    pub(crate) fn fresh_spare(&self) -> Result<(Tree, Vec<Manifest>)> {
        let path = self.spare_path();
        fsx::remove_all_at(&self.state_fd, SPARE.as_bytes()).at("remove", &path)?;
        self.lay_out(&self.state_fd, SPARE.as_bytes(), &path)?;
        let tree = Tree::open(&path, self.mounts())?;
        Ok((tree, vec![Manifest::default(); self.mounts().len()]))
    }

    /// An empty tree with its `.git` directories.
    pub(crate) fn lay_out(&self, parent: &OwnedFd, name: &[u8], path: &std::path::Path) -> Result<()> {
        let own = &self.settings.ownership;
        let mode = 0o777 & !own.umask | 0o700;
        fsx::ensure_dir_at(parent, name, mode).at("create", path)?;
        gitdir::give(parent, name, own).at("set the owner of", path)?;
        let root = fsx::open_dir_at(parent, name).at("open", path)?;
        let nested: Vec<String> = self.mounts().iter().filter(|m| !m.at.is_empty()).map(|m| m.at.clone()).collect();
        let state_name = String::from_utf8_lossy(&inner::state_name(&self.name)).into_owned();
        for mount in self.mounts() {
            let at = path.join(&mount.at);
            let outer = mount.at.is_empty();
            let dir = if outer {
                root.try_clone().at("open", path)?
            } else {
                fsx::ensure_dir_at(&root, mount.at.as_bytes(), mode).at("create", &at)?;
                gitdir::give(&root, mount.at.as_bytes(), own).at("set the owner of", &at)?;
                fsx::open_dir_at(&root, mount.at.as_bytes()).at("open", &at)?
            };
            let alternates = gitdir::alternates_line(if outer { 3 } else { 4 }, &state_name, &mount.name);
            gitdir::init(&dir, mount, if outer { &nested } else { &[] }, &alternates, own)
                .at("create a repository in", &at)?;
        }
        Ok(())
    }

    /// True if most of the tree would have to be written by the next update: after the first checkout.
    pub(crate) fn spare_is_far_behind(&self) -> bool {
        /// With fewer files than this it does not matter.
        const FEW: usize = 64;
        let count = |held: &Option<inner::Held>| {
            let manifests = held.iter().flat_map(|h| &h.manifests);
            manifests.map(|m| m.entries.iter().filter(|e| e.held.is_some()).count()).sum::<usize>()
        };
        let cache = self.cache();
        let (live, spare) = (count(&cache.live), count(&cache.spare));
        live > FEW && spare * 2 < live
    }

    /// Brings the spare up to the live tree. It is synced here: the next update syncs only what it writes itself.
    pub(crate) fn prepare(self: &Arc<Self>, _lock: Lock, durability: Durability) -> Result<()> {
        self.recover()?;
        self.sweep_spare(Look::Write)?;
        let mut survey = self.survey(Look::Write)?;
        let bases = survey.states.iter().map(|s| s.base.clone()).collect();
        let options = StageOptions { durability, on_overlap: OnOverlap::Mine, ..StageOptions::default() };
        let plans = self.plan(&mut survey, bases, &options, None)?;
        let swap = self.build(&survey, &plans, &options, None)?;
        self.remember_spare(&swap.id, &swap.manifests)?;
        let live = inner::Held { id: survey.id, manifests: survey.manifests };
        self.store_manifests(&live)?;
        self.clear_journal(false)?;
        self.empty_trash()?;
        self.prune_manifests(&[&live.id, &swap.id])?;
        self.cache().live = Some(live);
        Ok(())
    }

    /// Patches the spare into what the plans want.
    fn build(
        self: &Arc<Self>,
        survey: &Survey,
        plans: &[MountPlan],
        options: &StageOptions,
        ready: Option<Ready>,
    ) -> Result<Swap> {
        let (tree, spare, common) = match ready {
            Some(Ready { tree, spare, common }) => (tree, spare, Some(common)),
            None => {
                let (tree, spare) = self.spare()?;
                (tree, spare, None)
            }
        };
        let common_of = |mount: usize| common.as_ref().map(|common| &common[mount]);
        let old_id = tree.id()?;
        let all_steps: Vec<Steps> =
            (0..plans.len()).map(|i| steps(&spare[i], &survey.manifests[i], &plans[i])).collect();
        let touched = all_steps
            .iter()
            .enumerate()
            .map(|(i, s)| s.touched(&plans[i], &spare[i]).into_iter().map(hex::encode).collect())
            .collect();
        let spare_before = Spare { id: old_id, touched };
        self.write_journal(&Journal::Staging(spare_before.clone()))?;
        fault::point("stage.journal-staging");
        self.cache().spare = None;
        let mut written = Written::default();
        let (id_file, own) = (tree.path.join(".git/eccfg/tree"), &self.settings.ownership);
        let put_id = |id: &str, written: &mut Written| {
            // Always as long: overwriting costs the file system nothing then.
            let line = format!("{id:<47}\n");
            gitdir::put_private(&tree.mounts[0].git, b"eccfg/tree", line.as_bytes(), own, written).at("write", &id_file)
        };
        // Without an id: whatever happens from here on, the tree is not what any manifest says.
        put_id("", &mut Written::default())?;

        let mut manifests = Vec::new();
        let trash = self.trash();
        let (mut git_seen, mut git_staged) = (Vec::new(), Vec::new());
        for (i, (plan, old)) in plans.iter().zip(spare).enumerate() {
            let mut late = |path: &[u8], sig: &Sig, data: &[u8]| {
                let reason = "written to the previous tree through a handle from before an update";
                self.with_saved(|s| s.save(&self.full_path(i, path), sig.kind(), sig.perm(), Some(data), reason))
                    .map(|_| ())
            };
            let patcher = Patcher {
                spare: &tree.mounts[i],
                live: &survey.tree.mounts[i],
                reader: &survey.readers[i],
                late: &mut late,
                trash: &trash,
                written: &mut written,
            };
            // An index of which only a few entries change, if it is still the one that was written with that tree.
            let old_index = old.index_sig.filter(|_| common_of(i).is_some_and(|c| c.spare_is_clean));
            let mut manifest = patcher.apply(&all_steps[i], old, &survey.manifests[i], plan)?;
            fault::point("stage.patched");
            let (git, git_path) = (&tree.mounts[i].git, tree.mounts[i].path.join(".git"));
            git_seen
                .push(gitdir::mirror(&survey.tree.mounts[i].git, git, &mut written).at("copy metadata to", &git_path)?);
            fault::point("stage.git-mirrored");
            let old = (&survey.states[i], old_index);
            self.write_git(i, git, &git_path, plan, &mut manifest, old, options, &mut written)?;
            git_staged.push(gitdir::user_files(git).at("list", &git_path)?);
            manifests.push(manifest);
        }
        let id = fsx::unique();
        put_id(&id, &mut written)?;
        if let (Some(watch), Some(old)) = (self.watch.get(), &spare_before.id) {
            watch.renamed(&tree, old, &id);
        }
        let seen = survey.manifests.iter().enumerate();
        let seen = seen.map(|(i, m)| common_of(i).map_or_else(|| journal::seen(m), |c| c.seen.clone())).collect();
        written.push(self.write_journal(&journal_ready(survey, seen, plans, &id, spare_before))?);
        fault::point("stage.journal-ready");
        if options.durability == Durability::BeforeExchange {
            self.sync_all(written)?;
        }
        fault::point("stage.synced");
        Ok(Swap { path: tree.path, id, manifests, git_seen, git_staged })
    }

    /// Index, references and state of a mount whose files are in place.
    #[allow(clippy::too_many_arguments)]
    fn write_git(
        &self,
        mount: usize,
        git: &OwnedFd,
        git_path: &std::path::Path,
        plan: &MountPlan,
        manifest: &mut Manifest,
        (old, old_index): (&MountState, Option<Sig>),
        options: &StageOptions,
        written: &mut Written,
    ) -> Result<()> {
        let own = &self.settings.ownership;
        let main = self.branch_commit(mount, plan)?;
        if !patch_index(git, old_index, plan, manifest, written).at("write", &git_path.join("index"))? {
            let index = index_bytes(manifest, plan);
            gitdir::put_private(git, b"index", &index, own, written).at("write", &git_path.join("index"))?;
        }
        manifest.index_sig = fsx::try_lstat_at(git, b"index").at("examine", &git_path.join("index"))?;
        manifest.staged.clone_from(&plan.staged);
        if !plan.conflicts.is_empty() {
            manifest.index_sig = None;
        }
        fault::point("stage.index-written");
        for (name, value) in [(gitdir::MAIN, main), (gitdir::ORIGIN_MAIN, plan.commit())] {
            if let Some(value) = value {
                let line = format!("{value}\n");
                gitdir::put_private(git, name.as_bytes(), line.as_bytes(), own, written)
                    .at("write", &git_path.join(name))?;
            }
        }
        if main.is_some() && main != plan.old_main {
            let (old, new) = (plan.old_main.unwrap_or(Oid::NULL), main.unwrap_or(Oid::NULL));
            gitdir::append_reflog(git, old, new, &options.reason, own, written)
                .at("write", &git_path.join("logs/HEAD"))?;
        }
        fault::point("stage.refs-written");
        let state = new_state(plan, old);
        gitdir::put_private(git, b"eccfg/state", &gitdir::encode_state(&state), own, written)
            .at("write", &git_path.join("eccfg/state"))?;
        fault::point("stage.base-written");
        Ok(())
    }

    fn finish_branch(&self, mount: usize, plan: &mut MountPlan, _options: &StageOptions) -> Result<()> {
        plan.line.main = self.branch_commit(mount, plan)?;
        plan.merges_branch = false;
        Ok(())
    }

    /// The commit that `main` shall name: the base, the local branch, or a merge of both that is made now.
    fn branch_commit(&self, mount: usize, plan: &MountPlan) -> Result<Option<Oid>> {
        for data in plan.contents.values() {
            write_blob(&self.stores[mount], data)?;
        }
        let (Some(base), Some(ours), true) = (plan.commit(), plan.old_main, plan.merges_branch) else {
            return Ok(plan.line.main);
        };
        let store = &self.stores[mount];
        let mut draft = Draft::new(store)?;
        let changes: Vec<TreeChange> = plan.line.diff.iter().map(|(path, leaf)| tree_change(path, *leaf)).collect();
        // Deletions first: a file may have become a directory.
        let (gone, put): (Vec<_>, Vec<_>) = changes.into_iter().partition(|c| matches!(c, TreeChange::Delete { .. }));
        let tree = draft.tree_of(base)?;
        let apply = |err: crate::ApplyError| WorktreeError::Damaged {
            path: self.root.clone(),
            reason: format!("local commits cannot be merged: {err}"),
        };
        let tree = draft.apply(tree, &gone).map_err(apply)?;
        let tree = draft.apply(tree, &put).map_err(apply)?;
        let who = Signature {
            name: "eccfg".into(),
            email: "eccfg@localhost".into(),
            time_s: fsx::now_ns() / 1_000_000_000,
            offset_min: 0,
        };
        let revision = plan.base.as_ref().map_or(0, |b| b.revision);
        let message = format!("Merge revision r{revision} of {}\n", self.mounts()[mount].name);
        let commit = draft.commit(&NewCommit {
            tree,
            parents: vec![ours, base],
            author: who.clone(),
            committer: who,
            message,
        })?;
        if let Some(pack) = draft.into_pack()? {
            store.install_pack(&pack)?;
        }
        Ok(Some(commit))
    }
}

/// The conflicts that the index of a mount has: ours as they were recorded, those of plain git as its index has them.
fn unresolved(survey: &Survey, mount: usize) -> Result<Vec<ConflictRecord>> {
    let unmerged = &survey.unmerged[mount];
    if unmerged.is_empty() {
        return Ok(Vec::new());
    }
    let recorded = survey.states[mount].conflicts.iter().filter(|c| unmerged.contains(&c.path_bytes()));
    let mut conflicts: Vec<ConflictRecord> = recorded.cloned().collect();
    let tree = &survey.tree.mounts[mount];
    let index = gitindex::GitIndex::read(&tree.git, &tree.path.join(".git"))?;
    let known: Vec<String> = conflicts.iter().map(|c| c.path.clone()).collect();
    for entry in index.entries().filter(|e| e.stage != 0) {
        let path = hex::encode(entry.path);
        if known.contains(&path) {
            continue;
        }
        if conflicts.last().is_none_or(|c| c.path != path) {
            conflicts.push(ConflictRecord { path, what: "unmerged".into(), sides: [None, None, None] });
        }
        if let Some(last) = conflicts.last_mut() {
            last.sides[usize::from(entry.stage) - 1] = Some((entry.leaf.mode.to_string(), entry.leaf.oid));
        }
    }
    Ok(conflicts)
}

fn tree_change(path: &[u8], leaf: Option<Leaf>) -> TreeChange {
    let path = RepoPath::from_tree(path.to_vec());
    match leaf {
        Some(leaf) => TreeChange::Put { path, mode: Some(leaf.mode), content: Content::Blob(leaf.oid) },
        None => TreeChange::Delete { path },
    }
}

pub(crate) fn new_state(plan: &MountPlan, old: &MountState) -> MountState {
    let mut state = MountState { base: plan.base.clone(), conflicts: plan.conflicts.clone() };
    if state.base.as_ref().map(|b| (b.commit, b.revision)) == old.base.as_ref().map(|b| (b.commit, b.revision)) {
        state.base.clone_from(&old.base);
    }
    state
}

/// Changes a few entries of the index that the second tree has, if it is the one whose signature is `old`. False if it has to be
/// made anew.
fn patch_index(
    git: &OwnedFd,
    old: Option<Sig>,
    plan: &MountPlan,
    manifest: &Manifest,
    written: &mut Written,
) -> std::io::Result<bool> {
    let Some(old) = old.filter(|_| plan.only_concerned) else { return Ok(false) };
    let entries: Vec<_> = plan.files.iter().filter_map(|file| manifest.get(&file.path)).filter_map(upstream).collect();
    gitdir::patch_private(git, b"index", &old, |bytes| gitindex::patch(bytes, &entries), written)
}

/// The index of a tree that holds `manifest`, with HEAD, staged changes and conflicts as planned.
pub(crate) fn index_bytes(manifest: &Manifest, plan: &MountPlan) -> Vec<u8> {
    let conflicts: Vec<(Vec<u8>, [Option<Leaf>; 3])> =
        plan.conflicts.iter().map(|c| (c.path_bytes(), [c.side(0), c.side(1), c.side(2)])).collect();
    let staged = plan.staged.iter().map(|s| (PathKey::clone(&s.path), (s.leaf, s.intent_to_add)));
    let mut overlay: BTreeMap<PathKey, (Option<Leaf>, bool)> =
        plan.line.diff.iter().map(|(p, leaf)| (PathKey::clone(p), (*leaf, false))).collect();
    overlay.extend(staged);
    encode_index(manifest, &overlay, &conflicts)
}

/// The index for a manifest: the base, except where `overlay` or a conflict says otherwise.
pub(crate) fn encode_index(
    manifest: &Manifest,
    overlay: &BTreeMap<PathKey, (Option<Leaf>, bool)>,
    conflicts: &[(Vec<u8>, [Option<Leaf>; 3])],
) -> Vec<u8> {
    /// What an entry of a usual path takes.
    const ENTRY_BYTES: usize = 112;
    let size_hint = (manifest.entries.len() + overlay.len()) * ENTRY_BYTES;
    let is_conflict = |path: &[u8]| conflicts.iter().any(|(p, _)| p == path);
    if overlay.is_empty() && conflicts.is_empty() {
        // Ten thousand times the same, and in the way of an update: nothing is collected.
        return gitindex::encode(manifest.entries.iter().filter_map(upstream), size_hint);
    }
    let kept = manifest.entries.iter().filter(|e| !overlay.contains_key(&e.path) && !is_conflict(&e.path));
    let mut entries: Vec<IndexEntry<'_>> = kept.filter_map(upstream).collect();
    for (path, (leaf, intent)) in overlay.iter().filter(|(path, _)| !is_conflict(path)) {
        if let Some(leaf) = leaf {
            let held = manifest.get(path).and_then(|e| e.held.as_ref());
            entries.push(index_entry(path, *leaf, held, *intent));
        }
    }
    for (path, sides) in conflicts {
        for (stage, leaf) in (1..).zip(sides) {
            if let Some(leaf) = leaf {
                entries.push(IndexEntry { path, leaf: *leaf, stage, sig: None, intent_to_add: false });
            }
        }
    }
    entries.sort_by(|a, b| (a.path, a.stage).cmp(&(b.path, b.stage)));
    gitindex::encode(entries, size_hint)
}

fn index_entry<'a>(path: &'a [u8], leaf: Leaf, held: Option<&Held>, intent_to_add: bool) -> IndexEntry<'a> {
    let sig = held.filter(|h| h.leaf() == Some(leaf)).map(|h| h.sig);
    IndexEntry { path, leaf, stage: 0, sig, intent_to_add }
}

/// The index entry of what upstream has.
fn upstream(known: &Entry) -> Option<IndexEntry<'_>> {
    Some(index_entry(&known.path, known.base?, known.held.as_ref(), false))
}

/// `index.lock` in the `.git` directories of a tree, which keeps plain git out.
pub(crate) struct GitLocks {
    dirs: Vec<Arc<OwnedFd>>,
}

/// How a lock of ours is recognised after a crash.
pub(crate) const LOCK_MARK: &[u8] = b"eccfg\n";
const LOCK_RETRY: Duration = Duration::from_millis(2);

impl GitLocks {
    pub(crate) fn take(tree: &Tree, wait: Duration) -> Result<GitLocks> {
        let mut locks = GitLocks { dirs: Vec::new() };
        let deadline = Instant::now() + wait;
        for mount in &tree.mounts {
            let path = mount.path.join(".git/index.lock");
            loop {
                match fsx::create_at(&*mount.git, b"index.lock", LOCK_MARK, 0o644) {
                    Ok(_) => break,
                    Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {
                        if Instant::now() >= deadline {
                            return Err(WorktreeError::GitBusy(path));
                        }
                        std::thread::sleep(LOCK_RETRY);
                    }
                    Err(err) => return Err(err).at("create", &path),
                }
            }
            locks.dirs.push(Arc::clone(&mount.git));
        }
        Ok(locks)
    }

    /// After a crash: removes locks of ours. True if there were any.
    pub(crate) fn clear_stale(tree: &Tree) -> Result<bool> {
        let mut found = false;
        for mount in &tree.mounts {
            if fsx::try_read_at(&mount.git, b"index.lock")
                .at("read", &mount.path.join(".git/index.lock"))?
                .is_some_and(|mark| mark == LOCK_MARK)
            {
                let _ = fs::unlinkat(&mount.git, "index.lock", AtFlags::empty());
                found = true;
            }
        }
        Ok(found)
    }
}

impl Drop for GitLocks {
    fn drop(&mut self) {
        for git in &self.dirs {
            let _ = fs::unlinkat(git, "index.lock", AtFlags::empty());
        }
    }
}

/// What the next run has to know if we die between here and the end of `settle`.
fn journal_ready(survey: &Survey, seen: Vec<Vec<Seen>>, plans: &[MountPlan], id: &str, spare: Spare) -> Journal {
    Journal::Ready {
        staged: id.into(),
        live: Some(survey.id.clone()),
        seen,
        lost: plans.iter().map(|p| p.lost.iter().map(hex::encode).collect()).collect(),
        seen_ns: survey.manifests.iter().map(|m| m.taken_ns).min().unwrap_or(0),
        spare,
    }
}

/// The live tree is what was planned from: nobody committed, staged or switched branches meanwhile.
pub(crate) fn require_unchanged(prepared: &Prepared) -> Result<()> {
    for (i, mount) in prepared.survey.tree.mounts.iter().enumerate() {
        let plan = &prepared.plans[i];
        let changed = || Err(WorktreeError::ChangedMeanwhile(mount.path.clone()));
        let main = gitdir::read_ref(&mount.git, gitdir::MAIN).at("read", &mount.path)?;
        if main.is_some() && main != plan.old_main {
            return changed();
        }
        let manifest = &prepared.survey.manifests[i];
        let mut now =
            Manifest { index_sig: manifest.index_sig, staged: manifest.staged.clone(), ..Manifest::default() };
        let sig = fsx::try_lstat_at(&mount.git, b"index").at("examine", &mount.path.join(".git/index"))?;
        if sig != manifest.index_sig {
            now.entries.clone_from(&manifest.entries);
            let unmerged = mount.read_staged(&mut now, &prepared.survey.lines[i])?;
            if now.staged != manifest.staged || unmerged != prepared.survey.unmerged[i] {
                return changed();
            }
        }
    }
    Ok(())
}

impl Prepared {
    /// Locks, and the exchange itself. That it happened is on disk when the displaced tree is settled.
    pub(crate) fn swap(&mut self) -> Result<GitLocks> {
        let inner = Arc::clone(&self.inner);
        let Kind::Swap(swap) = &self.kind else { unreachable!("only called for an update that exchanges") };
        let locks = GitLocks::take(&self.survey.tree, self.options.git_lock_wait)?;
        fault::point("exchange.locked");
        require_unchanged(self)?;
        fault::point("exchange.before");
        fsx::exchange(&inner.parent_fd, &inner.name, &inner.state_fd, SPARE.as_bytes())
            .map_err(|err| exchange_error(&inner.root, err))?;
        fault::point("exchange.after");
        let mut cache = inner.cache();
        cache.live = Some(inner::Held { id: swap.id.clone(), manifests: swap.manifests.clone() });
        cache.spare = None;
        drop(cache);
        Ok(locks)
    }

    /// Puts aside what was given up. If we die before, the next run does it from the journal.
    pub(crate) fn save_lost(&self) -> Result<Vec<SavedEdit>> {
        let mut saved = Vec::new();
        for (i, plan) in self.plans.iter().enumerate() {
            for path in &plan.lost {
                saved.extend(self.inner.save_lost(i, &self.survey.tree.mounts[i], path)?);
            }
        }
        Ok(saved)
    }
}

/// Why the kernel refuses to exchange, for people.
pub(crate) fn exchange_error(root: &std::path::Path, err: std::io::Error) -> WorktreeError {
    use rustix::io::Errno;
    let errno = err.raw_os_error().map(Errno::from_raw_os_error);
    let (reason, hint) = match errno {
        Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            ("its file system does not support RENAME_EXCHANGE", "put it on ext4, xfs, btrfs, f2fs or tmpfs")
        }
        Some(Errno::XDEV) => {
            ("it is on another device than its parent directory", "put a directory below the mount point")
        }
        Some(Errno::BUSY) => ("it is a mount point", "use a directory below the mount point as the working copy"),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => (
            "its parent directory is not writable",
            "run as the owner of the parent directory, or choose another place",
        ),
        _ => return WorktreeError::Io { action: "exchange", path: root.to_owned(), source: err },
    };
    WorktreeError::CannotExchange { path: root.to_owned(), reason: reason.into(), hint: hint.into() }
}
