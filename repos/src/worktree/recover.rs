//! The run after a crash.
//!
//! Called under the lock, before anything else is done. What the journal says is under way is finished if the
//! exchange happened, and taken back if it did not; either way the live tree is whole, because nothing but the
//! exchange (and, for metadata, the redo log) ever touches it.

use std::collections::HashSet;

use super::error::{At, Result};
use super::flip::REDO;
use super::fsx;
use super::gitdir;
use super::inner::{Held as CachedTree, Inner, SPARE};
use super::journal::{Journal, Seen, Spare};
use super::manifest::{Entry, Held, Manifest};
use super::objects::blob_oid;
use super::settle::Displaced;
use super::stage::GitLocks;
use super::tree::Tree;

impl Inner {
    /// Finishes or takes back what an interrupted run left. Cheap if there is nothing.
    pub(crate) fn recover(&self) -> Result<()> {
        let live = self.live()?;
        // We have the lock of the working copy, so a lock of ours on git's index has nobody behind it.
        let interrupted = GitLocks::clear_stale(&live)?;
        let Some(journal) = self.read_journal()? else {
            if interrupted {
                fsx::remove_all_at(&self.state_fd, REDO.as_bytes()).at("remove", &self.state_dir.join(REDO))?;
            }
            return Ok(());
        };
        tracing::info!(root = %self.root.display(), "finishing an interrupted update");
        if let Ok(spare) = Tree::open(&self.spare_path(), self.mounts()) {
            GitLocks::clear_stale(&spare)?;
        }
        *self.cache() = super::inner::Cache::default();
        match journal {
            Journal::Staging(spare) => self.take_back(&spare),
            Journal::Ready { staged, live: old, seen, lost, seen_ns, spare } => {
                if live.id()?.as_deref() == Some(staged.as_str()) {
                    self.settle_after_crash(&staged, &old.unwrap_or_default(), &seen, &lost, seen_ns)
                } else {
                    self.take_back(&spare)
                }
            }
            Journal::Flip { files } => self.redo(&files),
        }
    }

    /// The exchange did not happen: the spare is neither old nor new, and is dropped. Writes through old handles
    /// that reached it are rescued first.
    fn take_back(&self, spare: &Spare) -> Result<()> {
        if let (Some(id), Ok(tree)) = (&spare.id, Tree::open(&self.spare_path(), self.mounts())) {
            let touched: Vec<HashSet<Vec<u8>>> =
                spare.touched.iter().map(|list| list.iter().filter_map(|p| hex::decode(p).ok()).collect()).collect();
            let is_ours = |i: usize, path: &[u8]| touched.get(i).is_some_and(|set| set.contains(path));
            let manifests: Vec<_> = (0..self.mounts().len())
                .filter_map(|i| self.load_manifest(id, i).transpose())
                .collect::<Result<_>>()?;
            if manifests.len() == self.mounts().len() {
                let mut manifests = manifests;
                self.sweep_tree(&tree, &mut manifests, None, &is_ours)?;
            } else {
                self.rescue(&tree, id, &is_ours)?;
            }
        }
        fsx::remove_all_at(&self.state_fd, SPARE.as_bytes()).at("remove", &self.spare_path())?;
        self.empty_trash()?;
        self.clear_journal(false)?;
        let id = self.live()?.id()?.unwrap_or_default();
        self.prune_manifests(&[&id])
    }

    /// Puts aside what somebody may have written to a second tree that cannot be trusted any more: the machine was started anew, and
    /// what was not synced may be gone or cut off. So nothing of it is carried into the live tree, and what is empty or
    /// known to the store is not worth keeping.
    pub(crate) fn rescue(&self, tree: &Tree, id: &str, is_ours: &dyn Fn(usize, &[u8]) -> bool) -> Result<()> {
        let Some(manifests) = self.old_manifests(id)? else { return Ok(()) };
        let live = self.live()?;
        for (i, mount) in tree.mounts.iter().enumerate() {
            let reader = self.stores[i].reader()?;
            let (_, diffs) = mount.look_diffs(&manifests[i], None, &|_| false)?;
            let (mut cursor, mut live) = (mount.cursor(), live.mounts[i].cursor());
            for path in diffs.iter().filter(|path| !is_ours(i, path)) {
                let full = self.full_path(i, path);
                let shared = live.try_lstat(path).at("examine", full.as_path())?;
                let found = cursor.parent(path).and_then(|(dir, name)| fsx::read_content_at(dir, name));
                let (sig, data) = match found {
                    // Gone, or nothing that has content.
                    Err(err) if fsx::absent(&err) || err.kind() == std::io::ErrorKind::InvalidInput => continue,
                    other => other.at("read", full.as_path())?,
                };
                if shared.is_some_and(|there| there.ino == sig.ino)
                    || data.iter().all(|byte| *byte == 0)
                    || reader.contains(blob_oid(&data))
                {
                    continue;
                }
                let reason = "found in the previous tree after the machine was started anew; it may be incomplete";
                self.with_saved(|s| s.save(&full, sig.kind(), sig.perm(), Some(&data), reason))?;
            }
        }
        Ok(())
    }

    /// The exchange happened; what was displaced lies in the spare.
    fn settle_after_crash(
        &self,
        live_id: &str,
        old_id: &str,
        seen: &[Vec<Seen>],
        lost: &[Vec<String>],
        seen_ns: i64,
    ) -> Result<()> {
        let tree = Tree::open(&self.spare_path(), self.mounts())?;
        let states = self.states(&tree)?;
        let mut manifests = self.remembered(&tree, &states, None)?;
        for (manifest, seen) in manifests.iter_mut().zip(seen) {
            add_seen(manifest, seen);
        }
        let live_tree = self.live()?;
        let live_states = self.states(&live_tree)?;
        let mut live = Vec::new();
        for (mount, manifest) in live_tree.mounts.iter().zip(self.remembered(&live_tree, &live_states, None)?) {
            live.push(mount.look(&manifest, None, &|_| false)?);
        }
        // The journal was written last before the exchange: what is older in the live tree was staged.
        let staged_ns = fsx::try_lstat_at(&self.state_fd, b"journal")
            .at("examine", &self.state_dir.join("journal"))?
            .map_or(seen_ns, |sig| sig.mtime_ns);
        let mut git_staged = Vec::new();
        for mount in &live_tree.mounts {
            let mut files = gitdir::user_files(&mount.git).at("list", &mount.path)?;
            files.retain(|_, sig| sig.ctime_ns <= staged_ns);
            git_staged.push(files);
        }
        let mut git_seen = Vec::new();
        let mut mains = Vec::new();
        for mount in &tree.mounts {
            let mut files = gitdir::user_files(&mount.git).at("list", &mount.path)?;
            files.retain(|_, sig| sig.ctime_ns <= seen_ns);
            git_seen.push(files);
            // The branch was verified when git's index was locked, a moment before the exchange.
            mains.push(gitdir::read_ref(&mount.git, gitdir::MAIN).at("read", &mount.path)?);
        }
        let lost =
            lost.iter().map(|list| list.iter().filter_map(|p| Some(hex::decode(p).ok()?.into())).collect()).collect();
        let displaced = Displaced {
            tree,
            id: old_id.into(),
            seen: manifests,
            git_seen,
            git_staged,
            mains,
            lost,
            lost_is_saved: false,
            sync: true,
        };
        self.settle(displaced, live_id.into(), live).map(|_| ())
    }

    /// Remembers what the trees hold on disk, for other processes.
    pub(crate) fn remember_spare(&self, id: &str, manifests: &[Manifest]) -> Result<()> {
        let spare = CachedTree { id: id.into(), manifests: manifests.to_vec() };
        self.store_manifests(&spare)?;
        self.cache().spare = Some(spare);
        Ok(())
    }
}

fn add_seen(manifest: &mut Manifest, seen: &[Seen]) {
    let mut changes: Vec<Entry> = seen
        .iter()
        .filter_map(|s| {
            let path: Vec<u8> = hex::decode(&s.path).ok()?;
            let held = s.held.map(|(sig, oid)| Held { sig, oid: Some(oid), shared: false });
            Some(Entry { base: manifest.base(&path), path: path.into(), held })
        })
        .collect();
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    manifest.patch(changes);
}
