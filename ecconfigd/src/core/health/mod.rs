//! Whether this node can be trusted: it compares itself with the others, and steps aside when it is the one that is wrong.
//!
//! What always holds: a node judges only itself ([`verdict`]); what it holds against itself is written down before it acts on it, so that a
//! restart does not forget; while it is out it serves nothing and gives the leadership to whoever can have it. Its log is not in doubt: it
//! goes on voting, and acknowledging entries unless its state has to be replaced. It comes back by itself: objects are fetched from the
//! others ([`objects`]), the state as a snapshot ([`renewal`]). What was bad is kept aside ([`crate::state`]).

mod checkup;
pub(crate) mod objects;
pub(super) mod renewal;
pub(crate) mod verdict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cluster::files::FileError;
use futures::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, watch};

use self::verdict::{Verdict, judge};
use super::{Core, peers};
use crate::error::{Error, Result};
use crate::peer::{Method, Refusal, Target};
use crate::state::{Hash, State};

/// How often the members are asked. A round is one small message to each.
const LOOK: Duration = Duration::from_secs(1);
/// In large groups less often: no node is asked more often than so many times a second.
const ASKED_PER_S: u32 = 8;
/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(1);
/// The pause after an attempt to come back that failed, doubled each time …
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long replicas that are asked for may take to get to the same entry, and how often they are asked.
const AGREE_WITHIN: Duration = Duration::from_secs(5);
const AGREE_LOOK: Duration = Duration::from_millis(200);
/// What this node holds against itself, in the data directory.
const MARKER: &str = "out.json";

/// What is wrong with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// The replicated table.
    State,
    /// Git objects.
    Objects,
}

/// Why a node has taken itself out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outage {
    pub(crate) part: Part,
    pub(crate) why: String,
}

impl Outage {
    /// For people.
    pub(crate) fn words(&self) -> String {
        format!("this node has taken itself out: {}", self.why)
    }
}

/// The marker's content.
#[derive(Serialize, Deserialize)]
struct Marker {
    version: u32,
    #[serde(flatten)]
    outage: Outage,
}

/// The question of [`Method::HASHES`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// Indexes whose running hash is wanted.
    pub(crate) hashes: Vec<u64>,
    /// Indexes whose digest is wanted.
    pub(crate) digests: Vec<u64>,
}

/// Its answer. What the asked node does not have, or not any more, is left out.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) applied: u64,
    #[serde(default)]
    pub(crate) out: Option<String>,
    /// Why it leads in vain, where no majority answers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<String>,
    #[serde(default)]
    pub(crate) hashes: BTreeMap<u64, String>,
    #[serde(default)]
    pub(crate) digests: BTreeMap<u64, String>,
}

impl Told {
    /// Of this state.
    pub(crate) fn of(state: &State, ask: &Ask, out: Option<String>) -> Told {
        let known = |indexes: &[u64], find: &dyn Fn(u64) -> Option<Hash>| {
            let found = indexes.iter().take(MAX_ASKED).filter_map(|index| Some((*index, hex::encode(find(*index)?))));
            found.collect()
        };
        Told {
            applied: state.view().applied_index(),
            out,
            lost: None,
            hashes: known(&ask.hashes, &|index| state.hash_at(index)),
            digests: known(&ask.digests, &|index| state.digest_at(index)),
        }
    }
}

/// Judges a node by what it and the others told: an error says why it is wrong; otherwise what nobody can be blamed for, if anything.
pub(crate) fn judge_all(
    raft_id: u64,
    voters: &[u64],
    own: &Told,
    told: &BTreeMap<u64, Told>,
) -> std::result::Result<Option<String>, String> {
    let mut disputed = None;
    let sides: [(&str, Side); 2] = [("hash", |told| &told.hashes), ("table", |told| &told.digests)];
    for (what, side) in sides {
        for (index, hash) in side(own) {
            // Who is out does not count: it says itself that it is wrong.
            let trusted = told.iter().filter(|(id, told)| voters.contains(id) && told.out.is_none());
            let hashes = trusted.filter_map(|(_, told)| decode(side(told).get(index)?)).collect::<Vec<_>>();
            let Some(own) = decode(hash) else { continue };
            match judge(own, voters.contains(&raft_id), &hashes, voters.len()) {
                Verdict::Equal | Verdict::OthersDiffer => {}
                Verdict::Wrong { with } => {
                    let of = voters.len();
                    return Err(format!(
                        "its state differs from that of {with} of {of} voters at entry {index} ({what})"
                    ));
                }
                Verdict::Disputed => {
                    disputed = Some(format!("replicas differ at entry {index} ({what}), and none has a majority"));
                }
            }
        }
    }
    Ok(disputed)
}

/// One of the two kinds of hashes.
type Side = fn(&Told) -> &BTreeMap<u64, String>;

/// A question has few indexes; more are not answered.
const MAX_ASKED: usize = 16;

/// A difference that nobody can be blamed for, and for how many rounds it has been seen.
#[derive(Default)]
struct Dispute {
    why: String,
    rounds: u32,
}

/// Rounds after which it is said.
const DISPUTED_ROUNDS: u32 = 4;

/// What this node knows about itself and the others.
pub(crate) struct Health {
    data: PathBuf,
    out: watch::Sender<Option<Outage>>,
    /// Held while that changes, and the marker with it.
    turning: tokio::sync::Mutex<()>,
    /// What each member said last, by its number.
    others: Mutex<BTreeMap<u64, Told>>,
    /// Replicas differ, and nobody can be blamed.
    disputed: Mutex<Dispute>,
    /// Wakes [`objects::keep`].
    look_at_objects: Notify,
    /// The outcome of the last look at all objects.
    pub(super) scrubbed: Mutex<Option<objects::Scrubbed>>,
    healed: AtomicU64,
    /// One examination for others at a time: each reads everything.
    examining: Semaphore,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a marker says. One that this build cannot read says that something was wrong, so everything is doubted.
fn read_marker(json: &[u8]) -> Outage {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let doubt = |why: String| Outage { part: Part::State, why };
    match serde_json::from_slice::<Version>(json) {
        Ok(Version { version: 1 }) => {}
        Ok(Version { version }) => {
            return doubt(format!("{MARKER} has version {version}, this build knows 1: a newer ecconfigd wrote it"));
        }
        Err(error) => return doubt(format!("{MARKER} cannot be read: {error}")),
    }
    let marker = serde_json::from_slice::<Marker>(json);
    marker.map_or_else(|error| doubt(format!("{MARKER} cannot be read: {error}")), |marker| marker.outage)
}

impl Health {
    /// Of a node with this data directory. What it held against itself before it was restarted still holds.
    pub(super) fn new(data: PathBuf) -> Health {
        let before = match std::fs::read(data.join(MARKER)) {
            Err(_) => None,
            Ok(json) => Some(read_marker(&json)),
        };
        Health {
            data,
            out: watch::Sender::new(before),
            turning: tokio::sync::Mutex::default(),
            others: Mutex::default(),
            disputed: Mutex::default(),
            look_at_objects: Notify::new(),
            scrubbed: Mutex::default(),
            healed: AtomicU64::new(0),
            examining: Semaphore::new(1),
        }
    }

    /// Why this node is out, if it is.
    pub(crate) fn outage(&self) -> Option<Outage> {
        self.out.borrow().clone()
    }

    /// Whether it is out for this reason.
    pub(super) fn is_out_for(&self, part: Part) -> bool {
        self.out.borrow().as_ref().is_some_and(|outage| outage.part == part)
    }

    /// Follows [`Health::outage`].
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Outage>> {
        self.out.subscribe()
    }

    /// Whether this member said that it is out.
    pub(super) fn is_out(&self, raft_id: u64) -> bool {
        locked(&self.others).get(&raft_id).is_some_and(|told| told.out.is_some())
    }

    /// Why this member leads in vain, as it said itself.
    pub(super) fn lost_of(&self, raft_id: u64) -> Option<String> {
        locked(&self.others).get(&raft_id).and_then(|told| told.lost.clone())
    }

    /// What members said of themselves that are out, by number.
    pub(super) fn others_out(&self) -> BTreeMap<u64, String> {
        let others = locked(&self.others);
        others.iter().filter_map(|(id, told)| Some((*id, told.out.clone()?))).collect()
    }

    /// Why nobody can say which replica is right, where that is so.
    pub(super) fn disputed(&self) -> Option<String> {
        let known = locked(&self.disputed);
        (known.rounds >= DISPUTED_ROUNDS).then(|| known.why.clone())
    }

    /// Believed when it lasts: a third replica may not have told its hash yet.
    fn note_dispute(&self, found: Option<String>) {
        let mut known = locked(&self.disputed);
        match found {
            None => {
                if known.rounds >= DISPUTED_ROUNDS {
                    tracing::info!("the replicas that answer are equal again");
                }
                *known = Dispute::default();
            }
            Some(why) => {
                known.rounds += 1;
                if known.rounds == DISPUTED_ROUNDS {
                    tracing::error!("{why}: nobody can say which is right, all go on");
                }
                known.why = why;
            }
        }
    }

    /// How often this node came back.
    pub(super) fn healed(&self) -> u64 {
        self.healed.load(Ordering::Relaxed)
    }

    /// There is a reason to read all objects.
    pub(super) fn doubt_objects(&self) {
        self.look_at_objects.notify_one();
    }
}

impl Core {
    /// Why this node serves nothing, where that is so: it has taken itself out until it is right again, or is no member any more.
    pub fn out(&self) -> Option<String> {
        self.health().outage().map(|outage| outage.words()).or_else(|| self.removed())
    }

    pub(super) fn health(&self) -> &Health {
        &self.inner.health
    }

    /// Takes this node out. A doubt about the state weighs more than one about objects: with the state, objects are looked at, too.
    pub(super) async fn go_out(&self, part: Part, why: String) {
        let outage = Outage { part, why };
        let turning = self.health().turning.lock().await;
        let before = self.health().outage();
        if before.as_ref().is_some_and(|before| before.part == part || before.part == Part::State) {
            return;
        }
        tracing::error!("{}; it serves nothing and rebuilds what it lacks from the other members", outage.words());
        let marker = Marker { version: 1, outage: outage.clone() };
        let json = serde_json::to_vec_pretty(&marker).expect("words and numbers are JSON");
        let written = self.on_marker(move |path| cluster::files::write_atomic(path, &json, 0o600)).await;
        if let Err(error) = written {
            tracing::error!("that this node is out could not be written down: {error}");
        }
        self.health().out.send_replace(Some(outage));
        drop(turning);
        self.inner.proposer.state.hub().send_away();
        self.step_aside().await;
    }

    /// No leadership while it is out, if anybody else can have it. One that lacks objects still stands for election: after a power cut all may
    /// lack the newest, and the log, which brings them again, goes on only under a leader.
    async fn step_aside(&self) {
        let Some(outage) = self.health().outage() else { return };
        if outage.part == Part::State {
            self.inner.proposer.raft.runtime_config().elect(false);
        }
        let may_lead = |id| !self.health().is_out(id);
        super::disk::give_leadership_away(&self.inner.proposer, &outage.why, may_lead).await;
    }

    /// Writes or removes the marker, on a thread that may block.
    async fn on_marker(
        &self,
        work: impl FnOnce(&Path) -> std::result::Result<(), FileError> + Send + 'static,
    ) -> std::result::Result<(), String> {
        let path = self.health().data.join(MARKER);
        let done = self.inner.proposer.state.outside().blocking(move || work(&path)).await;
        done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Lets this node serve again.
    pub(super) async fn come_back(&self) {
        let _turning = self.health().turning.lock().await;
        if let Err(error) = self.on_marker(cluster::files::remove).await {
            tracing::error!("that this node is back could not be written down: {error}");
        }
        self.health().out.send_replace(None);
        self.health().healed.fetch_add(1, Ordering::Relaxed);
        self.inner.proposer.raft.runtime_config().elect(self.read_only().is_none());
        tracing::info!("what this node holds is right again: it takes part again");
    }

    /// All other members.
    pub(super) fn other_members(&self) -> Vec<Target> {
        let own = self.inner.raft_id;
        let members = self.inner.proposer.raft.metrics().borrow_watched().membership_config.clone();
        let others = members.membership().nodes().filter(|(id, _)| **id != own);
        others.map(|(id, node)| peers::target(*id, node)).collect()
    }

    /// Answers [`Method::HASHES`].
    pub(super) fn tell_hashes(&self, body: &[u8]) -> std::result::Result<Bytes, Refusal> {
        let ask: Ask = serde_json::from_slice(body).map_err(Refusal::bad)?;
        let told = self.own_hashes(&ask);
        serde_json::to_vec(&told).map(Bytes::from).map_err(Refusal::failed)
    }

    pub(super) fn own_hashes(&self, ask: &Ask) -> Told {
        let out = self.health().outage().map(|outage| outage.why);
        Told { lost: self.leads_in_vain(), ..Told::of(&self.inner.proposer.state, ask, out) }
    }

    /// Asks members, all at once. Who does not answer in time is left out.
    pub(super) async fn ask_hashes(&self, ask: &Ask, targets: &[Target]) -> BTreeMap<u64, Told> {
        let Some(client) = &self.inner.client else { return BTreeMap::new() };
        let body = Bytes::from(serde_json::to_vec(ask).expect("numbers are JSON"));
        let calls = targets.iter().map(|target| {
            let body = body.clone();
            async move {
                let answer = client.call(target, Method::HASHES, body, WITHIN).await.ok()?;
                Some((target.raft_id, serde_json::from_slice::<Told>(&answer).ok()?))
            }
        });
        join_all(calls).await.into_iter().flatten().collect()
    }

    /// One round: asks everybody, and judges itself. `asked` are the indexes of the last round, which others may have reached since.
    async fn compare(&self, asked: &mut Ask) {
        let state = &self.inner.proposer.state;
        let (view, digest) = (state.view(), state.newest_digest());
        let mut ask = std::mem::take(asked);
        ask.hashes.push(view.applied_index());
        ask.digests.extend(digest);
        for indexes in [&mut ask.hashes, &mut ask.digests] {
            indexes.dedup();
        }
        let own = self.own_hashes(&ask);
        let told = self.ask_hashes(&ask, &self.other_members()).await;
        *locked(&self.health().others) = told.clone();
        *asked = Ask { hashes: vec![view.applied_index()], digests: digest.into_iter().collect() };
        // What it would say of itself is known already.
        if !self.health().is_out_for(Part::State) {
            self.judge(&own, &told).await;
        }
    }

    async fn judge(&self, own: &Told, told: &BTreeMap<u64, Told>) {
        let membership = self.inner.proposer.state.view().membership.clone();
        let voters: Vec<u64> = membership.voter_ids().collect();
        match judge_all(self.inner.raft_id, &voters, own, told) {
            Err(why) => self.go_out(Part::State, why).await,
            Ok(disputed) => self.health().note_dispute(disputed),
        }
    }

    /// Whether the members have the same state, heads and all, as this one: all that can be reached, and among them a majority of the voters.
    pub(super) async fn replicas_agree(&self) -> Result<()> {
        let view = self.inner.proposer.state.view();
        let ask = Ask { hashes: vec![view.applied_index()], digests: Vec::new() };
        let (index, own) = (view.applied_index(), hex::encode(view.hash));
        let voters: Vec<u64> = view.membership.voter_ids().collect();
        let others = self.other_members();
        let deadline = tokio::time::Instant::now() + AGREE_WITHIN;
        loop {
            let told = self.ask_hashes(&ask, &others).await;
            let (mut equal, mut waits) = (usize::from(voters.contains(&self.inner.raft_id)), Vec::new());
            for target in &others {
                let node = &target.node;
                let answer = told.get(&target.raft_id);
                if let Some(why) = answer.and_then(|told| told.out.as_ref()) {
                    return Err(Error::Unavailable(format!("{node} has taken itself out: {why}")));
                }
                match answer.map(|told| told.hashes.get(&index)) {
                    Some(Some(hash)) if *hash != own => {
                        let words = format!("{node} has another state than this node at entry {index}");
                        return Err(Error::Unavailable(words));
                    }
                    Some(Some(_)) => equal += usize::from(voters.contains(&target.raft_id)),
                    Some(None) => waits.push(format!("{node} has not applied entry {index} yet")),
                    None => waits.push(format!("{node} does not answer")),
                }
            }
            let late = tokio::time::Instant::now() > deadline;
            if equal > voters.len() / 2 && (waits.is_empty() || late) {
                waits.iter().for_each(|why| tracing::warn!("replicas were compared without one: {why}"));
                return Ok(());
            }
            if late {
                return Err(Error::Unavailable(format!("the replicas could not be compared: {}", waits.join(", "))));
            }
            tokio::time::sleep(AGREE_LOOK).await;
        }
    }

    async fn digest_if_due(&self) {
        let state = self.inner.proposer.state.clone();
        let done = tokio::task::spawn_blocking(move || state.compute_digest()).await;
        match done {
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => self.go_out(Part::State, format!("its state cannot be read: {error}")).await,
        }
    }
}

fn decode(hash: &str) -> Option<Hash> {
    hex::decode(hash).ok()?.try_into().ok()
}

/// Compares until the core stops, and brings the state back while it is wrong.
pub(super) async fn keep(core: Core) {
    let mut asked = Ask::default();
    let mut pause = FIRST_PAUSE;
    let mut wait = LOOK;
    while core.inner.stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        let members = u32::try_from(core.other_members().len()).unwrap_or(u32::MAX);
        wait = LOOK.max(Duration::from_secs(1) * members / ASKED_PER_S);
        core.digest_if_due().await;
        core.compare(&mut asked).await;
        core.step_aside().await;
        if !core.health().is_out_for(Part::State) {
            pause = FIRST_PAUSE;
            continue;
        }
        match renewal::renew(&core).await {
            Ok(()) => {
                // Objects are doubted with the state that names them.
                let whole = objects::heal(&core).await;
                match whole {
                    Ok(()) => core.come_back().await,
                    Err(error) => tracing::error!("objects are missing: {error}"),
                }
            }
            Err(error) => {
                tracing::error!("this node stays out: its state could not be replaced yet: {error}");
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait = pause;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_of_another_version_takes_the_node_out_with_words() {
        let known = read_marker(br#"{"version":1,"part":"objects","why":"a pack"}"#);
        assert_eq!(known, Outage { part: Part::Objects, why: "a pack".into() });
        let newer = read_marker(br#"{"version":2,"parts":["objects"],"why":"a pack"}"#);
        assert!(newer.part == Part::State && newer.why.contains("out.json has version 2"), "{newer:?}");
        assert_eq!(read_marker(b"").part, Part::State);
    }
}
