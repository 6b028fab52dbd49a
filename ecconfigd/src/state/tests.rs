#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use openraft::EntryPayload;
use proptest::prelude::*;
use repos::{Content, Draft, NewCommit, Oid, RefMap, RefName, RepoPath, Signature, TreeChange};

use super::*;
use crate::raft::command::{
    ChangeSet, IdempotencyKey, NewRevision, Op, Outcome, PackSource, RefUpdate, RepoUpdate, UploadId,
};
use crate::raft::{Applied, Entry, Proposal, RaftNode, log_id};
use crate::watch::{Globs, Watch};

fn repo(text: &str) -> RepoName {
    text.parse().unwrap()
}

fn entry(index: u64, ops: Vec<Op>, attachments: Vec<Bytes>) -> Entry {
    let proposal = Proposal { clock_ms: index * 1000, time_ms: index * 1000, ops, attachments };
    Entry { log_id: log_id(1, 1, index), payload: EntryPayload::Normal(proposal.encode()) }
}

fn open(dir: &Path) -> std::sync::Arc<State> {
    State::open(dir, 100).unwrap()
}

fn apply(state: &State, entry: Entry) -> Vec<Outcome> {
    let mut answers: Vec<Applied> = state.apply(&[entry]).unwrap();
    answers.pop().unwrap().0
}

/// A commit with one file, and the pack that brings it.
fn commit(store: &repos::Store, parent: Option<Oid>, path: &str, text: &str) -> (Oid, Bytes) {
    let mut draft = Draft::new(store).unwrap();
    let tree = parent.map_or(Oid::EMPTY_TREE, |parent| draft.tree_of(parent).unwrap());
    let content = Content::Bytes(Bytes::from(text.to_owned()));
    let put = TreeChange::Put { path: RepoPath::new(path).unwrap(), mode: None, content };
    let tree = draft.apply(tree, &[put]).unwrap();
    let signature = Signature { name: "A".into(), email: "a@x".into(), time_s: 1, offset_min: 0 };
    let author = signature.clone();
    let parents = parent.into_iter().collect();
    let new = NewCommit { tree, parents, author, committer: signature, message: text.to_owned() };
    let id = draft.commit(&new).unwrap();
    (id, draft.pack_of(&[id]).unwrap().unwrap().into())
}

fn create(name: &str) -> Op {
    Op::CreateRepo { repo: repo(name), head_ref: RefName::main() }
}

fn pack(name: &str) -> Op {
    Op::Pack { repo: repo(name), source: PackSource::Attachment(0) }
}

fn update(name: &str, old: Oid, new: Oid) -> RepoUpdate {
    let revision = NewRevision {
        author: "A <a@x>".into(),
        message: "m".into(),
        paths: vec!["default/f".into()],
        paths_truncated: false,
    };
    let refs = vec![RefUpdate { name: RefName::main(), old, new }];
    RepoUpdate { repo: repo(name), refs, revision: Some(revision) }
}

fn change(updates: Vec<RepoUpdate>) -> Op {
    Op::Change(ChangeSet { updates, unchanged: BTreeMap::new(), idempotency: None })
}

/// The log of a small story, made over a scratch state: creation, commits, a stale one, accounts, an upload, reports.
fn story() -> Vec<Entry> {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let mut log = Vec::new();
    let mut add = |ops: Vec<Op>, attachments: Vec<Bytes>| {
        let one = entry(log.len() as u64 + 1, ops, attachments);
        log.push(one.clone());
        apply(&state, one)
    };
    add(vec![Op::Found { cluster: "c".into() }, create("default"), create("global")], vec![]);
    let store = state.view().repos[&repo("default")].store.clone();
    let mut head = Oid::NULL;
    for number in 0..5 {
        let parent = (!head.is_null()).then_some(head);
        let (id, bytes) = commit(&store, parent, "default/f", &format!("{number}\n"));
        let outcome = add(vec![pack("default"), change(vec![update("default", head, id)])], vec![bytes]);
        assert!(matches!(outcome[1], Outcome::Changed(_)), "{outcome:?}");
        head = id;
    }
    let stale = add(vec![change(vec![update("default", Oid::NULL, head)])], vec![]);
    assert!(matches!(stale[0], Outcome::Stale { .. }), "{stale:?}");
    let user = UserRecord {
        name: "u".into(),
        password_hash: "h".into(),
        role: Role::Reader,
        full_name: String::new(),
        email: String::new(),
        created_time_ms: 1,
        generation: 0,
    };
    add(vec![Op::PutUser(user.clone()), Op::PutUser(user)], vec![]);
    let (id, bytes) = commit(&store, Some(head), "default/g", "large\n");
    let upload = UploadId([7; 16]);
    let middle = bytes.len() / 2;
    for (offset, chunk) in [(0, bytes.slice(..middle)), (middle as u64, bytes.slice(middle..))] {
        assert_eq!(add(vec![Op::Chunk { upload, offset, attachment: 0 }], vec![chunk]), [Outcome::Done]);
    }
    let used = Op::Pack { repo: repo("default"), source: PackSource::Upload(upload) };
    let outcome = add(vec![used, change(vec![update("default", head, id)])], vec![]);
    assert_eq!(outcome[0], Outcome::Done);
    add(vec![Op::Tick], vec![]);
    let copy = Op::CopyRepo { from: repo("default"), to: repo("east") };
    let freeze = Op::Freeze { repo: repo("default"), frozen: true };
    add(vec![copy, freeze], vec![]);
    log
}

/// What readers see, to be compared.
type Picture = (Vec<(Vec<u8>, Vec<u8>)>, [u8; 32], Vec<(RepoName, RepoRecord, RefMap)>);

fn picture(state: &State) -> Picture {
    let view = state.view();
    let repos = view.repos.iter();
    let repos = repos.map(|(name, repo)| (name.clone(), repo.record.as_ref().clone(), repo.refs.as_ref().clone()));
    (state.dump(), view.hash, repos.collect())
}

#[test]
fn the_picture_is_what_the_table_says() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    for entry in story() {
        apply(&state, entry);
    }
    let before = picture(&state);
    assert_eq!(state.view().head(&repo("default")).unwrap().revision, 6);
    assert_eq!(state.view().targets[&repo("default")].record.serial, 7, "six revisions and a freeze");
    assert_eq!(state.user("u").unwrap().unwrap().generation, 1);
    state.checkpoint().unwrap();
    drop(state);
    assert_eq!(picture(&open(dir.path())), before);
}

/// The format is a promise: another build that applies these entries must come to the same bytes.
#[test]
fn format_1_has_this_hash() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let ops = vec![Op::Found { cluster: "c".into() }, create("default"), create("global")];
    apply(&state, entry(1, ops, vec![]));
    let update = update("default", Oid::NULL, Oid::EMPTY_TREE);
    let idempotency = Some(IdempotencyKey { user: "u".into(), key: "k".into(), fingerprint: [3; 16] });
    let set = ChangeSet { updates: vec![update], unchanged: BTreeMap::new(), idempotency };
    let token = NodeTokenRecord {
        id: "t".into(),
        secret_sha256: [4; 32],
        subcluster: repo("default"),
        created_by: "u".into(),
        expires_clock_ms: 9,
    };
    apply(&state, entry(2, vec![Op::Change(set), Op::PutNodeToken(token)], vec![]));
    let dump = state.dump();
    let keys: Vec<String> = dump.iter().map(|(key, _)| key.escape_ascii().to_string()).collect();
    assert_eq!(keys.len(), 15, "{keys:?}");
    assert_eq!(hex::encode(state.view().hash), "b96d4d55c12e894a256f4d70d7ccc7db66875b281c2a8c91e383c05c242b79c7");
}

#[test]
fn batches_do_not_matter() {
    let log = story();
    let one_by_one = tempfile::tempdir().unwrap();
    let at_once = tempfile::tempdir().unwrap();
    let (a, b) = (open(one_by_one.path()), open(at_once.path()));
    for entry in log.clone() {
        apply(&a, entry);
    }
    b.apply(&log).unwrap();
    assert_eq!(picture(&a), picture(&b));
}

#[test]
fn where_an_entry_is_applied_does_not_matter() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (here, there) = (open(here.path()), open(there.path()));
    let mut brief = 0;
    for entry in story() {
        let entry = [entry];
        let answer = here.try_apply(&entry).inspect(|_| brief += 1).unwrap_or_else(|| here.apply(&entry)).unwrap();
        assert_eq!(answer, there.apply(&entry).unwrap());
    }
    assert_eq!(picture(&here), picture(&there));
    assert_eq!(brief, 6, "the commits are");
}

/// What is applied where sockets and timers are served reads and writes no pack.
#[test]
fn what_touches_files_is_not_brief() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    apply(&state, entry(1, vec![create("default")], vec![]));
    let store = state.view().repos[&repo("default")].store.clone();
    let (mut head, mut index) = (Oid::NULL, 1);
    let mut next = |text: &str| {
        let parent = (!head.is_null()).then_some(head);
        let (id, bytes) = commit(&store, parent, "default/f", text);
        let old = std::mem::replace(&mut head, id);
        index += 1;
        entry(index, vec![pack("default"), change(vec![update("default", old, id)])], vec![bytes])
    };
    // Small as a pack, and too large to be held once it is unpacked.
    let large = next(&"x".repeat(2 << 20));
    assert!(state.try_apply(std::slice::from_ref(&large)).is_none());
    assert!(matches!(apply(&state, large)[1], Outcome::Changed(_)));
    assert_eq!(store.packs().unwrap().len(), 1);
    // As long as there is room in memory.
    let mut held = 0;
    let last = loop {
        let entry = next(&format!("{held} {}", "x".repeat(400_000)));
        let Some(done) = state.try_apply(std::slice::from_ref(&entry)) else { break entry };
        assert!(matches!(done.unwrap()[0].0[1], Outcome::Changed(_)));
        assert_eq!(store.packs().unwrap().len(), 1);
        held += 1;
        assert!(held < 100, "memory has no bound");
    };
    assert!(held > 10, "{held}");
    assert!(matches!(apply(&state, last)[1], Outcome::Changed(_)));
    assert_eq!(store.packs().unwrap().len(), 2);
    assert!(state.try_apply(&[next("there is room again")]).is_some());
}

/// Nor is what has to be held against many globs.
#[test]
fn what_concerns_many_watchers_is_not_brief() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    apply(&state, entry(1, vec![create("default")], vec![]));
    let id = |byte| Oid::from_bytes([byte; 20]);
    let of_paths = |index: u8, count: usize| {
        let mut update = update("default", if index == 2 { Oid::NULL } else { id(index - 1) }, id(index));
        update.revision.as_mut().unwrap().paths = (0..count).map(|number| format!("d/{number}")).collect();
        [entry(index.into(), vec![change(vec![update])], vec![])]
    };
    assert!(state.try_apply(&of_paths(2, 100)).is_some());
    let watch = |number: usize| {
        let globs = Globs::new(&[format!("d/{number}")]).unwrap();
        Watch::new(state.clone(), repo("default"), None, globs).unwrap()
    };
    let watches: Vec<Watch> = (0..100).map(watch).collect();
    assert!(state.try_apply(&of_paths(3, 100)).is_none());
    assert!(state.try_apply(&of_paths(3, 10)).is_some());
    drop(watches);
}

/// A crash: what is not durable is gone, the files of stores and uploads are as they are.
#[test]
fn after_a_crash_anywhere_the_log_gives_the_same_state() {
    let log = story();
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    state.apply(&log).unwrap();
    let expected = picture(&state);
    for durable in (0..=log.len()).step_by(2) {
        for applied in [durable, (durable + 3).min(log.len()), log.len()] {
            let dir = tempfile::tempdir().unwrap();
            let state = open(dir.path());
            state.apply(&log[..durable]).unwrap();
            state.checkpoint().unwrap();
            state.apply(&log[durable..applied]).unwrap();
            // Not a clean end: redb is left to forget what was not durable.
            let copy = crash(dir.path());
            drop(state);
            let state = open(copy.path());
            assert_eq!(state.view().applied_index(), durable as u64, "only the checkpoint survives");
            for entry in &log[durable..] {
                apply(&state, entry.clone());
            }
            assert_eq!(picture(&state), expected, "durable {durable}, applied {applied}");
            assert!(state.missing_objects().is_empty());
        }
    }
}

/// What a killed process leaves: a copy taken while it runs.
fn crash(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let mut todo = vec![from.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let target = to.path().join(path.strip_prefix(from).unwrap());
            if path.is_dir() {
                std::fs::create_dir_all(&target).unwrap();
                todo.push(path);
            } else {
                std::fs::copy(&path, &target).unwrap();
            }
        }
    }
    to
}

#[test]
fn old_entries_over_a_later_state_change_nothing() {
    let log = story();
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    state.apply(&log).unwrap();
    let before = picture(&state);
    let answers = state.apply(&log).unwrap();
    assert!(answers.iter().all(|answer| answer.0.is_empty()));
    assert_eq!(picture(&state), before);
}

#[test]
fn a_snapshot_brings_everything_but_the_objects() {
    let log = story();
    let from_dir = tempfile::tempdir().unwrap();
    let from = open(from_dir.path());
    // In the middle of the upload, whose bytes are part of the snapshot.
    let middle = log.len() - 3;
    from.apply(&log[..middle]).unwrap();
    let (meta, manifest) = from.build_snapshot().unwrap();
    assert_eq!(meta.last_log_id.map(|id| id.index), Some(middle as u64));

    let to_dir = tempfile::tempdir().unwrap();
    let to = open(to_dir.path());
    to.install_snapshot(manifest).unwrap();
    assert_eq!(picture(&to), picture(&from));
    let missing = to.missing_objects();
    assert_eq!(missing.len(), 1, "the refs of default point to objects that are elsewhere");
    // As replication will: the packs are fetched, then the log goes on.
    for repos::PackInfo { path, .. } in from.view().repos[&repo("default")].store.packs().unwrap() {
        to.view().repos[&repo("default")].store.install_pack_file(&path).unwrap();
    }
    assert!(to.missing_objects().is_empty());
    for state in [&from, &to] {
        state.apply(&log[middle..]).unwrap();
    }
    assert_eq!(picture(&to), picture(&from));
    assert_eq!(to.current_snapshot().unwrap().unwrap().0, meta, "an installed snapshot can be passed on");
}

/// A node that was away while a large push came to its end gets a snapshot that does not know the upload any more.
#[test]
fn what_had_come_of_an_upload_goes_when_a_snapshot_is_beyond_it() {
    let log = story();
    let (from_dir, to_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(from_dir.path()), open(to_dir.path()));
    from.apply(&log).unwrap();
    // Up to the first of two chunks.
    to.apply(&log[..log.len() - 4]).unwrap();
    let files = || std::fs::read_dir(to_dir.path().join("uploads")).unwrap().count();
    assert_eq!(files(), 1);
    to.install_snapshot(from.build_snapshot().unwrap().1).unwrap();
    to.checkpoint().unwrap();
    assert_eq!(files(), 0);
}

#[test]
fn a_machine_that_takes_a_name_over_ends_what_the_one_before_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let node: NodeName = "n2".parse().unwrap();
    let token = |id: &str| NodeTokenRecord {
        id: id.into(),
        secret_sha256: [0; 32],
        subcluster: repo("default"),
        created_by: "u".into(),
        expires_clock_ms: u64::MAX,
    };
    let join = |certificate: &str, key: u8, token: &str| {
        let certificate = CertificateRecord {
            serial: certificate.into(),
            fingerprint: certificate.into(),
            issued_time_ms: 1,
            not_after_time_ms: 2,
        };
        let record = NodeRecord {
            name: node.clone(),
            subcluster: repo("default"),
            kind: NodeKind::Server,
            raft_id: None,
            address: Some("n2:1".into()),
            joined_time_ms: 1,
            certificates: vec![certificate],
        };
        Op::Join { record, voter: true, key_sha256: [key; 32], token: token.into() }
    };
    let known = || {
        let record = state.view().nodes[&node].clone();
        record.certificates.iter().map(|known| known.fingerprint.clone()).collect::<Vec<_>>()
    };
    let ops = vec![create("default"), Op::PutNodeToken(token("a")), join("one", 1, "a")];
    assert_eq!(apply(&state, entry(1, ops, vec![])), [Outcome::Done, Outcome::Done, Outcome::Done]);
    // A join whose answer was lost: the same machine with another certificate for its key.
    assert_eq!(apply(&state, entry(2, vec![join("two", 1, "a")], vec![])), [Outcome::Done]);
    assert_eq!(known(), ["one", "two"]);
    let ops = vec![Op::AllowReplace { node: node.clone(), token: token("b") }, join("three", 2, "b")];
    assert_eq!(apply(&state, entry(3, ops, vec![])), [Outcome::Done, Outcome::Done]);
    assert_eq!(known(), ["three"]);
}

#[test]
fn a_damaged_snapshot_is_refused_and_leaves_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    state.apply(&story()).unwrap();
    state.build_snapshot().unwrap();
    let path = dir.path().join("snapshot");
    let bytes = std::fs::read(&path).unwrap();
    let before = picture(&state);
    for at in [0, 7, 20, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        assert!(state.install_snapshot(Manifest { file }).is_err(), "byte {at}");
        assert_eq!(picture(&state), before);
    }
}

#[test]
fn a_key_answers_again_and_is_forgotten_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let mut index = 0;
    let mut next = |ops: Vec<Op>| {
        index += 1;
        apply(&state, entry(index, ops, vec![])).pop().unwrap()
    };
    next(vec![create("default")]);
    let keyed = |key: String, fingerprint: u8| {
        let idempotency = Some(IdempotencyKey { user: "u".into(), key, fingerprint: [fingerprint; 16] });
        Op::Change(ChangeSet { updates: vec![], unchanged: BTreeMap::new(), idempotency })
    };
    assert!(matches!(next(vec![keyed("k0".into(), 1)]), Outcome::Changed(_)));
    assert!(matches!(next(vec![keyed("k0".into(), 1)]), Outcome::Replayed(_)));
    assert!(matches!(next(vec![keyed("k0".into(), 2)]), Outcome::Refused(_)));
    for start in (1..=IDEMPOTENCY_KEYS).step_by(1000) {
        next((start..start + 1000).map(|number| keyed(format!("k{number}"), 1)).collect());
    }
    assert!(state.idempotent("u", "k0").unwrap().is_none(), "the oldest is forgotten");
    assert!(state.idempotent("u", "k1").unwrap().is_some());
    let kept = state.dump().iter().filter(|(key, _)| key.starts_with(b"idem/")).count() as u64;
    assert_eq!(kept, IDEMPOTENCY_KEYS);
    let queued = state.dump().iter().filter(|(key, _)| key.starts_with(b"idemq/")).count() as u64;
    assert_eq!(queued, IDEMPOTENCY_KEYS);
}

#[test]
fn a_change_of_two_repositories_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    apply(&state, entry(1, vec![create("default"), create("global")], vec![]));
    let store = state.view().repos[&repo("default")].store.clone();
    let (id, bytes) = commit(&store, None, "a", "a");
    let both = change(vec![update("default", Oid::NULL, id), update("global", id, id)]);
    let outcome = apply(&state, entry(2, vec![pack("default"), both], vec![bytes]));
    assert_eq!(outcome[1], Outcome::Stale { repo: repo("global"), name: RefName::main() });
    assert_eq!(state.view().head(&repo("default")).unwrap().revision, 0);
    assert!(state.view().repos[&repo("default")].refs.is_empty());
    assert_eq!(state.view().targets[&repo("default")].record.serial, 0);
}

#[test]
fn a_pack_that_is_no_pack_refuses_its_changes_on_every_replica() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    apply(&state, entry(1, vec![create("default")], vec![]));
    let bad = change(vec![update("default", Oid::NULL, Oid::EMPTY_TREE)]);
    let outcome = apply(&state, entry(2, vec![pack("default"), bad], vec![Bytes::from_static(b"nonsense")]));
    assert!(matches!(outcome.as_slice(), [Outcome::Refused(_), Outcome::Refused(_)]), "{outcome:?}");
}

#[test]
fn what_expires_does_so_by_the_cluster_clock() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let token = |expires_clock_ms| NodeTokenRecord {
        id: format!("t{expires_clock_ms}"),
        secret_sha256: [0; 32],
        subcluster: repo("default"),
        created_by: "u".into(),
        expires_clock_ms,
    };
    let upload = UploadId([1; 16]);
    let chunk = Op::Chunk { upload, offset: 0, attachment: 0 };
    let ops = vec![create("default"), Op::PutNodeToken(token(5_000)), Op::PutNodeToken(token(9_000_000)), chunk];
    apply(&state, entry(1, ops, vec![Bytes::from_static(b"x")]));
    apply(&state, entry(6, vec![Op::Tick], vec![]));
    assert!(state.node_token("t5000").unwrap().is_none());
    assert!(state.node_token("t9000000").unwrap().is_some());
    assert_eq!(state.upload_ids().unwrap().len(), 1);
    apply(&state, entry(602, vec![Op::Tick], vec![]));
    assert_eq!(state.upload_ids().unwrap().len(), 0, "an upload may pause for ten minutes");
    let node = NodeRecord {
        name: "n2".parse().unwrap(),
        subcluster: repo("default"),
        kind: NodeKind::Client,
        raft_id: None,
        address: None,
        joined_time_ms: 1,
        certificates: vec![],
    };
    let register = |token: &str| Op::RegisterNode { record: node.clone(), token: Some(token.into()) };
    assert!(matches!(apply(&state, entry(603, vec![register("t5000")], vec![]))[0], Outcome::Refused(_)));
    let twice = apply(&state, entry(604, vec![register("t9000000"), register("t9000000")], vec![]));
    assert!(matches!(twice.as_slice(), [Outcome::Done, Outcome::Refused(_)]), "{twice:?}");
}

#[test]
fn another_format_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    {
        let db = redb::Database::open(dir.path().join("state.redb")).unwrap();
        let write = db.begin_write().unwrap();
        write.open_table(db::TABLE).unwrap().insert(keys::FORMAT, [9].as_slice()).unwrap();
        write.commit().unwrap();
    }
    let error = State::open(dir.path(), 1).err().unwrap().to_string();
    assert!(error.contains("state.redb has format 9") && error.contains("newer"), "{error}");
}

#[derive(Debug, Clone)]
enum Move {
    Main { repo: usize, stale: bool },
    Branch { repo: usize, branch: u8, delete: bool },
    Both,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (0..2usize, prop::bool::weighted(0.2)).prop_map(|(repo, stale)| Move::Main { repo, stale }),
        2 => (0..2usize, 0..3u8, any::<bool>()).prop_map(|(repo, branch, delete)| Move::Branch { repo, branch, delete }),
        1 => Just(Move::Both),
    ];
    proptest::collection::vec(one, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Against a map: refs move only as the log says, revisions are counted without gaps, the target follows.
    #[test]
    fn refs_and_revisions_are_what_a_map_says(moves in moves()) {
        let dir = tempfile::tempdir().unwrap();
        let state = open(dir.path());
        let names = ["default", "global"];
        apply(&state, entry(1, names.iter().map(|name| create(name)).collect(), vec![]));
        let mut refs: Vec<RefMap> = vec![RefMap::new(), RefMap::new()];
        let mut revisions = [0u64, 0];
        let mut serial = 0;
        let fresh = |number: usize| Oid::from_bytes([number as u8 + 1; 20]);
        for (number, one) in moves.iter().enumerate() {
            let main = |at: usize| refs[at].get(&RefName::main()).copied().unwrap_or(Oid::NULL);
            let id = fresh(number);
            let (op, expect) = match one {
                Move::Main { repo, stale } => {
                    let old = if *stale { Oid::EMPTY_TREE } else { main(*repo) };
                    (change(vec![update(names[*repo], old, id)]), if *stale { vec![] } else { vec![*repo] })
                }
                Move::Both => (change((0..2).map(|at| update(names[at], main(at), id)).collect()), vec![0, 1]),
                Move::Branch { repo: at, branch, delete } => {
                    let name = RefName::branch(&format!("b{branch}")).unwrap();
                    let old = refs[*at].get(&name).copied().unwrap_or(Oid::NULL);
                    let new = if *delete { Oid::NULL } else { id };
                    if *delete { refs[*at].remove(&name) } else { refs[*at].insert(name.clone(), id) };
                    let one = RepoUpdate { repo: repo(names[*at]), refs: vec![RefUpdate { name, old, new }], revision: None };
                    (change(vec![one]), vec![])
                }
            };
            let outcome = apply(&state, entry(number as u64 + 2, vec![op], vec![])).pop().unwrap();
            let stale = matches!(one, Move::Main { stale: true, .. });
            prop_assert_eq!(matches!(outcome, Outcome::Stale { .. }), stale);
            for at in &expect {
                refs[*at].insert(RefName::main(), id);
                revisions[*at] += 1;
            }
            serial += u64::from(!expect.is_empty());
        }
        let view = state.view();
        for (at, name) in names.iter().enumerate() {
            let name = repo(name);
            prop_assert_eq!(view.repos[&name].refs.as_ref(), &refs[at]);
            prop_assert_eq!(view.head(&name).unwrap().revision, revisions[at]);
            let history = state.revisions(&name, 1, u64::MAX).unwrap();
            let numbers: Vec<u64> = history.iter().map(|record| record.revision).collect();
            prop_assert_eq!(numbers, (1..=revisions[at]).collect::<Vec<_>>());
        }
        prop_assert_eq!(view.targets[&repo("default")].record.serial, serial);
        let loaded = db::load_view(&state.db.load(), dir.path(), &state.outside).unwrap();
        prop_assert_eq!(loaded.hash, view.hash);
        prop_assert_eq!(&loaded.targets, &view.targets);
    }
}

/// The entry that makes these nodes the group's voters.
fn voters(index: u64, names: &[&str]) -> Entry {
    let nodes: BTreeMap<u64, RaftNode> = (1..)
        .zip(names)
        .map(|(id, name)| (id, RaftNode { name: (*name).to_owned(), address: String::new() }))
        .collect();
    let ids = nodes.keys().copied().collect();
    let membership = openraft::Membership::new(vec![ids], nodes).unwrap();
    Entry { log_id: log_id(1, 1, index), payload: EntryPayload::Membership(membership) }
}

#[test]
fn a_copy_has_refs_revisions_and_objects_also_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    apply(&state, entry(1, vec![create("default")], vec![]));
    let store = state.view().repos[&repo("default")].store.clone();
    let (one, first) = commit(&store, None, "a", "one");
    let change = |old, new| change(vec![update("default", old, new)]);
    apply(&state, entry(2, vec![pack("default"), change(Oid::NULL, one)], vec![first]));
    let (two, second) = commit(&store, Some(one), "b", "two");
    apply(&state, entry(3, vec![pack("default"), change(one, two)], vec![second]));
    state.checkpoint().unwrap();

    let copy = entry(4, vec![Op::CopyRepo { from: repo("default"), to: repo("east") }], vec![]);
    assert_eq!(apply(&state, copy.clone()), [Outcome::Done]);
    let (before, hash) = (state.dump(), state.view().hash);
    // Not durable yet: a crash, and the entry comes again.
    let dir = crash(dir.path());
    drop(state);
    let state = open(dir.path());
    assert_eq!(state.view().repos.len(), 1);
    assert_eq!(apply(&state, copy), [Outcome::Done]);
    assert_eq!((state.dump(), state.view().hash), (before, hash));

    let view = state.view();
    let east = &view.repos[&repo("east")];
    assert_eq!(east.record.head, Head { revision: 2, commit: two });
    assert_eq!(east.refs, view.repos[&repo("default")].refs);
    assert!(east.store.reader().unwrap().contains(one) && east.store.reader().unwrap().contains(two));
    assert_eq!(state.revision(&repo("east"), 1).unwrap().unwrap().commit, one);
    assert_eq!(state.revision_of(&repo("east"), one).unwrap(), Some(1));
    assert_eq!(view.targets[&repo("east")].record.serial, 1);
    let again = vec![
        Op::CopyRepo { from: repo("default"), to: repo("east") },
        Op::CopyRepo { from: repo("nosuch"), to: repo("west") },
    ];
    assert_eq!(apply(&state, entry(5, again, vec![])), [Outcome::Exists, Outcome::NotFound]);
}

#[test]
fn freezing_is_told_to_the_nodes_and_refuses_changes() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    apply(&state, entry(1, vec![create("default"), create("global")], vec![]));
    let store = state.view().repos[&repo("default")].store.clone();
    let (one, first) = commit(&store, None, "a", "one");
    let freeze = |frozen| Op::Freeze { repo: repo("default"), frozen };
    assert_eq!(apply(&state, entry(2, vec![freeze(true), freeze(true)], vec![])), [Outcome::Done, Outcome::Done]);
    let target = state.view().targets[&repo("default")].clone();
    assert_eq!((target.record.serial, target.api().frozen), (1, vec!["default".to_owned()]));
    let change = change(vec![update("default", Oid::NULL, one)]);
    let outcomes = apply(&state, entry(3, vec![pack("default"), change], vec![first]));
    assert!(matches!(&outcomes[1], Outcome::Refused(why) if why.contains("frozen")), "{outcomes:?}");
    state.checkpoint().unwrap();
    drop(state);
    let state = open(dir.path());
    assert_eq!(state.view().targets[&repo("default")].api().frozen, ["default"]);
    assert_eq!(apply(&state, entry(4, vec![freeze(false)], vec![])), [Outcome::Done]);
    let target = state.view().targets[&repo("default")].clone();
    assert_eq!((target.record.serial, target.api().frozen.len()), (2, 0));
}

#[test]
fn the_leadership_is_pinned_to_one_node() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    apply(&state, voters(1, &["n1", "n2"]));
    let pin = |node: &str| Op::Pin { node: node.parse().unwrap() };
    let unpin = |node: &str| Op::Unpin { node: node.parse().unwrap() };
    let outcomes = apply(&state, entry(2, vec![pin("n9"), pin("n1"), pin("n1"), pin("n2"), unpin("n2")], vec![]));
    use Outcome::{Done, Exists, NotFound};
    assert_eq!(outcomes, [NotFound, Done, Done, Exists, NotFound]);
    state.checkpoint().unwrap();
    drop(state);
    let state = open(dir.path());
    assert_eq!(state.view().pin, Some("n1".parse().unwrap()));
    assert_eq!(apply(&state, entry(3, vec![unpin("n1"), pin("n2")], vec![])), [Done, Done]);
    assert_eq!(state.view().pin, Some("n2".parse().unwrap()));
}

/// While entries are applied and checkpoints cut, the check sees nothing wrong; a flipped byte of a durable page it does see.
#[test]
fn the_database_is_checked_while_it_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let log = story();
    let last = log.len() as u64;
    state.apply(&log).unwrap();
    state.checkpoint().unwrap();
    std::thread::scope(|scope| {
        let checking = scope.spawn(|| {
            for _ in 0..20 {
                state.check_database().unwrap();
            }
        });
        for index in last + 1.. {
            apply(&state, entry(index, vec![create(&format!("r{index}"))], vec![]));
            if index % 5 == 0 {
                state.checkpoint().unwrap();
            }
            if checking.is_finished() {
                break;
            }
        }
    });
    state.checkpoint().unwrap();
    let path = dir.path().join("state.redb");
    let sound = std::fs::read(&path).unwrap();
    let needle = b"repo/r";
    let places = sound.windows(needle.len()).enumerate().filter(|(_, window)| window == needle);
    let mut spoiled = sound.clone();
    places.for_each(|(at, _)| spoiled[at] ^= 1);
    std::fs::write(&path, &spoiled).unwrap();
    let error = state.check_database().unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("state.redb is damaged"), "{error}");
    std::fs::write(&path, &sound).unwrap();
    state.check_database().unwrap();
}
