#![allow(clippy::unwrap_used)]
//! Stories of the Committer. A script is commands and what they must print; see `stories/`.
//!
//! ```text
//! commit A base=1 default/a.txt="one"      several lines without `serve` between them go into one batch
//! serve                                    builds and proposes what waits; prints every answer and the heads
//! ```

mod push;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use cluster::api::RevisionSpec;
use repos::{RepoPath, TreeChange};
use tokio::sync::oneshot;

use super::queue::{Committer, is_brief};
use super::*;
use crate::core::Core;
use crate::core::tests::{author, name, put, started};
use crate::error::{Error, Result};

/// Text that does not compress well, the same every time.
pub(crate) fn noise_text(bytes: usize) -> String {
    hex::encode(push::noise(bytes / 2))
}

/// One `what=…` of a command, unquoted.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => quoted = !quoted,
            '\\' if quoted => match chars.next() {
                Some('n') => words.last_mut().unwrap().push('\n'),
                Some(other) => words.last_mut().unwrap().push(other),
                None => {}
            },
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().unwrap().push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// `base=1 [repo:]path="text" -path path>other key=k`; a repository begins with `repo:`.
fn commit_request(words: &[String]) -> CommitRequest {
    let mut request =
        CommitRequest { author: author(), message: "story".into(), idempotency_key: None, repos: BTreeMap::new() };
    let mut base = RevisionSpec::Number(1);
    for word in words {
        if let Some(text) = word.strip_prefix("base=") {
            base = text.parse().unwrap();
            continue;
        }
        if let Some(key) = word.strip_prefix("key=") {
            request.idempotency_key = Some(key.into());
            continue;
        }
        let (repo, rest) = word.split_once(':').unwrap_or(("default", word));
        let path = |text: &str| RepoPath::new(text).unwrap();
        let change = match rest.split_once('=') {
            Some((at, text)) => put(at, text),
            None => match (rest.strip_prefix('-'), rest.split_once('>')) {
                (Some(at), _) => TreeChange::Delete { path: path(at) },
                (None, Some((from, to))) => TreeChange::Rename { from: path(from), to: path(to) },
                _ => panic!("what is {word:?}?"),
            },
        };
        let part = request.repos.entry(name(repo));
        part.or_insert_with(|| RepoChange { base: base.clone(), changes: vec![] }).changes.push(change);
    }
    request
}

fn show(result: Result<CommitAnswer>) -> String {
    match result {
        Ok(answer) => {
            let part = |(name, one): (_, &Committed)| {
                format!("{name} r{}{}", one.head.revision, if one.changed { "" } else { " unchanged" })
            };
            let parts: Vec<String> = answer.repos.iter().map(part).collect();
            format!("{}{}", parts.join(", "), if answer.replayed { " (replayed)" } else { "" })
        }
        Err(Error::Conflict { paths }) => {
            let part = |path: &cluster::api::ConflictPath| format!("{}:{} ({})", path.repo, path.path, path.reason);
            format!("conflict: {}", paths.iter().map(part).collect::<Vec<_>>().join(", "))
        }
        Err(Error::Refused { findings }) => {
            let part = |finding: &cluster::api::Finding| finding.to_string();
            format!("refused: {}", findings.iter().map(part).collect::<Vec<_>>().join("; "))
        }
        Err(error) => format!("error: {error}"),
    }
}

fn heads(core: &Core) -> String {
    let mut out = String::new();
    for (name, repo) in core.repos() {
        let reader = core.store(&name).unwrap().reader().unwrap();
        let tree = reader.tree_of(repo.head.commit).unwrap();
        let files: Vec<String> = reader
            .list(tree, None, true)
            .unwrap()
            .iter()
            .map(|entry| {
                let data = reader.blob(entry.id, 1 << 20).unwrap();
                format!("{}={:?}", entry.path, String::from_utf8_lossy(&data))
            })
            .collect();
        writeln!(out, "  {name} r{}: {}", repo.head.revision, files.join(" ")).unwrap();
    }
    out
}

async fn run(script: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let mut committer = Committer {
        proposer: core.proposer(),
        limits: Default::default(),
        stats: Arc::default(),
        later: VecDeque::new(),
        last_was_brief: false,
    };
    let (mut out, mut jobs, mut answers) = (String::new(), VecDeque::new(), Vec::new());
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        writeln!(out, "> {line}").unwrap();
        let words = words(line);
        match words[0].as_str() {
            "commit" => {
                let (answer, answered) = oneshot::channel();
                jobs.push_back(Job::Commit(Box::new(commit_request(&words[2..])), answer));
                answers.push((words[1].clone(), answered));
            }
            "create" => {
                let (answer, answered) = oneshot::channel();
                let new = NewRepo { repo: name(&words[1]), author: author(), files: vec![], key: None };
                jobs.push_back(Job::Create(Box::new(new), answer));
                answers.push((words[1].clone(), answered));
            }
            "serve" => {
                let before = core.group().applied;
                committer.serve(std::mem::take(&mut jobs)).await;
                while !committer.later.is_empty() {
                    writeln!(out, "  {} left for the next batch", committer.later.len()).unwrap();
                    let later = std::mem::take(&mut committer.later);
                    committer.serve(later).await;
                }
                for (who, answered) in answers.drain(..) {
                    writeln!(out, "  {who}: {}", show(answered.await.unwrap())).unwrap();
                }
                writeln!(out, "  {} log entries", core.group().applied - before).unwrap();
                out.push_str(&heads(&core));
            }
            other => panic!("what is {other:?}?"),
        }
    }
    core.shutdown().await;
    out
}

macro_rules! stories {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let script = include_str!(concat!("stories/", stringify!($name), ".txt"));
            let told = run(script).await;
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "stories" }, {
                insta::assert_snapshot!(stringify!($name), told);
            });
        }
    )*};
}

stories!(same_file, disjoint, renames, two_repositories, keys, no_change, rules, bases, creation);

/// What is built where sockets and timers are served merges nothing, looks into no history, and asks the gate about no node.
#[tokio::test(flavor = "multi_thread")]
async fn only_usual_commits_are_built_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let first = core.head(&name("default")).unwrap().commit;
    core.commit(commit_request(&["default/a=1".into()])).await.unwrap();
    let head = core.head(&name("default")).unwrap().commit;
    let state = core.proposer().state;
    let jobs = |words: &str| -> VecDeque<Job> {
        let requests =
            words.split(" & ").map(|words| commit_request(&words.split(' ').map(Into::into).collect::<Vec<_>>()));
        requests.map(|request| Job::Commit(Box::new(request), oneshot::channel().0)).collect()
    };
    let many = (0..100).map(|number| format!(" default/f{number}=x")).collect::<String>();
    for (words, brief) in [
        ("base=2 default/a=2".to_owned(), true),
        (format!("base={head} default/a=2 default/b=1"), true),
        ("base=1 default/a=2".to_owned(), false),
        (format!("base={first} default/a=2"), false),
        (format!("base={} default/a=2", &head.to_string()[..12]), false),
        ("base=2 default/logd.toml=x".to_owned(), false),
        ("base=2 -default/a".to_owned(), false),
        ("base=2 default/a=2 & base=2 default/b=1".to_owned(), false),
        (format!("base=2{many}"), false),
        (format!("base=2 default/a={}", "x".repeat(100_000)), false),
        ("base=2 none:a=2".to_owned(), false),
    ] {
        assert_eq!(is_brief(&state.view(), &jobs(&words)), brief, "{}", &words[..words.len().min(60)]);
    }
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let mut tasks = Vec::new();
    for client in 0..8 {
        let core = core.clone();
        tasks.push(tokio::spawn(async move {
            for number in 0..10 {
                let words = [format!("base={}", 1), format!("default/c{client}/f{number}=x")];
                let answer = core.commit(commit_request(&words)).await.unwrap();
                assert!(answer.repos[&name("default")].changed);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(core.head(&name("default")).unwrap().revision, 81);
    let figures = core.figures();
    assert!(figures.entries < figures.requests, "a burst shares entries: {figures:?}");
    let reader = core.store(&name("default")).unwrap().reader().unwrap();
    let head = core.head(&name("default")).unwrap().commit;
    assert_eq!(reader.list(reader.tree_of(head).unwrap(), None, true).unwrap().len(), 81);
    let chain = reader.log(head, &repos::LogOptions { limit: 1000, ..Default::default() }).unwrap();
    assert_eq!(chain.len(), 81, "one history, one commit per revision");
    core.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_and_a_large_commit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let limit = crate::core::CoreLimits::default().max_commit_bytes as usize;
    let large = commit_request(&[format!("default/x={}", "y".repeat(limit + 1))]);
    assert!(matches!(core.commit(large).await, Err(Error::TooLarge { .. })));

    let (queue, _task) = Queue::start(core.proposer(), Default::default(), 1);
    // The Committer's task cannot run before this one yields, so the second does not fit.
    let job = || {
        let (answer, answered) = oneshot::channel();
        (Job::Commit(Box::new(commit_request(&["default/q=1".into()])), answer), answered)
    };
    let runtime = tokio::runtime::Handle::current();
    let results: Vec<Result<()>> = std::thread::spawn(move || {
        let _guard = runtime.enter();
        (0..2000).map(|_| queue.put(job().0)).collect()
    })
    .join()
    .unwrap();
    assert!(results.iter().any(|result| matches!(result, Err(Error::Overloaded { .. }))));
    core.shutdown().await;
    let late = core.commit(commit_request(&["default/z=1".into()])).await;
    assert!(matches!(late, Err(Error::Unavailable(_) | Error::NotDone(_))));
}

/// A commit over the API that does not fit in one entry goes ahead in chunks.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_larger_than_an_entry_travels_in_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let core = started(dir.path()).await;
    let before = core.group().applied;
    let noise = push::noise(6 << 20);
    let content = repos::Content::Bytes(noise.clone().into());
    let change = TreeChange::Put { path: RepoPath::new("default/noise").unwrap(), mode: None, content };
    let mut request = commit_request(&["default/small=x".into()]);
    request.repos.get_mut(&name("default")).unwrap().changes.push(change);
    let answer = core.commit(request).await.unwrap();
    assert!(core.group().applied - before >= 6, "six chunks and the entry that names them");
    let head = answer.repos[&name("default")].head.commit;
    let reader = core.store(&name("default")).unwrap().reader().unwrap();
    let file = reader.read(head, &RepoPath::new("default/noise").unwrap(), 8 << 20).unwrap().unwrap();
    assert_eq!(file.data, noise);
    core.shutdown().await;
}
