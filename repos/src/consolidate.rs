//! Many small packs into few.
//!
//! Every commit installs a pack, and every pack is one more place to look in. Packs are merged geometrically: each one that
//! is left alone has several times the objects of all smaller ones together, so an object is copied a number of times
//! that grows with the logarithm of the store, and never all at once for a small commit.
//!
//! The merged pack is on the disk and visible before the first of the old ones goes, so a crash at any instant loses
//! nothing, and a reader finds every object at every instant.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use crate::diff::{directory_of, parsed};
use crate::pack::{self, Source, Versions};
use crate::reader::{Mode, Reader};
use crate::store::sync_files;
use crate::{Error, Oid, PackInfo, Result, Store};

/// When and how packs are merged.
#[derive(Debug, Clone)]
pub struct ConsolidateOptions {
    /// Do nothing below so many packs.
    pub min_packs: usize,
    /// A pack is left alone if it has at least this many times the objects of all smaller ones together.
    pub factor: u32,
}

impl Default for ConsolidateOptions {
    fn default() -> Self {
        ConsolidateOptions { min_packs: 50, factor: 2 }
    }
}

/// What consolidating did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Consolidated {
    /// Packs before.
    pub packs_before: usize,
    /// Packs after.
    pub packs_after: usize,
    /// Objects in the new pack, if one was written.
    pub objects: u32,
    /// Its size.
    pub bytes: u64,
}

/// How many commits are looked at for older versions of what is merged. More come in between only by large pushes,
/// and those bring deltas of their own.
const MAX_COMMITS_COMPARED: usize = 20_000;

impl Store {
    /// Merges small packs into a larger one. Readers and installers go on meanwhile; nothing is ever dropped.
    /// What `tips` reach among the merged objects is stored as the difference to the version before it.
    /// Does nothing while another process does the same.
    pub fn consolidate(&self, options: &ConsolidateOptions, tips: &[Oid]) -> Result<Consolidated> {
        let packs_before = count_packs(&self.objects_dir().join("pack"))?;
        let nothing = Consolidated { packs_before, packs_after: packs_before, ..Consolidated::default() };
        // Somebody ran git's own maintenance: an index over several packs would be left pointing at nothing.
        let foreign = self.objects_dir().join("pack/multi-pack-index").exists();
        if packs_before < options.min_packs.max(2) || foreign {
            return Ok(nothing);
        }
        let Some(_lock) = self.lock_for_consolidation()? else { return Ok(nothing) };
        let chosen = worth_merging(self.packs()?, options.factor);
        if chosen.len() < 2 {
            return Ok(nothing);
        }
        let sources: Vec<Source> = oldest_first(&chosen)
            .into_iter()
            .map(|info| Source { pack: info.path.clone(), index: info.path.with_extension("idx") })
            .collect();
        let reader = self.reader()?;
        let versions = Versions { older: older_versions(&reader, tips, &pack::ids(&sources)?)?, reader: &reader };
        let staged = pack::glue(&sources, &self.staging_path("glue")?, &versions)?;
        let (id, objects, bytes) = (staged.id, staged.objects, staged.bytes);
        self.publish(&staged)?;
        // The small packs may be durable already, so the new one must be before they go.
        let new_files = [self.pack_path(id, "pack"), self.pack_path(id, "idx")].into();
        sync_files(&new_files, &self.objects_dir().join("pack"))?;
        let removed: Vec<&PackInfo> = chosen.iter().filter(|info| info.id != id).collect();
        self.remove_packs(&removed)?;
        Ok(Consolidated {
            packs_before: nothing.packs_before,
            packs_after: nothing.packs_before + 1 - removed.len(),
            objects,
            bytes,
        })
    }
}

impl Store {
    /// Takes packs away from those who look for objects, and then from the disk.
    ///
    /// Readers have them mapped, and freeing the blocks of a file takes some file systems milliseconds: whoever gives up the last mapping
    /// of a removed file has to wait for it. With the packs of many commits removed, the next fetch would wait a quarter of a second, and
    /// all others behind it. So the files are only renamed until the mappings are gone, which is our business here.
    fn remove_packs(&self, packs: &[&PackInfo]) -> Result<()> {
        let mut aside = Vec::new();
        for info in packs {
            let stem = self.staging_path("removed")?;
            // The index first: without it nobody looks for the pack.
            for extension in ["idx", "rev", "bitmap", "mtimes", "pack"] {
                let (from, to) = (info.path.with_extension(extension), stem.with_extension(extension));
                match fs::rename(&from, &to) {
                    Ok(()) => aside.push(to),
                    Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
                    Err(err) => return Err(Error::io("remove", &from)(err)),
                }
            }
        }
        // What is nowhere is looked for in the packs that are there now, and the mappings of others are given up.
        self.reader()?.contains(Oid::NULL);
        for path in &aside {
            fs::remove_file(path).map_err(Error::io("remove", path))?;
        }
        Ok(())
    }

    /// The lock under which packs are merged, of this process or another; `None` while somebody else does.
    fn lock_for_consolidation(&self) -> Result<Option<File>> {
        let directory = self.path().join("quarantine");
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let path = directory.join("consolidate");
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(err) => Err(Error::io("lock", &path)(err.into())),
        }
    }
}

/// Without looking into them: this is asked often, and the answer is nearly always "too few".
fn count_packs(directory: &Path) -> Result<usize> {
    let entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    Ok(entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().ends_with(b".idx")).count())
}

fn oldest_first(packs: &[PackInfo]) -> Vec<&PackInfo> {
    let age =
        |info: &&PackInfo| fs::metadata(&info.path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut packs: Vec<&PackInfo> = packs.iter().collect();
    packs.sort_by_cached_key(|info| (age(info), info.id));
    packs
}

/// For what the commits among `merged` brought, which version it replaced. Something that is missing ends the search along
/// its way: this only decides how well things are packed.
fn older_versions(reader: &Reader, tips: &[Oid], merged: &HashSet<Oid>) -> Result<HashMap<Oid, Oid>> {
    let mut older = HashMap::new();
    let mut seen = HashSet::new();
    let mut todo: Vec<Oid> = tips.iter().filter_map(|tip| Some(reader.peel(*tip).ok()?.0)).collect();
    let mut buffer = Vec::new();
    while let Some(id) = todo.pop() {
        if !merged.contains(&id) || !seen.insert(id) || seen.len() > MAX_COMMITS_COMPARED {
            continue;
        }
        let Ok(links) = reader.links(id, &mut buffer) else { continue };
        if let Some(Ok(parent)) = links.parents.first().map(|parent| reader.links(*parent, &mut buffer)) {
            pair(reader, parent.tree, links.tree, merged, &mut older)?;
        }
        todo.extend(links.parents);
    }
    Ok(older)
}

/// Pairs two versions of a tree, and of what is in both under the same name.
fn pair(reader: &Reader, old: Oid, new: Oid, merged: &HashSet<Oid>, older: &mut HashMap<Oid, Oid>) -> Result<()> {
    if old == new || !merged.contains(&new) || older.contains_key(&new) {
        return Ok(());
    }
    let (Ok(old_data), Ok(new_data)) = (reader.tree_data(old), reader.tree_data(new)) else { return Ok(()) };
    older.insert(new, old);
    let before: HashMap<&[u8], (Mode, Oid)> = parsed(Some(old), &old_data)?.into_iter().collect();
    for (name, now) in parsed(Some(new), &new_data)? {
        let Some(was) = before.get(name).filter(|was| was.1 != now.1) else { continue };
        match (directory_of(Some(*was)), directory_of(Some(now))) {
            (Some(was), Some(now)) => pair(reader, was, now, merged, older)?,
            (None, None) if now.0.is_file() && was.0.is_file() => {
                older.entry(now.1).or_insert(was.1);
            }
            _ => {}
        }
    }
    Ok(())
}

/// The packs to be merged so that afterwards each has at least `factor` times the objects of all smaller ones together.
fn worth_merging(mut packs: Vec<PackInfo>, factor: u32) -> Vec<PackInfo> {
    packs.retain(|info| !info.path.with_extension("keep").exists());
    packs.sort_unstable_by_key(|info| (info.objects, info.id));
    let mut sums = Vec::with_capacity(packs.len());
    let mut sum = 0u64;
    for info in &packs {
        sums.push(sum);
        sum += u64::from(info.objects);
    }
    // From the largest down, as long as the rule holds; everything below the first break is merged,
    // and so is whatever then becomes too small beside the merged pack.
    let holds = |at: usize| u64::from(packs[at].objects) >= u64::from(factor) * sums[at];
    let mut end = packs.len();
    while end > 1 && holds(end - 1) {
        end -= 1;
    }
    packs.truncate(if end > 1 { end } else { 0 });
    packs
}
