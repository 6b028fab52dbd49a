//! Giving out everything of a day as it is kept: for copies in other formats.

use std::sync::Arc;

use super::Store;
use crate::address::Address;
use crate::error::Result;
use crate::query::merge_all;
use crate::segment::{Part, Segment};
use crate::time::{Day, Stamp};
use crate::work::Work;

/// A count as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dumped<'a> {
    /// The window's start, or the day's where single windows are gone.
    pub start: Stamp,
    /// Its end.
    pub end: Stamp,
    /// The node that counted; empty where only the sum of all is left.
    pub node: &'a str,
    /// The address.
    pub address: Address,
    /// The count.
    pub count: i64,
}

impl Store {
    /// The days of a series.
    pub fn days(&self, series: &str) -> Vec<Day> {
        self.catalog().series.get(series).map(|files| files.days.keys().copied().collect()).unwrap_or_default()
    }

    /// Every count of a series and day, window by window: each once, with as much detail as there is. `stop` ends it between two blocks.
    pub fn dump<E: From<crate::Error>>(
        &self,
        series: &str,
        day: Day,
        stop: &dyn Fn() -> bool,
        each: &mut dyn FnMut(Dumped<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let catalog = self.catalog();
        let content = catalog.series.get(series).and_then(|files| files.days.get(&day));
        let Some(content) = content else { return Ok(()) };
        let work = Work::new(stop, usize::MAX);
        if let Some(packed) = content.packed() {
            let (segment, _) = packed.open(self.files())?;
            for (part, about) in segment.meta().windows() {
                dump_part(&segment, part, about, &work, each)?;
            }
        }
        // A day's node holds its covered windows. They are given out themselves as long as they are there.
        if let Some(node) = content.node.as_ref().filter(|_| content.condensed) {
            let (segment, part) = node.open(self.files())?;
            let about = Part { start: day.start(), end: day.end(), ..Part::default() };
            dump_part(&segment, part, &about, &work, each)?;
        }
        for window in content.windows.iter().filter(|window| !(content.condensed && window.covered)) {
            let segment = window.file.open(self.files())?;
            for (part, about) in (0..).zip(&segment.meta().parts) {
                dump_part(&segment, part, about, &work, each)?;
            }
        }
        Ok(())
    }
}

fn dump_part<E: From<crate::Error>>(
    segment: &Arc<Segment>,
    part: u16,
    about: &Part,
    work: &Work<'_>,
    each: &mut dyn FnMut(Dumped<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Part { node, start, end, .. } = about;
    let row = |address, count| Dumped { start: *start, end: *end, node, address, count };
    let sources = [(Arc::clone(segment), part)];
    let mut count = [0];
    let mut v4 = merge_all::<u32>(&sources, work)?;
    while let Some(key) = v4.next(&mut count)? {
        each(row(Address::V4(key), count[0]))?;
    }
    drop(v4);
    let mut v6 = merge_all::<u128>(&sources, work)?;
    while let Some(key) = v6.next(&mut count)? {
        each(row(Address::V6(key), count[0]))?;
    }
    Ok(())
}
