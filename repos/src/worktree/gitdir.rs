//! The `.git` directories of the two trees.
//!
//! Everything in `.git` that is not ours (configuration, hooks, branches, stashes, logs) belongs to the user and is
//! mirrored into the staged tree before the exchange. What we set ourselves are HEAD's branch, the index, the base
//! and the two references `refs/heads/main` and `refs/remotes/origin/main`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType};
use serde::{Deserialize, Serialize};

use super::fsx::{self, Sig, list, open_dir_at, split, try_lstat_at, try_read_at, write_atomic_at};
use super::sync::Written;
use super::types::{Base, ConflictState, Mount, Ownership};
use crate::Oid;

pub(crate) const MAIN: &str = "refs/heads/main";
pub(crate) const ORIGIN_MAIN: &str = "refs/remotes/origin/main";
pub(crate) const HEAD_ON_MAIN: &[u8] = b"ref: refs/heads/main\n";

/// What an object store's parent directory is called in `alternates`, seen from `.git/objects`.
pub(crate) fn alternates_line(depth: usize, state_name: &str, repo: &str) -> String {
    format!("{}{state_name}/objects/{repo}.git/objects\n", "../".repeat(depth))
}

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// The configuration of a new mount.
pub(crate) fn config(mount: &Mount) -> String {
    let ca = mount.ca.as_ref().map_or(String::new(), |ca| {
        format!("[http {}]\n\tsslCAInfo = {}\n", quoted(&mount.remote_url), quoted(&ca.to_string_lossy()))
    });
    format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\tautocrlf = false\n\
         [remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
         [branch \"main\"]\n\tremote = origin\n\tmerge = refs/heads/main\n{ca}",
        quoted(&mount.remote_url)
    )
}

/// Replaces what [`config`] wrote about the remote, keeping everything else that the user may have added.
pub(crate) fn with_remote(config: &str, mount: &Mount) -> String {
    let mut out = String::new();
    let mut skipping = false;
    for line in config.split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed.starts_with('[') {
            skipping = trimmed == "[remote \"origin\"]"
                || (trimmed.starts_with("[http \"") && config_section_is_ours(config, trimmed));
        }
        if !skipping {
            out.push_str(line);
        }
    }
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.push_str(&format!(
        "[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n",
        quoted(&mount.remote_url)
    ));
    if let Some(ca) = &mount.ca {
        out.push_str(&format!(
            "[http {}]\n\tsslCAInfo = {}\n",
            quoted(&mount.remote_url),
            quoted(&ca.to_string_lossy())
        ));
    }
    out
}

/// The `[http "URL"]` section belongs to the remote if its URL is the remote's.
fn config_section_is_ours(config: &str, header: &str) -> bool {
    let Some(url) = header.strip_prefix("[http ").and_then(|h| h.strip_suffix(']')) else { return false };
    config.lines().any(|line| line.trim().strip_prefix("url = ").is_some_and(|value| value == url))
}

/// Lays out `.git` in the tree `root`, without a commit.
pub(crate) fn init(
    root: &OwnedFd,
    mount: &Mount,
    nested: &[String],
    alternates: &str,
    own: &Ownership,
) -> io::Result<()> {
    let dir = |name: &[u8]| 0o777 & !own.umask | u32::from(name.is_empty());
    let mode = dir(b".git");
    fsx::ensure_dir_at(root, b".git", mode)?;
    let git = open_dir_at(root, b".git")?;
    for path in
        ["eccfg", "hooks", "info", "logs", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags"]
    {
        fsx::ensure_dir_at(&git, path.as_bytes(), mode)?;
        give(&git, path.as_bytes(), own)?;
    }
    let exclude: String = nested.iter().map(|at| format!("/{at}/\n")).collect();
    let files = [
        ("config", config(mount)),
        ("description", format!("{} (working copy of eccluster)\n", mount.name)),
        ("info/exclude", format!("# Other repositories of this working copy; kept by eccfg.\n{exclude}")),
        // Bytes in the tree are the bytes that were committed, whatever .gitattributes says.
        ("info/attributes", "* -text -ident -filter -working-tree-encoding\n".into()),
        ("objects/info/alternates", alternates.into()),
        ("HEAD", String::from_utf8_lossy(HEAD_ON_MAIN).into_owned()),
    ];
    for (path, content) in files {
        put(&git, path.as_bytes(), content.as_bytes(), own)?;
    }
    give(root, b".git", own)
}

/// Writes a file of ours below `.git`, making directories on the way.
pub(crate) fn put(git: &OwnedFd, path: &[u8], data: &[u8], own: &Ownership) -> io::Result<()> {
    for dir in fsx::ancestors(path) {
        if try_lstat_at(git, dir)?.is_none() {
            fsx::ensure_dir_at(git, dir, 0o777 & !own.umask)?;
            give(git, dir, own)?;
        }
    }
    let (dir, name) = split(path);
    if dir.is_empty() {
        write_atomic_at(git, name, data, 0o666 & !own.umask, false)?;
    } else {
        write_atomic_at(
            fsx::DirCursor::new(std::sync::Arc::new(git.try_clone()?)).dir(dir)?,
            name,
            data,
            0o666 & !own.umask,
            false,
        )?;
    }
    give(git, path, own)
}

/// Like [`put`] in a tree that nobody reads yet: the file is overwritten where it is, which spares the file system a
/// new inode.
pub(crate) fn put_private(
    git: &OwnedFd,
    path: &[u8],
    data: &[u8],
    own: &Ownership,
    written: &mut Written,
) -> io::Result<()> {
    let flags = fs::OFlags::RDWR | fs::OFlags::NOFOLLOW | fs::OFlags::CLOEXEC;
    if let Ok(fd) = fs::openat(git, path, flags, fs::Mode::empty()) {
        let stat = fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1 {
            let file = std::fs::File::from(fd);
            // What is as it was has been synced when it was written.
            if overwrite(&file, stat.st_size as u64, data)? {
                written.push(file.into());
            }
            return Ok(());
        }
    }
    put(git, path, data, own)?;
    written.push_unknown();
    Ok(())
}

/// Changes parts of a private file whose signature is `expected`, where it is. `patch` answers which. False if it is another file or cannot be
/// patched.
pub(crate) fn patch_private(
    git: &OwnedFd,
    path: &[u8],
    expected: &Sig,
    patch: impl FnOnce(&mut [u8]) -> Option<Vec<std::ops::Range<usize>>>,
    written: &mut Written,
) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let flags = fs::OFlags::RDWR | fs::OFlags::NOFOLLOW | fs::OFlags::NONBLOCK | fs::OFlags::CLOEXEC;
    let Ok(fd) = fs::openat(git, path, flags, fs::Mode::empty()) else { return Ok(false) };
    let stat = fs::fstat(&fd)?;
    if Sig::of(&stat) != *expected || stat.st_nlink != 1 {
        return Ok(false);
    }
    let file = std::fs::File::from(fd);
    let mut bytes = vec![0; expected.size as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let Some(parts) = patch(&mut bytes) else { return Ok(false) };
    for part in parts {
        file.write_all_at(&bytes[part.clone()], part.start as u64)?;
    }
    written.push(file.into());
    Ok(true)
}

/// The unit in which the kernel keeps files, and in which they are written to the disk.
const PAGE: usize = 4096;

/// Makes a file what `data` is, touching only the pages that differ: an index of a megabyte changes in two places. True if it was
/// something else.
fn overwrite(file: &std::fs::File, size: u64, data: &[u8]) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut old = vec![0; data.len().min(size as usize)];
    let known = match file.read_exact_at(&mut old, 0) {
        Ok(()) => old.as_slice(),
        Err(_) => &[],
    };
    let mut changed = size != data.len() as u64;
    for (i, page) in data.chunks(PAGE).enumerate() {
        let at = i * PAGE;
        if known.get(at..at + page.len()) != Some(page) {
            file.write_all_at(page, at as u64)?;
            changed = true;
        }
    }
    if size != data.len() as u64 {
        file.set_len(data.len() as u64)?;
    }
    Ok(changed)
}

/// Hands `path` to the configured owner.
pub(crate) fn give(dir: impl AsFd, path: &[u8], own: &Ownership) -> io::Result<()> {
    if own.uid.is_none() && own.gid.is_none() {
        return Ok(());
    }
    chown(dir, path, own.uid, own.gid)
}

pub(crate) fn chown(dir: impl AsFd, path: &[u8], uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let uid = uid.map(fs::Uid::from_raw);
    let gid = gid.map(fs::Gid::from_raw);
    Ok(fs::chownat(dir, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What HEAD names: `Ok` a reference, `Err` something else, for a message.
pub(crate) fn head(git: &OwnedFd) -> io::Result<Result<String, String>> {
    let text = String::from_utf8_lossy(&fsx::read_at(git, b"HEAD")?).trim().to_owned();
    Ok(match text.strip_prefix("ref:") {
        Some(name) => Ok(name.trim().to_owned()),
        None => Err(text),
    })
}

/// The value of a reference, loose or packed.
pub(crate) fn read_ref(git: &OwnedFd, name: &str) -> io::Result<Option<Oid>> {
    if let Some(data) = try_read_at(git, name.as_bytes())? {
        return Ok(String::from_utf8_lossy(&data).trim().parse().ok());
    }
    let Some(packed) = try_read_at(git, b"packed-refs")? else { return Ok(None) };
    let found = packed.split(|b| *b == b'\n').find_map(|line| {
        let (oid, rest) = line.split_at_checked(40)?;
        (rest.strip_prefix(b" ")? == name.as_bytes()).then(|| std::str::from_utf8(oid).ok()?.parse().ok())?
    });
    Ok(found)
}

/// The base and what else we note in `.git/eccfg/state`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct MountState {
    pub base: Option<Base>,
    /// Unresolved conflicts, with what is needed to take one side.
    #[serde(default)]
    pub conflicts: Vec<ConflictRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConflictRecord {
    /// Relative to the repository, in hexadecimal: any bytes.
    pub path: String,
    pub what: String,
    /// Base, ours, theirs: octal mode and object.
    pub sides: [Option<(String, Oid)>; 3],
}

impl ConflictRecord {
    pub(crate) fn path_bytes(&self) -> Vec<u8> {
        hex::decode(&self.path).unwrap_or_default()
    }

    pub(crate) fn side(&self, stage: usize) -> Option<super::manifest::Leaf> {
        let (mode, oid) = self.sides.get(stage)?.as_ref()?;
        Some(super::manifest::Leaf { mode: mode.parse().ok()?, oid: *oid })
    }

    pub(crate) fn public(&self, path: crate::RepoPath) -> ConflictState {
        ConflictState { path, what: self.what.clone() }
    }
}

pub(crate) fn read_state(git: &OwnedFd) -> io::Result<Result<MountState, String>> {
    match try_read_at(git, b"eccfg/state")? {
        Some(data) => Ok(serde_json::from_slice(&data).map_err(|err| err.to_string())),
        None => Ok(Ok(MountState::default())),
    }
}

pub(crate) fn encode_state(state: &MountState) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(state).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// The id of a tree instance: changes whenever a tree is staged, so that a cached manifest can be matched.
pub(crate) fn read_tree_id(git: &OwnedFd) -> io::Result<Option<String>> {
    Ok(try_read_at(git, b"eccfg/tree")?
        .and_then(|data| String::from_utf8(data).ok())
        .map(|id| id.trim().to_owned())
        .filter(|id| !id.is_empty()))
}

/// Names directly in `.git` that are never mirrored: objects are borrowed, the others are ours or momentary.
fn is_private(path: &[u8]) -> bool {
    matches!(path, b"objects" | b"index" | b"eccfg")
        || path.ends_with(b".lock")
        || path.starts_with(b".eccfg-tmp-")
        || path.starts_with(b"fsmonitor--")
}

/// True for references that an update sets itself.
pub(crate) fn is_managed(path: &[u8]) -> bool {
    path == MAIN.as_bytes() || path == ORIGIN_MAIN.as_bytes()
}

/// The user's files below `.git`, with signatures.
pub(crate) type GitFiles = BTreeMap<Vec<u8>, Sig>;

pub(crate) fn user_files(git: &OwnedFd) -> io::Result<GitFiles> {
    let mut files = GitFiles::new();
    collect(git, b"", &mut files)?;
    Ok(files)
}

fn collect(dir: &OwnedFd, prefix: &[u8], files: &mut GitFiles) -> io::Result<()> {
    for (name, _) in list(dir)? {
        let path = if prefix.is_empty() { name.clone() } else { [prefix, b"/", &name].concat() };
        if (prefix.is_empty() && is_private(&path)) || name.ends_with(b".lock") {
            continue;
        }
        let Some(sig) = try_lstat_at(dir, &name)? else { continue };
        match FileType::from_raw_mode(sig.mode) {
            FileType::Directory => match open_dir_at(dir, &name) {
                Ok(sub) => collect(&sub, &path, files)?,
                Err(err) if fsx::absent(&err) => {}
                Err(err) => return Err(err),
            },
            FileType::RegularFile | FileType::Symlink => {
                files.insert(path, sig);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Files larger than this are taken for equal if size and time are; smaller ones are compared byte by byte, since
/// two references differ in content only.
const COMPARE_BYTES: u64 = 64 << 10;

/// True if the file has the same content, mode and owner in both directories.
pub(crate) fn same_file(a: &OwnedFd, a_sig: &Sig, b: &OwnedFd, b_sig: &Sig, path: &[u8]) -> io::Result<bool> {
    if (a_sig.size, a_sig.mode, a_sig.uid, a_sig.gid) != (b_sig.size, b_sig.mode, b_sig.uid, b_sig.gid) {
        return Ok(false);
    }
    if a_sig.size > COMPARE_BYTES {
        return Ok(a_sig.mtime_ns == b_sig.mtime_ns);
    }
    Ok(fsx::read_content_at(a, path)?.1 == fsx::read_content_at(b, path)?.1)
}

/// Makes the user's files below `to` what they are below `from`. Returns what they were there.
pub(crate) fn mirror(from: &OwnedFd, to: &OwnedFd, written: &mut Written) -> io::Result<GitFiles> {
    let wanted = user_files(from)?;
    let present = user_files(to)?;
    for path in present.keys().filter(|path| !wanted.contains_key(*path)) {
        remove_file(to, path)?;
        written.push_unknown();
    }
    for (path, sig) in wanted.iter().filter(|(path, _)| !is_managed(path)) {
        if path.starts_with(b"logs/")
            && present.get(path).is_some_and(|there| there.size < sig.size)
            && append_tail(from, to, path)?
        {
            continue;
        }
        let same = match present.get(path) {
            Some(other) => same_file(from, sig, to, other, path)?,
            None => false,
        };
        if !same {
            copy_file(from, to, path, sig)?;
            written.push_unknown();
        }
    }
    Ok(wanted)
}

/// Brings a log up to a longer one that begins with it. False if it does not.
fn append_tail(from: &OwnedFd, to: &OwnedFd, path: &[u8]) -> io::Result<bool> {
    let (long, short) = (fsx::read_at(from, path)?, fsx::read_at(to, path)?);
    let Some(tail) = long.strip_prefix(short.as_slice()) else { return Ok(false) };
    append(to, path, tail)?;
    Ok(true)
}

/// Not to be synced: a log that lost its last lines is one (and git does not sync its logs either).
fn append(git: &OwnedFd, path: &[u8], data: &[u8]) -> io::Result<()> {
    let flags = fs::OFlags::WRONLY | fs::OFlags::APPEND | fs::OFlags::NOFOLLOW | fs::OFlags::CLOEXEC;
    io::Write::write_all(&mut std::fs::File::from(fs::openat(git, path, flags, fs::Mode::empty())?), data)
}

/// Copies one file with mode, owner and time. A file that vanished meanwhile is nothing to copy.
pub(crate) fn copy_file(from: &OwnedFd, to: &OwnedFd, path: &[u8], sig: &Sig) -> io::Result<()> {
    let data = match fsx::read_content_at(from, path) {
        Ok((_, data)) => data,
        Err(err) if fsx::absent(&err) => return Ok(()),
        Err(err) => return Err(err),
    };
    for dir in fsx::ancestors(path) {
        match try_lstat_at(to, dir)? {
            Some(there) if there.kind() == fsx::Kind::Dir => continue,
            Some(_) => fs::unlinkat(to, dir, AtFlags::empty())?,
            None => {}
        }
        let like = try_lstat_at(from, dir)?.map_or(0o755, |s| s.perm());
        fsx::ensure_dir_at(to, dir, like)?;
        let _ = chown(to, dir, Some(sig.uid), Some(sig.gid));
    }
    if try_lstat_at(to, path)?.is_some_and(|s| s.kind() == fsx::Kind::Dir) {
        fsx::remove_all_at(to, path)?;
    }
    let temp = [path, b".", &fsx::temp_name()].concat();
    if sig.kind() == fsx::Kind::Symlink {
        fs::symlinkat(data.as_slice(), to, temp.as_slice())?;
    } else {
        drop(fsx::create_at(to, &temp, &data, sig.perm())?);
        fs::utimensat(to, temp.as_slice(), &fsx::times(sig.mtime_ns), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let Err(err) = chown(to, &temp, Some(sig.uid), Some(sig.gid)) {
        // Somebody who is not root updates a tree in which root left files.
        tracing::debug!(%err, "cannot keep the owner of a file in .git");
    }
    Ok(fs::renameat(to, temp.as_slice(), to, path)?)
}

pub(crate) fn remove_file(git: &OwnedFd, path: &[u8]) -> io::Result<()> {
    fsx::remove_all_at(git, path)?;
    // Directories that only held this file; git does the same with those of references.
    let mut dir = split(path).0;
    while dir.contains(&b'/') {
        if fs::unlinkat(git, dir, AtFlags::REMOVEDIR).is_err() {
            break;
        }
        dir = split(dir).0;
    }
    Ok(())
}

/// Above this a reflog of ours loses its older half, since it is copied with every update.
const REFLOG_BYTES: usize = 128 << 10;

/// Appends a line to the reflogs of HEAD and `main`.
pub(crate) fn append_reflog(
    git: &OwnedFd,
    old: Oid,
    new: Oid,
    reason: &str,
    own: &Ownership,
    written: &mut Written,
) -> io::Result<()> {
    let seconds = fsx::now_ns() / 1_000_000_000;
    let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = format!("{old} {new} eccfg <eccfg@localhost> {seconds} +0000\teccfg: {reason}\n");
    for path in [&b"logs/HEAD"[..], b"logs/refs/heads/main"] {
        let size = try_lstat_at(git, path)?.map(|sig| sig.size);
        if size.is_some_and(|size| size <= REFLOG_BYTES as u64) {
            append(git, path, line.as_bytes())?;
            continue;
        }
        let mut log = try_read_at(git, path)?.unwrap_or_default();
        let half = log.len() / 2;
        let cut = log[half..].iter().position(|b| *b == b'\n').map_or(0, |i| half + i + 1);
        log.drain(..cut);
        log.extend_from_slice(line.as_bytes());
        put(git, path, &log, own)?;
        written.push_unknown();
    }
    Ok(())
}

/// True if `path` exists.
pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mount() -> Mount {
        Mount {
            name: "default".into(),
            at: String::new(),
            remote_url: "https://h:2027/default.git".into(),
            ca: Some("/ca \"x\".pem".into()),
        }
    }

    #[test]
    fn changing_the_remote_keeps_the_rest() {
        let config = format!("{}[user]\n\tname = A\n[http \"https://other\"]\n\tproxy = p\n", config(&mount()));
        let new = Mount { remote_url: "https://new/default.git".into(), ca: None, ..mount() };
        let changed = with_remote(&config, &new);
        assert!(
            changed.contains("name = A")
                && changed.contains("proxy = p")
                && changed.contains("merge = refs/heads/main")
        );
        assert!(
            changed.contains("https://new/default.git")
                && !changed.contains("https://h:2027")
                && !changed.contains("sslCAInfo")
        );
        assert_eq!(with_remote(&changed, &new), changed);
    }

    #[test]
    fn mirror_copies_removes_and_leaves_ours_alone() {
        let temp = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("a/hooks/x", "new"),
            ("a/HEAD", "h"),
            ("a/index", "i"),
            ("b/HEAD", "h"),
            ("b/refs/stash", "s"),
            ("b/index", "j"),
            ("b/refs/heads", "f"),
        ] {
            let path = temp.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        std::fs::create_dir_all(temp.path().join("a/refs/heads")).unwrap();
        std::fs::write(temp.path().join("a/refs/heads/topic"), "t").unwrap();
        let [a, b] = ["a", "b"].map(|n| fsx::open_dir(&temp.path().join(n)).unwrap());
        mirror(&a, &b, &mut Written::default()).unwrap();
        let read = |p: &str| std::fs::read_to_string(temp.path().join(p)).ok();
        assert_eq!(read("b/hooks/x").as_deref(), Some("new"));
        assert_eq!(read("b/refs/heads/topic").as_deref(), Some("t"));
        assert_eq!((read("b/refs/stash"), read("b/index").as_deref()), (None, Some("j")));
    }
}
