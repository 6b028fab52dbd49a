//! Who waits for what.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Event, Globs, TargetEvent};
#[cfg(test)]
use crate::sim::mutants::{self, Mutant};
use crate::state::{Effects, RepoName, RevisionRecord, View};

/// Recent events per repository: a watcher may pause for so many revisions before it is ended.
const RING_EVENTS: usize = 1024;
/// … and for so many bytes.
const RING_BYTES: usize = 8 << 20;
/// Matching revisions that a group remembers, so that waking after many others needs no search.
const GROUP_MATCHES: usize = 64;

/// There are as many watchers as this node takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A watcher's place among those that are allowed.
pub(super) struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Watchers of one repository with the same globs.
pub(super) struct Group {
    globs: Globs,
    /// The newest revision that matched. Changing it wakes the group.
    wake: watch::Sender<u64>,
    matched: Mutex<Matched>,
}

/// The newest matching revisions: every one above `floor` is listed.
struct Matched {
    floor: u64,
    revisions: VecDeque<u64>,
}

impl Group {
    pub(super) fn matches(&self, record: &RevisionRecord) -> bool {
        self.globs.matches(&record.paths, record.paths_truncated)
    }

    fn note(&self, revision: u64) {
        let mut matched = locked(&self.matched);
        if matched.revisions.len() == GROUP_MATCHES
            && let Some(oldest) = matched.revisions.pop_front()
        {
            matched.floor = oldest;
        }
        matched.revisions.push_back(revision);
        drop(matched);
        self.wake.send_replace(revision);
    }

    /// The first matching revision above a position, if the group remembers that far.
    fn next_after(&self, position: u64) -> Option<Option<u64>> {
        let matched = locked(&self.matched);
        (position >= matched.floor).then(|| matched.revisions.iter().copied().find(|revision| *revision > position))
    }
}

#[derive(Default)]
struct Repo {
    newest: u64,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Sorted, so that a commit wakes the groups in the same order every time.
    groups: BTreeMap<Vec<String>, Weak<Group>>,
}

impl Repo {
    fn push(&mut self, event: Arc<Event>) {
        self.newest = event.record.revision;
        self.ring_bytes += event.json.len();
        self.ring.push_back(event);
        while self.ring.len() > RING_EVENTS || (self.ring_bytes > RING_BYTES && self.ring.len() > 1) {
            if let Some(oldest) = self.ring.pop_front() {
                self.ring_bytes -= oldest.json.len();
            }
        }
    }

    fn get(&self, revision: u64) -> Option<&Arc<Event>> {
        let first = self.ring.front()?.record.revision;
        self.ring.get(usize::try_from(revision.checked_sub(first)?).ok()?)
    }
}

/// What the ring knows about the next event of a watcher.
pub(super) enum Recent {
    Found(Arc<Event>),
    Nothing {
        newest: u64,
    },
    /// Revisions up to this one are not in the ring.
    Older {
        upto: u64,
    },
}

/// All watchers of this node.
pub struct Hub {
    repos: Mutex<BTreeMap<RepoName, Repo>>,
    targets: Mutex<BTreeMap<RepoName, watch::Sender<Arc<TargetEvent>>>>,
    seats: Arc<AtomicUsize>,
    max_watchers: usize,
    /// Cancelled to end the watchers that there are; after [`Hub::close`] it stays so.
    closed: Mutex<CancellationToken>,
    /// Goes up with every batch that is applied.
    progress: watch::Sender<u64>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(max_watchers: usize) -> Arc<Hub> {
        Arc::new(Hub {
            repos: Mutex::default(),
            targets: Mutex::default(),
            seats: Arc::default(),
            max_watchers,
            closed: Mutex::default(),
            progress: watch::Sender::new(0),
        })
    }

    /// Takes over the state as it was read from disk. Watchers that are there look again.
    pub(crate) fn restore(&self, view: &View) {
        let mut repos = locked(&self.repos);
        for (name, repo) in view.repos.iter() {
            let newest = repo.record.head.revision;
            let known = repos.entry(name.clone()).or_default();
            (known.newest, known.ring_bytes) = (newest, 0);
            known.ring.clear();
            for group in known.groups.values().filter_map(Weak::upgrade) {
                let mut matched = locked(&group.matched);
                matched.floor = newest;
                matched.revisions.clear();
                drop(matched);
                group.wake.send_replace(newest);
            }
        }
        drop(repos);
        let targets = view.targets.iter().map(|(name, target)| (name.clone(), target.clone()));
        self.set_targets(targets);
        self.progress.send_modify(|batches| *batches += 1);
    }

    /// Tells everybody whom it concerns. Called in the order of the log, after the state shows it.
    pub(crate) fn publish(&self, effects: Effects) {
        for event in effects.events {
            let judged = self.judge(&event.record);
            let mut repos = locked(&self.repos);
            let repo = repos.entry(event.record.repo.clone()).or_default();
            let revision = event.record.revision;
            // A repository that came with its history: what is older than this event stands in the state only.
            let jumped = revision > repo.newest + 1;
            repo.push(event.clone());
            repo.groups.retain(|_, group| match group.upgrade() {
                None => false,
                Some(group) => {
                    if jumped {
                        locked(&group.matched).floor = revision - 1;
                    }
                    #[cfg(test)]
                    if mutants::is_on(Mutant::DroppedEvent) && revision.is_multiple_of(7) {
                        return true;
                    }
                    // One that was not there a moment ago began at the revision before.
                    let matches = judged.get(&Arc::as_ptr(&group)).map(|(_, matches)| *matches);
                    if matches.unwrap_or_else(|| group.matches(&event.record)) {
                        group.note(revision);
                    }
                    true
                }
            });
        }
        self.set_targets(effects.targets);
        self.progress.send_modify(|batches| *batches += 1);
    }

    /// Which groups a revision is for, before anybody can look at it. Without the lock: with many groups and paths it takes a while, and every
    /// watcher's thread may come for the lock meanwhile.
    fn judge(&self, record: &RevisionRecord) -> HashMap<*const Group, (Arc<Group>, bool)> {
        let groups: Vec<Arc<Group>> = match locked(&self.repos).get(&record.repo) {
            Some(repo) => repo.groups.values().filter_map(Weak::upgrade).collect(),
            None => Vec::new(),
        };
        let judged = groups.into_iter().map(|group| {
            let matches = group.matches(record);
            (Arc::as_ptr(&group), (group, matches))
        });
        judged.collect()
    }

    /// How many different globs are watched in a repository.
    pub(crate) fn groups(&self, repo: &RepoName) -> usize {
        locked(&self.repos).get(repo).map_or(0, |repo| repo.groups.len())
    }

    fn set_targets(&self, targets: impl IntoIterator<Item = (RepoName, Arc<TargetEvent>)>) {
        let mut known = locked(&self.targets);
        for (name, target) in targets {
            match known.get(&name) {
                Some(sender) => drop(sender.send_replace(target)),
                None => drop(known.insert(name, watch::Sender::new(target))),
            }
        }
    }

    /// Ends all watchers, now and later.
    pub(crate) fn close(&self) {
        locked(&self.closed).cancel();
    }

    /// Ends the watchers that there are: they go on at another node.
    pub(crate) fn send_away(&self) {
        let mut closed = locked(&self.closed);
        // Once it is closed it stays so.
        if !closed.is_cancelled() {
            std::mem::take(&mut *closed).cancel();
        }
    }

    pub(super) fn closed(&self) -> CancellationToken {
        locked(&self.closed).clone()
    }

    /// Wakes after every applied batch, for those who wait until this node has something.
    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Watchers of all kinds.
    pub fn watchers(&self) -> usize {
        self.seats.load(Ordering::Relaxed)
    }

    pub(super) fn seat(&self) -> Result<Seat, Full> {
        if self.seats.fetch_add(1, Ordering::Relaxed) >= self.max_watchers {
            self.seats.fetch_sub(1, Ordering::Relaxed);
            return Err(Full);
        }
        Ok(Seat(self.seats.clone()))
    }

    /// The group with these globs, its wake-up, and the newest revision.
    pub(super) fn join(&self, repo: &RepoName, globs: Globs) -> (Arc<Group>, watch::Receiver<u64>, u64) {
        let mut repos = locked(&self.repos);
        let repo = repos.entry(repo.clone()).or_default();
        let newest = repo.newest;
        if let Some(group) = repo.groups.get(globs.patterns()).and_then(Weak::upgrade) {
            let wake = group.wake.subscribe();
            return (group, wake, newest);
        }
        let matched = Mutex::new(Matched { floor: newest, revisions: VecDeque::new() });
        let patterns = globs.patterns().to_vec();
        let group = Arc::new(Group { globs, wake: watch::Sender::new(newest), matched });
        repo.groups.insert(patterns, Arc::downgrade(&group));
        let wake = group.wake.subscribe();
        (group, wake, newest)
    }

    /// Looks for the first matching event above a position.
    pub(super) fn look(&self, repo: &RepoName, group: &Group, position: u64) -> Recent {
        let repos = locked(&self.repos);
        let Some(repo) = repos.get(repo) else { return Recent::Nothing { newest: position } };
        if position >= repo.newest {
            return Recent::Nothing { newest: repo.newest };
        }
        let ring_start = repo.ring.front().map_or(repo.newest + 1, |event| event.record.revision);
        match group.next_after(position) {
            Some(None) => return Recent::Nothing { newest: repo.newest },
            Some(Some(revision)) => {
                return match repo.get(revision) {
                    Some(event) => Recent::Found(event.clone()),
                    None => Recent::Older { upto: ring_start - 1 },
                };
            }
            None => {}
        }
        if position + 1 < ring_start {
            return Recent::Older { upto: ring_start - 1 };
        }
        let newest = repo.newest;
        let recent: Vec<_> = (position + 1..=newest).filter_map(|revision| repo.get(revision).cloned()).collect();
        // What comes from here on wakes the watcher.
        drop(repos);
        match recent.into_iter().find(|event| group.matches(&event.record)) {
            Some(event) => Recent::Found(event),
            None => Recent::Nothing { newest },
        }
    }

    pub(super) fn targets(&self, subcluster: &RepoName) -> Option<watch::Receiver<Arc<TargetEvent>>> {
        locked(&self.targets).get(subcluster).map(watch::Sender::subscribe)
    }
}
