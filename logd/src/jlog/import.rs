//! Taking a jlog directory over: every whole record, every subscriber where it was.
//!
//! A subscriber's unread records are what must not shrink. Where its marker is certain (the index agrees with the data, or the segment is whole) its
//! position is exact. Where it is not, it is put before anything that it may not have read, and the report says so: it may read twice.
//!
//! The new journal is built beside the old directory, synced, and exchanged with it in one step; the old directory stays as `NAME.jlog`. A killed
//! import leaves the old directory as it was, and the next one starts over.

use std::path::{Path, PathBuf};

use logd_journal::{Batch, Durability, Journal, Options};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::OldError;
use super::format::{OldCheckpoint, OldJournal, OldRecord, Segment, Skipped};

/// What is appended with one write.
const BATCH_BYTES: usize = 1 << 20;

/// A subscriber after the import.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ImportedSubscriber {
    /// Its name.
    pub name: String,
    /// Where it was.
    pub segment: u32,
    /// See `segment`.
    pub marker: u32,
    /// The first number that it needs now.
    pub next: u64,
    /// Records that are new to it.
    pub unread: u64,
    /// Why its place is not certain; it may then read some records twice.
    pub doubt: Option<String>,
}

/// What an import came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// Segments that were read.
    pub segments: usize,
    /// Records taken over.
    pub records: u64,
    /// Damaged places.
    pub skipped: Vec<Skipped>,
    /// Checkpoint files that say nothing.
    pub bad_checkpoints: Vec<PathBuf>,
    /// By name.
    pub subscribers: Vec<ImportedSubscriber>,
}

/// A subscriber on its way through the segments.
struct Traveller {
    checkpoint: OldCheckpoint,
    /// Known once the first record that it needs has come by.
    next: Option<u64>,
    doubt: Option<String>,
}

/// Replaces the jlog directory by a journal of the same name; answers where the old directory is now.
pub fn import_in_place(dir: &Path, options: Options) -> Result<(ImportReport, PathBuf), OldError> {
    let dir = std::fs::canonicalize(dir).map_err(OldError::io("find", dir))?;
    let building = beside(&dir, ".importing");
    let kept = beside(&dir, ".jlog");
    if kept.exists() {
        return Err(OldError::Exists { path: kept });
    }
    OldJournal::open(&dir)?;
    if building.exists() {
        // A killed import's. What it holds is in the old directory still.
        std::fs::remove_dir_all(&building).map_err(OldError::io("remove", &building))?;
    }
    let report = import_into(&dir, &building, options)?;
    renameat2(AT_FDCWD, &building, AT_FDCWD, &dir, RenameFlags::RENAME_EXCHANGE)
        .map_err(|errno| OldError::io("exchange", &dir)(errno.into()))?;
    sync_dir(above(&dir))?;
    std::fs::rename(&building, &kept).map_err(OldError::io("rename", &building))?;
    sync_dir(above(&dir))?;
    Ok((report, kept))
}

/// Makes a journal in `to`, which must not hold one yet, of the jlog directory `from`, which is left alone.
pub fn import_into(from: &Path, to: &Path, options: Options) -> Result<ImportReport, OldError> {
    if to.exists() && std::fs::read_dir(to).map_err(OldError::io("list", to))?.next().is_some() {
        return Err(OldError::Exists { path: to.into() });
    }
    let old = OldJournal::open(from)?;
    let (checkpoints, bad_checkpoints) = old.checkpoints()?;
    // Nobody subscribes yet, and nothing may go by age or size meanwhile.
    let keep = logd_journal::Keep { age: std::time::Duration::MAX, bytes: u64::MAX };
    let options = Options { durability: Durability::Fast, sync_delay: None, max_backlog_bytes: None, keep, ..options };
    let journal = Journal::open(to, options)?;
    let mut report = ImportReport { bad_checkpoints, ..ImportReport::default() };
    let mut travellers: Vec<Traveller> =
        checkpoints.into_iter().map(|checkpoint| Traveller { checkpoint, next: None, doubt: None }).collect();
    for number in old.segments() {
        let segment = old.segment(*number)?;
        let index = old.index(*number)?;
        for traveller in &mut travellers {
            traveller.pass(*number, &segment, index.as_deref(), report.records);
        }
        append(&journal, &segment.records)?;
        report.segments += 1;
        report.records += segment.records.len() as u64;
        report.skipped.extend(segment.skipped);
        let length = std::fs::metadata(old.segment_path(*number)).map(|metadata| metadata.len()).unwrap_or(0);
        if length != segment.length {
            return Err(OldError::Changed { path: old.segment_path(*number) });
        }
    }
    journal.sync()?;
    for traveller in travellers {
        journal.subscribe(&traveller.checkpoint.name)?;
        let next = traveller.next.unwrap_or(report.records + 1);
        journal.checkpoint(&traveller.checkpoint.name, next)?;
        let OldCheckpoint { name, segment, marker } = traveller.checkpoint;
        let unread = report.records + 1 - next;
        report.subscribers.push(ImportedSubscriber { name, segment, marker, next, unread, doubt: traveller.doubt });
    }
    journal.close()?;
    Ok(report)
}

fn append(journal: &Journal, records: &[OldRecord]) -> Result<(), OldError> {
    let mut batch = Batch::new();
    for record in records {
        if batch.size_bytes() + record.payload.len() > BATCH_BYTES && !batch.is_empty() {
            journal.append_batch(&mut batch)?;
            batch.clear();
        }
        batch.push(record.time_us, &record.payload)?;
    }
    if !batch.is_empty() {
        journal.append_batch(&mut batch)?;
    }
    Ok(())
}

impl Traveller {
    /// Looks at a segment whose first record will get number `before + 1`.
    fn pass(&mut self, number: u32, segment: &Segment, index: Option<&[u64]>, before: u64) {
        if self.next.is_some() || number < self.checkpoint.segment {
            return;
        }
        let consumed = if number > self.checkpoint.segment { 0 } else { self.consumed(segment, index) };
        if consumed < segment.records.len() {
            self.next = Some(before + consumed as u64 + 1);
        }
    }

    /// How many of the segment's whole records were surely consumed.
    fn consumed(&mut self, segment: &Segment, index: Option<&[u64]>) -> usize {
        let marker = self.checkpoint.marker as usize;
        if marker == 0 {
            return 0;
        }
        let offsets: Vec<u64> = segment.records.iter().map(|record| record.offset).collect();
        // The index numbers records as the subscriber did, damaged ones too. It counts where it fits the data: every whole record up to the
        // marker's place is in it.
        if let Some((index, last)) = index.and_then(|index| Some((index, index.get(marker - 1)?))) {
            let passed = offsets.partition_point(|offset| offset <= last);
            if offsets[..passed].iter().all(|offset| index.binary_search(offset).is_ok()) {
                return passed;
            }
            self.doubt = Some("the index does not fit the segment: it was repaired in place".into());
            return offsets.iter().zip(index).take_while(|(offset, indexed)| offset == indexed).count().min(marker);
        }
        let damaged_from = segment.skipped.first().map_or(u64::MAX, |skipped| skipped.offset);
        let sound = offsets.partition_point(|offset| *offset < damaged_from);
        if marker <= sound {
            return marker;
        }
        if damaged_from == u64::MAX {
            let count = offsets.len();
            self.doubt =
                Some(format!("marker {marker} is behind the {count} records there: the segment was repaired in place"));
            return 0;
        }
        self.doubt = Some(format!("damage at offset {damaged_from} is before marker {marker}"));
        sound
    }
}

/// `DIR` with something behind its name.
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    dir.with_file_name(name)
}

fn above(dir: &Path) -> &Path {
    dir.parent().unwrap_or(dir)
}

fn sync_dir(dir: &Path) -> Result<(), OldError> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(OldError::io("fsync", dir))
}
