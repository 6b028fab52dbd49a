//! The leader's steward: changes the Raft group, one step at a time, until it is what the members' records say.
//!
//! Joining, promoting, demoting, replacing and removing only write records. So each of them is done once it is in the log, may be repeated,
//! and survives the death of whoever asked and of the leader: the next leader's steward goes on from what it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio_util::sync::CancellationToken;

use super::Core;
use super::ca_key::{self, Votes};
use super::contact::Metrics;
use super::options::CoreOptions;
use crate::commit::{Propose as _, Proposer};
use crate::peer::{self, PeerError, Refusal, RefusalCode};
use crate::raft::RaftNode;
use crate::raft::command::Op;
use crate::state::{MemberRecord, View};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);
/// How often a node that knows no leader, or where one is that the others do not find, calls everybody, and how long it waits for them.
const GREET: Duration = Duration::from_secs(1);
/// A step that hangs (the group lost its majority) is given up and tried again.
const STEP: Duration = Duration::from_secs(15);
/// How long a leader waits until it has applied what it must know first; whoever leads no more would wait in vain.
const BARRIER: Duration = Duration::from_secs(2);
/// How long a node that stops waits for the step that it has begun.
const LAST_STEP: Duration = Duration::from_secs(2);
/// A learner that misses fewer entries than this has caught up: the rest takes milliseconds.
const CAUGHT_UP: u64 = 200;
/// A member that answered the leader within this time is alive.
const ANSWERED: Duration = Duration::from_secs(1);

/// One change of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    AddLearner(u64, RaftNode),
    Readdress(u64, RaftNode),
    Promote(u64),
    Demote(u64),
    Remove(u64),
    /// Ends a change that its leader did not live to end: until then the old voters and the new ones must agree.
    Settle,
}

/// What is to be compared.
pub(super) struct Found<'a> {
    pub(super) members: BTreeMap<u64, &'a MemberRecord>,
    pub(super) voters: BTreeSet<u64>,
    pub(super) nodes: BTreeMap<u64, RaftNode>,
    /// How far each follower is known to be.
    pub(super) matched: BTreeMap<u64, u64>,
    pub(super) last_index: u64,
    /// Whether a change of the voters is half done.
    pub(super) joint: bool,
    /// Members that answer the leader, itself among them.
    pub(super) alive: BTreeSet<u64>,
}

impl Found<'_> {
    /// Whether the voters that are left without this one can go on. A change that they could not commit would end the cluster: it could not
    /// even be taken back.
    fn may_lose(&self, id: u64) -> bool {
        has_majority_without(id, &self.voters, &self.alive)
    }
}

fn has_majority_without(id: u64, voters: &BTreeSet<u64>, alive: &BTreeSet<u64>) -> bool {
    let rest = voters.iter().filter(|voter| **voter != id);
    let answer = rest.clone().filter(|voter| alive.contains(voter)).count();
    !voters.contains(&id) || answer > rest.count() / 2
}

/// The next step, if there is one, or why the one that is wanted waits. Additions come before removals: a group never has fewer members than
/// it must.
pub(super) fn next_step(found: &Found<'_>) -> Result<Option<Step>, String> {
    if found.joint {
        return Ok(Some(Step::Settle));
    }
    let wanted = |member: &MemberRecord| RaftNode { name: member.node.to_string(), address: member.address.clone() };
    for (id, member) in &found.members {
        match found.nodes.get(id) {
            None => return Ok(Some(Step::AddLearner(*id, wanted(member)))),
            Some(node) if *node != wanted(member) => return Ok(Some(Step::Readdress(*id, wanted(member)))),
            Some(_) => {}
        }
    }
    let close = |id: &u64| found.matched.get(id).is_some_and(|matched| matched + CAUGHT_UP >= found.last_index);
    let waits = |id: &u64, member: &MemberRecord| member.voter && !found.voters.contains(id);
    if let Some((id, _)) = found.members.iter().find(|(id, member)| waits(id, member) && close(id)) {
        return Ok(Some(Step::Promote(*id)));
    }
    let votes_on = |id: &u64| found.members.get(id).is_some_and(|member| member.voter);
    if !found.voters.iter().any(votes_on) {
        return Ok(None);
    }
    let demoted = found.voters.iter().filter(|id| found.members.get(id).is_some_and(|member| !member.voter));
    let gone = found.nodes.iter().filter(|(id, _)| !found.members.contains_key(id));
    // Whoever is being replaced stays until the successor votes.
    let succeeded = |name: &str| !found.members.iter().any(|(id, m)| m.node.as_str() == name && waits(id, m));
    let gone = gone.filter(|(_, node)| succeeded(&node.name)).map(|(id, _)| id);
    let steps = demoted.map(|id| (*id, Step::Demote(*id))).chain(gone.map(|id| (*id, Step::Remove(*id))));
    // Of several the one that can be done: who is dead goes first, and may make room for another.
    let (now, later): (Vec<_>, Vec<_>) = steps.partition(|(id, _)| found.may_lose(*id));
    match (now.into_iter().next(), later.first()) {
        (Some((_, step)), _) => Ok(Some(step)),
        (None, Some((id, _))) => {
            let name = found.nodes.get(id).map_or("a member", |node| &node.name);
            Err(format!("{name} keeps its vote for now: without it no majority of the voters would answer"))
        }
        (None, None) => Ok(None),
    }
}

/// Runs until the core stops. The group is the leader's business, the CA's key every node's own.
pub(super) async fn run(core: Core, stopping: CancellationToken) {
    let (proposer, raft_id) = (core.inner.proposer.clone(), core.inner.raft_id);
    let (options, client) = (core.inner.options.clone(), core.inner.client.clone());
    let (mut group, mut key, mut place) = (Complaint::default(), Complaint::default(), Complaint::default());
    let mut greeted = tokio::time::Instant::now();
    while stopping.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let view = proposer.state.view();
        let work = async {
            if let Some(client) = &client {
                keep_connections(client, &proposer, &view);
                key.note("the CA's key", look_for_key(&proposer, raft_id, &options, client, &view).await);
            }
            let alone = core.is_out_of_contact();
            if let Some(client) = &client
                && greeted.elapsed() > GREET
                && (alone || knows_better(&options, client, &view))
            {
                greet(&core, client).await;
                greeted = tokio::time::Instant::now();
            }
            if !alone && moved(&options, raft_id, &view) {
                place.note("this node's address in the cluster", readdress(&core).await);
            }
            if proposer.raft.is_leader() {
                let done = tokio::time::timeout(STEP, look(&proposer, raft_id, &options)).await;
                group.note("the group", done.unwrap_or_else(|_| Err("it takes too long".into())));
            }
        };
        let mut work = std::pin::pin!(work);
        tokio::select! {
            () = &mut work => {}
            // A change of the voters is two entries; between them the group needs more of its members than it should.
            () = stopping.cancelled() => drop(tokio::time::timeout(LAST_STEP, work).await),
        }
    }
}

/// What went wrong last: said once per cause, because it is tried again several times a second.
#[derive(Default)]
struct Complaint(String);

impl Complaint {
    fn note(&mut self, what: &str, done: Result<(), String>) {
        let why = done.err().unwrap_or_default();
        if !why.is_empty() && why != self.0 {
            tracing::warn!("{what} is not as it shall be yet: {why}");
        }
        self.0 = why;
    }
}

async fn look_for_key(
    proposer: &Proposer,
    raft_id: u64,
    options: &CoreOptions,
    client: &peer::Client,
    view: &View,
) -> Result<(), String> {
    let metrics = proposer.raft.metrics().borrow_watched().clone();
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let own = view.members.get(&options.node).filter(|own| own.raft_id == raft_id);
    let wanted = own.is_some_and(|own| own.voter);
    let others =
        metrics.membership_config.membership().nodes().filter(|(id, _)| **id != raft_id && voters.contains(id));
    let votes = Votes {
        data: &options.data,
        votes: wanted && voters.contains(&raft_id),
        gone: !wanted && !view.members.is_empty(),
        voters: others.map(|(id, node)| super::peers::target(*id, node)).collect(),
    };
    ca_key::look(&votes, client).await
}

fn keep_connections(client: &peer::Client, proposer: &Proposer, view: &View) {
    let metrics = proposer.raft.metrics().borrow_watched().clone();
    let members = metrics.membership_config.membership().nodes().chain(view.membership.membership().nodes());
    let targets: Vec<_> = members.map(|(id, node)| super::peers::target(*id, node)).collect();
    client.keep(&targets);
}

/// What there is to do for a leader.
enum Work {
    /// The cluster is older than the members' records: the first is written.
    First(MemberRecord),
    Step(Step),
}

/// Takes the next step of a leader, if there is one.
pub(super) async fn look(proposer: &Proposer, raft_id: u64, options: &CoreOptions) -> Result<(), String> {
    if wanted(proposer, raft_id, options)?.is_none() {
        return Ok(());
    }
    // A leader may lead before it has applied what others wrote. By records that it does not have yet it would remove whoever joined last.
    super::peers::confirmed(proposer, BARRIER).await.map_err(|error| error.to_string())?;
    match wanted(proposer, raft_id, options)? {
        Some(Work::First(first)) => {
            proposer.one(Op::PutMember(first)).await.map(drop).map_err(|error| error.to_string())
        }
        Some(Work::Step(step)) => {
            if let Step::Demote(id) | Step::Remove(id) = step {
                rest_answers(proposer, raft_id, id).await?;
            }
            take(proposer, step).await
        }
        None => Ok(()),
    }
}

/// Makes sure that the voters that are left without this one answer at this moment: one that has just died still counts as alive.
async fn rest_answers(proposer: &Proposer, raft_id: u64, leaving: u64) -> Result<(), String> {
    let since = std::time::Instant::now();
    let answer = move |metrics: &Metrics| {
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        let answered = answering(metrics, raft_id, since.elapsed());
        has_majority_without(leaving, &voters, &answered)
    };
    let answered = proposer.raft.wait(Some(ANSWERED)).metrics(answer, "the voters that stay answer").await;
    answered.map(drop).map_err(|_| "no majority of the voters that would be left answers".into())
}

/// What is to be done by the records that this node has, or why it has to wait.
fn wanted(proposer: &Proposer, raft_id: u64, options: &CoreOptions) -> Result<Option<Work>, String> {
    let view = proposer.state.view();
    let metrics = proposer.raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    if view.cluster.is_empty() {
        return Ok(None);
    }
    // Without any record the cluster is older than the records. A leader that was removed has none, and shall not get one.
    if view.members.is_empty() {
        return Ok(Some(Work::First(first_member(options, raft_id))));
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
        joint: membership.get_joint_config().len() > 1,
        alive: answering(&metrics, raft_id, ANSWERED),
    };
    Ok(next_step(&found)?.map(Work::Step))
}

/// Who answered this leader in so long a time, itself among them.
fn answering(metrics: &Metrics, raft_id: u64, within: Duration) -> BTreeSet<u64> {
    let answers = metrics.heartbeat.iter().flatten();
    let lately = answers.filter(|(_, at)| at.as_ref().is_some_and(|at| at.elapsed() < within));
    lately.map(|(id, _)| *id).chain([raft_id]).collect()
}

/// Whether this node is reached elsewhere than the cluster knows.
fn moved(options: &CoreOptions, raft_id: u64, view: &View) -> bool {
    view.members.get(&options.node).is_some_and(|own| own.raft_id == raft_id && own.address != options.address)
}

/// Writes down where this node is. The members that it has spoken to know already, and reach it there.
async fn readdress(core: &Core) -> Result<(), String> {
    let options = &core.inner.options;
    let (node, address) = (options.node.clone(), options.address.clone());
    tracing::info!(%address, "this node is reached at another address than the cluster knows");
    let op = Op::Readdress { node, raft_id: core.inner.raft_id, address };
    core.one(op).await.map(drop).map_err(|error| error.to_string())
}

/// Whether this node was told that a member is elsewhere than the cluster knows, and has not heard from it: nobody else may find it there.
fn knows_better(options: &CoreOptions, client: &peer::Client, view: &View) -> bool {
    if options.peers.is_empty() {
        return false;
    }
    let said = client.said();
    let elsewhere =
        |member: &MemberRecord| options.peers.get(member.node.as_str()).is_some_and(|told| *told != member.address);
    view.members.values().any(|member| elsewhere(member) && !said.contains_key(&member.raft_id))
}

/// Calls everybody once, so that they know where this node is: whoever leads may look for it elsewhere. Both ends tell each other where the
/// others are, so that it is enough if one of those who moved was told. Whoever does not know this node any more says so.
async fn greet(core: &Core, client: &peer::Client) {
    let targets = core.other_members();
    let calls = targets.iter().map(|target| super::peers::status(client, target, client.said(), GREET));
    let (mut as_member, mut as_stranger) = (false, None);
    for status in futures::future::join_all(calls).await {
        match status {
            Ok(status) => {
                as_member = true;
                client.passed_on(status.said);
            }
            Err(error @ PeerError::Refused { refusal: Refusal { code: RefusalCode::Stranger, .. }, .. }) => {
                as_stranger = Some(error.to_string());
            }
            Err(_) => {}
        }
    }
    core.inner.standing.answered(as_member, as_stranger);
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
        Step::Settle => (ChangeMembers::AddVoterIds(BTreeSet::new()), true),
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
                joint: false,
                alive: nodes.keys().copied().collect(),
            };
            let Some(step) = next_step(&found).unwrap() else { return steps };
            match step.clone() {
                Step::AddLearner(id, node) | Step::Readdress(id, node) => drop(nodes.insert(id, node)),
                Step::Promote(id) => drop(voters.insert(id)),
                Step::Demote(id) => drop(voters.remove(&id)),
                Step::Settle => unreachable!("nothing is joint here"),
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
            joint: false,
            alive: BTreeSet::from([1, 2]),
        };
        assert_eq!(next_step(&found), Ok(None));
        // What another leader began is ended first.
        assert_eq!(next_step(&Found { joint: true, ..found }), Ok(Some(Step::Settle)));
    }

    /// With a dead voter beside it, taking a living one away would leave a group that can decide nothing any more, not even to take it back.
    #[test]
    fn no_vote_is_taken_away_that_the_others_cannot_do_without() {
        let (a, b, c) = (member(1, "a", true), member(2, "b", true), member(3, "c", true));
        let nodes = BTreeMap::from([(1, node("a")), (2, node("b")), (3, node("c"))]);
        let next = |members: &[&MemberRecord], alive: &[u64]| {
            next_step(&Found {
                members: members.iter().map(|member| (member.raft_id, *member)).collect(),
                voters: BTreeSet::from([1, 2, 3]),
                nodes: nodes.clone(),
                matched: BTreeMap::from([(1, 10), (2, 10), (3, 10)]),
                last_index: 10,
                joint: false,
                alive: alive.iter().copied().collect(),
            })
        };
        assert_eq!(next(&[&a, &b], &[1, 2]), Ok(Some(Step::Remove(3))));
        let why = next(&[&a, &c], &[1, 2]).unwrap_err();
        assert!(why.contains("b keeps its vote"), "{why}");
        let demoted = MemberRecord { voter: false, ..b.clone() };
        assert!(next(&[&a, &demoted, &c], &[1, 2]).is_err());
        // The dead one goes first, and then the other can.
        assert_eq!(next(&[&a], &[1, 2]), Ok(Some(Step::Remove(3))));
        assert_eq!(next(&[&a, &c], &[1, 2, 3]), Ok(Some(Step::Remove(2))));
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
