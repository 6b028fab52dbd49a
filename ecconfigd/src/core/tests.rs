#![allow(clippy::unwrap_used)]

mod old_data;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use repos::{Content, RepoPath, TreeChange};

use super::*;
use crate::commit::RepoChange;
use crate::state::Role;

pub(crate) fn name(text: &str) -> RepoName {
    text.parse().unwrap()
}

pub(crate) fn options(data: &Path) -> CoreOptions {
    let limits = CoreLimits { segment_bytes: 1 << 20, ..CoreLimits::default() };
    CoreOptions {
        data: data.to_owned(),
        node: "n1".parse().unwrap(),
        address: "127.0.0.1:1".into(),
        peers: Default::default(),
        limits,
    }
}

pub(crate) fn author() -> Author {
    Author { user: "admin".into(), name: "Ad Min".into(), email: "admin@test".into() }
}

pub(crate) fn first() -> Bootstrap {
    let file = |path: &str, text: &'static str| TemplateFile {
        path: path.parse().unwrap(),
        mode: repos::Mode::File,
        content: Bytes::from_static(text.as_bytes()),
    };
    let admin = UserRecord {
        name: "admin".into(),
        password_hash: "x".into(),
        role: Role::Admin,
        full_name: String::new(),
        email: String::new(),
        created_time_ms: 1,
        generation: 0,
    };
    Bootstrap {
        cluster: "test".into(),
        admin,
        subcluster: name("default"),
        repos: vec![
            (name("default"), vec![file("default/a.txt", "one\ntwo\nthree\n")]),
            (name("global"), vec![file("readme", "hello\n")]),
        ],
    }
}

pub(crate) fn put(path: &str, text: &str) -> TreeChange {
    let content = Content::Bytes(Bytes::from(text.to_owned()));
    TreeChange::Put { path: RepoPath::new(path).unwrap(), mode: None, content }
}

pub(crate) fn request(base: u64, changes: Vec<TreeChange>) -> CommitRequest {
    let change = RepoChange { base: RevisionSpec::Number(base), changes };
    CommitRequest {
        author: author(),
        message: "change".into(),
        idempotency_key: None,
        repos: BTreeMap::from([(name("default"), change)]),
    }
}

pub(crate) async fn started(data: &Path) -> Core {
    Core::bootstrap(options(data), first()).await.unwrap()
}

pub(crate) async fn reopened(data: &Path) -> Core {
    let core = Core::open(options(data)).await.unwrap();
    core.wait_ready(Duration::from_secs(10)).await.unwrap();
    core
}

pub(crate) fn text_at(core: &Core, commit: Oid, path: &str) -> Option<String> {
    let reader = core.store(&name("default")).unwrap().reader().unwrap();
    let file = reader.read(commit, &RepoPath::new(path).unwrap(), 1 << 20).unwrap()?;
    Some(String::from_utf8(file.data).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_has_its_first_state() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let heads = core.heads(&[&name("default"), &name("global")]).unwrap();
    assert_eq!((heads[0].revision, heads[1].revision), (1, 1));
    assert_eq!(text_at(&core, heads[0].commit, "default/a.txt").unwrap(), "one\ntwo\nthree\n");
    let target = core.target(&"n1".parse().unwrap()).unwrap();
    assert_eq!(target.record.serial, 1);
    assert_eq!(target.record.repos.len(), 2);
    assert_eq!(core.user("admin").unwrap().unwrap().role, Role::Admin);
    assert_eq!(core.group().leader.as_deref(), Some("n1"));
    let registry = cluster::telemetry::Metrics::new("ecconfigd", "n1");
    core.register_metrics(&registry);
    let text = registry.render();
    assert!(text.contains("\necconfigd_log_syncs_total ") && text.contains("\necconfigd_state_hash "), "{text}");
    assert!(matches!(core.revision(&name("default"), 2).await, Err(Error::NotFound { .. })));
    core.shutdown().await;
    assert!(matches!(Core::bootstrap(options(dir.path()), first()).await, Err(Error::Exists { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let answer = core.commit(request(1, vec![put("default/b.txt", "b\n")])).await.unwrap();
    let committed = answer.repos[&name("default")];
    assert_eq!((committed.head.revision, committed.changed), (2, true));
    core.shutdown().await;
    drop(core);

    let core = reopened(dir.path()).await;
    assert_eq!(core.head(&name("default")).unwrap(), committed.head);
    assert_eq!(text_at(&core, committed.head.commit, "default/b.txt").unwrap(), "b\n");
    let answer = core.commit(request(2, vec![put("default/b.txt", "c\n")])).await.unwrap();
    assert_eq!(answer.repos[&name("default")].head.revision, 3);
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_wait_for_a_revision() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let waiting = {
        let core = core.clone();
        tokio::spawn(async move { core.wait_revision(&name("default"), 2, Duration::from_secs(30)).await })
    };
    core.commit(request(1, vec![put("default/x", "x")])).await.unwrap();
    waiting.await.unwrap().unwrap();
    let late = core.wait_revision(&name("default"), 9, Duration::from_millis(10)).await;
    assert!(matches!(late, Err(Error::Unavailable(_))));
    core.linearize().await.unwrap();
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_found_by_number_and_commit() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let repo = name("default");
    let head = core.commit(request(1, vec![put("default/x", "x")])).await.unwrap().repos[&repo].head;
    let hex = head.commit.to_string();
    // Digits alone would be a revision number.
    let prefix = (7..40).map(|end| &hex[..end]).find(|prefix| prefix.bytes().any(|b| b.is_ascii_alphabetic())).unwrap();
    for text in ["2", "r2", &hex, prefix] {
        let found = core.resolve(&repo, &text.parse().unwrap()).await.unwrap();
        assert_eq!((found.commit, found.revision), (head.commit, Some(2)), "{text}");
    }
    for text in ["3", "r0", "0123456789", "0123456789012345678901234567890123456789"] {
        assert!(matches!(core.resolve(&repo, &text.parse().unwrap()).await, Err(Error::NotFound { .. })), "{text}");
    }
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_nodes_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let version = core.accounts_version();
    let token = TokenRecord {
        id: "t".into(),
        secret_sha256: [1; 32],
        user: "admin".into(),
        name: "ci".into(),
        created_time_ms: 0,
        expires_time_ms: 0,
        expires_clock_ms: core.clock_ms() + 60_000,
    };
    core.put_token(token.clone()).await.unwrap();
    assert!(core.accounts_version() > version);
    assert_eq!(core.token("t").unwrap().unwrap().name, "ci");
    core.put_token(TokenRecord { id: "old".into(), expires_clock_ms: 0, ..token.clone() }).await.unwrap();
    assert!(core.token("old").unwrap().is_none(), "an expired token is not found");
    let nobody = TokenRecord { user: "nobody".into(), ..token };
    assert!(matches!(core.put_token(nobody).await, Err(Error::NotFound { .. })));
    let report =
        |node: &str| ReportRecord { node: node.parse().unwrap(), program: "agent".into(), json: b"{}".to_vec() };
    let known = futures::future::join_all((0..100).map(|_| core.report(report("n1")))).await;
    assert!(known.iter().all(Result::is_ok));
    assert!(matches!(core.report(report("n9")).await, Err(Error::NotFound { .. })));
    assert_eq!(core.reports(&"n1".parse().unwrap()).unwrap().len(), 1);
    core.delete_user("admin").await.unwrap();
    assert!(core.tokens(None).unwrap().is_empty());
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_that_was_killed_is_started_over() {
    let dir = tempfile::tempdir().unwrap();
    started(dir.path()).await.shutdown().await;
    // As if it had been killed just before the end.
    std::fs::write(dir.path().join("bootstrap.unfinished"), b"").unwrap();
    let error = Core::open(options(dir.path())).await.err().unwrap().to_string();
    assert!(error.contains("never finished"), "{error}");
    let core = started(dir.path()).await;
    assert_eq!(core.head(&name("default")).unwrap().revision, 1);
    core.shutdown().await;
    let error = Core::open(CoreOptions { node: "n2".parse().unwrap(), ..options(dir.path()) }).await.err().unwrap();
    assert!(error.to_string().contains("belongs to node n1"), "{error}");
}

/// Compaction keeps the log short, and what it dropped is in the state.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_compacted_and_a_restart_still_has_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.limits.compact_entries = 20;
    options.limits.checkpoint_entries = 5;
    options.limits.segment_bytes = 32 << 10;
    let core = Core::bootstrap(options.clone(), first()).await.unwrap();
    for number in 0..120 {
        core.commit(request(1, vec![put(&format!("default/f{number}"), &"x".repeat(500))])).await.unwrap();
    }
    let segments = || std::fs::read_dir(dir.path().join("raft")).unwrap().count();
    let first_segment = dir.path().join("raft/0000000000000001.seg");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while first_segment.exists() {
        assert!(std::time::Instant::now() < deadline, "{} segments", segments());
        // Maintenance runs by the clock; there is no event to wait for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (hash, head) = (core.group().state_hash, core.head(&name("default")).unwrap());
    core.shutdown().await;
    drop(core);
    let core = Core::open(options).await.unwrap();
    core.wait_ready(Duration::from_secs(10)).await.unwrap();
    assert_eq!(core.head(&name("default")).unwrap(), head);
    assert_ne!(core.group().state_hash, hash, "the new leader's blank entry counts");
    core.commit(request(121, vec![put("default/after", "x")])).await.unwrap();
    core.shutdown().await;
}

const CHILD: &str = "ECCONFIGD_TEST_CHILD";

/// Not a test: what [`kill_9_loses_no_acknowledged_commit`] kills.
#[test]
fn child_that_commits_until_it_is_killed() {
    let Some(data) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut options = options(Path::new(&data));
        options.limits.checkpoint_entries = 7;
        options.limits.compact_entries = 30;
        options.limits.segment_bytes = 64 << 10;
        let core = Core::open(options).await.unwrap();
        core.wait_ready(Duration::from_secs(20)).await.unwrap();
        for number in 0.. {
            let mut request = request(1, vec![put(&format!("default/{}/{number}", std::process::id()), "x")]);
            let global = RepoChange { base: RevisionSpec::Number(1), changes: vec![put("n", &number.to_string())] };
            let base = core.head(&name("global")).unwrap().revision;
            request.repos.insert(name("global"), RepoChange { base: RevisionSpec::Number(base), ..global });
            let answer = core.commit(request).await.unwrap();
            let (one, other) = (answer.repos[&name("default")].head, answer.repos[&name("global")].head);
            println!("ack {} {} {} {}", one.revision, one.commit, other.revision, other.commit);
        }
    });
}

#[test]
fn kill_9_loses_no_acknowledged_commit() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { started(dir.path()).await.shutdown().await });
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "core::tests::child_that_commits_until_it_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // A different number of commits, and then somewhere inside the next one.
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = 5 + 11 * round;
        let mut seen = 0;
        for line in lines {
            let line = line.unwrap();
            let Some(at) = line.find("ack ") else { continue };
            acknowledged.push(line[at + 4..].to_owned());
            seen += 1;
            if seen == wanted {
                std::thread::sleep(Duration::from_micros(700 * round));
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= wanted, "round {round}: the child ended by itself after {seen}");
    }
    runtime.block_on(async {
        let core = reopened(dir.path()).await;
        for line in &acknowledged {
            let parts: Vec<&str> = line.split(' ').collect();
            for (repo, at) in [("default", 0), ("global", 2)] {
                let record = core.revision(&name(repo), parts[at].parse().unwrap()).await.unwrap();
                assert_eq!(record.commit.to_string(), parts[at + 1], "{line}");
            }
        }
        let (default, global) = (core.head(&name("default")).unwrap(), core.head(&name("global")).unwrap());
        assert_eq!(default.revision, global.revision, "both repositories moved together every time");
        for (repo, head) in [("default", default), ("global", global)] {
            let store = core.store(&name(repo)).unwrap();
            assert_eq!(store.verify(&[head.commit]).unwrap(), [], "every object is there");
            let log =
                store.reader().unwrap().log(head.commit, &repos::LogOptions { limit: 10_000, ..Default::default() });
            assert_eq!(log.unwrap().len() as u64, head.revision);
        }
        core.shutdown().await;
    });
}

async fn failed(core: &Core) -> String {
    let mut readiness = core.watch_readiness();
    let wait = readiness.wait_for(|now| matches!(now, Readiness::Failed(_)));
    match tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap().unwrap().clone() {
        Readiness::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

/// A disk that fails under the stores: nothing more is applied, the node says so, and what was acknowledged is in the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_checkpoint_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    core.commit(request(1, vec![put("default/x", "x")])).await.unwrap();
    let objects = dir.path().join("repos/default.git/objects");
    std::fs::rename(&objects, dir.path().join("away")).unwrap();
    assert!(core.checkpoint().await.is_err());
    std::fs::rename(dir.path().join("away"), &objects).unwrap();
    // Nobody knows what the failed sync left behind, so the node does not go on even if the next one would succeed.
    assert!(core.checkpoint().await.is_err());
    assert!(matches!(core.commit(request(2, vec![put("default/y", "y")])).await, Err(Error::Unavailable(_))));
    assert!(failed(&core).await.contains("stopped it"));
    core.shutdown().await;
    drop(core);
    let core = reopened(dir.path()).await;
    let head = core.head(&name("default")).unwrap();
    assert_eq!(text_at(&core, head.commit, "default/x").as_deref(), Some("x"));
    core.shutdown().await;
}

/// A log that cannot open its next segment takes nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_grow_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    std::fs::rename(dir.path().join("raft"), dir.path().join("away")).unwrap();
    let mut acknowledged = 1;
    let error = loop {
        let change = put(&format!("default/f{acknowledged}"), &crate::commit::noise_text(100_000));
        match core.commit(request(1, vec![change])).await {
            Ok(answer) => acknowledged = answer.repos[&name("default")].head.revision,
            Err(error) => break error,
        }
        assert!(acknowledged < 100, "the segment has 1 MiB");
    };
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(failed(&core).await.contains("no more writes"));
    core.shutdown().await;
    drop(core);
    std::fs::rename(dir.path().join("away"), dir.path().join("raft")).unwrap();
    let core = reopened(dir.path()).await;
    assert_eq!(core.head(&name("default")).unwrap().revision, acknowledged, "the one that failed was never written");
    core.shutdown().await;
}
