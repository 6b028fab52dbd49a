//! Putting what an update wrote on disk, in one go.
//!
//! A new file costs the file system a commit of its journal when it is synced, and that is what a sync waits for. Files that
//! were all handed to the disk before the first wait share one commit; synced one after the other, each has its own. So
//! everything an update has written is collected, and synced together right before the exchange.
//!
//! # What is promised, and what it takes
//! * After a `kill -9` nothing has to be on disk: the kernel has it. The journal file and the tree's id tell the next run where
//!   the update was.
//! * After power loss the path has the old tree or the new one, whole. So all that the new tree consists of, and the journal that
//!   says "ready", are on disk before the exchange; the exchange itself, and the emptied journal, before the displaced tree is touched
//!   again ([`Inner::settle`]). In between, either tree may come back, and both are whole.
//! * The second tree is private and is not synced while it is patched. What a manifest says about it counts only as long as the
//!   machine runs ([`boot_id`]); afterwards it is made anew.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs;
use rustix::io::Errno;

use super::error::{At, Result};
use super::inner::Inner;

/// What has to be synced.
#[derive(Default)]
pub(crate) struct Written {
    files: Vec<OwnedFd>,
    /// More than we want to sync one by one (or keep open): the whole file system is synced.
    many: bool,
}

/// Up to this many files are synced one by one; beyond it one `syncfs` is cheaper, and descriptors are finite.
const SYNC_EACH: usize = 32;
/// The waits overlap, so that the disk is told to flush once for several of them. A file system without a journal writes several
/// blocks per file, one after the other.
const THREADS: usize = 8;

impl Written {
    /// A file, or a directory in which names came or went.
    pub(crate) fn push(&mut self, fd: OwnedFd) {
        if self.files.len() < SYNC_EACH {
            self.files.push(fd);
        } else {
            self.many = true;
        }
    }

    /// Something of which no descriptor is kept.
    pub(crate) fn push_unknown(&mut self) {
        self.many = true;
    }

    fn push_path(&mut self, path: &Path) -> io::Result<()> {
        match std::fs::File::open(path) {
            Ok(file) => self.push(file.into()),
            // Consolidated meanwhile, which syncs what takes its place.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
        Ok(())
    }

    fn sync(&self, root: &OwnedFd) -> io::Result<()> {
        if self.many {
            return Ok(fs::syncfs(root)?);
        }
        self.files.iter().for_each(start_writing);
        let wait = |part: &[OwnedFd]| part.iter().try_for_each(fs::fdatasync);
        if self.files.len() <= 1 {
            return Ok(wait(&self.files)?);
        }
        std::thread::scope(|scope| {
            let parts = self.files.chunks(self.files.len().div_ceil(THREADS));
            let threads: Vec<_> = parts.map(|part| scope.spawn(move || wait(part))).collect();
            threads.into_iter().try_for_each(|t| t.join().unwrap_or(Err(Errno::IO)))
        })?;
        Ok(())
    }
}

/// Hands the file's pages to the disk without waiting. A failure is told by the sync that follows.
fn start_writing(file: &OwnedFd) {
    #[allow(unsafe_code)] // Neither rustix nor nix has this call; it takes a descriptor and plain numbers.
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the kernel writes nothing to our memory.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

impl Inner {
    /// Everything that was written, with the packs that the stores have taken in.
    pub(crate) fn sync_all(&self, mut written: Written) -> Result<()> {
        for store in &self.stores {
            let unsynced = store.take_unsynced()?;
            if unsynced.is_empty() {
                continue;
            }
            let packs = store.objects_dir().join("pack");
            for path in unsynced.iter().chain([&packs]) {
                written.push_path(path).at("open", path)?;
            }
        }
        written.sync(&self.state_fd).at("sync", &self.root).inspect_err(|_| {
            // The kernel reports a failed write once; whoever syncs next would be told that all is well.
            self.stores.iter().for_each(crate::Store::note_failed_sync);
        })
    }

    /// The exchange and whatever else happened to the names of the two trees.
    pub(crate) fn sync_names(&self) -> Result<()> {
        fs::fsync(&self.parent_fd).at("sync", &self.root)?;
        fs::fsync(&self.state_fd).at("sync", &self.state_dir)
    }
}

/// Which run of the machine this is; the same in every container on it. Empty where that cannot be told, and then it never changes.
pub(crate) fn boot_id() -> &'static [u8; 16] {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    ID.get_or_init(|| {
        let text = super::fault::boot_id()
            .or_else(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok())
            .unwrap_or_default();
        let mut id = [0; 16];
        let _ = hex::decode_to_slice(text.trim().replace('-', ""), &mut id);
        id
    })
}
