//! Opening a journal: who it is, where it ends, what an unclean end left.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{JournalError, Result};
use crate::fs::Fs;
use crate::layout::{self, BadHeader, META_FILE, SEGMENT_HEADER_BYTES, Uuid};
use crate::notes::{self, Notes};
use crate::options::Event;
use crate::recovery::{self, Recovered};
use crate::subscribers::{self, Registry};

/// Numbers that are left out after an unclean end: more than can have been given to records that were not synced.
pub(crate) const JUMP: u64 = 1 << 22;

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) registry: Registry,
    /// The number after the last record on disk.
    pub(crate) end: u64,
    /// The number that the next record gets.
    pub(crate) next: u64,
    /// The last segment and where its last record ends; none in a new journal.
    pub(crate) last: Option<(u64, u64)>,
    pub(crate) cut_bytes: u64,
    pub(crate) events: Vec<Event>,
    /// What is noted.
    pub(crate) notes: Notes,
}

/// Reads who the journal is; `None` for a directory without one.
pub(crate) fn read_uuid(fs: &dyn Fs, dir: &Path) -> Result<Option<Uuid>> {
    let path = dir.join(META_FILE);
    let meta = layout::read_small(fs, &path)?;
    match meta.as_deref().map(layout::parse_meta) {
        Some(Ok((uuid, _))) => Ok(Some(uuid)),
        Some(Err(BadHeader::Unknown(what))) => Err(JournalError::Format { path, what }),
        // The segments know it too.
        Some(Err(BadHeader::Damaged)) | None => uuid_of_segments(fs, dir),
    }
}

fn uuid_of_segments(fs: &dyn Fs, dir: &Path) -> Result<Option<Uuid>> {
    for first in layout::segments(fs, dir)? {
        let path = layout::segment_path(dir, first);
        let file = fs.open(&path, false).map_err(JournalError::io("open", &path))?;
        if let Ok(header) = layout::read_segment_header(&*file, &path)? {
            return Ok(Some(header.uuid));
        }
    }
    Ok(None)
}

/// Finds or makes the journal in a directory that this process has locked.
pub(crate) fn open(fs: &Arc<dyn Fs>, dir: &Path) -> Result<Found> {
    let mut events = Vec::new();
    remove_temporary(&**fs, dir)?;
    let known = read_uuid(&**fs, dir)?;
    let segments = layout::segments(&**fs, dir)?;
    let uuid = match known {
        Some(uuid) if !segments.is_empty() => {
            rewrite_meta(&**fs, dir, uuid)?;
            uuid
        }
        // A journal of which only the name is left: its numbers are not known any more, so it cannot be the same one.
        Some(_) => {
            events.push(Event::Wiped { path: dir.into() });
            make_meta(&**fs, dir)?
        }
        None if segments.is_empty() => make_meta(&**fs, dir)?,
        None => {
            let what = "there are segments, but nothing says which journal they are of".into();
            return Err(JournalError::NotAJournal { path: dir.into(), what });
        }
    };
    let registry = Registry { fs: Arc::clone(fs), dir: dir.into(), uuid };
    let damaged = registry.load()?.into_iter().filter(|subscriber| !subscriber.sound);
    events.extend(damaged.map(|subscriber| Event::DamagedSubscriber { name: subscriber.name }));
    let mut found = Found { registry, end: 1, next: 1, last: None, cut_bytes: 0, events, notes: Notes::new() };
    found.find_end(segments)?;
    Ok(found)
}

impl Found {
    /// Reads the last segment through, cuts its torn tail, and makes sure that what remains is on disk.
    fn find_end(&mut self, mut segments: Vec<u64>) -> Result<()> {
        while let Some(first) = segments.pop() {
            let Registry { fs, dir, uuid } = &self.registry;
            let path = layout::segment_path(dir, first);
            let file = fs.open(&path, true).map_err(JournalError::io("open", &path))?;
            let length = file.length().map_err(JournalError::io("measure", &path))?;
            let header = match layout::read_segment_header(&*file, &path)? {
                Err(BadHeader::Unknown(what)) => return Err(JournalError::Format { path, what }),
                other => other.ok(),
            };
            if header.is_some_and(|header| header.uuid != *uuid) {
                return Err(JournalError::NotAJournal { path, what: "it is a segment of another journal".into() });
            }
            if header.is_none() && length <= SEGMENT_HEADER_BYTES as u64 {
                // Records are only written behind a synced header: nothing was ever in it. Its number may not have been given either.
                self.end = self.end.max(first);
                self.next = self.next.max(first + JUMP);
                fs.remove(&path).map_err(JournalError::io("remove", &path))?;
                fs.sync_dir(dir).map_err(JournalError::io("fsync", dir))?;
                self.events.push(Event::UnfinishedSegment { path });
                continue;
            }
            let recovered = recovery::recover(&file, &path, *uuid, first, length)?;
            if recovered.torn_bytes > 0 {
                file.set_len(recovered.end_offset).map_err(JournalError::io("cut", &path))?;
            }
            // Also what is whole may only be in the page cache, and readers are about to see it.
            file.sync_data().map_err(JournalError::io("fsync", &path))?;
            self.notes = match &recovered.notes {
                Some(notes) => notes.clone(),
                None => self.older_notes(segments)?,
            };
            self.take(first, path, &recovered);
            return Ok(());
        }
        Ok(())
    }

    /// What the newest of these segments that can say has noted. They were synced whole, before the next was made.
    fn older_notes(&self, segments: Vec<u64>) -> Result<Notes> {
        let Registry { fs, dir, uuid } = &self.registry;
        for first in segments.into_iter().rev() {
            let path = layout::segment_path(dir, first);
            let file = fs.open(&path, false).map_err(JournalError::io("open", &path))?;
            let length = file.length().map_err(JournalError::io("measure", &path))?;
            if let Some(found) = notes::read(&file, &path, *uuid, first, length)? {
                return Ok(found);
            }
        }
        Ok(Notes::new())
    }

    fn take(&mut self, first: u64, path: PathBuf, recovered: &Recovered) {
        let &Recovered { end_offset, next, clean, torn_bytes, torn_records, rotten_bytes, .. } = recovered;
        if torn_bytes > 0 {
            let path = path.clone();
            self.events.push(Event::TornTail { path, offset: end_offset, bytes: torn_bytes, records: torn_records });
        }
        if rotten_bytes > 0 {
            self.events.push(Event::Rot { path, bytes: rotten_bytes });
        }
        self.last = Some((first, end_offset.max(SEGMENT_HEADER_BYTES as u64)));
        self.end = next;
        // A segment without a record has the name that the next one would get.
        self.next = self.next.max(if clean { next.max(first + 1) } else { next + JUMP });
        self.cut_bytes = torn_bytes;
    }
}

fn make_meta(fs: &dyn Fs, dir: &Path) -> Result<Uuid> {
    let uuid = Uuid::of_random(fs.random());
    layout::write_small(fs, dir, META_FILE, &layout::encode_meta(uuid, fs.now_us()))?;
    Ok(uuid)
}

/// Puts a lost or damaged `journal` file back.
fn rewrite_meta(fs: &dyn Fs, dir: &Path, uuid: Uuid) -> Result<()> {
    let meta = layout::read_small(fs, &dir.join(META_FILE))?;
    if meta.as_deref().and_then(|bytes| layout::parse_meta(bytes).ok()).is_some() {
        return Ok(());
    }
    layout::write_small(fs, dir, META_FILE, &layout::encode_meta(uuid, fs.now_us()))
}

fn remove_temporary(fs: &dyn Fs, dir: &Path) -> Result<()> {
    for name in fs.list(dir).map_err(JournalError::io("list", dir))? {
        if subscribers::is_temporary(&name) {
            let path = dir.join(name);
            fs.remove(&path).map_err(JournalError::io("remove", &path))?;
        }
    }
    Ok(())
}
