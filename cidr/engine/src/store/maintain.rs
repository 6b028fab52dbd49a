//! Care of the files, while everything else goes on: days and larger nodes are built, late files merged, old detail and old days removed.
//!
//! A finished day becomes one file: its sum, and its windows with the sum's addresses named by their places, which takes a third of the
//! windows' own files. When its single windows are given up, the sum stays alone, until it goes into its month's file (`months.rs`).
//!
//! Every step writes its new file first and then changes the list in one record, so that a crash between any two calls leaves either the
//! old files or the new ones, with the same sums. What always holds afterwards:
//!
//! * a day's node holds exactly the windows that are inside it or marked as covered;
//! * a node over several days holds exactly the day nodes inside its time: whoever changes one of those removes it in the same record.
//!
//! Ages are measured against the clock, but never more than a day ahead of the newest window: a clock that jumps into the next decade
//! must not empty the store.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::sync::Arc;

use super::catalog::{DayFiles, FileEntry, SeriesFiles, lock, removal};
use super::disk::Output;
use super::manifest::Edit;
use super::merged::node_meta;
use super::{NODES, Store, fill_from};
use crate::error::{Error, Result};
use crate::segment::{Kind, Meta, Part, Segment, SegmentWriter};
use crate::time::{DAY_S, Day, Stamp};
use crate::work::Work;

/// Days in the middle level of the pyramid.
pub(crate) const SPAN_DAYS: i64 = 8;

/// So many files are merged side by side; more go through memory in steps.
const SIDE_BY_SIDE: usize = 1_024;

/// A day of more files than this keeps them beside its sum: a cursor holds up to 14 KiB.
const PACKED_FILES: usize = 8_192;

/// So does a day of more rows: while it is packed, its addresses are in memory, 16 bytes each at most.
const PACKED_ROWS: u64 = 16 << 20;

/// How long a series is kept, and when its windows become days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Care {
    /// Days that are kept beside today; none: all.
    pub retention_days: Option<u32>,
    /// Age in days from which on single windows are given up for their day's sum; none: never.
    pub condense_days: Option<u32>,
}

/// What a run of maintenance did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Maintained {
    /// Day nodes written.
    pub days: u64,
    /// Nodes over several days written.
    pub spans: u64,
    /// Files written with the condensed days of a month.
    pub months: u64,
    /// Windows of a node that came in several files, which became one part of their day.
    pub merged: u64,
    /// Windows given up for their day.
    pub condensed: u64,
    /// Days that were too old.
    pub expired: u64,
}

impl Store {
    /// One round of maintenance over all series. Online: queries and commits go on. `stop` ends it between two blocks.
    pub fn maintain(&self, now: Stamp, care: impl Fn(&str) -> Care, stop: &dyn Fn() -> bool) -> Result<Maintained> {
        let _alone = lock(&self.maintenance);
        let newest = self.available().into_iter().map(|(_, _, last)| last).max();
        let Some(newest) = newest else { return Ok(Maintained::default()) };
        let today = Day::of_moment(now.min(newest + DAY_S));
        let names: Vec<String> = self.catalog().series.keys().cloned().collect();
        let mut done = Maintained::default();
        for series in names {
            let run = Run { store: self, series: &series, today, work: Work::new(stop, usize::MAX) };
            run.all(care(&series), &mut done)?;
        }
        Ok(done)
    }
}

/// A part of an open file.
pub(super) type Source = (Arc<Segment>, u16);

/// Maintenance of one series.
pub(super) struct Run<'a> {
    pub(super) store: &'a Store,
    pub(super) series: &'a str,
    pub(super) today: Day,
    pub(super) work: Work<'a>,
}

impl Run<'_> {
    fn all(&self, care: Care, done: &mut Maintained) -> Result<()> {
        // Cheap removals first, so that nothing is built that goes in the same round.
        if let Some(days) = care.retention_days {
            done.expired += self.expire(i64::from(days))?;
        }
        done.days += self.build_days(care, done)?;
        if let Some(days) = care.condense_days {
            done.condensed += self.condense(i64::from(days))?;
        }
        done.months += self.pack_months()?;
        done.spans += self.build_spans()?;
        Ok(())
    }

    pub(super) fn files(&self) -> Arc<SeriesFiles> {
        self.store.catalog().series.get(self.series).cloned().unwrap_or_default()
    }

    pub(super) fn publish(&self, edits: &[Edit]) -> Result<()> {
        self.store.publish(&mut *self.store.writer()?, edits)
    }

    fn expire(&self, keep: i64) -> Result<u64> {
        let files = self.files();
        let is_old = |day: &Day| self.today.0 - day.0 > keep;
        let mut expired = self.expire_from_months(&is_old)?;
        for (day, content) in files.days.iter().take_while(|(day, _)| is_old(day)) {
            if content.in_month().is_some() {
                continue;
            }
            self.work.check()?;
            let mut edits = self.spans_with(&files, *day);
            let windows = content.windows.iter().map(|window| &window.file);
            edits.extend(windows.chain(content.own_file()).map(|file| removal(&file.record)));
            self.publish(&edits)?;
            expired += 1;
        }
        Ok(expired)
    }

    /// Removals of the larger nodes that hold this day and still are in the list.
    pub(super) fn spans_with(&self, seen: &SeriesFiles, day: Day) -> Vec<Edit> {
        let now = self.files();
        let holds = |file: &&Arc<FileEntry>| file.days().0 <= day && day <= file.days().1;
        let still = |file: &&Arc<FileEntry>| now.spans.values().any(|other| other.record.id == file.record.id);
        seen.spans.values().filter(holds).filter(still).map(|file| removal(&file.record)).collect()
    }

    fn build_days(&self, care: Care, done: &mut Maintained) -> Result<u64> {
        let files = self.files();
        let mut built = 0;
        // A day in its month's file gets what came late together with the month's other days.
        let own = files.days.iter().filter(|(day, content)| **day < self.today && content.in_month().is_none());
        for (day, content) in own {
            let is_young = care.condense_days.is_none_or(|age| self.today.0 - day.0 < i64::from(age));
            if is_young && !content.windows.is_empty() && packs(content) {
                done.merged += self.pack_day(&files, *day, content)?;
                built += 1;
            } else if content.uncovered().next().is_some() {
                self.build_day(&files, *day, content)?;
                built += 1;
            }
        }
        Ok(built)
    }

    /// The day's sum alone, beside its windows.
    fn build_day(&self, files: &SeriesFiles, day: Day, content: &DayFiles) -> Result<()> {
        let fresh: Vec<_> = content.uncovered().cloned().collect();
        let mut sources = Vec::new();
        let mut meta = self.day_meta(day, content);
        if let Some(node) = &content.node {
            let (segment, part) = node.open(self.store.files())?;
            meta.consumed.clone_from(&segment.meta().consumed);
            sources.push((segment, part));
        }
        sources.extend(self.sources_of(day, &fresh)?);
        meta.consumed.extend(fresh.iter().map(|file| file.record.id));
        meta.consumed.sort_unstable();
        let mut edits: Vec<Edit> = content.own_file().map(|file| removal(&file.record)).into_iter().collect();
        edits.extend(self.spans_with(files, day));
        edits.extend(fresh.iter().map(|file| {
            let record = &file.record;
            Edit::Cover { series: record.series.clone(), end: record.end, id: record.id }
        }));
        if content.packed().is_some() {
            // Its windows go with it.
            edits.push(Edit::Condensed { series: self.series.into(), day: day.0 });
        }
        self.write_node(meta, 1, edits, |file| fill_from(file, &sources, &self.work))
    }

    /// The parts of windows of a day; of very many, one that is their sum.
    pub(super) fn sources_of(&self, day: Day, windows: &[Arc<FileEntry>]) -> Result<Vec<Source>> {
        if windows.len() > SIDE_BY_SIDE {
            let merged = self.store.merged().get(self.series, day, windows, self.store.files(), &self.work)?;
            return Ok(vec![(merged, 0)]);
        }
        let mut sources = Vec::new();
        for file in windows {
            sources.extend(parts_of(&file.open(self.store.files())?));
        }
        Ok(sources)
    }

    fn day_meta(&self, day: Day, content: &DayFiles) -> Meta {
        let mut meta = node_meta(self.series, day);
        if let Some((first, last)) = content.ends() {
            (meta.first_end, meta.last_end) = (first, last);
        }
        meta
    }

    /// The day's sum and its windows in one file, which takes the place of theirs. Returns how many windows had come in several.
    fn pack_day(&self, files: &SeriesFiles, day: Day, content: &DayFiles) -> Result<u64> {
        let mut meta = self.day_meta(day, content);
        meta.kind = Kind::Packed;
        let mut sums = Vec::new();
        let mut windows: BTreeMap<(Stamp, String), (Part, Vec<Source>)> = BTreeMap::new();
        let mut add = |segment: &Arc<Segment>, index: u16, part: &Part| {
            let known = windows.entry((part.end, part.node.clone())).or_insert_with(|| (part.clone(), Vec::new()));
            known.0.start = known.0.start.min(part.start);
            known.0.sequence = known.0.sequence.max(part.sequence);
            known.1.push((Arc::clone(segment), index));
        };
        if let Some(packed) = content.packed() {
            let (segment, _) = packed.open(self.store.files())?;
            meta.consumed.clone_from(&segment.meta().consumed);
            segment.meta().windows().for_each(|(index, part)| add(&segment, index, part));
            sums.push((segment, 0));
        }
        // A sum that older builds made lacks the addresses whose counts add up to zero: it is made again from its windows.
        for window in &content.windows {
            let segment = window.file.open(self.store.files())?;
            meta.consumed.extend(segment.meta().consumed.iter().copied().chain([window.file.record.id]));
            for (index, part) in segment.meta().parts.iter().enumerate() {
                add(&segment, index as u16, part);
            }
            sums.extend(parts_of(&segment));
        }
        meta.consumed.sort_unstable();
        meta.consumed.dedup();
        meta.parts.extend(windows.values().map(|(part, _)| part.clone()));
        let mut edits: Vec<Edit> = content.own_file().map(|file| removal(&file.record)).into_iter().collect();
        edits.extend(self.spans_with(files, day));
        edits.extend(content.windows.iter().map(|window| removal(&window.file.record)));
        self.write_node(meta, 1, edits, |file| {
            let ended = Error::io("write", &self.store.dir);
            fill_from(file, &sums, &self.work)?;
            file.end_part().map_err(ended)?;
            for (_, sources) in windows.values() {
                fill_from(file, sources, &self.work)?;
                file.end_part().map_err(Error::io("write", &self.store.dir))?;
            }
            Ok(())
        })?;
        Ok(windows.values().filter(|(_, sources)| sources.len() > 1).count() as u64)
    }

    /// Writes a node and publishes it together with what it replaces.
    pub(super) fn write_node(
        &self,
        mut meta: Meta,
        days: i64,
        replaced: Vec<Edit>,
        fill: impl FnOnce(&mut SegmentWriter<BufWriter<Box<dyn Output>>>) -> Result<()>,
    ) -> Result<()> {
        meta.id = self.store.writer()?.give_id();
        let first = Day::of_moment(meta.start).compact();
        let name = format!("{NODES}/{}.{first}.{days}d.{}", self.series, meta.id);
        let record = self.store.write_file(&meta, name, true, fill)?;
        let dir = self.store.dir.join(NODES);
        self.store.disk.sync_dir(&dir).map_err(Error::io("sync", &dir))?;
        // Removals come before the addition: a day has one node.
        let mut edits = replaced;
        let removals = edits.iter().take_while(|edit| matches!(edit, Edit::Remove { .. })).count();
        edits.insert(removals, Edit::Add(record));
        self.publish(&edits)
    }

    fn condense(&self, age: i64) -> Result<u64> {
        let files = self.files();
        let mut condensed = 0;
        for (day, content) in files.days.iter().filter(|(day, _)| self.today.0 - day.0 >= age) {
            self.work.check()?;
            if let Some(packed) = content.packed() {
                condensed += self.unpack(*day, content, &packed.file)?;
                continue;
            }
            let covered = content.windows.iter().filter(|window| window.covered);
            let mut edits: Vec<Edit> = covered.map(|window| removal(&window.file.record)).collect();
            if !edits.is_empty() {
                condensed += edits.len() as u64;
                edits.push(Edit::Condensed { series: self.series.into(), day: day.0 });
                self.publish(&edits)?;
            }
        }
        Ok(condensed)
    }

    /// The sum of a packed day without its windows. Nodes over several days stay: they have the same sums. Returns the number of windows.
    fn unpack(&self, day: Day, content: &DayFiles, packed: &Arc<FileEntry>) -> Result<u64> {
        let segment = packed.open(self.store.files())?;
        let mut meta = self.day_meta(day, content);
        meta.consumed.clone_from(&segment.meta().consumed);
        (meta.first_end, meta.last_end) = (packed.record.first_end, packed.record.last_end);
        let edits = vec![removal(&packed.record), Edit::Condensed { series: self.series.into(), day: day.0 }];
        let windows = segment.meta().windows().count() as u64;
        self.write_node(meta, 1, edits, |file| fill_from(file, &[(segment, 0)], &self.work))?;
        Ok(windows)
    }

    fn build_spans(&self) -> Result<u64> {
        let files = self.files();
        let mut wanted: BTreeMap<(Kind, Day), Vec<&Arc<FileEntry>>> = BTreeMap::new();
        for (day, content) in &files.days {
            let Some(file) = content.own_file() else { continue };
            for key in [(Kind::Span8, Day(day.0 - day.0.rem_euclid(SPAN_DAYS))), (Kind::Month, day.first_of_month())] {
                wanted.entry(key).or_default().push(file);
            }
        }
        let mut built = 0;
        for ((kind, first), days) in wanted {
            let next = if kind == Kind::Month { first.next_month() } else { Day(first.0 + SPAN_DAYS) };
            if next > self.today || days.len() < 2 || files.spans.contains_key(&(first, kind)) {
                continue;
            }
            // A packed month is a node over its days already.
            if files.days.range(first..next).any(|(_, content)| content.in_month().is_some()) {
                continue;
            }
            self.build_span(kind, first, next, &days)?;
            built += 1;
        }
        Ok(built)
    }

    fn build_span(&self, kind: Kind, first: Day, next: Day, days: &[&Arc<FileEntry>]) -> Result<()> {
        let mut meta = node_meta(self.series, first);
        (meta.kind, meta.end) = (kind, next.start());
        let records = || days.iter().map(|file| &file.record);
        meta.first_end = records().map(|record| record.first_end).min().unwrap_or(meta.end);
        meta.last_end = records().map(|record| record.last_end).max().unwrap_or(meta.end);
        let mut sources = Vec::new();
        for file in days {
            sources.push((file.open(self.store.files())?, 0));
        }
        self.write_node(meta, next.0 - first.0, Vec::new(), |file| fill_from(file, &sources, &self.work))
    }
}

/// True for a day whose windows go into one file.
fn packs(content: &DayFiles) -> bool {
    let windows = || content.windows.iter().map(|window| &window.file.record);
    let rows =
        windows().chain(content.packed().map(|packed| &packed.file.record)).map(|record| record.rows).sum::<u64>();
    !content.condensed && content.windows.len() <= PACKED_FILES && rows <= PACKED_ROWS
}

/// All parts of a window's file as sources.
pub(crate) fn parts_of(segment: &Arc<Segment>) -> Vec<Source> {
    (0..segment.meta().parts.len() as u16).map(|part| (Arc::clone(segment), part)).collect()
}
