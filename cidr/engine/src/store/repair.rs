//! Looking at every byte, and making a manifest from the files when it is lost.
//!
//! Each file says what it is and which files' rows it holds. So of a day, its windows and older versions of both, the newest sound ones are
//! taken, and nothing is counted twice. Nodes over several days are dropped; maintenance makes them again. What is damaged is moved to
//! `damaged/`, never deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dir_lock::{DirLock, Owner};

use super::catalog::{Catalog, lock};
use super::disk::Disk;
use super::manifest::{DayEnds, Edit, FileRecord, ManifestWriter};
use super::{NODES, Store, list};
use crate::error::{Error, Result};
use crate::segment::{Kind, Meta, Segment};
use crate::time::Day;

const DAMAGED: &str = "damaged";

/// What a look at every byte found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Files looked at.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// What is wrong, with the file.
    pub damage: Vec<(PathBuf, String)>,
}

/// What a repair did.
#[derive(Debug, Clone, Default)]
pub struct Repaired {
    /// Files in the new manifest.
    pub kept: u64,
    /// Files whose rows are in another one.
    pub superseded: u64,
    /// Files that were moved to `damaged/`, with the reason.
    pub damaged: Vec<(PathBuf, String)>,
}

impl Store {
    /// Reads every file of the list and compares blocks, indexes and sums.
    pub fn verify(&self, stop: &dyn Fn() -> bool) -> Result<Verified> {
        // Maintenance would take files away under our eyes.
        let _alone = lock(&self.maintenance);
        let mut verified = Verified::default();
        let mut totals = HashMap::new();
        let catalog = self.catalog();
        for (entry, _) in catalog.files() {
            if stop() {
                return Err(Error::Cancelled);
            }
            verified.files += 1;
            let checked = entry.open(&self.files).and_then(|segment| {
                totals.extend(totals_of(&segment).map(|(part, total)| ((entry.record.id, part), total)));
                Ok((segment.verify()?, segment))
            });
            match checked {
                Ok((rows, _)) if rows != entry.record.rows => {
                    let what = format!("it has {rows} rows, and the manifest says {}", entry.record.rows);
                    verified.damage.push((entry.path.clone(), what));
                }
                Ok((rows, _)) => verified.rows += rows,
                Err(error) => verified.damage.push((entry.path.clone(), error.to_string())),
            }
        }
        compare_sums(&catalog, &totals, &mut verified);
        Ok(verified)
    }

    /// Makes a new manifest for a directory whose old one is lost or damaged, and that no store has open.
    pub fn repair(dir: &Path, disk: &dyn Disk, owner: &Owner) -> Result<Repaired> {
        let _lock = DirLock::acquire(dir, owner)?;
        let mut repaired = Repaired::default();
        let found = read_all(dir, disk, &mut repaired)?;
        let (keep, covered) = choose(&found);
        let condensed = condensed_days(&found, &keep);
        let mut edits = vec![Edit::NextId(found.keys().max().map_or(1, |id| id + 1))];
        edits.extend(taken(&found));
        for id in &keep {
            let Found { record, .. } = &found[id];
            edits.push(Edit::Add(record.clone()));
            if covered.contains(id) {
                edits.push(Edit::Cover { series: record.series.clone(), end: record.end, id: *id });
            }
        }
        edits.extend(condensed);
        repaired.kept = keep.len() as u64;
        repaired.superseded = found.len() as u64 - repaired.kept;
        ManifestWriter::replace(disk, dir, &edits)?;
        Ok(repaired)
    }
}

/// The sum of each part that is somebody's sum: the windows of a packed day are in its first.
fn totals_of(segment: &Segment) -> impl Iterator<Item = (u16, i64)> {
    let mut totals: BTreeMap<u16, i64> = BTreeMap::new();
    for table in segment.tables().iter().filter(|table| table.level == table.family.bits()) {
        let total = totals.entry(table.part).or_default();
        *total = total.wrapping_add(table.total);
    }
    totals.into_iter()
}

/// Nodes over several days are the sum of the days; a day is the sum of its windows while all of them are there.
fn compare_sums(catalog: &Catalog, totals: &HashMap<(u64, u16), i64>, verified: &mut Verified) {
    // A part without a row has no table.
    let of = |id: u64, part: u16| totals.get(&(id, part)).copied();
    for files in catalog.series.values() {
        for span in files.spans.values() {
            let (first, last) = span.days();
            let days = files.days.range(first..=last).filter_map(|(_, day)| day.node.as_ref());
            let mut sum = days.map(|node| of(node.file.record.id, node.part));
            let sum = sum.try_fold(0_i64, |sum, total| Some(sum.wrapping_add(total?)));
            if let (Some(sum), Some(found)) = (sum, of(span.record.id, 0))
                && sum != found
            {
                verified.damage.push((span.path.clone(), format!("its sum is {found}, and that of its days {sum}")));
            }
        }
    }
}

struct Found {
    record: FileRecord,
    meta: Meta,
}

/// Every sound file by id; what is damaged is put aside.
fn read_all(dir: &Path, disk: &dyn Disk, repaired: &mut Repaired) -> Result<BTreeMap<u64, Found>> {
    let mut found = BTreeMap::new();
    for path in files_of(dir)? {
        let checked = Segment::open(&path).and_then(|segment| Ok((segment.verify()?, segment)));
        match checked {
            Ok((rows, segment)) => {
                let record = record_of(dir, &path, rows, &segment);
                found.insert(record.id, Found { record, meta: segment.meta().clone() });
            }
            Err(Error::Damaged { what, .. }) => {
                put_aside(dir, disk, &path)?;
                repaired.damaged.push((path, what));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(found)
}

fn record_of(dir: &Path, path: &Path, rows: u64, segment: &Arc<Segment>) -> FileRecord {
    let meta = segment.meta();
    FileRecord {
        id: meta.id,
        kind: meta.kind,
        series: meta.series.clone(),
        start: meta.start,
        end: meta.end,
        first_end: meta.first_end,
        last_end: meta.last_end,
        rows,
        bytes: segment.len() as u64,
        name: path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned(),
        nodes: meta.nodes(),
        days: meta.days().map(|(_, part)| DayEnds { first: part.start, last: part.end }).collect(),
    }
}

fn put_aside(dir: &Path, disk: &dyn Disk, path: &Path) -> Result<()> {
    let aside = dir.join(DAMAGED);
    disk.create_dir(&aside).map_err(Error::io("make", &aside))?;
    let Some(name) = path.file_name() else { return Ok(()) };
    disk.rename(path, &aside.join(name)).map_err(Error::io("move aside", path))
}

/// The files that count, and those of them that are windows inside their day's node.
fn choose(found: &BTreeMap<u64, Found>) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let mut keep: BTreeSet<u64> = BTreeSet::new();
    let superseded: BTreeSet<u64> = found
        .values()
        .filter(|file| matches!(file.meta.kind, Kind::Window))
        .flat_map(|file| file.meta.consumed.iter().copied())
        .collect();
    keep.extend(
        found.iter().filter(|(id, file)| file.meta.kind == Kind::Window && !superseded.contains(id)).map(|(id, _)| id),
    );
    let nodes = newest_nodes(found);
    let mut covered = BTreeSet::new();
    for id in &keep {
        let meta = &found[id].meta;
        let node = nodes.get(&(meta.series.as_str(), Day::of_end(meta.end)));
        let inside = node.map(|node| &found[node].meta.consumed);
        let holds = |id: &u64| inside.is_some_and(|ids| ids.binary_search(id).is_ok());
        if holds(id) || (!meta.consumed.is_empty() && meta.consumed.iter().all(holds)) {
            covered.insert(*id);
        }
    }
    // A packed day has its windows inside, and a packed month has given them up: files of them are leftovers of a removal that was cut off.
    let packed = |id: &u64| {
        let meta = &found[id].meta;
        let node = nodes.get(&(meta.series.as_str(), Day::of_end(meta.end)));
        node.is_some_and(|node| found[node].meta.kind.is_packed())
    };
    covered.retain(|id| !packed(id) || !keep.remove(id));
    keep.extend(nodes.values());
    (keep, covered)
}

/// The file that has the sum of each day: the newest one holds all that older ones held.
fn newest_nodes(found: &BTreeMap<u64, Found>) -> BTreeMap<(&str, Day), u64> {
    // A day that an older file of a month has and the newest lacks had become too old.
    let packed = || found.iter().filter(|(_, file)| file.meta.kind == Kind::PackedMonth);
    let month_of = |file: &Found| Day::of_moment(file.meta.start).first_of_month();
    let months: BTreeMap<(&str, Day), u64> =
        packed().map(|(id, file)| ((file.meta.series.as_str(), month_of(file)), *id)).collect();
    let mut nodes: BTreeMap<(&str, Day), u64> = BTreeMap::new();
    for (id, file) in found {
        let series = file.meta.series.as_str();
        match file.meta.kind {
            Kind::Day | Kind::Packed => {
                nodes.insert((series, Day::of_moment(file.meta.start)), *id);
            }
            Kind::PackedMonth if months.get(&(series, month_of(file))) == Some(id) => {
                nodes.extend(file.meta.days().map(|(_, part)| ((series, Day::of_end(part.start)), *id)));
            }
            _ => {}
        }
    }
    nodes
}

/// Days whose node holds windows that are no longer there. (Those of a packed month are known to be.)
fn condensed_days(found: &BTreeMap<u64, Found>, keep: &BTreeSet<u64>) -> Vec<Edit> {
    let kept = || keep.iter().map(|id| &found[id].meta);
    let windows = kept().filter(|meta| meta.kind == Kind::Window);
    let there: BTreeSet<u64> = windows.flat_map(|meta| meta.consumed.iter().copied().chain([meta.id])).collect();
    let nodes = kept().filter(|meta| meta.kind == Kind::Day && meta.consumed.iter().any(|id| !there.contains(id)));
    nodes.map(|meta| Edit::Condensed { series: meta.series.clone(), day: Day::of_moment(meta.start).0 }).collect()
}

fn taken(found: &BTreeMap<u64, Found>) -> Vec<Edit> {
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    for part in found.values().flat_map(|file| &file.meta.parts) {
        if let Some(sequence) = part.sequence {
            let known = highest.entry(&part.node).or_default();
            *known = (*known).max(sequence);
        }
    }
    highest.into_iter().map(|(node, sequence)| Edit::Taken { node: node.into(), sequence }).collect()
}

/// Files of counts in a directory, whether anything lists them or not.
pub(super) fn files_of(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = list(dir)?;
    files.extend(list(&dir.join(NODES))?);
    files.retain(|path| !is_temporary(path) && is_ours(path));
    Ok(files)
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".tmp-"))
}

fn is_ours(path: &Path) -> bool {
    let mut magic = [0; 8];
    path.is_file()
        && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && &magic == crate::segment::MAGIC
}

/// Removes what a crash left: temporary files, and files of counts that are not, or no longer, in the list.
pub(super) fn remove_leftovers(disk: &dyn Disk, dir: &Path, catalog: &Catalog) -> Result<()> {
    let listed: BTreeSet<&Path> = catalog.files().map(|(entry, _)| entry.path.as_path()).collect();
    for path in list(dir)?.into_iter().chain(list(&dir.join(NODES))?) {
        if is_temporary(&path) || (!listed.contains(path.as_path()) && is_ours(&path)) {
            disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}
