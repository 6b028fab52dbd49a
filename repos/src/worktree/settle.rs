//! After the exchange: edits of the last moment.
//!
//! Between looking at the live tree and exchanging it, anybody may have written. The displaced tree is compared with
//! what was seen; what differs is an edit of the last moment. It is put into the live tree if that has at this path
//! what the editor saw, or if the two merge; otherwise it is saved. The same is done for writes that reach the
//! displaced tree later, through handles from before (`sweep`).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;

use super::error::{At, Result, WorktreeError};
use super::fault;
use super::fsx::{self, DirCursor, Kind, Sig};
use super::gitdir::{self, GitFiles};
use super::inner::{Held as CachedTree, Inner};
use super::manifest::{Entry, Held, Leaf, Manifest, PathKey};
use super::objects::{blob_oid, harvest};
use super::plan::{MAX_FILE_BYTES, new_dir};
use super::survey::Look;
use super::threeway::{self, Contents, Outcome};
use super::tree::{Tree, TreeMount};
use super::types::{OnOverlap, SavedEdit, Settled};
use super::watch::Paths;
use crate::{Oid, Reader, RepoPath};

/// Everything that settling needs to know; from memory, or from the journal after a crash.
pub(crate) struct Displaced {
    pub tree: Tree,
    pub id: String,
    /// What it held when it was looked at.
    pub seen: Vec<Manifest>,
    /// The user's files in its `.git` directories then.
    pub git_seen: Vec<GitFiles>,
    /// And what they were in the tree that took its place.
    pub git_staged: Vec<GitFiles>,
    /// What its branches were.
    pub mains: Vec<Option<Oid>>,
    /// Files that were given up.
    pub lost: Vec<Vec<PathKey>>,
    pub lost_is_saved: bool,
    /// True if power loss shall not bring the tree back that was displaced, nor what is done to it from now on.
    pub sync: bool,
}

impl Inner {
    /// Carries late edits over and makes the displaced tree the next spare. `live` is what the live tree holds.
    pub(crate) fn settle(&self, displaced: Displaced, live_id: String, mut live: Vec<Manifest>) -> Result<Settled> {
        let tree = self.live()?;
        let mut settled = Settled::default();
        let mut spare = Vec::new();
        // Always at every file: what the watch cannot see is found here.
        if let Some(watch) = self.watch.get() {
            let _ = watch.begin(&displaced.tree, &displaced.id);
        }
        for (i, seen) in displaced.seen.iter().enumerate() {
            harvest(&displaced.tree.mounts[i].git, &self.stores[i])?;
            let lost = &displaced.lost[i];
            for path in lost.iter().filter(|_| !displaced.lost_is_saved) {
                settled.saved.extend(self.save_lost(i, &displaced.tree.mounts[i], path)?);
            }
            let (now, diffs) = displaced.tree.mounts[i].look_diffs(seen, None, &|_| false)?;
            fault::point("settle.scanned");
            let mut carrier = Carrier::new(self, i, &displaced.tree.mounts[i], &tree.mounts[i], seen, &mut live[i])?;
            for path in diffs.iter().filter(|path| !lost.contains(path)) {
                carrier.carry(path, now.get(path).and_then(|e| e.held.as_ref()), true)?;
            }
            carrier.directories(&now)?;
            fault::point("settle.carried");
            carrier.git(&displaced.git_seen[i], &displaced.git_staged[i], displaced.mains[i])?;
            fault::point("settle.git-carried");
            settled.carried.append(&mut carrier.carried);
            settled.saved.append(&mut carrier.saved);
            spare.push(now);
        }
        settled.carried.sort();
        settled.carried.dedup();
        let live = CachedTree { id: live_id, manifests: live };
        let spare = CachedTree { id: displaced.id, manifests: spare };
        self.store_manifests(&live)?;
        fault::point("settle.manifest-live");
        self.store_manifests(&spare)?;
        fault::point("settle.manifest-spare");
        self.empty_trash()?;
        if displaced.sync {
            self.sync_names()?;
        }
        self.clear_journal(displaced.sync)?;
        fault::point("settle.journal-cleared");
        self.prune_manifests(&[&live.id, &spare.id])?;
        fault::point("settle.pruned");
        let mut cache = self.cache();
        cache.live = Some(live);
        let id = spare.id.clone();
        cache.spare = Some(spare);
        drop(cache);
        self.looked(&displaced.tree, &id);
        Ok(settled)
    }

    pub(crate) fn save_lost(&self, mount: usize, displaced: &TreeMount, path: &[u8]) -> Result<Option<SavedEdit>> {
        let full = self.full_path(mount, path);
        let mut cursor = displaced.cursor();
        let found = cursor.parent(path).and_then(|(dir, name)| fsx::read_content_at(dir, name));
        match found {
            Ok((sig, data)) => {
                let reason = "replaced by the upstream version, as asked";
                self.with_saved(|s| s.save(&full, sig.kind(), sig.perm(), Some(&data), reason)).map(Some)
            }
            // A socket or fifo has no content, and something that is gone by now was given up twice.
            Err(err) if fsx::absent(&err) || err.kind() == io::ErrorKind::InvalidInput => Ok(None),
            Err(err) => Err(err).at("read", full.as_path()),
        }
    }

    /// Makes sure that nobody added or removed names in the spare since it was settled, which its directories' times
    /// tell. Only then is it swept. (A file that was written through an old handle is found when it is patched, or
    /// comes back as a local edit.)
    pub(crate) fn check_spare(&self) -> Result<()> {
        let Ok(tree) = Tree::open(&self.spare_path(), self.mounts()) else { return Ok(()) };
        let cached = self.cache().spare.clone();
        let id = tree.id()?;
        let Some(cached) = cached.filter(|c| Some(&c.id) == id.as_ref()) else {
            return self.sweep_spare(Look::Watched).map(|_| ());
        };
        if self.watch.get().is_some_and(|watch| watch.is_untouched(&tree, &cached.id)) {
            return Ok(());
        }
        for (mount, manifest) in tree.mounts.iter().zip(&cached.manifests) {
            let mut cursor = mount.cursor();
            for (path, meta) in manifest.dirs.iter() {
                let same = cursor
                    .try_lstat(if path.is_empty() { b"." } else { path })
                    .at("examine", &mount.path)?
                    .is_some_and(|sig| (sig.ino, sig.mtime_ns) == (meta.ino, meta.mtime_ns));
                if !same {
                    return self.sweep_spare(Look::Watched).map(|_| ());
                }
            }
        }
        Ok(())
    }

    /// Looks for writes into the spare since it was settled. Deletions there mean nothing: nobody who deletes in a
    /// directory that is not live any more has the live one in mind.
    pub(crate) fn sweep_spare(&self, look: Look) -> Result<Settled> {
        let Ok(tree) = Tree::open(&self.spare_path(), self.mounts()) else { return Ok(Settled::default()) };
        let Some(id) = tree.id()? else { return Ok(Settled::default()) };
        let cached = self.cache().spare.clone().filter(|c| c.id == id);
        let remembered = cached.is_some();
        let mut manifests = match cached {
            Some(cached) => cached.manifests,
            None => (0..self.mounts().len())
                .filter_map(|i| self.load_manifest(&id, i).transpose())
                .collect::<Result<_>>()?,
        };
        if manifests.len() != self.mounts().len() {
            return Ok(Settled::default());
        }
        let touched = self.touched(&tree, &id, look, remembered);
        let settled = self.sweep_tree(&tree, &mut manifests, touched.as_deref(), &|_, _| false)?;
        let spare = CachedTree { id: id.clone(), manifests };
        if !settled.is_empty() {
            self.store_manifests(&spare)?;
        }
        self.cache().spare = Some(spare);
        self.looked(&tree, &id);
        Ok(settled)
    }

    /// Carries what differs from `manifests` in a tree that is not live, except for paths that `ignore` names. With `touched`
    /// (mount by mount) only these paths are looked at.
    pub(crate) fn sweep_tree(
        &self,
        tree: &Tree,
        manifests: &mut [Manifest],
        touched: Option<&[Paths]>,
        ignore: &dyn Fn(usize, &[u8]) -> bool,
    ) -> Result<Settled> {
        let live_tree = self.live()?;
        let states = self.states(&live_tree)?;
        let mut settled = Settled::default();
        let mut live: Option<Vec<Manifest>> = None;
        for (i, mount) in tree.mounts.iter().enumerate() {
            let (now, diffs) = mount.look_diffs(&manifests[i], touched.map(|t| &t[i]), &|_| false)?;
            let late: Vec<_> = diffs
                .iter()
                .filter(|path| !ignore(i, path) && now.get(path).is_some_and(|e| e.held.is_some()))
                .collect();
            if !late.is_empty() {
                if live.is_none() {
                    let cached = self.cache().live.clone();
                    live = Some(self.remembered(&live_tree, &states, cached.as_ref())?);
                }
                let Some(live) = &mut live else { continue };
                let mut carrier = Carrier::new(self, i, mount, &live_tree.mounts[i], &manifests[i], &mut live[i])?;
                for path in late {
                    carrier.carry(path, now.get(path).and_then(|e| e.held.as_ref()), false)?;
                }
                settled.carried.append(&mut carrier.carried);
                settled.saved.append(&mut carrier.saved);
            }
            manifests[i] = now;
        }
        Ok(settled)
    }
}

/// Brings edits found in one mount of a displaced tree into the live one.
struct Carrier<'a> {
    inner: &'a Inner,
    mount: usize,
    from: &'a TreeMount,
    to: &'a TreeMount,
    seen: &'a Manifest,
    live: &'a mut Manifest,
    reader: Reader,
    carried: Vec<RepoPath>,
    saved: Vec<SavedEdit>,
}

struct Local<'a> {
    reader: &'a Reader,
    contents: HashMap<Oid, Vec<u8>>,
}

impl Contents for Local<'_> {
    fn content(&self, oid: Oid) -> Result<Vec<u8>> {
        match self.contents.get(&oid) {
            Some(data) => Ok(data.clone()),
            None => Ok(self.reader.blob(oid, MAX_FILE_BYTES)?),
        }
    }
}

const IN_THE_WAY: &str = "edited while an update was put in place, and the live tree has something else there";
const BOTH: &str = "edited while an update that changes the same lines was put in place";
const GONE: &str = "deleted while an update that changes it was put in place; the live tree still has it";

impl<'a> Carrier<'a> {
    fn new(
        inner: &'a Inner,
        mount: usize,
        from: &'a TreeMount,
        to: &'a TreeMount,
        seen: &'a Manifest,
        live: &'a mut Manifest,
    ) -> Result<Self> {
        let reader = inner.stores[mount].reader()?;
        Ok(Carrier { inner, mount, from, to, seen, live, reader, carried: Vec::new(), saved: Vec::new() })
    }

    fn full(&self, path: &[u8]) -> RepoPath {
        self.inner.full_path(self.mount, path)
    }

    fn at(&self, path: &[u8]) -> std::path::PathBuf {
        self.to.path.join(RepoPath::from_tree(path.to_vec()).as_path())
    }

    /// One path that differs from what was seen.
    fn carry(&mut self, path: &PathKey, found: Option<&Held>, deletions: bool) -> Result<()> {
        let before = self.seen.get(path).and_then(|e| e.held);
        let Some(found) = found else {
            return if deletions { self.deleted(path, before.as_ref()) } else { Ok(()) };
        };
        let versioned = self.seen.base(path).is_some() || self.live.base(path).is_some();
        if found.kind() == Kind::Special || (!versioned && found.oid.is_none()) {
            return self.unversioned(path, found, before.as_ref());
        }
        self.edited(path, before.as_ref())
    }

    fn live_sig(&self, path: &[u8]) -> Result<Option<Sig>> {
        self.to.cursor().try_lstat(path).at("examine", &self.at(path))
    }

    /// New, or another inode than before, and nobody versions it: the inode itself goes into the live tree.
    fn unversioned(&mut self, path: &PathKey, found: &Held, before: Option<&Held>) -> Result<()> {
        let there = self.live_sig(path)?;
        if there.is_some_and(|sig| sig.ino == found.sig.ino) {
            // The same file; perhaps its permissions changed, and they changed in both trees.
            return Ok(());
        }
        let replaceable = there.is_none_or(|sig| before.is_some_and(|b| b.sig.ino == sig.ino));
        if replaceable {
            let mut cursor = self.from.cursor();
            let linked = match cursor.parent(path) {
                Ok((dir, name)) => {
                    self.install(path, there, &mut |to, temp| Ok(fs::linkat(dir, name, to, temp, AtFlags::empty())?))
                }
                Err(err) => Err(err),
            };
            match linked {
                Ok(true) => return self.done(path, Held { shared: true, ..*found }),
                Ok(false) => {}
                Err(err) if fsx::absent(&err) || err.kind() == io::ErrorKind::PermissionDenied => {}
                Err(err) => return Err(err).at("link", &self.at(path)),
            }
        }
        if found.kind() == Kind::Special {
            return Ok(());
        }
        self.edited(path, before)
    }

    fn done(&mut self, path: &PathKey, mut held: Held) -> Result<()> {
        if let Some(sig) = self.live_sig(path)? {
            held.sig = sig;
            let base = self.live.base(path);
            self.live.patch(vec![Entry { path: PathKey::clone(path), base, held: Some(held) }]);
        }
        self.carried.push(self.full(path));
        Ok(())
    }

    fn edited(&mut self, path: &PathKey, before: Option<&Held>) -> Result<()> {
        let mut cursor = self.from.cursor();
        let found = cursor.parent(path).and_then(|(dir, name)| fsx::read_content_at(dir, name));
        let (sig, data) = match found {
            Err(err) if fsx::absent(&err) || err.kind() == io::ErrorKind::InvalidInput => return Ok(()),
            other => other.at("read", &self.at(path))?,
        };
        let Some(mode) = sig.kind().mode() else { return Ok(()) };
        let ours = Leaf { mode, oid: blob_oid(&data) };
        let base = before.and_then(Held::leaf);
        // After a crash without a manifest nothing was seen; what equals upstream is no edit then.
        if base == Some(ours) || (before.is_none() && self.seen.base(path) == Some(ours)) {
            return self.permissions(path, &sig, before);
        }
        let there = self.to.cursor().parent(path).and_then(|(dir, name)| fsx::read_content_at(dir, name));
        let there = match there {
            Ok(found) => Some(found),
            Err(err) if fsx::absent(&err) => None,
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => return self.save(path, &sig, &data, IN_THE_WAY),
            Err(err) => return Err(err).at("read", &self.at(path)),
        };
        let theirs = there.as_ref().and_then(|(s, d)| Some(Leaf { mode: s.kind().mode()?, oid: blob_oid(d) }));
        if theirs == Some(ours) {
            return Ok(());
        }
        let mut contents = HashMap::from([(ours.oid, data.clone())]);
        if let (Some(theirs), Some((_, data))) = (theirs, &there) {
            contents.insert(theirs.oid, data.clone());
        }
        let local = Local { reader: &self.reader, contents };
        // What was seen was perhaps a local edit that nobody has any more; then there is no base to merge with.
        let merged = match threeway::merge(base, Some(ours), theirs, OnOverlap::Refuse, &local) {
            Ok(merged) if merged.conflict.is_none() => merged.outcome,
            Ok(_) | Err(WorktreeError::Store(_)) => return self.save(path, &sig, &data, BOTH),
            Err(err) => return Err(err),
        };
        let (mode, data_new) = match merged {
            Outcome::Ours => (mode, data.clone()),
            Outcome::Content(mode, merged) => (mode, merged),
            Outcome::Theirs => return Ok(()),
        };
        let perm =
            if (mode == crate::Mode::Exec) == (sig.kind() == Kind::Exec) { sig.perm() } else { sig.perm() ^ 0o111 };
        let oid = blob_oid(&data_new);
        let expected = there.map(|(sig, _)| sig);
        let installed = self.install(path, expected, &mut |dir, temp| {
            if mode == crate::Mode::Symlink {
                fs::symlinkat(data_new.as_slice(), dir, temp)?;
            } else {
                drop(fsx::create_at(dir, temp, &data_new, perm)?);
            }
            let _ = gitdir::chown(dir, temp, Some(sig.uid), Some(sig.gid));
            Ok(())
        });
        match installed {
            Ok(true) => self.done(path, Held { sig, oid: Some(oid), shared: false }),
            Ok(false) => self.save(path, &sig, &data, IN_THE_WAY),
            Err(err) if fsx::absent(&err) || err.raw_os_error() == Some(Errno::ISDIR.raw_os_error()) => {
                self.save(path, &sig, &data, IN_THE_WAY)
            }
            Err(err) => Err(err).at("write", &self.at(path)),
        }
    }

    /// The content is as it was; a `chmod` or `chown` of the last moment goes along.
    fn permissions(&mut self, path: &PathKey, sig: &Sig, before: Option<&Held>) -> Result<()> {
        let Some(before) = before else { return Ok(()) };
        if (sig.mode, sig.uid, sig.gid) == (before.sig.mode, before.sig.uid, before.sig.gid)
            || sig.kind() == Kind::Symlink
        {
            return Ok(());
        }
        let mut cursor = self.to.cursor();
        let Ok((dir, name)) = cursor.parent(path) else { return Ok(()) };
        let Some(there) =
            fsx::try_lstat_at(dir, name).at("examine", &self.at(path))?.filter(|there| there.kind().is_file())
        else {
            return Ok(());
        };
        fs::chmodat(dir, name, fs::Mode::from_raw_mode(sig.perm()), AtFlags::empty())
            .at("set permissions of", &self.at(path))?;
        if (there.uid, there.gid) != (sig.uid, sig.gid) {
            let _ = gitdir::chown(dir, name, Some(sig.uid), Some(sig.gid));
        }
        let held = self.live.get(path).and_then(|e| e.held);
        match held {
            Some(held) => self.done(path, held),
            None => Ok(()),
        }
    }

    fn deleted(&mut self, path: &PathKey, before: Option<&Held>) -> Result<()> {
        let Some(before) = before else { return Ok(()) };
        let Some(there) = self.live_sig(path)? else { return Ok(()) };
        let known = self.live.get(path).and_then(|e| e.held);
        let as_seen = if before.oid.is_none() {
            there.ino == before.sig.ino
        } else {
            known.is_some_and(|k| k.sig == there && k.leaf() == before.leaf())
        };
        if !as_seen {
            let edit = self.inner.with_saved(|s| s.save(&self.full(path), Kind::File, 0o600, None, GONE))?;
            self.saved.push(edit);
            return Ok(());
        }
        let mut cursor = self.to.cursor();
        let (dir, name) = cursor.parent(path).at("open", &self.at(path))?;
        match fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(err) => return Err(err).at("remove", &self.at(path)),
        }
        let base = self.live.base(path);
        self.live.patch(vec![Entry { path: PathKey::clone(path), base, held: None }]);
        self.carried.push(self.full(path));
        Ok(())
    }

    fn save(&mut self, path: &[u8], sig: &Sig, data: &[u8], reason: &str) -> Result<()> {
        let full = self.full(path);
        let edit = self.inner.with_saved(|s| s.save(&full, sig.kind(), sig.perm(), Some(data), reason))?;
        self.saved.push(edit);
        Ok(())
    }

    /// Puts what `make` creates at `path`, if that is still what `expected` says. False if it is not.
    fn install(
        &self,
        path: &[u8],
        expected: Option<Sig>,
        make: &mut dyn FnMut(BorrowedFd<'_>, &[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        let (dir_path, name) = fsx::split(path);
        let own = new_dir(&self.inner.settings.ownership);
        let mut cursor = DirCursor::new(std::sync::Arc::clone(&self.to.dir));
        let dir = cursor.dir_with(dir_path, |parent, name, _| fsx::ensure_dir_at(parent, name, own.mode))?;
        let temp = fsx::temp_name();
        make(dir.as_fd(), &temp)?;
        let drop_temp = || {
            let _ = fs::unlinkat(dir, temp.as_slice(), AtFlags::empty());
        };
        let Some(expected) = expected else {
            let result = fs::renameat_with(dir, temp.as_slice(), dir, name, RenameFlags::NOREPLACE);
            if result.is_err() {
                drop_temp();
            }
            return match result {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                Err(err) => Err(err.into()),
            };
        };
        match fs::renameat_with(dir, temp.as_slice(), dir, name, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                drop_temp();
                return Ok(false);
            }
            Err(err) => {
                drop_temp();
                return Err(err.into());
            }
        }
        // What was there lies under the temporary name now. Renaming changes its ctime, so that does not count.
        let old = fsx::lstat_at(dir, &temp)?;
        let same = (old.ino, old.size, old.mtime_ns, old.mode)
            == (expected.ino, expected.size, expected.mtime_ns, expected.mode);
        if !same {
            fs::renameat_with(dir, temp.as_slice(), dir, name, RenameFlags::EXCHANGE)?;
        }
        drop_temp();
        Ok(same)
    }

    /// Directories that were made or re-owned in the last moment.
    fn directories(&mut self, now: &Manifest) -> Result<()> {
        for (path, meta) in now.dirs.iter() {
            let before = self.seen.dir(path);
            if before.is_some_and(|b| b.is_like(meta)) {
                continue;
            }
            let mut cursor = self.to.cursor();
            if before.is_none() && !self.seen.dirs.is_empty() {
                match cursor.dir_with(path, |parent, name, _| fsx::ensure_dir_at(parent, name, meta.mode)) {
                    Ok(_) => self.carried.push(self.full(path)),
                    Err(err) if fsx::absent(&err) => {}
                    Err(err) => return Err(err).at("create", &self.at(path)),
                }
            } else if before.is_some()
                && let Ok(dir) = cursor.dir(path)
            {
                let _ = fs::fchmod(dir, fs::Mode::from_raw_mode(meta.mode));
                let _ = gitdir::chown(dir, b".", Some(meta.uid), Some(meta.gid));
                self.carried.push(self.full(path));
            }
        }
        Ok(())
    }

    /// The user's own files in `.git` (branches, stashes, configuration, hooks).
    fn git(&mut self, seen: &GitFiles, staged: &GitFiles, main: Option<Oid>) -> Result<()> {
        let (from, to) = (&self.from.git, &self.to.git);
        let path = self.from.path.join(".git");
        let now = gitdir::user_files(from).at("list", &path)?;
        let main_now = gitdir::read_ref(from, gitdir::MAIN).at("read", &path)?;
        if let Some(commit) = main_now.filter(|commit| Some(*commit) != main) {
            let name = format!("refs/eccfg/late-{}", commit.short());
            gitdir::put(to, name.as_bytes(), format!("{commit}\n").as_bytes(), &self.inner.settings.ownership)
                .at("write", &path)?;
            let reason = "committed by plain git while an update was put in place: the reference names the commit, its files are local edits now";
            let full = self.full(format!(".git/{name}").as_bytes());
            self.saved.push(
                self.inner
                    .with_saved(|s| s.save(&full, Kind::File, 0o600, Some(commit.to_string().as_bytes()), reason))?,
            );
        }
        for (name, sig) in now.iter().filter(|(name, sig)| seen.get(*name) != Some(sig) && !gitdir::is_managed(name)) {
            let there = fsx::try_lstat_at(to, name).at("examine", &path)?;
            // Our own line in a reflog counts as somebody else's: there is no merging a log.
            let ours =
                name.starts_with(b"logs/") && there.is_some_and(|t| seen.get(name).is_some_and(|s| s.size != t.size));
            if there.as_ref() == staged.get(name) && !ours {
                gitdir::copy_file(from, to, name, sig).at("write", &self.to.path.join(".git"))?;
                self.carried.push(self.full(&[b".git/", name.as_slice()].concat()));
            } else if let Some(there) = there
                && !name.starts_with(b"logs/")
                && !gitdir::same_file(from, sig, to, &there, name).at("compare", &path)?
            {
                let data = fsx::read_content_at(from, name).at("read", &path)?.1;
                self.save(&[b".git/", name.as_slice()].concat(), sig, &data, IN_THE_WAY)?;
            }
        }
        for name in seen.keys().filter(|name| !now.contains_key(*name) && !gitdir::is_managed(name)) {
            let there = fsx::try_lstat_at(to, name).at("examine", &path)?;
            if there.is_some() && there.as_ref() == staged.get(name) {
                gitdir::remove_file(to, name).at("remove", &self.to.path.join(".git"))?;
                self.carried.push(self.full(&[b".git/", name.as_slice()].concat()));
            }
        }
        Ok(())
    }
}
