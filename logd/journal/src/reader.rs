//! Reading in order, around damage, and never past what is on disk.
//!
//! A reader gives every record at or behind its position exactly once, and says what is missing between two of them: nothing is skipped silently,
//! because a [`Gap`] comes where the records would have come. It holds one open segment and one buffer, whatever the backlog.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{JournalError, Result};
use crate::journal::{Inner, Journal};
use crate::layout::{self, Point, SegmentHeader, Uuid};
use crate::record::{Kind, Record};
use crate::subscribers::Registry;
use crate::view::View;
use crate::walker::{Step, Walker};

/// A place in a journal, for keeping outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The journal.
    pub uuid: Uuid,
    /// The first number that is still to be read.
    pub next: u64,
}

/// Why records are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Their bytes are damaged.
    Damaged,
    /// Their segment is gone: dropped at `max_backlog`, removed because nobody subscribed, or by hand.
    Removed,
}

/// Records that are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first number missing.
    pub from: u64,
    /// The number after the last one missing. With `Removed` the numbers between may have been given to fewer records.
    pub to: u64,
    /// Why.
    pub lost: Lost,
    /// Where the damage is, or where reading goes on.
    pub path: PathBuf,
    /// Where in that file the damage ends.
    pub offset: u64,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Gap { from, to, lost, path, offset } = self;
        let path = path.display();
        match lost {
            Lost::Damaged => {
                write!(
                    f,
                    "{} records ({from} to {}) are lost to damage in {path} before offset {offset}",
                    to - from,
                    to - 1
                )
            }
            Lost::Removed => {
                write!(f, "records {from} to {} are gone with their segments; reading goes on in {path}", to - 1)
            }
        }
    }
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// A record.
    Record(Record<'a>),
    /// What should have come before the next record.
    Gap(Gap),
}

/// Where a reader learns how far it may read.
#[derive(Debug)]
enum Source {
    /// The journal is written by this process.
    Live(Arc<Inner>),
    /// Another process may be writing it.
    View(View),
}

/// Reads a journal from a position on.
#[derive(Debug)]
pub struct Reader {
    source: Source,
    registry: Registry,
    next: u64,
    current: Option<Open>,
    /// How far everything is synced, as it was when last asked.
    end: Point,
}

/// The segment that is being read.
#[derive(Debug)]
struct Open {
    first: u64,
    walker: Walker,
    /// Its length, once it is no longer written. Asked for once: a system call per record would be most of the reading.
    sealed_bytes: Option<u64>,
    /// Damage was skipped since the last record.
    damaged: bool,
}

/// What a look at the open segment came to.
enum Found {
    Record {
        sequence: u64,
        time_us: u64,
    },
    Gap(Gap),
    /// Nothing more that may be read.
    Nothing,
}

impl Journal {
    /// A reader from `next` on; 0: from the oldest record on.
    pub fn reader(&self, next: u64) -> Reader {
        let inner = self.inner();
        Reader::new(Source::Live(Arc::clone(inner)), inner.registry.clone(), next)
    }

    /// A reader from where a subscriber stands.
    pub fn reader_of(&self, subscriber: &str) -> Result<Reader> {
        let registry = &self.inner().registry;
        let found = registry.read(subscriber)?.ok_or_else(|| registry.no_subscriber(subscriber))?;
        Ok(self.reader(found.next))
    }

    /// A reader from a position that was kept elsewhere; an error when this is not the journal it belongs to any more.
    pub fn reader_at(&self, position: Position) -> Result<Reader> {
        check_position(&self.inner().registry, position, self.synced())?;
        Ok(self.reader(position.next))
    }

    /// When the segment was made that holds the record before `next`, in microseconds since 1970; none when it is gone or does not say.
    ///
    /// Whoever keeps a position elsewhere keeps this with it: a journal that an older copy was put in place of, and that has been written
    /// since, has the same numbers again for other records. Their segments were made at another time.
    pub fn made_us_before(&self, next: u64) -> Result<Option<u64>> {
        let Registry { fs, dir, .. } = &self.inner().registry;
        let segments = layout::segments(&**fs, dir)?;
        let Some(first) = segments.into_iter().rev().find(|first| *first < next) else { return Ok(None) };
        let path = layout::segment_path(dir, first);
        let file = match fs.open(&path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(JournalError::io("open", &path)(error)),
        };
        Ok(layout::read_segment_header(&*file, &path)?.ok().map(|header| header.created_us))
    }
}

impl View {
    /// A reader from `next` on; 0: from the oldest record on.
    pub fn reader(&self, next: u64) -> Result<Reader> {
        let view = View::open_on(Arc::clone(&self.registry().fs), &self.registry().dir)?;
        Ok(Reader::new(Source::View(view), self.registry().clone(), next))
    }
}

fn check_position(registry: &Registry, position: Position, end: u64) -> Result<()> {
    let what = match position {
        Position { uuid, .. } if uuid != registry.uuid => format!("it was made in {uuid}, this is {}", registry.uuid),
        Position { next, .. } if next > end => {
            format!("it is before record {next}, but the newest is {}: an older copy was put here", end - 1)
        }
        _ => return Ok(()),
    };
    Err(JournalError::Position { path: registry.dir.clone(), what })
}

impl Reader {
    fn new(source: Source, registry: Registry, next: u64) -> Self {
        Self { source, registry, next, current: None, end: Point { next: 0, segment: 0, offset: 0 } }
    }

    /// Where it stands: behind everything that was given.
    pub fn position(&self) -> Position {
        Position { uuid: self.registry.uuid, next: self.next }
    }

    /// The next record, or what is missing before it; `None` at the end of what is on disk.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>> {
        match self.find()? {
            Found::Nothing => Ok(None),
            Found::Gap(gap) => Ok(Some(Item::Gap(gap))),
            Found::Record { sequence, time_us } => {
                let open = self.current.as_ref().expect("a record was just found in it");
                Ok(Some(Item::Record(Record { sequence, time_us, payload: open.walker.payload() })))
            }
        }
    }

    /// Waits until there is more to read; false when the time is up, or the journal was closed by this process.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        if self.next == 0 {
            // From the oldest record on: find out which that is, or any journal would look as if there were more.
            self.enter_first()?;
        }
        match &mut self.source {
            Source::Live(inner) => Ok(inner.commit.wait_readable(self.next, timeout)),
            Source::View(view) => view.wait_readable(self.next, timeout),
        }
    }

    /// What it holds in memory.
    #[cfg(test)]
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.current.as_ref().map_or(0, |open| open.walker.buffer_bytes())
    }

    /// Where the record that was given last begins: the segment's first number and the offset in it.
    pub(crate) fn record_place(&self) -> Option<(u64, u64)> {
        self.current.as_ref().map(|open| (open.first, open.walker.record_offset()))
    }

    fn find(&mut self) -> Result<Found> {
        loop {
            let found = match &self.current {
                None => self.enter_first()?,
                Some(_) => match self.step()? {
                    Some(found) => Some(found),
                    None => self.enter_successor()?,
                },
            };
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// Goes on in the open segment; `None` at its end, when it is not the one being written.
    fn step(&mut self) -> Result<Option<Found>> {
        let Some(open) = &mut self.current else { return Ok(Some(Found::Nothing)) };
        loop {
            let limit = open.limit(&self.end)?;
            match open.walker.step(limit)? {
                Step::Record { kind: Kind::Data, sequence, .. } if sequence < self.next => open.damaged = false,
                Step::Record { kind: Kind::Data, sequence, time_us } => {
                    if sequence > self.next {
                        // The gap first; then the same record again.
                        let gap = open.gap(self.next, sequence);
                        self.next = sequence;
                        open.damaged = false;
                        open.walker.again(sequence);
                        return Ok(Some(Found::Gap(gap)));
                    }
                    self.next = sequence + 1;
                    open.damaged = false;
                    return Ok(Some(Found::Record { sequence, time_us }));
                }
                Step::Record { .. } => {}
                Step::Damage { .. } => open.damaged = true,
                Step::End => {
                    let end = self.source.end()?;
                    if end != self.end {
                        self.end = end;
                        continue;
                    }
                    if open.first < self.end.segment {
                        return Ok(None);
                    }
                    // Damage up to the end of what is synced.
                    if open.first == self.end.segment && open.damaged && self.end.next > self.next {
                        let gap = open.gap(self.next, self.end.next);
                        self.next = self.end.next;
                        open.damaged = false;
                        open.walker.expected = self.end.next;
                        return Ok(Some(Found::Gap(gap)));
                    }
                    return Ok(Some(Found::Nothing));
                }
            }
        }
    }

    /// Opens the segment in which the position lies, or the oldest one behind it.
    fn enter_first(&mut self) -> Result<Option<Found>> {
        self.end = self.source.end()?;
        let segments = layout::segments(&*self.registry.fs, &self.registry.dir)?;
        let holds = segments.iter().rev().find(|first| **first <= self.next).or(segments.first());
        let Some(first) = holds.copied() else { return Ok(Some(Found::Nothing)) };
        self.enter(first, Lost::Removed)
    }

    /// Opens the segment behind the current one.
    fn enter_successor(&mut self) -> Result<Option<Found>> {
        let Some(open) = &self.current else { return Ok(None) };
        let segments = layout::segments(&*self.registry.fs, &self.registry.dir)?;
        let Some(successor) = segments.into_iter().find(|first| *first > open.first) else {
            return Ok(Some(Found::Nothing));
        };
        let lost = if open.damaged { Lost::Damaged } else { Lost::Removed };
        self.enter(successor, lost)
    }

    fn enter(&mut self, first: u64, lost: Lost) -> Result<Option<Found>> {
        let Registry { fs, dir, uuid } = &self.registry;
        let path = layout::segment_path(dir, first);
        let file = match fs.open(&path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Removed between the look and the opening: look again.
                self.current = None;
                return Ok(None);
            }
            Err(error) => return Err(JournalError::io("open", &path)(error)),
        };
        let header = match layout::read_segment_header(&*file, &path)? {
            Ok(header) => Some(header),
            Err(layout::BadHeader::Damaged) => None,
            Err(layout::BadHeader::Unknown(what)) => return Err(JournalError::Format { path, what }),
        };
        let gap = self.gap_before(first, header.as_ref(), lost);
        let walker = Walker::new(file, &path, first, layout::salt(*uuid, first));
        self.current = Some(Open { first, walker, sealed_bytes: None, damaged: false });
        self.next = self.next.max(first);
        Ok(gap.map(Found::Gap))
    }

    /// What is missing between the position and a segment that begins behind it. Numbers that were never given to a record on disk are not missing.
    fn gap_before(&self, first: u64, header: Option<&SegmentHeader>, lost: Lost) -> Option<Gap> {
        let from = match (&self.current, self.next) {
            // From the oldest record on: nothing was promised before it.
            (None, 0) => return None,
            (_, next) => next,
        };
        let to = header.map_or(first, |header| header.previous_end);
        let path = match (&self.current, lost) {
            (Some(open), Lost::Damaged) => open.walker.path().to_path_buf(),
            _ => layout::segment_path(&self.registry.dir, first),
        };
        let offset = match (&self.current, lost) {
            (Some(open), Lost::Damaged) => open.walker.offset(),
            _ => 0,
        };
        (from < to).then_some(Gap { from, to, lost, path, offset })
    }
}

impl Open {
    /// How far it may be read.
    fn limit(&mut self, end: &Point) -> Result<u64> {
        match self.first.cmp(&end.segment) {
            Ordering::Greater => Ok(0),
            Ordering::Equal => Ok(end.offset),
            Ordering::Less => match self.sealed_bytes {
                Some(bytes) => Ok(bytes),
                None => {
                    let length = self.walker.file().length();
                    let bytes = length.map_err(JournalError::io("measure", self.walker.path()))?;
                    self.sealed_bytes = Some(bytes);
                    Ok(bytes)
                }
            },
        }
    }

    fn gap(&self, from: u64, to: u64) -> Gap {
        Gap { from, to, lost: Lost::Damaged, path: self.walker.path().into(), offset: self.walker.record_offset() }
    }
}

impl Source {
    fn end(&mut self) -> Result<Point> {
        match self {
            Source::Live(inner) => Ok(inner.commit.synced()),
            Source::View(view) => view.end(),
        }
    }
}
