//! One repository on disk.
//!
//! A store is a bare git repository whose objects live in packs. Packs are only ever added, or replaced by one that
//! has the same objects, so readers never wait. Installing a pack twice is harmless, which makes applying a log
//! entry again harmless. Nothing is synced to disk when it is installed: the log is the durable copy until
//! [`Store::sync`] has returned. Small packs of the log are not even written before that (see [`crate::recent`]).
//!
//! Whatever is being written lies in the store's own directory under `quarantine/` first, which is locked as long as the
//! store is open; what a crash leaves there has no lock, and the next one to open the store removes it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::FlockOperation;

use crate::oid::PackId;
use crate::pack::{self, Staged};
use crate::quarantine::{PackLimits, Quarantine};
use crate::reader::Reader;
use crate::recent::Recent;
use crate::staging::{Staging, lock_entrance, remove_stale};
use crate::{Error, PackError, RefMap, RefName, Result};

/// Packs that one store can hold at a time before gix gives up ("too few index slots"). Consolidation keeps them well below.
const PACK_SLOTS: u16 = 4096;
/// From so many files on, one syncfs is cheaper than a sync of each.
const SYNC_ALL_FROM_FILES: usize = 32;
/// A consolidation runs at most every few seconds, a round of links takes milliseconds.
const LINK_TRIES: usize = 5;

/// One repository on disk. Clones share it; all threads may use it at once.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    objects: PathBuf,
    /// Exchanged for a fresh one when a pack that it may have mapped is gone for a reason.
    odb: Mutex<Arc<gix::odb::Store>>,
    /// Objects that were read and were not what their name says.
    damaged_reads: Arc<AtomicU64>,
    recent: Arc<Recent>,
    staging: Mutex<Option<Staging>>,
    names: AtomicU64,
    /// Files that were installed and may not be on the disk yet.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    syncing: Mutex<()>,
    /// A sync failed. The kernel may have forgotten what it could not write, so a later success would mean nothing.
    sync_failed: AtomicBool,
}

fn is_read_only(err: &std::io::Error) -> bool {
    matches!(err.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
}

/// A pack that is installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackInfo {
    /// Its name.
    pub id: PackId,
    /// Its file.
    pub path: PathBuf,
    /// The size of that.
    pub bytes: u64,
    /// Objects in it.
    pub objects: u32,
}

impl Store {
    /// Makes an empty repository. An existing one is opened.
    pub fn init(path: &Path) -> Result<Store> {
        for directory in ["objects/pack", "objects/info", "refs/heads", "refs/tags"] {
            let directory = path.join(directory);
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        }
        // gc is ours: git's own would drop what only the replicated state refers to.
        let config = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n";
        write_if_missing(&path.join("config"), config.as_bytes())?;
        write_if_missing(&path.join("HEAD"), b"ref: refs/heads/main\n")?;
        File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("sync", path))?;
        Store::open(path)
    }

    /// Opens a repository and removes what crashed writers left behind.
    pub fn open(path: &Path) -> Result<Store> {
        let reason = |reason| Error::NotAStore { path: path.to_owned(), reason };
        let root = path.canonicalize().map_err(Error::io("open", path))?;
        if !root.join("HEAD").is_file() {
            return Err(reason("it has no HEAD"));
        }
        let objects = root.join("objects");
        if !objects.is_dir() {
            return Err(reason("it has no objects"));
        }
        Store::at(root, objects)
    }

    /// A store that is only an object directory: the shared one of working copies. It is created if it is missing.
    /// [`Store::project_refs`] does not work on it.
    pub fn open_objects(objects_dir: &Path) -> Result<Store> {
        for directory in ["pack", "info"] {
            let directory = objects_dir.join(directory);
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        }
        let objects = objects_dir.canonicalize().map_err(Error::io("open", objects_dir))?;
        Store::at(objects.clone(), objects)
    }

    fn at(root: PathBuf, objects: PathBuf) -> Result<Store> {
        // An object directory is shared with plain git, whose files are not ours to judge.
        let packs = (root != objects).then(|| objects.join("pack"));
        match remove_stale(&root.join("quarantine"), packs.as_deref()) {
            // Somebody who may only read, looking at another user's working copy: there is nothing to tidy up for him.
            Err(Error::Io { source, .. }) if is_read_only(&source) => {}
            other => other?,
        }
        let odb = open_odb(&objects)?;
        Ok(Store {
            inner: Arc::new(Inner {
                root,
                objects,
                odb: Mutex::new(odb),
                damaged_reads: Arc::default(),
                recent: Arc::default(),
                staging: Mutex::new(None),
                names: AtomicU64::new(0),
                unsynced: Mutex::new(BTreeSet::new()),
                syncing: Mutex::new(()),
                sync_failed: AtomicBool::new(false),
            }),
        })
    }

    /// The repository's directory (for [`Store::open_objects`], the object directory).
    pub fn path(&self) -> &Path {
        &self.inner.root
    }

    /// The directory of its objects.
    pub fn objects_dir(&self) -> &Path {
        &self.inner.objects
    }

    /// A view for one thread.
    pub fn reader(&self) -> Result<Reader> {
        Ok(Reader::of(lock(&self.inner.odb).clone(), self.inner.recent.clone(), self.inner.damaged_reads.clone()))
    }

    /// How often an object was read that was not what its name says: a reason to look at all of them.
    pub fn damaged_reads(&self) -> u64 {
        self.inner.damaged_reads.load(Ordering::Relaxed)
    }

    /// Forgets what was mapped. Readers made from here on see the files that are there now.
    pub(crate) fn reopen(&self) -> Result<()> {
        *lock(&self.inner.odb) = open_odb(&self.inner.objects)?;
        Ok(())
    }

    /// A place to receive a pack in.
    pub fn quarantine(&self) -> Result<Quarantine> {
        let spare = lock(&self.inner.staging).as_mut().and_then(Staging::take_spare);
        match spare {
            Some(directory) => Ok(Quarantine::within(self.clone(), directory)),
            None => Quarantine::new(self.clone(), self.staging_path("received")?),
        }
    }

    /// Takes back the emptied directory of a quarantine; false if it is not needed.
    pub(crate) fn keep_spare(&self, directory: &Path) -> bool {
        lock(&self.inner.staging).as_mut().is_some_and(|staging| staging.keep_spare(directory))
    }

    /// Installs a self-contained pack: checks and indexes it and makes it visible at once. Again is harmless. Not synced.
    ///
    /// It is written a second time if the file that is there is not the same to the last byte: after a power cut it may not be.
    pub fn install_pack(&self, pack: &[u8]) -> Result<PackId> {
        if let Some(id) = pack::claimed_id(pack)
            && self.is_installed(id, &mut { pack }, pack.len() as u64)
        {
            self.remember_unsynced(id);
            return Ok(id);
        }
        let limits = PackLimits { max_bytes: pack.len() as u64, ..PackLimits::unlimited() };
        self.install_from(&mut { pack }, &limits)
    }

    /// The same from a file, which is left where it is and never held in memory as a whole.
    pub fn install_pack_file(&self, pack: &Path) -> Result<PackId> {
        if let Some(id) = self.adopt(pack)? {
            return Ok(id);
        }
        let open = || File::open(pack).map_err(Error::io("open", pack));
        let (id, bytes) = pack::claimed_id_of_file(&open()?).map_err(Error::io("read", pack))?;
        if self.is_installed(id, &mut BufReader::new(open()?), bytes) {
            self.remember_unsynced(id);
            return Ok(id);
        }
        self.install_from(&mut open()?, &PackLimits::unlimited())
    }

    /// A pack that our own quarantine has checked and indexed needs only to be linked.
    fn adopt(&self, pack: &Path) -> Result<Option<PackId>> {
        let ours = lock(&self.inner.staging).as_ref().is_some_and(|staging| pack.starts_with(&staging.directory));
        let index = pack.with_extension("idx");
        if !ours || !index.is_file() {
            return Ok(None);
        }
        let (id, bytes) =
            File::open(pack).and_then(|file| pack::claimed_id_of_file(&file)).map_err(Error::io("read", pack))?;
        let stem = self.staging_path("adopted")?;
        let staged =
            Staged { id, pack: stem.with_extension("pack"), index: stem.with_extension("idx"), objects: 0, bytes };
        fs::hard_link(pack, &staged.pack).map_err(Error::io("link", pack))?;
        fs::hard_link(&index, &staged.index).map_err(Error::io("link", &index))?;
        self.publish(&staged)?;
        Ok(Some(id))
    }

    /// Has every object that the other store has in packs from here on, by links to its files; the two stores go their own ways afterwards.
    /// Both must lie on one file system. Again is harmless. Not synced.
    pub fn link_packs_of(&self, other: &Store) -> Result<()> {
        other.write_held()?;
        // A consolidation may replace packs while they are linked; what replaced them is there when they are listed again.
        for _ in 0..LINK_TRIES {
            if self.try_link_packs_of(other)? {
                return Ok(());
            }
        }
        let busy = std::io::Error::new(std::io::ErrorKind::ResourceBusy, "its packs keep changing");
        Err(Error::io("link the packs of", other.path())(busy))
    }

    /// False if a pack was gone.
    fn try_link_packs_of(&self, other: &Store) -> Result<bool> {
        for info in other.packs()? {
            let stem = self.staging_path("linked")?;
            let staged = Staged {
                id: info.id,
                pack: stem.with_extension("pack"),
                index: stem.with_extension("idx"),
                objects: info.objects,
                bytes: info.bytes,
            };
            let index = info.path.with_extension("idx");
            for (from, to) in [(info.path.with_extension("pack"), &staged.pack), (index, &staged.index)] {
                match fs::hard_link(&from, to) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                    Err(error) => return Err(Error::io("link", &from)(error)),
                }
            }
            self.publish(&staged)?;
        }
        Ok(true)
    }

    fn install_from(&self, pack: &mut dyn Read, limits: &PackLimits) -> Result<PackId> {
        let staged = self.stage(pack, &self.staging_path("install")?, limits, None)?;
        if let Some(staged) = &staged.pack {
            self.publish(staged)?;
        }
        Ok(staged.id)
    }

    /// Writes a pack to `<stem>.pack`, checked and indexed. A pack without objects leaves nothing.
    pub(crate) fn stage(
        &self,
        pack: &mut dyn Read,
        stem: &Path,
        limits: &PackLimits,
        bases: Option<&Reader>,
    ) -> Result<StagedPack, PackError> {
        let path = stem.with_extension("pack");
        let storing = |source| PackError::Io { action: "store", source };
        let result = (|| {
            let mut out =
                BufWriter::with_capacity(limits.buffer_len(), pack::create_pack_file(&path).map_err(storing)?);
            let scanned = pack::scan(pack, &mut out, limits)?;
            out.flush().map_err(storing)?;
            let id = scanned.id;
            if scanned.entries.is_empty() {
                fs::remove_file(&path).map_err(storing)?;
                return Ok(StagedPack { id, pack: None });
            }
            let staged = pack::index_staged(&path, scanned, bases)?;
            Ok(StagedPack { id: staged.id, pack: Some(staged) })
        })();
        if result.is_err() {
            // Best effort: the whole directory goes when the store is closed.
            let _ = (fs::remove_file(&path), fs::remove_file(stem.with_extension("idx")));
        }
        result
    }

    /// Makes a staged pack visible: the pack before its index, because readers go by the index.
    pub(crate) fn publish(&self, staged: &Staged) -> Result<()> {
        self.rename_into_place(staged)?;
        self.remember_unsynced(staged.id);
        Ok(())
    }

    /// The same for files that are on the disk already: only their names are not.
    pub(crate) fn publish_synced(&self, staged: &Staged) -> Result<()> {
        self.rename_into_place(staged)?;
        lock(&self.inner.unsynced).insert(self.inner.objects.join("pack"));
        Ok(())
    }

    fn rename_into_place(&self, staged: &Staged) -> Result<()> {
        self.refuse_after_failed_sync()?;
        let _nobody_cleans_up = lock_entrance(&self.inner.root.join("quarantine"), FlockOperation::LockShared)?;
        // One of this name that is not the same is damaged, and the object database may have mapped it.
        let replaces = self.pack_path(staged.id, "idx").exists();
        for (from, extension) in [(&staged.pack, "pack"), (&staged.index, "idx")] {
            let to = self.pack_path(staged.id, extension);
            fs::rename(from, &to).map_err(Error::io("install", &to))?;
        }
        if replaces { self.reopen() } else { Ok(()) }
    }

    pub(crate) fn recent(&self) -> &Recent {
        &self.inner.recent
    }

    pub(crate) fn pack_path(&self, id: PackId, extension: &str) -> PathBuf {
        self.inner.objects.join("pack").join(id.file_name(extension))
    }

    fn remember_unsynced(&self, id: PackId) {
        lock(&self.inner.unsynced).extend([self.pack_path(id, "pack"), self.pack_path(id, "idx")]);
    }

    /// True if a pack of this name is there with exactly these bytes, and a sound index.
    fn is_installed(&self, id: PackId, pack: &mut dyn Read, bytes: u64) -> bool {
        let Ok(there) = File::open(self.pack_path(id, "pack")) else { return false };
        there.metadata().is_ok_and(|meta| meta.len() == bytes)
            && pack::same_bytes(&mut BufReader::new(there), pack).unwrap_or(false)
            && pack::index_is_sound(&self.pack_path(id, "idx"), id)
    }

    /// Writes every pack that was installed or held since the last time to the disk, for good.
    ///
    /// After a failure this fails for as long as the store is open: what was lost is found by opening it again and installing again.
    pub fn sync(&self) -> Result<()> {
        // Whoever comes second finds an empty list, and may not take that for a sync before the first is through.
        let _alone = lock(&self.inner.syncing);
        self.refuse_after_failed_sync()?;
        self.write_held()?;
        let files = std::mem::take(&mut *lock(&self.inner.unsynced));
        if files.is_empty() {
            return Ok(());
        }
        let result = sync_files(&files, &self.inner.objects.join("pack"));
        self.inner.sync_failed.fetch_or(result.is_err(), Ordering::SeqCst);
        result
    }

    /// The files that [`sync`](Self::sync) would put on disk, for a caller that does so together with files of its own, and says so
    /// with [`note_failed_sync`](Self::note_failed_sync) if that fails. The directory `pack` goes with them.
    pub(crate) fn take_unsynced(&self) -> Result<BTreeSet<PathBuf>> {
        self.refuse_after_failed_sync()?;
        Ok(std::mem::take(&mut *lock(&self.inner.unsynced)))
    }

    /// What [`take_unsynced`](Self::take_unsynced) named is perhaps not on disk, and never will be.
    pub(crate) fn note_failed_sync(&self) {
        self.inner.sync_failed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn refuse_after_failed_sync(&self) -> Result<()> {
        if self.inner.sync_failed.load(Ordering::SeqCst) {
            return Err(Error::SyncFailed { path: self.inner.root.clone() });
        }
        Ok(())
    }

    /// Writes git's own references, so that plain `git` finds what the replicated state says. Each file is replaced atomically.
    pub fn project_refs(&self, refs: &RefMap, head: &RefName) -> Result<()> {
        let reader = self.reader()?;
        let mut packed = String::from("# pack-refs with: peeled fully-peeled sorted \n");
        for (name, id) in refs {
            packed.push_str(&format!("{id} {name}\n"));
            match reader.peel(*id) {
                Ok((peeled, _)) if peeled != *id => packed.push_str(&format!("^{peeled}\n")),
                // A projection: an object that is missing shows up in `verify`, not here.
                Ok(_) | Err(_) => {}
            }
        }
        self.replace("packed-refs", packed.as_bytes())?;
        self.replace("HEAD", format!("ref: {head}\n").as_bytes())?;
        // Loose references win over packed ones in git's eyes, and none of them is ours.
        remove_loose(&self.inner.root.join("refs"), 0)
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.inner.root.join(name);
        if fs::read(&path).is_ok_and(|old| old == content) {
            return Ok(());
        }
        let staged = self.staging_path("ref")?;
        fs::write(&staged, content).map_err(Error::io("write", &staged))?;
        fs::rename(&staged, &path).map_err(Error::io("replace", &path))
    }

    /// The packs that are installed.
    pub fn packs(&self) -> Result<Vec<PackInfo>> {
        let directory = self.inner.objects.join("pack");
        let mut packs = Vec::new();
        for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
            let path = entry.map_err(Error::io("list", &directory))?.path();
            let id = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix("pack-")?.strip_suffix(".idx")?.parse().ok());
            if let Some(id) = id
                && let Some(info) = pack_info(PackId(id), &path)
            {
                packs.push(info);
            }
        }
        packs.sort_unstable();
        Ok(packs)
    }

    /// A new name in this store's own directory.
    pub(crate) fn staging_path(&self, what: &str) -> Result<PathBuf> {
        let mut staging = lock(&self.inner.staging);
        let directory = match &*staging {
            Some(staging) => staging.directory.clone(),
            None => staging.insert(Staging::new(&self.inner.root.join("quarantine"))?).directory.clone(),
        };
        Ok(directory.join(format!("{what}-{}", self.inner.names.fetch_add(1, Ordering::Relaxed))))
    }
}

fn open_odb(objects: &Path) -> Result<Arc<gix::odb::Store>> {
    let options = gix::odb::store::init::Options {
        slots: gix::odb::store::init::Slots::Given(PACK_SLOTS),
        ..gix::odb::store::init::Options::default()
    };
    let objects = objects.to_owned();
    let odb = gix::odb::Store::at_opts(objects.clone(), gix::hash::Kind::Sha1, &mut std::iter::empty(), options);
    odb.map(Arc::new).map_err(Error::io("open", &objects))
}

/// What [`Store::stage`] made of a pack.
pub(crate) struct StagedPack {
    pub(crate) id: PackId,
    pub(crate) pack: Option<Staged>,
}

/// A lock that a panicking thread held is as good as any other here: what they guard is only ever replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_if_missing(path: &Path, content: &[u8]) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let synced = File::create(&temporary).and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    synced.map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("create", path))
}

/// Syncs files and the directory that names them. A file that is gone was merged into one that was synced first.
pub(crate) fn sync_files(files: &BTreeSet<PathBuf>, directory: &Path) -> Result<()> {
    let directory_file = File::open(directory).map_err(Error::io("open", directory))?;
    if files.len() >= SYNC_ALL_FROM_FILES {
        return rustix::fs::syncfs(&directory_file).map_err(|err| Error::io("sync", directory)(err.into()));
    }
    for path in files.iter().filter(|path| *path != directory) {
        match File::open(path) {
            Ok(file) => file.sync_all().map_err(Error::io("sync", path))?,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
            Err(err) => return Err(Error::io("open", path)(err)),
        }
    }
    directory_file.sync_all().map_err(Error::io("sync", directory))
}

/// Git makes references no deeper than this in practice; what is deeper is not ours to follow.
const MAX_REF_DEPTH: usize = 32;

fn remove_loose(directory: &Path, depth: usize) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io("examine", &path))?;
        if kind.is_dir() && depth < MAX_REF_DEPTH {
            remove_loose(&path, depth + 1)?;
        } else if kind.is_file() {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

fn pack_info(id: PackId, index: &Path) -> Option<PackInfo> {
    use std::os::unix::fs::FileExt;
    let path = index.with_extension("pack");
    let bytes = fs::metadata(&path).ok()?.len();
    // The last number of the fan-out table is how many objects there are.
    let mut count = [0; 4];
    File::open(index).and_then(|file| file.read_exact_at(&mut count, 8 + 255 * 4)).ok()?;
    Some(PackInfo { id, path, bytes, objects: u32::from_be_bytes(count) })
}
