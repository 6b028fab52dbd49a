//! Files of the second tree that are not wanted any more, on their way out.
//!
//! Freeing a file's blocks can take milliseconds (a file system that is mounted with `discard` and has no journal tells the disk at
//! once), and an update has them to wait for. So what an update replaces is only renamed out of the way, and removed when the update
//! is through. What is left after a crash is removed by the next run.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags};

use super::error::{At, Result};
use super::fsx;
use super::inner::Inner;

/// `trash/` in the state directory.
pub(crate) struct Trash {
    dir: Option<OwnedFd>,
}

const TRASH: &str = "trash";

impl Trash {
    /// Takes a file that was compared with what is known of it. Removes it at once where it cannot be renamed.
    pub(crate) fn take(&self, dir: impl AsFd, name: &[u8]) -> std::io::Result<()> {
        let renamed = self.dir.as_ref().map(|trash| fs::renameat(&dir, name, trash, fsx::unique()));
        match renamed {
            Some(Ok(())) => Ok(()),
            _ => Ok(fs::unlinkat(dir, name, AtFlags::empty())?),
        }
    }
}

impl Inner {
    pub(crate) fn trash(&self) -> Trash {
        let dir = fsx::ensure_dir_at(&self.state_fd, TRASH.as_bytes(), 0o700)
            .and_then(|()| fsx::open_dir_at(&self.state_fd, TRASH.as_bytes()));
        Trash { dir: dir.ok() }
    }

    /// For when nobody waits. The directory stays: the next update would have to make it.
    pub(crate) fn empty_trash(&self) -> Result<()> {
        let Some(dir) = self.trash().dir else { return Ok(()) };
        let path = self.state_dir.join(TRASH);
        for (name, _) in fsx::list(&dir).at("list", &path)? {
            fsx::remove_all_at(&dir, &name).at("remove", &path)?;
        }
        Ok(())
    }
}
