//! What the log holds, in memory: where each entry lies, and the newest entries themselves.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::record::{self, Record};
use super::segment::Segment;
use crate::raft::{Entry, LogId, Vote};

/// Entries are kept in memory up to this sum, so that applying and replicating what was just written reads no file. Entries that are not
/// written yet are kept in any case; openraft bounds those.
const CACHE_BYTES: usize = 32 << 20;

/// Where a written entry lies.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Slot {
    id: LogId,
    place: Option<Place>,
    cached: Option<Entry>,
}

/// The log as readers see it.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    slots: VecDeque<Slot>,
    /// Slots before this place hold no cached entry.
    uncached: usize,
    cached_bytes: usize,
}

/// An entry, or where to read it.
pub(super) enum Lookup {
    Here(Entry),
    At(LogId, Place),
}

fn weight(entry: &Entry) -> usize {
    const OVERHEAD: usize = 128;
    match &entry.payload {
        openraft::EntryPayload::Normal(command) => OVERHEAD + command.0.len(),
        _ => OVERHEAD,
    }
}

impl Index {
    pub(super) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    fn first_index(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.id.index)
    }

    /// Adds an entry behind the last one. Openraft never leaves a hole; if it did, the log would be refused at the next start, so say it now.
    pub(super) fn push(&mut self, entry: Entry, place: Option<Place>, keep: bool) -> Result<(), String> {
        if let Some(last) = self.slots.back().map(|slot| slot.id.index)
            && entry.log_id.index != last + 1
        {
            return Err(format!("entry {} cannot follow index {last}", entry.log_id));
        }
        let id = entry.log_id;
        let cached = keep.then_some(entry);
        self.cached_bytes += cached.as_ref().map_or(0, weight);
        self.slots.push_back(Slot { id, place, cached });
        Ok(())
    }

    /// Notes where an entry was written, unless it was truncated meanwhile.
    pub(super) fn written(&mut self, id: LogId, place: Place) {
        if let Some(slot) = self.slot_mut(id.index)
            && slot.id == id
        {
            slot.place = Some(place);
        }
    }

    /// Forgets the oldest cached entries that can be read from a file.
    pub(super) fn shrink_cache(&mut self) {
        while self.cached_bytes > CACHE_BYTES
            && let Some(slot) = self.slots.get_mut(self.uncached)
            && slot.place.is_some()
        {
            if let Some(entry) = slot.cached.take() {
                self.cached_bytes -= weight(&entry);
            }
            self.uncached += 1;
        }
    }

    pub(super) fn truncate(&mut self, keep_upto: Option<u64>) {
        while self.slots.back().is_some_and(|slot| keep_upto.is_none_or(|upto| slot.id.index > upto)) {
            let slot = self.slots.pop_back();
            self.forget(slot);
        }
        self.uncached = self.uncached.min(self.slots.len());
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.is_none_or(|purged| purged.index <= upto.index) {
            self.purged = Some(upto);
        }
        while self.first_index().is_some_and(|first| first <= upto.index) {
            let slot = self.slots.pop_front();
            self.forget(slot);
            self.uncached = self.uncached.saturating_sub(1);
        }
    }

    /// What was committed is written with the group that comes next, and the entry itself may have waited behind that group: the others had it
    /// on their disks first. A crash in between leaves the word and not the entry, or another one in its place that was to be truncated.
    pub(super) fn forget_committed_unless_here(&mut self) {
        let here = self.committed.is_some_and(|id| match self.purged.filter(|purged| purged.index >= id.index) {
            Some(_) => true,
            None => self.slot_mut(id.index).is_some_and(|slot| slot.id == id),
        });
        if !here {
            self.committed = None;
        }
    }

    fn forget(&mut self, slot: Option<Slot>) {
        if let Some(entry) = slot.and_then(|slot| slot.cached) {
            self.cached_bytes -= weight(&entry);
        }
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let offset = index.checked_sub(self.first_index()?)?;
        self.slots.get_mut(usize::try_from(offset).ok()?)
    }

    /// The entries of `start..end` that are there: the first, and as many more as weigh no more than this with it.
    pub(super) fn range(&self, start: u64, end: u64, limit_bytes: usize) -> Vec<Lookup> {
        let Some(first) = self.first_index() else { return Vec::new() };
        let from = start.saturating_sub(first);
        let upto = end.saturating_sub(first).min(self.slots.len() as u64);
        let mut sum = 0;
        (from..upto)
            .map(|at| {
                let slot = &self.slots[at as usize];
                match (&slot.cached, &slot.place) {
                    (Some(entry), _) => Lookup::Here(entry.clone()),
                    (None, Some(place)) => Lookup::At(slot.id, place.clone()),
                    (None, None) => unreachable!("an entry is cached until it is written"),
                }
            })
            .take_while(|lookup| {
                let first = sum == 0;
                sum += lookup.bytes();
                first || sum <= limit_bytes
            })
            .collect()
    }
}

impl Lookup {
    pub(super) fn is_here(&self) -> bool {
        matches!(self, Lookup::Here(_))
    }

    /// What the entry weighs, to bound a read before doing it.
    fn bytes(&self) -> usize {
        match self {
            Lookup::Here(entry) => weight(entry),
            Lookup::At(_, place) => place.bytes,
        }
    }

    /// The entry.
    pub(super) fn load(self) -> io::Result<Entry> {
        let (id, place) = match self {
            Lookup::Here(entry) => return Ok(entry),
            Lookup::At(id, place) => (id, place),
        };
        let mut bytes = vec![0; place.bytes];
        place.segment.file.read_exact_at(&mut bytes, place.offset)?;
        match record::decode(&bytes) {
            Ok(record::Framed { record: Record::Entry(entry), .. }) if entry.log_id == id => Ok(entry),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} at offset {} no longer holds entry {id}: {other:?}",
                    place.segment.path.display(),
                    place.offset
                ),
            )),
        }
    }
}
