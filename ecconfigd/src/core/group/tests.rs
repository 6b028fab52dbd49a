//! What a group does: elect, replicate, lose one, take one back.
#![allow(clippy::unwrap_used)]

use openraft::entry::RaftEntry as _;
use openraft::{RaftLogReader, ReadPolicy};

use super::super::Readiness;
use super::super::tests::{name, text_at};
use super::*;
use crate::raft::TypeConfig;
use crate::raft::log::LogStore;

type Metrics = openraft::RaftMetrics<TypeConfig>;

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

/// A member that is far behind would get a snapshot with all objects; while its disk is full it takes none.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_full_takes_no_snapshot() {
    let limits = CoreLimits {
        segment_bytes: 1 << 20,
        compact_entries: 10,
        checkpoint_entries: 5,
        min_free_bytes: Some(0.into()),
        ..CoreLimits::default()
    };
    let mut group = Group::with(1, limits).await;
    group.join("n2", false).await;
    let had = group.commit("default/n", "first").await;
    group.converge().await;
    let applied = group.member("n2").core().group().applied;
    group.member_mut("n2").stop().await;
    let mut revision = 0;
    for number in 0..60 {
        revision = group.commit("default/n", &number.to_string()).await;
    }
    group.wait("the log is compacted beyond it", |group| group.member("n1").purged() > applied).await;
    group.member_mut("n2").limits.min_free_bytes = Some((u64::MAX / 2).into());
    group.member_mut("n2").start().await;
    let core = group.member("n2").core().clone();
    group.wait("it is read-only", |_| core.read_only().is_some()).await;
    // The leader offers it several times a second.
    let packs = || core.store(&name("default")).unwrap().packs().unwrap().len();
    let before = packs();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((core.head(&name("default")).unwrap().revision, packs()), (had, before), "it took the snapshot");
    core.adjust(&CoreLimits { min_free_bytes: Some(0.into()), ..CoreLimits::default() });
    group.wait("it takes part again", |_| core.read_only().is_none()).await;
    // A snapshot that was refused is offered again with what is written next.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while core.head(&name("default")).unwrap().revision < revision {
        assert!(tokio::time::Instant::now() < deadline, "it does not catch up");
        group.commit("default/n", "more").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(core);
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
    let away = group.others(&leader).remove(0);
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

/// Kills all but one, and waits until that one says that it is not ready.
async fn leave_alone(group: &mut Group, left: &str) -> Core {
    let others = group.others(left);
    for other in &others {
        group.member_mut(other).kill().await;
    }
    let core = group.member(left).core().clone();
    let says = |_: &Group| matches!(core.readiness(), Readiness::Starting(_));
    group.wait("it says that it is alone", says).await;
    core
}

async fn start_all(group: &mut Group) {
    for member in &mut group.members {
        if member.running.is_none() {
            member.start().await;
        }
    }
    for member in &group.members {
        member.core().wait_ready(PATIENCE).await.unwrap();
    }
}

/// Raft goes on naming the last leader; who asks here, or waits for news, has to be told all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_hears_from_nobody_says_so_and_sends_its_watchers_on() {
    let mut group = Group::start(3).await;
    group.commit("default/a", "1").await;
    group.converge().await;
    // One that follows.
    let leader = group.leader().await.name.clone();
    let left = group.others(&leader).remove(0);
    let node = "n1".parse().unwrap();
    let serial = group.member(&left).core().target(&node).unwrap().record.serial;
    let mut watch = group.member(&left).core().watch(&name("default"), None, &[]).unwrap();
    let core = leave_alone(&mut group, &left).await;
    assert!(core.may_be_followed().is_ok(), "it may be over in a moment");
    // Somebody who has seen more than this node: it cannot say whether there is more, and does not lead him back.
    let error = core.target_from(&node, Some(serial + 1)).await.unwrap_err();
    assert!(matches!(error, crate::error::Error::NotDone(_)), "{error}");
    assert_eq!(core.target_from(&node, Some(serial)).await.unwrap().record.serial, serial);
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await;
    assert!(matches!(ended, Ok(None)), "the watcher is sent on: {ended:?}");
    // It would keep the database open, if this member is killed later.
    drop(watch);
    assert!(core.may_be_followed().is_err());
    start_all(&mut group).await;
    group.wait("it may be followed again", |_| core.may_be_followed().is_ok()).await;
    // Now it can say: he followed something else.
    assert_eq!(core.target_from(&node, Some(serial + 1)).await.unwrap().record.serial, serial);
    drop(core);
    // One that leads.
    let leader = group.leader().await.name.clone();
    let core = leave_alone(&mut group, &leader).await;
    start_all(&mut group).await;
    drop(core);
    group.commit("default/b", "2").await;
    group.converge().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_says_so_and_serves_nothing() {
    let mut group = Group::start(3).await;
    group.commit("default/a", "1").await;
    group.converge().await;
    let leader = group.leader().await.name.clone();
    let others = group.others(&leader);
    let core = group.member(&leader).core().clone();
    let gone = |core: &Core, node: &str| !core.group().members.iter().any(|member| member.node == node);
    // While it is away: nobody tells it but those that it calls.
    group.member_mut(&others[0]).kill().await;
    core.remove_node(&others[0].parse().unwrap()).await.unwrap();
    group.wait("the group goes on without it", |_| gone(&core, &others[0])).await;
    let term = core.group().term;
    group.member_mut(&others[0]).start().await;
    let says = |group: &Group, node: &str| {
        group.member(node).core().out().is_some_and(|why| why.contains("no member of the cluster any more"))
    };
    group.wait("it says so", |group| says(group, &others[0])).await;
    let removed = group.member(&others[0]).core().clone();
    assert!(matches!(removed.readiness(), Readiness::Out(_)), "{:?}", removed.readiness());
    assert!(removed.set_voter(&others[1].parse().unwrap(), true).await.is_err());
    drop(removed);
    assert_eq!(core.group().term, term, "it disturbs nobody");
    // While it runs.
    core.remove_node(&others[1].parse().unwrap()).await.unwrap();
    group.wait("the group goes on without it", |_| gone(&core, &others[1])).await;
    group.wait("it says so", |group| says(group, &others[1])).await;
    assert_eq!(core.out(), None);
    let head = core.head(&name("default")).unwrap();
    let request = request(head.revision, vec![put("default/b", "2")]);
    core.commit(request).await.unwrap();
    drop(core);
    group.stop().await;
}

/// With a dead voter beside it, a living one is not taken away: the change itself could not be decided, nor anything after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_waits_that_would_leave_no_majority() {
    let mut group = Group::start(3).await;
    let leader = group.leader().await.name.clone();
    let others = group.others(&leader);
    let (dead, alive) = (&others[0], &others[1]);
    let id = group.member(alive).raft_id;
    group.member_mut(dead).kill().await;
    let core = group.member(&leader).core().clone();
    core.remove_node(&alive.parse().unwrap()).await.unwrap();
    let before = core.view().applied_index();
    for number in 0..20 {
        group.commit("default/a", &number.to_string()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(core.view().applied_index() > before);
    let votes = |core: &Core| {
        let metrics = core.inner.proposer.raft.metrics().borrow_watched().clone();
        metrics.membership_config.voter_ids().any(|voter| voter == id)
    };
    assert!(votes(&core), "it was taken away");
    // The dead one is back, and what was wanted is done.
    group.member_mut(dead).start().await;
    group.wait("it is gone", |_| !votes(&core)).await;
    drop(core);
    group.member_mut(alive).stop().await;
    group.commit("default/b", "2").await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_again_under_its_key_is_created_and_copied_once() {
    use super::super::Once;
    use super::super::tests::author;

    let group = Group::start(3).await;
    let (admin, east, west, south) = (author(), name("east"), name("west"), name("south"));
    let key = |what: &str| Some(Once::new("k", &[what]));
    let mut heads = Vec::new();
    // The same through every member: one of them leads.
    for member in &group.members {
        let core = member.core();
        let created = core.create_repo(&east, &admin, Vec::new(), key("create")).await.unwrap();
        let copied = core.copy_with_history(&name("default"), &west, &admin, key("history")).await.unwrap();
        let new = core.copy_tip(&name("default"), &south, &admin, key("new")).await.unwrap();
        let over = core.copy_tip(&name("default"), &east, &admin, key("over")).await.unwrap();
        heads.push([created, copied, new, over]);
        // Somebody moves them meanwhile: what is answered is what was done under the key.
        group.commit("default/moved", &member.name).await;
    }
    assert!(heads.iter().all(|head| head == &heads[0]), "{heads:?}");
    assert_eq!(heads[0].map(|head| head.revision), [1, 1, 1, 2]);
    // Another key, or none, is another request, also where the copy would be the same.
    let core = group.leader().await.core();
    let same = [key("same"), key("the same"), None];
    let mut done = Vec::new();
    for key in same {
        done.push(core.copy_with_history(&name("default"), &name("north"), &admin, key).await.is_ok());
    }
    assert_eq!(done, [true, false, false]);
    for key in [key("again"), None] {
        let core = group.leader().await.core();
        let exists = |done: crate::error::Result<_>| matches!(done, Err(crate::error::Error::Exists { .. }));
        assert!(exists(core.create_repo(&east, &admin, Vec::new(), key.clone()).await));
        assert!(exists(core.copy_with_history(&name("default"), &west, &admin, key).await));
    }
    group.stop().await;
}

/// What it has begun to write nobody will ever decide.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_lost_its_majority_can_be_stopped() {
    let mut group = Group::start(3).await;
    group.converge().await;
    let leader = group.leader().await.name.clone();
    let others = group.others(&leader);
    let core = group.member(&leader).core().clone();
    let ends = tokio_util::sync::CancellationToken::new();
    // For a moment after the others died it still takes writes.
    let writing = tokio::spawn({
        let (core, ends) = (core.clone(), ends.clone());
        async move {
            let mut number = 0;
            while !ends.is_cancelled() {
                number += 1;
                let base = core.head(&name("default")).unwrap().revision;
                let commit = core.commit(request(base, vec![put("default/a", &number.to_string())]));
                let _ = tokio::time::timeout(Duration::from_millis(100), commit).await;
            }
        }
    });
    for other in &others {
        group.member_mut(other).kill().await;
    }
    let queued = || core.inner.committer_stats.requests.load(std::sync::atomic::Ordering::Relaxed);
    group
        .wait("nothing is decided any more", |_| {
            let before = queued();
            std::thread::sleep(Duration::from_millis(300));
            queued() == before
        })
        .await;
    ends.cancel();
    writing.await.unwrap();
    drop(core);
    let stopped = tokio::time::timeout(PATIENCE, group.member_mut(&leader).stop()).await;
    assert!(stopped.is_ok(), "it waits for ever");
    for other in &others {
        group.member_mut(other).start().await;
    }
    group.member_mut(&leader).start().await;
    group.commit("default/b", "2").await;
    group.stop().await;
}

/// Somebody joins, and whoever leads next has that in its log but has not applied it yet: by its records the new member is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_not_applied_a_join_removes_nobody() {
    let mut group = Group::start(3).await;
    group.converge().await;
    let before = group.leader().await.name.clone();
    let slow = group.members.iter().find(|member| member.name != before).unwrap().name.clone();
    let core = group.member(&slow).core().clone();
    let held = core.inner.proposer.state.hold();
    group.join("n4", true).await;
    let joined = group.member("n4").raft_id;
    group.wait("n4 votes, by the slow one's log", |group| settled_voters(group.member(&slow).core()) == 4).await;
    let raft = &core.inner.proposer.raft;
    // A read that a deposed leader began may wait for ever.
    let leads = || tokio::time::timeout(Duration::from_secs(2), raft.get_read_log_id(ReadPolicy::ReadIndex));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !matches!(leads().await, Ok(Ok(_))) {
        assert!(tokio::time::Instant::now() < deadline, "the slow one does not come to lead");
        let leader = group.leader().await.core().clone();
        drop(leader.inner.proposer.raft.trigger().transfer_leader(core.inner.raft_id).await);
        let _ = raft.wait(Some(Duration::from_secs(1))).current_leader(core.inner.raft_id, "the slow one leads").await;
    }
    // Until then nobody would be removed for other reasons.
    let free = |metrics: &Metrics| {
        let answered = metrics.heartbeat.iter().flatten().filter(|(_, at)| at.is_some()).count();
        answered >= 3 && metrics.committed_membership_config.log_id() == metrics.membership_config.log_id()
    };
    raft.wait(Some(PATIENCE)).metrics(free, "the slow one may change the group").await.unwrap();
    assert!(!core.view().members.contains_key(&"n4".parse().unwrap()), "the test means nothing once it has applied it");
    let look = super::super::steward::look(&core.inner.proposer, core.inner.raft_id, &core.inner.options);
    let _ = tokio::join!(tokio::time::timeout(Duration::from_secs(2), look), async { drop(held) });
    group.converge().await;
    drop(core);
    group.member_mut(&slow).stop().await;
    let mut log = LogStore::open(&group.member(&slow).data().join("raft"), 1 << 20).unwrap();
    let entries = RaftLogReader::<TypeConfig>::try_get_log_entries(&mut log, ..).await.unwrap();
    let memberships: Vec<_> = entries.iter().filter_map(|entry| entry.get_membership()).collect();
    let mut since = memberships.iter().skip_while(|membership| membership.get_node(&joined).is_none()).peekable();
    assert!(since.peek().is_some(), "{memberships:?}");
    assert!(since.all(|membership| membership.get_node(&joined).is_some()), "{memberships:?}");
    group.stop().await;
}

/// A long batch or a checkpoint on a slow disk holds up what is applied after it. Sockets and timers of this process share their threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn while_applying_is_held_up_everything_else_goes_on() {
    let group = Group::start(3).await;
    group.converge().await;
    let leader = group.leader().await.name.clone();
    let follower = group.members.iter().find(|member| member.name != leader).unwrap().core().clone();
    let state = follower.inner.proposer.state.clone();
    let (held, holds) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        let held_up = state.hold();
        held.send(()).unwrap();
        let in_time = released.recv_timeout(PATIENCE);
        drop(held_up);
        in_time
    });
    holds.await.unwrap();
    let before = follower.figures().applied;
    // Longer than its maintenance takes to look again.
    let since = std::time::Instant::now();
    let mut number = 0;
    while since.elapsed() < Duration::from_millis(500) {
        number += 1;
        group.commit("default/a", &number.to_string()).await;
    }
    assert_eq!(follower.figures().applied, before, "it was not held up");
    release.send(()).unwrap();
    assert!(holder.join().unwrap().is_ok(), "everything waited");
    drop(follower);
    group.converge().await;
    group.stop().await;
}
