//! Bringing the spare tree to what was planned.
//!
//! The spare is private: nobody reads it while it is patched, so there is no order to keep. Two things matter. A
//! file is never written in place, always unlinked and created, so that no inode of the live tree can be hit. And
//! nothing is replaced that is not what the manifest says: a process with an old handle may have written there.

use std::io;
use std::sync::Arc;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use super::error::{At, Result};
use super::fault;
use super::fsx::{self, DirCursor, Kind, Sig};
use super::gitdir::chown;
use super::manifest::{DirMeta, Entry, Held, Manifest, PathKey};
use super::plan::{MAX_FILE_BYTES, MountPlan, Planned, Source, Want, kept};
use super::sync::Written;
use super::trash::Trash;
use super::tree::TreeMount;
use crate::{Reader, RepoPath};

/// What has to be done to one path of the spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Keep,
    /// Only permissions or owner.
    Meta,
    /// Create, after removing what is there.
    Put,
    /// Remove. The index is into the spare's entries.
    Remove(usize),
}

/// The steps for one mount, worked out before anything is touched.
pub(crate) struct Steps {
    /// Parallel to the plan's files: what to do, and which entry of the spare has something there.
    actions: Vec<(Action, Option<usize>)>,
    /// Entries of the spare that the plan does not know.
    extra: Vec<Action>,
}

/// Somebody wrote into the spare through an old handle: path, what is there, its content.
pub(crate) type Late<'a> = dyn FnMut(&[u8], &Sig, &[u8]) -> Result<()> + 'a;

pub(crate) fn steps(spare: &Manifest, live: &Manifest, plan: &MountPlan) -> Steps {
    if plan.only_concerned {
        return few_steps(spare, live, plan);
    }
    let mut actions = Vec::with_capacity(plan.files.len());
    let mut extra = Vec::new();
    let mut at = 0;
    let mut live_at = 0;
    for file in &plan.files {
        while live_at < live.entries.len() && live.entries[live_at].path < file.path {
            live_at += 1;
        }
        let there = live.entries.get(live_at).filter(|e| e.path == file.path).and_then(|e| e.held.as_ref());
        while at < spare.entries.len() && spare.entries[at].path < file.path {
            if spare.entries[at].held.is_some() {
                extra.push(Action::Remove(at));
            }
            at += 1;
        }
        let known = spare.entries.get(at).filter(|entry| entry.path == file.path);
        let held = known.and_then(|entry| entry.held.as_ref());
        actions.push((action(file, held, there), held.map(|_| at)));
        if held.is_some() && file.want.is_none() {
            extra.push(Action::Remove(at));
        }
        at += usize::from(known.is_some());
    }
    extra.extend((at..spare.entries.len()).filter(|i| spare.entries[*i].held.is_some()).map(Action::Remove));
    Steps { actions, extra }
}

/// The steps where the plan is about a few paths that both trees have.
fn few_steps(spare: &Manifest, live: &Manifest, plan: &MountPlan) -> Steps {
    let step = |file: &Planned| {
        let at = spare.position(&file.path).ok();
        let held = at.and_then(|at| spare.entries[at].held.as_ref());
        let there = live.get(&file.path).and_then(|entry| entry.held.as_ref());
        (action(file, held, there), held.and(at))
    };
    Steps { actions: plan.files.iter().map(step).collect(), extra: Vec::new() }
}

/// True if the second tree's entry is what the live tree's asks for, where no update touches it.
pub(crate) fn is_kept(live: &Entry, spare: &Entry) -> bool {
    match (&live.held, &spare.held) {
        (None, None) => true,
        (Some(there), Some(held)) => action(&kept(live), Some(held), Some(there)) == Action::Keep,
        _ => false,
    }
}

fn action(file: &Planned, held: Option<&Held>, live: Option<&Held>) -> Action {
    let Some(want) = &file.want else { return Action::Keep };
    let Some(held) = held else { return Action::Put };
    let shared = live.is_some_and(|l| l.sig.ino == held.sig.ino && l.sig.dev == held.sig.dev);
    if want.source == Source::Share {
        return if shared { Action::Keep } else { Action::Put };
    }
    // A file that became tracked must not keep the inode of the live tree.
    if shared || want.leaf.is_none() || held.leaf() != want.leaf {
        return Action::Put;
    }
    if has_meta(&held.sig, &want.meta) { Action::Keep } else { Action::Meta }
}

fn has_meta(sig: &Sig, meta: &DirMeta) -> bool {
    let mode = sig.kind() == Kind::Symlink || sig.perm() == meta.mode;
    mode && (meta.uid == u32::MAX || sig.uid == meta.uid) && (meta.gid == u32::MAX || sig.gid == meta.gid)
}

impl Steps {
    /// The paths that will be written, replaced or removed.
    pub(crate) fn touched<'a>(&'a self, plan: &'a MountPlan, spare: &'a Manifest) -> Vec<&'a [u8]> {
        let put = self.actions.iter().zip(&plan.files).filter(|((a, _), _)| *a != Action::Keep).map(|(_, f)| &*f.path);
        let removed = self.extra.iter().filter_map(|a| match a {
            Action::Remove(i) => Some(&*spare.entries[*i].path),
            _ => None,
        });
        put.chain(removed).collect()
    }
}

impl Steps {
    /// Directories in which a name comes or goes.
    fn touched_dirs<'a>(&'a self, plan: &'a MountPlan, spare: &'a Manifest) -> std::collections::HashSet<&'a [u8]> {
        let mut dirs: std::collections::HashSet<&[u8]> =
            self.touched(plan, spare).into_iter().map(|path| fsx::split(path).0).collect();
        let is_wanted = |path: &PathKey| plan.dirs.binary_search_by(|(p, _)| p.cmp(path)).is_ok();
        dirs.extend(spare.dirs.iter().filter(|(path, _)| !is_wanted(path)).map(|(path, _)| fsx::split(path).0));
        dirs.extend(plan.dirs.iter().filter(|(path, _)| spare.dir(path).is_none()).map(|(path, _)| fsx::split(path).0));
        dirs
    }
}

/// Everything that patching one mount needs.
pub(crate) struct Patcher<'a> {
    pub spare: &'a TreeMount,
    pub live: &'a TreeMount,
    pub reader: &'a Reader,
    pub late: &'a mut Late<'a>,
    /// Takes what is replaced.
    pub trash: &'a Trash,
    /// What was created, to be synced.
    pub written: &'a mut Written,
}

impl Patcher<'_> {
    /// Does it, and answers what the spare holds then.
    pub(crate) fn apply(
        mut self,
        steps: &Steps,
        mut old: Manifest,
        live: &Manifest,
        plan: &MountPlan,
    ) -> Result<Manifest> {
        let mut cursor = self.spare.cursor();
        for step in steps.extra.iter().rev() {
            if let Action::Remove(i) = step {
                let entry = &old.entries[*i];
                self.remove(&mut cursor, &entry.path, entry.held.as_ref())?;
            }
        }
        let held_at = |at: &Option<usize>| at.and_then(|at| old.entries[at].held);
        for ((action, at), file) in steps.actions.iter().zip(&plan.files) {
            if *action == Action::Put && at.is_some() {
                self.remove(&mut cursor, &file.path, held_at(at).as_ref())?;
            }
        }
        fault::point("stage.patched-first");
        cursor.reset();
        self.dirs(&mut cursor, &old, plan)?;
        let mut live_cursor = self.live.cursor();
        let mut now = Manifest { commit: plan.commit(), ..Manifest::default() };
        let mut entries = Vec::with_capacity(plan.files.len());
        for ((action, at), file) in steps.actions.iter().zip(&plan.files) {
            let held = match (&file.want, action) {
                (None, _) => None,
                (Some(_), Action::Keep | Action::Remove(_)) => held_at(at),
                (Some(want), Action::Meta) => Some(self.meta(&mut cursor, &file.path, want, held_at(at).as_ref())?),
                (Some(want), Action::Put) => self.put(&mut cursor, &mut live_cursor, &file.path, want, live)?,
            };
            if file.base.is_some() || held.is_some() {
                entries.push(Entry { path: PathKey::clone(&file.path), base: file.base, held });
            }
        }
        now.dirs = Arc::new(self.dir_modes(&mut cursor, &old, steps, plan)?);
        now.entries = if plan.only_concerned {
            // Nobody else knows the list any more, so it is changed where it is.
            let all = Arc::make_mut(&mut old.entries);
            for entry in entries {
                if let Ok(at) = all.binary_search_by(|known| known.path.cmp(&entry.path)) {
                    all[at] = entry;
                }
            }
            old.entries
        } else {
            Arc::new(entries)
        };
        now.taken_ns = fsx::now_ns();
        Ok(now)
    }

    fn at(&self, path: &[u8]) -> std::path::PathBuf {
        self.spare.path.join(RepoPath::from_tree(path.to_vec()).as_path())
    }

    /// Removes a file of the spare, unless it is not what we left there: then it is put aside first.
    fn remove(&mut self, cursor: &mut DirCursor, path: &[u8], held: Option<&Held>) -> Result<()> {
        let at = self.at(path);
        let (dir, name) = match cursor.parent(path) {
            Ok(found) => found,
            Err(err) if fsx::absent(&err) => return Ok(()),
            Err(err) => return Err(err).at("open", &at),
        };
        let Some(sig) = fsx::try_lstat_at(dir, name).at("examine", &at)? else { return Ok(()) };
        if sig.kind() == Kind::Dir {
            return rescue_dir(dir, name, path, self.late)
                .and_then(|()| fsx::remove_all_at(dir, name).at("remove", &at));
        }
        // What nobody versions is the live tree's inode, or was: whoever removed it there did not mean it to be kept here.
        let same = |h: &Held| if h.shared || h.oid.is_none() { h.sig.ino == sig.ino } else { h.sig == sig };
        let expected = held.is_some_and(same);
        if !expected && sig.kind() != Kind::Special {
            let (sig, data) = fsx::read_content_at(dir, name).at("read", &at)?;
            (self.late)(path, &sig, &data)?;
        }
        self.trash.take(dir, name).at("remove", &at)
    }

    /// Removes directories that are not wanted any more and makes those that are new.
    fn dirs(&mut self, cursor: &mut DirCursor, old: &Manifest, plan: &MountPlan) -> Result<()> {
        let wanted = |path: &PathKey| plan.dirs.binary_search_by(|(p, _)| p.cmp(path)).is_ok();
        for (path, _) in old.dirs.iter().rev().filter(|(path, _)| !path.is_empty() && !wanted(path)) {
            cursor.reset();
            let at = self.at(path);
            let Ok((dir, name)) = cursor.parent(path) else { continue };
            match fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    rescue_dir(dir, name, path, self.late)?;
                    fsx::remove_all_at(dir, name).at("remove", &at)?;
                }
                Err(err) => return Err(err).at("remove", &at),
            }
        }
        cursor.reset();
        for (path, meta) in plan.dirs.iter().filter(|(path, _)| !path.is_empty() && old.dir(path).is_none()) {
            let at = self.at(path);
            let (dir, name) = cursor.parent(path).at("open", &at)?;
            if fsx::try_lstat_at(dir, name).at("examine", &at)?.is_some_and(|sig| sig.kind() != Kind::Dir) {
                self.remove(cursor, path, None)?;
                cursor.reset();
            }
            let (dir, name) = cursor.parent(path).at("open", &at)?;
            fsx::ensure_dir_at(dir, name, meta.mode | 0o700).at("create", &at)?;
        }
        Ok(())
    }

    /// Permissions and owners of directories, last: some may forbid what we did in them. Answers what they are.
    fn dir_modes(
        &mut self,
        cursor: &mut DirCursor,
        old: &Manifest,
        steps: &Steps,
        plan: &MountPlan,
    ) -> Result<Vec<(PathKey, DirMeta)>> {
        let touched = steps.touched_dirs(plan, old);
        let mut dirs = Vec::with_capacity(plan.dirs.len());
        for (path, meta) in &plan.dirs {
            let before = old.dir(path);
            let is_right = before.is_some_and(|b| b.is_like(meta));
            if is_right && !touched.contains(&**path) {
                dirs.push((PathKey::clone(path), before.unwrap_or(*meta)));
                continue;
            }
            let at = self.at(path);
            let dir = cursor.dir(path).at("open", &at)?;
            if !is_right {
                set_meta_fd(dir, meta).at("set permissions of", &at)?;
            }
            dirs.push((PathKey::clone(path), DirMeta::of(&fs::fstat(dir).at("examine", &at)?)));
            self.written.push(dir.try_clone_to_owned().at("open", &at)?);
        }
        Ok(dirs)
    }

    fn meta(&mut self, cursor: &mut DirCursor, path: &[u8], want: &Want, held: Option<&Held>) -> Result<Held> {
        let at = self.at(path);
        let (dir, name) = cursor.parent(path).at("open", &at)?;
        let Some(sig) = fsx::try_lstat_at(dir, name).at("examine", &at)? else {
            return held.copied().ok_or(Errno::NOENT).at("examine", &at);
        };
        if held.is_some_and(|h| h.sig != sig) {
            let (sig, data) = fsx::read_content_at(dir, name).at("read", &at)?;
            (self.late)(path, &sig, &data)?;
        }
        set_meta(dir, name, &sig, &want.meta).at("set permissions of", &at)?;
        let sig = fsx::lstat_at(dir, name).at("examine", &at)?;
        Ok(Held { sig, oid: want.leaf.map(|l| l.oid), shared: false })
    }

    fn put(
        &mut self,
        cursor: &mut DirCursor,
        live_cursor: &mut DirCursor,
        path: &[u8],
        want: &Want,
        live: &Manifest,
    ) -> Result<Option<Held>> {
        let at = self.at(path);
        {
            let (dir, name) = cursor.parent(path).at("open", &at)?;
            if fsx::try_lstat_at(dir, name).at("examine", &at)?.is_some() {
                self.remove(cursor, path, None)?;
                cursor.reset();
            }
        }
        // A file that does not change keeps its time, though the inode is another one: programs look at it.
        let there =
            live.get(path).and_then(|e| e.held).filter(|held| held.leaf().is_some() && held.leaf() == want.leaf);
        let time_ns = there.map(|held| held.sig.mtime_ns);
        let (dir, name) = cursor.parent(path).at("open", &at)?;
        match &want.source {
            Source::Share => share(live_cursor, dir, name, path, live).at("link", &at),
            Source::Bytes(data) => self.write(cursor, path, want, data, time_ns),
            Source::Live => {
                // Gone since it was planned: the rescan after the exchange will see to it.
                let found =
                    live_cursor.parent(path).and_then(|(from, live_name)| fsx::read_content_at(from, live_name));
                let (_, data) = match found {
                    Err(err) if fsx::absent(&err) => return Ok(None),
                    other => other.at("read", &at)?,
                };
                self.write(cursor, path, want, &data, time_ns)
            }
            Source::Store => {
                let leaf = want.leaf.ok_or(Errno::INVAL).at("write", &at)?;
                let data = self.reader.blob(leaf.oid, MAX_FILE_BYTES)?;
                self.write(cursor, path, want, &data, time_ns)
            }
        }
    }

    fn write(
        &mut self,
        cursor: &mut DirCursor,
        path: &[u8],
        want: &Want,
        data: &[u8],
        time_ns: Option<i64>,
    ) -> Result<Option<Held>> {
        let at = self.at(path);
        let (dir, name) = cursor.parent(path).at("open", &at)?;
        let leaf = want.leaf.ok_or(Errno::INVAL).at("write", &at)?;
        if leaf.mode == crate::Mode::Symlink {
            fs::symlinkat(data, dir, name).at("create", &at)?;
            chown_if_possible(dir, name, &want.meta).at("set the owner of", &at)?;
        } else {
            let fd = fsx::create_at(dir, name, data, want.meta.mode).at("create", &at)?;
            chown_if_possible(dir, name, &want.meta).at("set the owner of", &at)?;
            if let Some(time_ns) = time_ns {
                fs::futimens(&fd, &fsx::times(time_ns)).at("set the time of", &at)?;
            }
            self.written.push(fd);
        }
        let sig = fsx::lstat_at(dir, name).at("examine", &at)?;
        // A live file may have changed since it was planned; what counts is what was written.
        let oid = if want.source == Source::Live { super::objects::blob_oid(data) } else { leaf.oid };
        Ok(Some(Held { sig, oid: Some(oid), shared: false }))
    }
}

/// Hard-links what nobody versions, so that a process that has it open goes on writing to the file that is live.
/// Where the kernel refuses (another user's file under `fs.protected_hardlinks`), a copy has to do.
fn share(
    live: &mut DirCursor,
    to: impl std::os::fd::AsFd,
    name: &[u8],
    path: &[u8],
    manifest: &Manifest,
) -> io::Result<Option<Held>> {
    let (from, live_name) = match live.parent(path) {
        Err(err) if fsx::absent(&err) => return Ok(None),
        other => other?,
    };
    let to = to.as_fd();
    let known = manifest.get(path).and_then(|e| e.held);
    match fs::linkat(from, live_name, to, name, AtFlags::empty()) {
        Ok(()) => Ok(Some(Held { sig: fsx::lstat_at(to, name)?, oid: known.and_then(|h| h.oid), shared: true })),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::PERM | Errno::MLINK | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => {
            let (sig, data) = fsx::read_content_at(from, live_name)?;
            if sig.kind() == Kind::Symlink {
                fs::symlinkat(data.as_slice(), to, name)?;
            } else {
                drop(fsx::create_at(to, name, &data, sig.perm())?);
            }
            chown_if_possible(to, name, &DirMeta::wanted(0, sig.uid, sig.gid))?;
            Ok(Some(Held { sig: fsx::lstat_at(to, name)?, oid: Some(super::objects::blob_oid(&data)), shared: false }))
        }
        Err(err) => Err(err.into()),
    }
}

/// Puts everything below a directory that nobody expected aside.
fn rescue_dir(parent: impl std::os::fd::AsFd, name: &[u8], path: &[u8], late: &mut Late<'_>) -> Result<()> {
    let shown = RepoPath::from_tree(path.to_vec());
    let dir = Arc::new(fsx::open_dir_at(parent, name).at("open", shown.as_path())?);
    for (child, _) in fsx::list(&dir).at("list", shown.as_path())? {
        let child_path = [path, b"/", &child].concat();
        let Some(sig) = fsx::try_lstat_at(&dir, &child).at("examine", shown.as_path())? else { continue };
        match sig.kind() {
            Kind::Dir => rescue_dir(&dir, &child, &child_path, late)?,
            Kind::Special => {}
            _ => {
                let (sig, data) = fsx::read_content_at(&dir, &child).at("read", shown.as_path())?;
                late(&child_path, &sig, &data)?;
            }
        }
    }
    Ok(())
}

/// Sets the owner, except where only root could.
fn chown_if_possible(dir: impl std::os::fd::AsFd, name: &[u8], meta: &DirMeta) -> io::Result<()> {
    let dir = dir.as_fd();
    if meta.uid == u32::MAX && meta.gid == u32::MAX {
        return Ok(());
    }
    let sig = fsx::lstat_at(dir, name)?;
    let uid = Some(meta.uid).filter(|uid| *uid != u32::MAX && *uid != sig.uid);
    let gid = Some(meta.gid).filter(|gid| *gid != u32::MAX && *gid != sig.gid);
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    match chown(dir, name, uid, gid) {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied && !nix::unistd::geteuid().is_root() => Ok(()),
        other => other,
    }
}

fn set_meta(dir: impl std::os::fd::AsFd, name: &[u8], sig: &Sig, meta: &DirMeta) -> io::Result<()> {
    let dir = dir.as_fd();
    chown_if_possible(dir, name, meta)?;
    if sig.kind() != Kind::Symlink {
        fs::chmodat(dir, name, fs::Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    Ok(())
}

fn set_meta_fd(dir: impl std::os::fd::AsFd, meta: &DirMeta) -> io::Result<()> {
    chown_if_possible(&dir, b".", meta)?;
    Ok(fs::fchmod(dir, fs::Mode::from_raw_mode(meta.mode))?)
}
