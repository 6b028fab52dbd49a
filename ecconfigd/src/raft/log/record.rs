//! The records of the log, byte by byte.
//!
//! ```text
//!  0  u32  length of the payload        all numbers little-endian; records start at multiples of 8
//!  4  u32  CRC32C of bytes 8.. to the end of the payload
//!  8  u64  sequence number: one more than the record before, across segments
//! 16  u64  synced: every record up to this sequence number was on disk when this one was written
//! 24  u8   kind     1 entry, 2 vote, 3 committed, 4 truncate, 5 purge
//! 25  u8   version of the payload (1)
//! 26  u16  magic 0x4CEC
//! 28  u32  zero
//! 32       payload, then zeros up to the next multiple of 8
//! ```
//!
//! `synced` tells a torn tail from bit rot: a damaged record was acknowledged exactly if some later record says that it was synced.

use std::ops::Range;

use crate::raft::{Command, Entry, LogId, RaftNode, Vote, log_id};

/// The bytes before a payload.
pub(super) const HEADER_BYTES: usize = 32;
const MAGIC: u16 = 0x4CEC;
const VERSION: u8 = 1;

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_COMMITTED: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_COMMAND: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;

/// One thing that happened to the log.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    Entry(Entry),
    Vote(Vote),
    Committed(Option<LogId>),
    /// Entries after this index are gone; `None`: all.
    Truncate(Option<u64>),
    Purge(LogId),
}

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bad {
    /// Zeros: nothing was written here.
    End,
    /// Damaged or torn.
    Damaged,
    /// Sound, but of a version or kind that this build does not know.
    Unknown { kind: u8, version: u8 },
    /// Sound bytes with senseless content.
    Senseless(String),
}

/// A record read from bytes.
#[derive(Debug, PartialEq)]
pub(super) struct Framed {
    pub(super) sequence: u64,
    pub(super) synced: u64,
    pub(super) record: Record,
    /// With header and padding.
    pub(super) bytes: usize,
}

/// The room a payload of this length takes.
pub(super) fn framed_bytes(payload: usize) -> usize {
    (HEADER_BYTES + payload).next_multiple_of(8)
}

fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
}

fn take_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn take_log_id(bytes: &[u8], at: usize) -> Option<LogId> {
    Some(log_id(take_u64(bytes, at)?, take_u64(bytes, at + 8)?, take_u64(bytes, at + 16)?))
}

/// Appends the record in its frame and answers the room it took.
pub(super) fn encode(out: &mut Vec<u8>, sequence: u64, synced: u64, record: &Record) -> usize {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    let kind = encode_payload(out, record);
    let payload_bytes = out.len() - start - HEADER_BYTES;
    let header = &mut out[start..start + HEADER_BYTES];
    header[0..4]
        .copy_from_slice(&u32::try_from(payload_bytes).expect("entries are capped far below 4 GiB").to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..24].copy_from_slice(&synced.to_le_bytes());
    header[24] = kind;
    header[25] = VERSION;
    header[26..28].copy_from_slice(&MAGIC.to_le_bytes());
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + framed_bytes(payload_bytes), 0);
    out.len() - start
}

fn encode_payload(out: &mut Vec<u8>, record: &Record) -> u8 {
    match record {
        Record::Entry(entry) => {
            put_log_id(out, &entry.log_id);
            match &entry.payload {
                openraft::EntryPayload::Blank => out.push(PAYLOAD_BLANK),
                openraft::EntryPayload::Normal(command) => {
                    out.push(PAYLOAD_COMMAND);
                    out.extend_from_slice(&command.0);
                }
                openraft::EntryPayload::Membership(membership) => {
                    out.push(PAYLOAD_MEMBERSHIP);
                    let json = serde_json::to_vec(membership).expect("a membership of names and numbers is JSON");
                    out.extend_from_slice(&json);
                }
            }
            KIND_ENTRY
        }
        Record::Vote(vote) => {
            out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
            out.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
            out.push(u8::from(vote.committed));
            KIND_VOTE
        }
        Record::Committed(id) => {
            if let Some(id) = id {
                put_log_id(out, id);
            }
            KIND_COMMITTED
        }
        Record::Truncate(index) => {
            if let Some(index) = index {
                out.extend_from_slice(&index.to_le_bytes());
            }
            KIND_TRUNCATE
        }
        Record::Purge(id) => {
            put_log_id(out, id);
            KIND_PURGE
        }
    }
}

/// The payload's length, if the frame at the start of `bytes` is sound.
fn check_frame(bytes: &[u8]) -> Result<usize, Bad> {
    let header = bytes.get(..HEADER_BYTES).ok_or(Bad::End)?;
    if header.iter().all(|b| *b == 0) {
        return Err(Bad::End);
    }
    if header[26..28] != MAGIC.to_le_bytes() {
        return Err(Bad::Damaged);
    }
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let length = number(0) as usize;
    let body = bytes.get(8..HEADER_BYTES + length).ok_or(Bad::Damaged)?;
    if crc32c::crc32c(body) == number(4) { Ok(length) } else { Err(Bad::Damaged) }
}

/// Reads the record at the start of `bytes`.
pub(super) fn decode(bytes: &[u8]) -> Result<Framed, Bad> {
    let length = check_frame(bytes)?;
    let sequence = take_u64(bytes, 8).ok_or(Bad::Damaged)?;
    let synced = take_u64(bytes, 16).ok_or(Bad::Damaged)?;
    let (kind, version) = (bytes[24], bytes[25]);
    if version != VERSION || !(KIND_ENTRY..=KIND_PURGE).contains(&kind) {
        return Err(Bad::Unknown { kind, version });
    }
    let payload = &bytes[HEADER_BYTES..HEADER_BYTES + length];
    let record = decode_payload(kind, payload).map_err(Bad::Senseless)?;
    Ok(Framed { sequence, synced, record, bytes: framed_bytes(length) })
}

fn decode_payload(kind: u8, payload: &[u8]) -> Result<Record, String> {
    let short = || format!("a record of kind {kind} has {} bytes", payload.len());
    Ok(match kind {
        KIND_ENTRY => Record::Entry(decode_entry(payload)?),
        KIND_VOTE => {
            let (term, node) = (take_u64(payload, 0).ok_or_else(short)?, take_u64(payload, 8).ok_or_else(short)?);
            let committed = *payload.get(16).ok_or_else(short)? != 0;
            Record::Vote(Vote { leader_id: log_id(term, node, 0).leader_id, committed })
        }
        KIND_COMMITTED if payload.is_empty() => Record::Committed(None),
        KIND_COMMITTED => Record::Committed(Some(take_log_id(payload, 0).ok_or_else(short)?)),
        KIND_TRUNCATE if payload.is_empty() => Record::Truncate(None),
        KIND_TRUNCATE => Record::Truncate(Some(take_u64(payload, 0).ok_or_else(short)?)),
        _ => Record::Purge(take_log_id(payload, 0).ok_or_else(short)?),
    })
}

fn decode_entry(payload: &[u8]) -> Result<Entry, String> {
    let short = || format!("an entry has {} bytes", payload.len());
    let log_id = take_log_id(payload, 0).ok_or_else(short)?;
    let (kind, body) = payload.get(24..).and_then(<[u8]>::split_first).ok_or_else(short)?;
    let payload = match *kind {
        PAYLOAD_BLANK => openraft::EntryPayload::Blank,
        PAYLOAD_COMMAND => openraft::EntryPayload::Normal(Command(bytes::Bytes::copy_from_slice(body))),
        PAYLOAD_MEMBERSHIP => {
            let membership: openraft::Membership<u64, RaftNode> =
                serde_json::from_slice(body).map_err(|e| format!("entry {log_id} has a broken membership: {e}"))?;
            openraft::EntryPayload::Membership(membership)
        }
        other => return Err(format!("entry {log_id} has a payload of unknown kind {other}")),
    };
    Ok(Entry { log_id, payload })
}

/// Looks for sound records that start in this range, at every place where one could; answers the highest `synced` that one of them states.
pub(super) fn highest_synced_in(bytes: &[u8], places: Range<usize>) -> Option<u64> {
    const PAGE: usize = 4096;
    const ZEROS: [u8; PAGE] = [0; PAGE];
    let mut highest = None;
    let mut at = places.start.next_multiple_of(8);
    while at < places.end && at + HEADER_BYTES <= bytes.len() {
        if at.is_multiple_of(PAGE) && bytes.get(at..at + PAGE).is_some_and(|page| page == ZEROS.as_slice()) {
            at += PAGE;
            continue;
        }
        if bytes[at + 26..at + 28] == MAGIC.to_le_bytes() && check_frame(&bytes[at..]).is_ok() {
            highest = highest.max(take_u64(bytes, at + 16));
        }
        at += 8;
    }
    highest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(index: u64, body: &'static [u8]) -> Record {
        let payload = openraft::EntryPayload::Normal(Command(bytes::Bytes::from_static(body)));
        Record::Entry(Entry { log_id: log_id(3, 1, index), payload })
    }

    #[test]
    fn every_kind_there_and_back() {
        let vote = Vote { leader_id: log_id(4, 2, 0).leader_id, committed: true };
        let node = RaftNode { name: "n1".into(), address: "a:1".into() };
        let members =
            openraft::Membership::new(vec![[1].into()], std::collections::BTreeMap::from([(1, node)])).unwrap();
        let records = [
            entry(1, b"hello"),
            Record::Entry(Entry { log_id: log_id(3, 1, 2), payload: openraft::EntryPayload::Blank }),
            Record::Entry(Entry { log_id: log_id(3, 1, 3), payload: openraft::EntryPayload::Membership(members) }),
            Record::Vote(vote),
            Record::Committed(None),
            Record::Committed(Some(log_id(3, 1, 2))),
            Record::Truncate(None),
            Record::Truncate(Some(7)),
            Record::Purge(log_id(1, 1, 1)),
        ];
        let mut out = Vec::new();
        for (number, record) in records.iter().enumerate() {
            encode(&mut out, number as u64, 0, record);
        }
        let mut at = 0;
        for (number, record) in records.iter().enumerate() {
            let framed = decode(&out[at..]).unwrap();
            assert_eq!((framed.sequence, &framed.record), (number as u64, record));
            at += framed.bytes;
        }
        assert_eq!(decode(&out[at..]).unwrap_err(), Bad::End);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let mut out = Vec::new();
        encode(&mut out, 1, 0, &entry(1, b"x"));
        for at in 0..HEADER_BYTES + 26 {
            for bit in 0..8 {
                let mut bytes = out.clone();
                bytes[at] ^= 1 << bit;
                assert!(decode(&bytes).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut out = Vec::new();
        encode(&mut out, 1, 0, &entry(1, b"x"));
        out[25] = 2;
        let crc = crc32c::crc32c(&out[8..HEADER_BYTES + 26]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&out).unwrap_err(), Bad::Unknown { kind: 1, version: 2 });
    }

    /// The format is a promise: these bytes were written by version 1 and must stay readable.
    #[test]
    fn version_1_stays_readable() {
        let mut out = Vec::new();
        encode(&mut out, 9, 8, &entry(5, b"hi"));
        let golden = "1b000000a37bd206090000000000000008000000000000000101ec4c000000000300000000000000010000000000000005000000000000000168690000000000";
        assert_eq!(hex::encode(&out), golden);
        let framed = decode(&hex::decode(golden).unwrap()).unwrap();
        assert_eq!((framed.sequence, framed.synced, framed.record), (9, 8, entry(5, b"hi")));
    }
}
