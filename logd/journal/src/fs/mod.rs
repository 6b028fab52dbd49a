//! Everything that the journal asks of the system: files, directories, locks, the clock.
//!
//! A seam, so that the crash tests can stop the world after every single call, cut the last write at every byte, and lose or reorder what was
//! not synced (`simulation`). It has no more than the journal needs, and every call is one that a power loss can come after.

#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod system;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

use dir_lock::{LockError, Owner};

pub use system::System;

/// Whatever is held until it is dropped.
pub trait Held: Send + Sync + Debug {}

/// The file system and the clock.
pub trait Fs: Send + Sync + Debug {
    /// Makes a directory and its missing parents, durably.
    fn create_dirs(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a file that must not exist yet.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn FsFile>>;
    /// Opens a file that exists.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn FsFile>>;
    /// Renames, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the directory for one writer, or says who has it.
    fn lock_dir(&self, dir: &Path, owner: &Owner) -> Result<Box<dyn Held>, LockError>;
    /// Takes a short lock that processes wait for.
    fn lock_file(&self, path: &Path) -> io::Result<Box<dyn Held>>;
    /// An id that is the same as long as the page cache lives.
    fn boot_id(&self) -> String;
    /// Microseconds since 1970.
    fn now_us(&self) -> u64;
    /// What nobody else will ever draw.
    fn random(&self) -> [u8; 16];
}

/// An open file.
pub trait FsFile: Send + Sync + Debug {
    /// Writes some of the bytes at an offset and says how many.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Reads some bytes at an offset and says how many; 0 at the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Makes the content and the length durable; not the name.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// The length.
    fn length(&self) -> io::Result<u64>;
}

/// Writes all bytes, however many calls it takes.
pub(crate) fn write_all_at(file: &dyn FsFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills the buffer as far as the file goes, and says how far.
pub(crate) fn read_full_at(file: &dyn FsFile, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
