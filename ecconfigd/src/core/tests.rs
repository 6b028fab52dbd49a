#![allow(clippy::unwrap_used)]

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
    CoreOptions { data: data.to_owned(), node: "n1".parse().unwrap(), address: "127.0.0.1:1".into(), limits }
}

pub(crate) fn author() -> Author {
    Author { user: "admin".into(), name: "Ad Min".into(), email: "admin@test".into() }
}

pub(crate) fn first() -> Bootstrap {
    let file = |path: &str, text: &'static str| TemplateFile {
        path: path.into(),
        content: Bytes::from_static(text.as_bytes()),
        executable: false,
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
