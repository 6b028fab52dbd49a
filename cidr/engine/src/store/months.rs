//! The condensed days of a month in one file: the month's sum, and each day with its addresses as places in the sum's.
//!
//! Most addresses of a day come back on other days of the month. So the month's sum is their dictionary, and what is left of a day's row is
//! a small distance and a count: about a byte, where a day's own file takes three. The sum is what long ranges want anyway.
//!
//! A file is written when all days of a month are condensed, and for a month that still runs whenever eight more days are. It takes the
//! place of the days' files, of nodes over several of them, and of its forerunner, in one record. So do the windows that come late for such
//! days, and the days that have become too old: the file is written anew, once per round and month whatever the number of days.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::catalog::{DayFiles, FileEntry, SeriesFiles, removal};
use super::fill_from;
use super::maintain::{Run, SPAN_DAYS, Source};
use super::manifest::{DayEnds, Edit};
use super::merged::node_meta;
use crate::error::{Error, Result};
use crate::segment::{Kind, Meta, Part};
use crate::time::Day;

/// A month whose days have more rows than this keeps them in files of their own: the addresses of all days are in memory while it is
/// written, 4 or 16 bytes each.
const MONTH_ROWS: u64 = 64 << 20;

/// What a month's file is made of.
#[derive(Default)]
struct Month {
    days: BTreeMap<Day, MonthDay>,
    /// Ids of the files whose rows are in it.
    consumed: Vec<u64>,
    /// What it takes the place of.
    replaced: Vec<Edit>,
}

struct MonthDay {
    ends: DayEnds,
    sources: Vec<Source>,
}

impl Run<'_> {
    /// Writes the months that have something new. Returns how many.
    pub(super) fn pack_months(&self) -> Result<u64> {
        let files = self.files();
        let mut months: Vec<Day> = files.days.keys().map(|day| day.first_of_month()).collect();
        months.dedup();
        let mut written = 0;
        for first in months.into_iter().filter(|first| self.has_news(&files, *first)) {
            self.write_month(&self.month_of(&files, first, &|_| false)?)?;
            written += 1;
        }
        Ok(written)
    }

    /// Takes days out of their months' files. Returns how many.
    pub(super) fn expire_from_months(&self, is_old: &dyn Fn(&Day) -> bool) -> Result<u64> {
        let files = self.files();
        let mut expired = 0;
        for (first, file) in &files.months {
            let old = file.record.days.iter().filter(|ends| is_old(&ends.day())).count();
            if old > 0 {
                self.write_month(&self.month_of(&files, *first, is_old)?)?;
                expired += old as u64;
            }
        }
        Ok(expired)
    }

    fn has_news(&self, files: &SeriesFiles, first: Day) -> bool {
        let next = first.next_month();
        let days = || files.days.range(first..next).map(|(_, content)| content);
        let ready = days().filter(|content| is_ready(content)).count();
        let inside = days().filter(|content| content.in_month().is_some()).count();
        let late = days().any(|content| content.in_month().is_some() && content.uncovered().next().is_some());
        let complete = next <= self.today && ready + inside == days().count() && ready + inside > 1;
        let enough = if next <= self.today { complete && ready > 0 } else { ready as i64 >= SPAN_DAYS };
        let records = days().filter(|content| is_ready(content)).filter_map(|content| content.own_file());
        let rows = records.chain(files.months.get(&first)).map(|file| file.record.rows).sum::<u64>();
        late || (enough && rows <= MONTH_ROWS)
    }

    /// The days of a month that are in its file or ready for it, without those that are `dropped`.
    fn month_of(&self, files: &SeriesFiles, first: Day, dropped: &dyn Fn(&Day) -> bool) -> Result<Month> {
        let mut month = Month::default();
        if let Some(old) = files.months.get(&first) {
            month.consumed.clone_from(&old.open(self.store.files())?.meta().consumed);
            month.replaced.push(removal(&old.record));
        }
        for (day, content) in files.days.range(first..first.next_month()) {
            if content.in_month().is_none() && !is_ready(content) {
                continue;
            }
            month.replaced.extend(self.spans_with(files, *day));
            if dropped(day) {
                if content.in_month().is_some() {
                    month.replaced.extend(content.windows.iter().map(|window| removal(&window.file.record)));
                }
                continue;
            }
            self.add_day(&mut month, *day, content)?;
        }
        month.consumed.sort_unstable();
        month.consumed.dedup();
        // A span over two days was found with each of them.
        let mut seen = Vec::new();
        month.replaced.retain(|edit| {
            let fresh = !seen.contains(edit);
            seen.push(edit.clone());
            fresh
        });
        Ok(month)
    }

    fn add_day(&self, month: &mut Month, day: Day, content: &DayFiles) -> Result<()> {
        let Some(node) = &content.node else { return Ok(()) };
        let (segment, part) = node.open(self.store.files())?;
        let mut ends = node.ends;
        if let Some(file) = content.own_file() {
            month.consumed.extend(&segment.meta().consumed);
            month.replaced.push(removal(&file.record));
        }
        let mut sources = vec![(segment, part)];
        let late: Vec<Arc<FileEntry>> = content.uncovered().cloned().collect();
        sources.extend(self.sources_of(day, &late)?);
        for file in &late {
            month.consumed.extend(&file.open(self.store.files())?.meta().consumed);
            month.consumed.push(file.record.id);
            month.replaced.push(removal(&file.record));
            ends = DayEnds { first: ends.first.min(file.record.end), last: ends.last.max(file.record.end) };
        }
        month.days.insert(day, MonthDay { ends, sources });
        Ok(())
    }

    fn write_month(&self, month: &Month) -> Result<()> {
        let (Some((first, _)), Some((last, _))) = (month.days.first_key_value(), month.days.last_key_value()) else {
            return self.publish(&month.replaced);
        };
        let all: Vec<Source> = month.days.values().flat_map(|day| day.sources.iter().cloned()).collect();
        self.write_node(month_meta(self.series, month), last.0 - first.0 + 1, month.replaced.clone(), |file| {
            let ended = || Error::io("write", self.store.dir());
            fill_from(file, &all, &self.work)?;
            file.end_part().map_err(ended())?;
            for day in month.days.values() {
                fill_from(file, &day.sources, &self.work)?;
                file.end_part().map_err(ended())?;
            }
            Ok(())
        })
    }
}

fn month_meta(series: &str, month: &Month) -> Meta {
    let ends = || month.days.values().map(|day| day.ends);
    let (first, last) = (month.days.keys().next(), month.days.keys().next_back());
    let mut meta = node_meta(series, first.copied().unwrap_or(Day(0)));
    meta.kind = Kind::PackedMonth;
    meta.end = last.map_or(meta.end, |day| day.end());
    meta.first_end = ends().map(|ends| ends.first).min().unwrap_or(meta.end);
    meta.last_end = ends().map(|ends| ends.last).max().unwrap_or(meta.end);
    meta.consumed.clone_from(&month.consumed);
    meta.parts = vec![Part { start: meta.start, end: meta.end, ..Part::default() }];
    meta.parts.extend(ends().map(|DayEnds { first, last }| Part { start: first, end: last, ..Part::default() }));
    meta
}

/// True for a condensed day with a file of its own and nothing beside it.
fn is_ready(content: &DayFiles) -> bool {
    content.condensed
        && content.windows.is_empty()
        && content.own_file().is_some_and(|file| file.record.kind == Kind::Day)
}
