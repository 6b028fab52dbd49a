//! The file that is being written: where the next record goes, and what happens when it cannot.
//!
//! Everything here runs behind the writers' lock. A full disk fails the append, cuts what was written of it, and changes nothing else: the next append
//! simply tries again.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::commit::{Epoch, Written, locked};
use crate::error::{JournalError, Result, is_full};
use crate::fs::{FsFile, write_all_at};
use crate::journal::Inner;
use crate::layout::{self, Point, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::notes;
use crate::open::JUMP;
use crate::options::Event;
use crate::record::{self, Batch, Kind, Mark};
use crate::retention::Removed;
use crate::subscribers::Registry;

/// A mark costs 32 bytes; one per this many keeps that under a hundredth. In small segments more often, or they would have none.
const MARK_EVERY_BYTES: u64 = 4096;

/// A segment that is written.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) first: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn FsFile>,
    pub(crate) salt: u32,
    /// Header and table of notes: what is in it before the first record.
    pub(crate) head_bytes: u64,
}

/// Where the next record goes.
#[derive(Debug)]
pub(crate) struct Tail {
    /// `None`: the next append makes one.
    pub(crate) segment: Option<Segment>,
    pub(crate) offset: u64,
    pub(crate) next: u64,
    /// For the header of the next segment.
    pub(crate) previous_end: u64,
    pub(crate) cut_bytes: u64,
    /// Where the newest mark ends, and what it says.
    pub(crate) marked_offset: u64,
    pub(crate) marked_synced: u64,
    pub(crate) epoch: Arc<Epoch>,
    /// Segments before this one: first number and size.
    pub(crate) sealed: VecDeque<(u64, u64)>,
    pub(crate) poison: Option<String>,
    pub(crate) closed: bool,
}

impl Tail {
    pub(crate) fn has_records(&self) -> bool {
        self.segment.as_ref().is_some_and(|segment| self.offset > segment.head_bytes)
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.sealed.iter().map(|(_, bytes)| bytes).sum::<u64>() + self.offset
    }

    pub(crate) fn written(&self) -> Option<Written> {
        let segment = self.segment.as_ref()?;
        Some(Written {
            file: Arc::clone(&segment.file),
            path: segment.path.clone(),
            point: Point { next: self.next, segment: segment.first, offset: self.offset },
            epoch: Arc::clone(&self.epoch),
        })
    }
}

impl Inner {
    /// Numbers a batch and writes it.
    pub(crate) fn write(&self, batch: &mut Batch) -> Result<(Range<u64>, Arc<Epoch>)> {
        let tail = locked(&self.tail);
        let mut tail = self.make_room(tail, batch.size_bytes() as u64)?;
        let sequences = tail.next..tail.next + batch.len() as u64;
        if batch.is_empty() {
            return Ok((sequences, Arc::clone(&tail.epoch)));
        }
        // However large the table is, a segment has room for records.
        let table_bytes = tail.segment.as_ref().map_or(0, |segment| segment.head_bytes - SEGMENT_HEADER_BYTES as u64);
        let filled = tail.offset - table_bytes + batch.size_bytes() as u64 > self.options().roll_bytes();
        if tail.segment.is_none() || (filled && tail.has_records()) {
            self.roll(&mut tail)?;
        }
        let sequences = tail.next..tail.next + batch.len() as u64;
        if sequences.end - self.commit.synced().next > JUMP {
            self.sync_tail(&tail)?;
        }
        self.write_records(&mut tail, batch)?;
        self.stats.records.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Ok((sequences, Arc::clone(&tail.epoch)))
    }

    fn write_records(&self, tail: &mut Tail, batch: &mut Batch) -> Result<()> {
        let synced = self.commit.synced().next;
        let every = MARK_EVERY_BYTES.min(self.options().roll_bytes() / 4);
        let marked = tail.offset - tail.marked_offset >= every && synced > tail.marked_synced;
        let mark = marked.then(|| Mark { synced, time_us: self.registry.fs.now_us() });
        let segment = tail.segment.as_ref().expect("the caller made one");
        let (note, bytes) = batch.number(tail.next, segment.salt, mark);
        let written = write_all_at(&*segment.file, &note, tail.offset)
            .and_then(|()| write_all_at(&*segment.file, bytes, tail.offset + note.len() as u64));
        if let Err(error) = written {
            return Err(self.take_back(tail, error));
        }
        if marked {
            tail.marked_offset = tail.offset + (note.len() + record::MARK_BYTES) as u64;
            tail.marked_synced = synced;
        }
        let written_bytes = (note.len() + bytes.len()) as u64;
        self.stats.bytes.fetch_add(written_bytes, Ordering::Relaxed);
        tail.offset += written_bytes;
        tail.next += batch.len() as u64;
        notes::apply(&mut locked(&self.notes), batch.notes());
        Ok(())
    }

    /// Cuts what was written of a batch that did not fit. Where even that fails, the segment is left as it is: nothing behind the last whole
    /// record is ever read, and the next append begins another segment.
    fn take_back(&self, tail: &mut Tail, error: std::io::Error) -> JournalError {
        let Some(segment) = &tail.segment else { return JournalError::io("write", &self.registry.dir)(error) };
        let path = segment.path.clone();
        let cut = segment.file.set_len(tail.offset);
        if is_full(&error) {
            self.stats.full.fetch_add(1, Ordering::Relaxed);
        }
        if cut.is_err()
            && let Err(error) = self.seal(tail)
        {
            return error;
        }
        JournalError::io("write", &path)(error)
    }

    /// Ends the segment: everything in it is synced before the next one is made.
    pub(crate) fn roll(&self, tail: &mut Tail) -> Result<()> {
        self.seal(tail)?;
        self.make_segment(tail)?;
        // What can go by age, or because it was passed while it was being written.
        let collected = self.registry.lock().and_then(|locked| locked.collect(self.keep()));
        match collected {
            Ok(removed) => forget(tail, &removed),
            Err(error) => self.tell(&Event::NotRemoved { reason: error.to_string() }),
        }
        Ok(())
    }

    pub(crate) fn seal(&self, tail: &mut Tail) -> Result<()> {
        if tail.segment.is_none() {
            return Ok(());
        }
        self.sync_tail(tail)?;
        if let Some(segment) = tail.segment.take() {
            tail.sealed.push_back((segment.first, tail.offset));
            tail.previous_end = tail.next;
            tail.offset = 0;
        }
        Ok(())
    }

    pub(crate) fn sync_tail(&self, tail: &Tail) -> Result<()> {
        match tail.written() {
            Some(written) => self.commit.sync(&written, &self.stats),
            None => Ok(()),
        }
    }

    /// Makes the next segment: name, header and notes are on disk before anything relies on it. Nobody removes segments meanwhile, for the one
    /// before it is what would be found if this one is not completed.
    pub(crate) fn make_segment(&self, tail: &mut Tail) -> Result<()> {
        let Registry { fs, dir, uuid } = &self.registry;
        let first = tail.next;
        let path = layout::segment_path(dir, first);
        let header = SegmentHeader {
            uuid: *uuid,
            first,
            previous_end: tail.previous_end,
            cut_bytes: tail.cut_bytes,
            created_us: fs.now_us(),
        };
        let salt = layout::salt(*uuid, first);
        let mut head = header.encode();
        let table =
            Some(locked(&self.notes)).filter(|notes| !notes.is_empty()).map(|notes| notes::encode_table(&notes));
        if let Some(table) = table {
            record::encode_control(&mut head, Kind::Note, first, header.created_us, &table, salt);
        }
        let _locked = self.registry.lock()?;
        let make = || {
            let file = fs.create_new(&path)?;
            write_all_at(&*file, &head, 0)?;
            file.sync_data()?;
            fs.sync_dir(dir)?;
            Ok(file)
        };
        let file = make().map_err(|error: std::io::Error| {
            if is_full(&error) {
                self.stats.full.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing is in it, and the next try needs the name; unless it was there before.
            if error.kind() != std::io::ErrorKind::AlreadyExists {
                drop(fs.remove(&path));
            }
            JournalError::io("create", &path)(error)
        })?;
        let offset = head.len() as u64;
        tail.segment = Some(Segment { first, path, file, salt, head_bytes: offset });
        tail.offset = offset;
        tail.marked_offset = offset;
        tail.marked_synced = first;
        tail.cut_bytes = 0;
        self.commit.publish(Point { next: first, segment: first, offset });
        Ok(())
    }

    pub(crate) fn check(&self, tail: &mut Tail) -> Result<()> {
        let path = &self.registry.dir;
        if tail.closed {
            return Err(JournalError::Closed { path: path.clone() });
        }
        if tail.epoch.failure.get().is_some() {
            self.repair(tail)?;
        }
        match &tail.poison {
            Some(reason) => Err(JournalError::Poisoned { path: path.clone(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// After a failed sync. A full disk ends: what was not synced is cut, and once that is on disk a new segment begins, with numbers that no
    /// record had. After any other failure nobody knows what the disk holds, so nothing more is written.
    fn repair(&self, tail: &mut Tail) -> Result<()> {
        let Some(failure) = tail.epoch.failure.get().cloned() else { return Ok(()) };
        if !is_full(&failure.error) {
            tail.poison = Some(failure.error.to_string());
            return Ok(());
        }
        let synced = self.commit.synced();
        if let Some(segment) = &tail.segment {
            let Registry { uuid, .. } = &self.registry;
            let noted = notes::read(&segment.file, &segment.path, *uuid, segment.first, synced.offset);
            let cut = segment.file.set_len(synced.offset).and_then(|()| segment.file.sync_data());
            match cut {
                Ok(()) => {}
                Err(error) if is_full(&error) => return Err(JournalError::io("cut", &segment.path)(error)),
                Err(error) => {
                    tail.poison = Some(error.to_string());
                    return Ok(());
                }
            }
            // What went with the cut records was not noted.
            *locked(&self.notes) = noted?.unwrap_or_default();
            let records = tail.next - synced.next;
            let reason = failure.error.to_string();
            self.tell(&Event::NotSynced { path: segment.path.clone(), records, reason });
            tail.sealed.push_back((segment.first, synced.offset));
            tail.cut_bytes = tail.offset - synced.offset;
            // An empty segment would be in the way of the next one's name if no number was given in it.
            if tail.next == segment.first {
                tail.next += 1;
            }
        }
        tail.segment = None;
        tail.offset = 0;
        tail.previous_end = synced.next;
        tail.epoch = Arc::default();
        Ok(())
    }

    pub(crate) fn write_end(&self, tail: &mut Tail) -> Result<()> {
        if tail.poison.is_some() || tail.epoch.failure.get().is_some() {
            return Err(JournalError::Closed { path: self.registry.dir.clone() });
        }
        self.sync_tail(tail)?;
        let Some(segment) = &tail.segment else { return Ok(()) };
        let mut end = Vec::new();
        record::encode_control(&mut end, Kind::End, tail.next, self.registry.fs.now_us(), &[], segment.salt);
        let io = |action| JournalError::io(action, &segment.path);
        write_all_at(&*segment.file, &end, tail.offset).map_err(io("write"))?;
        segment.file.sync_data().map_err(io("fsync"))
    }
}

pub(crate) fn forget(tail: &mut Tail, removed: &Removed) {
    tail.sealed.retain(|(first, _)| *first >= removed.through);
}
