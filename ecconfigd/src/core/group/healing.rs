//! Members whose state or objects are spoiled: they step aside, and come back as the others are.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use super::super::Readiness;
use super::super::tests::{first, name, text_at};
use super::*;
use crate::commit::Propose as _;
use crate::raft::command::Op;

/// Packs of the repository `default`.
fn packs(data: &Path) -> Vec<PathBuf> {
    let dir = data.join("repos/default.git/objects/pack");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut packs: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "pack")).collect();
    packs.sort();
    packs
}

/// Changes a byte in the middle of a file.
fn flip(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Changes bytes all over a database: the middle alone may be free.
fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes.iter_mut().skip(5000).step_by(1000).for_each(|byte| *byte ^= 0x20);
    std::fs::write(path, bytes).unwrap();
}

fn kept_aside(member: &Member) -> Vec<String> {
    let entries = std::fs::read_dir(member.data().join("damaged")).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn healed(group: &Group, node: &str, times: u64) -> bool {
    let core = group.member(node).core();
    core.health().healed() == times && core.out().is_none() && core.readiness() == Readiness::Ready
}

/// Everything in the repository can be read, here and by its refs.
fn is_whole(core: &Core) {
    let tips: Vec<_> = core.refs(&name("default")).unwrap().values().copied().collect();
    assert_eq!(core.store(&name("default")).unwrap().verify(&tips).unwrap(), []);
}

fn tables_are_equal(group: &Group) {
    let dump = |member: &Member| member.core().inner.proposer.state.dump();
    let first = dump(&group.members[0]);
    assert!(group.members.iter().all(|member| dump(member) == first));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_differs_from_the_majority_renews_its_state() {
    let mut group = Group::start(3).await;
    group.commit("default/a", "1").await;
    group.converge().await;
    // The leader's running hash: as if it had applied something else.
    let bad = group.leader().await.name.clone();
    group.member(&bad).core().inner.proposer.state.spoil_hash();
    group.wait("the leader steps aside and is renewed", |group| healed(group, &bad, 1)).await;
    // A row that nobody wrote: the running hash does not notice, the digest behind the next tick does.
    let leader = group.leader().await.name.clone();
    let worse = group.others(&leader).remove(0);
    group.member(&worse).core().inner.proposer.state.spoil_table();
    group.leader_core().unwrap().inner.proposer.one(Op::Tick).await.unwrap();
    let times = if worse == bad { 2 } else { 1 };
    group.wait("the other steps aside and is renewed", |group| healed(group, &worse, times)).await;
    group.commit("default/b", "2").await;
    group.converge().await;
    tables_are_equal(&group);
    assert_eq!(kept_aside(group.member(&worse)).last().map(|name| name.ends_with("-state")), Some(true));
    let others = group.members.iter().filter(|member| member.name != bad && member.name != worse);
    assert!(others.into_iter().all(|member| member.core().health().healed() == 0), "somebody else was blamed");
    // What it has learned survives a restart, the marker is gone.
    group.member_mut(&worse).kill().await;
    group.member_mut(&worse).start().await;
    group.member(&worse).core().wait_ready(PATIENCE).await.unwrap();
    assert_eq!(group.member(&worse).core().out(), None);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spoiled_files_are_found_and_replaced() {
    let mut group = Group::start(3).await;
    for number in 0..5 {
        group.commit(&format!("default/{number}"), &"text ".repeat(30)).await;
    }
    group.converge().await;
    let leader = group.leader().await.name.clone();
    let node = group.others(&leader).remove(0);

    // While it runs: found by whoever reads all of it.
    group.member(&node).core().checkpoint().await.unwrap();
    flip(&packs(group.member(&node).data())[0]);
    let found = group.member(&node).core().scrub(|_, _| true).await.unwrap();
    assert!(!found.problems.is_empty());
    group.wait("the pack is replaced", |group| healed(group, &node, 1)).await;
    is_whole(group.member(&node).core());

    // While it is down: nothing of it is served before it is right.
    group.member_mut(&node).kill().await;
    let data = group.member(&node).data().to_owned();
    packs(&data).iter().for_each(|path| flip(path));
    spoil(&data.join("state.redb"));
    let revision = group.commit("default/meanwhile", "1").await;
    group.member_mut(&node).start().await;
    assert!(group.member(&node).core().out().is_some());
    group.wait("packs and database are replaced", |group| healed(group, &node, 1)).await;
    let core = group.member(&node).core();
    core.wait_revision(&name("default"), revision, PATIENCE).await.unwrap();
    is_whole(core);
    assert_eq!(text_at(core, core.head(&name("default")).unwrap().commit, "default/meanwhile").unwrap(), "1");
    assert!(kept_aside(group.member(&node)).iter().any(|name| name.ends_with("-state")));
    group.converge().await;
    tables_are_equal(&group);
    group.stop().await;
}

/// Database and snapshot are gone, and the log begins behind them: it says what to do, and starts nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_again_is_told_with_the_way_out() {
    let limits = CoreLimits { checkpoint_entries: 1, compact_entries: 4, ..CoreLimits::default() };
    let mut group = Group::with(1, limits).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut number = 0;
    while group.member("n1").purged() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the log is never compacted");
        number += 1;
        group.commit(&format!("default/{number}"), "text").await;
    }
    let member = group.member_mut("n1");
    member.stop().await;
    let data = member.data().to_owned();
    spoil(&data.join("state.redb"));
    flip(&data.join("snapshot"));
    let error = Core::open(member.options()).await.err().unwrap().to_string();
    assert!(error.contains("eccfg node replace") && error.contains("neither the database nor the snapshot"), "{error}");
    let kept = kept_aside(member);
    assert!(["-state", "-snapshot"].iter().all(|what| kept.iter().any(|name| name.ends_with(what))), "{kept:?}");
}

/// Where there is nobody to ask it says so and what to do, and answers nothing from what is left.
#[tokio::test]
async fn alone_it_stays_out_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CoreOptions {
        data: dir.path().to_owned(),
        node: "n1".parse().unwrap(),
        address: "n1:2027".into(),
        peers: Default::default(),
        limits: CoreLimits::default(),
    };
    let core = Core::bootstrap(options(), first()).await.unwrap();
    core.shutdown().await;
    drop(core);
    // A snapshot and no more log: what is lost here is lost.
    let pack = packs(dir.path()).remove(0);
    let sound = std::fs::read(&pack).unwrap();
    flip(&pack);
    std::fs::remove_file(pack.with_extension("idx")).unwrap();
    std::fs::remove_file(&pack).unwrap();
    let core = Core::open(options()).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    core.health().doubt_objects();
    let found = core.scrub(|_, _| true).await.unwrap();
    assert!(!found.problems.is_empty());
    let why = core.out().unwrap();
    assert!(why.contains("this node has taken itself out: its objects are damaged"), "{why}");
    let error = super::super::health::objects::heal(&core).await.unwrap_err();
    assert!(error.contains("there is no other member to fetch it from"), "{error}");
    // The instruction is enough.
    core.shutdown().await;
    drop(core);
    std::fs::write(&pack, sound).unwrap();
    let status = std::process::Command::new("git").arg("index-pack").arg(&pack).output().unwrap();
    assert!(status.status.success());
    let core = Core::open(options()).await.unwrap();
    while core.readiness() != Readiness::Ready {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", core.readiness());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    core.shutdown().await;
}
