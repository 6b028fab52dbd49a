//! A file system in memory that forgets what was not synced.
//!
//! It stops at a chosen call (and, if that is a write, at a chosen byte of it); everything after that fails. [`Simulation::after_kill`] is what the
//! next process then finds, [`Simulation::after_power_loss`] what a machine finds: of every file and of the names, what was synced, and of the
//! rest any part: writes that are there without earlier ones, sectors of one write without the others, names without content, old names that came back.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dir_lock::{LockError, Owner};

use super::{Fs, FsFile, Held};

/// What a disk writes in one piece.
const SECTOR_BYTES: usize = 512;

/// Numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Seeded(pub u64);

impl Seeded {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => {
                let end = offset + bytes.len();
                data.resize(data.len().max(end), 0);
                data[*offset..end].copy_from_slice(bytes);
            }
            Change::SetLen(length) => data.resize(*length, 0),
        }
    }

    /// Applies what a power loss left of it: all, nothing, or some sectors.
    fn apply_some(&self, data: &mut Vec<u8>, random: &mut Seeded) {
        match (self, random.below(4)) {
            (_, 0) => {}
            (Change::Write { offset, bytes }, 1) => {
                let mut at = 0;
                while at < bytes.len() {
                    // To the next sector boundary of the file.
                    let piece = (SECTOR_BYTES - (offset + at) % SECTOR_BYTES).min(bytes.len() - at);
                    if random.below(2) == 0 {
                        Change::Write { offset: offset + at, bytes: bytes[at..at + piece].to_vec() }.apply(data);
                    }
                    at += piece;
                }
            }
            (Change::Write { offset, bytes }, 2) => {
                let kept = random.below(bytes.len() as u64 + 1) as usize;
                Change::Write { offset: *offset, bytes: bytes[..kept].to_vec() }.apply(data);
            }
            _ => self.apply(data),
        }
    }
}

#[derive(Debug, Clone)]
enum Naming {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>, rename: Option<usize>) {
        match self {
            Naming::Link(path, inode) => drop(names.insert(path.clone(), *inode)),
            Naming::Unlink(path) => drop(names.remove(path)),
            Naming::Rename(from, to) => {
                // A rename may reach the disk although the creation of its source did not.
                if let Some(inode) = names.remove(from).or(rename) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone, Default)]
struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<(Naming, Option<usize>)>,
    /// Calls that changed something, and what each was.
    calls: Vec<Call>,
    boot: u64,
    clock_us: u64,
    /// How often something random was drawn.
    drawn: u64,
    stop_at: Option<(usize, usize)>,
    stopped: bool,
    capacity: Option<usize>,
    sync_error: Option<io::ErrorKind>,
}

/// A call that changed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// For writes: how many bytes.
    pub bytes: usize,
}

/// The file system. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Simulation {
    world: Arc<Mutex<World>>,
}

#[derive(Debug)]
struct SimulatedFile {
    world: Arc<Mutex<World>>,
    inode: usize,
}

#[derive(Debug)]
struct Nothing;
impl Held for Nothing {}

fn stopped() -> io::Error {
    io::Error::other("the simulated process was killed")
}

impl World {
    /// Counts a call; an error when the world stopped before it. `Ok(Some(n))`: it stops in this call, after `n` bytes.
    fn call(&mut self, name: &'static str, bytes: usize) -> io::Result<Option<usize>> {
        if self.stopped {
            return Err(stopped());
        }
        self.clock_us += 1;
        let number = self.calls.len();
        self.calls.push(Call { name, bytes });
        match self.stop_at {
            Some((at, kept)) if at == number => {
                self.stopped = true;
                Ok(Some(kept))
            }
            _ => Ok(None),
        }
    }

    fn used_bytes(&self) -> usize {
        self.names.values().map(|inode| self.inodes[*inode].data.len()).sum()
    }

    fn change(&mut self, inode: usize, change: Change) {
        change.apply(&mut self.inodes[inode].data);
        self.inodes[inode].pending.push(change);
    }

    fn name(&mut self, naming: Naming) {
        let source = match &naming {
            Naming::Rename(from, _) => self.names.get(from).copied(),
            _ => None,
        };
        naming.apply(&mut self.names, source);
        self.pending_names.push((naming, source));
    }
}

impl Simulation {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops in this call (counted from 0): after `bytes` bytes of it if it writes, otherwise after it has done its work.
    pub fn stop_in(&self, call: usize, bytes: usize) {
        self.world().stop_at = Some((call, bytes));
    }

    /// The calls so far that changed something.
    pub fn calls(&self) -> Vec<Call> {
        self.world().calls.clone()
    }

    /// Bytes that fit.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.world().capacity = bytes;
    }

    /// Bytes in all files.
    pub fn used_bytes(&self) -> usize {
        self.world().used_bytes()
    }

    /// Lets every sync of a file fail; what was written stays unsynced.
    pub fn fail_syncs(&self, kind: Option<io::ErrorKind>) {
        self.world().sync_error = kind;
    }

    /// Lets the time go on.
    pub fn pass(&self, us: u64) {
        self.world().clock_us += us;
    }

    /// Changes bytes on the disk itself.
    pub fn rot(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world();
        let inode = *world.names.get(path).expect("the file exists");
        let file = &mut world.inodes[inode];
        change(&mut file.data);
        file.durable = file.data.clone();
        file.pending.clear();
    }

    /// What the next process finds after this one was killed: all that was written. Nothing of it is more durable than before.
    pub fn after_kill(&self) -> Self {
        let mut world = self.world().clone();
        world.reset();
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// What a machine may find after a power loss, by seed.
    pub fn after_power_loss(&self, random: &mut Seeded) -> Self {
        let mut world = self.world().clone();
        for file in &mut world.inodes {
            let mut data = std::mem::take(&mut file.durable);
            for change in std::mem::take(&mut file.pending) {
                change.apply_some(&mut data, random);
            }
            file.durable.clone_from(&data);
            file.data = data;
        }
        let mut names = std::mem::take(&mut world.durable_names);
        let ordered = random.below(2) == 0;
        for (naming, source) in std::mem::take(&mut world.pending_names) {
            if random.below(3) > 0 {
                naming.apply(&mut names, source);
            } else if ordered {
                // A file system that keeps the order of names: nothing after the first that is lost.
                break;
            }
        }
        world.names.clone_from(&names);
        world.durable_names = names;
        world.boot += 1;
        world.reset();
        Self { world: Arc::new(Mutex::new(world)) }
    }
}

impl World {
    fn reset(&mut self) {
        self.calls.clear();
        self.stop_at = None;
        self.stopped = false;
        self.capacity = None;
        self.sync_error = None;
    }
}

impl Fs for Simulation {
    fn create_dirs(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        if world.stopped {
            return Err(stopped());
        }
        let below = world.names.keys().filter_map(|path| path.strip_prefix(dir).ok()?.to_str());
        Ok(below.map(str::to_owned).collect())
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        let mut world = self.world();
        if world.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.call("create", 0)?;
        let inode = world.inodes.len();
        world.inodes.push(Inode::default());
        world.name(Naming::Link(path.into(), inode));
        Ok(Arc::new(SimulatedFile { world: Arc::clone(&self.world), inode }))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn FsFile>> {
        let world = self.world();
        if world.stopped {
            return Err(stopped());
        }
        let inode = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimulatedFile { world: Arc::clone(&self.world), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.call("rename", 0)?;
        if !world.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.name(Naming::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        if !world.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.call("remove", 0)?;
        world.name(Naming::Unlink(path.into()));
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.call("sync_dir", 0)?;
        world.durable_names = world.names.clone();
        world.pending_names.clear();
        Ok(())
    }

    fn lock_dir(&self, _dir: &Path, _owner: &Owner) -> Result<Box<dyn Held>, LockError> {
        Ok(Box::new(Nothing))
    }

    fn lock_file(&self, _path: &Path) -> io::Result<Box<dyn Held>> {
        Ok(Box::new(Nothing))
    }

    fn boot_id(&self) -> String {
        self.world().boot.to_string()
    }

    fn now_us(&self) -> u64 {
        self.world().clock_us
    }

    fn random(&self) -> [u8; 16] {
        let mut world = self.world();
        world.drawn += 1;
        let mut random = Seeded(world.drawn);
        std::array::from_fn(|_| random.draw() as u8)
    }
}

impl SimulatedFile {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FsFile for SimulatedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut world = self.world();
        let offset = offset as usize;
        let kept = world.call("write", bytes.len())?;
        let grows = (offset + bytes.len()).saturating_sub(world.inodes[self.inode].data.len());
        let room = world.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(world.used_bytes()));
        let fitting = if grows > room { bytes.len().saturating_sub(grows - room) } else { bytes.len() };
        let written = kept.unwrap_or(fitting).min(fitting);
        if written > 0 {
            world.change(self.inode, Change::Write { offset, bytes: bytes[..written].to_vec() });
        }
        match (kept, written) {
            (Some(_), _) => Err(stopped()),
            (None, 0) if !bytes.is_empty() => Err(io::ErrorKind::StorageFull.into()),
            (None, written) => Ok(written),
        }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = self.world();
        if world.stopped {
            return Err(stopped());
        }
        let data = world.inodes[self.inode].data.get(offset as usize..).unwrap_or_default();
        let read = data.len().min(bytes.len());
        bytes[..read].copy_from_slice(&data[..read]);
        Ok(read)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.world();
        world.call("sync", 0)?;
        if let Some(kind) = world.sync_error {
            return Err(kind.into());
        }
        let file = &mut world.inodes[self.inode];
        file.durable.clone_from(&file.data);
        file.pending.clear();
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.world();
        world.call("set_len", 0)?;
        world.change(self.inode, Change::SetLen(bytes as usize));
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let world = self.world();
        if world.stopped {
            return Err(stopped());
        }
        Ok(world.inodes[self.inode].data.len() as u64)
    }
}
