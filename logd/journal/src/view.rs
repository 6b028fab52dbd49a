//! A journal that another process may be writing: for `jlogctl` and whoever else looks from beside.
//!
//! How far the writer has synced stands in the file `tail`, which it overwrites after every sync; a reader waits for that with inotify. A `tail` of an
//! earlier boot says nothing (it is never synced itself); then nobody has opened the journal since, and its end is found by reading.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::AsFd as _;

use crate::error::{JournalError, Result};
use crate::fs::{Fs, System};
use crate::layout::{self, BadHeader, Point, SEGMENT_HEADER_BYTES, TAIL_FILE, Uuid};
use crate::open;
use crate::recovery;
use crate::retention::{Keep, Removed, Sealed};
use crate::subscribers::{Registry, Subscriber};

/// A reader that meets the writer in the middle of its write finds a wrong checksum and looks again this often.
const TAIL_TRIES: usize = 100;

/// A journal seen from outside.
#[derive(Debug)]
pub struct View {
    registry: Registry,
    boot: u64,
    /// The end as it was found by reading, where no writer of this boot tells.
    found: Option<Point>,
    watch: Option<Inotify>,
}

impl View {
    /// Looks at the journal in a directory, without locking it.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_on(Arc::new(System), dir)
    }

    /// The same on a file system of the caller's choice.
    pub fn open_on(fs: Arc<dyn Fs>, dir: &Path) -> Result<Self> {
        let uuid = open::read_uuid(&*fs, dir)?.ok_or_else(|| JournalError::NotAJournal {
            path: dir.into(),
            what: "it has neither the file `journal` nor a segment".into(),
        })?;
        let boot = layout::boot_hash(&fs.boot_id());
        Ok(Self { registry: Registry { fs, dir: dir.into(), uuid }, boot, found: None, watch: None })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Who the journal is.
    pub fn uuid(&self) -> Uuid {
        self.registry.uuid
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.registry.dir
    }

    /// The first number that is still there.
    pub fn first(&self) -> Result<u64> {
        Ok(layout::segments(&*self.registry.fs, &self.registry.dir)?.first().copied().unwrap_or(1))
    }

    /// The number after the last record that is on disk.
    pub fn synced(&mut self) -> Result<u64> {
        self.end().map(|point| point.next)
    }

    /// The subscribers by name.
    pub fn subscribers(&self) -> Result<Vec<Subscriber>> {
        self.registry.load()
    }

    /// One subscriber.
    pub fn subscriber(&self, name: &str) -> Result<Subscriber> {
        self.registry.read(name)?.ok_or_else(|| self.registry.no_subscriber(name))
    }

    /// Adds a subscriber that gets everything that is still there.
    pub fn subscribe(&self, name: &str) -> Result<()> {
        let locked = self.registry.lock()?;
        locked.add(name, self.first()?)
    }

    /// Removes a subscriber, and the segments that only it needed.
    pub fn unsubscribe(&self, name: &str) -> Result<Removed> {
        let locked = self.registry.lock()?;
        locked.remove(name)?;
        self.collect_locked(&locked)
    }

    /// Puts a subscriber anywhere between the oldest record and the end, also backwards.
    pub fn set_position(&mut self, name: &str, next: u64) -> Result<()> {
        let end = self.synced()?;
        if next > end {
            let what = format!("record {} was never written, the newest is {}", next - 1, end - 1);
            return Err(JournalError::Position { path: self.registry.dir.clone(), what });
        }
        self.registry.lock()?.set(name, next, true)
    }

    /// Removes the segments that every subscriber has passed. Without subscribers, none: their age is for the writer to judge.
    pub fn collect(&self) -> Result<Removed> {
        self.collect_locked(&self.registry.lock()?)
    }

    fn collect_locked(&self, locked: &crate::subscribers::Locked<'_>) -> Result<Removed> {
        locked.collect(Keep { age: Duration::MAX, bytes: u64::MAX })
    }

    pub(crate) fn sealed(&self) -> Result<Vec<Sealed>> {
        self.registry.sealed()
    }

    /// How far everything is on disk.
    pub(crate) fn end(&mut self) -> Result<Point> {
        if let Some(point) = self.told_end()? {
            self.found = None;
            return Ok(point);
        }
        match self.found {
            Some(point) => Ok(point),
            None => {
                let point = self.find_end()?;
                self.found = Some(point);
                Ok(point)
            }
        }
    }

    /// What a writer of this boot says.
    fn told_end(&self) -> Result<Option<Point>> {
        let path = self.registry.dir.join(TAIL_FILE);
        for _ in 0..TAIL_TRIES {
            let Some(bytes) = layout::read_small(&*self.registry.fs, &path)? else { return Ok(None) };
            match layout::parse_tail(&bytes) {
                Ok((uuid, point, boot)) => {
                    return Ok((uuid == self.registry.uuid && boot == self.boot).then_some(point));
                }
                Err(BadHeader::Unknown(what)) => return Err(JournalError::Format { path, what }),
                Err(BadHeader::Damaged) => std::thread::yield_now(),
            }
        }
        Ok(None)
    }

    /// Reads the last segment through, as the next writer will. Bytes that were read from the disk of an earlier boot are on it.
    fn find_end(&self) -> Result<Point> {
        let Registry { fs, dir, uuid } = &self.registry;
        for first in layout::segments(&**fs, dir)?.into_iter().rev() {
            let path = layout::segment_path(dir, first);
            let file = fs.open(&path, false).map_err(JournalError::io("open", &path))?;
            let length = file.length().map_err(JournalError::io("measure", &path))?;
            if layout::read_segment_header(&*file, &path)?.is_err() && length <= SEGMENT_HEADER_BYTES as u64 {
                // Never finished, never used.
                continue;
            }
            let recovered = recovery::recover(&file, &path, *uuid, first, length)?;
            return Ok(Point { next: recovered.next, segment: first, offset: recovered.end_offset });
        }
        Ok(Point { next: 1, segment: 0, offset: 0 })
    }

    /// Waits until records from `next` on can be read; false when the time is up.
    pub(crate) fn wait_readable(&mut self, next: u64, timeout: Option<Duration>) -> Result<bool> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let dir = self.registry.dir.clone();
        loop {
            // First the watch, then the look: what happens in between wakes the poll.
            self.start_watch().map_err(|error| JournalError::io("watch", &dir)(error.into()))?;
            if self.end()?.next > next {
                return Ok(true);
            }
            let Some(watch) = &self.watch else { return Ok(false) };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            // Rounded up, or the last millisecond would be spent spinning.
            let millis = left.map(|left| u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX));
            let timeout = millis.map_or(PollTimeout::NONE, PollTimeout::from);
            let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => drop(watch.read_events()),
                Err(errno) => return Err(JournalError::io("watch", &dir)(errno.into())),
            }
        }
    }

    fn start_watch(&mut self) -> nix::Result<()> {
        if self.watch.is_some() {
            return Ok(());
        }
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE;
        match watch.add_watch(&self.registry.dir.join(TAIL_FILE), AddWatchFlags::IN_MODIFY) {
            Ok(_) => {}
            // No writer has been here yet: the directory tells when one makes it, and then of every write.
            Err(nix::Error::ENOENT) => drop(watch.add_watch(&self.registry.dir, flags)?),
            Err(errno) => return Err(errno),
        }
        self.watch = Some(watch);
        Ok(())
    }
}
