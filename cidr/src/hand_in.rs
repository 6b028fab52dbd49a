//! What nodes hand to the CIDR servers: windows as records of a journal, and how a server merges each exactly once.
//!
//! A record is one series of one window (or a part of it, when it is very large):
//!
//! ```text
//! u8 version (1) · u8 length of the name · the name · i64 start · i64 end · IPv4 rows · IPv6 rows
//! rows: varint number · per row: varint distance from the address before (IPv6: up to 128 bits) · varint count (zigzag)
//! ```
//!
//! A message carries records of one journal in their order, each with its number:
//!
//! ```text
//! "ECW1" · 16 bytes UUID of the journal · u64 next · u32 records · per record: u64 number · u32 length · the record
//! ```
//!
//! `next` is the number behind the last one that this message is about, records that were lost included. Numbers are little-endian.
//! A server notes the highest number that it merged per journal in the same write as the counts. So a message that comes again, whole or
//! mixed with new records, counts once; a journal that was wiped has another UUID and is another origin.

use std::collections::BTreeMap;

use cidr_engine::{Committed, Counts, Error, Origin, Stamp, Store, Window};

const VERSION: u8 = 1;
/// Versions are counted up; a record that begins with more than this is none.
const LAST_VERSION: u8 = 31;
const MAGIC: &[u8; 4] = b"ECW1";
/// A record is cut here: a message holds at least one, and a server takes no larger messages.
const RECORD_BYTES: usize = 8 << 20;
/// The largest message: one record at its largest beside what fills the usual batch.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A series of one window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// The series.
    pub series: String,
    /// The window's start.
    pub start: Stamp,
    /// Its end.
    pub end: Stamp,
    /// What was counted.
    pub counts: Counts,
}

/// Bytes that are no record or message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these are not windows that were handed in: {0}")]
pub struct Malformed(pub &'static str);

impl Portion {
    /// As records, more than one only for millions of addresses.
    pub fn encode(&self) -> Vec<Vec<u8>> {
        self.encode_in(RECORD_BYTES)
    }

    fn encode_in(&self, limit_bytes: usize) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let (mut v4, mut v6) = (self.counts.v4(), self.counts.v6());
        while !v4.is_empty() || !v6.is_empty() {
            let mut record = self.head();
            let rows_v4 = put_rows(&mut record, v4, limit_bytes);
            v4 = &v4[rows_v4..];
            // IPv6 begins in the record in which IPv4 ends.
            let rows_v6 = put_rows(&mut record, if v4.is_empty() { v6 } else { &[] }, limit_bytes);
            v6 = &v6[rows_v6..];
            records.push(record);
        }
        records
    }

    fn head(&self) -> Vec<u8> {
        let mut head = vec![VERSION, self.series.len() as u8];
        head.extend_from_slice(self.series.as_bytes());
        head.extend_from_slice(&self.start.to_le_bytes());
        head.extend_from_slice(&self.end.to_le_bytes());
        head
    }

    /// Reads a record.
    pub fn decode(record: &[u8]) -> Result<Self, Malformed> {
        let mut input = Input(record);
        if input.take(1)? != [VERSION] {
            return Err(Malformed("the record is not of version 1, a newer cidr made it"));
        }
        let name_bytes = usize::from(input.take(1)?[0]);
        let series = std::str::from_utf8(input.take(name_bytes)?).map_err(|_| Malformed("the name"))?.to_owned();
        let (start, end) = (input.u64()? as i64, input.u64()? as i64);
        let v4 = input.rows()?.into_iter().map(|(key, count)| Ok((u32::try_from(key)?, count)));
        let v4: Result<_, std::num::TryFromIntError> = v4.collect();
        let v4 = v4.map_err(|_| Malformed("an IPv4 address"))?;
        let v6 = input.rows()?;
        if !input.0.is_empty() {
            return Err(Malformed("bytes after the end"));
        }
        Ok(Self { series, start, end, counts: Counts::from_rows(v4, v6) })
    }
}

/// As many rows as fit, with their number; how many.
fn put_rows<K: Copy + Into<u128>>(record: &mut Vec<u8>, rows: &[(K, i64)], limit_bytes: usize) -> usize {
    let (mut body, mut before, mut put) = (Vec::new(), 0_u128, 0);
    for (key, count) in rows {
        // A row is at most 19 + 10 bytes.
        if put > 0 && record.len() + body.len() + 40 > limit_bytes {
            break;
        }
        let key: u128 = (*key).into();
        put_varint(&mut body, key - before);
        put_varint(&mut body, u128::from((count << 1 ^ count >> 63) as u64));
        (before, put) = (key, put + 1);
    }
    put_varint(record, put as u128);
    record.append(&mut body);
    put
}

fn put_varint(out: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Malformed("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes were taken")))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes were taken")))
    }

    fn varint(&mut self) -> Result<u128, Malformed> {
        let mut value = 0;
        for shift in (0..128).step_by(7) {
            let byte = self.take(1)?[0];
            let part = u128::from(byte & 0x7f);
            if shift == 126 && part > 3 {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number"))
    }

    fn rows(&mut self) -> Result<Vec<(u128, i64)>, Malformed> {
        let number = usize::try_from(self.varint()?).map_err(|_| Malformed("a number"))?;
        // Each row is at least two bytes: what claims more is not believed, and nothing is reserved for it.
        if number > self.0.len() / 2 {
            return Err(Malformed("it is cut off"));
        }
        let mut rows = Vec::with_capacity(number);
        let mut key = 0_u128;
        for _ in 0..number {
            key = key.checked_add(self.varint()?).ok_or(Malformed("an address"))?;
            let count = u64::try_from(self.varint()?).map_err(|_| Malformed("a count"))?;
            rows.push((key, (count >> 1) as i64 ^ -((count & 1) as i64)));
        }
        Ok(rows)
    }
}

/// Records of one journal on their way to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandIn {
    /// The journal.
    pub journal: [u8; 16],
    /// The number behind the last one that this is about.
    pub next: u64,
    /// Records with their numbers, ascending.
    pub records: Vec<(u64, Vec<u8>)>,
}

impl HandIn {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.journal);
        out.extend_from_slice(&self.next.to_le_bytes());
        out.extend_from_slice(&(self.records.len() as u32).to_le_bytes());
        for (number, record) in &self.records {
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&(record.len() as u32).to_le_bytes());
            out.extend_from_slice(record);
        }
        out
    }

    /// The later version that one of the records is of, if one is. Such a message has to wait for a server that can read it: what makes no
    /// sense at all is dropped, and this would be.
    pub fn later_version(&self) -> Option<u8> {
        let versions = self.records.iter().filter_map(|(_, record)| record.first().copied());
        versions.into_iter().find(|version| (VERSION + 1..=LAST_VERSION).contains(version))
    }

    /// Reads a message.
    pub fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut input = Input(message);
        if input.take(4)? != MAGIC {
            return Err(Malformed("it begins with something else"));
        }
        let journal = input.take(16)?.try_into().expect("sixteen bytes were taken");
        let (next, number) = (input.u64()?, input.u32()?);
        let mut records: Vec<(u64, Vec<u8>)> = Vec::new();
        for _ in 0..number {
            let (sequence, bytes) = (input.u64()?, input.u32()? as usize);
            if sequence >= next || records.last().is_some_and(|(before, _)| *before >= sequence) {
                return Err(Malformed("its records are not in order"));
            }
            records.push((sequence, input.take(bytes)?.to_vec()));
        }
        if !input.0.is_empty() {
            return Err(Malformed("bytes after the end"));
        }
        Ok(Self { journal, next, records })
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merged {
    /// Records whose counts are in the store now.
    pub records: u64,
    /// Records that had been merged before.
    pub repeated: u64,
    /// Records that make no sense: they are dropped, or nothing behind them would ever arrive.
    pub malformed: u64,
}

/// Merges what is new in a message of `node`, durably, all or none. One message of a journal at a time.
pub fn merge(store: &Store, node: &str, hand_in: &HandIn) -> Result<Merged, Error> {
    let origin = origin_name(node, &hand_in.journal);
    let taken = store.taken(&origin);
    let mut merged = Merged::default();
    let mut windows: BTreeMap<(String, Stamp, Stamp), Counts> = BTreeMap::new();
    let mut last = None;
    for (number, record) in &hand_in.records {
        if taken.is_some_and(|taken| taken >= *number) {
            merged.repeated += 1;
            continue;
        }
        last = Some(*number);
        match Portion::decode(record).ok().filter(is_sound) {
            Some(portion) => {
                merged.records += 1;
                let place = windows.entry((portion.series, portion.start, portion.end)).or_default();
                *place = place.plus(&portion.counts);
            }
            None => merged.malformed += 1,
        }
    }
    let Some(sequence) = last else { return Ok(merged) };
    let windows: Vec<Window> = windows
        .into_iter()
        .map(|((series, start, end), counts)| Window { series, node: node.to_owned(), start, end, counts })
        .collect();
    match store.commit(Some(&Origin { node: origin, sequence }), &windows)? {
        Committed::Written => Ok(merged),
        // Another message of the same journal overtook this one.
        Committed::Duplicate => Ok(Merged { repeated: merged.records + merged.repeated, records: 0, ..merged }),
    }
}

/// What the store would refuse, so that one wrong record does not keep out those behind it.
fn is_sound(portion: &Portion) -> bool {
    let name = portion.series.as_bytes();
    let good = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let named = (1..=63).contains(&name.len()) && name.iter().all(good) && !matches!(name[0], b'-' | b'.');
    let timed = portion.start >= cidr_engine::FIRST_STAMP
        && portion.start < portion.end
        && portion.end <= cidr_engine::LAST_STAMP;
    named && timed
}

/// A journal of a node, as the store notes it: a wiped journal begins its numbers anew under another name.
fn origin_name(node: &str, journal: &[u8; 16]) -> String {
    let mut name: String = journal[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    name.push('.');
    name.extend(node.chars().take(40));
    name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cidr_engine::{Owner, StoreOptions};
    use proptest::prelude::*;

    fn portion(series: &str, end: Stamp, rows: &[(u32, i64)]) -> Portion {
        let counts = Counts::from_rows(rows.to_vec(), vec![(1 << 100, 7)]);
        Portion { series: series.into(), start: end - 60, end, counts }
    }

    fn store(dir: &std::path::Path) -> Store {
        Store::open(dir, StoreOptions::owned_by(Owner::current("test", "n1"))).unwrap()
    }

    fn sum(store: &Store) -> i64 {
        let mut out = Vec::new();
        let query = "show count for 0.0.0.0/0 in spam cidrsize 0";
        store.query(query, &cidr_engine::QueryOptions::at(2_000), &mut out).unwrap();
        String::from_utf8(out).unwrap().rsplit(' ').next().unwrap().trim().parse().unwrap()
    }

    #[test]
    fn repeated_and_overlapping_messages_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let record = |amount| portion("spam", 600, &[(1, amount)]).encode().remove(0);
        let message = |journal: u8, numbers: std::ops::Range<u64>| HandIn {
            journal: [journal; 16],
            next: numbers.end,
            records: numbers.map(|number| (number, record(1 << number))).collect(),
        };
        let merged = |records, repeated| Merged { records, repeated, malformed: 0 };
        assert_eq!(merge(&store, "n1", &message(1, 1..3)).unwrap(), merged(2, 0));
        assert_eq!(merge(&store, "n1", &message(1, 1..3)).unwrap(), merged(0, 2));
        assert_eq!(merge(&store, "n1", &message(1, 2..5)).unwrap(), merged(2, 1));
        assert_eq!(sum(&store), 2 + 4 + 8 + 16);
        // Another node, and the journal of a node that was wiped.
        merge(&store, "n2", &message(2, 1..2)).unwrap();
        merge(&store, "n1", &message(3, 1..2)).unwrap();
        assert_eq!(sum(&store), 30 + 4);
    }

    #[test]
    fn a_record_of_another_version_is_refused_with_words() {
        let mut record = portion("spam", 600, &[(1, 1)]).encode().remove(0);
        record[0] = 2;
        let error = Portion::decode(&record).unwrap_err().to_string();
        assert!(error.contains("not of version 1"), "{error}");
        let hand_in = |record: &[u8]| HandIn { journal: [0; 16], next: 2, records: vec![(1, record.to_vec())] };
        assert_eq!(hand_in(&record).later_version(), Some(2));
        assert_eq!(hand_in(b"nonsense").later_version(), None);
        record[0] = 1;
        assert_eq!(hand_in(&record).later_version(), None);
    }

    #[test]
    fn wrong_records_do_not_keep_out_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut wrong = vec![b"nonsense".to_vec(), portion("../x", 600, &[(1, 1)]).encode().remove(0)];
        wrong.push(portion("spam", -5, &[(1, 1)]).encode().remove(0));
        wrong.push(portion("spam", 600, &[(1, 9)]).encode().remove(0));
        let records = wrong.into_iter().enumerate().map(|(number, record)| (number as u64 + 1, record)).collect();
        let merged = merge(&store, "n1", &HandIn { journal: [0; 16], next: 5, records }).unwrap();
        assert_eq!(merged, Merged { records: 1, repeated: 0, malformed: 3 });
        assert_eq!(sum(&store), 9);
    }

    proptest! {
        #[test]
        fn records_and_messages_are_read_back(
            v4 in proptest::collection::vec((any::<u32>(), any::<i64>()), 0..50),
            v6 in proptest::collection::vec((any::<u128>(), -9_i64..9), 0..50),
            limit in 60_usize..400,
        ) {
            let portion = Portion { series: "spam".into(), start: 60, end: 120, counts: Counts::from_rows(v4, v6) };
            let records = portion.encode_in(limit);
            let parts: Vec<Portion> = records.iter().map(|record| Portion::decode(record).unwrap()).collect();
            let together = parts.iter().fold(Counts::default(), |sum, part| sum.plus(&part.counts));
            prop_assert_eq!(together, portion.counts);
            prop_assert!(records.iter().all(|record| record.len() <= limit + 60));
            let records: Vec<_> = records.into_iter().enumerate().map(|(i, record)| (3 + 2 * i as u64, record)).collect();
            let next = records.last().map_or(9, |(number, _)| number + 1);
            let hand_in = HandIn { journal: [7; 16], next, records };
            prop_assert_eq!(HandIn::decode(&hand_in.encode()).unwrap(), hand_in);
        }

        #[test]
        fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), flip in any::<prop::sample::Index>()) {
            let _ = Portion::decode(&bytes);
            let _ = HandIn::decode(&bytes);
            let mut record = portion("spam", 600, &[(1, 1), (900, -4)]).encode().remove(0);
            let at = flip.index(record.len());
            record[at] ^= 0x55;
            let _ = Portion::decode(&record);
            bytes.splice(0..0, [VERSION]);
            let _ = Portion::decode(&bytes);
        }
    }
}
