//! Which files there are, by series and day. Immutable: a query keeps the catalog that it began with, whatever maintenance does.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::manifest::{DayEnds, Edit, FileRecord};
use crate::error::{Error, Result};
use crate::segment::{Kind, Segment};
use crate::time::Day;

/// A file that counts, opened when it is first asked.
pub(crate) struct FileEntry {
    pub(crate) record: FileRecord,
    pub(crate) path: PathBuf,
    open: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    weak: Weak<Segment>,
    /// Set when the name goes away while a query may still want the content.
    pinned: Option<Arc<Segment>>,
}

impl FileEntry {
    pub(crate) fn new(record: FileRecord, path: PathBuf) -> Arc<Self> {
        Arc::new(Self { record, path, open: Mutex::default() })
    }

    /// The open file.
    pub(crate) fn open(&self, files: &OpenFiles) -> Result<Arc<Segment>> {
        let mut slot = lock(&self.open);
        if let Some(segment) = slot.pinned.clone().or_else(|| slot.weak.upgrade()) {
            return Ok(segment);
        }
        let segment = Segment::open(&self.path)?;
        if segment.meta().id != self.record.id {
            return Err(Error::damaged(&self.path, "it is another file than the manifest says"));
        }
        slot.weak = Arc::downgrade(&segment);
        drop(slot);
        files.keep(Arc::clone(&segment));
        Ok(segment)
    }

    /// Keeps the content for whoever still holds this entry. Called before the name is removed.
    pub(crate) fn pin(&self) -> Result<()> {
        let mut slot = lock(&self.open);
        if slot.pinned.is_none() {
            let open = slot.weak.upgrade();
            slot.pinned = Some(open.map_or_else(|| Segment::open(&self.path), Ok)?);
        }
        Ok(())
    }

    /// The days whose windows are inside.
    pub(crate) fn days(&self) -> (Day, Day) {
        match self.record.kind {
            Kind::Window => (Day::of_end(self.record.end), Day::of_end(self.record.end)),
            _ => (Day::of_moment(self.record.start), Day::of_end(self.record.end)),
        }
    }
}

/// A panic elsewhere leaves these locks' content whole: every change below is a single assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files that stay mapped after a query, oldest first out.
pub(crate) struct OpenFiles {
    kept: Mutex<VecDeque<Arc<Segment>>>,
}

/// Mapped files kept open. A process may have 65,530 mappings; a month's nodes of ten series and a day's windows fit well.
const KEPT_OPEN: usize = 1_024;

impl OpenFiles {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::default() }
    }

    fn keep(&self, segment: Arc<Segment>) {
        let mut kept = lock(&self.kept);
        kept.push_back(segment);
        // The oldest is unmapped after the lock is released.
        let oldest = if kept.len() > KEPT_OPEN { kept.pop_front() } else { None };
        drop(kept);
        drop(oldest);
    }

    /// Number and bytes of the files that are open.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let kept = lock(&self.kept);
        (kept.len(), kept.iter().map(|segment| segment.len()).sum())
    }
}

/// A window's file, and whether the day's node has its rows already.
#[derive(Clone)]
pub(crate) struct WindowFile {
    pub(crate) file: Arc<FileEntry>,
    pub(crate) covered: bool,
}

/// The sum of a day: a file of its own, or a part of a packed month.
#[derive(Clone)]
pub(crate) struct DayNode {
    pub(crate) file: Arc<FileEntry>,
    /// The part that is the sum.
    pub(crate) part: u16,
    pub(crate) ends: DayEnds,
}

impl DayNode {
    fn of_file(file: Arc<FileEntry>) -> Self {
        let ends = DayEnds { first: file.record.first_end, last: file.record.last_end };
        Self { file, part: 0, ends }
    }

    /// The sum, open.
    pub(crate) fn open(&self, files: &OpenFiles) -> Result<(Arc<Segment>, u16)> {
        Ok((self.file.open(files)?, self.part))
    }

    pub(crate) fn is_in_month(&self) -> bool {
        self.file.record.kind == Kind::PackedMonth
    }
}

/// The files of one day.
#[derive(Clone, Default)]
pub(crate) struct DayFiles {
    pub(crate) node: Option<DayNode>,
    /// By end, then id.
    pub(crate) windows: Vec<WindowFile>,
    /// Single windows were given up for the node.
    pub(crate) condensed: bool,
}

impl DayFiles {
    pub(crate) fn uncovered(&self) -> impl Iterator<Item = &Arc<FileEntry>> {
        self.windows.iter().filter(|window| !window.covered).map(|window| &window.file)
    }

    /// The node, when the windows in it are there one by one.
    pub(crate) fn packed(&self) -> Option<&DayNode> {
        self.node.as_ref().filter(|node| node.file.record.kind == Kind::Packed)
    }

    /// The node, when it is a part of a packed month.
    pub(crate) fn in_month(&self) -> Option<&DayNode> {
        self.node.as_ref().filter(|node| node.is_in_month())
    }

    /// The node's file, when it has nothing but this day.
    pub(crate) fn own_file(&self) -> Option<&Arc<FileEntry>> {
        self.node.as_ref().filter(|node| !node.is_in_month()).map(|node| &node.file)
    }

    /// The ends of the first and the last window that ever came.
    pub(crate) fn ends(&self) -> Option<(i64, i64)> {
        let windows = self.windows.iter().map(|window| &window.file.record);
        let windows = windows.map(|record| (record.first_end, record.last_end));
        let node = self.node.iter().map(|node| (node.ends.first, node.ends.last));
        windows.chain(node).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }
}

/// The files of one series.
#[derive(Clone, Default)]
pub(crate) struct SeriesFiles {
    pub(crate) days: BTreeMap<Day, Arc<DayFiles>>,
    /// Nodes over several days, by first day.
    pub(crate) spans: BTreeMap<(Day, Kind), Arc<FileEntry>>,
    /// Packed months, by the first day of the month.
    pub(crate) months: BTreeMap<Day, Arc<FileEntry>>,
}

impl SeriesFiles {
    /// The ends of the first and the last window.
    pub(crate) fn ends(&self) -> Option<(i64, i64)> {
        let first = self.days.values().find_map(|day| day.ends())?;
        let last = self.days.values().rev().find_map(|day| day.ends())?;
        Some((first.0, last.1))
    }

    fn files(&self) -> impl Iterator<Item = (&Arc<FileEntry>, bool)> {
        let of_days = self.days.values().flat_map(|day| {
            let windows = day.windows.iter().map(|window| (&window.file, window.covered));
            windows.chain(day.own_file().map(|file| (file, false)))
        });
        of_days.chain(self.spans.values().chain(self.months.values()).map(|file| (file, false)))
    }
}

/// All files.
#[derive(Clone, Default)]
pub(crate) struct Catalog {
    pub(crate) series: BTreeMap<String, Arc<SeriesFiles>>,
}

impl Catalog {
    /// Applies an edit; returns the entry that is no longer part of it.
    pub(crate) fn apply(&mut self, edit: &Edit, dir: &std::path::Path) -> Option<Arc<FileEntry>> {
        match edit {
            Edit::Add(record) => {
                self.add(FileEntry::new(record.clone(), dir.join(&record.name)));
                None
            }
            Edit::Remove { series, kind, start, end, id } => self.remove(series, *kind, *start, *end, *id),
            Edit::Cover { series, end, id } => {
                let day = self.day_mut(series, Day::of_end(*end));
                day.windows.iter_mut().filter(|w| w.file.record.id == *id).for_each(|w| w.covered = true);
                None
            }
            Edit::Condensed { series, day } => {
                self.day_mut(series, Day(*day)).condensed = true;
                None
            }
            Edit::Taken { .. } | Edit::NextId(_) => None,
        }
    }

    fn day_mut(&mut self, series: &str, day: Day) -> &mut DayFiles {
        let files = Arc::make_mut(self.series.entry(series.to_owned()).or_default());
        Arc::make_mut(files.days.entry(day).or_default())
    }

    fn add(&mut self, entry: Arc<FileEntry>) {
        let (series, kind, day) = (entry.record.series.clone(), entry.record.kind, entry.days().0);
        match kind {
            Kind::Window => {
                let windows = &mut self.day_mut(&series, day).windows;
                let key = (entry.record.end, entry.record.id);
                let at = windows.partition_point(|window| (window.file.record.end, window.file.record.id) < key);
                windows.insert(at, WindowFile { file: entry, covered: false });
            }
            Kind::Day | Kind::Packed => self.day_mut(&series, day).node = Some(DayNode::of_file(entry)),
            Kind::PackedMonth => {
                for (part, ends) in (1..).zip(&entry.record.days) {
                    let files = self.day_mut(&series, ends.day());
                    files.node = Some(DayNode { file: Arc::clone(&entry), part, ends: *ends });
                    files.condensed = true;
                }
                let files = Arc::make_mut(self.series.entry(series).or_default());
                files.months.insert(day.first_of_month(), entry);
            }
            Kind::Span8 | Kind::Month => {
                let files = Arc::make_mut(self.series.entry(series).or_default());
                files.spans.insert((day, kind), entry);
            }
        }
    }

    fn remove(&mut self, series: &str, kind: Kind, start: i64, end: i64, id: u64) -> Option<Arc<FileEntry>> {
        let files = Arc::make_mut(self.series.get_mut(series)?);
        let gone = match kind {
            Kind::Span8 | Kind::Month => files.spans.remove(&(Day::of_moment(start), kind)),
            Kind::Day | Kind::Packed => {
                let day = Arc::make_mut(files.days.get_mut(&Day::of_moment(start))?);
                day.node.take_if(|node| node.file.record.id == id).map(|node| node.file)
            }
            Kind::PackedMonth => {
                let month = Day::of_moment(start).first_of_month();
                let entry = files.months.get(&month).filter(|entry| entry.record.id == id).cloned()?;
                for ends in &entry.record.days {
                    if let Some(day) = files.days.get_mut(&ends.day()) {
                        Arc::make_mut(day).node.take_if(|node| node.file.record.id == id);
                    }
                }
                files.months.remove(&month)
            }
            Kind::Window => {
                let day = Arc::make_mut(files.days.get_mut(&Day::of_end(end))?);
                let at = day.windows.iter().position(|window| window.file.record.id == id)?;
                Some(day.windows.remove(at).file)
            }
        };
        files.days.retain(|_, day| day.node.is_some() || !day.windows.is_empty());
        if files.days.is_empty() && files.spans.is_empty() {
            self.series.remove(series);
        }
        gone
    }

    /// Every file; true with it when it is a window whose rows are in the node of its day.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Arc<FileEntry>, bool)> {
        self.series.values().flat_map(|series| series.files())
    }

    /// The edits that make this catalog from nothing.
    pub(crate) fn edits(&self) -> Vec<Edit> {
        let mut edits = Vec::new();
        for (file, covered) in self.files() {
            let record = file.record.clone();
            let cover = Edit::Cover { series: record.series.clone(), end: record.end, id: record.id };
            edits.push(Edit::Add(record));
            edits.extend(covered.then_some(cover));
        }
        for (series, files) in &self.series {
            let condensed = files.days.iter().filter(|(_, day)| day.condensed);
            edits.extend(condensed.map(|(day, _)| Edit::Condensed { series: series.clone(), day: day.0 }));
        }
        edits
    }
}

/// The edit that removes a file.
pub(crate) fn removal(record: &FileRecord) -> Edit {
    let FileRecord { series, kind, start, end, id, .. } = record;
    Edit::Remove { series: series.clone(), kind: *kind, start: *start, end: *end, id: *id }
}
