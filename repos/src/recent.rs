//! Objects that came lately and lie in memory.
//!
//! Nearly every pack that a log brings is one commit, its trees and a small file. As a pair of files each of them would cost more than all
//! the rest of applying its entry, and every reader would have to find and map one more index. So such a pack is checked like any other and
//! its objects are held here, where all readers of the store see them, until [`Store::sync`] writes them as one pack.
//!
//! What always holds: an object leaves only after its pack is on the disk and visible, so a reader that looks here first and then into the
//! packs finds it at every instant; a pack is synced before it gets its name, so that after a power cut there is no damaged file under a name
//! that nobody will write again. Until then the log is the durable copy, as it is for every pack that is installed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::oid::PackId;
use crate::pack::{self, IndexEntry, PackWriter, Staged};
use crate::quarantine::PackLimits;
use crate::reader::ObjectKind;
use crate::{Error, Oid, PackError, Result, Store};

/// Larger packs become files at once: they are rare, and memory is for what is read again soon.
const HOLD_PACK_BYTES: usize = 256 << 10;
/// … and so do packs that unpack to more than this.
const HOLD_UNPACKED_BYTES: usize = 1 << 20;
/// Held in one store. A checkpoint comes long before; when it does not, whoever brings the next pack writes them.
const HELD_BYTES: usize = 16 << 20;
/// What an object costs beside its bytes.
const OVERHEAD_BYTES: usize = 200;

/// What a store holds in memory.
#[derive(Default)]
pub(crate) struct Recent {
    held: RwLock<Held>,
    /// One writes at a time; the others then find nothing left.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Held {
    objects: HashMap<Oid, Object>,
    /// In the order in which they came, which is a good order for a pack.
    order: Vec<Oid>,
    bytes: usize,
}

#[derive(Clone)]
struct Object {
    kind: ObjectKind,
    data: Bytes,
    /// As it lies in its pack, header and all. No deltas, so it can lie in any.
    entry: Bytes,
}

impl Object {
    fn weight(&self) -> usize {
        self.data.len() + self.entry.len() + OVERHEAD_BYTES
    }
}

impl Recent {
    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: Oid) -> Option<(ObjectKind, Bytes)> {
        self.read().objects.get(&id).map(|object| (object.kind, object.data.clone()))
    }

    pub(crate) fn header(&self, id: Oid) -> Option<(ObjectKind, u64)> {
        self.read().objects.get(&id).map(|object| (object.kind, object.data.len() as u64))
    }

    /// Commits whose ids begin with these hexadecimal digits.
    pub(crate) fn commits_with_prefix(&self, hex: &str) -> Vec<Oid> {
        let hex = hex.to_ascii_lowercase();
        let held = self.read();
        let commits = held.objects.iter().filter(|(_, object)| object.kind == ObjectKind::Commit);
        commits.map(|(id, _)| *id).filter(|id| id.to_string().starts_with(&hex)).collect()
    }

    fn bytes(&self) -> usize {
        self.read().bytes
    }

    fn put(&self, objects: &[(Oid, Object)]) {
        let mut held = self.write();
        for (id, object) in objects {
            if let Entry::Vacant(place) = held.objects.entry(*id) {
                place.insert(object.clone());
                held.order.push(*id);
                held.bytes += object.weight();
            }
        }
    }

    /// Everything, in order.
    fn entries(&self) -> Vec<(Oid, Bytes)> {
        let held = self.read();
        held.order.iter().filter_map(|id| Some((*id, held.objects.get(id)?.entry.clone()))).collect()
    }

    /// Forgets what came first.
    fn forget(&self, count: usize) {
        let mut held = self.write();
        let Held { objects, order, bytes } = &mut *held;
        for object in order.drain(..count).filter_map(|id| objects.remove(&id)) {
            *bytes -= object.weight();
        }
        // A burst shall not cost its memory for ever.
        objects.shrink_to(2 * order.len());
    }
}

/// A small pack without deltas, checked and unpacked: what a store can hold in memory.
pub struct WholePack {
    id: PackId,
    objects: Vec<(Oid, Object)>,
}

impl WholePack {
    /// Checks and unpacks a self-contained pack of the log. Touches no file. `None` says that it has deltas or is too large to be held, as far as
    /// it was looked at.
    pub fn scan(pack: &Bytes) -> Result<Option<WholePack>, PackError> {
        if pack.len() > HOLD_PACK_BYTES {
            return Ok(None);
        }
        // The first delta, or the first byte too many, is the end of it: somebody else looks at all of that pack.
        let limits = PackLimits {
            max_bytes: pack.len() as u64,
            max_unpacked_bytes: HOLD_UNPACKED_BYTES as u64,
            max_delta_depth: 0,
            ..PackLimits::unlimited()
        };
        let scanned = match pack::scan_keeping(&mut pack.as_ref(), &limits) {
            Err(PackError::Limit { .. }) => return Ok(None),
            scanned => scanned?,
        };
        Ok(whole_objects(pack, &scanned).map(|objects| WholePack { id: scanned.id, objects }))
    }

    /// What it takes of a store's memory, at most.
    pub fn weight(&self) -> usize {
        self.objects.iter().map(|(_, object)| object.weight()).sum()
    }
}

impl Store {
    /// Takes a self-contained pack of the log: checks it and makes its objects visible at once. A small one without deltas is held in memory
    /// and written with others by [`Store::sync`]; every other one is installed. Again is harmless. Not synced.
    pub fn hold_pack(&self, pack: &Bytes) -> Result<PackId> {
        self.refuse_after_failed_sync()?;
        match WholePack::scan(pack)? {
            Some(pack) => self.hold(&pack),
            None => self.install_pack(pack),
        }
    }

    /// The same with a pack that was unpacked before. Touches no file if the store [has room](Self::has_room) for it.
    pub fn hold(&self, pack: &WholePack) -> Result<PackId> {
        self.refuse_after_failed_sync()?;
        self.recent().put(&pack.objects);
        if self.recent().bytes() > HELD_BYTES {
            self.write_held()?;
        }
        Ok(pack.id)
    }

    /// Whether packs that weigh so much can be held before what is held has to be written.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.recent().bytes().saturating_add(bytes) <= HELD_BYTES
    }

    /// Writes what is held in memory as one pack, which is synced but for its name.
    pub fn write_held(&self) -> Result<()> {
        let _alone = self.recent().alone();
        let entries = self.recent().entries();
        if entries.is_empty() {
            return Ok(());
        }
        let staged = self.stage_held(&entries)?;
        self.publish_synced(&staged)?;
        self.recent().forget(entries.len());
        Ok(())
    }

    fn stage_held(&self, entries: &[(Oid, Bytes)]) -> Result<Staged> {
        let stem = self.staging_path("held")?;
        let (path, index_path) = (stem.with_extension("pack"), stem.with_extension("idx"));
        let writing = |source| Error::io("write", &path)(source);
        let file = pack::create_pack_file(&path).map_err(writing)?;
        let count = u32::try_from(entries.len()).expect("memory holds fewer");
        let file = InPieces { store: self, file, unsynced: 0 };
        let mut writer = PackWriter::new(BufWriter::with_capacity(64 << 10, file), count).map_err(writing)?;
        let mut index = Vec::with_capacity(entries.len());
        for (id, entry) in entries {
            let offset = writer.offset();
            let crc32 = writer.entry(entry).map_err(writing)?;
            index.push(IndexEntry { id: *id, offset, crc32 });
        }
        let bytes = writer.offset() + pack::TRAILER_BYTES as u64;
        let (id, file) = writer.finish().map_err(writing)?;
        let InPieces { file, .. } = file.into_inner().map_err(|error| writing(error.into_error()))?;
        self.sync_new(&file).map_err(writing)?;
        let mut file = pack::create_pack_file(&index_path).map_err(Error::io("write", &index_path))?;
        let written = pack::write_index(&mut file, &mut index, id).and_then(|()| file.flush());
        written.and_then(|()| self.sync_new(&file)).map_err(Error::io("write", &index_path))?;
        Ok(Staged { id, pack: path, index: index_path, objects: count, bytes })
    }

    fn sync_new(&self, file: &File) -> std::io::Result<()> {
        file.sync_all().inspect_err(|_| self.note_failed_sync())
    }
}

/// A file that is synced while it is written: one sync of all of it would hold up every other one on the same disk.
struct InPieces<'s> {
    store: &'s Store,
    file: File,
    unsynced: usize,
}

/// What one sync writes.
const SYNC_BYTES: usize = 256 << 10;

impl Write for InPieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.store.sync_new(&self.file)?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The pack's objects as they are held; `None` if it has deltas.
fn whole_objects(pack: &Bytes, scanned: &pack::Scanned) -> Option<Vec<(Oid, Object)>> {
    // A copy, because the original is part of a larger buffer that shall not live as long.
    let pack = Bytes::copy_from_slice(pack);
    let ends = scanned.entries.iter().skip(1).map(|entry| entry.offset);
    let ends = ends.chain([scanned.bytes - pack::TRAILER_BYTES as u64]);
    let parts = scanned.entries.iter().zip(ends).zip(&scanned.kept);
    let object = |((entry, end), (kind, data)): ((&pack::ScannedEntry, u64), &(ObjectKind, Bytes))| {
        let entry_bytes = pack.slice(usize::try_from(entry.offset).ok()?..usize::try_from(end).ok()?);
        Some((entry.whole_id()?, Object { kind: *kind, data: data.clone(), entry: entry_bytes }))
    };
    parts.map(object).collect()
}
