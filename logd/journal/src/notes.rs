//! Notes: a small table of a journal's own, that changes together with its records.
//!
//! A batch may carry notes (key and value). They are there after a crash exactly when the records of the batch are: whoever writes down how far he has
//! read a source beside the lines that he took from it never takes a line twice nor misses one. The table is for positions: a few hundred
//! entries of a few bytes, all of it in memory and once in every segment.
//!
//! ```text
//! payload of a note, little-endian:
//!  0  u32  records of the batch that follow it: all of them count, or none and the note neither
//!  4  u8   1: the whole table, at the start of a segment; 0: changes
//!  5  then entries: u16 length of the key, u32 length of the value, key, value; an empty value forgets the key
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::fs::FsFile;
use crate::layout::{self, Uuid};
use crate::record::Kind;
use crate::walker::{Step, Walker};

/// The table.
pub type Notes = BTreeMap<Vec<u8>, Vec<u8>>;

const HEAD_BYTES: usize = 5;

/// Begins the payload of a note.
pub(crate) fn head(records: u32, whole_table: bool) -> Vec<u8> {
    let mut out = records.to_le_bytes().to_vec();
    out.push(u8::from(whole_table));
    out
}

/// Appends an entry.
pub(crate) fn push_entry(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let key_bytes = u16::try_from(key.len()).expect("the batch checked the length");
    let value_bytes = u32::try_from(value.len()).expect("the batch checked the length");
    out.extend_from_slice(&key_bytes.to_le_bytes());
    out.extend_from_slice(&value_bytes.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// The whole table as a payload.
pub(crate) fn encode_table(notes: &Notes) -> Vec<u8> {
    let mut out = head(0, true);
    notes.iter().for_each(|(key, value)| push_entry(&mut out, key, value));
    out
}

/// What a note says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) records: u32,
    pub(crate) whole_table: bool,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Note {
    /// `None` for what no build wrote.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (head, mut rest) = payload.split_at_checked(HEAD_BYTES)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (lengths, after) = rest.split_at_checked(6)?;
            let key_bytes = u16::from_le_bytes([lengths[0], lengths[1]]);
            let value_bytes = u32::from_le_bytes([lengths[2], lengths[3], lengths[4], lengths[5]]);
            let (key, after) = after.split_at_checked(key_bytes.into())?;
            let (value, after) = after.split_at_checked(usize::try_from(value_bytes).ok()?)?;
            entries.push((key.to_vec(), value.to_vec()));
            rest = after;
        }
        let records = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        Some(Self { records, whole_table: head[4] == 1, entries })
    }

    pub(crate) fn apply(self, notes: &mut Notes) {
        if self.whole_table {
            notes.clear();
        }
        apply(notes, self.entries);
    }
}

/// Changes the table.
pub(crate) fn apply(notes: &mut Notes, entries: Vec<(Vec<u8>, Vec<u8>)>) {
    for (key, value) in entries {
        if value.is_empty() {
            notes.remove(&key);
        } else {
            notes.insert(key, value);
        }
    }
}

/// The table as it was at `limit` of a segment; `None` when the segment cannot say, because nothing had been written behind its header.
pub(crate) fn read(file: &Arc<dyn FsFile>, path: &Path, uuid: Uuid, first: u64, limit: u64) -> Result<Option<Notes>> {
    let mut walker = Walker::new(Arc::clone(file), path, first, layout::salt(uuid, first));
    let mut notes = Notes::new();
    let mut says = false;
    loop {
        match walker.step(limit)? {
            Step::Record { kind: Kind::Note, .. } => {
                if let Some(note) = Note::parse(walker.payload()) {
                    says |= note.whole_table;
                    note.apply(&mut notes);
                }
            }
            Step::Record { kind: Kind::Data, .. } => says = true,
            Step::Record { .. } | Step::Damage { .. } => {}
            Step::End => return Ok(says.then_some(notes)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tables_survive_and_no_bytes_panic(
            notes in proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 0..9), proptest::collection::vec(any::<u8>(), 1..9), 0..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let payload = encode_table(&notes);
            let mut read = Notes::from([(b"old".to_vec(), b"1".to_vec())]);
            Note::parse(&payload).unwrap().apply(&mut read);
            prop_assert_eq!(read, notes);
            let _ = Note::parse(&payload[..cut.index(payload.len())]);
        }
    }
}
