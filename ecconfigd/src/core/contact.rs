//! Whether this node still hears what the cluster decides.
//!
//! openraft goes on naming the last leader until another one is elected, which the smaller side of a partition never sees. So a node
//! also asks itself when it heard from that leader, or as the leader from a majority. One that is cut off says that it is not ready, and after
//! a while it sends its watchers away: they would wait here for what others are told elsewhere. One that the members call a stranger was
//! removed while it was away: it serves nothing any more.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;

use super::{Core, locked};
use crate::error::{Error, Result};
use crate::raft::TypeConfig;
use crate::state::{NodeName, View};

pub(super) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// Without a word of the leader for so long a node is not ready. Heartbeats come every 50 ms, and an election begins after 300.
const QUIET: Duration = Duration::from_secs(3);
/// Watchers are sent to other servers when it lasted so long: longer than it takes to elect and to restart a server.
pub(super) const CUT_OFF: Duration = Duration::from_secs(10);
/// So many rounds of calling everybody must have come to the same.
const ROUNDS: u32 = 3;

/// When a member that leads was last heard from.
pub(super) struct Heard {
    started: Instant,
    /// In milliseconds after the start; 0: never.
    at_ms: AtomicU64,
}

impl Default for Heard {
    fn default() -> Self {
        Self { started: Instant::now(), at_ms: AtomicU64::new(0) }
    }
}

impl Heard {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Entries or a heartbeat came.
    pub(super) fn note(&self) {
        self.at_ms.store(self.now_ms().max(1), Ordering::Relaxed);
    }

    /// Whether something has ever come.
    pub(super) fn ever(&self) -> bool {
        self.at_ms.load(Ordering::Relaxed) != 0
    }

    /// For how long nothing has come; since the start where nothing ever did.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(self.at_ms.load(Ordering::Relaxed)))
    }
}

/// Why this node cannot know what the cluster decides, where that is so. `others` are words of members that say the same of themselves: a
/// leader without a majority is still heard.
fn lost(metrics: &Metrics, raft_id: u64, heard: &Heard, others: impl FnOnce(u64) -> Option<String>) -> Option<String> {
    let membership = metrics.membership_config.membership();
    if metrics.state.is_leader() {
        let alone = membership.voter_ids().all(|id| id == raft_id);
        let acked = metrics.last_quorum_acked.as_ref().map(|at| at.elapsed());
        let lost = !alone && acked.is_some_and(|since| since > QUIET);
        return lost.then(|| "a majority of the servers does not answer this one, which led them".into());
    }
    match metrics.current_leader {
        // One that is itself is what it was before it was started again.
        Some(leader) if leader != raft_id => {
            let name = membership.get_node(&leader).map_or_else(|| leader.to_string(), |node| node.name.clone());
            let silent = || format!("this server does not hear from {name}, which led last");
            let says = |why| format!("{name}, which led last, says: {why}");
            (heard.silence() > QUIET).then(silent).or_else(|| others(leader).map(says))
        }
        _ => Some("the cluster has no leader".into()),
    }
}

/// No contact with the others.
struct Lost {
    since: Instant,
    why: String,
    /// It has lasted for [`CUT_OFF`].
    cut_off: bool,
}

/// What this node is to the others, as far as it can tell.
#[derive(Default)]
pub(super) struct Standing {
    contact: Mutex<Option<Lost>>,
    /// Rounds in which all who answered called this node a stranger, and what one of them said.
    strangers: Mutex<(u32, String)>,
    /// Why it is no member any more.
    removed: Mutex<Option<String>>,
}

impl Standing {
    /// Why this node has had no contact for a while, if so.
    fn cut_off(&self) -> Option<String> {
        locked(&self.contact).as_ref().filter(|lost| lost.cut_off).map(|lost| lost.why.clone())
    }

    /// Notes how it is at this moment; answers whether it has just become cut off.
    fn note(&self, lost: Option<String>, now: Instant) -> bool {
        let mut known = locked(&self.contact);
        let Some(why) = lost else {
            *known = None;
            return false;
        };
        let lost = known.get_or_insert_with(|| Lost { since: now, why: String::new(), cut_off: false });
        lost.why = why;
        let long = now.saturating_duration_since(lost.since) >= CUT_OFF;
        long && !std::mem::replace(&mut lost.cut_off, true)
    }

    /// What came of calling everybody: whether somebody took this node for a member, and what somebody said who did not.
    pub(super) fn answered(&self, as_member: bool, as_stranger: Option<String>) {
        let mut known = locked(&self.strangers);
        match as_stranger {
            Some(why) if !as_member => *known = (known.0 + 1, why),
            None if !as_member => {}
            _ => *known = Default::default(),
        }
    }
}

/// What the records of this node's own state say against its being a member. They say nothing while it is still catching up with its own
/// join: until then no number as high as its own was `given` to anybody.
fn unrecorded(view: &View, given: u64, node: &NodeName, raft_id: u64) -> Option<String> {
    if view.members.is_empty() || given < raft_id {
        return None;
    }
    match view.members.get(node) {
        Some(member) if member.raft_id == raft_id => None,
        Some(_) => Some(format!("another machine has taken the name {node} over")),
        None => Some(format!("{node} was removed from it")),
    }
}

impl Core {
    /// Why this node cannot know what the cluster decides, where that is so.
    pub(super) fn lost(&self, metrics: &Metrics) -> Option<String> {
        lost(metrics, self.inner.raft_id, &self.inner.heard, |id| self.health().lost_of(id))
    }

    /// What this node tells those who follow it: whether it leads them without a majority.
    pub(super) fn leads_in_vain(&self) -> Option<String> {
        let metrics = self.inner.proposer.raft.metrics().borrow_watched().clone();
        if metrics.state.is_leader() { self.lost(&metrics) } else { None }
    }

    /// Looks where this node stands. Called several times a second, with what [`lost`] found.
    pub(super) fn look_where_it_stands(&self, metrics: &Metrics, lost: Option<String>) {
        let inner = &self.inner;
        let standing = &inner.standing;
        let leads = metrics.state.is_leader();
        // Who is removed and still hears from the leader is needed until the group can do without it.
        let said = match &lost {
            None => {
                standing.answered(true, None);
                None
            }
            Some(_) if leads => None,
            Some(_) => self.unrecorded().or_else(|| {
                let known = locked(&standing.strangers);
                (known.0 >= ROUNDS).then(|| known.1.clone())
            }),
        };
        let words = said.map(|why| {
            format!(
                "this server is no member of the cluster any more ({why}). Stop it; to take the machine in again, let it join with an empty data \
                 directory"
            )
        });
        let cut_off = standing.note(lost, Instant::now());
        let mut removed = locked(&standing.removed);
        let news = words.is_some() != removed.is_some();
        match &words {
            Some(words) if news => tracing::error!("{words}"),
            None if news => tracing::info!("this server is a member of the cluster again"),
            _ => {}
        }
        let gone = news && words.is_some();
        *removed = words;
        drop(removed);
        if cut_off || gone {
            inner.proposer.state.hub().send_away();
        }
    }

    fn unrecorded(&self) -> Option<String> {
        let inner = &self.inner;
        // Before the picture: a later number would belong to records that the picture does not have yet.
        let given = inner.proposer.state.raft_ids_given().ok()?;
        unrecorded(&self.view(), given, &inner.options.node, inner.raft_id)
    }

    /// Why this node is no member any more, where that is so.
    pub(super) fn removed(&self) -> Option<String> {
        locked(&self.inner.standing.removed).clone()
    }

    /// Refuses those who would wait here for news while this node does not hear any.
    pub fn may_be_followed(&self) -> Result<()> {
        self.inner.standing.cut_off().map_or(Ok(()), |why| Err(Error::NotDone(why)))
    }

    /// Whether this node has not heard from the cluster for a moment.
    pub(super) fn is_out_of_contact(&self) -> bool {
        let metrics = self.inner.proposer.raft.metrics().borrow_watched().clone();
        self.lost(&metrics).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::{MemberRecord, State};

    #[test]
    fn watchers_go_once_when_it_lasts() {
        let (standing, start) = (Standing::default(), Instant::now());
        let lost = |at: u64| standing.note(Some("no leader".into()), start + Duration::from_secs(at));
        assert!(!lost(0) && !lost(9));
        assert_eq!(standing.cut_off(), None);
        assert!(lost(10) && !lost(11));
        assert_eq!(standing.cut_off().as_deref(), Some("no leader"));
        assert!(!standing.note(None, start + Duration::from_secs(12)));
        assert_eq!(standing.cut_off(), None);
        assert!(!lost(13) && !lost(22) && lost(23), "counted anew");
    }

    #[test]
    fn who_catches_up_with_its_own_join_was_not_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = State::open(dir.path(), 1).expect("a state");
        let member = |node: &str, raft_id| MemberRecord {
            node: node.parse().expect("a name"),
            raft_id,
            address: format!("{node}:1"),
            voter: true,
            key_sha256: [0; 32],
            token: String::new(),
            token_sha256: [0; 32],
            replaced_by: None,
        };
        let says = |members: &[MemberRecord], given, raft_id| {
            let mut view = state.view().as_ref().clone();
            let members = members.iter().map(|member| (member.node.clone(), Arc::new(member.clone())));
            view.members = Arc::new(members.collect());
            unrecorded(&view, given, &"n2".parse().expect("a name"), raft_id)
        };
        let (one, old, new) = (member("n1", 1), member("n2", 2), member("n2", 3));
        assert_eq!(says(&[], 0, 3), None);
        // As it was before it took the name over, or joined.
        assert_eq!(says(&[one.clone(), old.clone()], 2, 3), None);
        assert_eq!(says(std::slice::from_ref(&one), 1, 3), None);
        assert_eq!(says(&[one.clone(), new.clone()], 3, 3), None);
        assert!(says(&[one.clone(), new], 3, 2).is_some_and(|why| why.contains("taken the name")));
        assert!(says(&[one], 3, 3).is_some_and(|why| why.contains("was removed")));
        assert_eq!(says(&[old], 2, 2), None);
    }

    #[test]
    fn strangers_are_believed_when_all_say_so_again_and_again() {
        let standing = Standing::default();
        let rounds = || locked(&standing.strangers).0;
        for _ in 0..2 {
            standing.answered(false, Some("who are you".into()));
        }
        standing.answered(false, None);
        assert_eq!(rounds(), 2, "nobody answered: nothing new");
        standing.answered(true, Some("who are you".into()));
        assert_eq!(rounds(), 0, "one that lags behind does not know everybody");
    }
}
