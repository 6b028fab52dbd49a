//! Clients that commit, push, read and watch while things break, and what they saw.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cluster::api::{ChangeRequest, CommitRequest, CommitResponse, Head, LogEntry, WatchEvent};
use cluster::http_client::{ApiClient, ClientError, Incoming};

use crate::lab::{Access, Lab};
use crate::linear::{self, Interval};
use crate::support::{DEADLINE, eventually};

/// A commit whose answer never came is given up after this; it may have happened.
const PATIENCE: Duration = Duration::from_secs(20);

/// A commit that was acknowledged.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub head: Head,
    pub path: String,
    pub text: String,
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    commits: Vec<(Acknowledged, Interval)>,
    /// Commit ids that a ref advertisement named.
    reads: Vec<(String, Interval)>,
    /// Commits that `git push` was told are there.
    pushed: Vec<String>,
    events: Vec<WatchEvent>,
}

impl Seen {
    /// What was done to the head. Revisions whose clients were told nothing may have begun at any time.
    fn operations(&self, log: &BTreeMap<u64, String>) -> Vec<linear::Op<String>> {
        let by_id: BTreeMap<&str, u64> = log.iter().map(|(revision, id)| (id.as_str(), *revision)).collect();
        let mut unclaimed = log.clone();
        let mut operations = Vec::new();
        for (Acknowledged { head, .. }, interval) in &self.commits {
            unclaimed.remove(&head.revision);
            operations.push(linear::Op::write(head.revision, head.commit.clone(), *interval));
        }
        for (id, interval) in &self.reads {
            let revision = by_id.get(id.as_str()).unwrap_or_else(|| panic!("a read saw {id}, which is in no history"));
            operations.push(linear::Op::read(*revision, id.clone(), *interval));
        }
        operations.extend(unclaimed.into_iter().map(|(revision, id)| linear::Op::maybe(revision, id, 0)));
        operations
    }
}

/// Times since the load began.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap()
    }

    fn since(self, invoked_ns: u64) -> Interval {
        Interval { invoked_ns, answered_ns: self.now_ns() }
    }
}

/// Clients at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Seen>>,
}

impl Load {
    /// Starts committers, readers, one watcher and one real git that pushes, on all machines that run now.
    pub fn start(lab: &Lab, committers: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Load { stop: stop.clone(), clients: Vec::new() };
        let (names, clock) = (lab.running(), Clock(Instant::now()));
        for number in 0..committers {
            // Each prefers another machine.
            let mut order = names.clone();
            order.rotate_left(number % names.len());
            let (access, stop) = (lab.access(&order), stop.clone());
            load.spawn(move || commits(access, &format!("c{number}"), clock, &stop));
        }
        for name in &names {
            let (access, stop) = (lab.access(&[name]), stop.clone());
            load.spawn(move || reads(access, clock, &stop));
        }
        let (access, stop_watch) = (lab.access(&names), stop.clone());
        load.spawn(move || watches(access, &stop_watch));
        let repo = lab.scratch("pusher");
        std::fs::create_dir_all(&repo).unwrap();
        let first = lab.git(&repo);
        let remotes: Vec<String> = names.iter().map(|name| lab.repo_url(name, "default")).collect();
        load.spawn(move || pushes(&repo, &first, &remotes, &stop));
        load
    }

    fn spawn(&mut self, client: impl FnOnce() -> Seen + Send + 'static) {
        self.clients.push(std::thread::spawn(client));
    }

    /// Ends the clients and judges what they saw against every machine that runs.
    pub fn judge(self, lab: &Lab) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in self.clients {
            let seen = client.join().expect("a client does not panic");
            all.commits.extend(seen.commits);
            all.reads.extend(seen.reads);
            all.pushed.extend(seen.pushed);
            all.events.extend(seen.events);
        }
        eprintln!(
            "{} commits, {} pushes, {} reads, {} events",
            all.commits.len(),
            all.pushed.len(),
            all.reads.len(),
            all.events.len()
        );
        assert!(!all.commits.is_empty() && !all.reads.is_empty() && !all.pushed.is_empty(), "the clients did nothing");
        let newest = same_heads(lab);
        let log = histories(lab, newest);
        for (commit, _) in &all.commits {
            let id = log.get(&commit.head.revision);
            assert_eq!(id, Some(&commit.head.commit), "an acknowledged commit is not in the history: {commit:?}");
        }
        linear::check(&all.operations(&log)).unwrap();
        let mut expected = all.events.first().map(|event| event.revision);
        for event in &all.events {
            assert_eq!(Some(event.revision), expected, "the watcher missed or repeated a revision");
            assert_eq!(log.get(&event.revision), Some(&event.commit), "the watcher was told another history");
            expected = Some(event.revision + 1);
        }
        real_git_has_everything(lab, &all);
    }
}

/// Waits until every machine that runs stands at the same head.
fn same_heads(lab: &Lab) -> Head {
    eventually("one head everywhere", || {
        let heads: Result<Vec<Head>, _> = lab.running().iter().map(|name| lab.head_at(name, "default")).collect();
        let heads = heads.ok()?;
        heads.iter().all(|head| head == &heads[0]).then(|| heads[0].clone())
    })
}

/// The revisions with their commits; the same on every machine.
fn histories(lab: &Lab, newest: Head) -> BTreeMap<u64, String> {
    let logs: Vec<_> = lab.running().into_iter().map(|name| history(lab, name, newest.revision)).collect();
    for (log, name) in logs.iter().zip(lab.running()) {
        assert!(log == &logs[0], "the history of {name} differs");
    }
    assert!(logs[0].keys().copied().eq(1..=newest.revision), "revisions are missing");
    logs.into_iter().next().unwrap()
}

/// One machine's revisions with their commits, a page at a time.
fn history(lab: &Lab, name: &str, newest: u64) -> BTreeMap<u64, String> {
    lab.client_of(&[name], |client| async move {
        let (mut log, mut next) = (BTreeMap::new(), newest);
        while next > 0 {
            let path = format!("/api/v1/repos/default/log?limit=500&revision=r{next}&min_revision={newest}");
            let page: Vec<LogEntry> = client.get_json(&path).await.unwrap();
            log.extend(page.into_iter().filter_map(|entry| Some((entry.revision?, entry.commit))));
            let oldest = log.keys().next().copied().unwrap();
            assert!(oldest <= next, "a page without an end");
            next = oldest - 1;
        }
        log
    })
}

fn real_git_has_everything(lab: &Lab, all: &Seen) {
    for name in lab.running() {
        let clone = lab.scratch(&format!("clone-{name}"));
        std::fs::create_dir_all(&clone).unwrap();
        crate::support::ok(lab.git(&clone).args(["clone", "-q", "--bare", &lab.repo_url(name, "default"), "."]));
        crate::support::ok(lab.git(&clone).args(["fsck", "--strict"]));
        let log = crate::support::ok(lab.git(&clone).args(["log", "--all", "--format=%H"]));
        let log: std::collections::BTreeSet<&str> = log.lines().collect();
        let acknowledged = all.commits.iter().map(|(commit, _)| &commit.head.commit).chain(&all.pushed);
        for id in acknowledged {
            assert!(log.contains(id.as_str()), "{id} was acknowledged and is not in git log of {name}");
        }
        let listed = crate::support::ok(lab.git(&clone).args(["ls-tree", "-r", "--name-only", "main"]));
        let newest: BTreeMap<&str, &str> =
            all.commits.iter().map(|(commit, _)| (commit.path.as_str(), commit.text.as_str())).collect();
        for path in newest.keys() {
            assert!(listed.lines().any(|line| line == *path), "{path} is not in the tree of {name}");
        }
        std::fs::remove_dir_all(&clone).unwrap();
    }
}

fn commits(access: Access, client_name: &str, clock: Clock, stop: &AtomicBool) -> Seen {
    let path = format!("default/load/{client_name}.txt");
    access.run(|client| async move {
        let mut seen = Seen::default();
        let mut base = head(&client).await;
        for number in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let text = format!("{client_name} {number}\n");
            let request = CommitRequest {
                base: base.into(),
                message: format!("{client_name} {number}"),
                changes: vec![ChangeRequest::put(&path, text.clone().into_bytes())],
            };
            let key = format!("{client_name}-{number}");
            let began = clock.now_ns();
            if let Some(answer) = commit(&client, &request, &key, stop).await {
                let head = Head { revision: answer.revision, commit: answer.commit };
                base = head.revision;
                seen.commits.push((Acknowledged { head, path: path.clone(), text }, clock.since(began)));
            } else {
                // It may have happened: the next one begins from wherever the head is.
                base = base.max(head(&client).await);
            }
        }
        seen
    })
}

async fn head(client: &ApiClient) -> u64 {
    let begun = Instant::now();
    loop {
        match client.get_json::<Head>("/api/v1/repos/default/head").await {
            Ok(head) => return head.revision,
            Err(error) => assert!(begun.elapsed() < DEADLINE, "no head: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks under one key until there is an answer.
async fn commit(client: &ApiClient, request: &CommitRequest, key: &str, stop: &AtomicBool) -> Option<CommitResponse> {
    let begun = Instant::now();
    loop {
        let path = "/api/v1/repos/default/commits";
        match client.post_json_idempotent(path, request, key).await {
            Ok(answer) => return Some(answer),
            Err(error) if is_passing(&error) => {}
            Err(error) => panic!("a commit was refused: {error}"),
        }
        if begun.elapsed() > PATIENCE || stop.load(Ordering::Relaxed) {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_passing(error: &ClientError) -> bool {
    error.is_temporary() || error.status().is_none() || matches!(error.status(), Some(429 | 500..=599))
}

/// Ref advertisements of one machine, as git asks for them.
fn reads(access: Access, clock: Clock, stop: &AtomicBool) -> Seen {
    access.run(|client| async move {
        let mut seen = Seen::default();
        while !stop.load(Ordering::Relaxed) {
            let began = clock.now_ns();
            let answer = client.get_bytes("/default.git/info/refs?service=git-upload-pack", 1 << 20).await;
            let interval = clock.since(began);
            let text = answer.as_ref().map(|bytes| String::from_utf8_lossy(bytes)).unwrap_or_default();
            // `003f<40 hex> refs/heads/main`
            let main = text.lines().find_map(|line| line.split_once(" refs/heads/main")).map(|(before, _)| before);
            if let Some(id) = main.and_then(|before| before.get(before.len().checked_sub(40)?..)) {
                seen.reads.push((id.to_owned(), interval));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        seen
    })
}

/// One subscriber, which goes on at another machine when its own dies.
fn watches(access: Access, stop: &AtomicBool) -> Seen {
    access.run(|client| async move {
        let mut seen = Seen::default();
        let mut events = client.events("/api/v1/repos/default/watch?after=1", Some("1".to_owned()));
        while !stop.load(Ordering::Relaxed) {
            let next = tokio::time::timeout(Duration::from_millis(200), events.next()).await;
            if let Ok(Ok(Incoming::Event(event))) = next {
                seen.events.push(serde_json::from_str(&event.data).expect("an event is JSON"));
            }
        }
        seen
    })
}

/// A real git that goes on committing to a branch of its own, and pushes it to one machine after the other.
fn pushes(repo: &Path, template: &std::process::Command, remotes: &[String], stop: &AtomicBool) -> Seen {
    let git = |args: &[&str]| {
        let mut command = std::process::Command::new(template.get_program());
        command.env_clear().envs(template.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.args(template.get_args()).args(args).current_dir(repo);
        command.output().unwrap()
    };
    let mut seen = Seen::default();
    assert!(git(&["init", "-q", "-b", "main", "."]).status.success());
    for (number, remote) in remotes.iter().cycle().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let has_begun = git(&["rev-parse", "-q", "--verify", "HEAD"]).status.success();
        let begins = || {
            git(&["fetch", "-q", remote, "main"]).status.success()
                && git(&["reset", "-q", "--hard", "FETCH_HEAD"]).status.success()
        };
        if !has_begun && !begins() {
            continue;
        }
        std::fs::write(repo.join("pushed.txt"), format!("{number}\n")).unwrap();
        assert!(git(&["add", "-A"]).status.success());
        assert!(git(&["commit", "-q", "-m", &format!("push {number}")]).status.success());
        if git(&["push", "-q", remote, "HEAD:side"]).status.success() {
            let head = git(&["rev-parse", "HEAD"]);
            seen.pushed.push(String::from_utf8_lossy(&head.stdout).trim().to_owned());
        }
    }
    seen
}
