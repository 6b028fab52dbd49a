//! A node's disk, and what a crash leaves of it.
//!
//! The database lies in memory ([`Volume`]), everything else in a directory, on tmpfs where there is one. What was written and not synced may
//! be there after a crash, be gone, or be there in part, sector by sector; what was synced is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use redb::{Database, StorageBackend};

use super::mutants::{self, Mutant};
use super::rng::Rng;
use super::runtime::locked;
use crate::core::health::Part;
use crate::state::{Home, StateError};

const SECTOR: usize = 512;

/// The file below redb.
#[derive(Debug, Clone, Default)]
pub(super) struct Volume {
    image: Arc<Mutex<Image>>,
}

#[derive(Debug, Default)]
struct Image {
    bytes: Vec<u8>,
    unsynced: Vec<Undo>,
    /// Handles of earlier incarnations are dead.
    epoch: u64,
    /// The disk fails after so many more writes.
    writes_left: Option<u64>,
}

/// How to take back a write.
#[derive(Debug)]
enum Undo {
    Write { offset: usize, old: Vec<u8> },
    Length(usize),
}

/// What one incarnation of a node sees of a volume.
#[derive(Debug)]
pub(super) struct Handle {
    volume: Volume,
    epoch: u64,
}

impl Volume {
    pub(super) fn open(&self) -> Handle {
        let epoch = locked(&self.image).epoch;
        Handle { volume: self.clone(), epoch }
    }

    /// The disk fails after so many more writes, until the next crash.
    pub(super) fn fail_after(&self, writes: u64) {
        locked(&self.image).writes_left = Some(writes);
    }

    /// Goes up with every crash.
    pub(super) fn epoch(&self) -> u64 {
        locked(&self.image).epoch
    }

    /// Whether [`Volume::fail_after`] was called since the last crash.
    pub(super) fn is_broken(&self) -> bool {
        locked(&self.image).writes_left.is_some()
    }

    /// Flips a bit; answers where.
    pub(super) fn flip(&self, rng: &mut Rng) -> Option<u64> {
        let mut image = locked(&self.image);
        let at = rng.between(0, (image.bytes.len() as u64).checked_sub(1)?);
        image.bytes[at as usize] ^= 1 << rng.between(0, 7);
        Some(at)
    }

    /// Ends what is open, and loses some of what was not synced.
    fn crash(&self, rng: &mut Rng) {
        let mut image = locked(&self.image);
        image.epoch += 1;
        image.writes_left = None;
        let unsynced = std::mem::take(&mut image.unsynced);
        let keep_permille = *rng.pick(&[0, 500, 900, 1000]).unwrap_or(&0);
        let mut redo = Vec::new();
        for undo in unsynced.into_iter().rev() {
            match undo {
                Undo::Write { offset, old } => {
                    let end = offset + old.len();
                    if end <= image.bytes.len() {
                        let new = image.bytes[offset..end].to_vec();
                        image.bytes[offset..end].copy_from_slice(&old);
                        redo.push((offset, new));
                    }
                }
                // A longer file is harmless, and a shorter one would cut what is kept below.
                Undo::Length(bytes) if bytes < image.bytes.len() => {}
                Undo::Length(bytes) => image.bytes.resize(bytes, 0),
            }
        }
        for (offset, new) in redo.into_iter().rev() {
            for (at, sector) in new.chunks(SECTOR).enumerate() {
                if rng.chance(keep_permille) {
                    let start = offset + at * SECTOR;
                    image.bytes[start..start + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}

impl Handle {
    fn with<T>(&self, work: impl FnOnce(&mut Image) -> Result<T, io::Error>) -> Result<T, io::Error> {
        let mut image = locked(&self.volume.image);
        if image.epoch != self.epoch {
            return Err(io::Error::other("this incarnation of the node is dead"));
        }
        work(&mut image)
    }
}

impl Image {
    fn spend_write(&mut self) -> Result<(), io::Error> {
        match &mut self.writes_left {
            Some(0) => Err(io::Error::other("the simulated disk failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> Result<u64, io::Error> {
        self.with(|image| Ok(image.bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.with(|image| {
            let offset = offset as usize;
            let found = image.bytes.get(offset..offset + out.len());
            out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.with(|image| {
            image.spend_write()?;
            let before = image.bytes.len();
            image.unsynced.push(Undo::Length(before));
            image.bytes.resize(len as usize, 0);
            Ok(())
        })
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.with(|image| {
            image.spend_write()?;
            image.unsynced.clear();
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.with(|image| {
            image.spend_write()?;
            let offset = offset as usize;
            let old = image.bytes[offset..offset + data.len()].to_vec();
            image.unsynced.push(Undo::Write { offset, old });
            image.bytes[offset..offset + data.len()].copy_from_slice(data);
            Ok(())
        })
    }
}

/// Exchanges the database of a simulated disk.
pub(super) struct SimHome {
    pub(super) disk: Arc<Disk>,
}

impl Home for SimHome {
    fn open(&self) -> Result<Database, StateError> {
        let volume = self.disk.volume();
        let exists = !locked(&volume.image).bytes.is_empty() && !mutants::is_on(Mutant::TrustsPages);
        let open = || Database::builder().set_cache_size(1 << 20).create_with_backend(volume.open());
        crate::state::open_checked(&self.disk.dir.join("state.redb"), exists, open)
    }

    fn set_aside(&self, _aside: &Path) -> Result<(), StateError> {
        if !self.disk.is_damaged() {
            return Err(StateError::Poisoned("a sound database was set aside".into()));
        }
        *locked(&self.disk.volume) = self.disk.fresh_volume();
        Ok(())
    }

    fn fresh(&self) -> Result<Database, StateError> {
        let fresh = self.disk.fresh_volume();
        let db = Database::builder().set_cache_size(1 << 20).create_with_backend(fresh.open())?;
        *locked(&self.disk.fresh) = fresh;
        Ok(db)
    }

    /// As one step: what a rename is.
    fn exchange(&self, _aside: &Path) -> Result<(), StateError> {
        *locked(&self.disk.volume) = locked(&self.disk.fresh).clone();
        Ok(())
    }
}

/// A node's whole disk.
pub(super) struct Disk {
    pub(super) dir: PathBuf,
    volume: Mutex<Volume>,
    fresh: Mutex<Volume>,
    synced: Mutex<Synced>,
    /// What the node holds against itself: the product's `out.json`.
    out: Mutex<Option<Part>>,
    /// The newest merge of packs.
    merged: Mutex<Merged>,
    /// Something that was safe was spoiled.
    pub(super) damaged: AtomicBool,
}

/// A merge of packs, as long as it can be taken back: it is in the middle of it that power may be lost.
#[derive(Default)]
struct Merged {
    repo: String,
    /// What it made, …
    new: Vec<PathBuf>,
    /// … and the names of what it removed, with whether that was safe before, or would be by now.
    old: Vec<(OsString, bool)>,
}

/// What is known to be on the platters.
#[derive(Default)]
struct Synced {
    /// The log's newest segment, and up to where it was synced.
    log: (u64, u64),
    /// The same at the sync before that one.
    log_before: (u64, u64),
    packs: BTreeSet<PathBuf>,
    uploads: BTreeMap<PathBuf, u64>,
}

impl Disk {
    pub(super) fn new(dir: PathBuf) -> Disk {
        Disk {
            dir,
            volume: Mutex::default(),
            fresh: Mutex::default(),
            synced: Mutex::default(),
            out: Mutex::default(),
            merged: Mutex::default(),
            damaged: AtomicBool::new(false),
        }
    }

    pub(super) fn out(&self) -> Option<Part> {
        *locked(&self.out)
    }

    pub(super) fn set_out(&self, out: Option<Part>) {
        *locked(&self.out) = out;
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// An empty one of the same life.
    fn fresh_volume(&self) -> Volume {
        let volume = Volume::default();
        locked(&volume.image).epoch = self.volume().epoch();
        volume
    }

    pub(super) fn log_synced_before(&self) -> (u64, u64) {
        locked(&self.synced).log_before
    }

    /// The file below the database.
    pub(super) fn volume(&self) -> Volume {
        locked(&self.volume).clone()
    }

    /// The log was synced up to this place of this segment, and everything before that.
    pub(super) fn log_synced(&self, segment: u64, end: u64) {
        let mut synced = locked(&self.synced);
        if synced.log != (segment, end) {
            synced.log_before = std::mem::replace(&mut synced.log, (segment, end));
        }
    }

    /// A checkpoint succeeded: packs and uploads that are there are there for good.
    pub(super) fn checkpointed(&self) {
        let packs = self.packs();
        let uploads = files(&self.dir.join("uploads")).into_iter();
        let uploads = uploads.map(|path| (path.clone(), fs::metadata(&path).map_or(0, |meta| meta.len()))).collect();
        let mut synced = locked(&self.synced);
        synced.packs = packs;
        synced.uploads = uploads;
        drop(synced);
        locked(&self.merged).old.iter_mut().for_each(|(_, safe)| *safe = true);
    }

    /// The packs of one store that are there are there for good.
    pub(super) fn packs_synced(&self, repo: &crate::state::RepoName) {
        let packs = files(&self.dir.join("repos").join(format!("{repo}.git/objects/pack")));
        locked(&self.synced).packs.extend(packs);
        let mut merged = locked(&self.merged);
        if merged.repo == repo.as_str() {
            merged.old.iter_mut().for_each(|(_, safe)| *safe = true);
        }
    }

    /// Packs of a store are merged: the new one is synced, and that the old ones are gone is not.
    pub(super) fn merging<T>(&self, repo: &crate::state::RepoName, work: impl FnOnce() -> T) -> T {
        let directory = self.dir.join("repos").join(format!("{repo}.git/objects/pack"));
        let before = files(&directory);
        let attic = self.dir.join("attic").join(repo.as_str());
        drop(fs::create_dir_all(&attic));
        for path in &before {
            drop(fs::hard_link(path, attic.join(path.file_name().unwrap_or_default())));
            // What is merged goes by age, and the real clock has no say here.
            let file = fs::File::open(path).expect("a listed file opens");
            file.set_modified(std::time::UNIX_EPOCH).expect("a file has a time");
        }
        let done = work();
        let after = files(&directory);
        for path in &before {
            if after.contains(path) {
                drop(fs::remove_file(attic.join(path.file_name().unwrap_or_default())));
            }
        }
        let safe = |path: &PathBuf| locked(&self.synced).packs.contains(path);
        let gone = before.iter().filter(|path| !after.contains(path));
        let old: Vec<_> = gone.filter_map(|path| Some((path.file_name()?.to_owned(), safe(path)))).collect();
        let before: BTreeSet<_> = before.iter().cloned().collect();
        let new: Vec<_> = after.into_iter().filter(|path| !before.contains(path)).collect();
        if !mutants::is_on(Mutant::MergesUnsynced) {
            locked(&self.synced).packs.extend(new.iter().cloned());
        }
        if !old.is_empty() {
            *locked(&self.merged) = Merged { repo: repo.to_string(), new, old };
        }
        done
    }

    /// Has it that power was lost while the newest merge was under way: what it removes is there, what it makes is not safe yet. (A merge that was
    /// removing is one that has ended, of which some of the removed files are back.) Answers whether there was one.
    fn stop_in_merge(&self, rng: &mut Rng) -> bool {
        let Merged { repo, new, old } = std::mem::take(&mut *locked(&self.merged));
        if old.is_empty() || !rng.chance(500) {
            return false;
        }
        let directory = self.dir.join("repos").join(format!("{repo}.git/objects/pack"));
        let attic = self.dir.join("attic").join(&repo);
        // The order is: the new one whole, synced, and only then the old ones.
        let removed = if mutants::is_on(Mutant::RemovesFirst) { old.len() } else { 0 };
        let mut synced = locked(&self.synced);
        for (name, safe) in &old[removed..] {
            let path = directory.join(name);
            if fs::rename(attic.join(name), &path).is_ok() && *safe {
                synced.packs.insert(path);
            }
        }
        synced.packs.retain(|path| !new.contains(path));
        true
    }

    /// Some of the packs that were merged since the last crash are there again.
    fn bring_back(&self, rng: &mut Rng) {
        for repo in files(&self.dir.join("attic")) {
            let name = repo.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let directory = self.dir.join("repos").join(format!("{name}.git/objects/pack"));
            for path in files(&repo) {
                if rng.chance(300) {
                    drop(fs::rename(&path, directory.join(path.file_name().unwrap_or_default())));
                }
            }
        }
        drop(fs::remove_dir_all(self.dir.join("attic")));
    }

    fn packs(&self) -> BTreeSet<PathBuf> {
        let stores = files(&self.dir.join("repos"));
        stores.iter().flat_map(|store| files(&store.join("objects/pack"))).collect()
    }

    /// The machine loses power. Answers whether that was in the middle of a merge of packs.
    pub(super) fn crash(&self, rng: &mut Rng) -> bool {
        self.volume().crash(rng);
        let in_merge = self.stop_in_merge(rng);
        let synced = locked(&self.synced);
        let (segment, end) = synced.log;
        tear(&self.dir.join("raft").join(format!("{segment:016}.seg")), end, rng);
        self.bring_back(rng);
        for path in self.packs().difference(&synced.packs) {
            lose(path, 0, rng);
        }
        for upload in files(&self.dir.join("uploads")) {
            lose(&upload, synced.uploads.get(&upload).copied().unwrap_or(0), rng);
        }
        in_merge
    }
}

/// The files of a directory in order; none if it is missing.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut found: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
}

/// Loses some of the sectors behind `end`. The sector that `end` lies in keeps what is before it.
fn tear(path: &Path, end: u64, rng: &mut Rng) {
    let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(path) else { return };
    let length = file.metadata().expect("an open file has metadata").len() as usize;
    let mut bytes = vec![0; length.saturating_sub(end as usize)];
    file.read_exact_at(&mut bytes, end).expect("the file is that long");
    let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else { return };
    let keep_permille = *rng.pick(&[0, 0, 500, 1000]).unwrap_or(&0);
    let cut_at = rng.between(0, last as u64 + 1) as usize;
    let mut at = 0;
    while at <= last {
        let sector_end = (at + SECTOR - (end as usize + at) % SECTOR).min(length - end as usize);
        // Either sectors at random, or everything behind a point.
        let keep = if keep_permille > 0 { rng.chance(keep_permille) } else { sector_end <= cut_at };
        if !keep {
            bytes[at..sector_end].fill(0);
        }
        at = sector_end;
    }
    file.write_all_at(&bytes, end).expect("the file can be written");
}

/// Loses some of a file that was not synced beyond `durable` bytes.
fn lose(path: &Path, durable: u64, rng: &mut Rng) {
    let length = fs::metadata(path).map_or(0, |meta| meta.len());
    match rng.between(0, 3) {
        0 if durable == 0 => drop(fs::remove_file(path)),
        1 => {
            let keep = rng.between(durable.min(length), length);
            drop(fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(keep)));
        }
        2 => tear(path, durable.min(length), rng),
        _ => {}
    }
}
