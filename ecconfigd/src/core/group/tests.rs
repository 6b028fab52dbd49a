//! What a group does: elect, replicate, lose one, take one back.
#![allow(clippy::unwrap_used)]

use super::super::Readiness;
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

/// Every revision's file, on this member.
fn all_files(member: &Member, revisions: u64) -> Vec<Option<String>> {
    let core = member.core();
    let store = core.inner.proposer.state.view().repos[&name("default")].store.clone();
    assert!(store.reader().is_ok());
    (2..=revisions)
        .map(|number| {
            let commit = core.inner.proposer.state.revision(&name("default"), number).unwrap().unwrap().commit;
            text_at(core, commit, "default/n")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_the_log_gets_a_snapshot_and_the_objects_it_lacks() {
    let limits = CoreLimits {
        segment_bytes: 1 << 20,
        compact_entries: 10,
        checkpoint_entries: 5,
        consolidate_packs: 8,
        ..CoreLimits::default()
    };
    let mut group = Group::with(1, limits).await;
    group.join("n2", false).await;
    group.commit("default/n", "first").await;
    group.converge().await;
    let had = group.member("n2").core().group().applied;
    group.member_mut("n2").stop().await;
    let mut revision = 0;
    for number in 0..60 {
        revision = group.commit("default/n", &number.to_string()).await;
    }
    group.wait("the log is compacted beyond it", |group| group.member("n1").purged() > had).await;
    // One that was away, and one that is new.
    group.member_mut("n2").start().await;
    group.member("n2").core().wait_ready(PATIENCE).await.unwrap();
    group.join("n3", false).await;
    group.converge().await;
    let expected = all_files(group.member("n1"), revision);
    for node in ["n2", "n3"] {
        let member = group.member(node);
        assert!(member.data().join("snapshot").exists(), "{node} was brought up by a snapshot");
        assert_eq!(all_files(member, revision), expected, "{node}");
    }
    // From here on the log serves again.
    group.commit("default/n", "last").await;
    group.converge().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_key_follows_the_vote() {
    let mut group = Group::start(1).await;
    group.join("n2", false).await;
    let core = group.leader().await.core().clone();
    let n2 = "n2".parse().unwrap();
    core.set_voter(&n2, true).await.unwrap();
    group.wait("the voter holds the key", |group| group.member("n2").holds_ca_key()).await;
    let key = |node: &str| std::fs::read(Ca::key_file(group.member(node).data())).unwrap();
    assert_eq!(key("n1"), key("n2"));
    core.set_voter(&n2, false).await.unwrap();
    group.wait("the learner does not", |group| !group.member("n2").holds_ca_key()).await;
    assert!(group.member("n1").holds_ca_key());
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_full_reads_and_the_others_go_on() {
    let mut group = Group::start(3).await;
    let before = group.commit("default/a", "1").await;
    group.converge().await;
    let full = group.leader().await.name.clone();
    // As if there were less room than is kept in reserve.
    group.member_mut(&full).stop().await;
    group.member_mut(&full).limits.min_free_bytes = Some((u64::MAX / 2).into());
    group.member_mut(&full).start().await;
    let is_read_only = |group: &Group| matches!(group.member(&full).core().readiness(), Readiness::ReadOnly(_));
    group.wait("it is read-only", is_read_only).await;
    let core = group.member(&full).core().clone();
    let refused = core.set_voter(&"n1".parse().unwrap(), true).await.unwrap_err();
    assert!(refused.to_string().contains("disk is full"), "{refused}");
    let after = group.commit("default/b", "2").await;
    assert!(after > before);
    assert_eq!(text_at(&core, core.head(&name("default")).unwrap().commit, "default/a").unwrap(), "1");
    assert!(core.head(&name("default")).unwrap().revision < after, "it writes nothing");
    // There is room again.
    drop(core);
    group.member_mut(&full).stop().await;
    group.member_mut(&full).limits.min_free_bytes = None;
    group.member_mut(&full).start().await;
    group.member(&full).core().wait_revision(&name("default"), after, PATIENCE).await.unwrap();
    group.stop().await;
}

/// With two voters nobody can be blamed for a difference, so both go on; and nothing is thawed before it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_thawed_while_replicas_differ() {
    let group = Group::start(2).await;
    let repo = name("default");
    group.leader().await.core().set_frozen(&repo, true).await.unwrap();
    group.converge().await;
    let other = group.member("n2").core().inner.proposer.state.clone();
    other.spoil_hash();
    for member in &group.members {
        let error = member.core().set_frozen(&repo, false).await.unwrap_err().to_string();
        assert!(error.contains("has another state than this node"), "{}: {error}", member.name);
        assert!(member.core().repo(&repo).unwrap().frozen && member.core().out().is_none());
    }
    // Once more, and it is as it was.
    other.spoil_hash();
    group.member("n2").core().set_frozen(&repo, false).await.unwrap();
    group.commit("default/a", "1").await;
    group.stop().await;
}

/// What such a member lacks is sent in another way: one append at a time, with rests.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_missed_many_entries_gets_them_all() {
    use crate::commit::Propose as _;
    use crate::raft::command::Op;

    let mut group = Group::start(3).await;
    let leader = group.leader().await.name.clone();
    let away = group.members.iter().map(|member| member.name.clone()).find(|name| *name != leader).unwrap();
    group.member_mut(&away).kill().await;
    let core = group.leader().await.core().clone();
    let (first, wanted) = (core.view().applied_index(), 2 * crate::raft::FAR_BEHIND);
    while core.view().applied_index() < first + wanted {
        let ticks = (0..64).map(|_| core.inner.proposer.one(Op::Tick));
        futures::future::join_all(ticks).await;
    }
    let revision = group.commit("default/a", "1").await;
    group.member_mut(&away).start().await;
    group.member(&away).core().wait_revision(&name("default"), revision, PATIENCE).await.unwrap();
    group.converge().await;
    group.stop().await;
}

/// The voters as this member has them in its log: one set, or two while a change is half done.
fn voter_sets(member: &Member) -> usize {
    let metrics = member.core().inner.proposer.raft.metrics().borrow_watched().clone();
    metrics.membership_config.membership().get_joint_config().len()
}

/// Has the leader begin to take a voter away and die before the second entry. Answers whether the change was half done then.
async fn die_in_the_middle(group: &mut Group, leader: &str, gone: u64) -> bool {
    let raft = group.member(leader).core().inner.proposer.raft.clone();
    let change = openraft::ChangeMembers::RemoveVoters(std::collections::BTreeSet::from([gone]));
    let both = async {
        let others = || group.members.iter().filter(|member| member.name != leader);
        while !others().any(|member| voter_sets(member) == 2) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = both => {}
        // The second entry may be on its way.
        done = raft.change_membership(change, true) => drop(done),
    }
    drop(raft);
    group.member_mut(leader).kill().await;
    let others = || group.members.iter().filter(|member| member.name != leader);
    others().any(|member| voter_sets(member) == 2)
}

/// A leader dies between the two entries of a change of the voters. The next one has to end what was begun, also where that leaves itself
/// without a vote, and whether it is asked for other changes at once or for nothing: all who vote in either set look like voters then.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_leader_began_is_ended_before_anything_else() {
    let mut group = Group::start(3).await;
    group.join("n4", false).await;
    for (leader_goes, asked) in [(true, true), (false, true), (false, false)] {
        let mut half_done = false;
        for _ in 0..20 {
            let leader = group.leader().await.name.clone();
            let mut gone = group.members.iter().filter(|member| member.name != "n4");
            let gone = gone.find(|member| (member.name == leader) == leader_goes).unwrap().raft_id;
            half_done = die_in_the_middle(&mut group, &leader, gone).await;
            // As soon as somebody leads, while the voters are still two sets.
            group.member_mut(&leader).start().await;
            let core = group.leader().await.core().clone();
            if asked {
                let wanted = core.view().members[&"n4".parse().unwrap()].voter;
                let done = core.set_voter(&"n4".parse().unwrap(), !wanted).await;
                assert!(!matches!(done, Err(crate::error::Error::NotPossible(_))), "{done:?}");
            }
            group
                .wait("the voters are those of the records", |group| {
                    let Some(core) = group.leader_core() else { return false };
                    let voters = core.view().members.values().filter(|member| member.voter).count();
                    settled_voters(core) == voters && core.group().members.len() == 4
                })
                .await;
            if half_done {
                break;
            }
        }
        assert!(half_done, "the leader was never killed in time");
    }
    for member in &group.members {
        member.core().wait_ready(PATIENCE).await.unwrap();
    }
    group.commit("default/a", "1").await;
    group.converge().await;
    group.stop().await;
}
