//! Windows of a day that has no node yet, merged in memory.
//!
//! Without this a query over today would walk 96 or 1,440 files side by side. What is merged looks like a node's file, so queries treat it
//! as one. A new window is merged into what is there when somebody asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::catalog::{FileEntry, OpenFiles, lock};
use super::{build_in_memory, fill_from};
use crate::error::Result;
use crate::segment::{Kind, Meta, Part, Segment};
use crate::time::Day;
use crate::work::Work;

/// Files merged at a time: a cursor holds 3 to 7 KiB.
const AT_ONCE: usize = 512;

#[derive(Clone)]
struct MergedDay {
    /// The files inside, ascending.
    ids: Vec<u64>,
    segment: Arc<Segment>,
    used: u64,
}

/// Merged days, the least recently used first out.
pub(crate) struct MergedDays {
    limit_bytes: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    days: HashMap<(String, Day), MergedDay>,
    /// Grows with every question: the time by which the least recently used is known.
    clock: u64,
}

impl MergedDays {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, held: Mutex::default() }
    }

    /// The sum of `files`, which are windows of one series and day.
    pub(crate) fn get(
        &self,
        series: &str,
        day: Day,
        files: &[Arc<FileEntry>],
        open: &OpenFiles,
        work: &Work<'_>,
    ) -> Result<Arc<Segment>> {
        let mut ids: Vec<u64> = files.iter().map(|file| file.record.id).collect();
        ids.sort_unstable();
        let key = (series.to_owned(), day);
        let known = {
            let mut held = lock(&self.held);
            held.clock += 1;
            let now = held.clock;
            held.days.get_mut(&key).map(|found| {
                found.used = now;
                found.clone()
            })
        };
        if let Some(known) = &known
            && known.ids == ids
        {
            return Ok(Arc::clone(&known.segment));
        }
        // What is merged is a start when all of it is still wanted.
        let start = known.filter(|known| known.ids.iter().all(|id| ids.binary_search(id).is_ok()));
        let segment = merge(series, day, files, start, open, work)?;
        self.put(key, ids, &segment);
        Ok(segment)
    }

    fn put(&self, key: (String, Day), ids: Vec<u64>, segment: &Arc<Segment>) {
        let mut held = lock(&self.held);
        let used = held.clock;
        held.days.insert(key, MergedDay { ids, segment: Arc::clone(segment), used });
        while held.days.values().map(|day| day.segment.len()).sum::<usize>() > self.limit_bytes {
            let Some(oldest) = held.days.iter().min_by_key(|(_, day)| day.used).map(|(key, _)| key.clone()) else {
                return;
            };
            held.days.remove(&oldest);
        }
    }

    /// Days and bytes that are held.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let held = lock(&self.held);
        (held.days.len(), held.days.values().map(|day| day.segment.len()).sum())
    }
}

fn merge(
    series: &str,
    day: Day,
    files: &[Arc<FileEntry>],
    start: Option<MergedDay>,
    open: &OpenFiles,
    work: &Work<'_>,
) -> Result<Arc<Segment>> {
    let (inside, mut merged) = start.map_or((Vec::new(), None), |known| (known.ids, Some(known.segment)));
    let fresh: Vec<_> = files.iter().filter(|file| inside.binary_search(&file.record.id).is_err()).collect();
    for some in fresh.chunks(AT_ONCE) {
        let mut sources: Vec<(Arc<Segment>, u16)> = merged.take().map(|segment| (segment, 0)).into_iter().collect();
        for file in some {
            let segment = file.open(open)?;
            let parts = segment.meta().parts.len() as u16;
            sources.extend((0..parts).map(|part| (Arc::clone(&segment), part)));
        }
        merged = Some(build_in_memory(&node_meta(series, day), |file| fill_from(file, &sources, work))?);
    }
    match merged {
        Some(merged) => Ok(merged),
        None => build_in_memory(&node_meta(series, day), |_| Ok(())),
    }
}

/// What a file says that exists only in memory.
pub(crate) fn node_meta(series: &str, day: Day) -> Meta {
    Meta {
        kind: Kind::Day,
        id: 0,
        series: series.to_owned(),
        start: day.start(),
        end: day.end(),
        first_end: day.end(),
        last_end: day.end(),
        consumed: Vec::new(),
        parts: vec![Part { start: day.start(), end: day.end(), ..Part::default() }],
    }
}
