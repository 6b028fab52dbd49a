//! What a journal holds and who is behind: for people, metrics and checks.

use std::collections::BTreeMap;

use crate::error::{JournalError, Result};
use crate::journal::Journal;
use crate::layout::{self, Uuid};
use crate::reader::{Gap, Item};
use crate::subscribers::Subscriber;
use crate::view::View;

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentStatus {
    /// Its first number.
    pub first: u64,
    /// The number after its last record.
    pub end: u64,
    /// Its size.
    pub bytes: u64,
}

/// How far a subscriber is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// Who, and where it stands.
    pub subscriber: Subscriber,
    /// Records that it has not passed.
    pub records: u64,
    /// What they take on disk.
    pub bytes: u64,
    /// The time of the first of them, microseconds since 1970.
    pub oldest_us: Option<u64>,
}

/// A journal at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Who it is.
    pub uuid: Uuid,
    /// The first number that is there.
    pub first: u64,
    /// The number after the last record that is on disk.
    pub next: u64,
    /// Oldest first.
    pub segments: Vec<SegmentStatus>,
    /// By name.
    pub subscribers: Vec<Lag>,
}

impl Status {
    /// The size of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

/// What reading everything came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Check {
    /// Sound records, and their payloads' bytes.
    pub records: u64,
    /// See `records`.
    pub payload_bytes: u64,
    /// What is missing.
    pub gaps: Vec<Gap>,
    /// Subscribers whose file is damaged.
    pub damaged_subscribers: Vec<String>,
}

impl Journal {
    /// What is there and who is behind.
    pub fn status(&self) -> Result<Status> {
        let registry = &self.inner().registry;
        View::open_on(std::sync::Arc::clone(&registry.fs), &registry.dir)?.status()
    }
}

impl View {
    /// What is there and who is behind.
    pub fn status(&mut self) -> Result<Status> {
        let end = self.end()?;
        let mut segments: Vec<SegmentStatus> = self
            .sealed()?
            .into_iter()
            .filter(|one| one.first < end.segment)
            .map(|one| SegmentStatus { first: one.first, end: one.end, bytes: one.bytes })
            .collect();
        if end.segment > 0 {
            segments.push(SegmentStatus { first: end.segment, end: end.next, bytes: end.offset });
        }
        let mut places = BTreeMap::new();
        let mut lags = Vec::new();
        for subscriber in self.subscribers()? {
            // Subscribers often stand at the same place, and finding it reads part of a segment.
            let place = match places.get(&subscriber.next) {
                Some(place) => *place,
                None => *places.entry(subscriber.next).or_insert(self.find_place(subscriber.next, end.next)?),
            };
            lags.push(lag(subscriber, &segments, place));
        }
        let first = segments.first().map_or(end.next, |segment| segment.first);
        Ok(Status { uuid: self.uuid(), first, next: end.next, segments, subscribers: lags })
    }

    /// Where the first record at or behind `next` begins and its time; `None` when there is none.
    fn find_place(&self, next: u64, end: u64) -> Result<Option<Place>> {
        if next >= end {
            return Ok(None);
        }
        let mut reader = self.reader(next)?;
        loop {
            let time_us = match reader.next_item()? {
                None => return Ok(None),
                Some(Item::Gap(_)) => continue,
                Some(Item::Record(record)) => record.time_us,
            };
            let (segment, offset) = reader.record_place().expect("a record was just read");
            return Ok(Some(Place { segment, offset, time_us }));
        }
    }

    /// Reads every record and every subscriber. `on_gap` hears of damage as it is found.
    pub fn check(&mut self, on_gap: &mut dyn FnMut(&Gap)) -> Result<Check> {
        let damaged = self.subscribers()?.into_iter().filter(|one| !one.sound);
        let mut check = Check { damaged_subscribers: damaged.map(|one| one.name).collect(), ..Check::default() };
        let mut reader = self.reader(0)?;
        loop {
            match reader.next_item()? {
                None => break,
                Some(Item::Record(record)) => {
                    check.records += 1;
                    check.payload_bytes += record.payload.len() as u64;
                }
                Some(Item::Gap(gap)) => {
                    on_gap(&gap);
                    check.gaps.push(gap);
                }
            }
        }
        self.check_headers(&mut check)?;
        Ok(check)
    }

    /// A damaged header costs no record, but the next tool should not have to guess.
    fn check_headers(&self, check: &mut Check) -> Result<()> {
        let registry = self.registry();
        for first in layout::segments(&*registry.fs, &registry.dir)? {
            let path = layout::segment_path(&registry.dir, first);
            let file = registry.fs.open(&path, false).map_err(JournalError::io("open", &path))?;
            if layout::read_segment_header(&*file, &path)?.is_err() {
                let lost = crate::reader::Lost::Damaged;
                check.gaps.push(Gap { from: first, to: first, lost, path, offset: 0 });
            }
        }
        Ok(())
    }
}

/// Where a record begins.
#[derive(Debug, Clone, Copy)]
struct Place {
    segment: u64,
    offset: u64,
    time_us: u64,
}

fn lag(subscriber: Subscriber, segments: &[SegmentStatus], place: Option<Place>) -> Lag {
    let next = subscriber.next;
    let records = segments.iter().map(|one| one.end.saturating_sub(next.max(one.first))).sum();
    let bytes = place.map_or(0, |place| {
        let behind: u64 = segments.iter().filter(|one| one.first >= place.segment).map(|one| one.bytes).sum();
        behind.saturating_sub(place.offset)
    });
    Lag { subscriber, records, bytes, oldest_us: place.map(|place| place.time_us) }
}
