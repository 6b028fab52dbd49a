//! What a group does: elect, replicate, lose one, take one back.
#![allow(clippy::unwrap_used)]

use super::super::tests::{name, text_at};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_replicate_lose_one_and_take_it_back() {
    let mut group = Group::start(3).await;
    let revision = group.commit("default/a", "1").await;
    group.converge().await;
    for member in &group.members {
        let head = member.core().head(&name("default")).unwrap();
        assert!(head.revision >= revision);
        assert_eq!(text_at(member.core(), head.commit, "default/a").unwrap(), "1");
    }
    // The leader dies; the others go on.
    let dead = group.leader().await.name.clone();
    group.member_mut(&dead).kill().await;
    assert_ne!(group.leader().await.name, dead);
    let revision = group.commit("default/b", "2").await;
    // It comes back and has what it missed before it says that it is ready.
    group.member_mut(&dead).start().await;
    group.member(&dead).core().wait_ready(PATIENCE).await.unwrap();
    group.member(&dead).core().wait_revision(&name("default"), revision, PATIENCE).await.unwrap();
    group.converge().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_names_its_successor() {
    let mut group = Group::start(3).await;
    group.converge().await;
    let before = group.leader().await.name.clone();
    group.member_mut(&before).stop().await;
    assert_ne!(group.leader().await.name, before);
    group.commit("default/a", "1").await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_vote_and_go() {
    let mut group = Group::start(1).await;
    group.join("n2", false).await;
    let core = group.leader().await.core().clone();
    let role = |core: &Core, node: &str| core.group().members.iter().find(|m| m.node == node).map(|m| m.voter);
    assert_eq!(role(&core, "n2"), Some(false));
    core.set_voter(&"n2".parse().unwrap(), true).await.unwrap();
    group.wait("n2 votes", |_| role(&core, "n2") == Some(true)).await;
    core.set_voter(&"n2".parse().unwrap(), false).await.unwrap();
    group.wait("n2 does not vote", |_| role(&core, "n2") == Some(false)).await;
    assert!(core.set_voter(&"n1".parse().unwrap(), false).await.is_err(), "the last voter");
    assert!(core.remove_node(&"n1".parse().unwrap()).await.is_err(), "the last voter");
    // Again is harmless.
    core.set_voter(&"n2".parse().unwrap(), false).await.unwrap();
    core.remove_node(&"n2".parse().unwrap()).await.unwrap();
    group.wait("n2 is gone", |_| role(&core, "n2").is_none()).await;
    // A new machine of the same name is somebody else.
    let gone = group.member("n2").raft_id;
    group.member_mut("n2").stop().await;
    group.members.pop();
    group.join("n2", true).await;
    assert!(group.member("n2").raft_id > gone);
    group.wait("n2 votes", |_| role(&core, "n2") == Some(true)).await;
    group.stop().await;
}
