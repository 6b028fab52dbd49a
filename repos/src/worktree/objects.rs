//! Objects of a mount: the shared store, and what plain `git` puts into the tree's own object directory.
//!
//! Both trees have a real `.git/objects` that borrows from the store (`info/alternates`), so that every tool that
//! knows git can read it. What plain `git` writes lands in the live tree's directory; [`harvest`] links it into the
//! store before the trees change places, since the other tree borrows from the store only.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use gix::objs::Write as _;
use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use super::error::{At, Result, WorktreeError};
use super::fsx::{self, list, open_dir_at};
use crate::{Oid, Store};

/// The name that git gives a blob with this content.
pub(crate) fn blob_oid(data: &[u8]) -> Oid {
    match gix::objs::compute_hash(gix::hash::Kind::Sha1, gix::objs::Kind::Blob, data) {
        Ok(id) => id.into(),
        // Only content made to collide gets here. It has no name in git; nothing else can have this one.
        Err(_) => Oid::NULL,
    }
}

/// Stores a blob as a loose object.
pub(crate) fn write_blob(store: &Store, data: &[u8]) -> Result<Oid> {
    write_object(store, gix::objs::Kind::Blob, data)
}

pub(crate) fn write_object(store: &Store, kind: gix::objs::Kind, data: &[u8]) -> Result<Oid> {
    let loose = gix::odb::loose::Store::at(store.objects_dir(), gix::hash::Kind::Sha1);
    let id = loose.write_buf(kind, data).map_err(|err| WorktreeError::Io {
        action: "write an object to",
        path: store.objects_dir().to_owned(),
        source: io::Error::other(err.to_string()),
    })?;
    Ok(id.into())
}

/// Links the objects of a tree's own object directory into the store. Loose ones are then removed from the tree
/// (git finds them through the alternate, as after `git prune-packed`); packs stay, in case one is being read.
pub(crate) fn harvest(git: &OwnedFd, store: &Store) -> Result<usize> {
    let path = store.objects_dir();
    harvest_into(git, path).at("collect new objects into", path)
}

fn harvest_into(git: &OwnedFd, store: &Path) -> io::Result<usize> {
    let objects = match open_dir_at(git, b"objects") {
        Ok(fd) => fd,
        Err(err) if fsx::absent(&err) => return Ok(0),
        Err(err) => return Err(err),
    };
    let target = fsx::open_dir(store)?;
    let mut count = 0;
    for (name, kind) in list(&objects)? {
        if kind == FileType::Directory && name.len() == 2 && name.iter().all(u8::is_ascii_hexdigit) {
            count += harvest_fan(&objects, &target, &name)?;
        } else if name == b"pack" {
            count += harvest_packs(&objects, &target)?;
        }
    }
    Ok(count)
}

fn harvest_fan(objects: &OwnedFd, target: &OwnedFd, fan: &[u8]) -> io::Result<usize> {
    let from = open_dir_at(objects, fan)?;
    let names: Vec<_> =
        list(&from)?.into_iter().filter(|(n, _)| n.len() == 38 && n.iter().all(u8::is_ascii_hexdigit)).collect();
    if names.is_empty() {
        return Ok(0);
    }
    fsx::ensure_dir_at(target, fan, 0o755)?;
    let to = open_dir_at(target, fan)?;
    for (name, _) in &names {
        match link_or_copy(&from, &to, name).and_then(|()| Ok(fs::unlinkat(&from, name.as_slice(), AtFlags::empty())?))
        {
            // Somebody else collects the same object at the same time.
            Err(err) if fsx::absent(&err) => {}
            other => other?,
        }
    }
    Ok(names.len())
}

fn harvest_packs(objects: &OwnedFd, target: &OwnedFd) -> io::Result<usize> {
    let from = open_dir_at(objects, b"pack")?;
    fsx::ensure_dir_at(target, b"pack", 0o755)?;
    let to = open_dir_at(target, b"pack")?;
    let mut names: Vec<_> = list(&from)?.into_iter().map(|(n, _)| n).filter(|n| n.starts_with(b"pack-")).collect();
    // The index makes a pack visible, so it comes last.
    names.sort_by_key(|n| n.ends_with(b".idx"));
    let mut count = 0;
    for name in names.iter().filter(|n| n.ends_with(b".pack") || n.ends_with(b".idx")) {
        if fsx::try_lstat_at(&to, name)?.is_none() {
            link_or_copy(&from, &to, name)?;
            count += 1;
        }
    }
    Ok(count)
}

fn link_or_copy(from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match fs::linkat(from, name, to, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(_) => {
            let data = fsx::read_at(from.as_fd(), name)?;
            fsx::write_atomic_at(to, name, &data, 0o444, false)
        }
    }
}
