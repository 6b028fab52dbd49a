#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use futures::future::BoxFuture;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError};
use proptest::prelude::*;

use super::*;
use crate::outside::Work;
use crate::raft::machine::Machine;
use crate::raft::{Command, TypeConfig, log_id};
use crate::state::State;

const SEGMENT: u64 = 64 << 10;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("raft"), SEGMENT).unwrap();
        let machine = Machine::new(State::open(dir.path(), 10).unwrap());
        Ok((dir, log, machine))
    }
}

#[test]
fn openrafts_own_suite() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}

fn entry(term: u64, index: u64, body: Vec<u8>) -> Entry {
    Entry { log_id: log_id(term, 1, index), payload: EntryPayload::Normal(Command(body.into())) }
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    let (done, flushed) = <TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
    log.append(entries, IOFlushed::<TypeConfig>::signal(done)).await?;
    flushed.await.map_err(|error| io::Error::other(format!("{error:?}")))?
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: log_id(term, 1, 0).leader_id, committed: true }
}

async fn all(log: &mut LogStore) -> Vec<Entry> {
    RaftLogReader::<TypeConfig>::try_get_log_entries(log, ..).await.unwrap()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir).unwrap().into_iter().map(|(_, path)| path).collect()
}

/// A copy of a log's directory, to be damaged.
fn copy_dir(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for path in segments(from) {
        std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

/// Where each record of a segment begins, and where the last one ends.
fn places(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    let mut at = HEADER_BYTES as usize;
    let mut places = vec![at as u64];
    while let Ok(framed) = record::decode(&bytes[at..]) {
        at += framed.bytes;
        places.push(at as u64);
    }
    places
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
    RaftLogStorage::<TypeConfig>::save_vote(&mut log, &vote(3)).await.unwrap();
    for index in 1..=200 {
        append(&mut log, vec![entry(3, index, vec![index as u8; 1000])]).await.unwrap();
    }
    RaftLogStorage::<TypeConfig>::save_committed(&mut log, Some(log_id(3, 1, 150))).await.unwrap();
    RaftLogStorage::<TypeConfig>::truncate_after(&mut log, Some(log_id(3, 1, 190))).await.unwrap();
    append(&mut log, vec![entry(4, 191, b"again".to_vec())]).await.unwrap();
    let before = all(&mut log).await;
    log.close().await.unwrap();
    assert!(append(&mut log, vec![entry(4, 192, vec![])]).await.is_err(), "a closed log takes nothing");

    assert!(segments(dir.path()).len() >= 3, "the test shall span segments");
    let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
    assert_eq!(all(&mut log).await, before);
    assert_eq!(before.last().unwrap(), &entry(4, 191, b"again".to_vec()));
    assert_eq!(RaftLogReader::<TypeConfig>::read_vote(&mut log).await.unwrap(), Some(vote(3)));
    assert_eq!(RaftLogStorage::<TypeConfig>::read_committed(&mut log).await.unwrap(), Some(log_id(3, 1, 150)));
}

#[tokio::test]
async fn purging_removes_whole_segments_and_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
    RaftLogStorage::<TypeConfig>::save_vote(&mut log, &vote(7)).await.unwrap();
    for index in 1..=300 {
        append(&mut log, vec![entry(7, index, vec![0; 1000])]).await.unwrap();
    }
    let before = segments(dir.path()).len();
    RaftLogStorage::<TypeConfig>::purge(&mut log, log_id(7, 1, 250)).await.unwrap();
    assert!(segments(dir.path()).len() < before - 2, "{before}");
    log.close().await.unwrap();

    let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
    let state = RaftLogStorage::<TypeConfig>::get_log_state(&mut log).await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(7, 1, 250)));
    assert_eq!(state.last_log_id, Some(log_id(7, 1, 300)));
    assert_eq!(all(&mut log).await.first().unwrap().log_id.index, 251);
    // The vote was written to a segment that is gone; the next one repeated it.
    assert_eq!(RaftLogReader::<TypeConfig>::read_vote(&mut log).await.unwrap(), Some(vote(7)));
}

#[tokio::test]
async fn an_entry_larger_than_a_segment_gets_one_of_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
    let large = entry(1, 1, vec![9; 3 * SEGMENT as usize]);
    append(&mut log, vec![large.clone(), entry(1, 2, vec![1])]).await.unwrap();
    log.close().await.unwrap();
    let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
    assert_eq!(all(&mut log).await, vec![large, entry(1, 2, vec![1])]);
}

/// Counts what is sent to other threads, and does it here.
#[derive(Default)]
struct Sent(AtomicUsize);

impl Outside for Sent {
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn wall_ms(&self) -> u64 {
        0
    }

    fn random(&self) -> io::Result<[u8; 16]> {
        Ok([0; 16])
    }

    fn run(&self, work: Work) -> BoxFuture<'static, ()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        work();
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test]
async fn files_are_read_on_other_threads_and_in_pieces() {
    const COUNT: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
    let entries: Vec<_> = (1..=COUNT).map(|index| entry(1, index, vec![index as u8; 1 << 20])).collect();
    for entry in &entries {
        append(&mut log, vec![entry.clone()]).await.unwrap();
    }
    log.close().await.unwrap();
    let sent = Arc::new(Sent::default());
    let (mut log, _writer, _requests) = LogStore::open_unwritten(dir.path(), SEGMENT, sent.clone()).unwrap();
    let stream = RaftLogReader::<TypeConfig>::entries_stream(&mut log, 3..=COUNT).await;
    let read: Vec<_> = stream.try_collect().await.unwrap();
    assert_eq!(read, entries[2..]);
    // Seven entries of a MiB and a head each, twice, and the last four.
    assert_eq!(sent.0.load(Ordering::Relaxed), 3);
}

/// A log with three acknowledged groups, the last of two entries.
async fn small_log() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path(), 4096).unwrap();
    append(&mut log, vec![entry(1, 1, b"first".to_vec())]).await.unwrap();
    append(&mut log, vec![entry(1, 2, b"second".to_vec())]).await.unwrap();
    append(&mut log, vec![entry(1, 3, b"third".to_vec()), entry(1, 4, b"fourth".to_vec())]).await.unwrap();
    log.close().await.unwrap();
    let path = segments(dir.path()).remove(0);
    (dir, path)
}

/// What a log in this directory holds, or why it is refused. After a cut it must take new entries and keep them.
async fn reopen(dir: &Path) -> Result<Vec<u64>, String> {
    let mut log = LogStore::open(dir, 4096).map_err(|error| error.to_string())?;
    let found: Vec<u64> = all(&mut log).await.iter().map(|entry| entry.log_id.index).collect();
    let next = found.last().copied().unwrap_or(0) + 1;
    append(&mut log, vec![entry(2, next, b"new".to_vec())]).await.unwrap();
    log.close().await.unwrap();
    let mut log = LogStore::open(dir, 4096).unwrap();
    let again = all(&mut log).await;
    assert_eq!(again.last().unwrap(), &entry(2, next, b"new".to_vec()));
    assert_eq!(again.len(), found.len() + 1);
    Ok(found)
}

#[tokio::test]
async fn a_tail_that_is_cut_at_any_byte_loses_only_what_it_cuts() {
    let (dir, path) = small_log().await;
    let places = places(&path);
    let end = *places.last().unwrap();
    for cut in places[1]..end {
        let copy = copy_dir(dir.path());
        let file = std::fs::OpenOptions::new().write(true).open(segments(copy.path()).remove(0)).unwrap();
        file.set_len(cut).unwrap();
        let whole = places[1..].iter().filter(|place| **place <= cut).count() as u64;
        // A record whose padding alone is missing is whole as well.
        let found = reopen(copy.path()).await.unwrap();
        let expected: Vec<u64> = (1..=whole).collect();
        let padded: Vec<u64> = (1..=whole + 1).collect();
        assert!(found == expected || found == padded, "cut at {cut}: {found:?}, expected {expected:?}");
    }
}

#[tokio::test]
async fn damage_in_the_last_group_is_a_torn_write_and_before_it_is_rot() {
    let (dir, path) = small_log().await;
    let places = places(&path);
    let end = *places.last().unwrap();
    for at in places[0]..end {
        let copy = copy_dir(dir.path());
        let copied = segments(copy.path()).remove(0);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(copied).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x5a], at).unwrap();
        let found = reopen(copy.path()).await;
        // Records 1 and 2 were synced before record 3 was written, and it says so. Of record 3 and 4 nothing later tells.
        match places.iter().rposition(|place| *place <= at).unwrap() {
            record @ (0 | 1) => match found {
                Err(error) => assert!(error.contains("damaged") && error.contains("lost"), "byte {at}: {error}"),
                // Padding is not covered by the checksum and carries nothing.
                Ok(found) => assert_eq!(found, [1, 2, 3, 4], "byte {at} of record {record}"),
            },
            2 => assert!(matches!(found.as_deref(), Ok([1, 2] | [1, 2, 3, 4])), "byte {at}: {found:?}"),
            _ => assert!(matches!(found.as_deref(), Ok([1, 2, 3] | [1, 2, 3, 4])), "byte {at}: {found:?}"),
        }
    }
}

#[tokio::test]
async fn damage_in_an_older_segment_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path(), 4096).unwrap();
    for index in 1..=20 {
        append(&mut log, vec![entry(1, index, vec![7; 500])]).await.unwrap();
    }
    log.close().await.unwrap();
    let first = segments(dir.path()).remove(0);
    let copy = copy_dir(dir.path());
    let file = std::fs::OpenOptions::new().write(true).open(segments(copy.path()).remove(0)).unwrap();
    file.write_all_at(&[1], *places(&first).iter().rev().nth(1).unwrap() + 60).unwrap();
    let error = LogStore::open(copy.path(), 4096).err().unwrap().to_string();
    assert!(error.contains("later segments follow"), "{error}");

    let copy = copy_dir(dir.path());
    std::fs::remove_file(segments(copy.path()).remove(1)).unwrap();
    let error = LogStore::open(copy.path(), 4096).err().unwrap().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[tokio::test]
async fn a_half_made_last_segment_is_dropped() {
    let (dir, _) = small_log().await;
    for content in [&b""[..], b"ECLOG", &[0; 4096]] {
        let copy = copy_dir(dir.path());
        std::fs::write(copy.path().join("0000000000000002.seg"), content).unwrap();
        assert_eq!(reopen(copy.path()).await.unwrap(), [1, 2, 3, 4]);
    }
}

#[tokio::test]
async fn another_version_is_refused_with_words() {
    let (dir, path) = small_log().await;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..32]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = LogStore::open(dir.path(), 4096).err().unwrap().to_string();
    assert!(error.contains("log version 2") && error.contains("newer"), "{error}");
}

#[tokio::test]
async fn a_log_that_ends_before_the_state_is_refused() {
    let (dir, _) = small_log().await;
    let log = LogStore::open(dir.path(), 4096).unwrap();
    assert!(log.covers(4, false).is_ok());
    assert!(log.covers(5, false).unwrap_err().contains("lost"));
}

/// A crash between installing a snapshot and purging the log leaves this; without a vote it was left by something else.
#[tokio::test]
async fn among_others_a_log_may_end_before_the_state_but_not_without_its_vote() {
    let (dir, _) = small_log().await;
    let mut log = LogStore::open(dir.path(), 4096).unwrap();
    assert!(log.covers(5, true).unwrap_err().contains("lost"));
    RaftLogStorage::<TypeConfig>::save_vote(&mut log, &vote(3)).await.unwrap();
    assert!(log.covers(5, true).is_ok());
    assert!(log.covers(5, false).is_err());
}

/// The writer is behind: the others have entry 6 on their disks, it is committed, and a crash comes when this log has only been told so.
#[tokio::test]
async fn what_was_committed_counts_only_with_its_entry() {
    for (committed, expected) in [
        (log_id(3, 1, 6), None),
        (log_id(2, 2, 4), None),
        (log_id(3, 1, 4), Some(log_id(3, 1, 4))),
        (log_id(3, 1, 2), Some(log_id(3, 1, 2))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
        for index in 1..=4 {
            append(&mut log, vec![entry(3, index, vec![1; 10])]).await.unwrap();
        }
        RaftLogStorage::<TypeConfig>::save_committed(&mut log, Some(committed)).await.unwrap();
        // Takes the word along, as entry 5 would.
        RaftLogStorage::<TypeConfig>::save_vote(&mut log, &vote(4)).await.unwrap();
        drop(log);
        let mut log = LogStore::open(dir.path(), SEGMENT).unwrap();
        let found = RaftLogStorage::<TypeConfig>::read_committed(&mut log).await.unwrap();
        assert_eq!(found, expected, "committed {committed}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, bytes: usize },
    Truncate { back: u64 },
    Purge { share: u8 },
    Vote,
    Committed,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1..6u64, 0..900usize).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        1 => (0..5u64).prop_map(|back| Step::Truncate { back }),
        1 => any::<u8>().prop_map(|share| Step::Purge { share }),
        1 => Just(Step::Vote),
        1 => Just(Step::Committed),
        1 => Just(Step::Reopen),
    ]
}

/// What the log must hold.
#[derive(Default)]
struct Model {
    entries: std::collections::BTreeMap<u64, Entry>,
    last: u64,
    last_term: u64,
    term: u64,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

async fn run_step(log: &mut LogStore, model: &mut Model, dir: &Path, step: Step) {
    match step {
        Step::Append { count, bytes } => {
            let (term, next) = (model.term, model.last + 1);
            let new: Vec<Entry> = (next..next + count).map(|i| entry(term, i, vec![i as u8; bytes])).collect();
            append(log, new.clone()).await.unwrap();
            model.last += count;
            model.last_term = term;
            model.entries.extend(new.into_iter().map(|entry| (entry.log_id.index, entry)));
        }
        Step::Truncate { back } => {
            let keep = model.last.saturating_sub(back).max(model.purged.map_or(0, |id| id.index));
            let last = model.entries.get(&keep).map(|entry| entry.log_id).or(model.purged);
            RaftLogStorage::<TypeConfig>::truncate_after(log, last).await.unwrap();
            model.entries.retain(|index, _| *index <= keep);
            model.last = keep;
            model.term += 1;
        }
        Step::Purge { share } => {
            let at = model.entries.len() * usize::from(share) / 256;
            let Some(upto) = model.entries.values().nth(at).map(|entry| entry.log_id) else { return };
            RaftLogStorage::<TypeConfig>::purge(log, upto).await.unwrap();
            model.entries.retain(|index, _| *index > upto.index);
            model.purged = Some(upto);
        }
        Step::Vote => {
            model.term += 1;
            model.vote = Some(vote(model.term));
            RaftLogStorage::<TypeConfig>::save_vote(log, &vote(model.term)).await.unwrap();
        }
        Step::Committed => {
            model.committed = model.entries.values().next_back().map(|entry| entry.log_id);
            RaftLogStorage::<TypeConfig>::save_committed(log, model.committed).await.unwrap();
        }
        Step::Reopen => {
            log.close().await.unwrap();
            *log = LogStore::open(dir, 4096).unwrap();
            // What was committed and then truncated, which Raft never does, is not believed.
            model.committed = model.committed.filter(|id| {
                model.purged.is_some_and(|purged| purged.index >= id.index)
                    || model.entries.get(&id.index).is_some_and(|entry| entry.log_id == *id)
            });
        }
    }
    let expected: Vec<Entry> = model.entries.values().cloned().collect();
    assert_eq!(all(log).await, expected);
    let state = RaftLogStorage::<TypeConfig>::get_log_state(log).await.unwrap();
    assert_eq!(state.last_purged_log_id, model.purged);
    assert_eq!(state.last_log_id.map_or(0, |id| id.index), model.last);
    assert_eq!(RaftLogReader::<TypeConfig>::read_vote(log).await.unwrap(), model.vote);
    assert_eq!(RaftLogStorage::<TypeConfig>::read_committed(log).await.unwrap(), model.committed);
}

/// A purge must not bring it back: everything below one counts as committed.
#[tokio::test]
async fn what_was_not_believed_once_is_not_believed_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path(), 4096).unwrap();
    let mut model = Model::default();
    let one = Step::Append { count: 1, bytes: 0 };
    let steps = [one.clone(), Step::Committed, Step::Truncate { back: 1 }, one, Step::Reopen];
    for step in steps.into_iter().chain([Step::Purge { share: 0 }, Step::Reopen]) {
        run_step(&mut log, &mut model, dir.path(), step).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_log_is_what_a_map_says(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let mut log = LogStore::open(dir.path(), 4096).unwrap();
            let mut model = Model::default();
            for step in steps {
                run_step(&mut log, &mut model, dir.path(), step).await;
            }
        });
    }
}
