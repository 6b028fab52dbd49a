//! The leader's steward: changes the Raft group, one step at a time, until it is what the members' records say.
//!
//! Joining, promoting, demoting, replacing and removing only write records. So each of them is done once it is in the log, may be repeated,
//! and survives the death of whoever asked and of the leader: the next leader's steward goes on from what it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio_util::sync::CancellationToken;

use super::options::CoreOptions;
use crate::commit::{Propose as _, Proposer};
use crate::peer;
use crate::raft::RaftNode;
use crate::raft::command::Op;
use crate::state::{MemberRecord, View};

/// How often it looks without being told.
const LOOK: Duration = Duration::from_millis(250);
/// A step that hangs (the group lost its majority) is given up and tried again.
const STEP: Duration = Duration::from_secs(15);
/// A learner that misses fewer entries than this has caught up: the rest takes milliseconds.
const CAUGHT_UP: u64 = 200;

/// One change of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    AddLearner(u64, RaftNode),
    Readdress(u64, RaftNode),
    Promote(u64),
    Demote(u64),
    Remove(u64),
}

/// What is to be compared.
pub(super) struct Found<'a> {
    pub(super) members: BTreeMap<u64, &'a MemberRecord>,
    pub(super) voters: BTreeSet<u64>,
    pub(super) nodes: BTreeMap<u64, RaftNode>,
    /// How far each follower is known to be.
    pub(super) matched: BTreeMap<u64, u64>,
    pub(super) last_index: u64,
}

/// The next step, if there is one. Additions come before removals: a group never has fewer members than it must.
pub(super) fn next_step(found: &Found<'_>) -> Option<Step> {
    let wanted = |member: &MemberRecord| RaftNode { name: member.node.to_string(), address: member.address.clone() };
    for (id, member) in &found.members {
        match found.nodes.get(id) {
            None => return Some(Step::AddLearner(*id, wanted(member))),
            Some(node) if *node != wanted(member) => return Some(Step::Readdress(*id, wanted(member))),
            Some(_) => {}
        }
    }
    let close = |id: &u64| found.matched.get(id).is_some_and(|matched| matched + CAUGHT_UP >= found.last_index);
    let waits = |id: &u64, member: &MemberRecord| member.voter && !found.voters.contains(id);
    if let Some((id, _)) = found.members.iter().find(|(id, member)| waits(id, member) && close(id)) {
        return Some(Step::Promote(*id));
    }
    let votes_on = |id: &u64| found.members.get(id).is_some_and(|member| member.voter);
    if !found.voters.iter().any(votes_on) {
        return None;
    }
    let demoted = found.voters.iter().find(|id| found.members.get(id).is_some_and(|member| !member.voter));
    if let Some(id) = demoted {
        return Some(Step::Demote(*id));
    }
    let gone = found.nodes.iter().filter(|(id, _)| !found.members.contains_key(id));
    // Whoever is being replaced stays until the successor votes.
    let succeeded = |name: &str| !found.members.iter().any(|(id, m)| m.node.as_str() == name && waits(id, m));
    gone.into_iter().find(|(_, node)| succeeded(&node.name)).map(|(id, _)| Step::Remove(*id))
}

/// Runs until the core stops; works only while this node leads.
pub(super) async fn run(
    proposer: Proposer,
    raft_id: u64,
    options: CoreOptions,
    client: Option<peer::Client>,
    stopping: CancellationToken,
) {
    let mut progress = proposer.state.hub().progress();
    let mut complained = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = progress.changed() => {}
            () = stopping.cancelled() => return,
        }
        let view = proposer.state.view();
        if let Some(client) = &client {
            keep_connections(client, &proposer, &view);
        }
        if !proposer.raft.is_leader() {
            continue;
        }
        let work = look(&proposer, raft_id, &options, &view);
        let done = tokio::select! {
            done = tokio::time::timeout(STEP, work) => done.unwrap_or_else(|_| Err("it takes too long".into())),
            () = stopping.cancelled() => return,
        };
        match done {
            Ok(()) => complained.clear(),
            // Once per cause: it is tried four times a second.
            Err(why) if why != complained => {
                tracing::warn!("the group could not be changed yet: {why}");
                complained = why;
            }
            Err(_) => {}
        }
    }
}

fn keep_connections(client: &peer::Client, proposer: &Proposer, view: &View) {
    let metrics = proposer.raft.metrics().borrow_watched().clone();
    let members = metrics.membership_config.membership().nodes().chain(view.membership.membership().nodes());
    let targets: Vec<_> = members.map(|(id, node)| super::peers::target(*id, node)).collect();
    client.keep(&targets);
}

async fn look(proposer: &Proposer, raft_id: u64, options: &CoreOptions, view: &View) -> Result<(), String> {
    let metrics = proposer.raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    if view.cluster.is_empty() {
        return Ok(());
    }
    let own = view.members.get(&options.node);
    if own.is_none_or(|own| own.raft_id == raft_id && own.address != options.address) {
        return put_own(proposer, raft_id, options, own.map(|own| own.as_ref())).await;
    }
    let mut matched: BTreeMap<u64, u64> =
        metrics.replication.iter().flatten().filter_map(|(id, at)| at.map(|at| (*id, at.index))).collect();
    let last_index = metrics.last_log_index.unwrap_or(0);
    matched.insert(raft_id, last_index);
    let found = Found {
        members: view.members.values().map(|member| (member.raft_id, member.as_ref())).collect(),
        voters: membership.voter_ids().collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        matched,
        last_index,
    };
    match next_step(&found) {
        Some(step) => take(proposer, step).await,
        None => Ok(()),
    }
}

/// The first node's record, in a cluster that was made before there were any, or its new address.
async fn put_own(
    proposer: &Proposer,
    raft_id: u64,
    options: &CoreOptions,
    own: Option<&MemberRecord>,
) -> Result<(), String> {
    let address = options.address.clone();
    let member = match own {
        Some(own) => MemberRecord { address, ..own.clone() },
        None => first_member(options, raft_id),
    };
    proposer.one(Op::PutMember(member)).await.map(drop).map_err(|error| error.to_string())
}

/// The record of the node that makes the cluster.
pub(super) fn first_member(options: &CoreOptions, raft_id: u64) -> MemberRecord {
    MemberRecord {
        node: options.node.clone(),
        raft_id,
        address: options.address.clone(),
        voter: true,
        key_sha256: [0; 32],
        token: String::new(),
        token_sha256: [0; 32],
        replaced_by: None,
    }
}

async fn take(proposer: &Proposer, step: Step) -> Result<(), String> {
    tracing::info!(?step, "changing the group");
    let raft = &proposer.raft;
    let (change, retain) = match step {
        Step::AddLearner(id, node) => (ChangeMembers::AddNodes(BTreeMap::from([(id, node)])), true),
        Step::Readdress(id, node) => (ChangeMembers::SetNodes(BTreeMap::from([(id, node)])), true),
        Step::Promote(id) => (ChangeMembers::AddVoterIds(BTreeSet::from([id])), true),
        Step::Demote(id) => (ChangeMembers::RemoveVoters(BTreeSet::from([id])), true),
        Step::Remove(id) if raft.voter_ids().any(|voter| voter == id) => {
            (ChangeMembers::RemoveVoters(BTreeSet::from([id])), false)
        }
        Step::Remove(id) => (ChangeMembers::RemoveNodes(BTreeSet::from([id])), false),
    };
    raft.change_membership(change, retain).await.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn member(raft_id: u64, name: &str, voter: bool) -> MemberRecord {
        MemberRecord {
            node: name.parse().unwrap(),
            raft_id,
            address: format!("{name}:1"),
            voter,
            key_sha256: [0; 32],
            token: String::new(),
            token_sha256: [0; 32],
            replaced_by: None,
        }
    }

    fn node(name: &str) -> RaftNode {
        RaftNode { name: name.into(), address: format!("{name}:1") }
    }

    /// Steps until nothing is left; every learner is taken to have caught up after it was added.
    fn story(members: &[MemberRecord], voters: &[u64], nodes: &[(u64, &str)]) -> Vec<Step> {
        let mut voters: BTreeSet<u64> = voters.iter().copied().collect();
        let mut nodes: BTreeMap<u64, RaftNode> = nodes.iter().map(|(id, name)| (*id, node(name))).collect();
        let mut steps = Vec::new();
        loop {
            let found = Found {
                members: members.iter().map(|member| (member.raft_id, member)).collect(),
                voters: voters.clone(),
                nodes: nodes.clone(),
                matched: nodes.keys().map(|id| (*id, 1000)).collect(),
                last_index: 1100,
            };
            let Some(step) = next_step(&found) else { return steps };
            match step.clone() {
                Step::AddLearner(id, node) | Step::Readdress(id, node) => drop(nodes.insert(id, node)),
                Step::Promote(id) => drop(voters.insert(id)),
                Step::Demote(id) => drop(voters.remove(&id)),
                Step::Remove(id) => {
                    voters.remove(&id);
                    nodes.remove(&id);
                }
            }
            steps.push(step);
            assert!(steps.len() < 20, "it never ends: {steps:?}");
        }
    }

    #[test]
    fn who_joins_learns_first_and_votes_then() {
        let members = [member(1, "a", true), member(2, "b", true), member(3, "c", false)];
        let steps = story(&members, &[1], &[(1, "a")]);
        assert_eq!(steps, [Step::AddLearner(2, node("b")), Step::AddLearner(3, node("c")), Step::Promote(2)]);
    }

    #[test]
    fn a_learner_that_is_behind_does_not_vote_yet() {
        let (a, b) = (member(1, "a", true), member(2, "b", true));
        let found = Found {
            members: BTreeMap::from([(1, &a), (2, &b)]),
            voters: BTreeSet::from([1]),
            nodes: BTreeMap::from([(1, node("a")), (2, node("b"))]),
            matched: BTreeMap::from([(2, 10)]),
            last_index: 1000,
        };
        assert_eq!(next_step(&found), None);
    }

    #[test]
    fn a_replaced_node_stays_until_its_successor_votes() {
        let members = [member(1, "a", true), member(4, "b", true)];
        let steps = story(&members, &[1, 2], &[(1, "a"), (2, "b")]);
        assert_eq!(steps, [Step::AddLearner(4, node("b")), Step::Promote(4), Step::Remove(2)]);
    }

    #[test]
    fn the_last_voter_is_never_taken_away() {
        let members = [member(1, "a", false)];
        assert_eq!(story(&members, &[1], &[(1, "a")]), []);
        let members = [member(2, "b", true)];
        let steps = story(&members, &[1], &[(1, "a")]);
        assert_eq!(steps, [Step::AddLearner(2, node("b")), Step::Promote(2), Step::Remove(1)]);
    }

    #[test]
    fn demoting_keeps_the_node_and_an_address_follows_its_record() {
        let members = [member(1, "a", true), member(2, "b", false)];
        let steps = story(&members, &[1, 2], &[(1, "a"), (2, "x")]);
        assert_eq!(steps, [Step::Readdress(2, node("b")), Step::Demote(2)]);
    }
}
