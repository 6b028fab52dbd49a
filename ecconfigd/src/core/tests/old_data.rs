//! A whole data directory of version 1, as a build wrote it once and was killed: log, state, snapshot, packs, uploads. It must open for ever.
//!
//! `write_the_fixture` writes it anew, once per version of a format: into a new file, so that the old ones stay.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use repos::{Draft, NewCommit, PackLimits, RefName, Signature};

use super::*;
use crate::commit::{Propose as _, PushCommand, PushRequest};
use crate::raft::command::{Op, UploadId};
use crate::state::{NodeTokenRecord, TokenRecord};

const BRANCH: &str = "refs/heads/topic";
const UPLOADED: &[u8] = b"the first chunk of a pack";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/data-v1.tar.gz")
}

fn tar(args: &[&str], dir: &Path) {
    let status =
        Command::new("tar").args(args).arg(fixture()).arg("-C").arg(dir).args(tar_what(args)).status().unwrap();
    assert!(status.success(), "tar {args:?}");
}

fn tar_what(args: &[&str]) -> &'static [&'static str] {
    if args.contains(&"-czf") { &["raft", "repos", "state.redb", "snapshot", "uploads", "expected"] } else { &[] }
}

fn unpacked() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tar(&["-xzf"], dir.path());
    dir
}

fn small(data: &Path) -> CoreOptions {
    let mut options = options(data);
    options.limits.segment_bytes = 64 << 10;
    options
}

fn keyed(base: u64, key: &str) -> CommitRequest {
    let change = |path: &str| RepoChange { base: RevisionSpec::Number(base), changes: vec![put(path, "of both\n")] };
    CommitRequest {
        idempotency_key: Some(key.into()),
        repos: BTreeMap::from([(name("default"), change("default/both.txt")), (name("global"), change("both.txt"))]),
        ..request(base, vec![])
    }
}

/// Where a directory has come to.
fn summary(core: &Core) -> String {
    let view = core.view();
    let heads: Vec<String> = view.repos.iter().map(|(name, repo)| format!("{name} {:?}", repo.record.head)).collect();
    let hash = core.inner.proposer.state.hash_at(view.applied_index()).unwrap();
    format!("{}\n{}\n{}\n", view.applied_index(), hex::encode(hash), heads.join("\n"))
}

/// Something of everything that a directory can hold.
async fn fill(core: &Core) {
    core.commit(request(1, vec![put("default/b.txt", "b\n")])).await.unwrap();
    core.commit(keyed(1, "the key")).await.unwrap();
    let propose = |op| async { core.inner.proposer.one(op).await.unwrap() };
    let token = TokenRecord {
        id: "t1".into(),
        secret_sha256: [7; 32],
        user: "admin".into(),
        name: "for tests".into(),
        created_time_ms: 5,
        expires_time_ms: u64::MAX,
        expires_clock_ms: u64::MAX,
    };
    propose(Op::PutToken(token)).await;
    let node_token = NodeTokenRecord {
        id: "nt1".into(),
        secret_sha256: [8; 32],
        subcluster: name("default"),
        created_by: "admin".into(),
        expires_clock_ms: u64::MAX,
    };
    propose(Op::PutNodeToken(node_token)).await;
    propose(Op::CopyRepo { from: name("default"), to: name("copy") }).await;
    propose(Op::Freeze { repo: name("copy"), frozen: true }).await;
    propose(Op::Tick).await;
    let chunk = Op::Chunk { upload: UploadId([9; 16]), offset: 0, attachment: 0 };
    core.inner.proposer.propose(vec![chunk], vec![Bytes::from_static(UPLOADED)]).await.unwrap();
}

/// A branch, pushed with a pack of its own.
async fn push_branch(core: &Core) {
    let store = core.store(&name("default")).unwrap();
    let tip = core.head(&name("default")).unwrap().commit;
    let mut draft = Draft::new(&store).unwrap();
    let tree = draft.tree_of(tip).unwrap();
    let tree = draft.apply(tree, &[put("default/topic.txt", "on a branch\n")]).unwrap();
    let who = Signature { name: "Dev".into(), email: "dev@test".into(), time_s: 5, offset_min: 60 };
    let message = "On a branch\n".to_owned();
    let new = NewCommit { tree, parents: vec![tip], author: who.clone(), committer: who, message };
    let new = draft.commit(&new).unwrap();
    let pack = draft.pack_of(&[new]).unwrap().unwrap();
    let mut quarantine = store.quarantine().unwrap();
    quarantine.receive(&mut pack.as_slice(), &PackLimits::default()).unwrap();
    let commands = vec![PushCommand { name: RefName::try_from(BRANCH).unwrap(), old: Oid::NULL, new }];
    let quarantine = Some(quarantine);
    let push = PushRequest { repo: name("default"), author: author(), commands, atomic: false, quarantine };
    assert!(core.push(push).await.unwrap().refs.iter().all(|(_, result)| result.is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes the fixture: once per version of a format"]
async fn write_the_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = small(dir.path());
    // Only the checkpoints that are asked for.
    (options.limits.checkpoint_interval, options.limits.checkpoint_entries) = (Duration::from_secs(3600), u64::MAX);
    let core = Core::bootstrap(options, first()).await.unwrap();
    fill(&core).await;
    let raft = &core.inner.proposer.raft;
    raft.trigger().snapshot().await.unwrap();
    let covered = core.view().applied_index();
    raft.wait(Some(Duration::from_secs(10))).metrics(|m| m.snapshot.is_some(), "a snapshot").await.unwrap();
    raft.trigger().purge_log(covered - 2).await.unwrap();
    push_branch(&core).await;
    core.checkpoint().await.unwrap();
    // What only the log has.
    core.commit(request(3, vec![put("default/c.txt", "c\n")])).await.unwrap();
    std::fs::write(dir.path().join("expected"), summary(&core)).unwrap();
    tar(&["-czf"], dir.path());
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_version_1_opens_with_all_that_it_holds() {
    let dir = unpacked();
    let expected = std::fs::read_to_string(dir.path().join("expected")).unwrap();
    let core = Core::open(small(dir.path())).await.unwrap();
    core.wait_ready(Duration::from_secs(20)).await.unwrap();
    let state = core.inner.proposer.state.clone();
    let mut lines = expected.lines();
    let (index, hash) = (lines.next().unwrap().parse().unwrap(), lines.next().unwrap());
    assert_eq!(hex::encode(state.hash_at(index).unwrap()), hash, "the same log gives another state");
    let view = core.view();
    let heads: Vec<String> = view.repos.iter().map(|(name, repo)| format!("{name} {:?}", repo.record.head)).collect();
    assert_eq!(heads, lines.collect::<Vec<_>>());

    let head = core.head(&name("default")).unwrap();
    for (path, text) in [("default/b.txt", "b\n"), ("default/both.txt", "of both\n"), ("default/c.txt", "c\n")] {
        assert_eq!(text_at(&core, head.commit, path).as_deref(), Some(text), "{path}");
    }
    let topic = view.repos[&name("default")].refs[&RefName::try_from(BRANCH).unwrap()];
    assert_eq!(text_at(&core, topic, "default/topic.txt").unwrap(), "on a branch\n");
    for repo in view.repos.values() {
        let tips: Vec<Oid> = repo.refs.values().copied().collect();
        assert_eq!(repo.store.verify(&tips).unwrap(), []);
    }
    assert!(view.repos[&name("copy")].record.frozen);
    assert_eq!(state.user("admin").unwrap().unwrap().role, Role::Admin);
    assert_eq!(state.token("t1").unwrap().unwrap().secret_sha256, [7; 32]);
    assert_eq!(state.node_token("nt1").unwrap().unwrap().created_by, "admin");
    assert!(state.snapshot_is_sound().unwrap() && state.current_snapshot().unwrap().is_some());
    let mut uploaded = Vec::new();
    std::io::Read::read_to_end(&mut state.open_upload(UploadId([9; 16])).unwrap(), &mut uploaded).unwrap();
    assert_eq!(uploaded, UPLOADED);

    // And it goes on: a request of then is known, a new one is done.
    let replayed = core.commit(keyed(1, "the key")).await.unwrap();
    assert!(replayed.replayed && replayed.repos[&name("global")].head.revision == 2, "{replayed:?}");
    let done = core.commit(request(head.revision, vec![put("default/d.txt", "d\n")])).await.unwrap();
    assert_eq!(done.repos[&name("default")].head.revision, head.revision + 1);
    core.shutdown().await;
}

/// Why a directory is refused after its file was changed. The file is as before then.
async fn refused_with(file: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let dir = unpacked();
    let path = match file {
        "raft/*.seg" => {
            let files = std::fs::read_dir(dir.path().join("raft")).unwrap().map(|entry| entry.unwrap().path());
            files.filter(|path| path.extension().is_some_and(|ext| ext == "seg")).max().unwrap()
        }
        file => dir.path().join(file),
    };
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, &bytes).unwrap();
    let error = match Core::open(small(dir.path())).await {
        Ok(_) => panic!("{file} of another version was opened"),
        Err(error) => error.to_string(),
    };
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "{file} was changed");
    assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{file} is not named: {error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_later_version_are_refused_by_name_and_left_alone() {
    let words = refused_with("raft/node.json", |json| {
        *json = br#"{"version":2,"raft_id":1,"node":"n1","what":"comes"}"#.to_vec();
    });
    assert!(words.await.contains("version 2, this build knows 1"));
    let words = refused_with("raft/*.seg", |bytes| {
        bytes[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..32]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(words.await.contains("log version 2, this build knows 1"));
    let words = refused_with("raft/*.seg", |bytes| {
        // The first record.
        let record = &mut bytes[32..];
        record[25] = 2;
        let end = 32 + u32::from_le_bytes(record[..4].try_into().unwrap()) as usize;
        let crc = crc32c::crc32c(&record[8..end]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(words.await.contains("version 2, which this build does not know"));
    let words = refused_with("snapshot", |bytes| {
        bytes[6] = 2;
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(words.await.contains("the snapshot has version 2, this build knows 1"));
}
