//! Room below `max_backlog`: what goes, or who waits.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{JournalError, Result};
use crate::journal::Inner;
use crate::layout;
use crate::options::{AtLimit, Event};
use crate::retention::furthest_behind;
use crate::subscribers::Registry;
use crate::tail::Tail;

/// How often a blocked writer looks for checkpoints that another process made.
const BLOCKED_LOOK: Duration = Duration::from_secs(1);

impl Inner {
    /// Refuses what cannot be written, repairs what can be, and keeps to `max_backlog`.
    pub(crate) fn make_room<'a>(&'a self, mut tail: MutexGuard<'a, Tail>, bytes: u64) -> Result<MutexGuard<'a, Tail>> {
        let at_limit = self.options().at_limit;
        let deadline = match at_limit {
            AtLimit::Block(patience) => Instant::now().checked_add(patience),
            AtLimit::DropOldest => None,
        };
        let mut told = false;
        loop {
            self.check(&mut tail)?;
            let Some(max_bytes) = self.options().max_backlog_bytes else { return Ok(tail) };
            if tail.total_bytes() + bytes <= max_bytes {
                return Ok(tail);
            }
            let Some(slowest) = self.look_for_room(&mut tail)? else { return Ok(tail) };
            if tail.total_bytes() + bytes <= max_bytes {
                return Ok(tail);
            }
            if tail.sealed.is_empty() {
                if !tail.has_records() {
                    // A batch larger than the whole limit.
                    return Ok(tail);
                }
                self.roll(&mut tail)?;
                continue;
            }
            if at_limit == AtLimit::DropOldest {
                self.drop_oldest(&mut tail)?;
                continue;
            }
            if !std::mem::replace(&mut told, true) {
                self.tell(&Event::Blocked { subscriber: slowest.clone() });
            }
            let left = deadline.map_or(BLOCKED_LOOK, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let path = self.registry.dir.clone();
                return Err(JournalError::Backlog { path, max_bytes, subscriber: slowest });
            }
            tail = self.room.wait_timeout(tail, left.min(BLOCKED_LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Looks again at what is on the disk, and removes what was passed. Answers who is furthest behind, if there are subscribers.
    fn look_for_room(&self, tail: &mut Tail) -> Result<Option<String>> {
        let locked = self.registry.lock()?;
        locked.collect(self.keep())?;
        let subscribers = self.registry.load()?;
        drop(locked);
        self.refresh_sealed(tail)?;
        Ok(furthest_behind(&subscribers).map(|slowest| slowest.name.clone()))
    }

    pub(crate) fn refresh_sealed(&self, tail: &mut Tail) -> Result<()> {
        let Registry { fs, dir, .. } = &self.registry;
        let current = tail.segment.as_ref().map(|segment| segment.first);
        tail.sealed.clear();
        for first in layout::segments(&**fs, dir)? {
            let path = layout::segment_path(dir, first);
            if Some(first) == current {
                continue;
            }
            match fs.open(&path, false).and_then(|file| file.length()) {
                Ok(bytes) => tail.sealed.push_back((first, bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(JournalError::io("measure", &path)(error)),
            }
        }
        Ok(())
    }

    fn drop_oldest(&self, tail: &mut Tail) -> Result<()> {
        if let Some(dropped) = self.registry.lock()?.drop_oldest()? {
            let lost: u64 = dropped.lost.iter().map(|(_, records)| records).sum();
            self.stats.dropped_records.fetch_add(lost, Ordering::Relaxed);
            tail.sealed.retain(|(first, _)| *first >= dropped.sequences.end);
            self.tell(&Event::Dropped(dropped));
            return Ok(());
        }
        // Another process was faster.
        self.refresh_sealed(tail)
    }
}
