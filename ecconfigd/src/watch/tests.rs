#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::EntryPayload;
use proptest::prelude::*;
use repos::{Oid, RefName};

use super::*;
use crate::raft::command::{ChangeSet, NewRevision, Op, RefUpdate, RepoUpdate};
use crate::raft::{Entry, Proposal, log_id};

/// A state whose repositories get revisions without objects: watchers read records only.
struct Source {
    state: Arc<State>,
    index: u64,
    mains: BTreeMap<RepoName, Oid>,
    _dir: tempfile::TempDir,
}

fn repo(text: &str) -> RepoName {
    text.parse().unwrap()
}

fn globs(patterns: &[&str]) -> Globs {
    Globs::new(&patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>()).unwrap()
}

impl Source {
    fn new(max_watchers: usize) -> Source {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), max_watchers).unwrap();
        let mut source = Source { state, index: 0, mains: BTreeMap::new(), _dir: dir };
        let create = |name: &str| Op::CreateRepo { repo: repo(name), head_ref: RefName::main() };
        source.apply(vec![create("default"), create("global")]);
        source
    }

    fn entry(&mut self, ops: Vec<Op>) -> Entry {
        self.index += 1;
        let proposal = Proposal { ops, ..Proposal::default() };
        Entry { log_id: log_id(1, 1, self.index), payload: EntryPayload::Normal(proposal.encode()) }
    }

    fn apply(&mut self, ops: Vec<Op>) {
        let entry = self.entry(ops);
        self.state.apply(&[entry]).unwrap();
    }

    fn change(&mut self, name: &str, paths: &[&str]) -> Op {
        let name = repo(name);
        let old = self.mains.get(&name).copied().unwrap_or(Oid::NULL);
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&(self.index * 1000 + self.mains.len() as u64 + 1).to_be_bytes());
        bytes[8] = old.as_bytes()[8].wrapping_add(1);
        bytes[9] = 1;
        let new = Oid::from_bytes(bytes);
        self.mains.insert(name.clone(), new);
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let revision = NewRevision { author: "a".into(), message: "m".into(), paths, paths_truncated: false };
        let refs = vec![RefUpdate { name: RefName::main(), old, new }];
        let update = RepoUpdate { repo: name, refs, revision: Some(revision) };
        Op::Change(ChangeSet { updates: vec![update], unchanged: BTreeMap::new(), idempotency: None })
    }

    fn commit(&mut self, paths: &[&str]) {
        let op = self.change("default", paths);
        self.apply(vec![op]);
    }

    fn watch(&self, after: Option<u64>, patterns: &[&str]) -> Watch {
        Watch::new(self.state.clone(), repo("default"), after, globs(patterns)).unwrap()
    }
}

/// What comes until the watch has looked at every revision up to `last`, and stands waiting for more.
async fn drain(watch: &mut Watch, last: u64) -> Vec<u64> {
    let begun = std::time::Instant::now();
    let mut seen = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_millis(100), watch.next()).await {
            Ok(Some(event)) => seen.push(event.record.revision),
            Ok(None) => return seen,
            Err(_) if watch.position() >= last => return seen,
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(60), "at {} of {last}", watch.position()),
        }
    }
}

#[tokio::test]
async fn a_watcher_resumes_from_any_revision() {
    let mut source = Source::new(10);
    for number in 0..600 {
        source.commit(&[if number % 100 == 0 { "default/rare" } else { "default/often" }]);
    }
    let mut all = source.watch(Some(0), &[]);
    assert_eq!(drain(&mut all, 600).await, (1..=600).collect::<Vec<_>>());
    let mut rare = source.watch(Some(101), &["default/rare"]);
    assert_eq!(drain(&mut rare, 600).await, [201, 301, 401, 501]);
    assert_eq!(rare.position(), 600, "looked at everything");
    let mut now = source.watch(None, &[]);
    assert_eq!(drain(&mut now, 600).await, [] as [u64; 0]);
    source.commit(&["x"]);
    assert_eq!(drain(&mut now, 601).await, [601]);
}

#[tokio::test]
async fn old_revisions_come_from_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Source::new(10);
    for _ in 0..700 {
        source.commit(&["default/a"]);
    }
    source.commit(&["default/b"]);
    source.state.checkpoint().unwrap();
    // A restart empties the ring.
    let from = source._dir.path().join("state.redb");
    std::fs::copy(from, dir.path().join("state.redb")).unwrap();
    let state = State::open(dir.path(), 10).unwrap();
    let mut all = Watch::new(state.clone(), repo("default"), Some(5), globs(&[])).unwrap();
    assert_eq!(drain(&mut all, 701).await, (6..=701).collect::<Vec<_>>());
    let mut one = Watch::new(state, repo("default"), Some(0), globs(&["default/b"])).unwrap();
    assert_eq!(drain(&mut one, 701).await, [701]);
}

#[tokio::test]
async fn unrelated_commits_wake_nobody() {
    let mut source = Source::new(10);
    let mut watch = source.watch(None, &["default/mine/**"]);
    let mut waiting = tokio_test_next(&mut watch);
    assert!(waiting.poll_once());
    for _ in 0..50 {
        source.commit(&["default/other"]);
        let op = source.change("global", &["default/mine/x"]);
        source.apply(vec![op]);
    }
    assert_eq!(waiting.wakes(), 0);
    source.commit(&["default/mine/x"]);
    assert_eq!(waiting.wakes(), 1);
    drop(waiting);
    assert_eq!(watch.next().await.unwrap().record.revision, 51);
}

/// Polls a watcher by hand and counts how often it was woken.
struct Waiting<'a> {
    future: std::pin::Pin<Box<dyn Future<Output = Option<Arc<Event>>> + 'a>>,
    wakes: Arc<Wakes>,
}

#[derive(Default)]
struct Wakes(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

fn tokio_test_next(watch: &mut Watch) -> Waiting<'_> {
    Waiting { future: Box::pin(watch.next()), wakes: Arc::default() }
}

impl Waiting<'_> {
    /// True when it waits.
    fn poll_once(&mut self) -> bool {
        let waker = self.wakes.clone().into();
        self.future.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending()
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_slow_watcher_is_ended_and_resumes() {
    let mut source = Source::new(10);
    let mut slow = source.watch(None, &[]);
    source.commit(&["a"]);
    assert_eq!(slow.next().await.unwrap().record.revision, 1);
    assert!(tokio_test_next(&mut slow).poll_once(), "it is live now");
    for _ in 0..3000 {
        source.commit(&["a"]);
    }
    assert!(slow.next().await.is_none());
    let mut again = source.watch(Some(slow.position()), &[]);
    assert_eq!(drain(&mut again, 3001).await, (2..=3001).collect::<Vec<_>>());
}

#[tokio::test]
async fn seats_are_bounded_and_given_back() {
    let source = Source::new(2);
    let one = source.watch(None, &[]);
    let _two = source.watch(None, &["x"]);
    assert!(Watch::new(source.state.clone(), repo("default"), None, globs(&[])).is_err());
    drop(one);
    assert_eq!(source.state.hub().watchers(), 1);
    let _three = source.watch(None, &[]);
}

#[tokio::test]
async fn closing_ends_everybody() {
    let source = Source::new(10);
    let mut watch = source.watch(None, &[]);
    let mut target = TargetWatch::new(source.state.hub(), &repo("default"), 0).unwrap().unwrap();
    source.state.hub().close();
    assert!(watch.next().await.is_none());
    assert!(target.next().await.is_none());
}

#[tokio::test]
async fn targets_follow_both_repositories_and_only_the_newest_counts() {
    let mut source = Source::new(10);
    let mut watch = TargetWatch::new(source.state.hub(), &repo("default"), 0).unwrap().unwrap();
    source.commit(&["a"]);
    let op = source.change("global", &["b"]);
    source.apply(vec![op]);
    let target = watch.next().await.unwrap();
    assert_eq!((target.record.serial, target.record.repos.len()), (2, 2));
    let json: cluster::api::Target = serde_json::from_slice(&target.json).unwrap();
    assert_eq!(json, target.api());
    // One entry that moves both is one step.
    let ops = vec![source.change("default", &["a"]), source.change("global", &["b"])];
    source.apply(ops);
    assert_eq!(watch.next().await.unwrap().record.serial, 3);
    // A caller from another life is answered instead of waiting for the numbers to meet.
    let mut ahead = TargetWatch::new(source.state.hub(), &repo("default"), 99).unwrap().unwrap();
    assert_eq!(ahead.next().await.unwrap().record.serial, 3);
    assert!(TargetWatch::new(source.state.hub(), &repo("global"), 0).unwrap().is_none(), "nobody's subcluster");
}

/// A thousand idle watchers cost a position each, and one wake-up per group of globs.
#[tokio::test]
async fn a_thousand_watchers_are_cheap() {
    let mut source = Source::new(2000);
    let mut watchers: Vec<Watch> = (0..1000).map(|_| source.watch(None, &["default/**"])).collect();
    assert!(std::mem::size_of::<Watch>() <= 256, "{}", std::mem::size_of::<Watch>());
    let mut waiting: Vec<Waiting<'_>> = watchers.iter_mut().map(tokio_test_next).collect();
    for one in &mut waiting {
        assert!(one.poll_once());
        assert!(std::mem::size_of_val(&*one.future) <= 1024, "{}", std::mem::size_of_val(&*one.future));
    }
    source.commit(&["default/a"]);
    assert!(waiting.iter().all(|one| one.wakes() == 1));
    let first = Arc::as_ptr(&waiting.remove(0).future.await.unwrap());
    for one in waiting {
        assert_eq!(Arc::as_ptr(&one.future.await.unwrap()), first, "the event and its JSON are made once");
    }
}

#[derive(Debug, Clone)]
struct Plan {
    joins_at: usize,
    after_back: u64,
    glob: usize,
    reads_every: usize,
}

fn plan() -> impl Strategy<Value = Plan> {
    (0..40usize, 0..20u64, 0..4usize, 1..8usize).prop_map(|(joins_at, after_back, glob, reads_every)| Plan {
        joins_at,
        after_back,
        glob,
        reads_every,
    })
}

const GLOBS: [&[&str]; 4] = [&[], &["p0"], &["p1", "p2"], &["none"]];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whoever joins when, from where, reads how rarely: every matching revision once and in order.
    #[test]
    fn every_watcher_sees_every_matching_revision_once(
        commits in proptest::collection::vec(0..3usize, 1..60),
        plans in proptest::collection::vec(plan(), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut source = Source::new(100);
            let mut watchers: Vec<Option<(Watch, u64, Vec<u64>)>> = plans.iter().map(|_| None).collect();
            for (number, path) in commits.iter().enumerate() {
                let newest = number as u64;
                for (plan, slot) in plans.iter().zip(&mut watchers) {
                    if plan.joins_at == number {
                        let after = newest.saturating_sub(plan.after_back);
                        *slot = Some((source.watch(Some(after), GLOBS[plan.glob]), after, Vec::new()));
                    }
                    if let Some((watch, _, seen)) = slot && number % plan.reads_every == 0 {
                        // One look: a result, or waiting.
                        let mut next = Box::pin(watch.next());
                        if let std::task::Poll::Ready(event) = futures::poll!(&mut next) {
                            seen.push(event.unwrap().record.revision);
                        }
                    }
                }
                source.commit(&[&format!("p{path}")]);
            }
            for (plan, slot) in plans.iter().zip(&mut watchers) {
                let Some((watch, after, seen)) = slot else { continue };
                let expected: Vec<u64> = (1..=commits.len() as u64)
                    .filter(|revision| revision > after)
                    .filter(|revision| {
                        let path = format!("p{}", commits[*revision as usize - 1]);
                        GLOBS[plan.glob].is_empty() || GLOBS[plan.glob].contains(&path.as_str())
                    })
                    .collect();
                while seen.len() < expected.len() {
                    seen.push(watch.next().await.unwrap().record.revision);
                }
                assert_eq!(*seen, expected);
                assert!(futures::poll!(Box::pin(watch.next())).is_pending());
            }
        });
    }
}
