//! Making a working copy, and finding one.

use std::path::{Path, PathBuf};

use super::error::{At, Result, WorktreeError};
use super::fault;
use super::fsx;
use super::gitdir;
use super::inner::{self, Inner, SAVED, Settings, VERSION, locate, path_of, state_name, store_path};
use super::stage::exchange_error;
use super::types::{CreateOptions, Mount};
use crate::Store;

/// The outer mount first, names and places checked.
fn check_mounts(mounts: &[Mount]) -> Result<Vec<Mount>> {
    let bad = |reason: String| Err(WorktreeError::BadLayout(reason));
    let mut sorted = mounts.to_vec();
    sorted.sort_by(|a, b| a.at.cmp(&b.at));
    if sorted.first().is_none_or(|m| !m.at.is_empty()) {
        return bad("one repository must be at the root".into());
    }
    for pair in sorted.windows(2) {
        if pair[0].at == pair[1].at || mounts.iter().filter(|m| m.name == pair[1].name).count() > 1 {
            return bad(format!("{} is there twice", pair[1].name));
        }
    }
    for mount in &sorted {
        let single =
            |text: &str| crate::RepoPath::new(text).is_ok_and(|p| p.components().count() == 1) && !text.contains('\n');
        if !single(&mount.name) || !(mount.at.is_empty() || single(&mount.at)) {
            return bad(format!("“{}” at “{}” is not a plain name", mount.name, mount.at));
        }
        check_url(&mount.remote_url)?;
    }
    Ok(sorted)
}

/// A URL with a password in it would end up in `.git/config` for everybody to read.
pub(crate) fn check_url(url: &str) -> Result<()> {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(""));
    let has_password = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    if has_password || url.contains(['\n', '\0']) {
        return Err(WorktreeError::BadLayout("the remote's URL must not contain a password".into()));
    }
    Ok(())
}

impl Inner {
    pub(crate) fn create(root: &Path, options: CreateOptions) -> Result<Inner> {
        let mounts = check_mounts(&options.mounts)?;
        if let Some(parent) = std::path::absolute(root).at("find", root)?.parent() {
            std::fs::create_dir_all(parent).at("create", parent)?;
        }
        let (parent, name) = locate(root)?;
        let root = path_of(&parent, &name);
        if name.contains(&b'\n') || std::str::from_utf8(&name).is_err() {
            return Err(WorktreeError::BadLayout(
                "the directory's name must be plain text: git cannot record another one in info/alternates".into(),
            ));
        }
        let state_dir = path_of(&parent, &state_name(&name));
        if gitdir::exists(&state_dir.join("copy.json")) && gitdir::exists(&root.join(".git")) {
            return Err(WorktreeError::AlreadyExists(root));
        }
        let existed = check_place(&root)?;
        check_exchange(&root, &parent)?;
        // Left by a creation that was interrupted, or by a working copy whose tree somebody removed.
        clear(&state_dir)?;
        let settings = Settings { version: VERSION, mounts, ownership: options.ownership };
        let made = build(&root, &parent, &name, &state_dir, settings, existed);
        if made.is_err() {
            let _ = clear(&state_dir);
        }
        made
    }
}

/// Removes a state directory but for the edits that were put aside: those go over to the working copy that is made anew.
fn clear(state_dir: &Path) -> Result<()> {
    let state_fd = match fsx::open_dir(state_dir) {
        Err(err) if fsx::absent(&err) => return Ok(()),
        opened => opened.at("open", state_dir)?,
    };
    let saved = state_dir.join(SAVED);
    for (name, _) in fsx::list(&state_fd).at("list", state_dir)? {
        if name != SAVED.as_bytes() || inner::is_empty(&saved) {
            fsx::remove_all_at(&state_fd, &name).at("remove", &path_of(state_dir, &name))?;
        }
    }
    if gitdir::exists(&saved) {
        tracing::warn!("edits that were put aside before are kept in {}", saved.display());
        return Ok(());
    }
    std::fs::remove_dir(state_dir).at("remove", state_dir)
}

/// The root is absent or an empty directory. True if it exists.
fn check_place(root: &Path) -> Result<bool> {
    match root.symlink_metadata() {
        Err(err) if fsx::absent(&err) => Ok(false),
        Err(err) => Err(err).at("examine", root),
        Ok(meta) if meta.is_symlink() => Err(WorktreeError::CannotExchange {
            path: root.to_owned(),
            reason: "it is a symbolic link".into(),
            hint: match root.canonicalize() {
                Ok(real) => format!("name the directory itself: {}", real.display()),
                Err(_) => "name a directory".into(),
            },
        }),
        Ok(meta) if !meta.is_dir() => Err(WorktreeError::NotEmpty(root.to_owned())),
        Ok(_) => match std::fs::read_dir(root).at("list", root)?.next() {
            None => Ok(true),
            Some(_) => Err(WorktreeError::NotEmpty(root.to_owned())),
        },
    }
}

/// Tries an exchange beside the root, and makes sure that the root itself can take part.
fn check_exchange(root: &Path, parent: &Path) -> Result<()> {
    let parent_fd = fsx::open_dir(parent).at("open", parent)?;
    if gitdir::exists(root) && is_mount_point(root, parent)? {
        return Err(exchange_error(root, rustix::io::Errno::BUSY.into()));
    }
    let names = [fsx::temp_name(), fsx::temp_name()];
    let result = (|| {
        for name in &names {
            rustix::fs::mkdirat(&parent_fd, name.as_slice(), rustix::fs::Mode::RWXU)?;
        }
        fsx::exchange(&parent_fd, &names[0], &parent_fd, &names[1])
    })();
    for name in &names {
        let _ = fsx::remove_all_at(&parent_fd, name);
    }
    result.map_err(|err| exchange_error(root, err))
}

/// A bind mount has its parent's device number, but another mount id.
fn is_mount_point(root: &Path, parent: &Path) -> Result<bool> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let of = |path: &Path| {
        statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID | StatxFlags::INO).at("examine", path)
    };
    let (a, b) = (of(root)?, of(parent)?);
    Ok((a.stx_dev_major, a.stx_dev_minor) != (b.stx_dev_major, b.stx_dev_minor) || a.stx_mnt_id != b.stx_mnt_id)
}

fn build(
    root: &Path,
    parent: &Path,
    name: &[u8],
    state_dir: &Path,
    settings: Settings,
    existed: bool,
) -> Result<Inner> {
    let parent_fd = fsx::open_dir(parent).at("open", parent)?;
    let mode = 0o755 & !settings.ownership.umask | 0o700;
    fsx::ensure_dir_at(&parent_fd, &state_name(name), mode).at("create", state_dir)?;
    let state_fd = fsx::open_dir(state_dir).at("open", state_dir)?;
    for dir in ["objects", SAVED] {
        let mode = if dir == SAVED { 0o700 } else { mode };
        fsx::ensure_dir_at(&state_fd, dir.as_bytes(), mode).at("create", &state_dir.join(dir))?;
    }
    let stores =
        settings.mounts.iter().map(|m| Ok(Store::init(&store_path(state_dir, &m.name))?)).collect::<Result<_>>()?;
    let made = Inner {
        root: root.to_owned(),
        parent_fd,
        name: name.to_vec(),
        state_dir: state_dir.to_owned(),
        state_fd,
        settings,
        stores,
        cache: Default::default(),
        watch: Default::default(),
    };
    fault::point("create.stores");
    // The tree is laid out beside the root and put there when it is whole.
    made.lay_out(&made.state_fd, inner::SPARE.as_bytes(), &made.spare_path())?;
    let tree_id = made.spare_path().join(".git/eccfg/tree");
    std::fs::write(&tree_id, fsx::unique()).at("write", &tree_id)?;
    fault::point("create.laid-out");
    let bytes = serde_json::to_vec_pretty(&made.settings).map_err(std::io::Error::other).at("encode", state_dir)?;
    let file = state_dir.join("copy.json");
    fsx::write_atomic_at(&made.state_fd, b"copy.json", &bytes, 0o644, true).at("write", &file)?;
    fault::point("create.settings");
    if existed {
        // Keeps the owner and permissions that somebody gave the empty directory.
        let meta = fsx::lstat_at(&made.parent_fd, name).at("examine", root)?;
        let _ = gitdir::chown(&made.state_fd, inner::SPARE.as_bytes(), Some(meta.uid), Some(meta.gid));
        std::fs::set_permissions(made.spare_path(), std::os::unix::fs::PermissionsExt::from_mode(meta.perm()))
            .at("set permissions of", root)?;
        std::fs::remove_dir(root).at("replace", root)?;
        fault::point("create.root-removed");
    }
    std::fs::rename(made.spare_path(), root).at("create", root)?;
    rustix::fs::fsync(&made.parent_fd).at("sync", parent)?;
    Ok(made)
}

/// The root of the working copy that `start` lies in.
pub(crate) fn discover(start: &Path) -> Result<PathBuf> {
    let start_real = start.canonicalize().at("find", start)?;
    for dir in start_real.ancestors() {
        let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { break };
        let name = std::os::unix::ffi::OsStrExt::as_bytes(name);
        if gitdir::exists(&path_of(parent, &state_name(name)).join("copy.json")) {
            return Ok(dir.to_owned());
        }
        // Inside a tree that was displaced: `.<name>.eccfg/spare/…`.
        if name == inner::SPARE.as_bytes()
            && let (Some(state), Some(above)) = (parent.file_name(), parent.parent())
            && let Some(name) =
                std::os::unix::ffi::OsStrExt::as_bytes(state).strip_prefix(b".").and_then(|n| n.strip_suffix(b".eccfg"))
            && gitdir::exists(&parent.join("copy.json"))
        {
            return Ok(path_of(above, name));
        }
    }
    Err(WorktreeError::NotAWorkingCopy(start.to_owned()))
}
