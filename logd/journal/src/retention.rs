//! Which segments may go.
//!
//! With subscribers, a segment goes when every one of them has passed it. Without, it goes by age and size. The last segment always stays: it is being
//! written, and it keeps the newest number. Removal goes from the oldest on, and only after the subscribers' positions that allow it are durable.

use std::time::Duration;

use crate::error::{JournalError, Result};
use crate::layout::{self, SegmentHeader};
use crate::subscribers::{Locked, Registry, Subscriber};

/// How long records stay in a journal that nobody subscribes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// At least this long.
    pub age: Duration,
    /// But not more than this together.
    pub bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { age: Duration::from_secs(24 * 3600), bytes: 1 << 30 }
    }
}

/// A segment that is no longer written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) first: u64,
    /// The number after its last record.
    pub(crate) end: u64,
    pub(crate) bytes: u64,
    /// When the segment behind it was made, so when it got its last record.
    pub(crate) closed_us: u64,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Segments.
    pub segments: usize,
    /// Their size.
    pub bytes: u64,
    /// The number after the last record removed.
    pub(crate) through: u64,
}

impl Removed {
    fn add(&mut self, one: Sealed) {
        self.segments += 1;
        self.bytes += one.bytes;
        self.through = one.end;
    }
}

/// What was dropped because `max_backlog` was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The numbers that are gone.
    pub sequences: std::ops::Range<u64>,
    /// Their size on disk.
    pub bytes: u64,
    /// Who lost how many records.
    pub lost: Vec<(String, u64)>,
}

impl Registry {
    /// Every segment but the last, oldest first.
    pub(crate) fn sealed(&self) -> Result<Vec<Sealed>> {
        let firsts = layout::segments(&*self.fs, &self.dir)?;
        let mut sealed = Vec::with_capacity(firsts.len().saturating_sub(1));
        for pair in firsts.windows(2) {
            match self.sealed_one(pair[0], pair[1]) {
                Ok(one) => sealed.push(one),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sealed)
    }

    fn sealed_one(&self, first: u64, successor: u64) -> Result<Sealed> {
        let path = layout::segment_path(&self.dir, first);
        let file = self.fs.open(&path, false).map_err(JournalError::io("open", &path))?;
        let bytes = file.length().map_err(JournalError::io("measure", &path))?;
        let next_path = layout::segment_path(&self.dir, successor);
        let next_file = self.fs.open(&next_path, false).map_err(JournalError::io("open", &next_path))?;
        let header = layout::read_segment_header(&*next_file, &next_path)?;
        // A header that cannot be read leaves the larger bound: the segment stays a little longer.
        let (end, closed_us) = match header {
            Ok(SegmentHeader { previous_end, created_us, .. }) => (previous_end, created_us),
            Err(_) => (successor, self.fs.now_us()),
        };
        Ok(Sealed { first, end, bytes, closed_us })
    }
}

impl Locked<'_> {
    /// Removes what nobody needs.
    pub(crate) fn collect(&self, keep: Keep) -> Result<Removed> {
        let subscribers = self.registry.load()?;
        match furthest_behind(&subscribers) {
            Some(slowest) => self.remove_passed(slowest.next),
            None => self.remove_old(keep),
        }
    }

    /// Looks at no more segments than it removes, and one: a long backlog must not make every checkpoint slow.
    fn remove_passed(&self, needed: u64) -> Result<Removed> {
        let mut removed = Removed::default();
        for pair in layout::segments(&*self.registry.fs, &self.registry.dir)?.windows(2) {
            let one = match self.registry.sealed_one(pair[0], pair[1]) {
                Err(error) if error.is_not_found() => continue,
                other => other?,
            };
            if needed < one.end {
                break;
            }
            self.remove_segment(one)?;
            removed.add(one);
        }
        Ok(removed)
    }

    fn remove_old(&self, keep: Keep) -> Result<Removed> {
        let sealed = self.registry.sealed()?;
        let mut total: u64 = sealed.iter().map(|one| one.bytes).sum();
        let now_us = self.registry.fs.now_us();
        let mut removed = Removed::default();
        for one in sealed {
            if total <= keep.bytes && age(now_us, one.closed_us) < keep.age {
                break;
            }
            self.remove_segment(one)?;
            total -= one.bytes;
            removed.add(one);
        }
        Ok(removed)
    }

    /// Removes the oldest sealed segment although it is still needed, after writing down who loses what.
    pub(crate) fn drop_oldest(&self) -> Result<Option<Dropped>> {
        let sealed = self.registry.sealed()?;
        let Some(oldest) = sealed.first() else { return Ok(None) };
        let mut lost = Vec::new();
        for subscriber in self.registry.load()? {
            let records = self.count_dropped(&subscriber, oldest.first, oldest.end)?;
            if records > 0 {
                lost.push((subscriber.name, records));
            }
        }
        self.remove_segment(*oldest)?;
        Ok(Some(Dropped { sequences: oldest.first..oldest.end, bytes: oldest.bytes, lost }))
    }

    /// One after the other, each durably: a power loss must not bring back an older one than it left.
    fn remove_segment(&self, one: Sealed) -> Result<()> {
        let path = layout::segment_path(&self.registry.dir, one.first);
        match self.registry.fs.remove(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(JournalError::io("remove", &path)(error)),
            _ => self.sync_dir(),
        }
    }
}

pub(crate) fn furthest_behind(subscribers: &[Subscriber]) -> Option<&Subscriber> {
    subscribers.iter().min_by_key(|subscriber| subscriber.next)
}

fn age(now_us: u64, then_us: u64) -> Duration {
    Duration::from_micros(now_us.saturating_sub(then_us))
}
