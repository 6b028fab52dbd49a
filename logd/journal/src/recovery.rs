//! What an unclean end left in the last segment, and what of it counts.
//!
//! The segments before the last were synced before the next was made, so only the last can be torn. In it, everything below the newest mark is
//! known to have been on disk: damage there is rot, stays, and is reported when it is read. From the first damage behind that on, the tail is cut:
//! those records may have been written in another order than they reached the disk, and a hole in what was never acknowledged must not
//! look like a loss, nor let a sender believe that what it sent before the hole arrived.

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::fs::FsFile;
use crate::layout::{self, SEGMENT_HEADER_BYTES, Uuid};
use crate::notes::{Note, Notes};
use crate::record::{Kind, u64_at};
use crate::walker::{Step, Walker};

/// What the last segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Where its last record that counts ends.
    pub(crate) end_offset: u64,
    /// The number after that record.
    pub(crate) next: u64,
    /// Closed in order: numbers go on without a jump.
    pub(crate) clean: bool,
    /// Records that count.
    pub(crate) records: u64,
    /// Bytes behind `end_offset`.
    pub(crate) torn_bytes: u64,
    /// Whole records among those bytes.
    pub(crate) torn_records: u64,
    /// Damaged bytes before `end_offset`.
    pub(crate) rotten_bytes: u64,
    /// What was noted up to `end_offset`; none when the segment cannot say.
    pub(crate) notes: Option<Notes>,
}

/// A note as it was found.
struct Found {
    note: Note,
    /// The state before it, to go back to when the records that it goes with are not all there.
    before: Before,
}

/// The state before a damaged place, to go back to if that is where the tail is cut.
#[derive(Clone, Copy)]
struct Before {
    offset: u64,
    next: u64,
    records: u64,
    rotten_bytes: u64,
}

/// Reads the last segment through.
pub(crate) fn recover(file: &Arc<dyn FsFile>, path: &Path, uuid: Uuid, first: u64, length: u64) -> Result<Recovered> {
    let mut walker = Walker::new(Arc::clone(file), path, first, layout::salt(uuid, first));
    let mut good = Before { offset: SEGMENT_HEADER_BYTES as u64, next: first, records: 0, rotten_bytes: 0 };
    let mut damages: Vec<Before> = Vec::new();
    let mut synced = first;
    let mut clean = false;
    let mut found: Vec<Found> = Vec::new();
    loop {
        match walker.step(length)? {
            Step::Record { kind, .. } => {
                clean = kind == Kind::End;
                match kind {
                    Kind::Data => good.records += 1,
                    Kind::Mark => synced = synced.max(u64_at(walker.payload(), 0)),
                    Kind::End => synced = walker.expected,
                    Kind::Note => {
                        let note = Note::parse(walker.payload());
                        found.extend(note.map(|note| Found { note, before: good }));
                    }
                }
                good.next = walker.expected;
                good.offset = walker.offset();
            }
            Step::Damage { bytes } => {
                // Rot can make many holes; only those that may be the cut are remembered.
                damages.retain(|before| before.next >= synced);
                damages.push(good);
                good.rotten_bytes += bytes;
                clean = false;
            }
            Step::End => break,
        }
    }
    let all_records = good.records;
    let cut = damages.iter().find(|before| before.next >= synced).copied();
    let kept = whole_batches(&found, cut.unwrap_or(good), synced);
    found.retain(|one| one.before.offset < kept.offset);
    let says = kept.records > 0 || found.iter().any(|one| one.note.whole_table);
    let notes = says.then(|| {
        let mut notes = Notes::new();
        found.into_iter().for_each(|one| one.note.apply(&mut notes));
        notes
    });
    // A tail that was cut has no end.
    let clean = clean && kept.offset == good.offset;
    Ok(Recovered {
        end_offset: kept.offset,
        next: kept.next.max(synced),
        clean,
        records: kept.records,
        torn_bytes: length.saturating_sub(kept.offset),
        torn_records: all_records - kept.records,
        rotten_bytes: kept.rotten_bytes,
        notes,
    })
}

/// Where a note is the last and its records are not all there, they and it go: they were never synced, or a mark would say so. Whoever wrote
/// them gives them again.
fn whole_batches(found: &[Found], kept: Before, synced: u64) -> Before {
    let last = found.iter().rev().find(|one| one.before.offset < kept.offset);
    match last {
        Some(Found { note, before }) if before.next >= synced && kept.next < before.next + u64::from(note.records) => {
            *before
        }
        _ => kept,
    }
}
