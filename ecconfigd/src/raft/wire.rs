//! Raft's messages as bytes, for the peer protocol. Ours rather than serde's, so that they stay what they are when openraft's types change.
//!
//! ```text
//! vote       u64 term, u64 node, u8 committed               all numbers little-endian
//! log id     u64 term, u64 node, u64 index                  an optional one has u8 0 or 1 in front
//! append     vote, optional log id before, optional log id committed, u32 count, then u32 length and entry each, as in the log's records
//! appended   u8: 0 all of it · 1 up to an optional log id · 2 conflict · 3 a higher vote, which follows
//! ask vote   vote, optional last log id, u8 1 when the leader hands over
//! voted      vote, optional last log id, u8 granted
//! transfer   vote of the leader, u64 to, optional last log id
//! snapshot   vote, then the meta as JSON
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};

use super::{Command, Entry, LogId, SnapshotMeta, TypeConfig, Vote, log_id};

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
#[error("a Raft message cannot be read: {0}")]
pub(crate) struct BadMessage(String);

fn bad(what: impl std::fmt::Display) -> BadMessage {
    BadMessage(what.to_string())
}

type Read<T> = Result<T, BadMessage>;

fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.node_id);
    out.put_u8(u8::from(vote.committed));
}

fn put_log_id(out: &mut BytesMut, id: &LogId) {
    out.put_u64_le(id.leader_id.term);
    out.put_u64_le(id.leader_id.node_id);
    out.put_u64_le(id.index);
}

fn put_optional(out: &mut BytesMut, id: Option<&LogId>) {
    out.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

fn need(bytes: &Bytes, count: usize) -> Read<()> {
    if bytes.len() < count { Err(bad("it is cut")) } else { Ok(()) }
}

fn take_u8(bytes: &mut Bytes) -> Read<u8> {
    need(bytes, 1)?;
    Ok(bytes.get_u8())
}

fn take_vote(bytes: &mut Bytes) -> Read<Vote> {
    need(bytes, 17)?;
    let (term, node) = (bytes.get_u64_le(), bytes.get_u64_le());
    Ok(Vote { leader_id: log_id(term, node, 0).leader_id, committed: bytes.get_u8() != 0 })
}

fn take_log_id(bytes: &mut Bytes) -> Read<LogId> {
    need(bytes, 24)?;
    Ok(log_id(bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le()))
}

fn take_optional(bytes: &mut Bytes) -> Read<Option<LogId>> {
    match take_u8(bytes)? {
        0 => Ok(None),
        1 => take_log_id(bytes).map(Some),
        other => Err(bad(format!("an optional log id begins with {other}"))),
    }
}

/// The bytes, if all of them were read.
fn ended<T>(bytes: &Bytes, value: T) -> Read<T> {
    if bytes.is_empty() { Ok(value) } else { Err(bad("bytes follow its end")) }
}

fn put_entry(out: &mut BytesMut, entry: &Entry) {
    let at = out.len();
    out.put_u32_le(0);
    put_log_id(out, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(BLANK),
        EntryPayload::Normal(command) => {
            out.put_u8(COMMAND);
            out.put_slice(&command.0);
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(MEMBERSHIP);
            out.put_slice(&serde_json::to_vec(membership).expect("a membership of names and numbers is JSON"));
        }
    }
    let length = u32::try_from(out.len() - at - 4).expect("entries are capped far below 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

/// The entry shares the message's memory.
fn take_entry(bytes: &mut Bytes) -> Read<Entry> {
    need(bytes, 4)?;
    let length = bytes.get_u32_le() as usize;
    need(bytes, length)?;
    let mut entry = bytes.split_to(length);
    let log_id = take_log_id(&mut entry)?;
    let payload = match take_u8(&mut entry)? {
        BLANK => EntryPayload::Blank,
        COMMAND => EntryPayload::Normal(Command(entry)),
        MEMBERSHIP => EntryPayload::Membership(serde_json::from_slice(&entry).map_err(bad)?),
        other => return Err(bad(format!("an entry of kind {other}"))),
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn append(request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let weight: usize = request.entries.iter().map(super::machine::weight).sum();
    let mut out = BytesMut::with_capacity(128 + weight + 64 * request.entries.len());
    put_vote(&mut out, &request.vote);
    put_optional(&mut out, request.prev_log_id.as_ref());
    put_optional(&mut out, request.leader_commit.as_ref());
    out.put_u32_le(u32::try_from(request.entries.len()).expect("a request has few entries"));
    request.entries.iter().for_each(|entry| put_entry(&mut out, entry));
    out.freeze()
}

pub(crate) fn read_append(mut bytes: Bytes) -> Read<AppendEntriesRequest<TypeConfig>> {
    let vote = take_vote(&mut bytes)?;
    let (prev_log_id, leader_commit) = (take_optional(&mut bytes)?, take_optional(&mut bytes)?);
    need(&bytes, 4)?;
    let count = bytes.get_u32_le();
    let entries = (0..count).map(|_| take_entry(&mut bytes)).collect::<Read<Vec<_>>>()?;
    ended(&bytes, AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(crate) fn appended(response: &AppendEntriesResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    match response {
        AppendEntriesResponse::Success => out.put_u8(0),
        AppendEntriesResponse::PartialSuccess(id) => {
            out.put_u8(1);
            put_optional(&mut out, id.as_ref());
        }
        AppendEntriesResponse::Conflict => out.put_u8(2),
        AppendEntriesResponse::HigherVote(vote) => {
            out.put_u8(3);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub(crate) fn read_appended(mut bytes: Bytes) -> Read<AppendEntriesResponse<TypeConfig>> {
    let response = match take_u8(&mut bytes)? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(take_optional(&mut bytes)?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(take_vote(&mut bytes)?),
        other => return Err(bad(format!("an answer of kind {other}"))),
    };
    ended(&bytes, response)
}

pub(crate) fn vote(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, &request.vote);
    put_optional(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(crate) fn read_vote(mut bytes: Bytes) -> Read<VoteRequest<TypeConfig>> {
    let mut request = VoteRequest::new(take_vote(&mut bytes)?, take_optional(&mut bytes)?);
    request.leadership_transfer = take_u8(&mut bytes)? != 0;
    ended(&bytes, request)
}

pub(crate) fn voted(response: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, &response.vote);
    put_optional(&mut out, response.last_log_id.as_ref());
    out.put_u8(u8::from(response.vote_granted));
    out.freeze()
}

pub(crate) fn read_voted(mut bytes: Bytes) -> Read<VoteResponse<TypeConfig>> {
    let (vote, last) = (take_vote(&mut bytes)?, take_optional(&mut bytes)?);
    let granted = take_u8(&mut bytes)? != 0;
    ended(&bytes, VoteResponse::new(vote, last, granted))
}

pub(crate) fn transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, request.from_leader());
    out.put_u64_le(*request.to_node_id());
    put_optional(&mut out, request.last_log_id());
    out.freeze()
}

pub(crate) fn read_transfer(mut bytes: Bytes) -> Read<TransferLeaderRequest<TypeConfig>> {
    let from = take_vote(&mut bytes)?;
    need(&bytes, 8)?;
    let to = bytes.get_u64_le();
    let last = take_optional(&mut bytes)?;
    ended(&bytes, TransferLeaderRequest::new(from, to, last))
}

pub(crate) fn snapshot_head(vote: &Vote, meta: &SnapshotMeta) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, vote);
    out.put_slice(&serde_json::to_vec(meta).expect("a snapshot's meta is JSON"));
    out.freeze()
}

pub(crate) fn read_snapshot_head(mut bytes: Bytes) -> Read<(Vote, SnapshotMeta)> {
    let vote = take_vote(&mut bytes)?;
    Ok((vote, serde_json::from_slice(&bytes).map_err(bad)?))
}

pub(crate) fn only_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, vote);
    out.freeze()
}

pub(crate) fn read_only_vote(mut bytes: Bytes) -> Read<Vote> {
    let vote = take_vote(&mut bytes)?;
    ended(&bytes, vote)
}

/// A log id alone.
pub(crate) fn index(id: &LogId) -> Bytes {
    let mut out = BytesMut::new();
    put_log_id(&mut out, id);
    out.freeze()
}

pub(crate) fn read_index(mut bytes: Bytes) -> Read<LogId> {
    let id = take_log_id(&mut bytes)?;
    ended(&bytes, id)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> AppendEntriesRequest<TypeConfig> {
        let vote = Vote { leader_id: log_id(3, 2, 0).leader_id, committed: true };
        let command = Command(Bytes::from_static(b"command"));
        let membership = openraft::Membership::new(
            vec![std::collections::BTreeSet::from([1])],
            std::collections::BTreeMap::from([(1, super::super::RaftNode::default())]),
        )
        .unwrap();
        let entries = vec![
            Entry { log_id: log_id(3, 2, 8), payload: EntryPayload::Blank },
            Entry { log_id: log_id(3, 2, 9), payload: EntryPayload::Normal(command) },
            Entry { log_id: log_id(3, 2, 10), payload: EntryPayload::Membership(membership) },
        ];
        AppendEntriesRequest { vote, prev_log_id: Some(log_id(1, 1, 7)), entries, leader_commit: None }
    }

    #[test]
    fn an_append_goes_there_and_back_and_cut_ones_are_refused() {
        let request = sample();
        let bytes = append(&request);
        let read = read_append(bytes.clone()).unwrap();
        assert_eq!((read.vote, read.prev_log_id, read.leader_commit), (request.vote, request.prev_log_id, None));
        assert_eq!(read.entries, request.entries);
        for end in 0..bytes.len() {
            assert!(read_append(bytes.slice(..end)).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn the_rest_goes_there_and_back() {
        let higher = Vote { leader_id: log_id(9, 2, 0).leader_id, committed: false };
        for response in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(Some(log_id(1, 2, 3))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(higher),
        ] {
            assert_eq!(read_appended(appended(&response)).unwrap(), response);
        }
        let mut request = VoteRequest::new(higher, Some(log_id(1, 2, 3)));
        request.leadership_transfer = true;
        assert_eq!(read_vote(vote(&request)).unwrap(), request);
        let response = VoteResponse::new(higher, None, true);
        assert_eq!(read_voted(voted(&response)).unwrap(), response);
        let request = TransferLeaderRequest::new(higher, 4, Some(log_id(1, 2, 3)));
        assert_eq!(read_transfer(transfer(&request)).unwrap(), request);
    }

    /// The protocol is a promise between builds: these bytes are version 1.
    #[test]
    fn version_1_is_these_bytes() {
        let mut request = sample();
        request.entries.truncate(2);
        let expected = "03000000000000000200000000000000 01 01 010000000000000001000000000000000700000000000000 00 02000000 \
            19000000 030000000000000002000000000000000800000000000000 00 \
            20000000 030000000000000002000000000000000900000000000000 01 636f6d6d616e64";
        assert_eq!(hex::encode(append(&request)), expected.replace([' ', '\n'], ""));
    }
}
