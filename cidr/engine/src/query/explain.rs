//! What a query touched, and the windows of a trend.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::Arc;

use super::plan::{Columns, Period, condensed, wanted};
use super::{Outcome, QueryError};
use crate::language::CountQuery;
use crate::segment::{Kind, Segment};
use crate::store::catalog::{DayFiles, DayNode, FileEntry, OpenFiles};
use crate::time::{Day, LAST_STAMP, Stamp, compact_stamp};
use crate::work::Work;

/// The files that a query opened, and the blocks that it read of them.
#[derive(Default)]
pub(crate) struct Touched {
    sources: RefCell<BTreeMap<String, (u64, u64, u64)>>,
    blocks: RefCell<HashMap<u64, u64>>,
}

impl Touched {
    pub(crate) fn begin(&self) {
        self.sources.borrow_mut().clear();
    }

    pub(crate) fn file(&self, file: &FileEntry, segment: &Segment) {
        let record = &file.record;
        let kind = match record.kind {
            Kind::Window => "window",
            Kind::Day | Kind::Packed => "day",
            Kind::Span8 => "8 days",
            Kind::Month | Kind::PackedMonth => "month",
        };
        let name = format!("{kind:<8}{}", record.name);
        self.sources.borrow_mut().insert(name, (record.id, record.rows, blocks_of(segment)));
    }

    pub(crate) fn merged(&self, series: &str, day: Day, windows: usize, segment: &Segment) {
        let rows = segment.tables().iter().filter(|table| table.level == table.family.bits()).map(|table| table.rows);
        let name = format!("{:<8}{series} {}, {windows} windows", "memory", day.compact());
        self.sources.borrow_mut().insert(name, (0, rows.sum(), blocks_of(segment)));
    }

    pub(crate) fn take_tally(&self, work: &Work<'_>) {
        *self.blocks.borrow_mut() = work.take_tally();
    }

    pub(crate) fn print(
        &self,
        query: &CountQuery,
        period: Period,
        outcome: Outcome,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        writeln!(out, "query   {query}")?;
        let after = if period.after < 0 { "the first".to_owned() } else { compact_stamp(period.after) };
        let until = if period.until >= LAST_STAMP { "the last".to_owned() } else { compact_stamp(period.until) };
        writeln!(out, "windows ending after {after}, until {until}")?;
        let blocks = self.blocks.borrow();
        for (name, (id, rows, all)) in self.sources.borrow().iter() {
            // Blocks in memory are not told apart.
            let read = blocks.get(id).copied().unwrap_or(0);
            let read = if *id == 0 { String::new() } else { format!("{read} of ") };
            writeln!(out, "{name}: {rows} rows, {read}{all} blocks")?;
        }
        writeln!(out, "read    {} blocks in {} files", outcome.blocks, self.sources.borrow().len())?;
        writeln!(out, "gave    {} rows, {} KiB of memory at most", outcome.rows, outcome.memory_bytes >> 10)
    }
}

fn blocks_of(segment: &Segment) -> u64 {
    segment.tables().iter().map(|table| u64::from(table.blocks)).sum()
}

/// A file with the column that it counts in; of a packed file and a day's sum, one of its parts.
pub(crate) struct WindowPart {
    pub(crate) column: usize,
    pub(crate) file: Arc<FileEntry>,
    pub(crate) part: Option<u16>,
}

/// Files of a trend by the end and start of their time.
type Windows = BTreeMap<(Stamp, Stamp), Vec<WindowPart>>;

/// The windows of a period; for a day whose windows are gone, the day.
pub(crate) fn windows(
    columns: &Columns,
    period: Period,
    query: &CountQuery,
    open: &OpenFiles,
) -> Result<Windows, QueryError> {
    let mut windows = Windows::new();
    if period.after >= period.until {
        return Ok(windows);
    }
    let mut push = |start: Stamp, end: Stamp, column, file: &Arc<FileEntry>, part| {
        let key = windows.range((end, Stamp::MIN)..=(end, Stamp::MAX)).next();
        // A late file of the same window may say another start.
        let key = key.map_or((end, start), |(key, _)| *key);
        windows.entry(key).or_default().push(WindowPart { column, file: Arc::clone(file), part });
    };
    for series in &columns.series {
        for (day, files) in series.files.days.range(period.days()) {
            if files.condensed
                && let Some(node) = condensed_day(&series.name, *day, files, period, query)?
            {
                push(day.start(), day.end(), series.column, &node.file, Some(node.part));
            }
            if let Some(packed) = files.packed().filter(|node| period.touches(node)) {
                let (segment, _) = packed.open(open)?;
                for (part, window) in segment.meta().windows().filter(|(_, window)| wanted(window, period, query)) {
                    push(window.start, window.end, series.column, &packed.file, Some(part));
                }
            }
            for window in files.windows.iter().filter(|window| !(files.condensed && window.covered)) {
                let record = &window.file.record;
                let of_node = query.node.as_ref().is_none_or(|node| record.nodes.contains(&node.value));
                if of_node && period.holds(record.end) {
                    push(record.start, record.end, series.column, &window.file, None);
                }
            }
        }
    }
    Ok(windows)
}

fn condensed_day<'a>(
    series: &str,
    day: Day,
    files: &'a DayFiles,
    period: Period,
    query: &CountQuery,
) -> Result<Option<&'a DayNode>, QueryError> {
    let Some(node) = files.node.as_ref().filter(|node| period.touches(node)) else { return Ok(None) };
    if query.node.is_some() {
        return Err(condensed(series, day, "counts of single nodes"));
    }
    if period.holds_node(node) { Ok(Some(node)) } else { Err(condensed(series, day, "parts of a day")) }
}
