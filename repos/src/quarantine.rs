//! Packs from elsewhere, before they are trusted.
//!
//! A received pack is written beside the store, not into it. Its objects can be read and checked through the
//! quarantine's reader; the store sees them only when the pack is installed. Dropping the quarantine removes
//! everything.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::check::{CheckError, TreeRules};
use crate::reader::Reader;
use crate::{Error, Oid, PackError, Result, Store};

/// What a pack may demand of us. The defaults suit a configuration repository with room to spare.
#[derive(Debug, Clone)]
pub struct PackLimits {
    /// The pack as it comes over the wire.
    pub max_bytes: u64,
    /// Objects in it.
    pub max_objects: u32,
    /// The size of a single object, unpacked. Objects are held in memory one at a time, a few for deltas.
    pub max_object_bytes: u64,
    /// All objects together, unpacked: what resolving the deltas will cost in time.
    pub max_unpacked_bytes: u64,
    /// How many deltas may stand upon each other.
    pub max_delta_depth: u32,
}

impl Default for PackLimits {
    fn default() -> Self {
        PackLimits {
            // The 200 MB push that the design names, and as much again.
            max_bytes: 512 << 20,
            // About 50 MB of memory for the scanner's notes.
            max_objects: 1_000_000,
            max_object_bytes: 64 << 20,
            // Some 20 seconds of one core.
            max_unpacked_bytes: 8 << 30,
            // git packs at 50 and accepts 4095.
            max_delta_depth: 4095,
        }
    }
}

impl PackLimits {
    /// For packs that come from our own log, where the limits were applied before.
    pub fn unlimited() -> PackLimits {
        PackLimits {
            max_bytes: u64::MAX,
            max_objects: u32::MAX,
            max_object_bytes: u64::MAX,
            max_unpacked_bytes: u64::MAX,
            max_delta_depth: u32::MAX,
        }
    }

    /// How much to read and write at a time: small packs, which are most, should not pay for large buffers.
    pub(crate) fn buffer_len(&self) -> usize {
        self.max_bytes.clamp(1 << 10, 64 << 10) as usize
    }
}

/// Larger packs are removed by a thread of their own: file systems take their time for them, which whoever drops a quarantine may not have.
const REMOVE_HERE_BYTES: u64 = 1 << 20;

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Objects in the pack, completed bases included.
    pub objects: u32,
    /// The self-contained pack; `None` if it was empty.
    pub pack_path: Option<PathBuf>,
    /// The size of that file.
    pub bytes: u64,
}

/// A place for a pack that is not trusted yet.
pub struct Quarantine {
    store: Store,
    directory: PathBuf,
    pack: Option<PathBuf>,
    /// The size of that.
    bytes: u64,
    odb: Option<Arc<gix::odb::Store>>,
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        let directory = std::mem::take(&mut self.directory);
        let leftover = Leftover { store: self.store.clone(), directory, _odb: self.odb.take() };
        if self.bytes > REMOVE_HERE_BYTES {
            // Without a thread it goes here and now, as a small one does.
            let thread = std::thread::Builder::new().name("quarantine".into());
            drop(thread.spawn(move || drop(leftover)));
        }
    }
}

/// What a quarantine leaves. Goes when it is dropped.
struct Leftover {
    store: Store,
    directory: PathBuf,
    /// Has the pack mapped.
    _odb: Option<Arc<gix::odb::Store>>,
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if empty(&self.directory.join("pack")).is_ok() && self.store.keep_spare(&self.directory) {
            return;
        }
        if let Err(err) = fs::remove_dir_all(&self.directory) {
            tracing::debug!(directory = %self.directory.display(), %err, "could not remove a quarantine; it goes when the store is closed");
        }
    }
}

impl Quarantine {
    pub(crate) fn new(store: Store, directory: PathBuf) -> Result<Quarantine> {
        let packs = directory.join("pack");
        fs::create_dir_all(&packs).map_err(Error::io("create", &packs))?;
        Ok(Quarantine::within(store, directory))
    }

    /// In a directory that has nothing but an empty `pack`.
    pub(crate) fn within(store: Store, directory: PathBuf) -> Quarantine {
        Quarantine { store, directory, pack: None, bytes: 0, odb: None }
    }

    /// Receives a pack: streams it to disk, checks every object, completes a thin pack. Bytes after the pack are an error.
    /// A quarantine holds one pack; receiving again replaces it.
    pub fn receive(&mut self, pack: &mut dyn Read, limits: &PackLimits) -> Result<Received, PackError> {
        let packs = self.directory.join("pack");
        let store_failed = |err: Error| PackError::Io { action: "store", source: std::io::Error::other(err) };
        let bases = self.store.reader().map_err(store_failed)?;
        self.odb = None;
        if let Some(old) = self.pack.take() {
            let storing = |source| PackError::Io { action: "store", source };
            fs::remove_file(old.with_extension("idx")).and_then(|()| fs::remove_file(old)).map_err(storing)?;
        }
        let staged = self.store.stage(pack, &packs.join("incoming"), limits, Some(&bases))?;
        let Some(staged) = staged.pack else {
            return Ok(Received { objects: 0, pack_path: None, bytes: 0 });
        };
        let storing = |source| PackError::Io { action: "store", source };
        let pack_path = packs.join(staged.id.file_name("pack"));
        fs::rename(&staged.pack, &pack_path).map_err(storing)?;
        fs::rename(&staged.index, pack_path.with_extension("idx")).map_err(storing)?;
        self.odb = Some(Arc::new(open_odb(&self.directory).map_err(storing)?));
        (self.pack, self.bytes) = (Some(pack_path.clone()), staged.bytes);
        Ok(Received { objects: staged.objects, pack_path: Some(pack_path), bytes: staged.bytes })
    }

    /// Sees the store and what was received.
    pub fn reader(&self) -> Result<Reader> {
        let reader = self.store.reader()?;
        Ok(match &self.odb {
            Some(odb) => reader.with_received(odb),
            None => reader,
        })
    }

    /// Checks what `new_tips` bring that `old_tips` did not have: everything is there, of the right kind, and no tree
    /// holds what could harm a checkout. Tips may be tags, too; null ids among them are passed over.
    pub fn check_new(&self, old_tips: &[Oid], new_tips: &[Oid], rules: &TreeRules) -> Result<(), CheckError> {
        self.reader()?.check_new(old_tips, new_tips, rules)
    }

    /// The received pack, for a log entry or [`Store::install_pack_file`].
    pub fn pack_file(&self) -> Option<&Path> {
        self.pack.as_deref()
    }

    /// The store that this stands beside.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

fn empty(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn open_odb(directory: &Path) -> std::io::Result<gix::odb::Store> {
    let options = gix::odb::store::init::Options {
        // One pack, ever.
        slots: gix::odb::store::init::Slots::Given(4),
        ..gix::odb::store::init::Options::default()
    };
    gix::odb::Store::at_opts(directory.to_owned(), gix::hash::Kind::Sha1, &mut std::iter::empty(), options)
}
