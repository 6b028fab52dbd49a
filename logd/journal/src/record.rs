//! One record, byte by byte, and the batches that writers fill.
//!
//! ```text
//!  0  u32  bits 0..28 length of the payload, bits 28..32 kind (0 data, 1 mark, 2 end, 3 note)
//!  4  u32  CRC32C of the payload, then bytes 0..4 and 8..24; the segment's salt XORed in
//!  8  u64  sequence number; a mark or an end carries that of the next record
//! 16  u64  time, microseconds since 1970
//! 24       payload                                     all numbers little-endian, no padding
//! ```
//!
//! The payload comes first in the checksum, so that a writer's own thread can take it before the number is known. The salt depends on the
//! journal and the segment: a line that quotes a journal's bytes, or an old block that a file system brings back, is not taken for a record.
//!
//! A *mark* says in its payload (u64) up to which number everything was on disk when it was written; it tells rot from a torn tail. An *end* is
//! written by a clean close after everything was synced. A *note* (`notes`) carries the number of the record behind it, as a mark does.

use crate::error::{JournalError, Result};
use crate::notes;

/// The bytes before a payload.
pub const HEADER_BYTES: usize = 24;
/// The longest payload. Lines are at most 16 MiB; the rest is for whoever wraps them.
pub const MAX_PAYLOAD_BYTES: usize = 32 << 20;
/// What one batch may hold: it is written with one call and kept in memory until then.
pub const MAX_BATCH_BYTES: usize = 64 << 20;
/// The longest key or value of a note. Notes are positions, kept in memory.
pub const MAX_NOTE_BYTES: usize = 16 << 10;
/// A mark in whole.
pub(crate) const MARK_BYTES: usize = HEADER_BYTES + 8;

const LENGTH_BITS: u32 = 28;
const LENGTH_MASK: u32 = (1 << LENGTH_BITS) - 1;

const _: () = assert!(MAX_PAYLOAD_BYTES < 1 << LENGTH_BITS);

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Mark,
    End,
    Note,
}

impl Kind {
    fn bits(self) -> u32 {
        match self {
            Kind::Data => 0,
            Kind::Mark => 1,
            Kind::End => 2,
            Kind::Note => 3,
        }
    }
}

/// A record as it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number: never given to another record of this journal.
    pub sequence: u64,
    /// When it was made, microseconds since 1970, as its writer said.
    pub time_us: u64,
    /// What was written.
    pub payload: &'a [u8],
}

/// What the bytes at a place are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// A whole record of this many bytes; its payload begins after the header.
    Whole { kind: Kind, sequence: u64, time_us: u64, bytes: usize },
    /// It may be a record, but of more bytes than were given.
    Short { bytes: usize },
    /// No record.
    Bad,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The checksum: `payload_crc` continued over the header without its own four bytes.
fn finish_crc(payload_crc: u32, header: &[u8], salt: u32) -> u32 {
    let mut covered = [0; 20];
    covered[..4].copy_from_slice(&header[..4]);
    covered[4..].copy_from_slice(&header[8..HEADER_BYTES]);
    crc32c::crc32c_append(payload_crc, &covered) ^ salt
}

/// Looks at the bytes that begin at a place. `sequences`: the numbers that can stand here. A checksum is only taken where those fit, which is
/// what makes the search behind damage fast.
pub(crate) fn decode(bytes: &[u8], sequences: std::ops::RangeInclusive<u64>, salt: u32) -> Decoded {
    if bytes.len() < HEADER_BYTES {
        return Decoded::Short { bytes: HEADER_BYTES };
    }
    let sequence = u64_at(bytes, 8);
    let word = u32_at(bytes, 0);
    let payload_bytes = (word & LENGTH_MASK) as usize;
    let kind = match word >> LENGTH_BITS {
        0 => Kind::Data,
        1 if payload_bytes == MARK_BYTES - HEADER_BYTES => Kind::Mark,
        2 if payload_bytes == 0 => Kind::End,
        3 => Kind::Note,
        _ => return Decoded::Bad,
    };
    if !sequences.contains(&sequence) || payload_bytes > MAX_PAYLOAD_BYTES {
        return Decoded::Bad;
    }
    let total = HEADER_BYTES + payload_bytes;
    if bytes.len() < total {
        return Decoded::Short { bytes: total };
    }
    let crc = finish_crc(crc32c::crc32c(&bytes[HEADER_BYTES..total]), &bytes[..HEADER_BYTES], salt);
    if crc != u32_at(bytes, 4) {
        return Decoded::Bad;
    }
    Decoded::Whole { kind, sequence, time_us: u64_at(bytes, 16), bytes: total }
}

/// Appends a mark or an end.
pub(crate) fn encode_control(out: &mut Vec<u8>, kind: Kind, sequence: u64, time_us: u64, payload: &[u8], salt: u32) {
    let start = out.len();
    let length = u32::try_from(payload.len()).expect("a control record is a few bytes");
    out.extend_from_slice(&(length | kind.bits() << LENGTH_BITS).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&time_us.to_le_bytes());
    let crc = finish_crc(crc32c::crc32c(payload), &out[start..start + HEADER_BYTES], salt);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Records that are appended together, with one write. Clear it and fill it again: its memory is kept.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    /// Whole records but for their numbers and checksums, after room for a mark.
    bytes: Vec<u8>,
    /// The payloads' checksums, kept apart so that a batch whose write failed can be numbered again.
    crcs: Vec<u32>,
    notes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for records of so many bytes on disk, so that a batch of known size does not grow by doubling.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(MARK_BYTES + bytes);
    }

    /// Adds a record.
    pub fn push(&mut self, time_us: u64, payload: &[u8]) -> Result<()> {
        let too_long = |what, bytes, limit| JournalError::TooLong { what, bytes, limit };
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(too_long("a record", payload.len(), MAX_PAYLOAD_BYTES));
        }
        let bytes = self.size_bytes() + HEADER_BYTES + payload.len();
        if bytes > MAX_BATCH_BYTES {
            return Err(too_long("a batch", bytes, MAX_BATCH_BYTES));
        }
        if self.bytes.is_empty() {
            self.bytes.resize(MARK_BYTES, 0);
        }
        let mut header = [0; HEADER_BYTES];
        let length = u32::try_from(payload.len()).expect("checked against the limit above");
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[16..].copy_from_slice(&time_us.to_le_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(payload);
        self.crcs.push(crc32c::crc32c(payload));
        Ok(())
    }

    /// Notes something together with the records ([`crate::Notes`]): it will be there exactly when they are, and they all or none. An empty value
    /// forgets the key. A batch without records carries no notes.
    pub fn note(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let too_long = |bytes, limit| JournalError::TooLong { what: "a note", bytes, limit };
        let longest = key.len().max(value.len());
        if longest > MAX_NOTE_BYTES {
            return Err(too_long(longest, MAX_NOTE_BYTES));
        }
        self.notes.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    /// The payloads, in order.
    pub fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.get(MARK_BYTES..).unwrap_or_default();
        std::iter::from_fn(move || {
            let header = rest.get(..HEADER_BYTES)?;
            let end = HEADER_BYTES + (u32_at(header, 0) & LENGTH_MASK) as usize;
            let payload = &rest[HEADER_BYTES..end];
            rest = &rest[end..];
            Some(payload)
        })
    }

    /// Forgets the records.
    pub fn clear(&mut self) {
        self.notes.clear();
        self.bytes.clear();
        self.crcs.clear();
    }

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.crcs.len()
    }

    /// True when it holds none.
    pub fn is_empty(&self) -> bool {
        self.crcs.is_empty()
    }

    /// What it takes on disk.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len().saturating_sub(MARK_BYTES)
    }

    pub(crate) fn notes(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.notes.clone()
    }

    /// Gives the records their numbers, from `first` on, and answers the bytes to write: the note, where there is one, and the records, with a
    /// mark before them where one is wanted.
    pub(crate) fn number(&mut self, first: u64, salt: u32, mark: Option<Mark>) -> (Vec<u8>, &[u8]) {
        let mut note = Vec::new();
        if !self.notes.is_empty() {
            let records = u32::try_from(self.crcs.len()).expect("a batch has fewer bytes than this can count");
            let mut payload = notes::head(records, false);
            self.notes.iter().for_each(|(key, value)| notes::push_entry(&mut payload, key, value));
            encode_control(&mut note, Kind::Note, first, 0, &payload, salt);
        }
        let mut at = MARK_BYTES;
        for (sequence, payload_crc) in (first..).zip(&self.crcs) {
            let header = &mut self.bytes[at..at + HEADER_BYTES];
            header[8..16].copy_from_slice(&sequence.to_le_bytes());
            let crc = finish_crc(*payload_crc, header, salt);
            header[4..8].copy_from_slice(&crc.to_le_bytes());
            at += HEADER_BYTES + (u32_at(header, 0) & LENGTH_MASK) as usize;
        }
        let Some(mark) = mark else { return (note, &self.bytes[MARK_BYTES..]) };
        let mut control = Vec::with_capacity(MARK_BYTES);
        encode_control(&mut control, Kind::Mark, first, mark.time_us, &mark.synced.to_le_bytes(), salt);
        self.bytes[..MARK_BYTES].copy_from_slice(&control);
        (note, &self.bytes)
    }
}

/// What a mark says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    /// Every record below this number was on disk.
    pub(crate) synced: u64,
    pub(crate) time_us: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn batch(payloads: &[&[u8]]) -> Batch {
        let mut batch = Batch::new();
        for (i, payload) in payloads.iter().enumerate() {
            batch.push(1_000_000 + i as u64, payload).unwrap();
        }
        batch
    }

    #[test]
    fn bytes_of_version_1() {
        let mut batch = batch(&[b"hello"]);
        let (note, bytes) = batch.number(7, 0x0102_0304, Some(Mark { synced: 5, time_us: 9 }));
        assert!(note.is_empty());
        insta::assert_snapshot!(hex(bytes), @r"
        080000105298485a07000000000000000900000000000000
        05000000000000000500000022787a020700000000000000
        40420f000000000068656c6c6f
        ");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.chunks(24).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
    }

    proptest! {
        #[test]
        fn what_was_numbered_is_read_again_and_no_flipped_bit_passes(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            sequence in 1u64..u64::MAX / 2,
            salt: u32,
            flip: proptest::sample::Index,
        ) {
            let mut batch = Batch::new();
            batch.push(42, &payload).unwrap();
            let mut bytes = batch.number(sequence, salt, None).1.to_vec();
            let whole = Decoded::Whole { kind: Kind::Data, sequence, time_us: 42, bytes: bytes.len() };
            prop_assert_eq!(decode(&bytes, 1..=u64::MAX, salt), whole);
            prop_assert_eq!(decode(&bytes, sequence + 1..=u64::MAX, salt), Decoded::Bad);
            prop_assert_eq!(decode(&bytes, 1..=u64::MAX, salt ^ 1), Decoded::Bad);
            let short = matches!(decode(&bytes[..bytes.len() - 1], 1..=u64::MAX, salt), Decoded::Short { .. });
            prop_assert!(short);
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let whole = matches!(decode(&bytes, 1..=u64::MAX, salt), Decoded::Whole { .. });
            prop_assert!(!whole);
        }
    }

    #[test]
    fn a_batch_can_be_numbered_again() {
        let mut batch = batch(&[b"a", b"", b"ccc"]);
        let first = batch.number(1, 5, None).1.to_vec();
        batch.number(900, 77, Some(Mark { synced: 1, time_us: 1 }));
        assert_eq!(batch.number(1, 5, None).1, first);
        assert_eq!(batch.size_bytes(), first.len());
    }

    #[test]
    fn too_long_is_refused_and_named() {
        let error = Batch::new().push(0, &vec![0; MAX_PAYLOAD_BYTES + 1]).unwrap_err();
        assert!(error.to_string().contains("a record may have"), "{error}");
    }
}
