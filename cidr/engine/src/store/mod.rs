//! The store: a directory of immutable files and the list that says which of them count.
//!
//! One writer at a time commits windows; maintenance builds nodes beside it and swaps them in; any number of readers keep the catalog
//! that they began with. What is committed survives a crash at any moment, and what is not leaves no trace.
//!
//! A hand-in carries its node and a number that only grows. What was merged is noted in the same record as the files, so that a hand-in
//! that comes again, because the answer was lost, counts once.
//!
//! The directory is locked with its owner's name as long as the store is open.

pub(crate) mod catalog;
mod counts;
pub(crate) mod disk;
mod dump;
mod maintain;
mod manifest;
mod merged;
mod months;
mod repair;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dir_lock::{DirLock, Owner};

use catalog::{Catalog, FileEntry, OpenFiles, lock};
pub use counts::Counts;
use disk::{Disk, Output, RealDisk};
pub use dump::Dumped;
pub use maintain::{Care, Maintained};
use manifest::{DayEnds, Edit, FileRecord, ManifestWriter};
pub(crate) use merged::MergedDays;
pub use repair::{Repaired, Verified};

use crate::error::{Error, Result};
use crate::segment::{Kind, Meta, Part, Segment, SegmentWriter, WriteError};
use crate::time::{FIRST_STAMP, LAST_STAMP, Stamp, compact_stamp};

/// The folder of days and larger nodes.
const NODES: &str = "condensed";

/// The counts of one series, window and node.
#[derive(Debug, Clone)]
pub struct Window {
    /// The series.
    pub series: String,
    /// The node that counted; may be empty.
    pub node: String,
    /// The window's start.
    pub start: Stamp,
    /// Its end, which names it.
    pub end: Stamp,
    /// What was counted.
    pub counts: Counts,
}

/// Where a hand-in comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The node.
    pub node: String,
    /// Its number, which grows from one hand-in of the node to the next.
    pub sequence: u64,
}

/// What became of a hand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// It is durable.
    Written,
    /// It, or a later one of its node, had been merged before.
    Duplicate,
}

/// How a store is opened.
pub struct StoreOptions {
    /// Memory for merged windows of days that have no node yet.
    pub merged_bytes: usize,
    /// Where writes go.
    pub disk: Arc<dyn Disk>,
    /// Who opens the directory: a second opener is told.
    pub owner: Owner,
}

impl StoreOptions {
    /// Defaults.
    pub fn owned_by(owner: Owner) -> Self {
        Self { merged_bytes: 256 << 20, disk: Arc::new(RealDisk), owner }
    }
}

/// What the writer owns.
struct Writer {
    manifest: ManifestWriter,
    next_id: u64,
    taken: BTreeMap<String, u64>,
    /// Set by the first write that failed: what is on disk is known again only after a restart.
    poisoned: bool,
}

/// A directory of counts.
pub struct Store {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    catalog: RwLock<Arc<Catalog>>,
    writer: Mutex<Writer>,
    maintenance: Mutex<()>,
    files: OpenFiles,
    merged: MergedDays,
    _lock: DirLock,
}

impl Store {
    /// Opens a directory, or makes it; removes what a crash left.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self> {
        let StoreOptions { merged_bytes, disk, owner } = options;
        disk.create_dir(&dir.join(NODES)).map_err(Error::io("make", dir))?;
        let lock = DirLock::acquire(dir, &owner)?;
        let (manifest, edits) = match manifest::load(dir)? {
            Some(loaded) if loaded.old => (ManifestWriter::replace(&*disk, dir, &loaded.edits)?, loaded.edits),
            Some(loaded) => {
                if loaded.torn_bytes > 0 {
                    let path = dir.join(manifest::MANIFEST);
                    disk.truncate(&path, loaded.sound_bytes).map_err(Error::io("cut", &path))?;
                }
                (ManifestWriter::resume(&*disk, dir, loaded.sound_bytes)?, loaded.edits)
            }
            None if !repair::files_of(dir)?.is_empty() => return Err(Error::NoManifest { dir: dir.into() }),
            None => (ManifestWriter::replace(&*disk, dir, &[])?, Vec::new()),
        };
        let mut catalog = Catalog::default();
        let mut writer = Writer { manifest, next_id: 1, taken: BTreeMap::new(), poisoned: false };
        for edit in &edits {
            catalog.apply(edit, dir);
            writer.note(edit);
        }
        repair::remove_leftovers(&*disk, dir, &catalog)?;
        Ok(Self {
            dir: dir.into(),
            disk,
            catalog: RwLock::new(Arc::new(catalog)),
            writer: Mutex::new(writer),
            maintenance: Mutex::new(()),
            files: OpenFiles::new(),
            merged: MergedDays::new(merged_bytes),
            _lock: lock,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the windows of a hand-in durable, all or none.
    pub fn commit(&self, origin: Option<&Origin>, windows: &[Window]) -> Result<Committed> {
        windows.iter().try_for_each(check_window)?;
        if let Some(origin) = origin {
            check_name(&origin.node)?;
        }
        let mut writer = self.writer()?;
        if let Some(origin) = origin
            && writer.taken.get(&origin.node).is_some_and(|taken| *taken >= origin.sequence)
        {
            return Ok(Committed::Duplicate);
        }
        let mut edits = Vec::new();
        for window in windows.iter().filter(|window| !window.counts.is_empty()) {
            let record = self.write_window(&mut writer, origin, window, &edits)?;
            edits.push(Edit::Add(record));
        }
        if !edits.is_empty() {
            self.disk.sync_dir(&self.dir).map_err(Error::io("sync", &self.dir))?;
        }
        edits.extend(origin.map(|Origin { node, sequence }| Edit::Taken { node: node.clone(), sequence: *sequence }));
        if !edits.is_empty() {
            self.publish(&mut writer, &edits)?;
        }
        Ok(Committed::Written)
    }

    /// The highest hand-in of a node that was merged.
    pub fn taken(&self, node: &str) -> Option<u64> {
        lock(&self.writer).taken.get(node).copied()
    }

    /// The series with the ends of their first and last windows.
    pub fn available(&self) -> Vec<(String, Stamp, Stamp)> {
        let catalog = self.catalog();
        let ends = |files: &catalog::SeriesFiles| files.ends();
        catalog.series.iter().filter_map(|(name, files)| ends(files).map(|(a, b)| (name.clone(), a, b))).collect()
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn files(&self) -> &OpenFiles {
        &self.files
    }

    pub(crate) fn merged(&self) -> &MergedDays {
        &self.merged
    }

    fn writer(&self) -> Result<std::sync::MutexGuard<'_, Writer>> {
        let writer = lock(&self.writer);
        if writer.poisoned {
            return Err(Error::Poisoned { dir: self.dir.clone() });
        }
        Ok(writer)
    }

    fn write_window(
        &self,
        writer: &mut Writer,
        origin: Option<&Origin>,
        window: &Window,
        earlier: &[Edit],
    ) -> Result<FileRecord> {
        let sequence = origin.map(|origin| origin.sequence);
        let meta = Meta {
            kind: Kind::Window,
            id: writer.give_id(),
            series: window.series.clone(),
            start: window.start,
            end: window.end,
            first_end: window.end,
            last_end: window.end,
            consumed: Vec::new(),
            parts: vec![Part { node: window.node.clone(), sequence, start: window.start, end: window.end }],
        };
        let name = self.window_name(&window.series, window.end, earlier);
        let counts = &window.counts;
        self.write_file(&meta, name, false, |file| {
            let v4 = counts.v4().iter().try_for_each(|(key, count)| file.v4(*key, *count));
            let both = v4.and_then(|()| counts.v6().iter().try_for_each(|(key, count)| file.v6(*key, *count)));
            both.map_err(Error::io("write a window to", &self.dir))
        })
    }

    /// `series.20080423T123000`, and with a number for what comes after the first.
    fn window_name(&self, series: &str, end: Stamp, earlier: &[Edit]) -> String {
        let name = format!("{series}.{}", compact_stamp(end));
        let number = |taken: &str| match taken.strip_prefix(&name) {
            Some("") => Some(1),
            Some(rest) => rest.strip_prefix('.').and_then(|rest| rest.parse::<u32>().ok()),
            None => None,
        };
        let catalog = self.catalog();
        let day = catalog.series.get(series).and_then(|files| files.days.get(&crate::time::Day::of_end(end)));
        let committed = day.iter().flat_map(|day| day.windows.iter().map(|window| window.file.record.name.as_str()));
        let pending = earlier.iter().filter_map(|edit| match edit {
            Edit::Add(record) => Some(record.name.as_str()),
            _ => None,
        });
        match committed.chain(pending).filter_map(number).max() {
            None => name,
            Some(highest) => format!("{name}.{}", highest + 1),
        }
    }

    /// Writes a file under its final name, synced but for the name.
    fn write_file(
        &self,
        meta: &Meta,
        name: String,
        with_levels: bool,
        fill: impl FnOnce(&mut SegmentWriter<BufWriter<Box<dyn Output>>>) -> Result<()>,
    ) -> Result<FileRecord> {
        let path = self.dir.join(&name);
        let temporary = self.dir.join(format!(".tmp-{}", meta.id));
        let written = self.write_temporary(meta, &temporary, with_levels, fill);
        let renamed = written.and_then(|sizes| {
            self.disk.rename(&temporary, &path).map_err(Error::io("rename", &path))?;
            Ok(sizes)
        });
        let (bytes, rows) = renamed.inspect_err(|_| {
            // Best effort: what stays is removed at the next start.
            let _ = self.disk.remove(&temporary);
        })?;
        Ok(FileRecord {
            id: meta.id,
            kind: meta.kind,
            series: meta.series.clone(),
            start: meta.start,
            end: meta.end,
            first_end: meta.first_end,
            last_end: meta.last_end,
            rows,
            bytes,
            name,
            nodes: meta.nodes(),
            days: meta.days().map(|(_, part)| DayEnds { first: part.start, last: part.end }).collect(),
        })
    }

    fn write_temporary(
        &self,
        meta: &Meta,
        path: &Path,
        with_levels: bool,
        fill: impl FnOnce(&mut SegmentWriter<BufWriter<Box<dyn Output>>>) -> Result<()>,
    ) -> Result<(u64, u64)> {
        let io = || Error::io("write", path);
        let output = BufWriter::with_capacity(1 << 16, self.disk.create(path).map_err(io())?);
        let mut writer = SegmentWriter::new(output, meta, with_levels).map_err(io())?;
        fill(&mut writer)?;
        let (output, bytes, rows) = writer.finish().map_err(|error| match error {
            WriteError::Io(source) => io()(source),
            WriteError::TooLarge => Error::TooLarge { series: meta.series.clone(), stamp: compact_stamp(meta.end) },
        })?;
        let mut output = output.into_inner().map_err(|error| io()(error.into_error()))?;
        output.sync().map_err(io())?;
        Ok((bytes, rows))
    }

    /// Appends edits to the manifest, durably, and shows the new catalog.
    fn publish(&self, writer: &mut Writer, edits: &[Edit]) -> Result<()> {
        if let Err(error) = writer.manifest.append(edits) {
            writer.poisoned = true;
            return Err(error);
        }
        let mut catalog = Catalog::clone(&self.catalog());
        let mut gone = Vec::new();
        for edit in edits {
            gone.extend(catalog.apply(edit, &self.dir));
            writer.note(edit);
        }
        let new = Arc::new(catalog);
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
        if writer.manifest.is_grown() {
            let edits = writer.snapshot(&new);
            writer.manifest =
                ManifestWriter::replace(&*self.disk, &self.dir, &edits).inspect_err(|_| writer.poisoned = true)?;
        }
        self.remove_files(&gone)
    }

    /// Removes names; the content stays for queries that hold the entry.
    fn remove_files(&self, gone: &[Arc<FileEntry>]) -> Result<()> {
        for entry in gone {
            // One reference is ours. Others are catalogs of running queries.
            if Arc::strong_count(entry) > 1 {
                entry.pin()?;
            }
            match self.disk.remove(&entry.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &entry.path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Writer {
    fn give_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// What an edit means for ids and hand-ins.
    fn note(&mut self, edit: &Edit) {
        match edit {
            Edit::Add(record) => self.next_id = self.next_id.max(record.id + 1),
            Edit::NextId(id) => self.next_id = self.next_id.max(*id),
            Edit::Taken { node, sequence } => {
                let taken = self.taken.entry(node.clone()).or_default();
                *taken = (*taken).max(*sequence);
            }
            Edit::Remove { .. } | Edit::Cover { .. } | Edit::Condensed { .. } => {}
        }
    }

    fn snapshot(&self, catalog: &Catalog) -> Vec<Edit> {
        let mut edits = vec![Edit::NextId(self.next_id)];
        let taken = self.taken.iter();
        edits.extend(taken.map(|(node, sequence)| Edit::Taken { node: node.clone(), sequence: *sequence }));
        edits.extend(catalog.edits());
        edits
    }
}

fn check_window(window: &Window) -> Result<()> {
    let Window { series, node, start, end, .. } = window;
    check_name(series)?;
    if !node.is_empty() {
        check_name(node)?;
    }
    if !(FIRST_STAMP <= *start && start < end && *end <= LAST_STAMP) {
        return Err(Error::Window { series: series.clone(), start: *start, end: *end });
    }
    Ok(())
}

/// Names become part of file names and queries.
fn check_name(name: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let reason = if name.is_empty() || name.len() > 63 {
        "it has 1 to 63 characters"
    } else if !name.bytes().all(good) || name.starts_with(['-', '.']) {
        "it has letters, digits and - _ . and starts with none of - and ."
    } else {
        return Ok(());
    };
    Err(Error::Name { name: name.chars().take(64).collect(), reason })
}

/// Reads a directory's names.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir)(error)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    let mut names = names.map_err(Error::io("list", dir))?;
    names.sort();
    Ok(names)
}

/// A file built in memory.
pub(crate) fn build_in_memory(
    meta: &Meta,
    fill: impl FnOnce(&mut SegmentWriter<Vec<u8>>) -> Result<()>,
) -> Result<Arc<Segment>> {
    let io = |source| Error::Io { action: "write", path: "(memory)".into(), source };
    let mut writer = SegmentWriter::new(Vec::new(), meta, true).map_err(io)?;
    fill(&mut writer)?;
    let (bytes, _, _) = writer.finish().map_err(|error| match error {
        WriteError::Io(source) => io(source),
        WriteError::TooLarge => Error::TooLarge { series: meta.series.clone(), stamp: compact_stamp(meta.end) },
    })?;
    Segment::from_memory(bytes)
}

/// Adds rows of all sources, in order, to a file; those with a count of zero, too, where the file keeps them.
pub(crate) fn fill_from<W: Write>(
    file: &mut SegmentWriter<W>,
    sources: &[(Arc<Segment>, u16)],
    work: &crate::work::Work<'_>,
) -> Result<()> {
    let io = |source| Error::Io { action: "write", path: "(merged)".into(), source };
    let mut count = [0];
    let mut v4 = crate::query::merge_all::<u32>(sources, work)?;
    if file.keeps_zeros() {
        v4.keep_zeros();
    }
    while let Some(key) = v4.next(&mut count)? {
        file.v4(key, count[0]).map_err(io)?;
    }
    drop(v4);
    let mut v6 = crate::query::merge_all::<u128>(sources, work)?;
    if file.keeps_zeros() {
        v6.keep_zeros();
    }
    while let Some(key) = v6.next(&mut count)? {
        file.v6(key, count[0]).map_err(io)?;
    }
    Ok(())
}

/// What a file says that lives no longer than a query.
pub(crate) fn memory_meta() -> Meta {
    merged::node_meta("", crate::time::Day(0))
}
